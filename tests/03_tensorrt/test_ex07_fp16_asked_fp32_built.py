"""Grader of 03_tensorrt/ex07_fp16_asked_fp32_built. Only the readings of loaded engines need a GPU."""
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course.grading import Raised, Wrong, show

EXERCISE = "03_tensorrt/ex07_fp16_asked_fp32_built"
PROBE = "probe_ex07.py"
LIMITS = {"call_seconds": 120.0, "memory_gib": 8.0}
gpu = pytest.mark.gpu("tensorrt", "pycuda")

TYPES = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


# ---- models whose precision is known because the grader wrote every type ---------------------------------------------------

class Writer:
    """Writes a model node by node: `truth` is the reading that it has to give, `by_name` the same for the network's layers."""

    def __init__(self, shape, io, seed=0, name="x"):
        self.nodes, self.weights, self.truth = [], [], []
        self.now, self.have, self.shape, self.io, self.input, self.count = name, io, list(shape), io, name, 0
        self.draw = np.random.default_rng(seed)

    def fresh(self, stem="t"):
        self.count += 1
        return f"{stem}{self.count}"

    def cast(self, kind):
        if kind != self.have:
            made = self.fresh()
            self.nodes.append(helper.make_node("Cast", [self.now], [made], self.fresh("cast"), to=TYPES[kind]))
            self.now, self.have = made, kind
        return self

    def weight(self, shape, kind, stored=None):
        """An initializer of type `stored`, cast to `kind` before its use if that is another type."""
        stored, name = stored or kind, self.fresh("w")
        values = (self.draw.random(shape, "f4") - 0.5) / np.sqrt(np.prod(shape[1:]))
        if stored == "BF16":
            self.weights.append(helper.make_tensor(name, TensorProto.BFLOAT16, shape, values.ravel().tolist()))
        else:
            self.weights.append(numpy_helper.from_array(values.astype("f2" if stored == "FP16" else "f4"), name))
        if stored != kind:
            made = self.fresh()
            self.nodes.append(helper.make_node("Cast", [name], [made], self.fresh("cast"), to=TYPES[kind]))
            name = made
        return name

    def conv(self, kind, channels, name="", stored=None, transpose=False):
        self.cast(kind)
        cin = self.shape[1]
        w = self.weight((cin, channels, 3, 3) if transpose else (channels, cin, 3, 3), kind, stored)
        made = self.fresh("y")
        self.nodes.append(helper.make_node("ConvTranspose" if transpose else "Conv", [self.now, w], [made], name, pads=[1] * 4))
        self.truth.append((name or made, kind))
        self.now, self.shape[1] = made, channels
        return self.plain("Relu")

    def product(self, kind, width, name="", op="MatMul", stored=None, left=False):
        self.cast(kind)
        made = self.fresh("y")
        if left:           # weight @ x
            w = self.weight((width, self.shape[-2]), kind, stored)
            self.nodes.append(helper.make_node(op, [w, self.now], [made], name))
            self.shape[-2] = width
        else:
            w = self.weight((self.shape[-1], width), kind, stored)
            more = {"equation": "ab,bc->ac"} if op == "Einsum" else {}
            self.nodes.append(helper.make_node(op, [self.now, w], [made], name, **more))
            self.shape[-1] = width
        self.truth.append((name or made, kind))
        self.now = made
        return self

    def plain(self, op, kind=None, **attributes):
        if kind:
            self.cast(kind)
        made = self.fresh()
        self.nodes.append(helper.make_node(op, [self.now], [made], self.fresh(op.lower()), **attributes))
        self.now = made
        return self

    def save(self, path, batch=None):
        self.cast(self.io)
        first = list(self.first)
        last = list(self.shape)
        if batch:
            first[0] = last[0] = batch
        graph = helper.make_graph([*self.nodes, helper.make_node("Identity", [self.now], ["out"], "last")], "made_by_the_grader",
                                  [helper.make_tensor_value_info(self.input, TYPES[self.io], first)],
                                  [helper.make_tensor_value_info("out", TYPES[self.io], last)], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return str(path), list(self.truth)


def writer(shape, io, seed=0, name="x"):
    made = Writer(shape, io, seed, name)
    made.first = list(shape)
    return made


IMAGE, ROWS = (2, 3, 12, 12), (4, 24)
CASES = {
    "all FP32": lambda: writer(IMAGE, "FP32").conv("FP32", 8, "a").conv("FP32", 8, "b"),
    "all FP16": lambda: writer(IMAGE, "FP16", 1, "pixels").conv("FP16", 8, "a").conv("FP16", 4, "b"),
    "FP16 inside, inputs and outputs FP32": lambda: writer(IMAGE, "FP32", 2).conv("FP16", 8, "stem").conv("FP16", 8, "head"),
    "FP16 inputs and outputs, FP32 inside": lambda: writer(IMAGE, "FP16", 3).conv("FP32", 8, "stem").conv("FP32", 8, "head"),
    "an FP32 island": lambda: writer(IMAGE, "FP16", 4).conv("FP16", 8, "a").conv("FP16", 8, "b").conv("FP32", 8, "c").conv("FP16", 8, "d"),
    "the heaviest operator is FP32": lambda: (writer(ROWS, "FP16", 5).product("FP16", 16, "q").product("FP16", 16, "k").product("FP16", 16, "v")
                                              .product("FP32", 512, "big").product("FP16", 8, "o")),
    "weights stored in FP16, cast up": lambda: writer(IMAGE, "FP32", 6).conv("FP32", 8, "a", stored="FP16").conv("FP32", 8, "b", stored="FP16"),
    "weights stored in FP32, cast down": lambda: writer(IMAGE, "FP32", 7).conv("FP16", 8, "a", stored="FP32").conv("FP16", 8, "b", stored="FP32"),
    "Softmax kept FP32": lambda: (writer(ROWS, "FP16", 8).product("FP16", 16, "qk").plain("Softmax", "FP32", axis=-1)
                                  .product("FP16", 8, "av").plain("Sigmoid", "FP32")),
    "a weight from the left": lambda: writer(ROWS, "FP16", 9).product("FP16", 6, "left", left=True).product("FP32", 8, "right"),
    "Gemm, Einsum, ConvTranspose": lambda: writer(IMAGE, "FP32", 10).conv("FP16", 4, "up", transpose=True).conv("FP32", 4, "down"),
    "Gemm and Einsum": lambda: writer(ROWS, "FP32", 11).product("FP16", 12, "g", "Gemm").product("FP32", 12, "e", "Einsum"),
}
ONNX_ONLY = {
    "nodes without names": lambda: writer(IMAGE, "FP16", 12).conv("FP16", 8).conv("FP32", 8).conv("FP16", 8, "named"),
    "two nodes of one name": lambda: writer(IMAGE, "FP16", 13).conv("FP32", 8, "twin").conv("FP16", 8, "twin"),
    "BF16": lambda: writer(ROWS, "BF16", 14).product("BF16", 16, "a").product("BF16", 8, "b"),
}


def check_reading(got, want, call, hint=""):
    """The reading has to be `want`: pairs in order."""
    try:
        pairs = [(str(name), str(precision)) for name, precision in got]
    except (TypeError, ValueError):
        raise Wrong("A reading is a list of pairs (name, precision).", call=call, got=show(got), expected=show(want, 400)) from None
    if isinstance(got, dict):
        raise Wrong("A reading is a list of pairs (name, precision), not a dictionary: names may repeat.", call=call, got=show(got))
    if pairs == want:
        return
    names, wanted = [n for n, _ in pairs], [n for n, _ in want]
    if names == wanted:
        wrong = [(n, p, w) for (n, p), (_, w) in zip(pairs, want) if p != w]
        mistake = f"{wrong[0][0]!r} computes in {wrong[0][2]}, and the reading says {wrong[0][1]}." + hint
    elif sorted(names) == sorted(wanted):
        mistake = "The layers are not in the order in which they stand."
    elif set(names) - set(wanted):
        mistake = f"The reading lists {sorted(set(names) - set(wanted))[0]!r}, which neither convolves nor multiplies matrices: a false alarm, or a false name."
    elif len(set(wanted)) < len(wanted):
        mistake = "Two nodes have one name, and the reading holds one of them: a dictionary by name hides the other."
    else:
        mistake = f"The reading does not list {next(n for n in wanted if n not in names)!r}."
    raise Wrong(mistake, call=call, got=show(pairs, 400), expected=show(want, 400))


HINTS = {
    "FP16 inside, inputs and outputs FP32": " What enters and leaves the model is not what it computes in.",
    "FP16 inputs and outputs, FP32 inside": " What enters and leaves the model is not what it computes in.",
    "weights stored in FP16, cast up": " The weight's stored type is not its type at the node: a Cast stands between.",
    "weights stored in FP32, cast down": " The weight's stored type is not its type at the node: a Cast stands between.",
    "a weight from the left": " The node's first input is an initializer: its type stands in graph.initializer.",
}


@pytest.mark.parametrize("case", [*CASES, *ONNX_ONLY])
def test_model(submission, tmp_path, case):
    """The reading of an ONNX model names every compute node with the precision in which it multiplies"""
    path, truth = (CASES | ONNX_ONLY)[case]().save(tmp_path / "m.onnx")
    check_reading(submission.call("model_precisions", path), truth, f"model_precisions(<{case}>)", HINTS.get(case, ""))


@pytest.mark.parametrize("case", CASES)
def test_network(submission, tmp_path, case):
    """The reading of the parsed network says the same of its layers"""
    if not submission.probe("release")["typed"]:
        pytest.skip("not run here: this release has no strongly typed networks")
    path, truth = CASES[case]().save(tmp_path / "m.onnx")
    network = submission.probe("parse", path)
    check_reading(submission.call("network_precisions", network), truth, f"network_precisions(<{case}, parsed>)", HINTS.get(case, ""))


def test_weak_network(submission, tmp_path):
    """A weakly typed network is refused, in releases that have such a thing"""
    if not submission.probe("release")["flag"]:
        pytest.skip("not run here: this release has no weakly typed networks")
    path, _ = CASES["all FP32"]().save(tmp_path / "m.onnx")
    refuse(submission, "network_precisions", (submission.probe("parse", path, False),),
           "A weakly typed network was read as if its types decided: there, flags and timing do.", [])


# ---- the verdict -----------------------------------------------------------------------------------------------------------

def refuse(submission, name, args, mistake, needles, call=None):
    """The call has to raise ValueError, whose text holds every needle."""
    try:
        got = submission.attempt(name, *args)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong(f"{name} is not written yet.", call=error.call, got=str(error)) from None
        if "ValueError" not in error.bases:
            raise Wrong(f"{mistake} It raised {error.kind}, which is no ValueError.", call=call or error.call, got=str(error),
                        expected="ValueError") from None
        for needle in needles:
            if needle not in error.text:
                raise Wrong(f"The error's message does not help: it does not mention {needle!r}.", call=call or error.call, got=str(error),
                            expected="a message with every layer that was missed, and its precision") from None
        return error
    raise Wrong(mistake, call=call or f"{name}{show(args)}", got=f"returned {show(got)}", expected="ValueError")


@pytest.mark.parametrize("reading, asked", [([("a", "FP16"), ("b", "FP16")], "FP16"), ([("a", "FP32")], "FP32"), ([("x", "BF16")], "BF16")],
                         ids=["FP16", "FP32", "BF16"])
def test_require_accepts(submission, reading, asked):
    """require returns nothing where every layer has the precision asked"""
    got = submission.call("require", reading, asked)
    if got is not None:
        raise Wrong("require returns nothing.", call=f"require({reading}, {asked!r})", got=show(got), expected="None")


@pytest.mark.parametrize("reading, asked, needles", [
    ([("a", "FP32"), ("b", "FP32")], "FP16", ["a", "b", "FP32"]),
    ([(f"layer_{i}", "FP16") for i in range(99)] + [("island", "FP32")], "FP16", ["island", "FP32"]),
    ([("stem", "FP32"), ("body", "FP16"), ("gate", "BF16")], "FP16", ["stem", "FP32", "gate", "BF16"]),
    ([("stem", "FP16"), ("tail", "FP32")], "FP32", ["stem", "FP16"]),
    ([("conv", "FP16"), ("{ForeignNode[a...b]}", "unknown")], "FP16", ["{ForeignNode[a...b]}", "unknown"]),
    ([("quantized", "INT8"), ("other", "FP16")], "FP16", ["quantized", "INT8"]),
    ([(f"layer_{i:02}", "FP32") for i in range(60)], "FP16", [f"layer_{i:02}" for i in range(60)]),
], ids=["none", "1 of 100", "two of three", "FP32 asked", "unknown", "INT8", "all of 60"])
def test_require_refuses(submission, reading, asked, needles):
    """require raises ValueError that names each layer that has another precision"""
    refuse(submission, "require", (reading, asked), f"{sum(p != asked for _, p in reading)} of {len(reading)} layers do not have the precision asked, "
           "and the verdict was good.", needles, f"require({show(reading, 80)}, {asked!r})")


def test_require_names_only_what_was_missed(submission):
    """require does not accuse the layers that are as asked"""
    error = refuse(submission, "require", ([("wanted_one", "FP16"), ("odd_one", "FP32")], "FP16"), "A layer does not have the precision asked.", ["odd_one"])
    if "wanted_one" in error.text:
        raise Wrong("The message names a layer that is as asked.", call=error.call, got=str(error), expected="odd_one alone")


def test_require_nothing_seen(submission):
    """require raises ValueError on an empty reading"""
    refuse(submission, "require", ([], "FP16"), "A reading without layers passed: nothing was seen, so nothing is proven.", [])


# ---- the build -------------------------------------------------------------------------------------------------------------

def build(submission, path, engine, asked):
    submission.probe("take_builds")
    call = f"build_checked({Path(path).name!r}, {engine.name!r}, {asked!r})"
    got = submission.call("build_checked", path, str(engine), asked)
    builds = submission.probe("take_builds")
    if got is not None:
        raise Wrong("build_checked returns nothing.", call=call, got=show(got), expected="None")
    if len(builds) != 1:
        raise Wrong("The engine has to be built once.", call=call, got=f"{len(builds)} calls of build_serialized_network", expected="1 call")
    if not engine.exists() or hashlib.sha256(engine.read_bytes()).hexdigest() != builds[0]["sha256"]:
        raise Wrong("The file is not the plan that the builder returned.", call=call,
                    got=f"{engine.stat().st_size} bytes" if engine.exists() else "no file", expected="the plan, in that file")
    if builds[0]["verbosity"] != "DETAILED":
        raise Wrong("The plan keeps no more than the layers' names: nobody can ask it later what it computes in.", call=call,
                    got=f"profiling_verbosity {builds[0]['verbosity']}", expected="trt.ProfilingVerbosity.DETAILED")
    if submission.probe("release")["flag"] and builds[0]["flag"] != (asked == "FP16"):
        raise Wrong(f"{asked} was asked for, and the flag FP16 was {'set' if builds[0]['flag'] else 'not set'}.", call=call)


@pytest.mark.parametrize("case, asked", [("all FP32", "FP32"), ("all FP16", "FP16"), ("FP16 inside, inputs and outputs FP32", "FP16"),
                                         ("Softmax kept FP32", "FP16"), ("weights stored in FP32, cast down", "FP16"),
                                         ("FP16 inputs and outputs, FP32 inside", "FP32")])
def test_build(submission, tmp_path, case, asked):
    """A model that is what was asked becomes an engine that can be inspected"""
    path, _ = CASES[case]().save(tmp_path / "m.onnx")
    if submission.probe("release")["flag"] and case in ("FP16 inputs and outputs, FP32 inside", "weights stored in FP32, cast down"):
        pytest.skip("not run here: it is for releases where the model's types are all there is")
    build(submission, path, tmp_path / "made.engine", asked)


def test_build_asks_for_the_flag(submission, tmp_path):
    """Where the builder has a flag for FP16, it is set for an FP32 model"""
    if not submission.probe("release")["flag"]:
        pytest.skip("not run here: this release has no such flag")
    path, _ = CASES["all FP32"]().save(tmp_path / "m.onnx")
    build(submission, path, tmp_path / "made.engine", "FP16")


def refuse_build(submission, path, folder, asked, mistake, needles):
    engine = folder / "made.engine"
    engine.write_bytes(b"an older engine")
    before = sorted(p.name for p in folder.iterdir())
    submission.probe("take_builds")
    call = f"build_checked({Path(path).name!r}, 'made.engine', {asked!r})"
    error = refuse(submission, "build_checked", (path, str(engine), asked), mistake, needles, call)
    if builds := submission.probe("take_builds"):
        raise Wrong("The engine was built first and judged afterwards: the model says it before.", call=call,
                    got=f"{len(builds)} calls of build_serialized_network", expected="none")
    if engine.read_bytes() != b"an older engine" or sorted(p.name for p in folder.iterdir()) != before:
        raise Wrong("A build that was refused left something behind.", call=call, got=sorted(p.name for p in folder.iterdir()),
                    expected="the older engine, untouched, and nothing else")
    return error


@pytest.mark.parametrize("case", ["all FP32", "FP16 inputs and outputs, FP32 inside", "an FP32 island", "the heaviest operator is FP32",
                                  "weights stored in FP16, cast up", "BF16"])
def test_fp16_asked(submission, tmp_path, case):
    """FP16 asked, FP32 in the model, and no flag to change it: ValueError before the build, with the layers' names"""
    if submission.probe("release")["flag"]:
        pytest.skip("not run here: this release has a flag for FP16")
    path, truth = (CASES | ONNX_ONLY)[case]().save(tmp_path / "m.onnx")
    refuse_build(submission, path, tmp_path, "FP16", f"FP16 was asked for and {'BF16' if case == 'BF16' else 'FP32'} was built, silently.", [n for n, p in truth if p != "FP16"])


@pytest.mark.parametrize("case", ["all FP16", "an FP32 island", "BF16"])
def test_fp32_asked(submission, tmp_path, case):
    """FP32 asked, FP16 or BF16 in the model: ValueError before the build"""
    if case == "BF16" and not submission.probe("release")["typed"]:
        pytest.skip("not run here: this release does not know BF16")
    path, truth = (CASES | ONNX_ONLY)[case]().save(tmp_path / "m.onnx")
    refuse_build(submission, path, tmp_path, "FP32", f"FP32 was asked for and {'BF16' if case == 'BF16' else 'FP16'} was built, silently.", [n for n, p in truth if p != "FP32"])


@pytest.mark.parametrize("asked", ["fp8", "INT8", "", None], ids=str)
def test_unknown_precision(submission, tmp_path, asked):
    """A precision that is neither FP16 nor FP32: ValueError"""
    path, _ = CASES["all FP32"]().save(tmp_path / "m.onnx")
    refuse_build(submission, path, tmp_path, asked, "A precision that this function does not build was taken.", [])


def check_refusal(error, said):
    """The message has to hold one of `said`: the refused operator where the parser names it, its description where it does not, as in 8.6."""
    if not any(words in error.text for words in said):
        raise Wrong("The error's message does not hold the parser's words.", call=error.call, got=str(error), expected=f"a message with {show(said, 400)}")


def test_refused_by_the_parser(submission, tmp_path):
    """A model that the parser refuses: ValueError with the parser's words"""
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["p"], "product"), helper.make_node("Det", ["p"], ["y"], "determinant")], "g",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 3])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "det.onnx")
    said = submission.probe("refusal", str(tmp_path / "det.onnx"))
    error = refuse_build(submission, str(tmp_path / "det.onnx"), tmp_path, "FP32", "The parser's refusal was not noticed.", [])
    check_refusal(error, said)


# ---- what the inspector writes ---------------------------------------------------------------------------------------------

def layer(name, kind, first="", last="", **more):
    """A layer in the form of NVIDIA's documentation of the inspector; first and last: format of its input and output."""
    return {"Name": name, "LayerType": kind, "Inputs": [{"Name": "i", "Location": "Device", "Dimensions": [8, 64, 28, 28], "Format/Datatype": first}],
            "Outputs": [{"Name": "o", "Location": "Device", "Dimensions": [8, 64, 28, 28], "Format/Datatype": last or first}],
            "TacticName": "a_tactic", "TacticValue": "0x0"} | more


def text_of(*layers):
    return json.dumps({"Layers": list(layers), "Bindings": ["x", "out"]})


F32, F16, NHWC16 = "Row major linear FP32", "Row major linear FP16 format", "Channel major FP16 format where channel % 8 == 0"
TEXTS = {
    "8.6, FP32 behind FP16 inputs": (
        [layer("Reformatting CopyNode for Input Tensor 0 to stem", "Reformat", F16, F32),
         layer("stem + stem_relu", "CaskConvolution", F32, ParameterType="Convolution", Weights={"Type": "Float", "Count": 1728}),
         layer("body", "CaskGemmConvolution", "Channel major FP32 format where channel % 4 == 0", NHWC16),
         layer("PWN(gate)", "PointWiseV2", NHWC16)],
        [("stem + stem_relu", "FP32"), ("body", "FP32")]),
    "8.6, an island": (
        [layer("a", "CaskConvolution", NHWC16), layer("b", "CaskConvolution", "Two wide channel vectorized row major FP16 format", F32),
         layer("Reformatting CopyNode", "Reformat", NHWC16, F32), layer("c", "FusedConvActConvolution", F32, NHWC16), layer("up", "CaskDeconvolutionV2", NHWC16),
         layer("pool", "CaskPooling", F32), layer("prob", "SoftMaxV2", F32)],
        [("a", "FP16"), ("b", "FP16"), ("c", "FP32"), ("up", "FP16")]),
    "8.6, INT8 and a matrix product": (
        [layer("q", "CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format.", F32), layer("fc", "MatrixMultiply", F16)],
        [("q", "INT8"), ("fc", "FP16")]),
    "8.6, a region of Myelin": (
        [layer("a", "CaskConvolution", F16), layer("{ForeignNode[ln1...fc2]}", "Myelin", F16)],
        [("a", "FP16"), ("{ForeignNode[ln1...fc2]}", "unknown")]),
    "8.6, an Identity that became a region": (
        [layer("one + relu4", "CaskConvolution", F16, Weights={"Type": "Half", "Count": 1728}), layer("two + relu8", "CaskConvolution", NHWC16),
         layer("last", "Myelin", F16, F32)],
        [("one + relu4", "FP16"), ("two + relu8", "FP16"), ("last", "unknown")]),
    "dynamic shapes, no weights": (
        [layer("a", "MatrixMultiply", "N/A due to dynamic shapes"), layer("n", "NoOp", "N/A due to dynamic shapes")], [("a", "unknown")]),
    "dynamic shapes, weights": (
        [layer("a", "CaskConvolution", "N/A due to dynamic shapes", Weights={"Type": "Float", "Count": 9}), layer("b", "CaskConvolution",
         "N/A due to dynamic shapes", Weights={"Type": "Half", "Count": 9}, Bias={"Type": "Float", "Count": 1}),
         layer("c", "CaskConvolution", "N/A due to dynamic shapes", Weights={"Type": "Int8", "Count": 9})], [("a", "FP32"), ("b", "FP16"), ("c", "INT8")]),
    "10, short names": (
        [layer("__myl_Cast", "kgen", "Float", "Half"), layer("qk_myl0_3", "gemm", "Half", "Float"), layer("av_myl0_4", "gemm", "Float", "Half"),
         layer("conv_myl0_5", "correlation", "BFloat16"), layer("sm", "kgen", "Half"), layer("f8", "gemm", "FP8", "BFloat16")],
        [("qk_myl0_3", "FP16"), ("av_myl0_4", "FP32"), ("conv_myl0_5", "BF16"), ("f8", "FP8")]),
    "one name twice": (
        [layer("conv", "CaskConvolution", F32), layer("conv", "CaskConvolution", F16)], [("conv", "FP32"), ("conv", "FP16")]),
    "names that mislead": (
        [layer("half_head_fp16", "CaskConvolution", F32, F16, TacticName="sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16"),
         layer("fp32_conv_reformat", "Reformat", F32), layer("residual", "CaskConvolution", F16, Inputs=[
             {"Name": "i", "Dimensions": [1, 8], "Format/Datatype": F16}, {"Name": "skip", "Dimensions": [1, 8], "Format/Datatype": F32}])],
        [("half_head_fp16", "FP32"), ("residual", "FP16")]),
    "weights of another type than the input": (
        [layer("a", "CaskConvolution", F16, Weights={"Type": "Float", "Count": 9}), layer("b", "CaskConvolution", "Row major Int8 format", Weights={"Type": "Half", "Count": 9})],
        [("a", "FP16"), ("b", "INT8")]),
    "each word of the contract, in any case": (
        [layer("1", "CONVOLUTION", F32), layer("2", "BatchedGEMM", F16), layer("3", "MatMul", F16), layer("4", "matrixMultiply", F32), layer("5", "Correlation", F16),
         layer("6", "MYELIN", F16), layer("7", "MATMUL", F32), layer("8", "PointWise", F32)],
        [("1", "FP32"), ("2", "FP16"), ("3", "FP16"), ("4", "FP32"), ("5", "FP16"), ("6", "unknown"), ("7", "FP32")]),
    "no compute layer": ([layer("r", "Reformat", F16)], []),
}


@pytest.mark.parametrize("case", TEXTS)
def test_inspector(submission, case):
    """The reading of the inspector's JSON goes by what the compute layers take in"""
    layers, truth = TEXTS[case]
    check_reading(submission.call("read_inspector", text_of(*layers)), truth, f"read_inspector(<{case}>)",
                  " Its first input's Format/Datatype says so, not its output's, its tactic's or its name's.")


RECORDED = json.loads((Path(__file__).parent / "inspector_ex07.json").read_text(encoding="utf-8"))["texts"]
STEM, ONE, TWO = "/stem/Conv + /stem/BatchNorm + /stem/Relu", "/conv1/Conv + /conv1/BatchNorm + /conv1/Relu", "/conv2/Conv + /conv2/BatchNorm + /Add + /Relu"
READ = {
    "residual_tf32": [(STEM, "FP32"), (ONE, "FP32"), (TWO, "FP32"), ("/head/Gemm", "FP32")],
    "residual_fp16": [(STEM, "FP16"), (ONE, "FP16"), (TWO, "FP16"), ("/head/Gemm", "FP32")],              # the flag was set
    "channels_last_fp16": [("/wide/Conv + /wide/Relu", "FP32"), ("/narrow/Conv + PWN(PWN(/Sigmoid), /Mul)", "FP32")],      # the flag was set
    "residual_fp16_dynamic": [(STEM, "FP16"), (ONE, "FP16"), (TWO, "FP16"), ("/head/Gemm", "FP16")],      # formats are N/A, weights tell
    "attention_fp16": [("{ForeignNode[query.weight + (Unnamed Layer* 1) [Shuffle]...(Unnamed Layer* 44) [Normalization]]}", "unknown")],
}


@pytest.mark.parametrize("case", READ)
def test_recorded_inspector(submission, case):
    """The reading of what the inspector of TensorRT 8.6.0 wrote of real engines"""
    call = f"read_inspector(<recorded from 8.6.0: {case}>)"
    try:
        got = submission.attempt("read_inspector", RECORDED[case])
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("read_inspector is not written yet.", call=call, got=str(error)) from None
        raise Wrong("The text that TensorRT 8.6.0 wrote was not read. It is JSON but for raw control characters, which json.loads takes with strict=False.",
                    call=call, got=str(error), expected=show(READ[case], 400)) from None
    check_reading(got, READ[case], call, " Its first input's Format/Datatype says so; where that is N/A, its Weights' Type.")


@pytest.mark.parametrize("text", ['{"Layers": ["stem + stem_relu", "body", "head"], "Bindings": ["x", "out"]}', '{"Layers": [], "Bindings": []}', "{}", "",
                                  "no json at all", '{"Layers": null}'], ids=["names alone", "no layers", "nothing", "empty", "no JSON", "null"])
def test_inspector_without_details(submission, text):
    """An engine that tells no more than names, or nothing: ValueError"""
    refuse(submission, "read_inspector", (text,), "The text shows no precision at all, and was read as if it did.", [], f"read_inspector({text[:60]!r})")


# ---- real engines ----------------------------------------------------------------------------------------------------------

def real(io, kinds, path, batch=None):
    """Four convolutions, large enough that a release has no reason to do anything else with them."""
    made = writer((8, 3, 56, 56), io, 20, "image")
    for name, kind, channels in zip(FOUR, kinds, (64, 64, 128, 64)):
        made.conv(kind, channels, name)
    path, truth = made.save(path, batch)
    return path, dict(truth)


FOUR = ("one", "two", "three", "four")


def known(pairs, typed):
    """The pairs that have a say: all but regions whose inside the inspector does not show, and which by their name hold none of the four.

    TensorRT 8.6.0 lists the Identity at the end of the model as "last", of a type that cannot be read, in some builds and not in others.
    Releases with strongly typed networks name their kernels freely, so there no region can be told by its name.
    """
    def holds(name):
        return not typed and bool({*FOUR} & {*name.replace("+", " ").split()})
    return [(name, precision) for name, precision in pairs if precision != "unknown" or holds(name)]


def judge_engine(pairs, truth, typed, dynamic, call):
    """The reading of an engine whose four convolutions were forced into `truth` (name to precision)."""
    shown = {"got": show(pairs, 600), "expected": show(truth, 200)}
    if {p for _, p in pairs} == {"unknown"} and dynamic:
        raise Wrong("Every format is N/A due to dynamic shapes: the type of the weights tells.", call=call, **shown)
    if {p for _, p in known(pairs, typed)} != set(truth.values()):
        raise Wrong("The precisions are not those that the engine was built with.", call=call, **shown)
    if typed:
        return                                                 # releases of this kind name their kernels freely
    for name, precision in truth.items():
        found = [p for n, p in pairs if name in n.replace("+", " ").split()]      # 8.6 joins the names of what it fused: "one + relu4"
        if found != [precision]:
            raise Wrong(f"The convolution {name!r} was forced into {precision}.", call=call, **shown)


def judge_build(pairs, asked, flag, typed):
    """The reading of an engine that the submission built: a flag is a permission, so where there is one, FP16 may come out as FP32."""
    allowed = {asked} if asked == "FP32" or not flag else {"FP16", "FP32"}
    told = {p for _, p in known(pairs, typed)}
    if not told or not told <= allowed:
        raise Wrong("The engine's precisions are not those that were asked for.", call=f"build_checked(…, {asked!r}), then engine_precisions",
                    got=show(pairs, 600), expected=f"{asked}")


@gpu
@pytest.mark.parametrize("kinds, batch", [(["FP32"] * 4, None), (["FP16"] * 4, None), (["FP16", "FP16", "FP32", "FP16"], None), (["FP16"] * 4, "n"),
                                          (["FP32", "FP16", "FP32", "FP16"], "n")],
                         ids=["FP32", "FP16", "an island", "FP16, dynamic batch", "mixed, dynamic batch"])
def test_gpu_engine(submission, tmp_path, kinds, batch):
    """On the GPU: the reading of an engine whose layers were forced into a precision"""
    typed = submission.probe("release")["typed"]
    written = kinds if typed else ["FP32"] * 4                 # where types decide nothing, the builder is told by name
    path, _ = real("FP32", written, tmp_path / "m.onnx", batch)
    truth = dict(zip(FOUR, kinds))
    profile = {"image": [(1, 3, 56, 56), (8, 3, 56, 56), (16, 3, 56, 56)]} if batch else None
    engine = submission.probe("make_engine", path, truth, True, profile)
    got = submission.call("engine_precisions", engine)
    call = f"engine_precisions(<{truth}, {'dynamic' if batch else 'fixed'} batch>)"
    pairs = [(str(name), str(precision)) for name, precision in got]
    judge_engine(pairs, truth, typed, bool(batch), call)


@gpu
def test_gpu_names_only(submission, tmp_path):
    """On the GPU: an engine built without detailed verbosity is refused with ValueError"""
    path, truth = real("FP32", ["FP32"] * 4, tmp_path / "m.onnx")
    engine = submission.probe("make_engine", path, truth, False)
    refuse(submission, "engine_precisions", (engine,), "The engine holds no more than names, and was read as if it told precisions.", [])


@gpu
@pytest.mark.parametrize("asked", ["FP32", "FP16"])
def test_gpu_build_and_read(submission, tmp_path, asked):
    """On the GPU: your own build, read back"""
    release = submission.probe("release")
    path, _ = real("FP32", ["FP32" if release["flag"] else asked] * 4, tmp_path / "m.onnx")
    build(submission, path, tmp_path / "made.engine", asked)
    engine = submission.probe("load", str(tmp_path / "made.engine"))
    pairs = [(str(name), str(precision)) for name, precision in submission.call("engine_precisions", engine)]
    judge_build(pairs, asked, release["flag"], release["typed"])
