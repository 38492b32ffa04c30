"""Runs in the submission's process before it: counts sessions and runs, and opens sessions of the grader's own.

Patches the classes in place, so every way to reach `InferenceSession` is counted.
"""
import contextlib
import io
import warnings

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_inference_collection
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession, Session

if "CUDAExecutionProvider" in ort.get_available_providers():
    ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where they were installed that way

counted = {"sessions": 0, "runs": 0}
asked = []  # of each session: the names and the options of its providers, as ONNX Runtime read them


def watch(owner, method, key):
    original = getattr(owner, method)

    def counting(self, *args, **kwargs):
        counted[key] += 1
        return original(self, *args, **kwargs)

    counting.__name__, counting.__doc__ = original.__name__, original.__doc__
    setattr(owner, method, counting)


watch(InferenceSession, "__init__", "sessions")
normalize = onnxruntime_inference_collection.check_and_normalize_provider_args


def normalize_and_remember(*args, **kwargs):
    names, options = normalize(*args, **kwargs)
    asked.append([[name, dict(given)] for name, given in zip(names, options)])
    return names, options


onnxruntime_inference_collection.check_and_normalize_provider_args = normalize_and_remember
for name in ("run", "run_async", "run_with_ort_values", "run_with_iobinding"):
    watch(Session, name, "runs")


def open_plain(path, providers=("CPUExecutionProvider",)):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return ort.InferenceSession(path, providers=list(providers))


def reset():
    counted.update(sessions=0, runs=0)
    asked.clear()


def handed_on():
    """Of each session opened since `reset`: the pairs of a provider's name and its options."""
    return list(asked)


def counts():
    return dict(counted)


def available():
    return list(ort.get_available_providers())


def known():
    return list(ort.get_all_providers())


def registered(session):
    """Providers of a session, or None if the object is no session."""
    return list(session.get_providers()) if isinstance(session, ort.InferenceSession) else None


def dtype_name(thing):
    """The name of what NumPy takes for a dtype, or None."""
    try:
        return np.dtype(thing).name if thing is not None else None
    except TypeError:
        return None


def fill_again(session, one, two):
    """Two predictions from one array that is filled twice: whether the array stayed as it was, the answers, the first one at the end."""
    import sys

    predict = sys.modules["submission"].predict
    images = one.copy()
    first = predict(session, images)
    unchanged = bool((images == one).all())
    kept = tuple(np.array(a) for a in first)
    images[...] = two
    second = tuple(np.array(a) for a in predict(session, images))
    return unchanged, kept, second, tuple(np.array(a) for a in first)
