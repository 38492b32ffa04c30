"""Rows as lists, a Counter for the classes, no NumPy after the checks."""
from collections import Counter
from math import isfinite

LIMITS = dict(float32=(0, 2e-5), float16=(0, 0.003), bfloat16=(0, 0.04), int8=None)


def tolerance(dtype):
    try:
        return LIMITS[dtype]
    except KeyError:
        raise ValueError(f"unknown dtype {dtype!r}; known: " + " ".join(LIMITS)) from None


def check(reference, candidate, labels):
    for array in (reference, candidate):
        if array.dtype.name not in ("float16", "float32", "float64"):
            raise TypeError("outputs of type " + array.dtype.name)
    if not (array := labels).dtype.name.lstrip("u").startswith("int"):
        raise TypeError("labels of type " + array.dtype.name)
    if len(reference.shape) != 2 or len(reference) == 0:
        raise ValueError(f"reference of shape {reference.shape}")
    if candidate.shape != reference.shape or labels.shape != reference.shape[:1]:
        raise ValueError(f"shapes {reference.shape}, {candidate.shape}, {labels.shape} do not belong together")
    if not set(labels.tolist()) <= set(range(reference.shape[1])):
        raise ValueError("labels out of range")


def best(row):
    return max(range(len(row)), key=lambda k: (row[k], -k))


def accuracy_gate(reference, candidate, labels, dtype, max_drop=0.01, max_class_drop=0.05, min_samples=20, min_reference=0.8):
    limits = tolerance(dtype)
    check(reference, candidate, labels)
    wanted, classes = reference.tolist(), reference.shape[1]
    if not all(isfinite(v) for row in wanted for v in row):
        raise ValueError("the reference is not finite")
    rows, before, after, broken, outside = Counter(), Counter(), Counter(), 0, 0
    for want, got, label in zip(wanted, candidate.tolist(), labels.tolist()):
        rows[label] += 1
        before[label] += best(want) == label
        if not all(map(isfinite, got)):
            broken += 1
            continue
        after[label] += best(got) == label
        if limits and any(abs(g - w) > limits[1] + limits[0] * abs(w) for g, w in zip(got, want)):
            outside += 1
    n = len(wanted)
    if sum(before.values()) < min_reference * n:
        raise ValueError("the reference is not right often enough for these labels")
    lost = (sum(before.values()) - sum(after.values())) / n
    class_drop = {c: (before[c] - after[c]) / rows[c] for c in rows}
    few = [c for c in range(classes) if rows[c] < min_samples]
    reasons = []
    if broken:
        reasons.append("not_finite")
    if outside:
        reasons.append("tolerance")
    if lost - max_drop > 1e-9:
        reasons.append("accuracy")
    if any(d - max_class_drop > 1e-9 for c, d in class_drop.items() if rows[c] >= min_samples):
        reasons.append("class")
    if few:
        reasons.append("too_few")
    return dict(passed=not reasons, reasons=reasons, not_finite=broken, outside=outside, drop=lost, class_drop=class_drop, few=few)
