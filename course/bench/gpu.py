"""TensorRT, ONNX Runtime and torch on an NVIDIA GPU, each on its fastest documented path. One inference is enqueued by
``call`` and waited for by ``wait``; inputs and outputs stay in GPU memory, in the format that the engine likes best."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from course.bench import core, count, models



def folder() -> Path:
    """Where ``course.bench.models`` has put the models: the environment's BENCH_MODELS."""
    given = os.environ.get("BENCH_MODELS")
    if not given:
        raise SystemExit("Say where the models are: python -m course.bench.models FOLDER, then BENCH_MODELS=FOLDER")
    return Path(given)


def data(name, precision):
    home = folder() / name
    given = np.load(home / "inputs.npy")
    if given.dtype == np.float32 and precision == "fp16":
        given = given.astype(np.float16)
    labels = np.load(models.ROOT / "models/digits_mlp/heldout.npz")["labels"] if name == "mlp" else None
    return given, np.load(home / "reference.npy"), labels


def counted(name, precision, batch):
    """Operations and bytes of the graph in that precision's storage (INT8: weights of the Q/DQ graph as int8)."""
    found = count.count_file(folder() / name / ("fp16.onnx" if precision in ("fp16", "int8") else "fp32.onnx"), batch)
    return {"operations": found.operations, "weight_bytes": found.weights // (2 if precision == "int8" else 1),
            "input_bytes": found.inputs, "output_bytes": found.outputs, "unfused_bytes": found.unfused, "nodes": found.nodes}


def finish(name, precision, batch, call, wait, outputs, results=None, configuration=None, **timing):
    """Times ``call``, then takes ``outputs()`` of the last timed call for the accuracy.

    Calls of more than 5 ms are warmed up for three times as long: they bring the GPU to its power limit, and its clock comes down only then.
    """
    with core.Clocks() as clocks:
        call()
        wait()
        start = time.perf_counter()
        call()
        wait()
        enough = core.WARM_UP_S * (3 if time.perf_counter() - start > 5e-3 else 1)
        while time.perf_counter() - start < enough:
            call()
            wait()
        clocks.mark()
        series, how = core.time_calls(call, wait, **{"longest_s": 12.0, **timing})
    _, reference, labels = data(name, precision)
    quantized = {"quantized_operators": json.loads((folder() / name / "int8.json").read_text())} if precision == "int8" else {}
    return core.Result(series, {"counts": counted(name, precision, batch), **(results or {})},
                       models.accuracy(name, precision, outputs(), reference, labels), clocks.summary(), {**how, **quantized, **(configuration or {})})


# ---------------------------------------------------------------------------------------------------------------------
# TensorRT (pycuda gives memory and streams, the driver's library the graph)
# ---------------------------------------------------------------------------------------------------------------------

def driver_graph(stream, enqueue):
    """Captures what ``enqueue()`` puts on ``stream`` into a CUDA graph; returns a function that launches it.

    Source: CUDA driver API, graph management. Raises RuntimeError with the driver's error number.
    """
    cuda = ctypes.CDLL("libcuda.so.1")

    def check(status, what):
        if status:
            raise RuntimeError(f"{what} failed with CUDA error {status}")

    handle, graph, ready = ctypes.c_void_p(stream.handle), ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cuStreamBeginCapture_v2(handle, 1), "cuStreamBeginCapture")  # 1: only this thread's calls are watched
    enqueue()
    check(cuda.cuStreamEndCapture(handle, ctypes.byref(graph)), "cuStreamEndCapture")
    check(cuda.cuGraphInstantiateWithFlags(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)), "cuGraphInstantiate")
    launch = cuda.cuGraphLaunch
    return lambda: check(launch(ready, handle), "cuGraphLaunch")


def cublas_version():
    """The version of the cuBLAS 12 that TensorRT 8.6 would load, as cublasLtGetVersion gives it (120901 is 12.9.1); None where there is none.

    Its wheel wants cuBLAS 12 and cuDNN 8 beside it. A library that only bears the name has no version above 120000.
    """
    import tensorrt

    for home in (Path(tensorrt.__file__).parent, Path()):
        try:
            library = ctypes.CDLL(str(home / "libcublasLt.so.12"))
            library.cublasLtGetVersion.restype = ctypes.c_size_t
            version = library.cublasLtGetVersion()
        except (OSError, AttributeError):
            continue
        if version >= 120000:
            return version
    return None


def tactic_sources(trt):
    """Names of `trt.TacticSource` that compete in a build on this host, cuBLAS only where a real one can be loaded, and never cuDNN 8."""
    return ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS", *(["CUBLAS", "CUBLAS_LT"] if cublas_version() else [])]


def build_engine(trt, logger, name, precision, batch, level, sources):
    """The serialized engine for one batch size, as bytes-like, and what was asked of the builder. ``sources``: names of `trt.TacticSource`."""
    import onnx

    flags = {"fp16": ["FP16"], "int8": ["INT8", "FP16"], "tf32": ["TF32"], "fp32": []}[precision]
    graph = count.fix_batch(onnx.load(folder() / name / {"fp16": "fp16.onnx", "int8": "int8.onnx"}.get(precision, "fp32.onnx")), batch)
    joined = models.join_projections(graph) if os.environ.get("BENCH_JOIN") else 0
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.SerializeToString()):
        raise RuntimeError("; ".join(str(parser.get_error(n)) for n in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 8 << 30)
    config.builder_optimization_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, source)) for source in sources))
    first, last = network.get_input(0), network.get_output(0)
    if precision in ("fp16", "int8") and first.dtype == trt.float32:
        first.dtype = trt.float16
    if precision in ("fp16", "int8"):
        last.dtype = trt.float16
    if name == "resnet50" and precision in ("fp16", "int8"):
        first.allowed_formats = 1 << int(trt.TensorFormat.LINEAR) | 1 << int(trt.TensorFormat.HWC8)
    kept = os.environ.get("BENCH_TIMING_CACHE")
    if kept:
        known = Path(kept).read_bytes() if Path(kept).exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("the builder returned None; its log says why")
    if kept:
        Path(kept).write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
    return plan, {"builder_optimization_level": level, "builder_flags": flags, "tactic_sources": sources, "cublas": cublas_version(),
                  "workspace_bytes": 8 << 30, "joined_projections": joined, "io_dtype": "float16" if precision in ("fp16", "int8") else "float32"}


def variants(trt, name, precision):
    """The builder levels and tactic sources to try, as a list of (level, sources): all for the MLP, whose engine takes seconds to build."""
    sources = tactic_sources(trt)
    if os.environ.get("BENCH_LEVEL") or name != "mlp":
        return [(int(os.environ.get("BENCH_LEVEL", 5 if precision == "fp16" else 3)), sources)]
    return [(level, some) for level in (3, 5) for some in ([sources[:2], sources] if len(sources) > 2 else [sources])]


def tensorrt_graph(name, precision, batch):
    """TensorRT: an engine for this batch, its `execute_async_v3` in a CUDA graph.

    Where there are several :func:`variants`, each is built, and what took less time is measured; ``tried`` says what each took.
    """
    import tensorrt as trt

    tried, best = [], None
    for level, sources in variants(trt, name, precision):
        one = ready_engine(trt, name, precision, batch, level, sources)
        ms = quick(one["call"], one["wait"])
        tried.append({"builder_optimization_level": level, "cublas": "CUBLAS" in sources, "ms": ms})
        if best is None or ms < best[0]:
            best = (ms, one)
    one = best[1]
    if len(tried) > 1:
        one["extra"]["tried"] = tried
    found = finish(name, precision, batch, one["call"], one["wait"], one["outputs"], one["extra"],
                   {**one["asked"], "path": "CUDA graph over execute_async_v3"})
    if precision in ("fp16", "int8"):
        found.results["profile"] = layer_times(trt, one["context"], one["stream"])
        if precision == "fp16" and shutil.which("ncu") and os.environ.get("BENCH_NCU"):
            found.results["kernels"] = plan_kernels(one["cache"])
    return found


def ready_engine(trt, name, precision, batch, level, sources):
    """Builds an engine, or takes it from BENCH_MODELS, gives it its input on the GPU and captures one execution in a CUDA graph.

    Returns a dict: call, wait, outputs (functions), extra and asked (for the run's file), context, stream, cache (the plan's path), and what must outlive them.
    """
    import pycuda.autoprimaryctx  # noqa: F401
    import pycuda.driver as cuda

    logger = trt.Logger(trt.Logger.ERROR)
    marks = ("-joined" if os.environ.get("BENCH_JOIN") else "") + ("-cublas" if "CUBLAS" in sources else "")
    cache = folder() / name / f"{precision}-b{batch}-l{level}{marks}.plan"
    note = cache.with_suffix(".json")
    if cache.exists():
        plan, (asked, build_s) = cache.read_bytes(), json.loads(note.read_text())
    else:
        start = time.perf_counter()
        plan, asked = build_engine(trt, logger, name, precision, batch, level, sources)
        build_s = time.perf_counter() - start
        note.write_text(json.dumps([asked, build_s]))
        cache.write_bytes(plan)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    stream = cuda.Stream()
    source, target = engine.get_tensor_name(0), engine.get_tensor_name(1)
    given, reference, _ = data(name, "fp16" if precision in ("fp16", "int8") else precision)
    given = given[:batch]
    layout = engine.get_tensor_format(source)
    if layout == trt.TensorFormat.HWC8:
        laid = np.zeros((*given.shape[:1], *given.shape[2:], 8), given.dtype)
        laid[..., : given.shape[1]] = given.transpose(0, 2, 3, 1)
        given = laid
    given = np.ascontiguousarray(given.astype(trt.nptype(engine.get_tensor_dtype(source))))
    result = np.empty(tuple(engine.get_tensor_shape(target)), trt.nptype(engine.get_tensor_dtype(target)))
    result.fill(np.nan)
    gpu_in, gpu_out = cuda.mem_alloc(given.nbytes), cuda.mem_alloc(result.nbytes)
    cuda.memcpy_htod(gpu_in, given)
    cuda.memcpy_htod(gpu_out, result)
    context.set_tensor_address(source, int(gpu_in))
    context.set_tensor_address(target, int(gpu_out))
    if not context.execute_async_v3(stream.handle):  # once outside: TensorRT may set itself up in its first call
        raise RuntimeError("execute_async_v3 returned False")
    stream.synchronize()
    call = driver_graph(stream, lambda: context.execute_async_v3(stream.handle))

    def outputs():
        cuda.memcpy_dtoh(result, gpu_out)
        return result

    extra = {"build_s": round(build_s, 2), "engine_bytes": plan.nbytes if hasattr(plan, "nbytes") else len(plan), "device_memory_bytes": engine.device_memory_size, "layers": engine.num_layers}
    return {"call": call, "wait": stream.synchronize, "outputs": outputs, "extra": extra, "asked": {**asked, "input_format": str(layout).rsplit(".", 1)[-1]},
            "context": context, "stream": stream, "cache": cache, "kept": (engine, gpu_in, gpu_out)}


def plan_kernels(plan):
    """The kernels of one `execute_async_v3` of a plan file: Nsight Compute around a process of its own, slowest 25 first.

    Each kernel runs alone there, caches as the kernel before left them, clocks as they are: the sum is more than the graph's
    time where kernels overlap. Raises RuntimeError with ncu's last words where it fails.
    """
    done = subprocess.run(
        ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--metrics", "gpu__time_duration.sum", "--clock-control", "none", "--cache-control", "none",
         "--profile-from-start", "off", sys.executable, "-c", "import sys; from course.bench import gpu; gpu.run_once_profiled(sys.argv[1])", str(plan)],
        capture_output=True, text=True, timeout=120)
    if os.environ.get("BENCH_NCU") != "1":
        Path(os.environ["BENCH_NCU"]).with_name(f"{Path(plan).parent.name}-{Path(plan).stem}.ncu.csv").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"ncu ended with {done.returncode}: {(done.stderr + done.stdout)[-600:]}")
    return ncu_kernels(done.stdout)


def ncu_kernels(text):
    """`ncu --csv --page raw --print-units base` as {"unit", "total", "kernels", "slowest": [[name, us, launches], ...]}; raises ValueError without rows."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    spent = {}
    for row in csv.DictReader(lines):
        if row["ID"]:  # the row after the header holds the units
            us, count = spent.get(row["Kernel Name"], (0.0, 0))
            spent[row["Kernel Name"]] = us + float(row["gpu__time_duration.sum"].replace(",", "")) / 1e3, count + 1
    if not spent:
        raise ValueError(f"ncu listed no kernel; it printed: {text[-300:]!r}")
    slow = sorted(spent.items(), key=lambda item: -item[1][0])
    return {"unit": "us", "total": round(sum(us for _, (us, _) in slow), 2), "kernels": sum(n for _, (_, n) in slow),
            "slowest": [[name[:160], round(us, 2), n] for name, (us, n) in slow[:25]]}


def run_once_profiled(path):
    """Runs a plan with fixed shapes on zeros three times and lets a profiler see the fourth."""
    import pycuda.autoprimaryctx  # noqa: F401
    import pycuda.driver as cuda
    import tensorrt as trt

    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(Path(path).read_bytes())
    context, stream, kept = engine.create_execution_context(), cuda.Stream(), []
    for name in (engine.get_tensor_name(n) for n in range(engine.num_io_tensors)):
        size = engine.get_tensor_bytes_per_component(name) or 4
        memory = cuda.mem_alloc(2 * 8 * size * int(np.prod(tuple(engine.get_tensor_shape(name)))))  # 8: a vectorized format pads channels
        cuda.memset_d8(memory, 0, 2 * 8 * size * int(np.prod(tuple(engine.get_tensor_shape(name)))))
        context.set_tensor_address(name, int(memory))
        kept.append(memory)
    for number in range(4):
        if number == 3:
            cuda.start_profiler()
        context.execute_async_v3(stream.handle)
        stream.synchronize()
    cuda.stop_profiler()


def layer_times(trt, context, stream, runs=20):
    """Microseconds a layer, the mean of ``runs`` profiled calls, slowest 25 first: `trt.IProfiler`."""
    spent = {}

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer, ms):
            spent[layer] = spent.get(layer, 0.0) + ms

    context.profiler = Profiler()
    context.enqueue_emits_profile = True
    for _ in range(runs):
        context.execute_async_v3(stream.handle)
        stream.synchronize()
    slow = sorted(spent.items(), key=lambda item: -item[1])
    return {"unit": "us", "total": round(sum(spent.values()) / runs * 1e3, 2), "layers": len(spent),
            "slowest": [[layer[:160], round(ms / runs * 1e3, 2)] for layer, ms in slow[:25]]}


# ---------------------------------------------------------------------------------------------------------------------
# ONNX Runtime
# ---------------------------------------------------------------------------------------------------------------------

def onnxruntime_cuda(name, precision, batch, graph=True):
    """ONNX Runtime's CUDA provider: IOBinding on device memory, CUDA graph (unless a node stays on the CPU), BERT fused beforehand.

    ``cudnn_conv_algo_search`` is EXHAUSTIVE, which since 1.20 asks cuDNN's heuristic mode B and times nothing.

    ResNet-50 in FP16 is tried with and without ``prefer_nhwc``, and measured with what took less time; ``tried`` says both.
    """
    import onnx
    import torch  # brings the CUDA libraries that the provider loads
    import onnxruntime as ort

    options = {"device_id": 0, "use_tf32": int(precision == "tf32"), "cudnn_conv_algo_search": "EXHAUSTIVE",
               "enable_cuda_graph": int(graph)}
    path = folder() / name / f"{ {'fp16': 'fp16', 'int8': 'int8'}.get(precision, 'fp32') }.onnx"
    fused = None
    if name == "bert" and precision != "int8":
        path, fused = fuse_bert(path)
    model = count.fix_batch(onnx.load(path), batch)
    fixed = folder() / name / f"ort-{precision}-b{batch}.onnx"
    onnx.save(model, fixed)
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    given, reference, _ = data(name, "fp32" if precision == "int8" else precision)
    value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(given[:batch]), "cuda", 0)
    kind = np.float16 if precision == "fp16" else np.float32
    run = ort.RunOptions()
    run.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def ready(chosen):
        """A session with these options, its inputs and outputs bound: (seconds to create it, call, outputs)."""
        start = time.perf_counter()
        session = ort.InferenceSession(str(fixed), settings, providers=[("CUDAExecutionProvider", chosen), "CPUExecutionProvider"])
        created = time.perf_counter() - start
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeError(f"the CUDA provider did not load: the session has {session.get_providers()}")
        result = ort.OrtValue.ortvalue_from_shape_and_type([batch, *reference.shape[1:]], kind, "cuda", 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
        binding.bind_ortvalue_output(session.get_outputs()[0].name, result)
        return created, lambda: session.run_with_iobinding(binding, run), result.numpy

    ways = [options]
    if name == "resnet50" and precision == "fp16":
        ways.append({**options, "prefer_nhwc": 1})
    tried, best = [], None
    for chosen in ways:
        try:
            one = ready(chosen)
        except Exception as refused:
            if "graph capture" not in str(refused):
                raise
            chosen = {**chosen, "enable_cuda_graph": 0}  # a node stays on the CPU: no graph can be captured
            one = ready(chosen)
        ms = quick(one[1], torch.cuda.synchronize) if len(ways) > 1 else None
        tried.append({"prefer_nhwc": chosen.get("prefer_nhwc", 0), "ms": ms})
        if best is None or ms < best[0]:
            best = (ms, chosen, one)
        del one
    fixed.unlink()
    _, chosen, (created, call, outputs) = best
    extra = {"session_s": round(created, 3), "fused": fused, **({"tried": tried} if len(ways) > 1 else {})}
    return finish(name, precision, batch, call, torch.cuda.synchronize, outputs, extra,
                  {"provider_options": chosen, "path": "IOBinding" + (", CUDA graph" if chosen["enable_cuda_graph"] else "")})


def quick(call, wait, calls=30):
    """Milliseconds a call, the least of three blocks: enough to choose between two ways, not to report."""
    for _ in range(5):
        call()
    wait()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        found.append((time.perf_counter() - start) / calls * 1e3)
    return round(min(found), 4)


def fuse_bert(path):
    """The graph after onnxruntime.transformers' optimizer for BERT, and how often each fused operator stands in it."""
    from onnxruntime.transformers.optimizer import optimize_model

    fused_path = path.with_name(f"fused-{path.name}")
    tally = fused_path.with_suffix(".json")
    if not fused_path.exists():
        import onnx

        full = optimize_model(str(path.with_name("fp32.onnx")), model_type="bert", num_heads=12, hidden_size=768, opt_level=0, use_gpu=True)
        if path.name == "fp16.onnx":
            full.convert_float_to_float16(keep_io_types=False)
        kinds = {}
        for node in full.model.graph.node:
            kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
        tally.write_text(json.dumps(kinds))
        onnx.save(full.model, fused_path)
    return fused_path, json.loads(tally.read_text())


# ---------------------------------------------------------------------------------------------------------------------
# torch
# ---------------------------------------------------------------------------------------------------------------------

def torch_setup(name, precision, batch):
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    kind = torch.float16 if precision == "fp16" else torch.float32
    module = models.torch_model(name, folder()).to("cuda", kind)
    given, _, _ = data(name, precision)
    given = torch.from_numpy(given[:batch]).cuda()
    if name == "resnet50":
        module, given = module.to(memory_format=torch.channels_last), given.to(memory_format=torch.channels_last)
    return torch, module, given


def torch_eager(name, precision, batch):
    """torch eager: what `module(x)` costs, channels_last for images."""
    torch, module, given = torch_setup(name, precision, batch)
    last = [None]

    def call():
        last[0] = module(given)

    with torch.inference_mode():
        return finish(name, precision, batch, call, torch.cuda.synchronize, lambda: last[0].cpu().numpy(), {}, {"path": "eager"})


def torch_graph(name, precision, batch):
    """torch eager's kernels, captured once in a `torch.cuda.CUDAGraph` and replayed."""
    torch, module, given = torch_setup(name, precision, batch)
    with torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                module(given)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            last = module(given)
        return finish(name, precision, batch, graph.replay, torch.cuda.synchronize, lambda: last.cpu().numpy(), {}, {"path": "CUDA graph of eager"})


def torch_compiled(name, precision, batch, mode="reduce-overhead"):
    """torch.compile with weights frozen (so that batch norms fold) in the given mode; both modes use CUDA graphs."""
    torch, module, given = torch_setup(name, precision, batch)
    import torch._inductor.config as inductor

    inductor.freezing = True
    torch._dynamo.reset()
    last = [None]
    with torch.inference_mode():
        start = time.perf_counter()
        compiled = torch.compile(module, mode=mode, dynamic=False, fullgraph=True)
        compiled(given)
        torch.cuda.synchronize()
        took = time.perf_counter() - start

        def call():
            last[0] = compiled(given)

        found = finish(name, precision, batch, call, torch.cuda.synchronize, lambda: last[0].cpu().numpy(),
                       {"compile_s": round(took, 2)}, {"path": f"torch.compile mode={mode}, freezing, fullgraph", "mode": mode})
        if precision == "fp16":
            found.results["profile"] = kernel_times(torch, call)
        return found


def kernel_times(torch, call, runs=10):
    """Microseconds a kernel, summed over its launches in one call, slowest 25 first: torch.profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(runs):
            call()
        torch.cuda.synchronize()
    rows = [(row.key, row.self_device_time_total / runs, row.count / runs) for row in seen.key_averages() if row.self_device_time_total]
    rows.sort(key=lambda row: -row[1])
    return {"unit": "us", "total": round(sum(row[1] for row in rows), 2), "kernels": round(sum(row[2] for row in rows), 1),
            "slowest": [[name[:160], round(us, 2), round(n, 1)] for name, us, n in rows[:25]]}


WAYS = {
    "trt": (tensorrt_graph, ("tensorrt", "pycuda"), ("fp32", "tf32", "fp16", "int8"), "TensorRT, CUDA graph"),
    "ort": (onnxruntime_cuda, ("onnxruntime", "torch"), ("fp32", "tf32", "fp16", "int8"), "ONNX Runtime CUDA provider, IOBinding and CUDA graph"),
    "torch": (torch_eager, ("torch",), ("fp32", "tf32", "fp16"), "torch eager"),
    "torchgraph": (torch_graph, ("torch",), ("fp32", "tf32", "fp16"), "torch, CUDA graph of eager"),
    "compile": (torch_compiled, ("torch",), ("fp32", "tf32", "fp16"), "torch.compile reduce-overhead"),
    "autotune": (lambda n, p, b: torch_compiled(n, p, b, "max-autotune"), ("torch",), ("fp16",), "torch.compile max-autotune"),
}
TITLES = {"mlp": "MLP 784-128-10", "resnet50": "ResNet-50", "bert": "BERT-base encoder, 128 tokens"}


def cases():
    """All models, batches, precisions and ways; what matters most first, so that a short session measures that."""
    found = []
    for precision in ("fp16", "tf32", "int8", "fp32"):
        for name in models.NAMES:
            for batch in models.BATCHES:
                for way, (function, needs, precisions, title) in WAYS.items():
                    if precision in precisions:
                        found.append(core.Case(
                            f"{name}-{precision}-b{batch}-{way}", f"{TITLES[name]}, {precision.upper()}, batch {batch}: {title}",
                            {"model": name, "precision": precision, "batch": batch, "way": way},
                            lambda f=function, n=name, p=precision, b=batch: f(n, p, b), needs, gpu=True))
    return found
