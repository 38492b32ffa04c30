"""Subtracts in the type of the candidate, where small differences vanish.
fails: test_gate_array_types
says: convert both arrays to float64 before you subtract
"""
import numpy as np


def tolerance(dtype):
    """(rtol, atol) for probabilities of a network that computes in dtype; None for "int8"; ValueError for others."""
    known = {"float32": (1e-5, 1e-5), "float16": (1e-3, 2.5e-3), "bfloat16": (1e-2, 2.5e-2), "int8": None}
    if dtype not in known:
        raise ValueError(f"dtype is {dtype!r}: expected one of {', '.join(known)}")
    return known[dtype]

def accuracy_gate(reference, candidate, labels, dtype, max_drop=0.01, max_class_drop=0.05, min_samples=20, min_reference=0.8):
    """Whether the candidate may take the reference's place, with reasons and evidence: a dict, see the contract."""
    limits = tolerance(dtype)
    for name, array in (("reference", reference), ("candidate", candidate)):
        if array.dtype.kind != "f":
            raise TypeError(f"{name} is {array.dtype}: expected floating point")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels are {labels.dtype}: expected integers")
    if reference.ndim != 2:
        raise ValueError(f"reference has shape {reference.shape}: expected (n, classes)")
    if candidate.shape != reference.shape:
        raise ValueError(f"candidate has shape {candidate.shape}: expected {reference.shape}, as the reference")
    n, classes = reference.shape
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {labels.shape}: expected ({n},)")
    if n == 0:
        raise ValueError("there are no rows to compare")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}")
    if not np.isfinite(reference).all():
        raise ValueError("the reference holds NaN or infinity: there is nothing to compare with")

    truth, tested = reference.astype(candidate.dtype), candidate
    reference_right = truth.argmax(axis=1) == labels
    if reference_right.mean() < min_reference:
        raise ValueError(f"the reference is right for {reference_right.mean():.3f} of the rows, below {min_reference}: "
                         "do the labels belong to these outputs?")

    finite = np.isfinite(tested).all(axis=1)
    right = finite & (tested.argmax(axis=1) == labels)
    outside = 0
    if limits is not None:
        rtol, atol = limits
        beyond = np.abs(tested[finite] - truth[finite]) > atol + rtol * np.abs(truth[finite])
        outside = int(beyond.any(axis=1).sum())

    drop = float(reference_right.mean() - right.mean())
    class_drop, few, broken = {}, [], []
    for c in range(classes):
        mine = labels == c
        if mine.sum() < min_samples:
            few.append(c)
        if mine.any():
            class_drop[c] = float(reference_right[mine].mean() - right[mine].mean())
            if c not in few and class_drop[c] > max_class_drop + 1e-9:
                broken.append(c)

    checks = {"not_finite": not finite.all(), "tolerance": outside > 0, "accuracy": drop > max_drop + 1e-9,
              "class": bool(broken), "too_few": bool(few)}
    reasons = [name for name, fails in checks.items() if fails]
    return {"passed": not reasons, "reasons": reasons, "not_finite": int((~finite).sum()), "outside": outside,
            "drop": drop, "class_drop": class_drop, "few": few}
