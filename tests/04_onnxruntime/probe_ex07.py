"""Runs in the submission's process before it: counts sessions, notes what is bound, run, waited for and copied, in order.

Memory that ONNX Runtime hands out uncleared is filled with rubbish on a CPU, so that an answer that reads it is found out.
"""
import contextlib
import io
import sys
import warnings

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession, IOBinding, OrtValue, Session, check_and_normalize_provider_args

CUDA = "CUDAExecutionProvider"
if CUDA in ort.get_available_providers():
    ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where they were installed that way

UNWAITED = "disable_synchronize_execution_providers"
sessions, events, quiet = [], [], [0]   # of each session: its providers as ONNX Runtime reads them; quiet > 0: the probe itself is at work
bound = {}                              # of each IOBinding: {("input" or "output", name): (how, address, value)}


@contextlib.contextmanager
def unseen():
    quiet[0] += 1
    try:
        yield
    finally:
        quiet[0] -= 1


def note(*what):
    if not quiet[0]:
        events.append(what)


def watch(owner, method, before):
    original = getattr(owner, method)

    def watching(self, *args, **kwargs):
        with unseen():
            told = before(self, *args, **kwargs)
        if told:
            note(*told)
        with unseen():      # what ONNX Runtime's own Python code calls inside is not the submission's
            return original(self, *args, **kwargs)

    watching.__name__, watching.__doc__ = original.__name__, original.__doc__
    setattr(owner, method, watching)


def opened(self, path, sess_options=None, providers=None, provider_options=None, **kwargs):
    if quiet[0] == 1:
        try:
            asked = check_and_normalize_provider_args(providers, provider_options, [CUDA, "CPUExecutionProvider"])
        except Exception:       # the constructor is about to say so itself
            asked = [], []
        sessions.append([[name, dict(options)] for name, options in zip(*asked)])


watch(InferenceSession, "__init__", opened)


def address_of(value):
    try:
        return value.data_ptr()
    except Exception:
        return None


def value_bound(side):
    def before(self, name, value):
        bound.setdefault(id(self), {"keep": self})[side, name] = ("value", address_of(value), value)
        return "bind", side, name
    return before


def place_bound(side):
    def before(self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None):
        bound.setdefault(id(self), {"keep": self})[side, name] = ("address" if buffer_ptr else "nothing", buffer_ptr, None)
        return "bind", side, name
    return before


def array_bound(self, name, array):
    bound.setdefault(id(self), {"keep": self})["input", name] = ("array", None, None)
    return "bind", "input", name


watch(IOBinding, "bind_ortvalue_input", value_bound("input"))
watch(IOBinding, "bind_ortvalue_output", value_bound("output"))
watch(IOBinding, "bind_input", place_bound("input"))
watch(IOBinding, "bind_output", place_bound("output"))
watch(IOBinding, "bind_cpu_input", array_bound)
for clearing in ("clear_binding_inputs", "clear_binding_outputs"):
    watch(IOBinding, clearing, lambda self: ("bind", "cleared", ""))
watch(IOBinding, "synchronize_outputs", lambda self: ("synchronize",))
watch(IOBinding, "copy_outputs_to_cpu", lambda self: ("copy",))
watch(OrtValue, "numpy", lambda self: ("copy",))
watch(OrtValue, "__array__", lambda self, *a, **k: ("copy",)) if hasattr(OrtValue, "__array__") else None
watch(OrtValue, "__dlpack__", lambda self, *a, **k: ("copy",))
watch(OrtValue, "update_inplace", lambda self, array: ("update", address_of(self)))


def run_by_binding(self, binding, run_options=None):
    parts = {key: what for key, what in bound.get(id(binding), {}).items() if key != "keep"}
    waits = True
    if run_options is not None:
        with contextlib.suppress(RuntimeError):
            waits = run_options.get_run_config_entry(UNWAITED) != "1"
    zeros = {}
    for (side, name), (_, _, value) in parts.items():
        if side == "input" and value is not None and value.device_name() == "cpu":
            zeros[name] = bool((np.asarray(plain_numpy(value)) == 0).all())
    return "run", waits, {f"{side} {name}": (how, address) for (side, name), (how, address, _) in parts.items()}, zeros


plain_numpy = OrtValue.numpy
watch(Session, "run_with_iobinding", run_by_binding)
for other in ("run", "run_async", "run_with_ort_values", "run_with_ortvaluevector"):
    watch(Session, other, lambda self, *a, **k: ("run", True, None, {}))


def watch_making(name):
    original = getattr(OrtValue, name).__func__

    def making(cls, *args, **kwargs):
        note("value", name)
        with unseen():
            value = original(cls, *args, **kwargs)
            if name == "ortvalue_from_shape_and_type" and value.device_name() == "cpu":
                plain_numpy(value).view(np.uint8)[...] = 0x7F
            return value

    making.__name__, making.__doc__ = original.__name__, original.__doc__
    setattr(OrtValue, name, classmethod(making))


for maker in ("ortvalue_from_numpy", "ortvalue_from_shape_and_type", "ortvalue_from_numpy_with_onnx_type", "from_dlpack"):
    watch_making(maker)


# ---- what the grader calls ------------------------------------------------------------------------------------------

def open_plain(path):
    with unseen(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def available():
    return list(ort.get_available_providers())


def normalized(pair):
    """What ONNX Runtime's own Python code makes of the pair, in a package that has CUDA."""
    names, options = check_and_normalize_provider_args([pair, "CPUExecutionProvider"], None, [CUDA, "CPUExecutionProvider"])
    return names, options


def facts(session):
    """Providers, their options and some settings of a session; None if the object is no session."""
    if not isinstance(session, ort.InferenceSession):
        return None
    with unseen():
        settings = session.get_session_options()
        return {"providers": list(session.get_providers()), "options": session.get_provider_options(),
                "logid": settings.logid, "threads": settings.intra_op_num_threads}


def settings(logid, threads):
    made = ort.SessionOptions()
    made.logid, made.intra_op_num_threads, made.log_severity_level = logid, threads, 4
    return made


def reset():
    sessions.clear()
    events.clear()


def open_watched(path, options, given, **more):
    """open_cuda with what it warned of: (session or None, the error's class, text and bases, [(category is a RuntimeWarning, text)], providers of each session that it asked for)."""
    reset()
    open_cuda = sys.modules["submission"].open_cuda
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        try:
            session, error = open_cuda(path, options, given, **more), None
        except Exception as problem:
            session, error = None, (type(problem).__name__, str(problem), [c.__name__ for c in type(problem).__mro__])
    return session, error, [(issubclass(w.category, RuntimeWarning), str(w.message)) for w in caught], list(sessions)


def run_plain(session, feeds):
    with unseen():
        return list(session.run(None, feeds))


def planned(session, sizes):
    """What `plan` returned, dtypes by name, and whether a shape is a tuple of int."""
    found = sys.modules["submission"].plan(session, **sizes)
    if not isinstance(found, dict):
        return found
    return {side: [(name, tuple(shape) if isinstance(shape, (tuple, list)) else shape, type(shape).__name__, dtype_name(dtype)) for name, (shape, dtype) in part.items()]
            for side, part in found.items()}


def dtype_name(thing):
    try:
        return np.dtype(thing).name if thing is not None else None
    except TypeError:
        return None


def make_replay(session, sizes, **more):
    """A Replay of the submission's plan, and the events of its making."""
    submission = sys.modules["submission"]
    shapes = submission.plan(session, **sizes)
    reset()
    made = submission.Replay(session, shapes, **more)
    return made, list(events)


def values_of(replay):
    """{name: (address, device, shape)} of `values`, or a text that says what it is instead."""
    values = getattr(replay, "values", None)
    if not isinstance(values, dict):
        return f"values is {type(values).__name__}"
    if not all(isinstance(v, OrtValue) for v in values.values()):
        return f"values holds {sorted({type(v).__name__ for v in values.values()})}"
    with unseen():
        return {name: (v.data_ptr(), v.device_name(), tuple(v.shape())) for name, v in values.items()}


def use(replay, steps):
    """Does the steps, ("call" or "start", feeds) or ("finish", None): of each what came, the error, the events, and what came as it is at the end."""
    done = []
    for action, feeds in steps:
        events.clear()
        entry = {"error": None, "got": None, "kept": None, "unchanged": True}
        before = {name: array.copy() for name, array in (feeds or {}).items()}
        try:
            got = replay.finish() if action == "finish" else replay.start(feeds) if action == "start" else replay(feeds)
            entry["raw"] = got
            entry["got"] = {name: np.array(array) if isinstance(array, np.ndarray) else array for name, array in got.items()} if isinstance(got, dict) else got
        except Exception as error:
            entry["error"] = type(error).__name__, str(error), [c.__name__ for c in type(error).__mro__]
        entry["events"] = list(events)
        entry["unchanged"] = all(np.array_equal(array, before[name], equal_nan=array.dtype.kind == "f") for name, array in (feeds or {}).items())
        done.append(entry)
    for entry in done:
        raw = entry.pop("raw", None)
        if isinstance(raw, dict):
            entry["kept"] = {name: np.array(array) for name, array in raw.items() if isinstance(array, np.ndarray)}
    return done
