"""Runs in the submission's process, before it: makes the counted device, calls the submission, and tells what happened.

The functions whose names start with gpu_ need TensorRT, pycuda and a GPU. They watch the real libraries and change nothing they do.
"""
import ctypes
import gc
import importlib.util
import sys
import time
import traceback
from pathlib import Path

import numpy as np

spec = importlib.util.spec_from_file_location("counted_device", Path(__file__).parents[2] / "course/counted_device.py")
counted = importlib.util.module_from_spec(spec)
sys.modules["counted_device"] = counted
spec.loader.exec_module(counted)


def submitted(name):
    return getattr(sys.modules["submission"], name)


def attempt(call):
    """{"ok": result} or {"error": class, "bases": classes, "text", "where": the submission's own line}."""
    try:
        return {"ok": call()}
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == sys.modules["submission"].__file__]
        return {"error": type(error).__name__, "bases": [c.__name__ for c in type(error).__mro__], "text": str(error)[:1500],
                "where": f"line {frames[-1].lineno}: {frames[-1].line or ''}" if frames else ""}


def laid_out(array, layout):
    if layout == "columns first":
        return np.asfortranarray(array)
    if layout == "every second column":
        wide = np.full((array.shape[0], 2 * array.shape[1]), 7, array.dtype)
        wide[:, ::2] = array
        return wide[:, ::2]
    if layout == "rows backwards":
        return array[::-1].copy()[::-1]
    if layout == "read-only":
        kept = array.copy()
        kept.flags.writeable = False
        return kept
    if layout == "the same array, filled anew":
        kept = refilled.setdefault(array.shape, array.copy())
        kept[:] = array
        return kept
    return array.copy()


refilled = {}


def serve(features, classes, max_rows, seed, batches, mood=None, layout="", close=True):
    """Makes a loop and calls it with each batch. Returns what each call gave and cost, and what is allocated when."""
    if not hasattr(sys.modules["submission"], "Loop"):
        return {"missing": "Loop"}
    device, program = counted.Device(mood), counted.Program(features, classes, max_rows, seed)
    loop_class = submitted("Loop")
    made = attempt(lambda: loop_class(device, program))
    if "error" in made:
        return {"failed": made, "during": "Loop(device, program)"}
    loop, calls, kept = made["ok"], [], []
    found = {"calls": calls}
    for batch in batches:
        given = laid_out(batch, layout)
        before, unchanged = len(device.trace), given.copy()
        done = attempt(lambda given=given: loop(given))
        done["counts"], done["lines"] = device.counts(before), [str(r) for r in device.trace[before:] if not r.graph][:12]
        done["live"] = device.live()
        done["buffers"] = sum(r.kind == "alloc" and not r.label.startswith("alloc scratch of ") for r in device.trace[before:])
        done["changed_input"] = not np.array_equal(given, unchanged)
        if "ok" in done:
            kept.append((done["ok"], np.array(done["ok"], copy=True) if isinstance(done["ok"], np.ndarray) else None))
            done["ok"] = np.array(done["ok"], copy=True) if isinstance(done["ok"], np.ndarray) else repr(done["ok"])
        calls.append(done)
    found["overwritten"] = [i for i, (now, then) in enumerate(kept) if then is not None and not np.array_equal(now, then, equal_nan=True)]
    found["expected"] = [program.expected(b) if b.ndim == 2 and b.shape[1] == features and len(b) else None for b in batches]
    if close:
        found["closed"] = attempt(lambda: loop.close())
        found["left"] = device.live()
    return found


# ---- for the half that runs on a GPU --------------------------------------------------------------------------------

loops, trace, state = {}, [], {"watched": False, "kept": []}


def gpu_build(onnx_path, engine_path, shapes):
    """Builds an engine, apart from the submission. shapes: input name to its min, opt and max shape."""
    import tensorrt as trt
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    with open(onnx_path, "rb") as file:
        if not parser.parse(file.read()):
            raise ValueError(str(parser.get_error(0)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.clear_flag(trt.BuilderFlag.TF32)        # errors of TF32 would add up over the layers
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, tuple(least), tuple(best), tuple(most))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    with open(engine_path, "wb") as file:
        file.write(plan)


def gpu_watch():
    """From now on, notes each enqueue, copy and allocation that goes through pycuda and the execution context."""
    import pycuda.driver as cuda
    import tensorrt as trt
    if state["watched"]:
        return
    state["watched"] = True

    def noted(owner, name):
        real = getattr(owner, name, None)
        if real is None:
            return

        def call(*args, **kwargs):
            trace.append(name)
            return real(*args, **kwargs)
        setattr(owner, name, call)

    for name in ("execute_async_v3", "execute_v2", "execute_async_v2"):
        noted(trt.IExecutionContext, name)
    for name in ("memcpy_htod", "memcpy_dtoh", "memcpy_htod_async", "memcpy_dtoh_async", "mem_alloc", "pagelocked_empty", "pagelocked_zeros",
                 "register_host_memory"):
        noted(cuda, name)
    noted(trt.ICudaEngine, "create_execution_context")


def gpu_open(key, engine_path):
    import pycuda.autoprimaryctx  # noqa: F401
    gpu_watch()
    made = attempt(lambda: submitted("EngineLoop")(engine_path))
    if "ok" in made:
        loops[key] = made["ok"]
        made["ok"] = True
    return made


def gpu_close(key):
    done = attempt(loops.pop(key).close)
    gc.collect()
    return done


def gpu_calls(key, batches, layout=""):
    """For each batch what came back, what was noted on the way, and at the end which results were overwritten."""
    loop, found, kept = loops[key], [], []
    for batch in batches:
        given = laid_out(batch, layout)
        trace.clear()
        done = attempt(lambda given=given: loop(given))
        done["trace"] = list(trace)
        if isinstance(done.get("ok"), np.ndarray):
            kept.append((done["ok"], done["ok"].copy()))
            done["ok"] = done["ok"].copy()
        elif "ok" in done:
            done["ok"] = repr(done["ok"])
        found.append(done)
    return {"calls": found, "overwritten": [i for i, (now, then) in enumerate(kept) if not np.array_equal(now, then, equal_nan=True)]}


def gpu_free_bytes():
    import pycuda.driver as cuda
    gc.collect()
    return int(cuda.mem_get_info()[0])


def gpu_repeat(key, batches, times):
    loop = loops[key]
    for _ in range(times):
        for batch in batches:
            loop(batch)


def gpu_open_and_close(engine_path, batch, times):
    for _ in range(times):
        loop = submitted("EngineLoop")(engine_path)
        loop(batch)
        loop.close()
        del loop
        gc.collect()


def raw_replay(engine_path, batch):
    """(call, naive call): one graph with copy in, run and copy out between pinned buffers, launched and waited for; and the loop that does
    everything again for each call. Both keep the engine and the context."""
    import pycuda.driver as cuda
    import tensorrt as trt
    with open(engine_path, "rb") as file:
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(file.read())
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    source, = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
    target, = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
    context, stream = engine.create_execution_context(), cuda.Stream()
    context.set_input_shape(source, batch.shape)
    shape = tuple(context.get_tensor_shape(target))
    host_in, host_out = cuda.pagelocked_empty(batch.shape, np.float32), cuda.pagelocked_empty(shape, np.float32)
    host_in[...] = batch
    there, back = cuda.mem_alloc(host_in.nbytes), cuda.mem_alloc(host_out.nbytes)

    def enqueue():
        cuda.memcpy_htod_async(there, host_in, stream)
        context.execute_async_v3(stream.handle)
        cuda.memcpy_dtoh_async(host_out, back, stream)

    context.set_tensor_address(source, int(there))
    context.set_tensor_address(target, int(back))
    enqueue()
    stream.synchronize()
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    handle, graph, ready = ctypes.c_void_p(stream.handle), ctypes.c_void_p(), ctypes.c_void_p()
    assert library.cuStreamBeginCapture_v2(handle, ctypes.c_int(1)) == 0
    enqueue()
    assert library.cuStreamEndCapture(handle, ctypes.byref(graph)) == 0
    assert library.cuGraphInstantiateWithFlags(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)) == 0
    launch = library.cuGraphLaunch
    launch.argtypes, launch.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int
    state["kept"].append((runtime, engine, context, there, back, host_in, host_out))
    other, fresh_stream = engine.create_execution_context(), cuda.Stream()
    other.set_input_shape(source, batch.shape)

    def replay():
        if launch(ready, handle):
            raise RuntimeError("cuGraphLaunch failed")
        stream.synchronize()

    def naive():
        result = np.empty(shape, np.float32)
        a, b = cuda.mem_alloc(batch.nbytes), cuda.mem_alloc(result.nbytes)
        other.set_tensor_address(source, int(a))
        other.set_tensor_address(target, int(b))
        cuda.memcpy_htod(a, batch)
        other.execute_async_v3(fresh_stream.handle)
        fresh_stream.synchronize()
        cuda.memcpy_dtoh(result, b)
        a.free()
        b.free()
        return result

    return replay, naive


def gpu_figure(key, engine_path, batch, rounds=12, calls=80, attempts=3):
    """Medians of single calls in microseconds, the ways in turns: [{"raw", "loop", "naive"}, …], one for each attempt."""
    replay, naive = raw_replay(engine_path, batch)
    loop, found = loops[key], []
    ways = {"raw": replay, "loop": lambda: loop(batch), "naive": naive}
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end:
        for call in ways.values():
            call()
    for _ in range(attempts):
        samples = {name: [] for name in ways}
        for _ in range(rounds):
            for name, call in ways.items():
                for _ in range(calls if name != "naive" else max(1, calls // 8)):
                    start = time.perf_counter()
                    call()
                    samples[name].append(time.perf_counter() - start)
        found.append({name: float(np.median(values)) * 1e6 for name, values in samples.items()})
    return found
