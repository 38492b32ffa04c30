"""Grader of 05_measuring/ex03_accuracy_gate: the digits model rounded in NumPy, and tables of answers made from seeds."""
import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from course import ROOT
from course.grading import Raised, Wrong, write_call

EXERCISE = "05_measuring/ex03_accuracy_gate"
PROBE = "probe_ex03.py"
LIMITS = {"call_seconds": 20.0, "memory_gib": 2.0}
REASONS = {"not_finite", "tolerance", "accuracy", "class", "too_few"}
KEYS = {"passed", "reasons", "not_finite", "outside", "drop", "class_drop", "few"}
DIGITS = ROOT / "models" / "digits_mlp"
WEIGHTS = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in onnx.load(DIGITS / "digits_mlp.onnx").graph.initializer}
with np.load(DIGITS / "heldout.npz") as data:
    PIXELS, LABELS = data["images"].reshape(-1, 784) / 255, data["labels"]
BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
COARSER = {"float32": (11, "FP16 or TF32"), "float16": (8, "BF16"), "bfloat16": (4, "FP8")}


# ---- the network ----------------------------------------------------------------------------------------------------

def rounded(x, bits):
    significand, exponent = np.frexp(x)
    return np.ldexp(np.round(significand * 2.0**bits), exponent - bits)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def network(pixels=PIXELS, bits=53, only_weights=False, bias=0.0, weights=WEIGHTS):
    step = (lambda x: x) if only_weights or bits == 53 else (lambda x: rounded(x, bits))
    w = {name: rounded(value, bits) for name, value in weights.items()} if bits < 53 else weights      # a float64 has 53
    hidden = step(np.maximum(step(pixels) @ w["hidden.weight"].T + w["hidden.bias"], 0))
    return step(softmax(step(hidden @ w["logits.weight"].T + w["logits.bias"] + bias)))


def in_float32(pixels, parts):
    """The network in float32, each sum split into parts."""
    def product(a, w, b):                              # additions in a fixed order, the same on every machine
        total = [np.zeros((len(a), len(w)), np.float32) for _ in range(parts)]
        for k in range(w.shape[1]):
            total[k * parts // w.shape[1]] += a[:, k:k + 1] * w[:, k]
        return sum(total[1:], total[0]) + b
    w = {name: value.astype(np.float32) for name, value in WEIGHTS.items()}
    hidden = np.maximum(product(pixels.astype(np.float32), w["hidden.weight"], w["hidden.bias"]), np.float32(0))
    return softmax(product(hidden, w["logits.weight"], w["logits.bias"]).astype(np.float64)).astype(np.float32)


def noisy(seed):
    return PIXELS + 0.05 * np.random.default_rng(seed).normal(size=PIXELS.shape)


def int8_weights():
    return {name: np.round(w / s) * s if w.ndim == 2 else w for name, w in WEIGHTS.items()
            for s in [np.abs(w).max(axis=-1, keepdims=True) / 127]}


REFERENCE = network()


# ---- tables of answers: outputs whose right and wrong rows are chosen -----------------------------------------------

def outputs(answers, classes, seed):
    """Rows of probabilities whose highest value is at `answers`, by a clear margin."""
    rows = np.random.default_rng(seed).random((len(answers), classes)) * 0.1
    rows[np.arange(len(answers)), answers] += 1.0
    return rows / rows.sum(axis=1, keepdims=True)


def table(counts, reference_wrong, candidate_wrong, seed):
    """(reference, candidate, labels): for class c counts[c] rows, of which so many are answered wrongly."""
    labels = np.repeat(np.arange(len(counts)), counts)
    order, pair = np.random.default_rng(seed).permutation(len(labels)), []
    for wrong in (reference_wrong, candidate_wrong):
        answers = labels.copy()
        for c in range(len(counts)):
            answers[np.flatnonzero(labels == c)[:wrong[c]]] = (c + 1) % len(counts)
        pair.append(outputs(answers, len(counts), seed)[order])
    return *pair, labels[order]


# ---- the oracle: plain loops over rows ------------------------------------------------------------------------------

def oracle(reference, candidate, labels, limits, max_drop=0.01, max_class_drop=0.05, min_samples=20, min_reference=0.8):
    n, classes = reference.shape
    seen, hits = [0] * classes, {"reference": [0] * classes, "candidate": [0] * classes}
    bad, least, most = 0, 0, 0
    for r, c, label in zip(reference.astype(np.float64).tolist(), candidate.astype(np.float64).tolist(), labels.tolist()):
        seen[label] += 1
        hits["reference"][label] += r.index(max(r)) == label
        if not all(math.isfinite(v) for v in c):
            bad += 1
            continue
        hits["candidate"][label] += c.index(max(c)) == label
        if limits is not None:
            over = max(abs(a - b) - limits[1] - limits[0] * abs(b) for a, b in zip(c, r))
            least, most = least + (over > 1e-9), most + (over > -1e-9)
    lost = [a - b for a, b in zip(hits["reference"], hits["candidate"])]
    few = [c for c in range(classes) if seen[c] < min_samples]
    drop, by_class = sum(lost) / n, {c: lost[c] / seen[c] for c in range(classes) if seen[c]}
    reasons = {name for name, fails in (
        ("not_finite", bad), ("accuracy", drop > max_drop + 1e-9), ("too_few", few),
        ("class", any(by_class[c] > max_class_drop + 1e-9 for c in by_class if c not in few))) if fails}
    return {"not_finite": bad, "outside": (least, most), "drop": drop, "class_drop": by_class, "few": few, "reasons": reasons}


def chosen(submission, dtype):
    """The submission's own tolerance, or `Wrong`. It is asked once for each dtype."""
    known = submission.__dict__.setdefault("tolerances", {})
    if dtype not in known:
        known[dtype] = chosen_now(submission, dtype)
    return known[dtype]


def chosen_now(submission, dtype):
    got = submission.call("tolerance", dtype)
    call = f"tolerance({dtype!r})"
    if dtype == "int8":
        if got is not None:
            raise Wrong("INT8 has no elementwise tolerance: its step is set by the scales.", call, got, "None")
        return None
    numbers = isinstance(got, (tuple, list)) and len(got) == 2 and all(
        isinstance(v, (int, float, np.floating, np.integer)) and not isinstance(v, bool) for v in got)
    if not numbers or not all(math.isfinite(v) and v >= 0 for v in got):
        raise Wrong("tolerance returns two finite numbers, rtol and atol, neither below 0.", call, got, "(rtol, atol)")
    return float(got[0]), float(got[1])


def ask(submission, reference, candidate, labels, dtype, what, **limits):
    """The gate's answer, its form checked, compared with the oracle; what: the candidate in words."""
    mine = chosen(submission, dtype)
    call = f"{write_call('accuracy_gate', (reference, candidate, labels, dtype), limits)}  ({what})"
    try:
        got = submission.attempt("accuracy_gate", reference, candidate, labels, dtype, **limits)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("accuracy_gate is not written yet.", call, error.text) from None
        at = f" (your {error.where})" if error.where else ""
        raise Wrong(f"accuracy_gate raised {error.kind}{at} for arrays that the contract allows.", call, error.text) from None
    if not isinstance(got, dict) or set(got) != KEYS:
        raise Wrong("accuracy_gate returns a dict with the seven keys of the contract.", call,
                    sorted(map(str, got)) if isinstance(got, dict) else got, sorted(KEYS))
    reasons = got["reasons"]
    if not isinstance(reasons, (list, tuple)) or len(set(map(str, reasons))) != len(reasons) or not set(map(str, reasons)) <= REASONS:
        raise Wrong("'reasons' is a list of the contract's five words, each at most once.", call, reasons, sorted(REASONS))
    if not isinstance(got["passed"], (bool, np.bool_)):
        raise Wrong("'passed' is not a bool.", call, got["passed"], "True or False")
    want, reasons = oracle(reference, candidate, labels, mine, **limits), set(map(str, reasons))
    integers(got, call)
    if got["not_finite"] != want["not_finite"]:
        raise Wrong("The rows with NaN or infinity are miscounted.", call, f"not_finite {got['not_finite']}", f"{want['not_finite']}")
    least, most = want["outside"]
    if not least <= got["outside"] <= most:
        raise Wrong(why_outside(reference, candidate, mine, got["outside"]), call, f"outside {got['outside']}",
                    f"{least} rows, with your tolerance {mine}")
    if not close(got["drop"], want["drop"]):
        raise Wrong(why_drop(reference, candidate, labels, got["drop"], want), call, f"drop {got['drop']}", f"{want['drop']:.6f}")
    check_classes(got, want, call)
    whole = isinstance(got["few"], (list, tuple)) and all(isinstance(c, (int, np.integer)) and not isinstance(c, bool) for c in got["few"])
    if not whole:
        raise Wrong("'few' is a list of int: the numbers of the classes, not an array and not a list of arrays.", call, got["few"], want["few"])
    if list(got["few"]) != want["few"]:
        raise Wrong("'few' is wrong: the classes of 0 to classes-1 with fewer rows than min_samples, absent ones too, sorted.", call,
                    got["few"], want["few"])
    sure, maybe = want["reasons"] | ({"tolerance"} if least else set()), want["reasons"] | ({"tolerance"} if most else set())
    if not sure <= reasons <= maybe:
        missing, extra = sure - reasons, reasons - maybe
        raise Wrong(why_reasons(missing, extra, want), call, f"reasons {sorted(reasons)}", f"{sorted(sure)}")
    if bool(got["passed"]) != (not reasons):
        raise Wrong("'passed' has to be True exactly when there are no reasons.", call,
                    f"passed {got['passed']}, reasons {sorted(reasons)}", f"passed {not reasons}")
    return reasons


def integers(got, call):
    for key in ("not_finite", "outside"):
        if not isinstance(got[key], (int, np.integer)) or isinstance(got[key], bool):
            raise Wrong(f"{key!r} is a count of rows.", call, got[key], "an int")
    if not isinstance(got["drop"], (int, float, np.floating, np.integer)) or isinstance(got["drop"], bool):
        raise Wrong("'drop' is not a number.", call, got["drop"], "a float")


def close(a, b):
    return math.isfinite(a) and abs(a - b) <= 1e-6


def check_classes(got, want, call):
    found = got["class_drop"]
    numbers = isinstance(found, dict) and all(
        isinstance(k, (int, np.integer)) and not isinstance(k, bool) and isinstance(v, (int, float, np.floating, np.integer))
        for k, v in found.items())
    if not numbers or {int(k) for k in found} != set(want["class_drop"]):
        raise Wrong("'class_drop' has one number for each class that occurs in labels.", call, found, sorted(want["class_drop"]))
    for c, right in want["class_drop"].items():
        if not close(found[c], right):
            mistake = f"The drop of class {c} is wrong: divide by the rows whose label is {c}."
            raise Wrong(mistake, call, f"class_drop[{c}] {found[c]}", f"{right:.6f}")


def why_outside(reference, candidate, limits, got):
    if limits is None:
        return "INT8 has no elementwise tolerance: outside is 0."
    rtol, atol = limits
    a, b = candidate.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(a).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        unsigned = (np.abs(a - b) > atol + rtol * b)[finite].any(axis=1).sum()
        narrow = [(np.abs(x - y).astype(np.float64) > atol + rtol * np.abs(b))[finite].any(axis=1).sum() for x, y in (
            (candidate, reference.astype(candidate.dtype)), (candidate.astype(reference.dtype), reference),
            (candidate.astype(np.float32), reference.astype(np.float32)))]
        swapped = (np.abs(a - b) > atol + rtol * np.abs(a))[finite].any(axis=1).sum()
        elements = (np.abs(a - b) > atol + rtol * np.abs(b))[finite].sum()
        every = (~(np.abs(a - b) <= atol + rtol * np.abs(b))).any(axis=1).sum()
        signed = (a - b > atol + rtol * np.abs(b))[finite].any(axis=1).sum()
        mean = ((np.abs(a - b) - rtol * np.abs(b)).mean(axis=1) > atol)[finite].sum()
    guesses = ((every, "Rows with NaN or infinity count under not_finite, and not under outside."),
               (elements, "Elements are counted, and outside is a number of rows."),
               (signed, "The sign of the difference decides: take the absolute value."),
               (mean, "The mean error of a row hides its largest one."),
               (swapped, "The relative part is taken of the candidate: it is of the reference."),
               (unsigned, "The relative part is taken of the reference with its sign: it is of |reference|."),
               *((value, "The difference is rounded: convert both arrays to float64 before you subtract.") for value in narrow))
    return next((text for value, text in guesses if value == got), "The rows outside the tolerance are miscounted.")


def why_drop(reference, candidate, labels, got, want):
    with np.errstate(invalid="ignore"):
        right, naive = reference.argmax(1) == labels, candidate.argmax(1) == labels
    if want["drop"] > 0 and close(got, -want["drop"]):
        return "The sign of drop is turned: reference minus candidate."
    if close(got, right.mean() - naive.mean()) or close(got, right.mean() - (np.nan_to_num(candidate).argmax(1) == labels).mean()):
        return "A row with NaN or infinity has no answer and counts as wrong; argmax gives NaN the first place."
    if want["drop"] < 0 and (close(got, -want["drop"]) or got == 0):
        return "A candidate that is better than its reference has a drop below 0."
    if close(got, (reference.argmax(1) != candidate.argmax(1)).mean()):
        return "These are changed answers: drop is about right answers, reference minus candidate."
    finite = np.isfinite(candidate).all(axis=1)
    if finite.any() and close(got, right[finite].mean() - naive[finite].mean()):
        return "Rows with NaN or infinity are left out of the accuracy: they count as wrong."
    if close(got, 100 * want["drop"]):
        return "drop is a fraction: one point is 0.01."
    return "The drop of the accuracy is wrong."


def why_reasons(missing, extra, want):
    if "class" in missing:
        return "A class lost more than max_class_drop and the gate does not say so: the accuracy over everything hides it."
    if "class" in extra:
        return "'class' is given for a class within max_class_drop, or for one with too few rows to judge."
    if "accuracy" in missing or "accuracy" in extra:
        return "'accuracy' belongs there exactly when drop is more than max_drop; equal to the limit passes."
    if "tolerance" in missing or "tolerance" in extra:
        return "'tolerance' belongs there exactly when a row is outside."
    if "too_few" in missing:
        return "A class that cannot be judged has not passed: 'too_few' is missing."
    return "The reasons are not those of the contract."


# ---- tolerance ------------------------------------------------------------------------------------------------------

def test_tolerance_has_four_types(submission):
    """tolerance gives two numbers for each float type, None for int8, and refuses other types"""
    for dtype in (*BITS, "int8"):
        chosen(submission, dtype)
    for dtype in ("float64", "fp16", "INT8", ""):
        error = expect(submission, "tolerance", (dtype,), "ValueError", f"tolerance({dtype!r}) has to be refused")
        if not all(name in error.text for name in (*BITS, "int8")):
            raise Wrong("The error for an unknown dtype does not name the four that are known.", error.call, error.text,
                        "a ValueError that names float32, float16, bfloat16 and int8")


def beyond(candidate, reference, limits):
    return np.abs(candidate.astype(np.float64) - reference) - limits[1] - limits[0] * np.abs(reference)


@pytest.mark.parametrize("dtype", list(BITS))
def test_tolerance_accepts_honest_rounding(submission, dtype):
    """tolerance lets the rounding of its own type pass"""
    limits = chosen(submission, dtype)
    for seed in (None, 1, 2, 3):
        pixels = PIXELS if seed is None else noisy(seed)
        reference = network(pixels)
        if dtype == "float32":
            candidates = [(f"float32, sums in {parts} parts", in_float32(pixels, parts)) for parts in ({1: (1,), 2: (2,), 3: (7,)}.get(seed, (1, 2, 7)))]
        else:
            candidates = [(f"{BITS[dtype]} bits, {'weights only' if only else 'everything rounded'}", network(pixels, BITS[dtype], only))
                          for only in (True, False)]
        for what, candidate in candidates:
            over = beyond(candidate, reference, limits)
            if over.max() > 1e-9:
                row, column = np.unravel_index(over.argmax(), over.shape)
                raise Wrong(f"Too tight: an honest {dtype} network is outside. A whole network rounds more than one operation, and a "
                            "probability near 0 needs atol.", f"tolerance({dtype!r})",
                            f"{limits}: error {abs(candidate[row, column] - reference[row, column]):.1e} at a probability of "
                            f"{reference[row, column]:.1e}", f"inside for {what}{'' if seed is None else ', noisy pixels'}")


@pytest.mark.parametrize("dtype", list(BITS))
def test_tolerance_rejects_the_next_coarser_type(submission, dtype):
    """tolerance notices a network that computed in a coarser type"""
    limits, (bits, name) = chosen(submission, dtype), COARSER[dtype]
    candidate = network(bits=bits)
    if beyond(candidate, REFERENCE, limits).max() <= 0:
        raise Wrong(f"Too loose: a network that computed in {name} ({bits} bits) passes for {dtype}.", f"tolerance({dtype!r})",
                    f"{limits}, and the largest error is {np.abs(candidate - REFERENCE).max():.1e}", "at least one element outside")


# ---- the digits model -----------------------------------------------------------------------------------------------

def test_gate_passes_honest_candidates(submission):
    """accuracy_gate passes the digits model in each type"""
    for dtype, what, candidate in (
            ("float32", "float32, sums in another order", in_float32(PIXELS, 7)), ("float16", "FP16 rounding", network(bits=11)),
            ("bfloat16", "BF16 rounding", network(bits=8)), ("int8", "INT8 weights", network(weights=int8_weights()))):
        for cast in (np.float64, np.float32):
            reasons = ask(submission, REFERENCE.astype(cast), candidate.astype(np.float32), LABELS, dtype, what)
            if reasons and not (dtype == "float32" and cast is np.float32):
                raise Wrong("An honest candidate is stopped.", f"accuracy_gate of {what}", sorted(reasons), "no reasons")


def test_gate_catches_one_damaged_digit(submission):
    """accuracy_gate catches a model that is wrong for one digit only"""
    caught = 0
    for digit in range(10):
        for shift in (-1.5, -2, -2.5, -3):
            candidate = network(bias=shift * np.eye(10)[digit])
            want = oracle(REFERENCE, candidate, LABELS, None)["reasons"]
            if want == {"class"}:
                caught += 1
                ask(submission, REFERENCE, candidate, LABELS, "int8", f"digit {digit} damaged, shift {shift} of its logit")
    assert caught >= 4, "the grader's damages are not those of one class"


def test_gate_catches_broken_models(submission):
    """accuracy_gate catches zeros, constant rows, exchanged rows and columns, and a coarser type"""
    rng = np.random.default_rng(4)
    for what, candidate in (("all zeros", np.zeros_like(REFERENCE)), ("the same row everywhere", np.repeat(REFERENCE[:1], 360, axis=0)),
                            ("columns exchanged", REFERENCE[:, rng.permutation(10)]), ("rows exchanged", REFERENCE[rng.permutation(360)]),
                            ("columns 3 and 8 exchanged", REFERENCE[:, [0, 1, 2, 8, 4, 5, 6, 7, 3, 9]]), ("negated", -REFERENCE),
                            ("FP16 rounding", network(bits=11)), ("FP8 rounding", network(bits=4))):
        for dtype in ("float32", "int8"):
            ask(submission, REFERENCE, candidate, LABELS, dtype, what)


# ---- accuracy and classes, from tables ------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", [21, 22, 23, 24])
def test_gate_other_shapes(submission, seed):
    """accuracy_gate on other numbers of classes and rows, with seeded right and wrong answers"""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 15))
    counts = rng.integers(0, 60, classes)
    counts[0] = 60
    reference, candidate, labels = table(counts, rng.binomial(counts, 0.05), rng.binomial(counts, rng.choice([0.05, 0.1, 0.3])), seed)
    kind = rng.choice(["int8", "uint8", "int32", "int64", "uint64"])
    ask(submission, reference, candidate, labels.astype(kind), "int8", f"{classes} classes, labels {kind}")
    ask(submission, reference, candidate, labels, "float16", f"{classes} classes")


def test_gate_label_types(submission):
    """accuracy_gate takes labels of any integer type"""
    counts = [30] * 15                                                      # 15 classes squared are more than an int8 or a uint8 holds
    reference, candidate, labels = table(counts, [1] * 15, [2] * 14 + [9], 26)
    for kind in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        ask(submission, reference, candidate, labels.astype(kind), "int8", f"15 classes, labels {kind}")


def test_gate_tells_spread_from_concentrated(submission):
    """accuracy_gate tells a loss over all classes from a loss in one"""
    ten = [40] * 10
    for what, before, after in (
            ("one row lost in each of five classes", [0] * 10, [1] * 5 + [0] * 5),
            ("three rows lost in one class", [0] * 10, [0] * 6 + [3] + [0] * 3),
            ("four rows lost in one class, four gained in others", [1, 1, 1, 1] + [0] * 6, [0] * 9 + [4]),
            ("as many lost as gained in each class", [2] * 10, [2] * 10),
            ("better everywhere", [3] * 10, [1] * 10), ("better by far in one class", [4] + [0] * 9, [0] * 10),
            ("better by far in one class, and one row lost in another", [6] + [0] * 9, [0] * 9 + [1])):
        ask(submission, *table(ten, before, after, 31), "int8", what)


def test_gate_limits(submission):
    """accuracy_gate follows its limits, and a drop equal to a limit passes"""
    hundred = [100] * 10
    for what, lost, limits in (
            ("3 of 100 rows lost in a class, limit 0.03", [3] + [0] * 9, {"max_class_drop": 0.03}),
            ("4 of 100 rows lost in a class, limit 0.03", [4] + [0] * 9, {"max_class_drop": 0.03}),
            ("30 of 1000 rows lost, limit 0.03", [3] * 10, {"max_drop": 0.03}), ("31 of 1000 rows lost, limit 0.03", [4] + [3] * 9, {"max_drop": 0.03}),
            ("one row lost, no drop allowed", [1] + [0] * 9, {"max_drop": 0.0, "max_class_drop": 0.0}),
            ("half lost, everything allowed", [50] * 10, {"max_drop": 1.0, "max_class_drop": 1.0, "min_samples": 1}),
            ("100 rows, 101 asked for", [0] * 10, {"min_samples": 101}), ("100 rows, 100 asked for", [0] * 10, {"min_samples": 100})):
        ask(submission, *table(hundred, [0] * 10, lost, 41), "int8", what, **limits)
        ask(submission, *table(hundred, [7] * 10, [7 + k for k in lost], 42), "int8", what + ", reference right for 0.93", **limits)


def test_gate_too_few(submission):
    """accuracy_gate does not pass a class that it cannot judge"""
    for what, counts, lost in (("class 2 is absent", [40, 40, 0, 40], [0] * 4), ("the last class is absent", [40, 40, 40, 0], [0] * 4),
                               ("class 1 has 19 rows", [40, 19, 40], [0] * 3), ("class 1 has 20 rows", [40, 20, 40], [0] * 3),
                               ("class 1 has 10 rows, all lost", [300, 10, 300], [0, 10, 0]),
                               ("class 1 has 3 rows, one lost", [400, 3], [0, 1]), ("one row in all", [1, 0], [0, 0])):
        ask(submission, *table(counts, [0] * len(counts), lost, 51), "int8", what)


# ---- what is not a number -------------------------------------------------------------------------------------------

def test_gate_not_finite(submission):
    """accuracy_gate counts NaN and infinity as their own reason, and as no answer"""
    reference, candidate, labels = table([40] * 4, [0] * 4, [0] * 4, 61)
    rows = {c: int(np.flatnonzero(labels == c)[0]) for c in range(4)}
    for what, places in (("NaN at the right class of one row", [(rows[2], 2, np.nan)]), ("NaN at a wrong class of one row", [(rows[2], 0, np.nan)]),
                         ("infinity at the right class", [(rows[1], 1, np.inf)]), ("minus infinity at a wrong class", [(rows[1], 3, -np.inf)]),
                         ("rows of NaN for class 0", [(r, c, np.nan) for r in np.flatnonzero(labels == 0)[:5] for c in range(4)]),
                         ("two in one row, one in another", [(rows[0], 1, np.nan), (rows[0], 2, np.inf), (rows[3], 0, np.nan)]),
                         ("NaN everywhere", [(r, c, np.nan) for r in range(160) for c in range(4)])):
        broken = candidate.copy()
        for row, column, value in places:
            broken[row, column] = value
        for dtype in ("float32", "int8"):
            ask(submission, reference, broken, labels, dtype, what)


def test_gate_outside(submission):
    """accuracy_gate counts rows outside the tolerance, with the absolute difference and of the reference"""
    reference, _, labels = table([50] * 4, [0] * 4, [0] * 4, 71)
    reference *= 1000                                                      # not probabilities: rtol has to count
    for dtype in BITS:
        rtol, atol = chosen(submission, dtype)
        step = atol + rtol * np.abs(reference)
        for what, factor in (("all just inside", 1 - rtol / 2), ("all just outside", 1 + rtol / 2), ("all inside", 0.98),
                             ("all outside", 1.02), ("all far outside", 5.0)):
            for sign in (1, -1):
                ask(submission, reference, reference + sign * factor * step, labels, dtype, f"{what}, sign {sign}")
        some = reference.copy()
        some[::7, 1] += 3 * step[::7, 1]
        some[::5, 2] -= 3 * step[::5, 2]
        ask(submission, reference, some, labels, dtype, "single elements outside")
        logits = reference - 2000                                          # negative: the relative part is of the absolute value
        for what, factor in (("all inside", 0.98), ("all outside", 1.02)):
            step = factor * (atol + rtol * np.abs(logits))
            ask(submission, logits, logits - step, labels, dtype, f"{what}, outputs below 0")
        coarse = (reference / 1000).astype(np.float16)
        exact = coarse.astype(np.float64)
        for what, factor in (("all inside", 0.98), ("all outside", 1.02)):
            ask(submission, coarse, exact + factor * (atol + rtol * exact), labels, dtype, f"{what}, a float16 reference")


def test_gate_array_types(submission):
    """accuracy_gate takes each float type, big values, ties, and any layout in memory"""
    reference, candidate, labels = table([40] * 5, [1] * 5, [1] * 5, 81)
    for cast in (np.float16, np.float32, np.float64):
        ask(submission, reference.astype(cast), candidate.astype(np.float16), labels, "float16", f"float16 outputs, reference {cast.__name__}")
    wide = reference * 1000
    ask(submission, wide, wide.astype(np.float16), labels, "float32", "float16 outputs of a float64 reference")
    large = np.round(reference * 60_000).astype(np.float16)
    ask(submission, large, -large, labels, "bfloat16", "float16 outputs near the largest float16, negated")
    ask(submission, np.asfortranarray(reference), candidate, labels, "int8", "columns stored one after the other")
    tied = reference.copy()
    tied[:, 1] = tied.max(axis=1)
    ask(submission, reference, tied, labels, "int8", "class 1 tied with the best in each row")
    last = np.argmax(reference, axis=1) == 4
    tied = reference.copy()
    tied[last, 3] = tied[last, 4]
    ask(submission, tied, reference, labels, "int8", "class 3 tied with class 4 in the reference", min_reference=0.5)


# ---- what has to be refused -----------------------------------------------------------------------------------------

def expect(submission, name, args, kind, mistake, **kwargs):
    try:
        got = submission.attempt(name, *args, **kwargs)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong(f"{name} is not written yet.", error.call, error.text) from None
        if kind not in error.bases:
            raise Wrong(f"{mistake}. It raised {error.kind}, which is no {kind}.", error.call, error.text, kind) from None
        return error
    raise Wrong(f"{mistake}, and it returned an answer.", write_call(name, args, kwargs), got, kind)


def refuse(submission, args, kind, what, words=(), **kwargs):
    error = expect(submission, "accuracy_gate", args, kind, f"{what} has to be refused", **kwargs)
    if not all(word in error.text.replace(" ", "") for word in words):
        raise Wrong(f"The error for {what} does not name what is wrong.", error.call, error.text, " and ".join(words))


def test_gate_refuses_shapes(submission):
    """accuracy_gate refuses arrays that do not fit together, also where NumPy would broadcast"""
    r = REFERENCE
    for what, args, word in (
            ("a candidate of one row", (r, r[:1], LABELS), "(1,10)"), ("a candidate of one column", (r, r[:, :1], LABELS), "(360,1)"),
            ("a transposed candidate", (r, r.T, LABELS), "(10,360)"), ("a candidate of fewer rows", (r, r[:359], LABELS), "(359,10)"),
            ("a candidate with a third dimension", (r, r[None], LABELS), "(1,360,10)"), ("a candidate with a row only", (r, r[0], LABELS), "(10,)"),
            ("a reference of one dimension", (r[:, 0], r[:, 0], LABELS), "(360,)"),
            ("a reference of three dimensions", (r[:, :, None], r[:, :, None], LABELS), "(360,10,1)"),
            ("labels of fewer rows", (r, r, LABELS[:-1]), "(359,)"), ("labels in a column", (r, r, LABELS[:, None]), "(360,1)"),
            ("one label for all", (r, r, LABELS[:1]), "(1,)")):
        refuse(submission, (*args, "float32"), "ValueError", what, (word,))
    refuse(submission, (r[:0], r[:0], LABELS[:0], "float32"), "ValueError", "an empty set")


def test_gate_refuses_types(submission):
    """accuracy_gate refuses outputs that are no floats, labels that are no integers, and unknown types"""
    r = REFERENCE
    whole = np.round(r * 100).astype(np.int64)
    for what, args, word in (("an integer candidate", (r, whole, LABELS), "int64"), ("an integer reference", (whole, r, LABELS), "int64"),
                             ("a complex candidate", (r, r.astype(np.complex128), LABELS), "complex128"),
                             ("labels that are floats", (r, r, LABELS.astype(np.float32)), "float32"),
                             ("labels that are bool", (r, r, LABELS > 4), "bool")):
        refuse(submission, (*args, "int8"), "TypeError", what, (word,))
    refuse(submission, (r, r, LABELS, "float64"), "ValueError", "the dtype 'float64'")
    refuse(submission, (r, r, LABELS, "FP16"), "ValueError", "the dtype 'FP16'")


def test_gate_refuses_values(submission):
    """accuracy_gate refuses labels out of range, a reference that is not finite, and labels of other images"""
    r, rng = REFERENCE, np.random.default_rng(9)
    for value in (10, 255, -1, 256, 65_536, -256):
        labels = LABELS.astype(np.int64)
        labels[17] = value
        refuse(submission, (r, r, labels, "float32"), "ValueError", f"the label {value}")
    for value in (np.nan, np.inf, -np.inf):
        broken = r.copy()
        broken[3, 4] = value
        refuse(submission, (broken, r, LABELS, "float32"), "ValueError", f"a reference with {value}")
        refuse(submission, (broken, broken, LABELS, "int8"), "ValueError", f"a reference with {value}")
    for what, labels in (("permuted labels", rng.permutation(LABELS)), ("labels shifted by one row", np.roll(LABELS, 1)),
                         ("labels counted from another class", (LABELS + 1) % 10)):
        refuse(submission, (r, r, labels, "float32"), "ValueError", what)
    refuse(submission, (r, r, LABELS, "int8"), "ValueError", "a reference below min_reference", min_reference=0.99)
    ask(submission, *table([40] * 4, [20] * 4, [20] * 4, 91), "int8", "a reference right for half", min_reference=0.4)
    ask(submission, *table([40] * 4, [20] * 4, [20] * 4, 91), "int8", "a reference right for half", min_reference=0.5)
    ask(submission, *table([40] * 4, [8] * 4, [8] * 4, 92), "int8", "a reference right for 0.8, which is not below 0.8")


# ---- manners --------------------------------------------------------------------------------------------------------

def test_gate_changes_nothing(submission):
    """accuracy_gate leaves the caller's arrays as they are"""
    for dtype in (np.float64, np.float32):
        candidate = REFERENCE[::-1].astype(dtype)
        candidate[3, 2] = np.nan
        changed = submission.drive("call_and_compare", REFERENCE.astype(dtype), candidate, LABELS)
        if changed:
            raise Wrong("The caller's arrays are changed: work on copies.", "accuracy_gate(reference, candidate, labels, 'bfloat16')",
                        f"changed: {', '.join(changed)}", "unchanged arrays")


def test_gate_keeps_nothing(submission):
    """accuracy_gate answers each call by itself"""
    good, bad = network(bits=8), network(bias=-2 * np.eye(10)[8])
    tables = [(REFERENCE, good, LABELS), (REFERENCE, bad, LABELS), table([40, 40, 10], [0] * 3, [0, 4, 0], 95), (REFERENCE, good, LABELS)]
    for k in (0, 1, 2, 3, 2, 1, 0):
        ask(submission, *tables[k], "int8", f"call {k} of several, in turn")
    reference, candidate, labels = table([40] * 3, [1] * 3, [1, 1, 4], 96)
    ask(submission, reference, candidate, labels, "int8", "before anything else is asked")
    for what, arguments, limits in (("another reference", (candidate, candidate, labels, "int8"), {}), ("another type", (reference, candidate, labels, "float32"), {}),
                                    ("other labels", (reference, candidate, np.where(np.arange(120) < 3, (labels + 1) % 3, labels), "int8"), {}),
                                    ("another max_drop", (reference, candidate, labels, "int8"), {"max_drop": 0.5}),
                                    ("another max_class_drop", (reference, candidate, labels, "int8"), {"max_class_drop": 0.5}),
                                    ("another min_samples", (reference, candidate, labels, "int8"), {"min_samples": 50})):
        ask(submission, *arguments, f"{what}, after other calls", **limits)
    if not submission.drive("answers_stay", REFERENCE, good, bad[:200], LABELS):
        raise Wrong("An answer changes when another call is made: each call returns a dict and lists of its own.", "first = accuracy_gate(…), accuracy_gate(…), first")
    for first, second in ((good, bad), (bad, good)):
        for got, candidate in zip(submission.drive("fill_again", REFERENCE, first, second, LABELS), (first, second)):
            want = oracle(REFERENCE, candidate, LABELS, None)["reasons"]
            if set(got) != want:
                raise Wrong("The same array, filled again, gives an old answer: something is kept for an array that may change.",
                            "accuracy_gate(reference, x, …), x[:] = other, accuracy_gate(reference, x, …)", sorted(got), sorted(want))
