"""Grader of 04_onnxruntime/ex03_static_quantization. Ranges are held to NumPy in float64, accuracy to sessions of ONNX Runtime."""
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from course import ROOT
from course.grading import Raised, Wrong, show

EXERCISE = "04_onnxruntime/ex03_static_quantization"
PROBE = "probe_ex03.py"
LIMITS = {"call_seconds": 60.0, "memory_gib": 4.0}
DIGITS = ROOT / "models/digits_mlp/digits_mlp.onnx"
QUANTIZABLE = ("Conv", "Gemm", "MatMul")
RANGE_TOLERANCE = 1e-4     # of the width of a range: float32 sums in another order
BINS = 1e-3                # of the largest magnitude: two bins of a histogram of 2,048
SCALE_TOLERANCE = 1e-4     # relative, of a weight's scale
LIMIT = 0.06               # share of changed answers: right files come to 0.04 at most, planted faults to 0.15 or more
CPU = ["CPUExecutionProvider"]


# ---- models -----------------------------------------------------------------------------------------------------------

def node(kind, name, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], name=name, **attributes)


def save(path, nodes, inputs, outputs, weights, opset=17):
    graph = helper.make_graph(nodes, "made_by_the_grader", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
                              [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
                              [numpy_helper.from_array(np.asarray(w).astype("f4"), n) for n, w in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return str(path)


def convolutions(path, seed=0, norm=False, shift=0.0, offset=0.0, dead=False, channels=16, size=8, classes=6, source="x", opset=17):
    """stem, mid (half of its channels average, half pick), deep (depthwise, with a skip), head; and the planted difficulties.

    norm: channels 100 times apart until a normalization. shift, offset: outputs of mid and head far from 0. dead: an input channel of mid
    that is always 0 has weights 100 times larger than the others'.
    """
    d, c = np.random.default_rng(seed), channels
    quiet = d.permutation(np.geomspace(0.01, 1, c)) if norm else np.ones(c)

    def kernel(out, into):
        return d.normal(0, (2 / (into * 9)) ** 0.5, (out, into, 3, 3))

    mid = kernel(c, c)
    even = np.arange(0, c, 2)
    mid[even] = np.abs(d.normal(1, 0.3, (len(even), c, 3, 3))) / (9 * c)
    mid[even + 1] = 0
    for row in even + 1:
        mid[row].reshape(-1)[d.choice(9 * c, 2, replace=False)] = d.choice([-1, 1], 2) * d.uniform(0.8, 1.2, 2)
    stem, bias = kernel(c, 3), d.normal(0, 0.1, c)
    if dead:
        bias[3], mid[:, 3] = -30.0, d.choice([-1, 1], (c, 3, 3)) * 100.0
    weights = {"stem.w": stem * quiet[:, None, None, None], "stem.b": bias * quiet, "mid.w": mid, "mid.b": shift + d.normal(0, 0.1, c), "shift": np.full((c, 1, 1), shift),
               "deep.w": kernel(c, 1), "deep.b": d.normal(0, 0.1, c), "head.w": d.normal(0, 1, (classes, c)), "head.b": offset + d.normal(0, 0.1, classes)}
    nodes = [node("Conv", "stem", f"{source} stem.w stem.b", "stem.y", pads=[1] * 4, kernel_shape=[3, 3])]
    if norm:
        weights |= {"norm.s": d.uniform(0.8, 1.2, c) / quiet, "norm.b": d.normal(0, 0.1, c), "norm.m": d.normal(0, 0.1, c) * quiet, "norm.v": d.uniform(0.8, 1.2, c)}
        nodes.append(node("BatchNormalization", "norm", "stem.y norm.s norm.b norm.m norm.v", "norm.y"))
    nodes += [node("Relu", "relu1", "norm.y" if norm else "stem.y", "r1"), node("Conv", "mid", "r1 mid.w mid.b", "mid.y", pads=[1] * 4, kernel_shape=[3, 3])]
    if shift:
        nodes.append(node("Sub", "unshift", "mid.y shift", "mid.z"))
    else:
        del weights["shift"]
    nodes += [node("Relu", "relu2", "mid.z" if shift else "mid.y", "r2"), node("Conv", "deep", "r2 deep.w deep.b", "deep.y", pads=[1] * 4, kernel_shape=[3, 3], group=c),
              node("Add", "join", "deep.y r1", "sum"), node("GlobalAveragePool", "pool", "sum", "pooled"), node("Flatten", "flat", "pooled", "features"),
              node("Gemm", "head", "features head.w head.b", "scores", transB=1)]
    return save(path, nodes, {source: ["n", 3, size, size]}, {"scores": ["n", classes]}, weights, opset)


def products(path, seed=4, opset=17):
    """Gemm with and without transB and MatMul, square so that a wrong axis gives no error; two inputs; a product of two activations."""
    d = np.random.default_rng(seed)
    loud = np.geomspace(0.02, 1, 8)
    weights = {"w1": d.normal(size=(8, 8)) * d.permutation(loud)[:, None], "b1": d.normal(0, 0.2, 8), "w2": d.normal(size=(8, 8)) * d.permutation(loud), "b2": d.normal(0, 0.2, 8),
               "w3": d.normal(size=(8, 8)) * d.permutation(loud)}
    nodes = [node("Gemm", "turned", "left w1 b1", "a", transB=1), node("Relu", "relu", "a", "r"), node("Gemm", "straight", "r w2 b2", "b"),
             node("MatMul", "bare", "b w3", "c"), node("Mul", "gate", "c right", "y")]
    return save(path, nodes, {"left": ["n", 8], "right": ["n", 8]}, {"y": ["n", 8]}, weights, opset)


def images(seed, count, size=8):
    d = np.random.default_rng(seed)
    return (d.normal(size=(count, 3, 1, 1)) + d.normal(0, 0.7, (count, 3, size, size))).astype("f4")


def prepared(path):
    """The grader's own preparation, so that a fault in `prepare` shows in its own test."""
    target = Path(path).with_suffix(".prepared.onnx")
    quant_pre_process(path, target, skip_symbolic_shape=True)
    return str(target)


# ---- NumPy in float64 -------------------------------------------------------------------------------------------------

def attributes(n):
    return {a.name: helper.get_attribute_value(a) for a in n.attribute}


def computed(path, feeds):
    """All activations of the model."""
    model = onnx.load(path)
    stored = {t.name: numpy_helper.to_array(t).astype("f8") for t in model.graph.initializer}
    value = stored | {k: v.astype("f8") for k, v in feeds.items()}
    for n in model.graph.node:
        a, x = attributes(n), [value[name] for name in n.input]
        value[n.output[0]] = {
            "Gemm": lambda: x[0] @ (x[1].T if a.get("transB") else x[1]) + x[2], "MatMul": lambda: x[0] @ x[1], "Add": lambda: x[0] + x[1], "Sub": lambda: x[0] - x[1],
            "Mul": lambda: x[0] * x[1], "Relu": lambda: np.maximum(x[0], 0), "GlobalAveragePool": lambda: x[0].mean((2, 3), keepdims=True), "Flatten": lambda: x[0].reshape(len(x[0]), -1),
            "Softmax": lambda: softmax(x[0]), "Conv": lambda: convolved(x, a.get("group", 1))}[n.op_type]()
    return {k: v for k, v in value.items() if k not in stored}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def convolved(x, groups):
    image = np.pad(x[0], ((0, 0), (0, 0), (1, 1), (1, 1)))
    out, into = x[1].shape[0] // groups, x[1].shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(2, 3))
    parts = [np.einsum("nchwij,ocij->nohw", windows[:, g * into:(g + 1) * into], x[1][g * out:(g + 1) * out]) for g in range(groups)]
    return np.concatenate(parts, axis=1) + x[2][:, None, None]


def wanted_ranges(path, batches, percentile=None):
    """Tensor to (low, high, largest magnitude), 0 included."""
    values = {}
    for feeds in batches:
        for name, array in computed(path, feeds).items():
            values.setdefault(name, []).append(array.reshape(-1))
    found = {}
    for name, parts in values.items():
        everything = np.concatenate(parts)
        magnitudes = np.sort(np.abs(everything))
        bound = magnitudes[-1] if percentile is None else magnitudes[max(int(np.ceil(percentile / 100 * len(magnitudes) - 1e-9)) - 1, 0)]
        found[name] = max(min(everything.min(), 0), -bound), min(max(everything.max(), 0), bound), magnitudes[-1]
    return found


# ---- reading a file ---------------------------------------------------------------------------------------------------

def session(path, level=None):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if level is not None:
        options.graph_optimization_level = level
    return ort.InferenceSession(str(path), options, providers=CPU)


def answers(path, feeds):
    return session(path).run(None, feeds)[0].argmax(-1)


def interface(path):
    graph = onnx.load(path).graph
    stored = {t.name for t in graph.initializer}
    return [[(v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values if v.name not in stored]
            for values in (graph.input, graph.output)]


def written(target, source, call):
    """The file, after the checks that hold for every file."""
    if not Path(target).exists():
        raise Wrong("No file was written.", call, "no such file", Path(target).name)
    model = onnx.load(target)
    try:
        onnx.checker.check_model(model, full_check=True)
        session(target)
    except Exception as error:
        raise Wrong("The file is no model that ONNX Runtime loads.", call, str(error)[:300], "a valid model") from None
    foreign = sorted({f"{n.domain}:{n.op_type}" for n in model.graph.node} - {f":{n.op_type}" for n in model.graph.node})
    if foreign:
        raise Wrong("The file holds operators that are not ONNX's own: a fusion above the basic level, or another format than QDQ.", call, foreign, "operators of domain ''")
    if interface(target) != interface(source):
        raise Wrong("Inputs and outputs changed.", call, str(interface(target)), str(interface(source)))
    return model


class Pairs:
    """The quantized file, read node by node."""

    def __init__(self, model, call):
        self.model, self.call = model, call
        self.stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.maker = {o: n for n in model.graph.node for o in n.output}
        for n in model.graph.node:
            if n.op_type.startswith("QLinear") or n.op_type in ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"):
                raise Wrong("The file is not in QDQ format.", call, f"a node {n.op_type}", "QuantizeLinear and DequantizeLinear around float operators")
            if n.op_type == "Constant":
                self.stored[n.output[0]] = numpy_helper.to_array(n.attribute[0].t)

    def dequantized(self, tensor, what):
        n = self.maker.get(tensor)
        if n is None or n.op_type != "DequantizeLinear":
            raise Wrong(f"{what} does not come from a DequantizeLinear.", self.call, tensor if n is None else f"from {n.op_type}", "DequantizeLinear")
        return n

    def parameters(self, n):
        scale = self.stored.get(n.input[1])
        zero = self.stored.get(n.input[2]) if len(n.input) > 2 and n.input[2] else np.uint8(0)
        if scale is None or zero is None:
            raise Wrong("A scale is no constant: it would be computed in every call.", self.call, f"{n.op_type} {list(n.input)}", "constants")
        return scale.astype("f8"), zero

    def readers(self, tensor):
        return [n for n in self.model.graph.node if tensor in n.input]


def check_file(model, source, call, ranges, percentile=None, exclude=(), guesses=()):
    """Holds every quantizable node of the source to the contract."""
    pairs, graph = Pairs(model, call), onnx.load(source).graph
    floats = {t.name: numpy_helper.to_array(t).astype("f8") for t in graph.initializer}
    now = {n.name: n for n in model.graph.node}
    for old in graph.node:
        if old.op_type not in QUANTIZABLE or old.input[1] not in floats:
            continue
        n = now.get(old.name)
        if n is None or n.op_type != old.op_type:
            raise Wrong(f"The node {old.name!r} of the prepared model is gone.", call, sorted(now)[:12], f"{old.op_type} {old.name}")
        if old.name in exclude:
            weight = pairs.stored.get(n.input[1])
            if weight is None or weight.dtype != np.float32:
                raise Wrong(f"The weight of {old.name!r} is quantized, and the node is in exclude.", call, f"{n.input[1]}, {'no constant' if weight is None else weight.dtype}", "float32")
            continue
        check_weight(pairs, n, old, floats[old.input[1]])
        check_activation(pairs, n, old, ranges, percentile, guesses)
        if len(n.input) > 2 and n.input[2] and n.input[2] in pairs.maker:
            source_of_bias = pairs.maker[n.input[2]].input[0]
            if source_of_bias in pairs.stored and pairs.stored[source_of_bias].dtype in (np.int8, np.uint8):
                raise Wrong(f"The bias of {old.name!r} is stored in 8 bits.", call, str(pairs.stored[source_of_bias].dtype), "int32 or float32")
        after = pairs.readers(n.output[0])
        while len(after) == 1 and after[0].op_type in ("Relu", "Clip"):
            after = pairs.readers(after[0].output[0])
        if not after or any(m.op_type != "QuantizeLinear" for m in after):
            raise Wrong(f"The output of {old.name!r} is not quantized: ONNX Runtime then computes a Conv in float.", call, [m.op_type for m in after], "QuantizeLinear, after at most a Relu or Clip")


def check_weight(pairs, n, old, weight):
    call, name = pairs.call, old.name
    dequantize = pairs.dequantized(n.input[1], f"The weight of {name!r}")
    stored = pairs.stored.get(dequantize.input[0])
    if stored is None:
        raise Wrong(f"The weight of {name!r} stands as float32 in front of a QuantizeLinear: the file does not shrink.", call, f"{dequantize.input[0]} is computed", "int8, stored")
    scale, zero = pairs.parameters(dequantize)
    if stored.dtype != np.int8:
        raise Wrong(f"The weight of {name!r} is not int8.", call, str(stored.dtype), "int8")
    if np.any(zero):
        raise Wrong(f"The weight of {name!r} has zero points: it is symmetric.", call, show(zero), "0")
    outputs = 0 if old.op_type == "Conv" or attributes(old).get("transB") else 1
    if scale.size == 1:
        raise Wrong(f"The weight of {name!r} has one scale for all channels: the loudest one sets the step for all.", call, show(scale), f"{weight.shape[outputs]} scales, axis {outputs}")
    axis = attributes(dequantize).get("axis", 1) % weight.ndim
    if axis != outputs or scale.shape != (weight.shape[outputs],):
        raise Wrong(f"The scales of {name!r} do not lie along its output channels.", call, f"{scale.shape[0]} scales, axis {axis}", f"{weight.shape[outputs]} scales, axis {outputs}")
    if np.abs(stored.astype(int)).max() > 64:
        raise Wrong(f"The weight of {name!r} uses more than [-64, 64]: sums can saturate on x86-64 without VNNI.", call, f"values from {stored.min()} to {stored.max()}", "reduce_range")
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    right = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)) / 64
    alive = right > 0
    if not np.allclose(scale[alive], right[alive], rtol=SCALE_TOLERANCE, atol=0):
        raise Wrong(f"The scales of {name!r} are not the channels' largest magnitude / 64.", call, show(scale), show(right))
    error = np.abs(stored * scale.reshape(shape) - weight) / np.where(alive, right, 1).reshape(shape)
    if error.max() > 0.51:
        raise Wrong(f"The stored weight of {name!r} is not the rounded one.", call, f"{error.max():.2f} steps off", "half a step at most")


def check_activation(pairs, n, old, ranges, percentile, guesses):
    call = pairs.call
    dequantize = pairs.dequantized(n.input[0], f"Input 0 of {old.name!r}")
    quantize = pairs.maker.get(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        raise Wrong(f"Input 0 of {old.name!r} is not Q, then DQ.", call, "-" if quantize is None else quantize.op_type, "QuantizeLinear")
    scale, zero = pairs.parameters(quantize)
    if zero.dtype != np.uint8:
        raise Wrong(f"Input 0 of {old.name!r} is not uint8: set the type of activations.", call, str(zero.dtype), "uint8")
    if scale.size != 1:
        raise Wrong(f"Input 0 of {old.name!r} has more than one scale.", call, show(scale), "one")
    scale, zero = float(scale.reshape(())), int(np.reshape(zero, ()))
    low, high, largest = ranges[old.input[0]]
    slack = RANGE_TOLERANCE * (high - low) + (0 if percentile is None else BINS * largest)
    got = -zero * scale, (255 - zero) * scale
    # the zero point is rounded to a whole number: either end may move by half a step
    if abs(scale * 255 - (high - low)) > 2 * slack + 1e-6 or abs(got[0] - low) > slack + 0.51 * scale or abs(got[1] - high) > slack + 0.51 * scale:
        mistake = "The range of an activation is wrong."
        for text, other in guesses:
            a, b, _ = other[old.input[0]]
            if abs(got[0] - a) <= slack + 0.51 * scale and abs(got[1] - b) <= slack + 0.51 * scale:
                mistake = text
                break
        raise Wrong(mistake, call, f"{old.input[0]}: [{got[0]:.5g}, {got[1]:.5g}]", f"[{low:.5g}, {high:.5g}]")


def guesses_for(path, batches, percentile=None):
    """What common mistakes come to."""
    alone = [wanted_ranges(path, [b], percentile) for b in batches]
    both = wanted_ranges(path, batches)
    found = [("Only the first batch counts: a range is over all batches.", alone[0]), ("Only the last batch counts: a range is over all batches.", alone[-1]),
             ("The range is the mean of the batches' ranges.", {k: tuple(np.mean([a[k][i] for a in alone]) for i in range(3)) for k in both}),
             ("The range is symmetric around 0: half of the codes of a ReLU output stand for nothing.", {k: (-v[2], v[2], v[2]) for k, v in both.items()})]
    if percentile is not None:
        found.append(("The percentile has no effect: the range is MinMax's, or that of the default 99.999. Are the method and the name of the option right?", both))
    return found


# ---- prepare ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("opset", [13, 17, 21])
def test_prepare(submission, tmp_path, opset):
    """prepare folds normalizations, infers shapes, keeps to ONNX's operators, and changes nothing else"""
    path, target = convolutions(tmp_path / "m.onnx", opset, norm=True, source="frames", opset=opset), tmp_path / "p.onnx"
    before = Path(path).read_bytes()
    returned, call = submission.call("prepare", path, str(target)), "prepare('m.onnx', 'p.onnx')"
    if returned is not None:
        raise Wrong("prepare returns nothing.", call, show(returned), "None")
    model = written(target, path, call)
    if Path(path).read_bytes() != before:
        raise Wrong("The source was changed.", call)
    kinds = [n.op_type for n in model.graph.node]
    if "BatchNormalization" in kinds:
        raise Wrong("A BatchNormalization is still there: its convolution's output would be rounded before it is scaled.", call, kinds, "folded into the Conv")
    known = {v.name for v in model.graph.value_info if v.type.tensor_type.HasField("shape")} | {v.name for v in model.graph.output}
    missing = [name for n in model.graph.node for name in n.output if name not in known]
    if missing:
        raise Wrong("The file does not say the shapes of its tensors.", call, f"unknown: {missing[:5]}", "value_info for every tensor between nodes")
    feeds = {"frames": images(opset, 9)}
    got, want = session(target).run(None, feeds)[0], session(path, ort.GraphOptimizationLevel.ORT_DISABLE_ALL).run(None, feeds)[0]
    if not np.allclose(got, want, rtol=1e-4, atol=1e-4):
        raise Wrong("The prepared model computes something else.", call, show(got), show(want))


def test_prepare_refuses(submission, tmp_path):
    """prepare raises ValueError, and writes no file, if ONNX Runtime cannot load the model"""
    target = tmp_path / "p.onnx"
    odd = helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd", domain="nobody.knows")
    graph = helper.make_graph([odd], "g", [helper.make_tensor_value_info("x", 1, ["n", 4])], [helper.make_tensor_value_info("y", 1, ["n", 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("nobody.knows", 1)], ir_version=8), tmp_path / "odd.onnx")
    (tmp_path / "text.onnx").write_bytes(b"this is no model" * 9)
    for name, why in (("odd.onnx", "a model with an operator that ONNX Runtime does not know"), ("text.onnx", "a file that is no model")):
        refused(submission, "prepare", (str(tmp_path / name), str(target)), why)
        no_file(target, f"prepare({name!r}, 'p.onnx')")


def refused(submission, name, arguments, why, words=(), kind="ValueError"):
    call = f"{name}(…)  ({why})"
    try:
        got = submission.attempt(name, *arguments)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong(f"{name} is not written yet.", call, error.text) from None
        if kind not in error.bases:
            raise Wrong(f"Given {why}, {name} has to raise {kind}.", call, str(error), kind) from None
        missing = [w for w in words if w not in error.text]
        if missing:
            raise Wrong(f"The message for {why} does not name {missing[0]!r}.", call, str(error), f"a message with {missing[0]!r}") from None
        return
    raise Wrong(f"Given {why}, {name} has to raise {kind}.", call, f"returned {show(got)}", kind)


def no_file(target, call):
    if target.exists():
        raise Wrong("After an error there is a file.", call, f"{target.stat().st_size} bytes", "no file")


# ---- quantize ---------------------------------------------------------------------------------------------------------

def quantized(submission, source, target, batches, *more, ask="quantize_from_generator"):
    before, around = Path(source).read_bytes(), set(Path(source).parent.iterdir()) | {Path(target)}
    words = "".join(f", {show(m)}" for m in more)
    call = f"quantize('{Path(source).name}', '{Path(target).name}', {len(batches)} batches{words})"
    returned = submission.drive(ask, source, str(target), batches, *more) if ask.endswith("generator") else submission.call(ask, source, str(target), batches, *more)
    if returned is not None:
        raise Wrong("quantize returns nothing.", call, show(returned), "None")
    if Path(source).read_bytes() != before:
        raise Wrong("The source was changed.", call)
    if set(Path(source).parent.iterdir()) - around:
        raise Wrong("Files were left behind.", call, sorted(p.name for p in set(Path(source).parent.iterdir()) - around), "the quantized model alone")
    return written(target, source, call), call


def uneven(seed, sizes=(20, 7, 13), louder=1):
    """Batches of different sizes, one of them louder than the others."""
    return [{"x": images(seed + i, n) * (3.0 if i == louder else 1.0)} for i, n in enumerate(sizes)]


@pytest.mark.parametrize("louder", [0, 1, 2])
def test_quantize_minmax(submission, tmp_path, louder):
    """quantize writes the QDQ model of the contract, calibrated on all batches, whichever is the loudest"""
    source, target = prepared(convolutions(tmp_path / "m.onnx", 1)), tmp_path / "q.onnx"
    batches = uneven(10 + louder, louder=louder)
    batches = [{"x": b["x"].astype("f4")} for b in batches]
    model, call = quantized(submission, source, target, batches)
    check_file(model, source, call, wanted_ranges(source, batches), guesses=guesses_for(source, batches))


@pytest.mark.parametrize("percentile", [99.9, 99.0, 90.0, 100.0])
def test_quantize_percentile(submission, tmp_path, percentile):
    """quantize cuts magnitudes at the percentile over all batches, which may differ in size"""
    source, target = prepared(convolutions(tmp_path / "m.onnx", 2)), tmp_path / "q.onnx"
    batches = [{"x": b["x"].astype("f4")} for b in uneven(20, louder=0)]
    model, call = quantized(submission, source, target, batches, percentile)
    check_file(model, source, call, wanted_ranges(source, batches, percentile), percentile, guesses=guesses_for(source, batches, percentile))


def test_quantize_products(submission, tmp_path):
    """quantize serves Gemm with and without transB, MatMul and two inputs: the axis is that of the outputs"""
    for opset in (13, 18):
        source, target = prepared(products(tmp_path / "m.onnx", opset, opset)), tmp_path / "q.onnx"
        d = np.random.default_rng(5)
        batches = [{"left": d.normal(size=(n, 8)).astype("f4"), "right": d.normal(size=(n, 8)).astype("f4")} for n in (9, 30)]
        model, call = quantized(submission, source, target, batches, ask="quantize")
        check_file(model, source, call, wanted_ranges(source, batches), guesses=guesses_for(source, batches))


def test_quantize_exclude(submission, tmp_path):
    """quantize leaves the nodes in exclude in float, and quantizes the others"""
    source, target = prepared(convolutions(tmp_path / "m.onnx", 3)), tmp_path / "q.onnx"
    batches = [{"x": images(30, 20)}]
    for exclude in (["head"], ("stem", "mid"), ["deep"]):
        model, call = quantized(submission, source, target, batches, None, exclude)
        check_file(model, source, call, wanted_ranges(source, batches), exclude=exclude, guesses=guesses_for(source, batches))
    target.unlink()
    for name in ("haed", "join"):
        refused(submission, "quantize", (source, str(target), batches, None, ["head", name]), f"{name!r} in exclude, which is no quantizable node", (name,))
        no_file(target, f"quantize(…, exclude=['head', {name!r}])")


def test_quantize_accuracy(submission, tmp_path):
    """The quantized network answers as the float one on rows that were not calibrated on"""
    for seed, how in ((0, {}), (3, {}), (0, {"norm": True}), (2, {"norm": True})):
        source, target = prepared(convolutions(tmp_path / "m.onnx", seed, **how)), tmp_path / "q.onnx"
        submission.call("quantize", source, str(target), [{"x": images(100 + seed, 60)}])
        feeds = {"x": images(200 + seed, 300)}
        share = (answers(target, feeds) != answers(source, feeds)).mean()
        if share > LIMIT:
            raise Wrong("Too many answers changed on held-out rows.", "quantize(…), 60 rows", f"{share:.1%} of 300 changed", f"at most {LIMIT:.0%}")


def test_quantize_outlier(submission, tmp_path):
    """With a percentile, one broken pixel in the calibration set does not spoil the model"""
    for seed in (0, 3):
        source, target = prepared(convolutions(tmp_path / "m.onnx", seed)), tmp_path / "q.onnx"
        rows = images(100 + seed, 60)
        rows[7, 1, 2, 3] = 300
        submission.call("quantize", source, str(target), [{"x": rows[:25]}, {"x": rows[25:]}], 99.5)
        feeds = {"x": images(200 + seed, 300)}
        share = (answers(target, feeds) != answers(source, feeds)).mean()
        if share > 0.1:
            raise Wrong("A broken pixel in the calibration set spoils the model: the percentile has to cut it.", "quantize(…, percentile=99.5)", f"{share:.1%} of 300 answers changed", "at most 10%")


def test_quantize_refuses(submission, tmp_path):
    """quantize refuses no data, NaN and infinity, and percentiles that are none; no file is written"""
    source, target = prepared(convolutions(tmp_path / "m.onnx", 4)), tmp_path / "q.onnx"
    good = images(40, 6)
    cases = [(([],), "no batches", ())]
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[2, 1, 0, 0] = value
        cases += [(([{"x": good}, {"x": bad}],), f"a batch with {value}", ("x",))]
    d = np.random.default_rng(6)
    two, broken = ([{"left": d.normal(size=(5, 8)).astype("f4"), "right": d.normal(size=(5, 8)).astype("f4")} for _ in range(2)] for _ in range(2))
    broken[1]["right"][3, 2] = np.nan
    other = prepared(products(tmp_path / "two.onnx"))
    refused(submission, "quantize", (other, str(target), [*two, *broken]), "a batch with nan in one of two inputs", ("right",))
    no_file(target, "quantize(…)  (a batch with nan in one of two inputs)")
    cases += [(([{"x": good}], percentile), f"percentile {percentile:g}", ()) for percentile in (0.0, -5.0, 100.5)]
    for arguments, why, words in cases:
        refused(submission, "quantize", (source, str(target), *arguments), why, words)
        no_file(target, f"quantize(…)  ({why})")


# ---- quantize_within --------------------------------------------------------------------------------------------------

def within(submission, source, target, batches, validation, *more):
    call = f"quantize_within('{Path(source).name}', '{Path(target).name}', batches, validation{''.join(f', {show(m)}' for m in more)})"
    got = submission.drive("within_from_generator", source, str(target), batches, validation, *more)
    if not isinstance(got, (list, tuple)) or not all(isinstance(name, str) for name in got):
        raise Wrong("quantize_within returns a list of names.", call, show(got), "a list of str")
    return written(target, source, call), sorted(got), call


CASES = {"nothing": ({}, []), "the head's output far from 0": ({"offset": 1000.0}, ["head"]), "an inner output far from 0": ({"shift": 1500.0}, ["mid"]),
         "both": ({"offset": 1000.0, "shift": 1500.0}, ["head", "mid"])}


@pytest.mark.parametrize("planted, seed", [("nothing", 3), ("the head's output far from 0", 0), ("an inner output far from 0", 3), ("both", 0)])
def test_within(submission, tmp_path, planted, seed):
    """quantize_within leaves as few nodes in float as the limit allows, calibrates on batches alone, and keeps the limit"""
    how, right = CASES[planted]
    source, target = prepared(convolutions(tmp_path / "m.onnx", seed, **how)), tmp_path / "q.onnx"
    batches, validation = [{"x": images(100 + seed, 40)}, {"x": images(300 + seed, 20)}], {"x": images(200 + seed, 200) * np.float32(1.5)}
    model, got, call = within(submission, source, target, batches, validation, LIMIT)
    share = (answers(target, validation) != answers(source, validation)).mean()
    if share > LIMIT:
        raise Wrong("The file does not keep the limit.", call, f"float {got}: error {share:.3f}", f"at most {LIMIT}")
    if len(got) > len(right):
        raise Wrong("More nodes are in float than needed.", call, got, f"{len(right)} are enough")
    if got != right:
        raise Wrong("The list that is returned is not the one that keeps the limit.", call, got, right)
    everything = wanted_ranges(source, [*batches, validation])
    guess = [("The calibration saw the validation rows: then they prove nothing.", everything), ("The calibration saw the validation rows alone.", wanted_ranges(source, [validation]))]
    check_file(model, source, call, wanted_ranges(source, batches), exclude=got, guesses=guess + guesses_for(source, batches))


def test_within_takes_the_limit_itself(submission, tmp_path):
    """quantize_within takes an error that is the limit: at most is not below"""
    source, target = prepared(convolutions(tmp_path / "m.onnx", 3)), tmp_path / "q.onnx"
    batches, validation = [{"x": images(103, 40)}], {"x": images(203, 200)}
    submission.call("quantize", source, str(target), batches)
    share = float((answers(target, validation) != answers(source, validation)).mean())
    target.unlink()
    call = f"quantize_within('{Path(source).name}', 'q.onnx', batches, validation, {share})"
    try:
        got = submission.attempt("quantize_within", source, str(target), batches, validation, share)
    except Raised as error:
        raise Wrong("Without a node in float the error is the limit itself, and that is kept.", call, str(error), "[]") from None
    if list(got):
        raise Wrong("Without a node in float the error is the limit itself, and that is kept.", call, show(got), "[]")


def test_within_judges_the_session(submission, tmp_path):
    """quantize_within judges the session that will run, whose optimizer may quantize an excluded layer again"""
    seed = 0
    source, target = prepared(convolutions(tmp_path / "m.onnx", seed, dead=True)), tmp_path / "q.onnx"
    validation = {"x": images(200 + seed, 200)}
    model, got, call = within(submission, source, target, [{"x": images(100 + seed, 60)}], validation, LIMIT)
    share = (answers(target, validation) != answers(source, validation)).mean()
    if share > LIMIT:
        raise Wrong("In a session with default options the file does not keep the limit. Did you judge it with optimizations off, or by another engine?", call, f"float {got}: error {share:.3f}", f"at most {LIMIT}")
    if len(got) > 2:
        raise Wrong("More nodes are in float than needed.", call, got, "2 are enough")
    check_file(model, source, call, wanted_ranges(source, [{"x": images(100 + seed, 60)}]), exclude=got)


def test_within_percentile_and_most(submission, tmp_path):
    """quantize_within hands the percentile on, and raises RuntimeError, with no file, if `most` nodes are not enough"""
    source, target = prepared(convolutions(tmp_path / "m.onnx", 0, offset=1000.0, shift=1500.0)), tmp_path / "q.onnx"
    batches, validation = [{"x": images(100, 60)}], {"x": images(200, 200)}
    for most in (0, 1):
        refused(submission, "quantize_within", (source, str(target), batches, validation, LIMIT, None, most), f"a model that needs two nodes in float, and most={most}", kind="RuntimeError")
        no_file(target, f"quantize_within(…, most={most})")
    source = prepared(convolutions(tmp_path / "m2.onnx", 0))
    model, got, call = within(submission, source, target, batches, validation, 0.1, 99.9, 0)
    check_file(model, source, call, wanted_ranges(source, batches, 99.9), 99.9, exclude=got, guesses=guesses_for(source, batches, 99.9))


def test_digits(submission, tmp_path):
    """The digits model, prepared and quantized on 60 digits, is as right as before on others, in a third of the bytes"""
    with np.load(DIGITS.parent / "heldout.npz") as data:
        pixels, labels = (data["images"].reshape(-1, 784) / 255).astype("f4"), data["labels"]
    source, target = tmp_path / "p.onnx", tmp_path / "q.onnx"
    submission.call("prepare", str(DIGITS), str(source))
    got = submission.call("quantize_within", str(source), str(target), [{"pixels": pixels[:25]}, {"pixels": pixels[25:60]}], {"pixels": pixels[60:120]}, 0.05)
    call = "quantize_within('p.onnx', 'q.onnx', 60 digits, 60 others, 0.05)"
    model = written(target, source, call)
    if list(got):
        raise Wrong("The digits model needs no node in float.", call, show(got), "[]")
    check_file(model, str(source), call, wanted_ranges(str(source), [{"pixels": pixels[:60]}]))
    right, before = ((answers(p, {"pixels": pixels[120:]}) == labels[120:]).sum() for p in (target, DIGITS))
    if right < before - 3:
        raise Wrong("The quantized digits model lost more than 1 % of the held-out digits.", call, f"{right} of 240 right", f"{before - 3} or more")
    size, limit = target.stat().st_size, DIGITS.stat().st_size // 3
    if size > limit:
        raise Wrong("The file is too large: weights are to be stored in 8 bits.", call, f"{size} bytes", f"at most {limit}")
