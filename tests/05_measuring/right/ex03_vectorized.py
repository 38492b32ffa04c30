"""One-hot labels, matrix products for all counts, np.isclose for the tolerance, NumPy scalars in the answer."""
import numpy as np

TYPES = ["float32", "float16", "bfloat16", "int8"]


def tolerance(dtype):
    if dtype not in TYPES:
        raise ValueError(f"dtype has to be one of {TYPES}, got {dtype}")
    return None if dtype == "int8" else [(0.0, 1e-4), (5e-3, 1.5e-3), (3e-2, 2e-2)][TYPES.index(dtype)]


def demand(condition, error, text):
    if not condition:
        raise error(text)


def accuracy_gate(reference, candidate, labels, dtype, max_drop=0.01, max_class_drop=0.05, min_samples=20, min_reference=0.8):
    limits = tolerance(dtype)
    for a in (reference, candidate):
        demand(np.issubdtype(a.dtype, np.floating), TypeError, f"{a.dtype} is not floating point")
    demand(np.issubdtype(labels.dtype, np.integer), TypeError, f"labels are {labels.dtype}")
    demand(reference.ndim == 2, ValueError, f"two dimensions, please: {reference.shape}")
    demand(candidate.shape == reference.shape, ValueError, f"{candidate.shape} is not {reference.shape}")
    demand(labels.shape == reference.shape[:1], ValueError, f"labels {labels.shape}")
    demand(labels.size, ValueError, "no rows")
    demand(np.isin(labels, np.arange(reference.shape[1])).all(), ValueError, "a label is out of range")
    demand(np.isfinite(reference).all(), ValueError, "a reference has to be finite")

    onehot = labels[:, None] == np.arange(reference.shape[1])
    ref, cand = np.asarray(reference, np.longdouble), np.asarray(candidate, np.longdouble)
    ok = np.isfinite(cand).all(1)
    hits = np.stack([onehot[np.arange(len(ref)), ref.argmax(1)], ok & onehot[np.arange(len(ref)), np.where(ok[:, None], cand, 0).argmax(1)]])
    demand(hits[0].mean() >= min_reference, ValueError, f"reference accuracy {hits[0].mean()}")
    size, (before, after) = onehot.sum(0), hits.astype(int) @ onehot
    outside = np.int64(0)
    if limits:
        outside = (~np.isclose(cand[ok], ref[ok], rtol=limits[0], atol=limits[1])).any(1).sum()
    few = np.flatnonzero(size < min_samples)
    lost = before - after
    drop = lost.sum() / np.float64(len(labels))
    present = np.flatnonzero(size)
    class_drop = {c: lost[c] / size[c] for c in present}
    reasons = np.array(["not_finite", "tolerance", "accuracy", "class", "too_few"])[[
        not ok.all(), outside > 0, drop > max_drop + 1e-9,
        (lost > size * max_class_drop + 1e-9)[size >= min_samples].any() if (size >= min_samples).any() else False, few.size > 0]]
    return {"few": few.tolist(), "class_drop": class_drop, "drop": drop, "outside": outside, "not_finite": (~ok).sum(),
            "reasons": tuple(reasons.tolist()), "passed": np.bool_(reasons.size == 0)}
