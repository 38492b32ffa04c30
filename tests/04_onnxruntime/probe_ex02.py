"""Runs in the submission's process before it: notes what is bound where, every run, copy and allocation, and what NumPy allocates.

Addresses are compared with those of the callers' rows, which live in this process; `tracemalloc` counts the bytes of NumPy's buffers.
"""
import gc
import sys
import tracemalloc
import weakref

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession, IOBinding, OrtValue, Session

events, depth = [], [0]
bound = {}  # of each IOBinding: {(side, name): (how, address, shape)}


def watch(owner, method, before):
    original = getattr(owner, method)

    def watching(self, *args, **kwargs):
        if not depth[0]:
            told = before(self, *args, **kwargs)
            if told:
                events.append(told)
        depth[0] += 1
        try:
            return original(self, *args, **kwargs)
        finally:
            depth[0] -= 1

    watching.__name__, watching.__doc__ = original.__name__, original.__doc__
    setattr(owner, method, watching)


def table(binding):
    return bound.setdefault(id(binding), {"binding": binding})


def by_value(side):
    def before(self, name, value):
        table(self)[side, name] = ("value", plain_address(value), tuple(plain_shape(value)))
    return before


def by_address(side):
    def before(self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None):
        table(self)[side, name] = ("address", buffer_ptr, tuple(shape)) if buffer_ptr else ("nothing", None, None)
    return before


def by_array(self, name, array):
    contiguous = isinstance(array, np.ndarray) and array.flags.c_contiguous
    table(self)["input", name] = ("array", array.ctypes.data if contiguous else None, np.shape(array))


def cleared(side):
    def before(self):
        for key in [k for k in table(self) if k[0] == side]:
            del table(self)[key]
    return before


def run_bound(self, binding, run_options=None):
    return "run", {f"{side} {name}": what for (side, name), what in ((k, v) for k, v in table(binding).items() if k != "binding")}


plain_address, plain_shape, plain_numpy = OrtValue.data_ptr, OrtValue.shape, OrtValue.numpy
watch(IOBinding, "bind_ortvalue_input", by_value("input"))
watch(IOBinding, "bind_ortvalue_output", by_value("output"))
watch(IOBinding, "bind_input", by_address("input"))
watch(IOBinding, "bind_output", by_address("output"))
watch(IOBinding, "bind_cpu_input", by_array)
watch(IOBinding, "clear_binding_inputs", cleared("input"))
watch(IOBinding, "clear_binding_outputs", cleared("output"))
watch(IOBinding, "copy_outputs_to_cpu", lambda self: ("copy", "copy_outputs_to_cpu"))
watch(OrtValue, "update_inplace", lambda self, array: ("copy", "update_inplace"))
watch(InferenceSession, "__init__", lambda self, *a, **k: ("session", ""))
watch(Session, "run_with_iobinding", run_bound)
for other in ("run", "run_async", "run_with_ort_values", "run_with_ortvaluevector"):
    watch(Session, other, lambda self, *a, **k: ("run", None))


def watch_making(name):
    original = getattr(OrtValue, name).__func__

    def making(cls, *args, **kwargs):
        if not depth[0]:
            events.append(("value", name))
        depth[0] += 1
        try:
            value = original(cls, *args, **kwargs)
            if name == "ortvalue_from_shape_and_type":
                plain_numpy(value).view(np.uint8)[...] = 0x7F   # uncleared memory holds anything
            return value
        finally:
            depth[0] -= 1

    making.__name__, making.__doc__ = original.__name__, original.__doc__
    setattr(OrtValue, name, classmethod(making))


watch_making("ortvalue_from_shape_and_type")


# ---- what the grader calls ------------------------------------------------------------------------------------------

def open_plain(path):
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    depth[0] += 1
    try:
        return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    finally:
        depth[0] -= 1


def failure(error):
    import traceback
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name not in ("run_windows", "refuse", "run_steps")]
    lines = [f"line {f.lineno}: {f.line}" for f in frames if sys.modules["submission"].__file__ == f.filename]
    return type(error).__name__, str(error)[:600], [c.__name__ for c in type(error).__mro__], lines[-1] if lines else ""


def twist(array, how):
    """The array as one that cannot be used in place, or that only looks so; `how` names it."""
    if how == "columns":
        return np.asfortranarray(array)
    if how == "every second row":
        return np.repeat(array, 2, axis=0)[::2]
    if how == "part of wider rows":
        return np.concatenate([array, array], axis=-1)[..., :array.shape[-1]]
    if how == "mirrored":
        return array[::-1]
    if how == "other byte order":
        return array.astype(array.dtype.newbyteorder())
    if how == "not aligned":
        buffer = np.zeros(array.nbytes + 1, np.uint8)
        moved = buffer[1:].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved
    if how == "read-only":
        array.flags.writeable = False
        return array
    if how == "list":
        return array.tolist()
    if how == "OrtValue":
        return ort.OrtValue.ortvalue_from_numpy(array)
    if how == "view at an offset":      # good: rows of a larger array
        larger = np.full((len(array) + 5, *array.shape[1:]), array.dtype.type(3))
        larger[3:-2] = array
        return larger[3:-2]
    if how == "matrix":                 # good: a subclass that is contiguous
        return array.view(Kept)
    return array


class Kept(np.ndarray):
    pass


def run_windows(session, inputs, outputs, windows, twists=None, forget=False):
    """Makes a Window and runs it, on inputs whose rows move on by one before each run: its failure, or of each window the failure, the events and the bytes allocated; the outputs at the end; what was not in place."""
    twists = twists or {}
    inputs = {name: twist(array.copy(), twists.get(name)) for name, array in inputs.items()}     # copies: nobody else holds these
    outputs = {name: twist(array.copy(), twists.get(name)) for name, array in outputs.items()}
    rows = {name: (side, array.ctypes.data, array.strides[0], array.shape[1:]) for side, part in (("input", inputs), ("output", outputs)) for name, array in part.items()}
    try:
        window = sys.modules["submission"].Window(session, inputs, outputs)
    except Exception as error:
        return {"made": failure(error)}
    keep = {name: array.view(np.ndarray) for name, array in {**inputs, **outputs}.items()}
    if forget:
        alive = [weakref.ref(array) for array in (*inputs.values(), *outputs.values())]
        del keep, inputs, outputs
        gc.collect()
        return {"made": None, "forgotten": sum(ref() is None for ref in alive)}
    done, unchanged = [], True
    for start, stop in windows:
        for name in inputs:                 # other requests come: every row moves on by one
            if keep[name].flags.writeable:
                keep[name][...] = np.roll(keep[name], 1, axis=0)
        for name in outputs:
            keep[name][...] = 7
        before = {name: keep[name].copy() for name in inputs}
        events.clear()
        gc.collect()
        tracemalloc.start()
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        try:
            got, error = window.run(start, stop), None
        except Exception as problem:
            got, error = None, failure(problem)
        peak = tracemalloc.get_traced_memory()[1] - base
        tracemalloc.stop()
        done.append({"got": got, "error": error, "events": [(kind, what if kind != "run" else misplaced(what, rows, start, stop)) for kind, what in events], "bytes": peak,
                     "now": {name: np.array(keep[name]) for name in outputs}})
        unchanged &= all(np.array_equal(before[name], keep[name]) for name in before)
    return {"made": None, "runs": done, "unchanged": unchanged}


def misplaced(run, rows, start, stop):
    """Of a run: None if it goes through no binding, else what is bound elsewhere than at the callers' rows: {name: how}."""
    if run is None:
        return None
    wrong = {}
    for name, (side, address, stride, rest) in rows.items():
        how, at, shape = run.get(f"{side} {name}", ("not bound", None, None))
        if how in ("not bound", "nothing"):
            wrong[name] = how
        elif at != address + start * stride:
            wrong[name] = "other memory"
        elif shape != (stop - start, *rest):
            wrong[name] = f"shape {shape}"
    for key in run:
        if key.partition(" ")[2] not in rows:
            wrong[key.partition(" ")[2]] = "not asked for"
    return wrong


def refuse(session, inputs, outputs, twists, shared=None):
    """The failure of making a Window of arrays, some of them twisted or shared: {name: (other name, offset in rows)} makes an output a view of another array."""
    arrays = {name: twist(array, twists.get(name)) for name, array in {**inputs, **outputs}.items()}
    for name, (other, offset) in (shared or {}).items():
        model = arrays[name]
        larger = np.zeros((len(arrays[other]) + offset, *arrays[other].shape[1:]), arrays[other].dtype)
        larger[:len(arrays[other])] = arrays[other]
        arrays[other] = larger[:len(arrays[other])]
        arrays[name] = larger[offset:offset + len(model)]
    try:
        sys.modules["submission"].Window(session, {name: arrays[name] for name in inputs}, {name: arrays[name] for name in outputs})
    except Exception as error:
        return failure(error)
    return None


def run_steps(session, carry, plan):
    """Drives a Stepper by a list of ("reset", initial), ("step", feeds, outputs to make: {name: (shape, dtype)}) and ("state",): of each what came of it."""
    done, kept = [], []
    try:
        stepper = sys.modules["submission"].Stepper(session, carry)
    except Exception as error:
        return [{"error": failure(error)}]
    previous = None                    # where the step before wrote each state
    for action, *rest in plan:
        events.clear()
        entry = {"error": None, "got": None, "events": [], "bytes": 0, "state": {}, "outputs": {}}
        outputs = {}
        if action == "step":
            outputs = {name: np.full(shape, 7, dtype) for name, (shape, dtype) in rest[1].items()}
        copies = {name: array.copy() for name, array in rest[0].items()} if rest else {}
        gc.collect()
        tracemalloc.start()
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        try:
            if action == "reset":
                stepper.reset(rest[0])
                previous = None
            elif action == "step":
                stepper.step(rest[0], outputs)
            else:
                entry["got"] = stepper.state()
        except Exception as problem:
            entry["error"] = failure(problem)
        entry["bytes"] = tracemalloc.get_traced_memory()[1] - base
        tracemalloc.stop()
        entry["unchanged"] = all(np.array_equal(copies[name], array) for name, array in (rest[0].items() if rest else ()))
        if action == "reset" and not entry["error"]:
            for array in rest[0].values():          # copied, so the caller may use them for something else
                array[...] = 99
        for kind, what in events:
            if kind == "run" and what is not None and action == "step":
                rows = {name: ("input", array.ctypes.data, 0, array.shape[1:]) for name, array in rest[0].items()}
                rows |= {name: ("output", array.ctypes.data, 0, array.shape[1:]) for name, array in outputs.items()}
                wrong = {}
                for name, (side, address, _, _) in rows.items():
                    how, at, _ = what.get(f"{side} {name}", ("not bound", None, None))
                    if at != address:
                        wrong[name] = how if how in ("not bound", "nothing") else "other memory"
                for key in what:
                    side, _, name = key.partition(" ")
                    if side == "output" and name not in rows and name not in carry:
                        wrong[name] = "not asked for"
                now = {}
                for target, source in carry.items():
                    read, write = what.get(f"input {source}", (None, None, None)), what.get(f"output {target}", (None, None, None))
                    if write[1] is None:
                        wrong[target] = "nothing"
                    elif read[1] == write[1]:
                        wrong[target] = "written where it is read"
                    elif previous is not None and read[1] != previous[source]:
                        wrong[source] = "not read where the step before wrote it"
                    now[source] = write[1]
                previous = now
                what = wrong
            entry["events"].append((kind, what))
        entry["outputs"] = {name: array.copy() for name, array in outputs.items()}
        kept.append(outputs)
        if isinstance(entry["got"], dict):
            entry["state"] = {name: np.array(array) for name, array in entry["got"].items() if isinstance(array, np.ndarray)}
            entry["raw"] = entry["got"]
        done.append(entry)
    for entry, outputs in zip(done, kept):
        entry["later"] = {name: array.copy() for name, array in outputs.items()}
        raw = entry.pop("raw", {})
        entry["state later"] = {name: np.array(raw[name]) for name in entry["state"]}
        entry["got"] = sorted(entry["got"]) if isinstance(entry["got"], dict) else repr(entry["got"])
    return done
