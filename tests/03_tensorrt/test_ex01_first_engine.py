"""Grader of 03_tensorrt/ex01_first_engine. The build half runs with no GPU, the run half needs one."""
import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.grading import Opaque, Raised, Wrong, show

EXERCISE = "03_tensorrt/ex01_first_engine"
PROBE = "probe_ex01.py"
LIMITS = {"call_seconds": 60.0, "memory_gib": 8.0}
DIGITS = ROOT / "models/digits_mlp/digits_mlp.onnx"
TOLERANCE = 2e-3      # absolute, on probabilities: TF32 keeps 10 bits of mantissa, and TensorRT uses it by default
gpu = pytest.mark.gpu("tensorrt", "pycuda")


# ---- models -----------------------------------------------------------------------------------------------------------

def save(path, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, "made_by_the_grader",
                              [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
                              [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
                              [numpy_helper.from_array(w, n) for n, w in weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return str(path)


def mlp(path, seed, features, hidden, classes, name="image", output="scores", batch="n"):
    """A perceptron of the grader's own; returns its path and a NumPy function that computes the same in float64."""
    draw = np.random.default_rng(seed)
    w1, w2 = draw.normal(0, features**-0.5, (features, hidden)), draw.normal(0, hidden**-0.5, (hidden, classes))
    b1 = draw.normal(0, 0.5, hidden)
    weights = [("w1", w1.astype("f4")), ("b1", b1.astype("f4")), ("w2", w2.astype("f4"))]
    save(path, [helper.make_node("Gemm", [name, "w1", "b1"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
                helper.make_node("MatMul", ["r", "w2"], ["logits"]), helper.make_node("Softmax", ["logits"], [output], axis=-1)],
         {name: [batch, features]}, {output: [batch, classes]}, weights)

    def oracle(x):
        logits = np.maximum(x.astype("f8") @ weights[0][1].astype("f8") + weights[1][1], 0) @ weights[2][1].astype("f8")
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    return str(path), oracle


def conv(path, batch="n"):
    w = np.random.default_rng(5).normal(0, 0.3, (4, 3, 3, 3)).astype("f4")
    return save(path, [helper.make_node("Conv", ["frames", "w"], ["y"], pads=[1, 1, 1, 1])],
                {"frames": [batch, 3, 8, 10]}, {"y": [batch, 4, 8, 10]}, [("w", w)])


def two_inputs(path):
    w = np.random.default_rng(6).normal(0, 0.3, (5, 16)).astype("f4")
    return save(path, [helper.make_node("MatMul", ["extra", "w"], ["e"]), helper.make_node("Add", ["main", "e"], ["y"])],
                {"main": ["n", 16], "extra": ["n", 5]}, {"y": ["n", 16]}, [("w", w)])


# ---- the build half ---------------------------------------------------------------------------------------------------

def build(submission, model, folder, batches=None):
    """Calls the submission's build_engine; returns what was built and the bytes of the file."""
    engine = folder / "made.engine"
    submission.probe("take_builds")
    arguments = (model, str(engine)) if batches is None else (model, str(engine), batches)
    call = write(arguments)
    try:
        returned = submission.attempt("build_engine", *arguments)
        ended = "build_engine returned as if all were well."
    except Raised as error:
        ended = f"{error}"
        builds = submission.probe("take_builds")
        if not builds or builds[-1]["sha256"] is not None:
            raise_unexpected(error)
    else:
        builds = submission.probe("take_builds")
    if not builds:
        raise Wrong("Nothing was built: build_serialized_network was never called.", call=call)
    if builds[-1]["sha256"] is None:
        raise Wrong("build_serialized_network returned None. " + why_none(builds[-1]), call=call, got=ended,
                    expected="one profile with min <= opt <= max for every dynamic input, and RuntimeError if the builder still returns None")
    if len(builds) > 1:
        raise Wrong(f"The engine was built {len(builds)} times. A build is the expensive step: once is the contract.", call=call,
                    got=f"{len(builds)} calls of build_serialized_network", expected="1 call")
    outputs = [o.name for o in onnx.load(model).graph.output]
    if sorted(builds[-1]["outputs"]) != sorted(outputs):
        raise Wrong("The network's outputs are not the model's.", call=call, got=builds[-1]["outputs"], expected=outputs)
    if returned is not None:
        raise Wrong("build_engine returns nothing: the plan is in the file.", call=call, got=show(returned), expected="None")
    if not engine.exists():
        raise Wrong("build_engine wrote no file.", call=call, got=f"no file {engine.name}", expected="the plan, in that file")
    return builds[-1], engine.read_bytes(), call


def write(arguments):
    return f"build_engine({', '.join(repr(a.split('/')[-1]) if isinstance(a, str) else repr(a) for a in arguments)})"


def raise_unexpected(error):
    """The submission raised where nothing, or something else, was expected."""
    name = error.call.partition("(")[0]
    if error.kind == "NotImplementedError":
        raise Wrong(f"{name} is not written yet.", call=error.call, got=str(error)) from None
    at = f" (your {error.where})" if error.where else ""
    raise Wrong(f"{name} raised {error.kind}{at}.", call=error.call, got=str(error)) from None


def why_none(built):
    """What the builder was given, where that explains why it returned None."""
    if built["rejected_profiles"]:
        return "add_optimization_profile had returned -1: the profile is not min <= opt <= max. Are its shapes in that order?"
    if not built["profiles"]:
        return "No optimization profile was added to the config, and an input is dynamic."
    for name in built["inputs"]:
        if not built["profiles"][0][name]:
            return f"The profile says nothing of the input {name!r}: set_shape is needed for every dynamic input, by its own name."
    return "The log of an ERROR-level trt.Logger says why."


def expect_profile(built, call, wanted):
    """wanted: input name to [min, opt, max] shapes."""
    if built["inputs"].keys() != wanted.keys() or any(-1 not in s for s in built["inputs"].values()):
        raise Wrong("The network's inputs are not the model's: an input's dynamic batch was fixed, or an input is missing.",
                    call=call, got=built["inputs"], expected={k: (-1, *v[0][1:]) for k, v in wanted.items()})
    if len(built["profiles"]) != 1:
        raise Wrong("The engine needs exactly one optimization profile.", call=call, got=f"{len(built['profiles'])} profiles",
                    expected="1 profile")
    profile = built["profiles"][0]
    for name, shapes in wanted.items():
        got = [tuple(s) for s in profile[name]]
        if got != shapes:
            mistake = f"The profile's shapes for {name!r} are not min, opt and max of the contract."
            if got[1:] == [shapes[2], shapes[2]] or got[0] == got[2]:
                mistake += " Is the engine tuned for one batch alone?"
            raise Wrong(mistake, call=call, got=got, expected=shapes)


def test_digits_engine_is_built(submission, tmp_path):
    """The digits model becomes an engine with one profile, batch 1, 8 and 32."""
    built, _, call = build(submission, str(DIGITS), tmp_path)
    expect_profile(built, call, {"pixels": [(1, 784), (8, 784), (32, 784)]})


def test_file_is_the_plan(submission, tmp_path):
    """The file holds the plan, byte for byte as the builder returned it"""
    built, data, call = build(submission, str(DIGITS), tmp_path)
    if hashlib.sha256(data).hexdigest() != built["sha256"]:
        raise Wrong("The file is not the plan that the builder returned.", call=call,
                    got=f"{len(data)} bytes that start with {data[:12]!r}", expected=f"the plan's {built['bytes']} bytes")
    weights = sum(numpy_helper.to_array(w).nbytes for w in onnx.load(DIGITS).graph.initializer)
    if len(data) < weights:
        raise Wrong("The plan is smaller than the model's weights: was it built without them?", call=call, got=f"{len(data)} bytes",
                    expected=f"more than {weights} bytes")


@pytest.mark.parametrize("seed, features, name, batches", [(1, 12, "image", (1, 8, 32)), (2, 300, "x", (1, 1, 4)), (3, 7, "tokens:0", (2, 16, 64))],
                         ids=["12 features", "300 features", "7 features"])
def test_other_models(submission, tmp_path, seed, features, name, batches):
    """Other names, widths and batches: nothing about the model is taken on trust"""
    model, _ = mlp(tmp_path / "m.onnx", seed, features, 9, 4, name=name)
    built, _, call = build(submission, model, tmp_path, batches)
    expect_profile(built, call, {name: [(b, features) for b in batches]})


def test_image_input(submission, tmp_path):
    """An input of rank 4 keeps its channels, height and width in the profile"""
    built, _, call = build(submission, conv(tmp_path / "conv.onnx"), tmp_path)
    expect_profile(built, call, {"frames": [(b, 3, 8, 10) for b in (1, 8, 32)]})


def test_two_inputs(submission, tmp_path):
    """Every dynamic input of a model is in the profile"""
    built, _, call = build(submission, two_inputs(tmp_path / "two.onnx"), tmp_path, (1, 4, 16))
    expect_profile(built, call, {"main": [(b, 16) for b in (1, 4, 16)], "extra": [(b, 5) for b in (1, 4, 16)]})


def expect_error(submission, kinds, mistake, arguments, needles=(), hint=""):
    """The call must raise one of `kinds` with a message that holds each needle, and leave the old file alone."""
    from pathlib import Path
    engine = Path(arguments[1])
    engine.write_bytes(b"an older engine")
    call = write(arguments)
    before = sorted(engine.parent.iterdir())
    try:
        got = submission.attempt("build_engine", *arguments)
        raise Wrong(mistake, call=call, got=f"returned {show(got)}", expected=f"{kinds[0]}{hint}")
    except Raised as error:
        if error.kind in ("NotImplementedError", "AttributeError", "NameError", "ImportError", "ModuleNotFoundError"):
            raise_unexpected(error)
        if not set(kinds) & set(error.bases):
            raise Wrong(f"{mistake} It raised {error.kind}, which is no {kinds[0]}.", call=call, got=str(error),
                        expected=f"{kinds[0]}{hint}") from None
        for needle in needles:
            if needle.lower() not in error.text.lower():
                raise Wrong(f"The error's message does not help: it does not mention {needle!r}.", call=call, got=str(error),
                            expected=f"{kinds[0]}{hint}") from None
    if not engine.exists() or engine.read_bytes() != b"an older engine":
        raise Wrong("A build that failed destroyed the engine file that was there before: build first, then write.", call=call,
                    got=f"{engine.read_bytes()!r}" if engine.exists() else "no file", expected="the older file, untouched")
    extra = [p.name for p in sorted(engine.parent.iterdir()) if p not in before]
    if extra:
        raise Wrong("A build that failed left files behind.", call=call, got=extra, expected="nothing beside the older engine")


def test_unsupported_operator(submission, tmp_path):
    """A model that the parser refuses: ValueError with the parser's own words"""
    path = save(tmp_path / "det.onnx", [helper.make_node("Det", ["x"], ["y"])], {"x": ["n", 3, 3]}, {"y": ["n"]})
    expect_error(submission, ["ValueError"], "The parser's refusal was not noticed: parse returns False, it raises nothing.",
                 (path, str(tmp_path / "e.engine")), ["Det"],
                 hint=" that names the node: str(parser.get_error(i)), which tells node and reason, for each i < parser.num_errors")


def test_every_error_of_the_parser(submission, tmp_path):
    """A model with two faults: the ValueError tells each error that the parser reports"""
    path = str(tmp_path / "two_faults.onnx")
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["a"]), helper.make_node("Unheard", ["x"], ["b"], domain="elsewhere"),
         helper.make_node("Add", ["a", "b"], ["y"])], "two_faults",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 3])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 1)], ir_version=8), path)
    reported = submission.probe("operators_refused", path, ["Det", "Unheard"])     # releases differ in how many they report
    assert reported, "the grader's model was not refused"
    expect_error(submission, ["ValueError"], "The parser's refusal was not noticed.", (path, str(tmp_path / "e.engine")), reported,
                 hint=" with every error: parser.num_errors tells how many there are")


@pytest.mark.parametrize("content", [b"hello world", b""], ids=["text", "empty"])
def test_not_a_model(submission, tmp_path, content):
    """A file that is no ONNX model: ValueError"""
    (tmp_path / "no.onnx").write_bytes(content)
    expect_error(submission, ["ValueError"], "A file that is no ONNX model was not noticed: parse can return True for it, with a network of no "
                 "inputs and no outputs.", (str(tmp_path / "no.onnx"), str(tmp_path / "e.engine")))


def test_missing_file(submission, tmp_path):
    """No file: FileNotFoundError that names it"""
    expect_error(submission, ["FileNotFoundError"], "A missing file is not said to be missing.",
                 (str(tmp_path / "gone.onnx"), str(tmp_path / "e.engine")), ["gone.onnx"])


def test_second_dynamic_dimension(submission, tmp_path):
    """A second dynamic dimension, which the contract has no sizes for: ValueError that names the input"""
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["signal"], ["y"])], {"signal": ["n", "length"]}, {"y": ["n", "length"]})
    expect_error(submission, ["ValueError"], "A dynamic dimension other than the batch got through.",
                 (path, str(tmp_path / "e.engine")), ["signal"])


def test_fixed_batch(submission, tmp_path):
    """A model whose batch is fixed cannot serve a range: ValueError that names the input"""
    path, _ = mlp(tmp_path / "m.onnx", 4, 6, 5, 3, name="fixed_input", batch=8)
    expect_error(submission, ["ValueError"], "A model with a fixed batch was built as if it could serve every batch.",
                 (path, str(tmp_path / "e.engine")), ["fixed_input"])


@pytest.mark.parametrize("batches", [(8, 4, 32), (1, 64, 32), (0, 8, 32)], ids=str)
def test_batches_out_of_order(submission, tmp_path, batches):
    """Batches that are not 1 <= min <= opt <= max: ValueError"""
    expect_error(submission, ["ValueError"], "Impossible batches were not noticed: set_shape takes them without a word, and "
                 "add_optimization_profile then returns -1.", (str(DIGITS), str(tmp_path / "e.engine"), batches))


def test_build_that_fails(submission, tmp_path):
    """The builder returns None: RuntimeError, and the older engine file stays"""
    submission.probe("fail_next_build")
    expect_error(submission, ["RuntimeError"], "build_serialized_network returned None, and that was not noticed.",
                 (str(DIGITS), str(tmp_path / "e.engine")))


def test_nothing_else_is_left(submission, tmp_path):
    """The folder holds the engine and nothing else"""
    folder = tmp_path / "out"
    folder.mkdir()
    build(submission, str(DIGITS), folder)
    left = sorted(p.name for p in folder.iterdir())
    if left != ["made.engine"]:
        raise Wrong("Files were left beside the engine.", got=left, expected=["made.engine"])
    if files := submission.probe("files_left"):
        raise Wrong("Files were left in the working folder.", got=files, expected="none")


# ---- the run half: a GPU with TensorRT 8.6 to 11 and pycuda -------------------------------------------------------------

@pytest.fixture(scope="module")
def loaded(submission, tmp_path_factory):
    """Loads engines that the grader built: (model, features, input name) to engine and oracle."""
    folder = tmp_path_factory.mktemp("engines")
    cache = {}

    def load(seed=11, features=48, name="image", batches=(1, 8, 32), classes=6):
        key = (seed, features, name, batches, classes, submission.started)
        if key not in cache or submission.process is None:
            path, oracle = mlp(folder / f"m{seed}.onnx", seed, features, 40, classes, name=name)
            engine = str(folder / f"m{seed}.engine")
            submission.probe("build_plan", path, engine, {name: [(b, features) for b in batches]})
            cache[key] = submission.call("load_engine", engine), oracle
        return cache[key]
    return load


def infer(submission, engine, x, oracle, mistake="The numbers are wrong."):
    got = submission.call("infer", engine, x)
    want = oracle(x)
    call = f"infer(engine, <array {x.shape} {x.dtype}>)"
    if not isinstance(got, np.ndarray):
        raise Wrong("infer has to return a NumPy array.", call=call, got=got, expected=f"array of shape {want.shape}, float32")
    if got.shape != want.shape or got.dtype != np.float32:
        mistake = "The output has the wrong shape or dtype."
        if got.size > want.size:
            mistake += " Was it sized by the profile's maximum? Ask the context for the shape, after set_input_shape."
        raise Wrong(mistake, call=call, got=got, expected=f"array of shape {want.shape}, float32")
    worst = float(np.abs(got - want).max()) if np.isfinite(got).all() else float("nan")
    if not worst <= TOLERANCE:
        if not got.any() or not np.isfinite(got).all():
            mistake += " Nothing seems to have been copied back, or it was read before the stream was synchronized."
        elif len(got) > 1 and np.abs(got[0] - want[0]).max() <= TOLERANCE:
            mistake += " The first row is right: were all rows copied to the device?"
        raise Wrong(mistake, call=call, got=got, expected=f"{show(want.astype('f4'))} within {TOLERANCE}")
    return got


@gpu
@pytest.mark.parametrize("batch", [1, 2, 8, 31, 32])
def test_gpu_results(submission, loaded, batch):
    """On the GPU: right probabilities at every batch of the profile"""
    engine, oracle = loaded()
    infer(submission, engine, np.random.default_rng(batch).random((batch, 48), dtype="f4"), oracle)


@gpu
def test_gpu_digits(submission, tmp_path):
    """On the GPU: your engine of the digits model agrees with the network computed in NumPy, on all held-out digits"""
    engine_path = tmp_path / "digits.engine"
    submission.call("build_engine", str(DIGITS), str(engine_path))
    engine = submission.call("load_engine", str(engine_path))
    weights = {i.name: numpy_helper.to_array(i).astype("f8") for i in onnx.load(DIGITS).graph.initializer}
    data = np.load(DIGITS.parent / "heldout.npz")
    x = (data["images"].reshape(-1, 784) / 255).astype("f4")

    def oracle(x):
        logits = np.maximum(x @ weights["hidden.weight"].T + weights["hidden.bias"], 0) @ weights["logits.weight"].T + weights["logits.bias"]
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    labels = np.concatenate([infer(submission, engine, x[i:i + 32], oracle).argmax(1) for i in range(0, len(x), 32)])
    want = oracle(x).argmax(1)
    if (labels != want).mean() > 0.01:
        raise Wrong("The labels differ from the network's on more than 1 % of the digits.", got=f"{(labels != want).sum()} of {len(x)} differ")


@gpu
def test_gpu_other_model(submission, loaded):
    """On the GPU: another input name, another width, other classes"""
    engine, oracle = loaded(seed=12, features=33, name="tokens:0", batches=(1, 4, 16), classes=9)
    infer(submission, engine, np.random.default_rng(0).random((5, 33), dtype="f4"), oracle)


@gpu
def test_gpu_memory_layout(submission, loaded):
    """On the GPU: arrays that are not contiguous in memory"""
    engine, oracle = loaded()
    infer(submission, engine, np.random.default_rng(3).random((48, 6), dtype="f4").T, oracle,
          "A transposed (not contiguous) input gives wrong numbers: the device gets its bytes in the wrong order. Use np.ascontiguousarray "
          "before the copy.")


@gpu
def test_gpu_calls_do_not_share(submission, loaded):
    """On the GPU: a second call changes no result of the first"""
    engine, oracle = loaded()
    one, two = (np.random.default_rng(s).random((4, 48), dtype="f4") for s in (1, 2))
    if not submission.drive("call_twice", engine, one, two):
        raise Wrong("Two calls returned the same memory: the second call changed the first call's result. Return a copy.",
                    call="a = infer(engine, x1); b = infer(engine, x2)")


@gpu
@pytest.mark.parametrize("shape, dtype, why", [((33, 48), "f4", "a batch above the profile's maximum"), ((4, 47), "f4", "the wrong width"),
                                               ((4, 48), "f8", "float64"), ((0, 48), "f4", "an empty batch")],
                         ids=["batch 33", "47 features", "float64", "batch 0"])
def test_gpu_bad_input(submission, loaded, shape, dtype, why):
    """On the GPU: an input that the engine cannot take is refused with ValueError"""
    engine, _ = loaded()
    call = f"infer(engine, <array {shape} {np.dtype(dtype)}>)"
    try:
        got = submission.attempt("infer", engine, np.zeros(shape, dtype))
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise_unexpected(error)
        if "ValueError" not in error.bases:
            raise Wrong(f"Given {why}, infer has to raise ValueError.", call=call, got=str(error), expected="ValueError") from None
        return
    raise Wrong(f"Given {why}, infer has to raise ValueError. set_input_shape returns False for a shape outside the profile.", call=call,
                got=show(got), expected="ValueError")


@gpu
def test_gpu_asynchronous_and_synchronized(submission, loaded):
    """On the GPU: execute_async_v3 on a stream, and nothing is read before the stream is done"""
    engine, oracle = loaded()
    submission.probe("watch_cuda")
    submission.probe("take_trace")
    x = np.random.default_rng(9).random((8, 48), dtype="f4")
    infer(submission, engine, x, oracle)
    trace = submission.probe("take_trace")
    if trace.count("execute_async_v3") != 1:
        raise Wrong("The contract asks for execute_async_v3, once a call.", call="infer(engine, x)", got=f"seen: {trace}",
                    expected="one execute_async_v3")
    after = trace[trace.index("execute_async_v3") + 1:]
    copies = [i for i, kind in enumerate(after) if kind == "memcpy_dtoh_async"]
    last = copies[-1] if copies else -1
    if "synchronize" not in after[last + 1:] and (copies or "memcpy_dtoh" not in after):
        raise Wrong("The result is read before the stream is known to be done: after the last asynchronous copy, synchronize the stream.",
                    call="infer(engine, x)", got=f"seen: {trace}", expected="… execute_async_v3, memcpy_dtoh_async, synchronize")


@gpu
def test_gpu_no_leak(submission, loaded):
    """On the GPU: 200 calls leave no device memory behind"""
    engine, oracle = loaded()
    x = np.random.default_rng(1).random((32, 48), dtype="f4")
    for _ in range(20):
        submission.call("infer", engine, x)
    before = submission.probe("free_device_bytes")
    submission.drive("call_many", engine, x, 200)
    lost = before - submission.probe("free_device_bytes")
    if lost > 32 * 2**20:
        raise Wrong("Device memory is lost with every call: free what was allocated, or keep it and use it again.",
                    call="200 times infer(engine, x)", got=f"{lost / 2**20:.0f} MiB less", expected="nothing less")


@gpu
def test_gpu_damaged_engine(submission, tmp_path):
    """On the GPU: a file that is no engine is refused with ValueError"""
    path = tmp_path / "broken.engine"
    path.write_bytes(b"no engine at all" * 64)
    try:
        got = submission.attempt("load_engine", str(path))
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise_unexpected(error)
        if "ValueError" not in error.bases:
            raise Wrong("A damaged engine file has to raise ValueError.", call="load_engine('broken.engine')", got=str(error),
                        expected="ValueError") from None
        return
    raise Wrong("deserialize_cuda_engine returns None for a file that is no engine, and that was not noticed.",
                call="load_engine('broken.engine')", got=got if not isinstance(got, Opaque) else repr(got), expected="ValueError")
