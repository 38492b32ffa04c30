"""Runs in the submission's process, before it: plays schedules of calls on the counted device, and tells what the trace shows.

The functions whose names start with gpu_ need TensorRT, pycuda and a GPU. They watch the real libraries and change nothing they do.
"""
import gc
import importlib.util
import random
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np

spec = importlib.util.spec_from_file_location("counted_device", Path(__file__).parents[2] / "course/counted_device.py")
counted = importlib.util.module_from_spec(spec)
sys.modules["counted_device"] = counted
spec.loader.exec_module(counted)
Instance = counted.Instance


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


class Watched(counted.Program):
    """A program that remembers its instances, so that a race can be told by the role of the memory."""

    def instance(self, device, scratch=None, name=""):
        made = super().instance(device, scratch, name)
        self.instances = [*getattr(self, "instances", []), made]
        return made

    def role(self, memory):
        for made in getattr(self, "instances", []):
            if made._scratch.name == memory:
                return "scratch"
            for tensor, bound in made._bound.items():
                if bound.name == memory:
                    return tensor
        return "pinned"


def told(race, program):
    return {"role": program.role(race.memory), "text": str(race), "first": race.first.kind, "second": race.second.kind,
            "labels": [race.first.label, race.second.label]}


def play(*arguments, patience=6.0, **more):
    """As `play_steps`, in a thread: {"stuck": number of the step} if a call does not come back. -1: the constructor; the number of steps: close."""
    at, found, problem = [-1], [], []

    def run():
        try:
            found.append(play_steps(*arguments, at=at, **more))
        except Exception as error:                                   # the probe's own fault: raised below
            problem.append(error)

    thread = threading.Thread(target=run, daemon=True, name=threading.current_thread().name)
    thread.start()
    thread.join(patience)
    if problem:
        raise problem[0]
    return found[0] if found else {"stuck": at[0]}


def play_steps(features, classes, max_rows, seed, steps, mood=None, at=None):
    """Plays steps, each ["offset", array], ["submit", array] or ["result", number of the submit]; returns what each gave and cost."""
    if not hasattr(sys.modules["submission"], "Pair"):
        return {"missing": "Pair"}
    device, program = counted.Device(mood, views=False), Watched(features, classes, max_rows, seed, offset=True)
    made = attempt(lambda: submitted("Pair")(device, program))
    if "error" in made:
        return {"failed": made, "during": "Pair(device, program)"}
    pair, done, tickets, wants, kernels, kept, offset = made["ok"], [], [], [], [], [], None
    for kind, given in steps:
        before, at[0] = len(device.trace), at[0] + 1
        if kind == "result":
            step = attempt(lambda given=given: pair.result(tickets[given]))
            if "ok" in step:
                step["want"] = wants[given]
                got = step["ok"]
                kept.append((len(done), got, np.array(got, copy=True)) if isinstance(got, np.ndarray) else None)
                step["ok"] = np.array(got, copy=True) if isinstance(got, np.ndarray) else repr(got)
        else:
            copy = given.copy()
            step = attempt(lambda copy=copy, kind=kind: pair.set_offset(copy) if kind == "offset" else pair.submit(copy))
            copy[...] = 1e6 if copy.dtype.kind == "f" else 7          # the caller's own again
            if kind == "offset":
                offset = given
            elif "ok" in step:
                tickets.append(step["ok"])
                wants.append(program.expected(given, offset))
                kernels.append([r.number for r in device.trace[before:] if r.kind == "kernel"])
            step["ok"] = step.get("ok") is not None or kind == "offset"
        step["counts"], step["pending"], step["live"] = device.counts(before), device.pending("kernel"), device.live()
        step["lines"] = [str(r) for r in device.trace[before:]][:14]
        done.append(step)
    before = counted.ancestors(device.trace)
    ordered = [[a, b] for a in range(len(kernels)) for b in range(a) if any(counted.ordered(before, x, y) for x in kernels[a] for y in kernels[b])]
    found = {"steps": done, "races": [told(r, program) for r in counted.races(device.trace)], "ordered": ordered,
             "kernels": [len(k) for k in kernels], "overwritten": [k[0] for k in kept if k and not np.array_equal(k[1], k[2], equal_nan=True)]}
    at[0] = len(steps)
    found["closed"] = attempt(lambda: pair.close())
    found["left"] = device.live()
    return found


def threads(features, classes, max_rows, seed, workers=3, requests=4, mood=None, patience=8.0):
    """Workers that each submit and fetch, one request at a time, while another thread sets the same offset again and again.

    At calls of the device a thread now and then rests until the others have made some calls, so that they come in between. A worker that is refused since two
    requests are under way tries again.
    """
    device, program = counted.Device(mood, views=False), Watched(features, classes, max_rows, seed, offset=True)
    made = attempt(lambda: submitted("Pair")(device, program))
    if "error" in made:
        return {"failed": made, "during": "Pair(device, program)"}
    pair, rest, draw = made["ok"], random.Random(seed), np.random.default_rng(seed)
    offset = draw.standard_normal(features).astype(np.float32)
    pair.set_offset(offset)
    calls, others = [0], threading.Condition()

    def rests(before):
        with others:
            calls[0] += 1
            others.notify_all()
            if rest.random() < (0.7 if before == "read" else 0.2):
                enough = calls[0] + rest.randint(1, 60 if before == "read" else 20)
                others.wait_for(lambda: calls[0] >= enough, timeout=0.02)      # they may all wait for a lock that this thread holds

    device._yield = rests
    problems, wrong, lock = [], [], threading.Lock()

    def served(batch):
        while True:
            try:
                ticket = pair.submit(batch)
            except counted.DeviceError:
                raise
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(1e-4)
            else:
                return pair.result(ticket)

    def work(batches):
        for batch in batches:
            done = attempt(lambda batch=batch: served(batch))
            with lock:
                if "error" in done:
                    problems.append(done)
                    return
                got, want = done["ok"], program.expected(batch, offset)
                if not isinstance(got, np.ndarray) or got.shape != want.shape or not np.abs(got - want).max() <= 1e-4:
                    wrong.append([len(batch), repr(got)[:200]])

    def change():
        for _ in range(requests):
            done = attempt(lambda: pair.set_offset(offset.copy()))
            if "error" in done:
                with lock:
                    problems.append(done)
                return

    running = [threading.Thread(target=work, daemon=True, name=f"thread {n}", args=(
        [draw.standard_normal((int(draw.integers(1, max_rows + 1)), features)).astype(np.float32) for _ in range(requests)],)) for n in range(workers)]
    running.append(threading.Thread(target=change, daemon=True, name="thread of the offset"))
    end = time.monotonic() + patience
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in running):
        return {"stuck": [thread.name for thread in running if thread.is_alive()], "problems": problems}
    device._yield = None
    return {"problems": problems, "wrong": wrong, "races": [told(r, program) for r in counted.races(device.trace)]}


# ---- for the half that runs on a GPU --------------------------------------------------------------------------------

pairs, trace, state = {}, [], {"watched": False, "kept": []}


def gpu_build(onnx_path, engine_path, shapes):
    """Builds an engine whose one profile contexts may share, apart from the submission."""
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
    sharing = getattr(trt.PreviewFeature, "PROFILE_SHARING_0806", None)
    if sharing is not None:
        config.set_preview_feature(sharing, True)
    plan = builder.build_serialized_network(network, config)
    with open(engine_path, "wb") as file:
        file.write(plan)


def gpu_watch():
    """From now on, notes each enqueue (context and stream), each wait, copy and allocation, and each scratch memory that a context is given."""
    import pycuda.driver as cuda
    import tensorrt as trt
    if state["watched"]:
        return
    state["watched"] = True

    def noted(owner, name, note):
        real = getattr(owner, name, None)
        if real is None:
            return

        def call(*args, **kwargs):
            trace.append([name, *note(args, kwargs)])
            return real(*args, **kwargs)
        setattr(owner, name, call)

    def kept(thing):
        state["kept"].append(thing)        # so that no other object gets its id
        return id(thing)

    noted(trt.IExecutionContext, "execute_async_v3", lambda args, kwargs: [kept(args[0]), int(args[1] if len(args) > 1 else kwargs["stream_handle"])])
    for name in ("execute_v2", "execute_async_v2"):
        noted(trt.IExecutionContext, name, lambda args, kwargs: [])
    noted(trt.IExecutionContext, "set_device_memory", lambda args, kwargs: [kept(args[0]), int(args[1] if len(args) > 1 else kwargs["memory"])])
    noted(trt.ICudaEngine, "create_execution_context", lambda args, kwargs: [len(args) + len(kwargs) - 1])
    noted(trt.ICudaEngine, "create_execution_context_without_device_memory", lambda args, kwargs: [])
    real = trt.IExecutionContext.__dict__.get("device_memory")
    if real is not None and real.fset is not None:
        def assign(context, memory):
            trace.append(["device_memory", kept(context), int(memory)])
            real.fset(context, memory)
        trt.IExecutionContext.device_memory = property(None, assign)
    for name in ("memcpy_htod", "memcpy_dtoh", "memcpy_htod_async", "memcpy_dtoh_async", "mem_alloc", "pagelocked_empty", "pagelocked_zeros"):
        noted(cuda, name, lambda args, kwargs: [])
    for owner in (cuda.Stream, cuda.Event, cuda.Context):
        noted(owner, "synchronize", lambda args, kwargs, owner=owner: [owner.__name__])


def gpu_open(key, engine_path):
    import pycuda.autoprimaryctx  # noqa: F401
    gpu_watch()
    trace.clear()
    made = attempt(lambda: submitted("EnginePair")(engine_path))
    if "ok" in made:
        pairs[key] = made["ok"]
        made["ok"] = True
    made["trace"] = list(trace)
    return made


def gpu_close(key):
    done = attempt(pairs.pop(key).close)
    state["kept"].clear()
    gc.collect()
    return done


def gpu_play(key, steps):
    """As `play`, without a trace of the device: what each step gave, and which calls of the libraries it made."""
    pair, done, tickets, kept = pairs[key], [], [], []
    for kind, given in steps:
        trace.clear()
        if kind == "result":
            step = attempt(lambda given=given: pair.result(tickets[given]))
            if isinstance(step.get("ok"), np.ndarray):
                kept.append((len(done), step["ok"], step["ok"].copy()))
                step["ok"] = step["ok"].copy()
            elif "ok" in step:
                step["ok"] = repr(step["ok"])
        else:
            copy = given.copy()
            step = attempt(lambda copy=copy, kind=kind: pair.set_offset(copy) if kind == "offset" else pair.submit(copy))
            copy[...] = 1e6
            if kind == "submit" and "ok" in step:
                tickets.append(step["ok"])
            step["ok"] = True
        step["trace"] = list(trace)
        done.append(step)
    return {"steps": done, "overwritten": [n for n, now, then in kept if not np.array_equal(now, then, equal_nan=True)]}


def gpu_single_stream(engine_path, requests):
    """The same requests, [[batch, offset], …], through one context and one stream, each waited for."""
    import pycuda.autoprimaryctx  # noqa: F401
    import pycuda.driver as cuda
    import tensorrt as trt
    with open(engine_path, "rb") as file:
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(file.read())
    context, stream, found = engine.create_execution_context(), cuda.Stream(), []
    for batch, offset in requests:
        context.set_input_shape("rows", batch.shape)
        result = np.empty(tuple(context.get_tensor_shape("scores")), np.float32)
        memory = {"rows": cuda.mem_alloc(batch.nbytes), "offset": cuda.mem_alloc(offset.nbytes), "scores": cuda.mem_alloc(result.nbytes)}
        for name, where in memory.items():
            context.set_tensor_address(name, int(where))
        cuda.memcpy_htod(memory["rows"], batch)
        cuda.memcpy_htod(memory["offset"], offset)
        context.execute_async_v3(stream.handle)
        stream.synchronize()
        cuda.memcpy_dtoh(result, memory["scores"])
        for where in memory.values():
            where.free()
        found.append(result)
    return found


def gpu_free_bytes():
    import pycuda.driver as cuda
    gc.collect()
    return int(cuda.mem_get_info()[0])


def gpu_open_and_close(engine_path, batch, offset, times):
    for _ in range(times):
        pair = submitted("EnginePair")(engine_path)
        pair.set_offset(offset)
        one, two = pair.submit(batch), pair.submit(batch)
        pair.result(one), pair.result(two)
        pair.close()
        del pair
        state["kept"].clear()
        gc.collect()


def gpu_repeat(key, batch, offset, times):
    pair = pairs[key]
    for _ in range(times):
        pair.set_offset(offset)
        one, two = pair.submit(batch), pair.submit(batch)
        pair.result(one), pair.result(two)
        state["kept"].clear()
