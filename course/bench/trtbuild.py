"""What TensorRT's builder costs, and what portability costs: builds, timing caches, flags, cold starts, refits, on one NVIDIA GPU.

Suite ``trt``: ``python -m course.bench trt --system ID``. Right for TensorRT 8.6 and later; what a release lacks is not among its cases.
ResNet-50 and BERT-base come from BENCH_MODELS (see :mod:`course.bench.models`); the small convolutional network is made here, from a
seed, with its reference outputs in float64. Every build starts with an empty timing cache unless the case is about a filled one, and no
build is the first of its process: that one also loads the builder's kernels, so a tiny network is built before and its seconds are kept
as ``first_build_s``. Plans that two cases need lie in BENCH_MODELS/trtbuild, by release.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from course import ROOT
from course.bench import core, count, gpu, models

BUILDS, BUILDS_S = 3, 10.0  # a model is built so often, or until so many seconds are spent
PROCESSES = 5  # cold starts, each in a process of its own
RUNS = 200  # of a steady engine in such a process
REFITS = 20
CONV_INPUTS = 32
_PARENTS: list[Any] = []
ANSWER = "answer: "  # what a child process says stands behind this


# ---------------------------------------------------------------------------------------------------------------------
# The small network
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def conv_weights() -> dict[str, np.ndarray]:
    """FP16 weights of the small network, seeded: stem 3 to 64, two residual blocks, stride to 128, one more block, classifier of 10."""
    rng = np.random.default_rng(11)
    shapes = {"stem": (64, 3, 3, 3), "a1": (64, 64, 3, 3), "a2": (64, 64, 3, 3), "b1": (64, 64, 3, 3), "b2": (64, 64, 3, 3),
              "down": (128, 64, 3, 3), "c1": (128, 128, 3, 3), "c2": (128, 128, 3, 3), "head": (10, 128)}
    found = {}
    for name, shape in shapes.items():
        gain = 0.5 if name.endswith("2") else 1.0  # a branch adds less than it gets
        found[f"{name}.weight"] = (rng.standard_normal(shape) * gain * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float16)
        found[f"{name}.bias"] = (rng.standard_normal(shape[0]) * 0.1).astype(np.float16)
    return found


def conv_model(precision: str = "fp16"):
    """The small network in ONNX, batch dynamic, images 3 x 64 x 64; ``precision`` is that of weights, inputs and outputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind, dtype = {"fp16": (TensorProto.FLOAT16, np.float16), "fp32": (TensorProto.FLOAT, np.float32)}[precision]
    nodes = []

    def conv(source, name, stride=1, add=None):
        nodes.append(helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [f"{name}.c"], pads=[1, 1, 1, 1], strides=[stride, stride]))
        last = f"{name}.c"
        if add:
            nodes.append(helper.make_node("Add", [last, add], [f"{name}.s"]))
            last = f"{name}.s"
        nodes.append(helper.make_node("Relu", [last], [f"{name}.r"]))
        return f"{name}.r"

    x = conv("input", "stem", 2)
    for block in ("a", "b"):
        x = conv(conv(x, f"{block}1"), f"{block}2", add=x)
    x = conv(x, "down", 2)
    x = conv(conv(x, "c1"), "c2", add=x)
    nodes += [helper.make_node("GlobalAveragePool", [x], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["flat"]),
              helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["output"], transB=1)]
    graph = helper.make_graph(
        nodes, "convnet", [helper.make_tensor_value_info("input", kind, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info("output", kind, ["batch", 10])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in conv_weights().items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def conv_inputs() -> np.ndarray:
    """32 images of smooth patterns and noise, seeded, FP16."""
    rng = np.random.default_rng(12)
    coarse = rng.standard_normal((CONV_INPUTS, 3, 8, 8)).repeat(8, 2).repeat(8, 3)
    return (rng.uniform(0.3, 1.5, (CONV_INPUTS, 1, 1, 1)) * coarse + 0.3 * rng.standard_normal((CONV_INPUTS, 3, 64, 64))).astype(np.float16)


@functools.cache
def conv_reference() -> np.ndarray:
    """The small network's outputs for :func:`conv_inputs` in float64, by NumPy alone."""
    weights = {name: array.astype(np.float64) for name, array in conv_weights().items()}

    def conv(x, name, stride=1):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
        return np.einsum("nchwij,ocij->nohw", seen, weights[f"{name}.weight"], optimize=True) + weights[f"{name}.bias"][:, None, None]

    x = np.maximum(conv(conv_inputs().astype(np.float64), "stem", 2), 0)
    for block in ("a", "b"):
        x = np.maximum(conv(np.maximum(conv(x, f"{block}1"), 0), f"{block}2") + x, 0)
    x = np.maximum(conv(x, "down", 2), 0)
    x = np.maximum(conv(np.maximum(conv(x, "c1"), 0), "c2") + x, 0)
    return x.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model at one batch size, FP16. ``batch`` 0 is a profile of 1 to 128 rows, tuned at 32."""

    name: str
    batch: int = 8

    def onnx(self, precision: str = "fp16"):
        import onnx

        graph = conv_model(precision) if self.name == "convnet" else onnx.load(gpu.folder() / self.name / f"{precision}.onnx")
        return count.fix_batch(graph, self.batch) if self.batch else graph

    def inputs(self) -> np.ndarray:
        return conv_inputs() if self.name == "convnet" else gpu.data(self.name, "fp16")[0]

    def reference(self) -> np.ndarray:
        return conv_reference() if self.name == "convnet" else gpu.data(self.name, "fp16")[1]

    def accuracy(self, outputs: np.ndarray) -> dict[str, Any]:
        """Error of outputs for the first inputs against float64; the tolerance is FP16's."""
        return models.accuracy(self.name, "fp16", outputs, self.reference())


# ---------------------------------------------------------------------------------------------------------------------
# Building. ``trt`` is the module: tensorrt, or TensorRT for RTX, which builds on a CPU for the tests.
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def heard():
    """What the block writes to the process's output and error: TensorRT's logger writes there from C++. A list of lines, filled at the end."""
    lines: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile() as file:
        for number in kept:
            os.dup2(file.fileno(), number)
        try:
            yield lines
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in kept.items():
                os.dup2(old, number)
                os.close(old)
            file.seek(0)
            text = file.read().decode(errors="replace")
            lines += [line.strip()[:300] for line in text.splitlines() if line.strip()]
            sys.stderr.write(text)


@functools.cache
def logger(trt):
    """One logger for the process: every object of TensorRT needs it for its whole life."""
    return trt.Logger(trt.Logger.WARNING)


@dataclasses.dataclass
class Built:
    """What a build gave: the plan, the timing cache after it, seconds of `build_serialized_network`, and what the logger said."""

    plan: bytes
    cache: bytes
    seconds: float
    said: list[str]


def build(trt, graph, *, batch: int, level: int = 3, flags: tuple[str, ...] = (), network_flags: tuple[str, ...] = (), compatible: str = "",
          cache: bytes = b"", half_io: bool = False, libraries: tuple[str, ...] = ()) -> Built:
    """Builds ``graph``, an ONNX model, in FP16. Only the builder's own work is timed, not the parser's.

    ``flags``: names of `BuilderFlag`; ``compatible``: a name of `HardwareCompatibilityLevel`; ``cache``: a timing cache's bytes;
    ``half_io``: make FP32 inputs and outputs FP16; ``libraries``: files to put into the plan as plugin libraries. Raises RuntimeError with the parser's or the logger's words.
    """
    builder = trt.Builder(logger(trt))
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)  # until 10.16; the only kind since 10.0
    wanted = [1 << int(getattr(trt.NetworkDefinitionCreationFlag, name)) for name in network_flags]
    network = builder.create_network(sum(wanted) | (1 << int(explicit) if explicit is not None else 0))
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse(graph.SerializeToString()):
        raise RuntimeError("; ".join(str(parser.get_error(n)) for n in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "FP16") and "STRONGLY_TYPED" not in network_flags:  # since 11 the model's types are the network's
        config.set_flag(trt.BuilderFlag.FP16)  # TensorRT until 10.16
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if compatible:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, compatible)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 8 << 30)
    config.builder_optimization_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Only TensorRT's own kernels compete, so that a host without cuBLAS 12 and cuDNN 8 measures the same.
    config.set_tactic_sources(1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS) | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS))
    if libraries:
        config.plugins_to_serialize = list(libraries)
    if half_io:
        network.get_input(0).dtype = network.get_output(0).dtype = trt.float16
    if not batch:
        first = network.get_input(0)
        rest = tuple(first.shape)[1:]
        profile = builder.create_optimization_profile()
        profile.set_shape(first.name, (1, *rest), (32, *rest), (128, *rest))
        config.add_optimization_profile(profile)
    timings = config.create_timing_cache(cache)  # of no bytes: an empty one
    if not config.set_timing_cache(timings, False):
        raise RuntimeError(f"the builder did not take the timing cache of {len(cache):,} bytes")
    with heard() as said:
        start = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
    if plan is None:
        raise RuntimeError("the builder returned None: " + (" | ".join(said)[-300:] or "it logged nothing"))
    return Built(bytes(memoryview(plan)), bytes(memoryview(timings.serialize())), seconds, said)


@functools.cache
def first_build(trt) -> float:
    """Seconds of the process's first build, a product and a convolution: the following ones find the kernels loaded."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Flatten", ["c"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "first", [helper.make_tensor_value_info("x", half, [1, 8, 8, 8])], [helper.make_tensor_value_info("y", half, [1, 16])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float16), name) for name, shape in (("k", (8, 8, 3, 3)), ("w", (512, 16)))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    start = time.perf_counter()
    build(trt, model, batch=1, level=3)
    return round(time.perf_counter() - start, 2)


def builds(trt, model: Model, repeats: int = BUILDS, **more) -> list[Built]:
    """The model built up to ``repeats`` times, each with the same timing cache as given; fewer once :data:`BUILDS_S` are spent."""
    first_build(trt)
    graph = model.onnx(more.pop("precision", "fp16"))
    found: list[Built] = []
    begun = time.perf_counter()
    while len(found) < repeats and (not found or time.perf_counter() - begun < BUILDS_S):
        found.append(build(trt, graph, batch=model.batch, **more))
    return found


def _store(trt, model: Model, level: int) -> Path:
    home = Path(os.environ.get("BENCH_MODELS") or tempfile.gettempdir()) / "trtbuild"
    home.mkdir(parents=True, exist_ok=True)
    return home / f"{model.name}-b{model.batch}-l{level}-{trt.__version__}"


def keep(trt, model: Model, level: int, built: Built) -> None:
    stem = _store(trt, model, level)
    stem.with_name(stem.name + ".cache").write_bytes(built.cache)
    stem.with_name(stem.name + ".json").write_text(json.dumps({"seconds": built.seconds, "said": built.said}))
    stem.with_name(stem.name + ".plan").write_bytes(built.plan)  # last: it says that the others are there


def plain(trt, model: Model, level: int = 3) -> Built:
    """The model's plan without any flag: as an earlier case left it, or built now."""
    stem = _store(trt, model, level)
    plan = stem.with_name(stem.name + ".plan")
    if not plan.exists():
        keep(trt, model, level, builds(trt, model, 1, level=level)[0])
    note = json.loads(stem.with_name(stem.name + ".json").read_text())
    return Built(plan.read_bytes(), stem.with_name(stem.name + ".cache").read_bytes(), note["seconds"], note["said"])


# ---------------------------------------------------------------------------------------------------------------------
# Running and comparing engines
# ---------------------------------------------------------------------------------------------------------------------


class Running:
    """An engine with a context, a stream and buffers for ``batch`` rows; ``call`` enqueues one run as a CUDA graph, ``wait`` waits."""

    def __init__(self, trt, plan: bytes, batch: int, runtime=None, refit=None):
        import pycuda.autoprimaryctx  # noqa: F401
        import pycuda.driver as cuda

        self.cuda, self.trt = cuda, trt
        self.runtime = runtime or trt.Runtime(logger(trt))
        self.runtime.engine_host_code_allowed = True  # a version-compatible plan carries host code, and these plans are ours
        with heard() as said:
            self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise RuntimeError("the plan did not deserialize: " + (" | ".join(said)[-300:] or "nothing was logged"))
        if refit:
            refit(self.engine)
        self.context = self.engine.create_execution_context()
        self.stream = cuda.Stream()
        self.source, self.target = self.engine.get_tensor_name(0), self.engine.get_tensor_name(1)
        self.kind = trt.nptype(self.engine.get_tensor_dtype(self.source))
        self.context.set_input_shape(self.source, (batch, *tuple(self.engine.get_tensor_shape(self.source))[1:]))
        self.batch = batch
        self.given = np.zeros(tuple(self.context.get_tensor_shape(self.source)), self.kind)
        self.result = np.empty(tuple(self.context.get_tensor_shape(self.target)), trt.nptype(self.engine.get_tensor_dtype(self.target)))
        self.buffers = [cuda.mem_alloc(array.nbytes) for array in (self.given, self.result)]
        for name, memory in zip((self.source, self.target), self.buffers):
            if not self.context.set_tensor_address(name, int(memory)):
                raise RuntimeError(f"set_tensor_address refused {name}")

    def enqueue(self):
        if not self.context.execute_async_v3(self.stream.handle):
            raise RuntimeError("execute_async_v3 returned False")

    def wait(self):
        self.stream.synchronize()

    def put(self, rows: np.ndarray) -> None:
        self.cuda.memcpy_htod(self.buffers[0], np.ascontiguousarray(rows.astype(self.kind)))

    def got(self) -> np.ndarray:
        self.cuda.memcpy_dtoh(self.result, self.buffers[1])
        return self.result.copy()

    def infer(self, rows: np.ndarray) -> np.ndarray:
        """Outputs for a multiple of ``batch`` rows; NaN stands where a run wrote nothing."""
        found = []
        for start in range(0, len(rows), self.batch):
            self.put(rows[start : start + self.batch])
            self.result.fill(np.nan)
            self.cuda.memcpy_htod(self.buffers[1], self.result)
            self.enqueue()
            self.wait()
            found.append(self.got())
        return np.concatenate(found)

    def timed(self, **more) -> tuple[dict, dict, dict]:
        """Series, clocks and how: of one run replayed as a CUDA graph, after a warm-up."""
        self.enqueue()
        self.wait()
        call = gpu.driver_graph(self.stream, self.enqueue)
        with core.Clocks() as clocks:
            begun = time.perf_counter()
            while time.perf_counter() - begun < core.WARM_UP_S:
                call()
                self.wait()
            clocks.mark()
            series, how = core.time_calls(call, self.wait, warm_up_s=0.1, longest_s=3.0, **more)
        return series, clocks.summary(), how

    def facts(self) -> dict[str, Any]:
        memory = "device_memory_size_v2" if hasattr(self.engine, "device_memory_size_v2") else "device_memory_size"
        return {"layers": self.engine.num_layers, "device_memory_bytes": int(getattr(self.engine, memory))}


def tactics(trt, engine) -> dict[str, str]:
    """For each layer of an engine built with DETAILED verbosity, the tactic that it runs; empty where the engine does not tell."""
    try:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        layers = json.loads(text, strict=False).get("Layers", [])  # 8.6 leaves control characters in its strings
    except (AttributeError, ValueError, RuntimeError, TypeError):
        return {}
    found: dict[str, str] = {}
    for place, layer in enumerate(layers):
        if isinstance(layer, dict):
            name = str(layer.get("Name", place))
            found[name if name not in found else f"{name} ({place})"] = str(layer.get("TacticName") or layer.get("TacticValue") or layer.get("LayerType"))
    return found


def compared(one: dict[str, str], other: dict[str, str]) -> dict[str, Any]:
    """How two engines' layers and tactics differ: layers by name, and of those that both have how many run another tactic."""
    both = one.keys() & other.keys()
    return {"layers": [len(one), len(other)], "layers_of_one_only": len(one.keys() ^ other.keys()),
            "layers_with_another_tactic": sum(one[name] != other[name] for name in both),
            "same_tactics": one == other if one and other else None}


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """How far two engines' outputs for the same inputs lie apart; ``largest`` beside the largest output itself."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    sizes = {"largest": float(np.abs(a - b).max()), "largest_output": float(np.abs(a).max())}
    return {"identical": bool((one == other).all()), "values": int(one.size), "values_that_differ": int((one != other).sum()),
            **{name: float(f"{value:.6g}") if np.isfinite(value) else None for name, value in sizes.items()}}


def worst_clocks(*found: dict) -> dict:
    """Clock summaries of parts of one case, joined: the lowest low and the highest high."""
    found = tuple(one for one in found if one)
    if not found:
        return {}
    return {"readings": sum(one["readings"] for one in found),
            **{key: {"min": min(one[key]["min"] for one in found), "max": max(one[key]["max"] for one in found)} for key in ("sm_mhz", "memory_mhz")},
            "power_w": {"mean": round(statistics.fmean(one["power_w"]["mean"] for one in found), 1), "max": max(one["power_w"]["max"] for one in found)},
            "temperature_c": {"max": max(one["temperature_c"]["max"] for one in found)},
            "memory_used_mib": {"max": max(one["memory_used_mib"]["max"] for one in found)},
            "event_reasons": sorted({reason for one in found for reason in one["event_reasons"]})}


def _modules():
    import pycuda.autoprimaryctx  # noqa: F401
    import tensorrt as trt

    return trt


def _said(*found: Built) -> list[str]:
    """The logger's warnings and errors, times taken off, each once."""
    return list(dict.fromkeys(re.sub(r"^\[[^\]]*\] ", "", line) for one in found for line in one.said))[:10]


def _asked(model: Model, **more) -> dict[str, Any]:
    return {"model": model.name, "precision": "fp16", "batch": model.batch or "1 to 128, tuned at 32", "first_build_s": first_build(_modules()),
            "tactic_sources": ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"], "input_format": "LINEAR", "path": "CUDA graph over execute_async_v3",
            "cuda_module_loading": os.environ.get("CUDA_MODULE_LOADING", "the driver's default"), **more}


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------


def at_level(model: Model, level: int) -> core.Result:
    """Build time and the engine's latency at a builder optimization level; each build with an empty timing cache."""
    trt = _modules()
    made = builds(trt, model, level=level)
    keep(trt, model, level, made[0])
    running = Running(trt, made[0].plan, model.batch)
    outputs = running.infer(model.inputs()[: 4 * model.batch])
    series, clocks, how = running.timed()
    series["build"] = ("s", [[one.seconds for one in made]])
    return core.Result(series, {"plan_bytes": len(made[0].plan), "cache_bytes": len(made[0].cache), **running.facts(), "said": _said(*made)},
                       model.accuracy(outputs), clocks, {**how, **_asked(model, builder_optimization_level=level)}, few={"build": 1})


def twice(model: Model, level: int = 3) -> core.Result:
    """One file built twice, each with an empty timing cache: tactics, sizes, outputs, bit for bit."""
    trt = _modules()
    first_build(trt)
    graph = model.onnx()
    made = [build(trt, graph, batch=model.batch, level=level) for _ in range(2)]
    keep(trt, model, level, made[0])
    rows = model.inputs()[: max(32, 4 * model.batch) // model.batch * model.batch]
    engines = [Running(trt, one.plan, model.batch) for one in made]
    outputs = [one.infer(rows) for one in engines]
    again = engines[0].infer(rows)
    timed = [one.timed() for one in engines]
    series = {**timed[0][0], **{f"second_{name}": value for name, value in timed[1][0].items()}, "build": ("s", [[one.seconds for one in made]])}
    results = {"plans": {"bytes": [len(one.plan) for one in made], "identical": made[0].plan == made[1].plan},
               "outputs": difference(*outputs), "same_plan_run_again": difference(outputs[0], again),
               "tactics": compared(*(tactics(trt, one.engine) for one in engines)), **engines[0].facts(), "said": _said(*made)}
    worst = max((model.accuracy(one) for one in outputs), key=lambda found: found["error"] if found["error"] is not None else np.inf)
    return core.Result(series, results, worst, worst_clocks(timed[0][1], timed[1][1]),
                       {**timed[0][2], **_asked(model, builder_optimization_level=level, inputs_compared=len(rows))}, few={"build": 2})


def with_cache(model: Model, level: int = 3) -> core.Result:
    """Build time with an empty and with a filled timing cache, in this process and in the next one."""
    trt = _modules()
    first_build(trt)
    small = model.name == "convnet"
    graph = model.onnx()
    if small:
        empty = [build(trt, graph, batch=model.batch, level=level) for _ in range(2)]
        keep(trt, model, level, empty[0])
    else:
        empty = [plain(trt, model, level)]
    filled = [build(trt, graph, batch=model.batch, level=level, cache=empty[0].cache) for _ in range(2)]
    spent = {"empty": empty, "filled": filled}
    if small:
        spent["disabled"] = [build(trt, graph, batch=model.batch, level=level, flags=("DISABLE_TIMING_CACHE",))]
    stem = _store(trt, model, level)
    later = child("build", model=model.name, batch=model.batch, level=level, cache=str(stem.with_name(stem.name + ".cache")))
    engines = [Running(trt, one.plan, model.batch) for one in (empty[0], filled[0])]
    rows = model.inputs()[: 4 * model.batch]
    outputs = [one.infer(rows) for one in engines]
    timed = [one.timed() for one in engines]
    series = {**{f"build_{name}": ("s", [[one.seconds for one in made]]) for name, made in spent.items()},
              "build_next_process": ("s", [[later["seconds"]]]),
              **{f"empty_{name}": value for name, value in timed[0][0].items()}, **{f"filled_{name}": value for name, value in timed[1][0].items()}}
    own = [tactics(trt, one.engine) for one in engines]
    results = {"cache_bytes": len(empty[0].cache), "plan_bytes": {"empty": len(empty[0].plan), "filled": len(filled[0].plan), "next_process": later["plan_bytes"]},
               "plans_identical": empty[0].plan == filled[0].plan, "tactics": compared(*own), "tactics_next_process": compared(own[1], later["tactics"]),
               "outputs": difference(*outputs), "said": {"empty": _said(*empty), "filled": _said(*filled), "next_process": later["said"]}}
    return core.Result(series, results, model.accuracy(outputs[1]), worst_clocks(timed[0][1], timed[1][1]),
                       {**timed[0][2], **_asked(model, builder_optimization_level=level)}, few={name: 1 for name in series if name.startswith("build_")})


def editable_cache(model: Model, level: int = 3) -> core.Result:
    """A timing cache whose entries can be read and set, and a build that fails if one is missing."""
    trt = _modules()
    first_build(trt)
    graph = model.onnx()
    made = build(trt, graph, batch=model.batch, level=level, flags=("EDITABLE_TIMING_CACHE",))
    again = build(trt, graph, batch=model.batch, level=level, flags=("EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS"), cache=made.cache)
    config = trt.Builder(logger(trt)).create_builder_config()
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)  # TensorRT since 10.16
    cache = config.create_timing_cache(made.cache)
    keys = cache.queryKeys()  # TensorRT since 10.16
    timed = sum(cache.query(key).timingMSec > 0 for key in keys)  # TensorRT since 10.16
    engines = [Running(trt, one.plan, model.batch) for one in (made, again)]
    outputs = engines[1].infer(model.inputs()[: 4 * model.batch])
    series, clocks, how = engines[1].timed()
    series |= {"build_empty": ("s", [[made.seconds]]), "build_filled": ("s", [[again.seconds]])}
    results = {"cache_bytes": len(made.cache), "entries": len(keys), "entries_with_a_time": timed,
               "tactics": compared(*(tactics(trt, one.engine) for one in engines)), "plan_bytes": len(again.plan), "said": _said(made, again)}
    return core.Result(series, results, model.accuracy(outputs), clocks, {**how, **_asked(model, builder_optimization_level=level)},
                       few={"build_empty": 1, "build_filled": 1})


def beside_plain(model: Model, variant: dict[str, Any], *, lean: bool = False) -> core.Result:
    """A build with portability flags or other types, timed beside the plain engine of the same model."""
    trt = _modules()
    made = builds(trt, model, **variant)
    usual = plain(trt, model)
    refit = None
    if "STRIP_PLAN" in variant.get("flags", ()):
        def refit(engine):
            put_weights(trt, engine, weights_of(model.onnx()))
    runtime = None
    if lean:
        runtime = lean_runtime(trt)
    engines = [Running(trt, made[0].plan, model.batch, runtime, refit), Running(trt, usual.plan, model.batch)]
    rows = model.inputs()[: 4 * model.batch]
    outputs = [one.infer(rows) for one in engines]
    timed = [one.timed() for one in engines]
    series = {**timed[0][0], **{f"plain_{name}": value for name, value in timed[1][0].items()},
              "build": ("s", [[one.seconds for one in made]]), "plain_build": ("s", [[usual.seconds]])}
    results = {"plan_bytes": len(made[0].plan), "plain_plan_bytes": len(usual.plan), **engines[0].facts(), "plain_layers": engines[1].facts()["layers"],
               "tactics": compared(*(tactics(trt, one.engine) for one in engines)), "outputs": difference(*outputs), "said": _said(*made)}
    return core.Result(series, results, model.accuracy(outputs[0]), worst_clocks(timed[0][1], timed[1][1]),
                       {**timed[0][2], **_asked(model, builder_optimization_level=3, **{k: list(v) if isinstance(v, tuple) else v for k, v in variant.items()})},
                       few={"build": 1, "plain_build": 1})


def lean_runtime(trt):
    """A runtime out of libnvinfer_lean, wherever this installation has it; the full runtime where it has none."""
    roots = {Path(trt.__file__).parent, *(Path(found.origin).parent for found in map(importlib.util.find_spec, ("tensorrt_libs", "tensorrt_lean_libs")) if found and found.origin)}
    for path in sorted(file for root in roots for file in root.glob("libnvinfer_lean.so*")):
        parent = trt.Runtime(logger(trt))
        found = parent.load_runtime(str(path))
        if found is not None:
            _PARENTS.append(parent)  # what made a runtime has to outlive it
            return found
    return None


def weights_of(graph) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {tensor.name: np.ascontiguousarray(numpy_helper.to_array(tensor)) for tensor in graph.graph.initializer}


def put_weights(trt, engine, weights: dict[str, np.ndarray]) -> int:
    """Refits every weight of ``engine`` that ``weights`` has by its name; returns how many. Raises RuntimeError where one is missing.

    The arrays have to live until `refit_cuda_engine` returns: TensorRT keeps their addresses.
    """
    refitter = trt.Refitter(engine, logger(trt))
    names = [name for name in refitter.get_all_weights() if name in weights]
    for name in names:
        if not refitter.set_named_weights(name, weights[name]):
            raise RuntimeError(f"set_named_weights refused {name} of shape {weights[name].shape}")
    missing = refitter.get_missing_weights()
    if missing or not names:
        raise RuntimeError(f"{len(names)} weights set, {len(missing)} missing: {missing[:3]}")
    if not refitter.refit_cuda_engine():
        raise RuntimeError("refit_cuda_engine returned False")
    return len(names)


def refitted(model: Model) -> core.Result:
    """Refit against rebuild: an engine with the REFIT flag gets new weights; its outputs have to follow them."""
    trt = _modules()
    made = builds(trt, model, flags=("REFIT",))
    usual = plain(trt, model)
    engines = [Running(trt, made[0].plan, model.batch), Running(trt, usual.plan, model.batch)]
    graph = model.onnx()
    old = weights_of(graph)
    last = next(node for node in reversed(graph.graph.node) if node.op_type == "Gemm").input[2]  # the classifier's bias
    new = {**old, last: old[last] + old[last].dtype.type(1)}
    rows = model.inputs()[: 4 * model.batch]
    spent: list[float] = []
    before = engines[0].infer(rows)
    for number in range(REFITS):
        start = time.perf_counter()
        count_of = put_weights(trt, engines[0].engine, new if number % 2 == 0 else old)
        engines[0].cuda.Context.synchronize()
        spent.append((time.perf_counter() - start) * 1e3)
        if number == 0:
            moved = engines[0].infer(rows)
    after = engines[0].infer(rows)
    shift = moved.astype(np.float64) - before.astype(np.float64)
    if not np.abs(shift - 1).max() < 0.05 * max(1.0, np.abs(before).max()):
        raise RuntimeError(f"the bias went up by 1, the outputs by {shift.min():.3g} to {shift.max():.3g}: the refit did not take")
    timed = [one.timed() for one in engines]
    series = {**timed[0][0], **{f"plain_{name}": value for name, value in timed[1][0].items()}, "refit": ("ms", [spent]),
              "build": ("s", [[one.seconds for one in made]]), "plain_build": ("s", [[usual.seconds]])}
    results = {"weights": count_of, "weight_bytes": sum(array.nbytes for array in new.values()), "plan_bytes": len(made[0].plan), "plain_plan_bytes": len(usual.plan),
               **engines[0].facts(), "outputs_after_old_weights": difference(before, after), "mean_shift": float(f"{shift.mean():.6g}"), "said": _said(*made)}
    return core.Result(series, results, model.accuracy(after), worst_clocks(timed[0][1], timed[1][1]),
                       {**timed[0][2], **_asked(model, builder_optimization_level=3, flags=["REFIT"])}, few={"build": 1, "plain_build": 1, "refit": REFITS})


def one_for_all(name: str) -> core.Result:
    """One engine for 1 to 128 rows, tuned at 32, run at 1, 8 and 32 rows; beside it the engine for one row."""
    trt = _modules()
    fixed, wide = Model(name, 1), Model(name, 0)
    usual = plain(trt, fixed)
    made = plain(trt, wide)
    parts, series = [], {"build": ("s", [[made.seconds]]), "fixed_b1_build": ("s", [[usual.seconds]])}
    accuracies = []
    for label, plan, batch in (("fixed_b1", usual.plan, 1), ("b1", made.plan, 1), ("b8", made.plan, 8), ("b32", made.plan, 32)):
        running = Running(trt, plan, batch)
        accuracies.append(fixed.accuracy(running.infer(fixed.inputs()[:32])))
        found, clocks, how = running.timed()
        series |= {f"{label}_{key}": value for key, value in found.items()}
        parts.append(clocks)
    worst = max(accuracies, key=lambda found: found["error"] if found["error"] is not None else np.inf)
    return core.Result(series, {"plan_bytes": len(made.plan), "fixed_b1_plan_bytes": len(usual.plan), **running.facts(), "said": _said(made)}, worst, worst_clocks(*parts),
                       {**how, **_asked(wide, builder_optimization_level=3)}, few={"build": 1, "fixed_b1_build": 1})


def cold_start(name: str) -> core.Result:
    """From a plan file to a steady engine, each time in a fresh process; the file is in the operating system's cache."""
    import tensorrt as trt

    model = Model(name, 1)
    made = plain(trt, model)
    stem = _store(trt, model, 3)
    path = stem.with_name(stem.name + ".plan")
    found = [child("start", model=name, plan=str(path)) for _ in range(PROCESSES)]
    steps = ("import", "cuda_context", "runtime", "read", "deserialize", "create_context", "first_run", "second_run", "deserialize_again", "create_context_again")
    series = {step: ("ms", [[one[step] for one in found]]) for step in steps}
    series["steady"] = ("ms", [one["steady"] for one in found])
    worst = max((one["accuracy"] for one in found), key=lambda one: one["error"] if one["error"] is not None else np.inf)
    return core.Result(series, {"plan_bytes": len(made.plan), "build_s": round(made.seconds, 2)}, worst, worst_clocks(*(one["clocks"] for one in found)),
                       {"model": name, "precision": "fp16", "batch": 1, "builder_optimization_level": 3, "processes": PROCESSES, "input_format": "LINEAR",
                        "path": "execute_async_v3 and a synchronization, no CUDA graph", "cuda_module_loading": os.environ.get("CUDA_MODULE_LOADING", "the driver's default")},
                       few={step: PROCESSES for step in steps})


def with_library(flags: tuple[str, ...]) -> core.Result:
    """A plan with a shared library inside, loaded with host code forbidden and allowed: what comes back, and what was mapped into the process.

    The library is one of Python's own extension modules: no plugin, and harmless. Each attempt has a process of its own, since it may crash.
    """
    trt = _modules()
    first_build(trt)
    library = min(Path(os.__file__).with_name("lib-dynload").glob("*.so"), key=lambda path: path.stat().st_size)
    made = build(trt, Model("convnet").onnx(), batch=8, level=0, flags=flags, libraries=(str(library),))
    usual = build(trt, Model("convnet").onnx(), batch=8, level=0, flags=flags)
    stem = _store(trt, Model("convnet"), 0)
    found = {}
    for inside, one in (("library", made), ("nothing", usual)):
        path = stem.with_name(f"{stem.name}-{inside}{'-compatible' if flags else ''}.plan")
        path.write_bytes(one.plan)
        for allowed in (False, True):
            found[f"{inside}_host_code_{'allowed' if allowed else 'forbidden'}"] = child("load", plan=str(path), allowed=allowed)
    contents = library.read_bytes()
    return core.Result({"build": ("s", [[made.seconds, usual.seconds]])},
                       {"library_bytes": len(contents), "plan_bytes": [len(usual.plan), len(made.plan)], "library_in_plan": contents in made.plan,
                        "plan_starts_with": made.plan[:4].decode("latin-1"), "bytes_24_to_27": list(made.plan[24:28]), "loads": found, "said": _said(made)},
                       configuration=_asked(Model("convnet"), builder_optimization_level=0, flags=list(flags)), few={"build": 2})


# ---------------------------------------------------------------------------------------------------------------------
# The next process
# ---------------------------------------------------------------------------------------------------------------------


def child(what: str, **asked) -> dict[str, Any]:
    """Runs :func:`main` in a fresh interpreter and returns what it printed last; raises RuntimeError with its last words."""
    done = subprocess.run([sys.executable, "-m", "course.bench.trtbuild", what, json.dumps(asked)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    for line in reversed(done.stdout.splitlines()):  # TensorRT's logger writes to the same stream
        if line.startswith(ANSWER):
            return json.loads(line[len(ANSWER):])
    if done.returncode < 0:  # a signal: for a plan that is not to be trusted that is an answer
        return {"signal": -done.returncode}
    raise RuntimeError(f"the child ended with {done.returncode}: {(done.stderr + done.stdout)[-500:]}")


def start_once(model: str, plan: str) -> dict[str, Any]:
    """The steps of one cold start, in milliseconds."""
    spent: dict[str, Any] = {}
    at = time.perf_counter()

    def step(name):
        nonlocal at
        now = time.perf_counter()
        spent[name] = (now - at) * 1e3
        at = time.perf_counter()

    import tensorrt as trt
    step("import")
    import pycuda.autoprimaryctx  # noqa: F401
    import pycuda.driver as cuda
    step("cuda_context")
    runtime = trt.Runtime(logger(trt))
    step("runtime")
    data = Path(plan).read_bytes()
    step("read")
    engine = runtime.deserialize_cuda_engine(data)
    step("deserialize")
    if engine is None:
        raise RuntimeError("the plan did not deserialize")
    context = engine.create_execution_context()
    cuda.Context.synchronize()
    step("create_context")
    one = Model(model, 1)
    names = [engine.get_tensor_name(n) for n in range(2)]
    given = np.ascontiguousarray(one.inputs()[:1].astype(trt.nptype(engine.get_tensor_dtype(names[0]))))
    result = np.full(tuple(engine.get_tensor_shape(names[1])), np.nan, trt.nptype(engine.get_tensor_dtype(names[1])))
    buffers = [cuda.mem_alloc(array.nbytes) for array in (given, result)]
    for name, array, memory in zip(names, (given, result), buffers):
        cuda.memcpy_htod(memory, array)
        context.set_tensor_address(name, int(memory))
    stream = cuda.Stream()
    stream.synchronize()
    at = time.perf_counter()
    for name in ("first_run", "second_run"):
        if not context.execute_async_v3(stream.handle):
            raise RuntimeError("execute_async_v3 returned False")
        stream.synchronize()
        step(name)
    with core.Clocks() as clocks:
        begun = time.perf_counter()
        while time.perf_counter() - begun < core.WARM_UP_S:
            context.execute_async_v3(stream.handle)
            stream.synchronize()
        clocks.mark()
        steady = []
        while len(steady) < RUNS or time.perf_counter() - begun < 1.5 * core.WARM_UP_S:
            begin = time.perf_counter()
            context.execute_async_v3(stream.handle)
            stream.synchronize()
            steady.append((time.perf_counter() - begin) * 1e3)
        spent["steady"] = steady[:RUNS]
    cuda.memcpy_dtoh(result, buffers[1])
    at = time.perf_counter()
    second = runtime.deserialize_cuda_engine(data)
    step("deserialize_again")
    kept = second.create_execution_context()
    cuda.Context.synchronize()
    step("create_context_again")
    del kept, second
    return {**spent, "clocks": clocks.summary(), "accuracy": one.accuracy(result)}


def build_once(model: str, batch: int, level: int, cache: str) -> dict[str, Any]:
    """One build in this process, with the timing cache of a file or an empty one."""
    trt = _modules()
    first_build(trt)
    one = Model(model, batch)
    made = build(trt, one.onnx(), batch=batch, level=level, cache=Path(cache).read_bytes() if cache else b"")
    engine = trt.Runtime(logger(trt)).deserialize_cuda_engine(made.plan)
    return {"seconds": made.seconds, "plan_bytes": len(made.plan), "said": _said(made), "tactics": tactics(trt, engine)}


def _mapped() -> set[str]:
    """The files that are mapped into this process with the right to execute; in-memory files by the name they were given."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(None, 5)[5] for line in lines if len(line.split(None, 5)) == 6 and "x" in line.split()[1]}


def load_once(plan: str, allowed: bool) -> dict[str, Any]:
    """Deserializes a plan file: whether an engine came, which executable files were mapped since, and what the logger said."""
    trt = _modules()
    runtime = trt.Runtime(logger(trt))
    default = runtime.engine_host_code_allowed
    runtime.engine_host_code_allowed = allowed
    before = _mapped()
    with heard() as said:
        engine = runtime.deserialize_cuda_engine(Path(plan).read_bytes())
    new = sorted(re.sub(r"[0-9a-fA-F]{6,}|\d{4,}", "#", name) for name in _mapped() - before)
    return {"allowed_by_default": default, "engine": engine is not None, "mapped": new, "said": _said(Built(b"", b"", 0.0, said))}


def main() -> None:
    answer = {"start": start_once, "build": build_once, "load": load_once}[sys.argv[1]](**json.loads(sys.argv[2]))
    print(f"\n{ANSWER}{json.dumps(answer)}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# The list
# ---------------------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "version-compatible": ("for later releases too, a lean runtime inside", {"flags": ("VERSION_COMPATIBLE",)}),
    "ampere-plus": ("for Ampere and later GPUs", {"compatible": "AMPERE_PLUS"}),
    "exclude-lean": ("for later releases too, no runtime inside", {"flags": ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME")}),
    "same-capability": ("for one compute capability", {"compatible": "SAME_COMPUTE_CAPABILITY"}),
    "both": ("for later releases and for Ampere and later GPUs", {"flags": ("VERSION_COMPATIBLE",), "compatible": "AMPERE_PLUS"}),
    "strip": ("without its weights, refitted before it runs", {"flags": ("STRIP_PLAN",)}),
    "typed-strong": ("strongly typed, an FP16 model", {"network_flags": ("STRONGLY_TYPED",)}),
    "typed-weak": ("weakly typed, an FP32 model with the FP16 flag", {"precision": "fp32", "half_io": True}),
}


def offered(trt, variant: dict[str, Any]) -> bool:
    """Whether the release has every flag that the variant names; typed weakly or strongly only where it has both."""
    both = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and hasattr(trt.BuilderFlag, "FP16")
    return (all(hasattr(trt.BuilderFlag, flag) for flag in variant.get("flags", ()))
            and (not variant.get("compatible") or hasattr(trt.HardwareCompatibilityLevel, variant["compatible"]))
            and (both or not ({"network_flags", "half_io"} & variant.keys())))


def cases(trt=None) -> list[core.Case]:
    """What matters most first. Where TensorRT can be imported, only what its release offers."""
    if trt is None and importlib.util.find_spec("tensorrt"):
        import tensorrt as trt
    small, large = Model("convnet"), Model("resnet50")
    found: list[core.Case] = []

    def add(name, what, run):
        found.append(core.Case(name, what, {}, run, ("tensorrt", "pycuda"), gpu=True))

    def flag(model, key):
        what, variant = VARIANTS[key]
        if trt is None or offered(trt, variant):
            add(f"{model.name}-{key}", f"{gpu.TITLES.get(model.name, 'Small CNN')}, FP16, batch {model.batch}: {what}",
                lambda: beside_plain(model, dict(variant), lean=key == "exclude-lean"))

    add("resnet50-twice", "ResNet-50, FP16, batch 1: one file built twice", lambda: twice(Model("resnet50", 1)))
    add("resnet50-start", "ResNet-50, FP16, batch 1: cold start from a plan", lambda: cold_start("resnet50"))
    for level in (3, 0, 1, 2, 4, 5):
        add(f"convnet-level{level}", f"Small CNN, FP16, batch 8: builder optimization level {level}", lambda n=level: at_level(small, n))
    add("convnet-cache", "Small CNN, FP16, batch 8: builds with empty and filled timing caches", lambda: with_cache(small))
    if trt is None or hasattr(trt.BuilderFlag, "EDITABLE_TIMING_CACHE"):
        add("convnet-editable", "Small CNN, FP16, batch 8: an editable timing cache", lambda: editable_cache(small))
    for key in ("ampere-plus", "exclude-lean", "version-compatible"):
        flag(small, key)
    add("convnet-library", "A plan with a shared library inside: what loading it does", lambda: with_library(()))
    add("convnet-library-compatible", "A version-compatible plan with a shared library inside: what loading it does",
        lambda: with_library(("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME")))
    add("convnet-refit", "Small CNN, FP16, batch 8: refit and rebuild", lambda: refitted(small))
    for level in (3, 0, 1, 2):
        add(f"resnet50-level{level}", f"ResNet-50, FP16, batch 8: builder optimization level {level}", lambda n=level: at_level(large, n))
    add("resnet50-cache", "ResNet-50, FP16, batch 8: builds with empty and filled timing caches", lambda: with_cache(large))
    add("bert-start", "BERT-base encoder, FP16, batch 1: cold start from a plan", lambda: cold_start("bert"))
    add("resnet50-range", "ResNet-50, FP16: one engine for 1 to 128 rows tuned at 32, beside one for 1 row", lambda: one_for_all("resnet50"))
    for key in ("same-capability", "both", "strip", "typed-strong", "typed-weak"):
        flag(small, key)
    flag(large, "ampere-plus")
    flag(large, "exclude-lean")
    add("resnet50-refit", "ResNet-50, FP16, batch 8: refit and rebuild", lambda: refitted(large))
    for level in (4, 5):
        add(f"resnet50-level{level}", f"ResNet-50, FP16, batch 8: builder optimization level {level}", lambda n=level: at_level(large, n))
    return found


if __name__ == "__main__":
    main()
