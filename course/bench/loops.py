"""Inference loops around one TensorRT engine, from NumPy array to NumPy array: what the loop itself costs, and what a second context brings.

`floor-*`: the digits MLP at batch 1 and 32, one request at a time, four ways. `floor-b1` and `floor-b32` time the four in turns, in the same rounds,
so that their ratios share one clock. `two-*`: requests back to back through one context or two. The models are in the repository: no BENCH_MODELS.
"""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.bench import core, gpu, models
from course.exercises import Exercise

MLP = ROOT / "models/digits_mlp/digits_mlp.onnx"
REFERENCE = "03_tensorrt/ex03_latency_floor"
LAYERS, WIDTH = 32, 256
PRECISION = "fp32"  # TF32 is cleared: its errors would add up over the layers


@functools.cache
def digits():
    """(inputs (128, 784) float32, their outputs in float64, labels)."""
    weights = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in onnx.load(MLP).graph.initializer}
    given = models.inputs("mlp")
    logits = np.maximum(given @ weights["hidden.weight"].T + weights["hidden.bias"], 0) @ weights["logits.weight"].T + weights["logits.bias"]
    exact = np.exp(logits - logits.max(1, keepdims=True))
    with np.load(MLP.parent / "heldout.npz") as data:
        return given, exact / exact.sum(1, keepdims=True), data["labels"][:len(given)]


@functools.cache
def tower():
    """(ONNX model of 32 layers of 256, inputs (128, 256) float32, their outputs in float64): launches are its time, not arithmetic."""
    draw = np.random.default_rng(4)
    weights = [(f"w{n}", draw.normal(0, (2 / WIDTH) ** 0.5, (WIDTH, WIDTH)).astype(np.float32)) for n in range(LAYERS)]
    nodes, last = [], "given"
    for name, _ in weights:
        nodes += [helper.make_node("MatMul", [last, name], [f"{name}_p"]), helper.make_node("Relu", [f"{name}_p"], [f"{name}_r"])]
        last = f"{name}_r"
    nodes[-1].output[0] = "scores"
    graph = helper.make_graph(nodes, "tower", [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["n", WIDTH])],
                              [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", WIDTH])], [numpy_helper.from_array(w, n) for n, w in weights])
    given = draw.random((128, WIDTH)).astype(np.float32)
    exact = given.astype(np.float64)
    for _, w in weights:
        exact = np.maximum(exact @ w.astype(np.float64), 0)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), given, exact


@functools.cache
def engine_of(name):
    """(trt, cuda, runtime, engine, path of its plan, seconds to build): batches 1 to 32, best 8, one profile that contexts may share."""
    import pycuda.autoprimaryctx  # noqa: F401
    import pycuda.driver as cuda
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(MLP.read_bytes() if name == "mlp" else tower()[0].SerializeToString()):
        raise RuntimeError("; ".join(str(parser.get_error(n)) for n in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    first = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(first.name, *((rows, first.shape[1]) for rows in (1, 8, 32)))
    config.add_optimization_profile(profile)
    sharing = getattr(trt.PreviewFeature, "PROFILE_SHARING_0806", None)  # 8.6 gives a profile to one context only unless asked; later ones always share
    if sharing is not None:
        config.set_preview_feature(sharing, True)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    took = time.perf_counter() - start
    if plan is None:
        raise RuntimeError("the builder returned None; its log says why")
    path = Path(tempfile.mkdtemp(prefix="loops-")) / f"{name}.engine"
    path.write_bytes(bytes(memoryview(plan)))
    runtime = trt.Runtime(logger)
    return trt, cuda, runtime, runtime.deserialize_cuda_engine(path.read_bytes()), path, took


class Lane:
    """A context of the engine with a stream, pinned and device buffers for one shape, and its CUDA graph. Nothing here is shared with another lane."""

    def __init__(self, name, rows):
        trt, self.cuda, _, engine, _, _ = engine_of(name)
        self.stream, self.context = self.cuda.Stream(), engine.create_execution_context()
        source, target = sorted((engine.get_tensor_name(i) for i in range(2)), key=lambda n: engine.get_tensor_mode(n) != trt.TensorIOMode.INPUT)
        shape = (rows, tuple(engine.get_tensor_shape(source))[1])
        self.context.set_input_shape(source, shape)
        self.host_in = self.cuda.pagelocked_empty(shape, np.float32)
        self.host_out = self.cuda.pagelocked_empty(tuple(self.context.get_tensor_shape(target)), np.float32)
        self.there, self.back = self.cuda.mem_alloc(self.host_in.nbytes), self.cuda.mem_alloc(self.host_out.nbytes)
        self.context.set_tensor_address(source, int(self.there))
        self.context.set_tensor_address(target, int(self.back))
        self.names, self.done = (source, target), self.cuda.Event(self.cuda.event_flags.DISABLE_TIMING)
        self.host_in[...] = 0
        self.enqueue()
        self.stream.synchronize()
        self.replay = gpu.driver_graph(self.stream, self.enqueue)

    def enqueue(self):
        self.cuda.memcpy_htod_async(self.there, self.host_in, self.stream)
        if not self.context.execute_async_v3(self.stream.handle):
            raise RuntimeError("execute_async_v3 returned False")
        self.cuda.memcpy_dtoh_async(self.host_out, self.back, self.stream)


def ways(rows):
    """The four ways to serve one batch of digits: name to (call, wait, result of the last call)."""
    _, cuda, _, _, path, _ = engine_of("mlp")
    batch = np.ascontiguousarray(digits()[0][:rows])
    raw, kept, fresh, last = Lane("mlp", rows), Lane("mlp", rows), Lane("mlp", rows), {}
    raw.host_in[...] = batch
    space = {}
    exec(compile(Exercise(REFERENCE).reference(), "ex03_latency_floor", "exec"), space)  # the solution as it stands in the course
    loop = space["EngineLoop"](str(path))

    def keeps_buffers():
        kept.host_in[...] = batch
        kept.enqueue()
        kept.stream.synchronize()
        last["kept"] = kept.host_out.copy()

    def starts_over():
        result = np.empty(fresh.host_out.shape, np.float32)
        there, back = cuda.mem_alloc(batch.nbytes), cuda.mem_alloc(result.nbytes)
        fresh.context.set_tensor_address(fresh.names[0], int(there))
        fresh.context.set_tensor_address(fresh.names[1], int(back))
        cuda.memcpy_htod(there, batch)
        fresh.context.execute_async_v3(fresh.stream.handle)
        fresh.stream.synchronize()
        cuda.memcpy_dtoh(result, back)
        there.free()
        back.free()
        last["naive"] = result

    def solution():
        last["loop"] = loop(batch)

    def nothing():
        pass

    return {"graph": (raw.replay, raw.stream.synchronize, lambda: raw.host_out), "loop": (solution, nothing, lambda: last["loop"]),
            "kept": (keeps_buffers, nothing, lambda: last["kept"]), "naive": (starts_over, nothing, lambda: last["naive"])}


WHAT = {"graph": "raw replay of a CUDA graph with copy in, run and copy out between pinned buffers",
        "loop": "the solution of ex03_latency_floor: NumPy to NumPy through a CUDA graph",
        "kept": "buffers kept and pinned, three enqueues a call, no graph",
        "naive": "allocates, copies pageable memory, runs and frees in each call"}


def asked(name="mlp"):
    _, _, _, engine, path, took = engine_of(name)
    return {"precision": "float32, TF32 cleared", "engine_bytes": path.stat().st_size, "build_s": round(took, 2), "layers": engine.num_layers,
            "profile": "1 to 32 rows, best 8"}


def one_way(way, rows):
    call, wait, result = ways(rows)[way]
    with core.Clocks() as clocks:
        series, how = core.time_calls(call, wait, rounds=1, blocks=2, singles=2)
        clocks.mark()
        series, how = core.time_calls(call, wait, singles=200, warm_up_s=0.3)
    given, exact, labels = digits()
    return core.Result(series, {}, models.accuracy("mlp", PRECISION, result(), exact, labels), clocks.summary(), {**how, **asked()})


def in_turns(rows, rounds=core.ROUNDS, blocks=12, calls=25):
    """Single calls of the four ways, in turns: a round is `blocks` blocks, a block `calls` calls of each way."""
    found = ways(rows)
    samples = {way: [[] for _ in range(rounds)] for way in found}
    with core.Clocks() as clocks:
        end = time.perf_counter() + core.WARM_UP_S
        while time.perf_counter() < end:
            for call, wait, _ in found.values():
                call()
                wait()
        clocks.mark()
        for number in range(rounds):
            for _ in range(blocks):
                for way, (call, wait, _) in found.items():
                    for _ in range(calls):
                        start = time.perf_counter()
                        call()
                        wait()
                        samples[way][number].append((time.perf_counter() - start) * 1e3)
    given, exact, labels = digits()
    checked = {way: models.accuracy("mlp", PRECISION, result(), exact, labels) for way, (_, _, result) in found.items()}
    errors = [one["error"] for one in checked.values()]
    worst = max(checked.values(), key=lambda one: float("inf") if one["error"] is None else one["error"])
    middle = {way: core.summary(values)["p50"] for way, values in samples.items()}
    return core.Result({way: ("ms", values) for way, values in samples.items()},
                       {"over_graph": {way: round(middle[way] / middle["graph"], 3) for way in found}, "errors": dict(zip(checked, errors))},
                       worst, clocks.summary(), {"rounds": rounds, "blocks": blocks, "calls_per_block": calls, **asked()})


def through(name, rows, contexts, graph, block=32):
    """Requests back to back, taken in turns by the contexts; each from a NumPy array into a pinned buffer, and out into a new array.

    A lane's next request waits for its last one alone, by an event. One sample: a block's time over its requests.
    """
    lanes = [Lane(name, rows) for _ in range(contexts)]
    given = digits()[0] if name == "mlp" else tower()[1]
    batches = [np.ascontiguousarray(given[n * rows % 128:][:rows]) for n in range(128 // rows)]
    exact = digits()[1] if name == "mlp" else tower()[2]
    results = {}

    def requests():
        waiting = [None] * contexts
        for number in range(block + contexts):
            slot = number % contexts
            lane = lanes[slot]
            if waiting[slot] is not None:
                lane.done.synchronize()
                results[waiting[slot]] = lane.host_out.copy()
                waiting[slot] = None
            if number < block:
                lane.host_in[...] = batches[number % len(batches)]
                lane.replay() if graph else lane.enqueue()
                lane.done.record(lane.stream)
                waiting[slot] = number % len(batches)

    def nothing():
        pass

    with core.Clocks() as clocks:
        core.time_calls(requests, nothing, rounds=1, blocks=2, singles=2)
        clocks.mark()
        series, how = core.time_calls(requests, nothing, warm_up_s=0.3)
    rounds = [[value / block for value in values] for values in series["back_to_back"][1]]
    seen = sorted(results)
    got, want = np.concatenate([results[n] for n in seen]), np.concatenate([exact[n * rows % 128:][:rows] for n in seen])
    spread = np.sqrt(((exact - exact.mean(0)) ** 2).sum(1).mean())
    error = float(np.sqrt(((got - want) ** 2).sum(1).mean()) / spread)
    accuracy = {"error": float(f"{error:.6g}") if np.isfinite(error) else None, "tolerance": models.TOLERANCE[PRECISION], "inputs": len(got),
                "measure": "root mean square distance from float64 over the spread of the float64 outputs between inputs"}
    middle = core.summary(rounds)["p50"]
    return core.Result({"back_to_back": ("ms", rounds)}, {"requests_per_s": float(f"{1e3 / middle:.5g}"), "rows_per_s": float(f"{rows * 1e3 / middle:.5g}")},
                       accuracy, clocks.summary(), {**{k: v for k, v in how.items() if k != "calls_per_block"}, "requests_per_block": block, **asked(name)})


def cases():
    found, needs = [], ("tensorrt", "pycuda")

    def add(name, what, configuration, run):
        found.append(core.Case(name, what, configuration, run, needs, gpu=True))

    for rows in (1, 32):
        common = {"model": "mlp", "batch": rows}
        add(f"floor-b{rows}", f"Digits MLP, batch {rows}, one request at a time: four loops in turns", common, lambda r=rows: in_turns(r))
        for way, what in WHAT.items():
            add(f"floor-{way}-b{rows}", f"Digits MLP, batch {rows}: {what}", {**common, "way": way}, lambda w=way, r=rows: one_way(w, r))
    titles = {"mlp": "Digits MLP", "tower": f"{LAYERS} layers of {WIDTH}"}
    for name, rows, graph in (("mlp", 32, False), ("mlp", 1, True), ("tower", 1, False), ("tower", 1, True)):
        for contexts, label in ((1, "two-one-context"), (2, "two-contexts")):
            add(f"{label}-{name}-b{rows}{'-graph' if graph else ''}",
                f"{titles[name]}, batch {rows}, requests back to back through {contexts} context{'s on two streams' if contexts == 2 else ' on one stream'}, "
                f"{'one CUDA graph each' if graph else 'enqueued by one Python thread'}",
                {"model": name, "batch": rows, "contexts": contexts, "graph": graph}, lambda n=name, r=rows, c=contexts, g=graph: through(n, r, c, g))
    return found
