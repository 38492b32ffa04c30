"""Grader of 02_onnx/ex01_export_and_parity. Oracle: the contract's rules, element by element, in float64. Only the export needs PyTorch."""
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from course.grading import Raised, Wrong, show

EXERCISE = "02_onnx/ex01_export_and_parity"
PROBE = "probe_ex01.py"
LIMITS = {"call_seconds": 120.0, "memory_gib": 6.0}
SHARES = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-3}
ort.set_default_logger_severity(4)
torch_here = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("torch", "onnxscript"))), reason="not run here: needs PyTorch (make test WITH_TORCH=1)")

spec = importlib.util.spec_from_file_location("references_ex01", Path(__file__).with_name(PROBE))
known = importlib.util.module_from_spec(spec)
spec.loader.exec_module(known)


# ---- models, and what is known of them ---------------------------------------------------------------------------------------------

def model(body, inputs="float[n, 6] x", outputs="float[n, 5] y", **tensors):
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({outputs}) {{ {body} }}')
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items())
    return made


W = {"w": known.W.astype(np.float32)}
HALF = {"w": known.W.astype(np.float16)}
DROP = {"half": np.float32(0.5), "on": np.array(True)}
TWO = np.float32(2)


def bump(values):
    return model("d = MatMul (x, w)  y = Add (d, e)", **W, e=np.array(values, np.float32))


def scaled(share, kind="float"):
    """The right answer times 1 + share, rounded to the type of the output."""
    body = "d = Cast <to = 11> (x)  e = MatMul (d, w)  f = Mul (e, s)  "
    return model(body + f"y = Cast <to = {dict(float=1, float16=10, double=11)[kind]}> (f)", f"{kind}[n, 6] x", f"{kind}[n, 5] y", w=known.W, s=np.float64(1 + share))


IMAGE, CUBE = ("float[n, 2, 3, 4] x", "float[n, a, b, c] y"), ("float[n, 3, 3, 3] x", "float[n, a, b, c] y")
WIDE = ("float[n, 6, 40] x", "float[n, 6, 40] y")
# case: (model, reference, feeds, batches, seeds, the kinds of finding that this case is about)
CASES = {
    "float32": (lambda: model("y = MatMul (x, w)", **W), "dense", "rows", [1, 4, 7], [0, 1], set()),
    "float64": (lambda: scaled(0, "double"), "dense64", "rows64", [1, 3], [0, 1], set()),
    "float16": (lambda: model("y = MatMul (x, w)", "float16[n, 6] x", "float16[n, 5] y", **HALF), "dense16", "rows16", [2, 3], [0, 1], set()),
    "two inputs, two outputs": (lambda: model("s = ReduceSum <keepdims = 0> (a, one)  total = Mul (s, b)  best = ArgMax <axis = 1, keepdims = 0> (a)", "float[n, 5] a, float[n] b",
                                              "float[n] total, int64[n] best", one=np.array([1])), "two", "two", [1, 6], [0, 3], set()),
    "uint8": (lambda: model("a = Abs (x)  g = Greater (a, one)  c = Cast <to = 2> (g)  y = Mul (c, three)", outputs="uint8[n, 6] y", one=np.float32(1), three=np.uint8(3)),
              "small", "rows", [2, 5], [0, 1], set()),
    "bool": (lambda: model("y = Greater (x, zero)", outputs="bool[n, 6] y", zero=np.float32(0)), "flag", "rows", [2, 5], [0, 1], set()),
    "NaN and infinities on both sides": (lambda: bump([np.nan, np.inf, -np.inf, 0, 0]), "special", "rows", [1, 3], [0, 1], set()),
    "a reference that works in place": (lambda: model("y = MatMul (x, w)", **W), "in place", "rows", [1, 4], [0, 1], set()),
    "a reference that differs by rounding": (lambda: model("y = MatMul (x, w)", **W), "barely", "rows", [1, 4], [0, 1], set()),
    "float32, off by 4e-6": (lambda: scaled(4e-6), "dense", "rows", [2, 3], [0, 1], set()),
    "float32, off by 3e-5": (lambda: scaled(3e-5), "dense", "rows", [2, 3], [0, 1], {"difference"}),
    "float64, off by 5e-11": (lambda: scaled(5e-11, "double"), "dense64", "rows64", [2, 3], [0, 1], set()),
    "float64, off by 1e-9": (lambda: scaled(1e-9, "double"), "dense64", "rows64", [2, 3], [0, 1], {"difference"}),
    "float16, off by 1e-3": (lambda: scaled(1e-3, "float16"), "dense16", "rows16", [2, 3], [0, 1], set()),
    "float16, off by 6e-3": (lambda: scaled(6e-3, "float16"), "dense16", "rows16", [2, 3], [0, 1], {"difference"}),
    "one column wrong": (lambda: bump([0, 0, 0, 1e-3, 0]), "dense", "rows", [1, 2, 9], [0, 1], {"difference"}),
    "batch fixed": (lambda: model("y = MatMul (x, w)", "float[4, 6] x", "float[4, 5] y", **W), "dense", "rows", [4, 1, 5], [0, 1], {"refused"}),
    "batch fixed inside": (lambda: model("d = MatMul (x, w)  y = Reshape (d, s)", **W, s=np.array([4, 5])), "dense", "rows", [1, 4, 8], [0], {"refused"}),
    "a branch frozen by its values": (lambda: model("y = Mul (x, two)", outputs="float[n, 6] y", two=TWO), "by sign", "signed", [4, 2], [0, 2, 3, 4], {"difference"}),
    "a branch frozen by the size": (lambda: model("y = Mul (x, two)", outputs="float[n, 6] y", two=TWO), "by size", "rows", [4, 3, 2, 1], [0], {"difference"}),
    "a mean over the batch": (lambda: model("m = ReduceMean (x)  y = Add (x, m)", *CUBE), "sum of rows", "cube", [1, 3], [0, 1], {"difference"}),
    "dropout left on": (lambda: model("d = Mul (x, two)  y = Dropout <seed = 3> (d, half, on)", *WIDE, two=TWO, **DROP), "double", "wide", [1, 3], [0], {"random"}),
    "dropout between two nodes": (lambda: model("d = Mul (x, two)  e = Dropout <seed = 3> (d, half, on)  y = Neg (e)", *WIDE, two=-TWO, **DROP), "double", "wide", [1, 3], [0], {"random"}),
    "channels last": (lambda: model("d = Mul (x, two)  y = Transpose <perm = [0, 2, 3, 1]> (d)", *IMAGE, two=TWO), "double", "image", [1, 3], [0], {"layout"}),
    "channels last, all axes of one size": (lambda: model("d = Mul (x, two)  y = Transpose <perm = [0, 2, 3, 1]> (d)", *CUBE, two=TWO), "double", "cube", [3, 2], [0], {"layout"}),
    "batch and channels swapped": (lambda: model("d = Mul (x, two)  y = Transpose <perm = [1, 0, 2, 3]> (d)", CUBE[0], "float[a, n, b, c] y", two=TWO), "double", "cube", [3, 2], [0], {"shape", "difference"}),
    "channels last, and wrong": (lambda: model("d = Mul (x, two)  y = Transpose <perm = [0, 2, 3, 1]> (d)", *IMAGE, two=TWO + 1), "double", "image", [2, 3], [0], {"shape"}),
    "one axis less": (lambda: model("d = MatMul (x, w)  y = ReduceSum <keepdims = 0> (d, a)", outputs="float[n] y", **W, a=np.array([1])), "column", "rows", [1, 5], [0], {"shape"}),
    "five equal columns for one": (lambda: model("d = MatMul (x, w)  e = ReduceSum (d, a)  y = Expand (e, f)", **W, a=np.array([1]), f=np.array([1, 5])), "column", "rows", [1, 2], [0], {"shape"}),
    "int32 for int64": (lambda: model("s = ReduceSum <keepdims = 0> (a, one)  total = Mul (s, b)  i = ArgMax <axis = 1, keepdims = 0> (a)  best = Cast <to = 6> (i)",
                                      "float[n, 5] a, float[n] b", "float[n] total, int32[n] best", one=np.array([1])), "two", "two", [1, 6], [0], {"dtype"}),
    "float64 for float32": (lambda: model("d = Cast <to = 11> (x)  y = MatMul (d, w)", outputs="double[n, 5] y", w=known.W), "dense", "rows", [1, 6], [0], {"dtype"}),
    "a class wrong by one step": (lambda: model("s = ReduceSum <keepdims = 0> (a, one)  total = Mul (s, b)  i = ArgMin <axis = 1, keepdims = 0> (a)  best = Identity (i)",
                                                "float[n, 5] a, float[n] b", "float[n] total, int64[n] best", one=np.array([1])), "two", "two", [3, 6], [0, 1], {"difference"}),
    "uint8 below and above": (lambda: model("a = Abs (x)  g = Greater (a, one)  c = Cast <to = 2> (g)  y = Add (c, c)", outputs="uint8[n, 6] y", one=np.float32(1)), "small", "rows",
                              [2, 5], [0, 1], {"difference"}),
    "bool turned round": (lambda: model("g = Greater (x, zero)  y = Not (g)", outputs="bool[n, 6] y", zero=np.float32(0)), "flag", "rows", [2, 5], [0], {"difference"}),
    "float16, large and of opposite sign": (lambda: model("a = Slice (x, s, e, a1)  z = Mul (a, zero)  y = Add (z, big)", "float16[n, 6] x", "float16[n, 2] y", s=np.array([0]), e=np.array([2]),
                                                          a1=np.array([1]), zero=np.float16(0), big=np.float16(60000)), "large16", "rows16", [1, 2], [0], {"difference"}),
    "NaN in the model": (lambda: bump([0, np.nan, 0, 0, 0]), "dense", "rows", [1, 3], [0, 1], {"not_finite"}),
    "NaN in the reference": (lambda: bump([0, np.inf, -np.inf, 0, 0]), "special", "rows", [1, 3], [0], {"not_finite"}),
    "infinities of opposite sign": (lambda: bump([np.nan, -np.inf, -np.inf, 0, 0]), "special", "rows", [1, 3], [0], {"not_finite"}),
    "another name": (lambda: model("y = MatMul (x, w)", **W), "other name", "rows", [1, 3], [0, 1], {"names"}),
    "an output too few": (lambda: model("y = MatMul (x, w)", **W), "one more", "rows", [1, 3], [0], {"names"}),
}
WHY = {
    "float32, off by 3e-5": "The tolerance is too loose for the type.", "float64, off by 1e-9": "The tolerance is too loose for the type.", "float16, off by 6e-3": "The tolerance is too loose for the type.",
    "float32, off by 4e-6": "The tolerance is too tight for the type.", "float64, off by 5e-11": "The tolerance is too tight for the type.", "float16, off by 1e-3": "The tolerance is too tight for the type.",
    "a branch frozen by its values": "Every seed has to be tried with every batch: an input of the other branch shows it.",
    "a branch frozen by the size": "Every batch size has to be tried.", "dropout between two nodes": "ONNX Runtime removes this dropout when it optimizes: test the file with optimizations disabled.",
    "uint8 below and above": "Subtract in float64: unsigned integers wrap.", "NaN in the model": "NaN is not greater than any limit.",
    "five equal columns for one": "Shapes that broadcast are not equal.", "batch and channels swapped": "The first axis is the batch: only those after it may have another order.",
    "float16, large and of opposite sign": "Subtract in float64: float16 ends at 65504.",
}


def inside(got, want):
    """The contract's rule for two arrays of one shape, element by element: (all inside, not finite in the same places)."""
    pairs = [(float(a), float(b)) for a, b in zip(got.ravel(), want.ravel())]
    same = all((math.isfinite(a) and math.isfinite(b)) or a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    finite = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    limit = SHARES.get(want.dtype.name, 0) * max((abs(b) for _, b in pairs if math.isfinite(b)), default=0)
    return same and all(abs(a - b) <= limit for a, b in finite), same


def truth(case):
    """(findings, output -> [(batch, seed, |model - reference|)], outputs whose runs differ)."""
    make, reference, kind, batches, seeds, about = CASES[case]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(make().SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    findings, fields = [], {name: [] for name in names}
    for batch in batches:
        for seed in seeds:
            want = known.REFERENCES[reference](known.feed_of(kind, batch, seed))
            try:
                got = dict(zip(names, session.run(None, known.feed_of(kind, batch, seed))))
            except Exception:
                findings.append(("refused", batch, seed, None))
                continue
            if set(want) != set(got):
                findings.append(("names", batch, seed, None))
                continue
            for name in names:
                g, w = got[name], want[name]
                if g.dtype == w.dtype and g.shape == w.shape:
                    with np.errstate(invalid="ignore"):
                        fields[name].append((batch, seed, np.abs(g.astype(np.float64) - w.astype(np.float64))))
                if "random" in about:
                    findings.append(("random", batch, seed, name))
                elif g.dtype != w.dtype:
                    findings.append(("dtype", batch, seed, name))
                elif g.shape == w.shape and inside(g, w)[0]:
                    pass
                elif g.ndim == w.ndim and any(g.transpose(0, *p).shape == w.shape and inside(g.transpose(0, *p), w)[0] for p in itertools.permutations(range(1, g.ndim))):
                    findings.append(("layout", batch, seed, name))
                elif g.shape != w.shape:
                    findings.append(("shape", batch, seed, name))
                else:
                    findings.append(("difference" if inside(g, w)[1] else "not_finite", batch, seed, name))
    assert {f[0] for f in findings} == about, f"the grader's case {case!r} shows {sorted({f[0] for f in findings})}"
    return findings, fields


@pytest.mark.parametrize("case", CASES)
def test_parity(submission, case):
    """Findings and largest differences of a model, over batches and seeds"""
    make, reference, kind, batches, seeds, about = CASES[case]
    findings, fields = truth(case)
    call = f"parity(<{case}>, batches={batches}, seeds={seeds})"
    answer = submission.drive("compare", make().SerializeToString(), reference, kind, batches, seeds)
    report = answer["report"]
    if not isinstance(report, dict) or set(report) != {"passed", "findings", "worst"}:
        raise Wrong("parity returns a dict with passed, findings and worst.", call=call, got=show(report))
    got = [tuple(f) if isinstance(f, (list, tuple)) else f for f in report["findings"]]
    if got != findings:
        why = WHY.get(case, "")
        if len(answer["feeds"]) < len(batches) * len(seeds):
            why = "Not every batch size was tried with every seed."
        if "random" in about and not why:
            why = "The model gives two answers to one feed."
        missed, false = [f for f in findings if f not in got], [f for f in got if f not in findings]
        if not (missed or false):
            why = "The findings are not in the order of the cases, or not each once."
        raise Wrong(f"The findings are not those of this model. {why}".rstrip(), call=call, got=show(false or got, 300),
                    expected=f"{show(missed or findings, 300)}{f' ({len(findings)} in all)' if findings else ''}")
    if report["passed"] is not (not findings):
        raise Wrong("passed does not say whether there are findings.", call=call, got=show(report["passed"]), expected=show(not findings))
    worst = report["worst"]
    if not isinstance(worst, dict) or set(worst) != set(fields):
        raise Wrong("worst does not have the outputs of the model as its keys.", call=call, got=show(worst), expected=show(sorted(fields)))
    for name, field in fields.items():
        if "random" not in about:
            check_worst(worst[name], field, name, call, WHY.get(case, ""))
    if answer["sessions"] > 1:
        raise Wrong("More than one session was made: the model is loaded and prepared again for each.", call=call, got=answer["sessions"], expected=1)
    wanted = [known.feed_of(kind, b, s) for b in batches for s in seeds for _ in range(2)]
    if len(answer["feeds"]) != len(wanted):
        raise Wrong("The reference is called twice for each case.", call=call, got=f"{len(answer['feeds'])} calls", expected=len(wanted))
    for have, want in zip(answer["feeds"], wanted):
        if have.keys() != want.keys() or not all(np.array_equal(have[k], want[k]) for k in want):
            raise Wrong("The reference did not get the feed of make_feed: a fresh copy each time.", call=call, got=show(next(iter(have.values()))), expected=show(next(iter(want.values()))))


def check_worst(got, field, name, call, why):
    largest = max((float(np.where(np.isfinite(d), d, -1).max()) for _, _, d in field if d.size), default=-1)
    if largest < 0:
        if got is not None:
            raise Wrong(f"worst of {name!r}: nothing could be compared.", call=call, got=show(got), expected="None")
        return
    if not isinstance(got, dict) or set(got) != {"difference", "index", "batch", "seed"}:
        raise Wrong(f"worst of {name!r} is a dict with difference, index, batch and seed.", call=call, got=show(got))
    if not (isinstance(got["difference"], (int, float)) and math.isclose(got["difference"], largest, rel_tol=1e-9)):
        raise Wrong(f"The largest difference of {name!r} is another. {why}".rstrip(), call=call, got=show(got["difference"]), expected=show(largest))
    for batch, seed, d in field:
        if (batch, seed) == (got["batch"], got["seed"]) and isinstance(got["index"], tuple) and len(got["index"]) == d.ndim and all(type(i) is int and 0 <= i < n for i, n in zip(got["index"], d.shape)):
            if math.isclose(d[got["index"]], largest, rel_tol=1e-9):
                return
    b, s, d = max(field, key=lambda f: np.where(np.isfinite(f[2]), f[2], -1).max())
    index = tuple(int(i) for i in np.unravel_index(np.where(np.isfinite(d), d, -1).argmax(), d.shape))
    raise Wrong(f"The largest difference of {name!r} is not where worst says.", call=call, got=show(got), expected=f"index {index}, batch {b}, seed {s}")


@pytest.mark.parametrize("reference, batches, seeds, mistake", [
    ("dense", [4], [0, 1], "One batch size proves nothing about others."), ("dense", [4, 4], [0], "One batch size, twice, proves nothing about others."),
    ("dense", [1, 4], [], "No seed, no case: nothing was compared."),
    ("unsteady", [1, 4], [0], "A reference that gives two answers to one feed was taken for a yardstick."),
    ("late unsteady", [1, 4, 8], [0, 1], "A reference that gives two answers to one feed was taken for a yardstick: it does so for the largest batch only."),
], ids=["one batch", "one batch twice", "no seeds", "a reference in training mode", "a reference that is random for large batches"])
def test_no_proof(submission, reference, batches, seeds, mistake):
    """Too few cases, or a reference that is random: ValueError"""
    made = model("y = MatMul (x, w)", **W)
    call = f"parity(<{reference}>, batches={batches}, seeds={seeds})"
    try:
        answer = submission._ask("probe", "compare", (made.SerializeToString(), reference, "rows", batches, seeds), {}, call)["ok"]
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("parity is not written yet.", call=call, got=error.text) from None
        if "ValueError" in error.bases:
            return
        raise Wrong("The wrong kind of error.", call=call, got=f"{error.kind}: {error.text}", expected="ValueError") from None
    raise Wrong(mistake, call=call, got=show(answer["report"]), expected="ValueError")


# ---- the export, with PyTorch --------------------------------------------------------------------------------------------------------

EXPORTS = {
    "a classifier in training mode, its batch norm frozen": ("classifier", 4, ["image"], ["answer"], None, ("norm",), [["image", 2, 6, 5]], 20),
    "two inputs, two outputs, opset 18": ("tokens", 3, ["ids", "weight"], ["sum", "mass"], 18, ("table",), [["ids", 5], ["weight", 5]], 18),
    "a sample of one row, opset 21": ("linear", 1, ["x"], ["y"], 21, (), [["x", 6]], 21),
}


@torch_here
def test_torch_evaluation_mode(submission):
    """With PyTorch: a module in training mode is exported in evaluation mode, and its parts are left as they were"""
    check_export(submission, "a classifier in training mode, its batch norm frozen")


@torch_here
@pytest.mark.parametrize("case", list(EXPORTS)[1:])
def test_torch_export(submission, case):
    """With PyTorch: the export has the names, the free batch and the opset asked for, and computes the same"""
    check_export(submission, case)


def check_export(submission, case):
    kind, batch, inputs, outputs, opset, frozen, shapes, version = EXPORTS[case]
    call = f"export(<{case}>, <{batch} rows>, {inputs}, {outputs}{'' if opset is None else f', opset={opset}'})"
    report = submission.drive("export", kind, batch, inputs, outputs, opset, frozen)
    if report["error"]:
        raise Wrong("A module that PyTorch exports was refused.", call=call, got=report["error"])
    if report["model"] is None:
        raise Wrong("export returns an onnx.ModelProto.", call=call, got=report["type"])
    got = onnx.load_model_from_string(report["model"])
    for what, values, names in (("inputs", got.graph.input, inputs), ("outputs", got.graph.output, outputs)):
        if [v.name for v in values] != names:
            raise Wrong(f"The {what} have other names.", call=call, got=[v.name for v in values], expected=names)
        for value in values:
            axes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            if axes[:1] != ["batch"]:
                raise Wrong(f"Axis 0 of {value.name} is not free, or not called batch.", call=call, got=axes)
    for value, (name, *rest) in zip(got.graph.input, shapes):
        axes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        if axes != rest:
            raise Wrong(f"The axes of {name} after the batch are not the sample's.", call=call, got=axes, expected=rest)
    have = {o.domain: o.version for o in got.opset_import}.get("")
    if have != version:
        raise Wrong("The model has another opset.", call=call, got=have, expected=version)
    if any(t.data_location == TensorProto.EXTERNAL for t in got.graph.initializer):
        raise Wrong("Weights are not in the model.", call=call)
    onnx.checker.check_model(got, full_check=True)
    if report["modes"]:
        name, (before, after) = next(iter(report["modes"].items()))
        raise Wrong(f"{name or 'The module'!r} is not in the mode in which it was: each submodule has its own.", call=call, got=f"training: {after}", expected=f"training: {before}")
    if report["weights"]:
        raise Wrong("The module's weights or buffers have changed.", call=call, got=report["weights"])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(report["model"], options, providers=["CPUExecutionProvider"])
    for arrays, answers in report["cases"]:
        for name, a, b in zip(outputs, session.run(None, dict(zip(inputs, arrays))), answers):
            if a.shape != b.shape or not np.abs(a - b).max() <= 1e-5 * np.abs(b).max():
                raise Wrong("The model does not compute what the module computes in evaluation mode.", call=f"{call}, then {name} for {len(arrays[0])} rows", got=show(a), expected=show(b))


NO_FREE_BATCH = {
    "a loop over the rows": ("rows", 4, ["x"], ["y"], None, "The capture fixed the batch at the sample's."),
    "reshape(4, -1)": ("merge", 4, ["x"], ["y"], None, "Axis 0 of the output is not the batch."),
}
NOT_AS_ASKED = {
    "opset 17": ("classifier", 4, ["x"], ["y"], 17, "Opset 17 was asked for, and PyTorch 2.13 gives 18 for this module."),
    "a name too many": ("linear", 4, ["x"], ["y", "z"], None, "Two outputs were named, and the model has one."),
}


@torch_here
@pytest.mark.parametrize("case", NO_FREE_BATCH)
def test_torch_no_free_batch(submission, case):
    """With PyTorch: a module whose batch cannot be free is refused with ValueError, and stays in its mode"""
    check_refused(submission, case, *NO_FREE_BATCH[case])


@torch_here
@pytest.mark.parametrize("case", NOT_AS_ASKED)
def test_torch_not_as_asked(submission, case):
    """With PyTorch: a model with another opset or other names than asked for is refused with ValueError"""
    check_refused(submission, case, *NOT_AS_ASKED[case])


def check_refused(submission, case, kind, batch, inputs, outputs, opset, mistake):
    call = f"export(<{case}>, <{batch} rows>, {inputs}, {outputs}{'' if opset is None else f', opset={opset}'})"
    report = submission.drive("export", kind, batch, inputs, outputs, opset, ())
    if not report["error"]:
        made = onnx.load_model_from_string(report["model"]) if report["model"] else None
        if opset and made and any(o.domain == "" and o.version == opset for o in made.opset_import):
            return                                  # another release of PyTorch, which can do it
        axes = made and [f"{v.name} {[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]}" for v in (*made.graph.input, *made.graph.output)]
        raise Wrong(f"A model came out that is not what was asked for. {mistake}", call=call,
                    got=f"{axes}, opset {made and made.opset_import[0].version}", expected="ValueError")
    if "ValueError" not in report["bases"]:
        raise Wrong("The wrong kind of error.", call=call, got=report["error"], expected="ValueError")
    if report["modes"]:
        raise Wrong("After an error the module is not in the mode in which it was.", call=call, got=show(report["modes"]))


@torch_here
def test_torch_both(submission):
    """With PyTorch: your comparison finds what your export cannot see, a branch on the batch size"""
    report = submission.drive("export_and_compare", "size", [4, 3, 2, 1], [0, 1])
    want = [("difference", b, s, "y") for b in (2, 1) for s in (0, 1)]
    if [tuple(f) for f in report["findings"]] != want:
        raise Wrong("A module with a branch on the batch size was exported with four rows. It is wrong below three.", call="parity(module, export(module, <4 rows>, …), …, [4, 3, 2, 1], [0, 1])",
                    got=show(report["findings"], 300), expected=show(want, 300))
