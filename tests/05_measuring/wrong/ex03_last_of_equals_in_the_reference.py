"""Takes the last of equal values of the reference for its answer.
fails: test_gate_array_types
says: better than its reference
"""
import numpy as np

TABLE = {"float32": (1e-5, 1e-5), "float16": (1e-3, 4e-3), "bfloat16": (8e-3, 3e-2), "int8": None}


def tolerance(dtype):
    """(rtol, atol) for probabilities of a network that computes in dtype; None for "int8"; ValueError for others."""
    if dtype not in TABLE:
        raise ValueError(f"unknown dtype {dtype!r}: one of {', '.join(TABLE)}")
    return TABLE[dtype]


def accuracy_gate(reference, candidate, labels, dtype, max_drop=0.01, max_class_drop=0.05, min_samples=20, min_reference=0.8):
    """Whether the candidate may take the reference's place, with reasons and evidence: a dict, see the contract."""
    limits = tolerance(dtype)
    for name, a in (("reference", reference), ("candidate", candidate)):
        if not np.issubdtype(a.dtype, np.floating):
            raise TypeError(f"{name} has dtype {a.dtype}, floating point expected")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels has dtype {labels.dtype}, integers expected")
    if reference.ndim != 2:
        raise ValueError(f"reference has shape {reference.shape}")
    if candidate.shape != reference.shape:
        raise ValueError(f"candidate has shape {candidate.shape}")
    n, classes = reference.shape
    if labels.shape != (n,):
        raise ValueError(f"labels has shape {labels.shape}")
    if n == 0:
        raise ValueError("no rows")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError("label out of range")
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    if not np.isfinite(r).all():
        raise ValueError("reference not finite")
    good = classes - 1 - r[:, ::-1].argmax(1) == labels
    if good.mean() < min_reference:
        raise ValueError("reference accuracy too low")
    finite = np.isfinite(c).all(1)
    right = finite & (c.argmax(1) == labels)
    outside = 0
    if limits is not None:
        outside = int((np.abs(c[finite] - r[finite]) > limits[1] + limits[0] * np.abs(r[finite])).any(1).sum())
    drop = (int(good.sum()) - int(right.sum())) / n
    class_drop, few, bad = {}, [], False
    for k in range(classes):
        mine = labels == k
        count = int(mine.sum())
        if count:
            class_drop[k] = (int(good[mine].sum()) - int(right[mine].sum())) / count
        if count < min_samples:
            few.append(k)
        elif class_drop.get(k, 0) > max_class_drop + 1e-9:
            bad = True
    nf = int((~finite).sum())
    reasons = [w for w, on in (("not_finite", nf), ("tolerance", outside), ("accuracy", drop > max_drop + 1e-9), ("class", bad), ("too_few", few)) if on]
    return {"passed": not reasons, "reasons": reasons, "not_finite": nf, "outside": outside, "drop": drop, "class_drop": class_drop, "few": few}
