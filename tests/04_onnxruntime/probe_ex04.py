"""Runs in the submission's process before it: counts sessions and runs, and calls its functions on models that cross as bytes."""
import contextlib
import io
import sys
import warnings

import onnx
import onnx.parser
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession, Session

if "CUDAExecutionProvider" in ort.get_available_providers():
    ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where they were installed that way

counted = {"sessions": 0, "runs": 0}


def watch(owner, method, key):
    original = getattr(owner, method)

    def counting(self, *args, **kwargs):
        counted[key] += 1
        return original(self, *args, **kwargs)

    counting.__name__, counting.__doc__ = original.__name__, original.__doc__
    setattr(owner, method, counting)


watch(InferenceSession, "__init__", "sessions")
for name in ("run", "run_async", "run_with_ort_values", "run_with_iobinding", "run_with_ortvaluevector"):
    watch(Session, name, "runs")


def available():
    return list(ort.get_available_providers())


def without_a_kernel_on(provider):
    """An operator of one float tensor that the provider has no kernel for: with the way to the CPU closed, there is no session of it."""
    for operator in ("LpNormalization", "Hardmax", "Atan", "Asinh", "Cosh"):
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) {{ y = {operator}(x) }}')
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=[provider], enable_fallback=0)
        except Exception:
            return operator
    raise RuntimeError(f"{provider} has a kernel for each operator that was tried; add one that it has none for")


def of_model(function, model, *args, **more):
    """What the submission's function makes of a model that is given as bytes, its first argument or (for problems) its second."""
    model = onnx.load_from_string(model)
    function = getattr(sys.modules["submission"], function)
    if function.__name__ == "problems":
        return function(args[0], model, *args[1:], **more)
    return function(model, *args, **more)


def open_watched(model, providers, wanted, allowed):
    """open_checked: (session or None, the error's class, text and bases, what it counted, the session's providers, whether it would retry)."""
    counted.update(sessions=0, runs=0)
    open_checked = sys.modules["submission"].open_checked
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            session, error = open_checked(model, providers, wanted, allowed), None
        except Exception as problem:
            return None, (type(problem).__name__, str(problem), [c.__name__ for c in type(problem).__mro__]), dict(counted), None, None
    is_session = isinstance(session, ort.InferenceSession)
    return session, error, dict(counted), session.get_providers() if is_session else None, getattr(session, "_enable_fallback") if is_session else None


def run_once(session, feeds):
    return list(session.run(None, feeds))


def profile_here(model, feeds, providers, runs):
    """The events of a profile that ONNX Runtime writes here, and the optimized model that it saves, as bytes."""
    import json
    import os
    options = ort.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = "saved.onnx"
    session = ort.InferenceSession(model, options, providers=providers)
    for _ in range(runs):
        session.run(None, feeds)
    path = session.end_profiling()
    with open(path) as file:
        events = json.load(file)
    with open("saved.onnx", "rb") as file:
        saved = file.read()
    os.remove(path)
    os.remove("saved.onnx")
    return events, saved
