"""Grader of 03_tensorrt/ex04_explicit_int8. Calibration, Q/DQ and the build need no GPU; what the engine computes does."""
import hashlib
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.grading import Raised, Wrong, show

EXERCISE = "03_tensorrt/ex04_explicit_int8"
PROBE = "probe_ex04.py"
LIMITS = {"call_seconds": 60.0, "memory_gib": 8.0}
DIGITS = ROOT / "models/digits_mlp/digits_mlp.onnx"
RANGE_TOLERANCE = 1e-4        # relative: float32 sums in another order
PERCENTILE_TOLERANCE = 1e-2   # relative: the width of a histogram's bin
SCALE_TOLERANCE = 1e-5        # relative
SPREAD_TOLERANCE = 0.02       # root mean square, of the outputs' spread: a value at a rounding border may fall on the other side
FLOAT_TOLERANCE = 0.25        # the same, from the float model: right answers come to 0.01 to 0.17
QUANTIZED = ("Conv", "Gemm", "MatMul")
gpu = pytest.mark.gpu("tensorrt", "pycuda")


# ---- models, and NumPy in float64 that computes them -------------------------------------------------------------------

def node(kind, name, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, [outputs] if isinstance(outputs, str) else outputs, name=name, **attributes)


def save(path, nodes, inputs, outputs, weights, opset=17, kind=TensorProto.FLOAT):
    graph = helper.make_graph(nodes, "made_by_the_grader", [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
                              [helper.make_tensor_value_info(n, *((kind, s) if isinstance(s, list) else s)) for n, s in outputs.items()],
                              [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return str(path)


def loud_and_quiet(draw, channels, ratio=200.0):
    """Factors for output channels, from 1 / ratio to 1, shuffled: one scale for all would drown the quiet ones."""
    return draw.permutation(np.geomspace(1 / ratio, 1, channels))


def perceptron(path, seed=0, features=24, hidden=16, classes=6, name="x", prefix=""):
    """Gemm with transB, Gemm without, MatMul: square in the middle, so that a wrong axis gives no error of shapes."""
    draw, p = np.random.default_rng(seed), prefix
    w1 = draw.normal(0, features**-0.5, (hidden, features)) * loud_and_quiet(draw, hidden)[:, None]
    w2 = draw.normal(0, 1, (hidden, hidden)) * loud_and_quiet(draw, hidden)[None, :] * 2
    w3 = draw.normal(0, 1, (hidden, classes)) * loud_and_quiet(draw, classes, 20)[None, :]
    weights = {f"{p}w1": w1, f"{p}b1": draw.normal(0, 0.2, hidden), f"{p}w2": w2, f"{p}b2": draw.normal(0, 0.02, hidden), f"{p}w3": w3, f"{p}b3": draw.normal(0, 0.1, classes)}
    nodes = [node("Gemm", f"{p}first", [name, f"{p}w1", f"{p}b1"], f"{p}h1", transB=1), node("Relu", f"{p}relu1", [f"{p}h1"], f"{p}r1"),
             node("Gemm", f"{p}second", [f"{p}r1", f"{p}w2", f"{p}b2"], f"{p}h2", **({"transB": 0} if p else {})), node("Relu", f"{p}relu2", [f"{p}h2"], f"{p}r2"),
             node("MatMul", f"{p}third", [f"{p}r2", f"{p}w3"], f"{p}h3"), node("Add", f"{p}bias", [f"{p}h3", f"{p}b3"], f"{p}scores")]
    return save(path, nodes, {name: ["n", features]}, {f"{p}scores": ["n", classes]}, {k: v.astype("f4") for k, v in weights.items()})


def convolutions(path, seed=1, channels=16, size=9, groups=4):
    """A stem, a residual block with a grouped convolution, a 1x1 convolution, a head; two convolutions read the stem."""
    draw, c = np.random.default_rng(seed), channels
    def kernel(out, into, k, quiet=50.0):
        return draw.normal(0, (2 / (into * k * k)) ** 0.5, (out, into, k, k)) * 2 * loud_and_quiet(draw, out, quiet)[:, None, None, None]
    f = loud_and_quiet(draw, c)                   # "norm" makes the quiet channels of "left" as loud as the others: they count
    weights = {"stem.w": kernel(c, 3, 3), "stem.b": draw.normal(0, 0.1, c), "left.w": kernel(c, c // groups, 3, 1.0) * f[:, None, None, None], "left.b": draw.normal(0, 0.1, c) * f,
               "right.w": kernel(c, c, 1), "norm.s": draw.uniform(0.5, 1.5, c) / f, "norm.b": draw.normal(0, 0.1, c), "norm.m": draw.normal(0, 0.1, c) * f,
               "norm.v": draw.uniform(0.5, 1.5, c), "head.w": draw.normal(0, 0.3, (7, c)), "head.b": draw.normal(0, 0.1, 7)}
    nodes = [node("Conv", "stem", ["frames", "stem.w", "stem.b"], "stem.y", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Relu", "stem.relu", ["stem.y"], "stem.r"),
             node("Conv", "left", ["stem.r", "left.w", "left.b"], "left.y", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=groups),
             node("BatchNormalization", "norm", ["left.y", "norm.s", "norm.b", "norm.m", "norm.v"], "norm.y"),
             node("Conv", "right", ["stem.r", "right.w"], "right.y", kernel_shape=[1, 1]), node("Add", "both", ["norm.y", "right.y"], "both.y"),
             node("Add", "skip", ["both.y", "stem.r"], "sum"), node("Relu", "relu", ["sum"], "relu.y"),
             node("GlobalAveragePool", "pool", ["relu.y"], "pooled"), node("Flatten", "flatten", ["pooled"], "flat"),
             node("Gemm", "head", ["flat", "head.w", "head.b"], "scores", transB=1)]
    return save(path, nodes, {"frames": ["n", 3, size, size]}, {"scores": ["n", 7]}, {k: v.astype("f4") for k, v in weights.items()})


def mixed(path, seed=2):
    """What may be quantized beside what may not: products of two activations, constants on the left, three dimensions, other types."""
    draw = np.random.default_rng(seed)
    weights = {"w": draw.normal(size=(8, 8)), "cube": draw.normal(size=(1, 8, 8)), "left": draw.normal(size=(8, 8)), "k": draw.normal(size=(8, 1, 3)), "one": np.ones(8)}
    weights = {k: v.astype("f4") for k, v in weights.items()}
    nodes = [node("MatMul", "query", ["x", "w"], "q"), node("Transpose", "turn", ["q"], "t", perm=[0, 2, 1]),
             node("MatMul", "product", ["q", "t"], "s"), node("MatMul", "cubic", ["s", "cube"], "u"), node("MatMul", "reversed", ["left", "u"], "v"),
             node("Cast", "narrow", ["v"], "half", to=TensorProto.FLOAT16), node("MatMul", "halves", ["half", "half.w"], "hh"),
             node("Cast", "widen", ["hh"], "wide", to=TensorProto.FLOAT),
             node("ConvTranspose", "up", ["wide", "k"], "z", group=8, pads=[1, 1]), node("Shape", "shape", ["z"], "size"),
             node("ArgMax", "answer", ["z"], "best", axis=-1, keepdims=0), node("Add", "shift", ["z", "one"], "y"), node("Split", "halve", ["z"], ["z.left", "z.right"], axis=-1)]
    return save(path, nodes, {"x": ["n", 8, 8]}, {"y": ["n", 8, 8], "best": (TensorProto.INT64, ["n", 8]), "size": (TensorProto.INT64, [3])},
                weights | {"half.w": draw.normal(size=(8, 8)).astype("f2")})


def attributes(n):
    return {a.name: helper.get_attribute_value(a) for a in n.attribute}


def step(array, scale):
    """What Q and DQ do with a zero point of 0."""
    return np.clip(np.rint(array / scale), -128, 127) * scale


def computed(path, feeds, pairs=None):
    """All tensors of the model, in float64. pairs: (node name, input number) to the scales that it goes through."""
    model = onnx.load(path)
    value = {t.name: numpy_helper.to_array(t).astype("f8") for t in model.graph.initializer} | {k: v.astype("f8") for k, v in feeds.items()}
    weights = {t.name for t in model.graph.initializer}
    for n in model.graph.node:
        a = attributes(n)
        x = [step(value[t], pairs[n.name, i]) if pairs and (n.name, i) in pairs else value[t] for i, t in enumerate(n.input)]
        value[n.output[0]] = {
            "Gemm": lambda: x[0] @ (x[1].T if a.get("transB") else x[1]) + x[2], "MatMul": lambda: x[0] @ x[1], "Add": lambda: x[0] + x[1],
            "Relu": lambda: np.maximum(x[0], 0), "GlobalAveragePool": lambda: x[0].mean((2, 3), keepdims=True), "Flatten": lambda: x[0].reshape(len(x[0]), -1),
            "BatchNormalization": lambda: (x[0] - column(x[3])) / np.sqrt(column(x[4]) + 1e-5) * column(x[1]) + column(x[2]),
            "Softmax": lambda: np.exp(x[0] - x[0].max(-1, keepdims=True)) / np.exp(x[0] - x[0].max(-1, keepdims=True)).sum(-1, keepdims=True),
            "Conv": lambda: convolved(x, a.get("pads", [0] * 4)[0], a.get("group", 1))}[n.op_type]()
    return {k: v for k, v in value.items() if k not in weights}


def column(x):
    return x[:, None, None]


def convolved(x, pad, groups):
    image, kernel = np.pad(x[0], ((0, 0), (0, 0), (pad, pad), (pad, pad))), x[1]
    out, into, size = kernel.shape[0] // groups, kernel.shape[1], kernel.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(2, 3))
    parts = [np.einsum("nchwij,ocij->nohw", windows[:, g * into:(g + 1) * into], kernel[g * out:(g + 1) * out]) for g in range(groups)]
    return np.concatenate(parts, axis=1) + (column(x[2]) if len(x) > 2 else 0)


def feeds_of(path, seed, rows, loud=1.0):
    draw = np.random.default_rng(seed)
    return {v.name: (loud * draw.normal(size=[rows, *(d.dim_value for d in v.type.tensor_type.shape.dim[1:])])).astype("f4") for v in onnx.load(path).graph.input}


def run_graph(path, feeds):
    """The file's outputs by ONNX Runtime, or by onnx.reference where there is none (opset 21 there, whose operators are the same)."""
    try:
        import onnxruntime as ort
        options = ort.SessionOptions()
        options.log_severity_level = 4
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    except ImportError:
        from onnx.reference import ReferenceEvaluator
        model = onnx.load(path)
        model.opset_import[0].version = max(21, model.opset_import[0].version)
        return ReferenceEvaluator(model).run(None, feeds)


# ---- calibration ------------------------------------------------------------------------------------------------------

def wanted_ranges(path, batches, percentile=100.0):
    values = {}
    for feeds in batches:
        for name, array in computed(path, feeds).items():
            values.setdefault(name, []).append(np.abs(array).reshape(-1))
    found = {}
    for name, parts in values.items():
        ordered = np.sort(np.concatenate(parts))
        found[name] = float(ordered[max(math.ceil(percentile / 100 * len(ordered)) - 1, 0)]), float(ordered[-1])
    return found


def check_ranges(got, wanted, call, tolerance, guesses=()):
    if not isinstance(got, dict):
        raise Wrong("calibrate returns a dict, tensor name to range.", call, got, "a dict")
    if set(got) != set(wanted):
        missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
        if missing:
            raise Wrong("A float32 activation has no range: every graph input and every node's output has one.", call, f"no {missing}", sorted(wanted))
        raise Wrong("calibrate returns ranges of tensors that are no float32 activations (weights, or other types).", call, extra, sorted(wanted))
    for name, (right, largest) in wanted.items():
        value = got[name]
        if not isinstance(value, (int, float, np.floating)) or isinstance(value, bool):
            raise Wrong("A range is a float.", call, f"{name}: {value!r}", f"{right:.6g}")
        if not abs(value - right) <= tolerance * abs(right) + 1e-3 * largest * (tolerance > RANGE_TOLERANCE) + 1e-6:
            mistake = next((text for text, other in guesses if abs(value - other[name]) <= 1e-3 * abs(other[name]) + 1e-6), "The range of a tensor is wrong.")
            raise Wrong(mistake, call, f"{name}: {value:.6g}", f"{right:.6g} within {tolerance:g} of it")


def guesses_for(path, batches, percentile=100.0):
    """What common mistakes come to, by tensor."""
    alone = [{k: v[0] for k, v in wanted_ranges(path, [b], percentile).items()} for b in batches]
    everything = [computed(path, b) for b in batches]
    signed = {k: float(np.max([v[k].max() for v in everything])) for k in alone[0]}
    return (("The range is the mean of the batches' ranges: take all values of all batches together.", {k: float(np.mean([a[k] for a in alone])) for k in alone[0]}),
            ("The range is the largest of the batches' ranges: a percentile is of all values of all batches together.", {k: max(a[k] for a in alone) for k in alone[0]}),
            ("Only the last batch counts: a range is over all batches.", alone[-1]), ("Only the first batch counts: a range is over all batches.", alone[0]),
            ("The range is of the signed values: negative ones count by their magnitude.", signed))


@pytest.mark.parametrize("make", [perceptron, convolutions])
def test_calibrate_largest(submission, tmp_path, make):
    """calibrate finds the largest magnitude of every float32 tensor over all batches"""
    path = make(tmp_path / "m.onnx")
    for louder in (0, 1, 2):                              # which batch is the loudest, and not the same size for all
        batches = [feeds_of(path, 10 + i, rows, 3.0 if i == louder else 1.0) for i, rows in enumerate((5, 3, 1))]
        for feeds in batches:                             # the most extreme value of an input is negative
            for array in feeds.values():
                array.reshape(-1)[0] = -2 * np.abs(array).max()
        call = f"calibrate('m.onnx', 3 batches, the loudest is number {louder})"
        check_ranges(submission.call("calibrate", path, batches), wanted_ranges(path, batches), call, RANGE_TOLERANCE, guesses_for(path, batches))


@pytest.mark.parametrize("percentile", [99.0, 90.0, 60.0])
def test_calibrate_percentile(submission, tmp_path, percentile):
    """calibrate takes the percentile of all magnitudes of all batches together"""
    path = perceptron(tmp_path / "m.onnx", 3)
    batches = [feeds_of(path, 20 + i, rows, loud) for i, (rows, loud) in enumerate(((600, 1.0), (100, 6.0), (300, 2.0)))]
    call = f"calibrate('m.onnx', 3 batches of 600, 100 and 300 rows, percentile={percentile:g})"
    got = submission.call("calibrate", path, batches, percentile)
    check_ranges(got, wanted_ranges(path, batches, percentile), call, PERCENTILE_TOLERANCE, guesses_for(path, batches, percentile))


def test_calibrate_percentile_of_few(submission, tmp_path):
    """calibrate takes the nearest rank: of few values too, the percentile is one of them"""
    path = perceptron(tmp_path / "m.onnx", 3)
    for percentile, rows in ((55.0, 1), (83.0, 1), (71.0, 2)):
        batches = [feeds_of(path, 25, rows)]
        call = f"calibrate('m.onnx', a batch of {rows}, percentile={percentile:g})"
        between = {name: float(np.percentile(np.abs(array), percentile)) for name, array in computed(path, batches[0]).items()}
        guesses = (("The range lies between two values: the nearest rank is one of them. (NumPy's percentile interpolates by default.)", between),)
        check_ranges(submission.call("calibrate", path, batches, percentile), wanted_ranges(path, batches, percentile), call, PERCENTILE_TOLERANCE, guesses)


def test_calibrate_generator(submission, tmp_path):
    """calibrate goes through the batches once: a generator will do"""
    path = perceptron(tmp_path / "m.onnx", 4, name="tokens:0")
    batches = [feeds_of(path, 30 + i, 40) for i in range(3)]
    for percentile, tolerance in ((100.0, RANGE_TOLERANCE), (95.0, PERCENTILE_TOLERANCE)):
        got = submission.drive("calibrate_from_generator", path, batches, percentile)
        check_ranges(got, wanted_ranges(path, batches, percentile), f"calibrate('m.onnx', a generator, {percentile:g})", tolerance)


def test_calibrate_float32_only(submission, tmp_path):
    """calibrate gives ranges to float32 tensors only"""
    path = mixed(tmp_path / "m.onnx")
    got = submission.call("calibrate", path, [feeds_of(path, 5, 2)])
    want = {"x", "q", "t", "s", "u", "v", "wide", "z", "y", "z.left", "z.right"}
    if not isinstance(got, dict) or set(got) != want:
        missing = isinstance(got, dict) and set(got) < want
        raise Wrong("A float32 activation has no range: a node may have several outputs, and each has one." if missing else "Ranges are for float32 activations: not for weights, not for INT64 or FP16 tensors.", "calibrate('m.onnx', [batch])",
                    sorted(got) if isinstance(got, dict) else got, sorted(want))


def test_calibrate_two_inputs(submission, tmp_path):
    """calibrate serves models with several inputs"""
    path = two_inputs(tmp_path / "m.onnx", 6)
    batches = [feeds_of(path, 40 + i, 6) for i in range(2)]
    check_ranges(submission.call("calibrate", path, batches), wanted_ranges(path, batches), "calibrate('m.onnx', 2 batches of two inputs)", RANGE_TOLERANCE)


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
            raise Wrong(f"The message of the {kind} for {why} does not name {missing[0]!r}.", call, str(error), f"a message with {missing[0]!r}") from None
        return
    raise Wrong(f"Given {why}, {name} has to raise {kind}.", call, f"returned {show(got)}", kind)


def test_calibrate_refuses(submission, tmp_path):
    """calibrate refuses no batches, a percentile that is none, and values that are not finite"""
    path = perceptron(tmp_path / "m.onnx", 7)
    good = feeds_of(path, 50, 4)
    refused(submission, "calibrate", (path, []), "no batches")
    for percentile in (0.0, -1.0, 100.5):
        refused(submission, "calibrate", (path, [good], percentile), f"percentile {percentile:g}")
    for value in (np.nan, np.inf, -np.inf):
        bad = {"x": good["x"].copy()}
        bad["x"][1, 2] = value
        refused(submission, "calibrate", (path, [good, bad], 100.0), f"a batch with {value}", ("x",))
        refused(submission, "calibrate", (path, [bad, good], 99.0), f"a batch with {value}", ("x",))
    path = save(tmp_path / "log.onnx", [node("Relu", "relu", ["pixels"], "positive"), node("Log", "log", ["positive"], "logarithm"), node("Relu", "end", ["logarithm"], "y")],
                {"pixels": ["n", 4]}, {"y": ["n", 4]}, {})
    refused(submission, "calibrate", (path, [feeds_of(path, 51, 6)], 100.0), "finite inputs whose logarithm is not finite", ("logarithm",))


# ---- Q/DQ: the structure ----------------------------------------------------------------------------------------------

class Graph:
    """The submission's file, its pairs taken apart. `through` maps a dequantized tensor to (source, scale, axis, stored int8 or None)."""

    def __init__(self, path, call):
        self.call, self.model = call, onnx.load(path)
        try:
            onnx.checker.check_model(self.model, full_check=True)
        except Exception as error:
            raise Wrong("The quantized file is no valid ONNX model.", call, str(error)[:300], "a model that onnx.checker accepts with full_check") from None
        graph = self.model.graph
        self.stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.makers = {output: n for n in graph.node for output in n.output}
        self.through, self.pairs = {}, []
        for n in graph.node:
            if n.op_type == "QuantizeLinear":
                self.zero_points(n)
                readers = [m for m in graph.node if n.output[0] in m.input]
                if not readers or any(m.op_type != "DequantizeLinear" for m in readers):
                    raise Wrong("What QuantizeLinear makes is read by DequantizeLinear alone.", call, [m.op_type for m in readers], ["DequantizeLinear"])
            elif n.op_type == "DequantizeLinear":
                self.take_apart(n)

    def constant(self, n, place, what):
        name = n.input[place] if len(n.input) > place else ""
        if name in self.stored:
            return self.stored[name]
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "Constant":
            return numpy_helper.to_array(maker.attribute[0].t)
        raise Wrong(f"The {what} of a {n.op_type} is no constant.", self.call, f"{n.op_type} {list(n.input)}", "an initializer")

    def zero_points(self, n):
        scale = self.constant(n, 1, "scale")
        if len(n.input) < 3 or not n.input[2]:
            kind = "uint8: the default of QuantizeLinear" if n.op_type == "QuantizeLinear" else "left out"
            raise Wrong(f"A {n.op_type} has no zero point, so its type is {kind}. TensorRT takes signed INT8.", self.call, list(n.input), "an int8 zero point of 0")
        zero = self.constant(n, 2, "zero point")
        if zero.dtype != np.int8 or zero.any():
            raise Wrong("TensorRT quantizes symmetrically: int8 with zero points 0.", self.call, f"zero point {show(zero)} of {n.op_type}", "int8 zeros")
        if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
            raise Wrong("A scale is not a positive float32 number. (A channel of zeros gives 0, and x / 0 gives NaN: such a scale is 1.)", self.call, show(scale), "finite, above 0")
        return scale, attributes(n).get("axis", 1) if scale.ndim else None

    def take_apart(self, n):
        scale, axis = self.zero_points(n)
        source, maker = n.input[0], self.makers.get(n.input[0])
        if source in self.stored:
            if self.stored[source].dtype != np.int8:
                raise Wrong("A DequantizeLinear reads a constant that is not int8: the bias stays float32 and has no pair.", self.call,
                            f"{source}: {self.stored[source].dtype}", "int8 weights, float32 biases")
            self.through[n.output[0]] = source, scale, axis, self.stored[source]
            return
        if maker is None or maker.op_type != "QuantizeLinear":
            raise Wrong("A DequantizeLinear reads neither a QuantizeLinear nor an int8 constant.", self.call, source, "Q, then DQ")
        before, along = self.zero_points(maker)
        if before.shape != scale.shape or not np.array_equal(before, scale) or along != axis:
            raise Wrong("Q and DQ of a pair differ in scale or axis.", self.call, f"Q {show(before)} axis {along}, DQ {show(scale)} axis {axis}", "the same")
        self.through[n.output[0]] = maker.input[0], scale, axis, None
        self.pairs.append((maker, n))


def make(submission, path, target, ranges, **more):
    """Calls insert_qdq; returns its graph, taken apart."""
    arguments = (path, str(target), ranges)
    call = f"insert_qdq({', '.join(['model', 'target', 'ranges', *(f'{k}={v!r}' for k, v in more.items())])})"
    before = hashlib.sha256(open(path, "rb").read()).hexdigest()
    returned = submission.call("insert_qdq", *arguments, **more)
    if returned is not None:
        raise Wrong("insert_qdq returns nothing: the model is in the file.", call, show(returned), "None")
    if not target.exists():
        raise Wrong("insert_qdq wrote no file.", call, f"no {target.name}", "the quantized model there")
    if hashlib.sha256(open(path, "rb").read()).hexdigest() != before:
        raise Wrong("The float model's file was changed.", call, "other bytes", "the same bytes")
    return Graph(target, call)


def check_structure(submission, path, target, ranges, skip=(), also=()):
    """Everything the contract says of the graph; returns (node, input number) to the scales it has to go through."""
    more = {k: v for k, v in (("skip", skip), ("also", also)) if v}
    got, original = make(submission, path, target, ranges, **more), onnx.load(path)
    call, weights = got.call, {t.name: numpy_helper.to_array(t) for t in original.graph.initializer}
    check_interface(got.model, original, call)
    plain = [n for n in got.model.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear", "Constant")]
    before = [n for n in original.graph.node if n.op_type != "Constant"]
    if [n.output[0] for n in plain] != [n.output[0] for n in before]:
        raise Wrong("The model's own nodes are not all there, or not in their order: only pairs are added.", call, [n.op_type for n in plain], [n.op_type for n in before])
    wanted, asked = {}, set()
    for old, new in zip(before, plain):
        if (old.op_type, old.name, list(old.output), attributes(old)) != (new.op_type, new.name, list(new.output), attributes(new)):
            raise Wrong("A node of the model was changed: type, name, outputs and attributes stay.", call, f"{new.op_type} {new.name!r} {attributes(new)}", f"{old.op_type} {old.name!r} {attributes(old)}")
        quantizable = (old.op_type in QUANTIZED and old.name not in skip and old.input[1] in weights and weights[old.input[1]].dtype == np.float32
                       and old.input[0] not in weights and (old.op_type != "MatMul" or weights[old.input[1]].ndim == 2))
        for place, tensor in enumerate(old.input):
            here = f"input {place} of {old.op_type} {old.name!r}"
            found = got.through.get(new.input[place])
            if quantizable and place == 1:
                wanted[old.name, 1] = check_weight(found, tensor, weights[tensor], old, here, call)
            elif (quantizable and place == 0) or (old.name, place) in also:
                wanted[old.name, place] = check_activation(found, tensor, ranges, here, call)
                asked.add(tensor)
            elif found is not None:
                if tensor in weights and found[3] is None and place == 2:
                    raise Wrong(f"The bias goes through Q/DQ ({here}): it stays float32.", call, f"Q/DQ around {tensor!r}", "no pair")
                if (old.name, place) not in also and old.name in skip:
                    raise Wrong(f"A node in skip was quantized ({here}).", call, f"skip={skip}", "a node that stays as it is")
                raise Wrong(f"A pair stands where none belongs ({here}): only quantizable nodes and `also` read through pairs.", call, f"Q/DQ of {found[0]!r}", tensor)
            elif new.input[place] != tensor:
                raise Wrong(f"A node reads another tensor than before ({here}).", call, new.input[place], tensor)
            elif tensor in weights and not np.array_equal(got.stored.get(tensor), weights[tensor]):
                raise Wrong(f"A constant was changed or lost ({here}).", call, show(got.stored.get(tensor)), show(weights[tensor]))
    sources = [q.input[0] for q, _ in got.pairs if q.input[0] not in weights]
    for tensor in sorted(set(sources)):
        if sources.count(tensor) > 1:
            raise Wrong("One activation has several pairs: all its readers share one.", call, f"{sources.count(tensor)} pairs on {tensor!r}", "1 pair")
        if tensor not in asked:
            raise Wrong("A pair stands on a tensor that nothing reads quantized.", call, tensor, sorted(asked))
    check_use(got, call)
    return wanted


def check_use(got, call):
    used = {name for n in got.model.graph.node for name in n.input} | {v.name for v in got.model.graph.output}
    for n in got.model.graph.node:
        if n.op_type in ("QuantizeLinear", "DequantizeLinear") and not set(n.output) & used:
            raise Wrong("A Q or DQ is read by nobody.", call, n.output[0], "pairs that are read")


def check_interface(model, original, call):
    def ends(values):
        return [(v.name, v.type.tensor_type.elem_type, [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]) for v in values]
    for side in ("input", "output"):
        a, b = ends(getattr(model.graph, side)), ends(getattr(original.graph, side))
        if a != b:
            raise Wrong(f"The graph's {side}s are not the model's: their names, types and shapes stay.", call, a, b)
    a, b = ([e.version for e in m.opset_import if e.domain in ("", "ai.onnx")] for m in (model, original))
    if a != b:
        raise Wrong("The opset was changed.", call, a, b)


def check_weight(found, tensor, weight, old, here, call):
    if found is None:
        raise Wrong(f"A weight has no pair ({here}): an INT8 kernel needs both operands quantized.", call, f"{tensor!r} read as float32", "Q and DQ")
    source, scale, axis, stored = found
    if stored is None and source != tensor:
        raise Wrong(f"The pair of a weight reads another tensor ({here}).", call, source, tensor)
    right = 0 if old.op_type == "Conv" or attributes(old).get("transB") else 1
    if scale.ndim != 1 or scale.shape[0] != weight.shape[right] or (axis % weight.ndim if axis is not None else None) != right:
        mistake = f"The scales of a weight are not by output channel ({here})."
        if scale.ndim == 0:
            mistake += " One scale for the whole weight lets its loudest channel set the step for all."
        else:
            mistake += f" For {old.op_type}{' without transB' if old.op_type == 'Gemm' and right else ' with transB' if old.op_type == 'Gemm' else ''} the output channels are axis {right}."
        raise Wrong(mistake, call, f"{scale.size} scales of shape {scale.shape}, axis {axis}, for a weight of shape {weight.shape}", f"{weight.shape[right]} scales, axis {right}")
    shape = [-1 if place == right else 1 for place in range(weight.ndim)]
    peak = np.abs(weight.astype("f8")).max(tuple(p for p in range(weight.ndim) if p != right))
    best = np.where(peak > 0, peak / 127, 1)
    if not np.abs(scale / best - 1).max() <= SCALE_TOLERANCE:
        worst = int(np.abs(scale / best - 1).argmax())
        mistake = f"The scale of a weight's channel is wrong ({here}): largest magnitude / 127."
        if peak[worst] == 0:
            mistake = f"The channel {worst} holds only zeros ({here}): its scale is 1."
        elif np.allclose(scale, best * 127 / 128, rtol=1e-5):
            mistake += " It was divided by 128, and +1 · scale · 128 is no int8."
        raise Wrong(mistake, call, f"channel {worst}: {scale[worst]:.8g}", f"{best[worst]:.8g}")
    if stored is not None:
        exact = weight.astype("f8") / scale.astype("f8").reshape(shape)
        if stored.shape != weight.shape or np.abs(stored - exact).max() > 0.5 + 1e-4:
            raise Wrong(f"The stored int8 weights are not the rounded weights ({here}).", call, show(stored), show(np.rint(exact).astype(np.int8)))
    return scale.astype("f8").reshape(shape)


def check_activation(found, tensor, ranges, here, call):
    if found is None or found[0] != tensor:
        raise Wrong(f"An activation has no pair ({here}).", call, "read as float32" if found is None else found[0], f"Q and DQ on {tensor!r}")
    _, scale, _, _ = found
    if scale.shape != ():
        raise Wrong(f"An activation has one scale, of shape () ({here}).", call, f"shape {scale.shape}", "shape ()")
    best = ranges[tensor] / 127 or 1.0
    if not abs(float(scale) / best - 1) <= SCALE_TOLERANCE:
        mistake = f"The scale of an activation is wrong ({here}): range / 127."
        if ranges[tensor] == 0:
            mistake = f"The range of an activation is 0 ({here}): its scale is 1."
        elif abs(float(scale) / best - 127 / 128) < 1e-4:
            mistake += " It was divided by 128."
        elif abs(float(scale) / best - 254 / 255) < 1e-4 or abs(float(scale) / best - 2 * 127 / 255) < 1e-4:
            mistake += " 255 steps are those of uint8."
        raise Wrong(mistake, call, f"{float(scale):.8g}", f"{best:.8g}")
    return float(scale)


def ranges_for(path, seed=60, rows=32):
    return {name: value for name, (value, _) in wanted_ranges(path, [feeds_of(path, seed, rows)]).items()}


def check_numbers(path, target, ranges, pairs, seed=61, rows=24):
    """The file computes what NumPy computes with the same scales, and is near the float model."""
    feeds = feeds_of(path, seed, rows)
    got = run_graph(target, feeds)[0].astype("f8")
    output = onnx.load(path).graph.output[0].name
    want, exact = computed(path, feeds, pairs)[output], computed(path, feeds)[output]
    spread = exact.std(axis=0).max()
    apart = np.sqrt(((got - want) ** 2).mean()) / spread
    if not apart <= SPREAD_TOLERANCE:
        raise Wrong("The quantized graph does not compute what its scales say.", "root mean square distance of its outputs by ONNX Runtime or onnx.reference", f"{apart:.3f} of the outputs' spread away",
                    f"at most {SPREAD_TOLERANCE}, from the same in NumPy")
    error = np.sqrt(((got - exact) ** 2).mean()) / spread
    if not error <= FLOAT_TOLERANCE:
        raise Wrong("The quantized graph is far from the float model.", "root mean square error of its outputs", f"{error:.3f} of their spread", f"at most {FLOAT_TOLERANCE}")


@pytest.mark.parametrize("seed, prefix", [(0, ""), (8, "net/")])
def test_qdq_products(submission, tmp_path, seed, prefix):
    """insert_qdq quantizes Gemm and MatMul: scales, axes, zero points, numbers"""
    path, target = perceptron(tmp_path / "m.onnx", seed, prefix=prefix), tmp_path / "q.onnx"
    ranges = ranges_for(path)
    check_numbers(path, target, ranges, check_structure(submission, path, target, ranges))


@pytest.mark.parametrize("seed", [1, 9])
def test_qdq_convolutions(submission, tmp_path, seed):
    """insert_qdq quantizes Conv, grouped and 1x1 ones too: scales, axes, one pair for a tensor with two readers"""
    path, target = convolutions(tmp_path / "m.onnx", seed), tmp_path / "q.onnx"
    ranges = ranges_for(path)
    check_numbers(path, target, ranges, check_structure(submission, path, target, ranges))


def test_qdq_also(submission, tmp_path):
    """insert_qdq lets the inputs in also, such as a residual's skip, share the pair"""
    path, target = convolutions(tmp_path / "m.onnx", 10), tmp_path / "q.onnx"
    ranges = ranges_for(path)
    for also in ((("skip", 1),), (("skip", 1), ("both", 0))):
        pairs = check_structure(submission, path, target, ranges, also=also)
        check_numbers(path, target, ranges, pairs)


def test_qdq_skip(submission, tmp_path):
    """insert_qdq leaves the nodes in skip in float, and quantizes the other readers of their input"""
    path, target = convolutions(tmp_path / "m.onnx", 11), tmp_path / "q.onnx"
    ranges = ranges_for(path)
    for skip in (("right",), ("stem", "head"), ("stem", "left", "right", "head")):
        pairs = check_structure(submission, path, target, ranges, skip=skip)
        check_numbers(path, target, ranges, pairs)


def test_qdq_leaves_the_rest(submission, tmp_path):
    """insert_qdq leaves products of two activations, constants on the left, three dimensions, FP16, ConvTranspose and weights made by a node alone"""
    path, target = mixed(tmp_path / "m.onnx"), tmp_path / "q.onnx"
    check_structure(submission, path, target, dict.fromkeys(("x", "q", "t", "s", "u", "v", "wide", "z", "y", "z.left", "z.right"), 3.0))
    weight = numpy_helper.from_array(np.eye(8, dtype="f4") / 2)      # made by a node, so it is no initializer; and an operator set that comes before ONNX's own
    path = save(path, [node("Constant", "maker", [], "made", value=weight), node("MatMul", "plain", ["x", "w"], "p"), node("MatMul", "by_made", ["p", "made"], "y")],
                {"x": ["n", 8]}, {"y": ["n", 8]}, {"w": np.eye(8, dtype="f4")})
    model = onnx.load(path)
    model.opset_import.insert(0, helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, path)
    check_structure(submission, path, target, dict.fromkeys(("x", "p", "y"), 3.0))


def test_qdq_shared_weight(submission, tmp_path):
    """insert_qdq serves a weight that two nodes share, one of which needs another axis, and a node without a name"""
    w = (np.random.default_rng(12).normal(size=(8, 8)) * np.geomspace(0.01, 1, 8)[:, None] * np.geomspace(1, 0.1, 8)).astype("f4")
    path = save(tmp_path / "m.onnx", [node("MatMul", "down", ["x", "w"], "a"), node("Relu", "relu", ["a"], "b"), node("Gemm", "up", ["b", "w", "c"], "d", transB=1),
                                      node("MatMul", "again", ["d", "w"], "e"), node("Add", "", ["e", "x"], "y")],
                {"x": ["n", 8]}, {"y": ["n", 8]}, {"w": w, "c": np.zeros(8, "f4")})
    ranges, target = ranges_for(path), tmp_path / "q.onnx"
    check_numbers(path, target, ranges, check_structure(submission, path, target, ranges))


def test_qdq_zeros(submission, tmp_path):
    """insert_qdq gives scale 1 to a channel of zeros and to a tensor that was always 0"""
    draw = np.random.default_rng(13)
    w1, w2 = draw.normal(size=(8, 12)).astype("f4"), draw.normal(size=(8, 4)).astype("f4")
    w1[3], w1[5] = 0, 0
    path = save(tmp_path / "m.onnx", [node("Gemm", "a", ["x", "w1", "b"], "h", transB=1), node("Relu", "r", ["h"], "dead"), node("MatMul", "c", ["dead", "w2"], "y")],
                {"x": ["n", 12]}, {"y": ["n", 4]}, {"w1": w1, "b": np.full(8, -100, "f4"), "w2": w2})
    target = tmp_path / "q.onnx"
    check_structure(submission, path, target, {"x": 3.5, "h": 110.0, "dead": 0.0, "y": 0.0})
    got = run_graph(target, feeds_of(path, 62, 5))[0]
    if not np.isfinite(got).all():
        raise Wrong("The quantized model computes NaN: something was divided by a scale of 0.", "its output", show(got), "finite numbers")


def test_qdq_refuses(submission, tmp_path):
    """insert_qdq refuses what it cannot quantize, and leaves no file behind"""
    path, target = perceptron(tmp_path / "m.onnx", 14), tmp_path / "q.onnx"
    ranges = ranges_for(path)
    old = save(tmp_path / "old.onnx", [node("MatMul", "m", ["x", "w"], "y")], {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": np.eye(4, dtype="f4")}, opset=12)
    cases = [((old, {"x": 1.0}), {}, "a model of opset 12", ("12",)),
             ((path, {k: v for k, v in ranges.items() if k != "r2"}), {}, "no range for 'r2'", ("r2",)),
             ((path, ranges | {"r1": -1.0}), {}, "a negative range", ("r1",)), ((path, ranges | {"x": math.nan}), {}, "a range of NaN", ("x",)),
             ((path, ranges | {"r1": math.inf}), {}, "an infinite range", ("r1",)),
             ((path, {k: v for k, v in ranges.items() if k != "h1"}, (), (("relu1", 0),)), {}, "no range for 'h1', which also names", ("h1",)),
             ((path, ranges, ("frist",)), {}, "a name in skip that is no node's", ("frist",)),
             ((path, ranges, (), (("nowhere", 0),)), {}, "a name in also that is no node's", ("nowhere",))]
    for arguments, _, why, words in cases:
        for there in (False, True):
            if there:
                target.write_bytes(b"what stood here before")
            refused(submission, "insert_qdq", (arguments[0], str(target), *arguments[1:]), why, words)
            if target.exists() != there or (there and target.read_bytes() != b"what stood here before"):
                raise Wrong("After an error there is a new file: check everything first, write last.", f"insert_qdq(…)  ({why})", "a file was written", "no file")
            target.unlink(missing_ok=True)
    # ranges of tensors that are not quantized do not matter
    submission.call("insert_qdq", path, str(target), {k: v for k, v in ranges.items() if k in ("x", "r1", "r2")})


# ---- digits -----------------------------------------------------------------------------------------------------------

def digits():
    with np.load(DIGITS.parent / "heldout.npz") as data:
        return (data["images"].reshape(-1, 784) / 255).astype("f4"), data["labels"]


def test_digits(submission, tmp_path):
    """Calibrated on 60 digits, the quantized digits model is as right as the float model on 300 others"""
    images, labels = digits()
    target = tmp_path / "q.onnx"
    for percentile in (100.0, 99.99):
        ranges = submission.call("calibrate", str(DIGITS), [{"pixels": images[i:i + 25]} for i in (0, 25, 50)], percentile)
        check_structure(submission, str(DIGITS), target, ranges)
        got, exact = run_graph(target, {"pixels": images[75:]})[0], computed(DIGITS, {"pixels": images[75:]})["probabilities"]
        right, before = (got.argmax(1) == labels[75:]).sum(), (exact.argmax(1) == labels[75:]).sum()
        if right < before - 3:
            raise Wrong("The quantized model lost more than 1 % of the held-out digits.", f"calibrate(…, {percentile:g}), insert_qdq(…)", f"{right} of {len(got)} right", f"{before - 3} or more")


# ---- build ------------------------------------------------------------------------------------------------------------

def quantized(submission, path, target):
    submission.call("insert_qdq", path, str(target), ranges_for(path))
    return str(target)


def build(submission, model, engine, batches=None):
    submission.probe("take_builds")
    arguments = (model, str(engine)) if batches is None else (model, str(engine), batches)
    call = f"build_engine('{model.rpartition('/')[2]}', '{engine.name}'{'' if batches is None else f', {batches}'})"
    returned = submission.call("build_engine", *arguments)
    builds = submission.probe("take_builds")
    if len(builds) != 1:
        raise Wrong("build_engine builds once, by build_serialized_network.", call, f"{len(builds)} builds", "1 build")
    built = builds[0]
    if returned is not None:
        raise Wrong("build_engine returns nothing: the plan is in the file.", call, show(returned), "None")
    if not engine.exists() or hashlib.sha256(engine.read_bytes()).hexdigest() != built["sha256"]:
        raise Wrong("The file does not hold the plan that was built.", call, "no such file" if not engine.exists() else f"{engine.stat().st_size} other bytes", "the plan's bytes")
    return built, call


def wide_perceptron(path, seed):
    return perceptron(path, seed, features=64, hidden=64, classes=16)


def plain_convolutions(path, seed):
    return convolutions(path, seed, channels=32, size=10, groups=1)


def two_inputs(path, seed):
    w = np.random.default_rng(seed).normal(size=(5, 8)).astype("f4")
    return save(path, [node("MatMul", "m", ["extra", "w"], "e"), node("Add", "a", ["main", "e"], "y")], {"main": ["n", 8], "extra": ["n", 5]}, {"y": ["n", 8]}, {"w": w})


@pytest.mark.parametrize("make, batches", [(wide_perceptron, None), (plain_convolutions, (2, 3, 7)), (two_inputs, (1, 1, 4))])
def test_build(submission, tmp_path, make, batches):
    """build_engine builds the quantized model once, with one profile, readable, with its Q/DQ"""
    model = quantized(submission, make(tmp_path / "m.onnx", 15), tmp_path / "q.onnx")
    built, call = build(submission, model, tmp_path / "q.engine", batches)
    pairs = sum(n.op_type == "QuantizeLinear" for n in onnx.load(model).graph.node)
    if built["quantize_layers"] != pairs or built["dequantize_layers"] == 0:
        raise Wrong("The network that was built has not the file's Q/DQ pairs.", call, f"{built['quantize_layers']} quantize layers", f"{pairs}")
    if built["int8"] is False:
        raise Wrong("The flag INT8 is not set: until 10.16 it is what permits INT8 kernels.", call, "config without trt.BuilderFlag.INT8", "config.set_flag(trt.BuilderFlag.INT8)")
    if built["verbosity"] not in ("DETAILED", "VERBOSE"):
        raise Wrong("The engine is not built with profiling verbosity DETAILED: nobody can see afterwards which layers are INT8.", call, built["verbosity"], "DETAILED")
    least, best, most = batches or (1, 8, 32)
    wanted = [{v.name: [(b, *(d.dim_value for d in v.type.tensor_type.shape.dim[1:])) for b in (least, best, most)] for v in onnx.load(model).graph.input}]
    if built["profiles"] != wanted:
        raise Wrong("The engine needs one profile, with smallest, best and largest batch of every input.", call, built["profiles"], wanted)


def test_build_refuses(submission, tmp_path):
    """build_engine refuses what the parser refuses, notices a build that failed, and writes no file then"""
    broken, engine = tmp_path / "broken.onnx", tmp_path / "x.engine"
    broken.write_bytes(b"this is no model" * 9)
    refused(submission, "build_engine", (str(broken), str(engine)), "a file that is no model")
    x = helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd", domain="nobody.knows")
    graph = helper.make_graph([x], "g", [helper.make_tensor_value_info("x", 1, ["n", 4])], [helper.make_tensor_value_info("y", 1, ["n", 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("nobody.knows", 1)], ir_version=8), broken)
    refused(submission, "build_engine", (str(broken), str(engine)), "an operator that the parser does not know")
    model = quantized(submission, wide_perceptron(tmp_path / "m.onnx", 16), tmp_path / "q.onnx")
    submission.probe("fail_next_build")
    refused(submission, "build_engine", (model, str(engine)), "a builder that finds no engine (it returned None)", kind="RuntimeError")
    if engine.exists():
        raise Wrong("After an error there is an engine file.", "build_engine(…)", f"{engine.stat().st_size} bytes", "no file")


@pytest.mark.parametrize("make", [perceptron, convolutions])
def test_int8_kernels(submission, tmp_path, make):
    """TensorRT turns every quantized product and convolution into one that reads INT8"""
    path, target = make(tmp_path / "m.onnx", 17), tmp_path / "q.onnx"
    quantized(submission, path, target)
    told = submission.probe("kernels", str(target))
    if told["problem"]:
        raise Wrong("TensorRT does not take the quantized model.", "parse and build of the file", told["problem"], "an engine")
    names = {n.name for n in onnx.load(path).graph.node if n.op_type in QUANTIZED}
    if not told["layers"]:
        pytest.skip("not run here: this TensorRT does not list its layers in the log")
    readers = {n for kind, inputs, nodes in told["layers"] if inputs and set(inputs) == {"Int8"} and kind in ("gemm", "correlation") for n in nodes}
    if not names <= readers:
        raise Wrong("A quantized node did not become an INT8 kernel.", "what the builder's log says of the layers", f"in float: {sorted(names - readers)}", f"INT8: {sorted(names)}")


# ---- on a GPU ---------------------------------------------------------------------------------------------------------

@gpu
def test_gpu_digits(submission, tmp_path):
    """On the GPU: the INT8 engine of the digits model is as right as the float model on digits it was not calibrated on"""
    images, labels = digits()
    target, engine = tmp_path / "q.onnx", tmp_path / "q.engine"
    ranges = submission.call("calibrate", str(DIGITS), [{"pixels": images[:75]}])
    submission.call("insert_qdq", str(DIGITS), str(target), ranges)
    submission.call("build_engine", str(target), str(engine))
    got = np.concatenate([submission.probe("run_engine", str(engine), images[i:i + 19]) for i in range(75, 360, 19)])
    exact = computed(DIGITS, {"pixels": images[75:]})["probabilities"]
    right, before = (got.argmax(1) == labels[75:]).sum(), (exact.argmax(1) == labels[75:]).sum()
    if right < before - 3:
        raise Wrong("The INT8 engine lost more than 1 % of the held-out digits.", got=f"{right} of {len(got)} right", expected=f"{before - 3} or more")


@gpu
@pytest.mark.parametrize("make", [wide_perceptron, plain_convolutions])
def test_gpu_numbers(submission, tmp_path, make):
    """On the GPU: the engine computes what the Q/DQ graph says"""
    path, target, engine = make(tmp_path / "m.onnx", 18), tmp_path / "q.onnx", tmp_path / "q.engine"
    ranges = ranges_for(path)
    pairs = check_structure(submission, path, target, ranges)
    submission.call("build_engine", str(target), str(engine))
    feeds = feeds_of(path, 63, 16)
    got = submission.probe("run_engine", str(engine), next(iter(feeds.values()))).astype("f8")
    want = computed(path, feeds, pairs)["scores"]
    spread = computed(path, feeds)["scores"].std(axis=0).max()
    error = np.sqrt(((got - want) ** 2).mean()) / spread
    if not error <= 0.1:
        raise Wrong("The engine computes something else than the Q/DQ graph.", "root mean square distance of the outputs", f"{error:.3f} of their spread", "at most 0.1")


@gpu
def test_gpu_inspector(submission, tmp_path):
    """On the GPU: the engine's own description shows INT8"""
    path, target, engine = plain_convolutions(tmp_path / "m.onnx", 19), tmp_path / "q.onnx", tmp_path / "q.engine"
    submission.call("insert_qdq", path, str(target), ranges_for(path, rows=4))
    submission.call("build_engine", str(target), str(engine))
    layers = submission.probe("engine_layers", str(engine), 8)
    if any(isinstance(layer, str) for layer in layers):
        raise Wrong("The engine holds layer names only: build it with profiling verbosity DETAILED.", "engine inspector", layers[:3], "layers with their tensors")
    shown = [layer.get("Name", "") for layer in layers if "int8" in str([layer.get(k) for k in ("Inputs", "Outputs", "Weights")]).lower()]
    if not shown:
        raise Wrong("No layer of the engine reads or writes INT8.", "engine inspector", [layer.get("Name", "") for layer in layers][:8], "INT8 tensors")
