"""Rows as Python lists, counters, lists for tolerances, a tuple for few."""
from collections import Counter
from math import isfinite
import numpy as np


class Unknown(ValueError):
    pass


def tolerance(dtype):
    match dtype:
        case "float32":
            return [0, 2e-6]
        case "float16":
            return [0.0, np.float32(2e-3)]
        case "bfloat16":
            return [0.02, 0.02]
        case "int8":
            return None
    raise Unknown("float32, float16, bfloat16, int8: not " + repr(dtype))


def accuracy_gate(reference, candidate, labels, dtype, max_drop=0.01, max_class_drop=0.05, min_samples=20, min_reference=0.8):
    tol = tolerance(dtype)
    if reference.dtype.kind != "f" or candidate.dtype.kind != "f":
        raise TypeError(f"{reference.dtype} {candidate.dtype}")
    if labels.dtype.kind not in "iu":
        raise TypeError(str(labels.dtype))
    if reference.ndim != 2:
        raise ValueError(reference.shape)
    if reference.shape != candidate.shape:
        raise ValueError(candidate.shape)
    if labels.shape != reference.shape[:1]:
        raise ValueError(labels.shape)
    if not len(labels):
        raise ValueError("empty")
    names = range(reference.shape[1])
    labels = [int(v) for v in labels]
    if any(v not in names for v in labels):
        raise ValueError("label")
    if not np.isfinite(reference).all():
        raise ValueError("reference")

    def first(row):
        return max(names, key=lambda k: (row[k], -k))

    ref = [first(row) for row in reference.tolist()]
    base = Counter(l for l, a in zip(labels, ref) if l == a)
    if base.total() / len(labels) < min_reference:
        raise ValueError("reference is wrong")
    mine, bad, out = Counter(), 0, 0
    for l, row, want in zip(labels, candidate.tolist(), reference.tolist()):
        if all(map(isfinite, row)):
            mine[l] += first(row) == l
            if tol:
                out += any(abs(a - b) > float(tol[1]) + tol[0] * abs(b) for a, b in zip(row, want))
        else:
            bad += 1
    seen = Counter(labels)
    drop = (base.total() - mine.total()) / len(labels)
    per = {k: (base[k] - mine[k]) / seen[k] for k in sorted(seen)}
    few = tuple(k for k in names if seen[k] < min_samples)
    why = []
    if few:
        why += ["too_few"]
    if any(v - max_class_drop > 1e-9 for k, v in per.items() if k not in few):
        why += ["class"]
    if drop - max_drop > 1e-9:
        why += ["accuracy"]
    if out:
        why += ["tolerance"]
    if bad:
        why += ["not_finite"]
    return dict(passed=why == [], reasons=why, not_finite=bad, outside=out, drop=drop, class_drop=per, few=few)
