"""ONNX Runtime's CUDA provider, one option at a time: IOBinding, TF32, CUDA graph, NHWC, at batch 1 and 32.

Three small models of :mod:`course.bench.nets`. Every way has the same weights and inputs, and is compared with the same float64 answer.
Run by the Python that has onnxruntime-gpu: python -m course.bench ortcuda --system ID
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from course.bench import core, models
from course.bench.nets import BATCHES, TITLES, prepared

WAYS = {
    "run": "session.run, NumPy in and out",
    "bindhost": "bound buffers, the input copied in and the output copied out",
    "bind": "bound buffers, data stays on the GPU",
    "graphhost": "CUDA graph, the input copied in and the output copied out",
    "graph": "CUDA graph, data stays on the GPU",
}


def measured(name, batch, way, tf32, nhwc=False, provider="CUDAExecutionProvider", device="cuda"):
    """One model, one batch, one way."""
    import onnxruntime as ort

    if provider in ort.get_available_providers() and device == "cuda":
        ort.preload_dlls()
    home, given, reference = prepared(name)
    given = np.ascontiguousarray(given[:batch])
    graph = way.startswith("graph")
    options = {"use_tf32": str(int(tf32)), "enable_cuda_graph": str(int(graph)), "prefer_nhwc": str(int(nhwc))} if device == "cuda" else {}
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    start = time.perf_counter()
    session = ort.InferenceSession(str(Path(home.name) / f"b{batch}.onnx"), settings, providers=[(provider, options), "CPUExecutionProvider"][:1 + (device == "cuda")])
    created = time.perf_counter() - start
    have = session.get_provider_options().get(provider)
    if have is None or any(have.get(key) != value for key, value in options.items()):
        raise RuntimeError(f"asked for {provider} with {options}, the session has {session.get_provider_options()}")
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    last = [None]
    if way == "run":
        def call():
            last[0] = session.run([target], {source: given})[0]

        def wait():
            pass

        def outputs():
            return last[0]
    else:
        value = ort.OrtValue.ortvalue_from_numpy(given.copy(), device, 0)
        result = ort.OrtValue.ortvalue_from_shape_and_type([batch, *reference.shape[1:]], np.float32, device, 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input(source, value)
        binding.bind_ortvalue_output(target, result)
        quiet = ort.RunOptions()
        quiet.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if way.endswith("host"):
            def call():
                value.update_inplace(given)
                session.run_with_iobinding(binding)
                last[0] = binding.copy_outputs_to_cpu()[0]

            def wait():
                pass

            def outputs():
                return last[0]
        else:
            def call():
                session.run_with_iobinding(binding, quiet)

            wait = binding.synchronize_outputs

            def outputs():
                return result.numpy()
    start = time.perf_counter()
    call()
    wait()
    first = time.perf_counter() - start
    with core.Clocks() as clocks:
        start = time.perf_counter()
        while time.perf_counter() - start < core.WARM_UP_S:
            call()
            wait()
        clocks.mark()
        series, how = core.time_calls(call, wait, warm_up_s=0.3, longest_s=3.0)
    accuracy = models.accuracy(name, "tf32" if tf32 else "fp32", outputs(), reference)
    return core.Result(series, {"session_s": round(created, 3), "first_call_ms": round(first * 1e3, 3)}, accuracy, clocks.summary(),
                       {**how, "provider_options": options, "path": WAYS[way]})


def cases():
    """What an option gives, seen alone: every way without TF32; TF32 and NHWC on buffers that stay on the GPU."""
    found = []

    def case(name, batch, way, tf32, nhwc=False):
        suffix = ("-tf32" if tf32 else "") + ("-nhwc" if nhwc else "")
        what = f"{TITLES[name]}, FP32{' with TF32' if tf32 else ''}{', NHWC' if nhwc else ''}, batch {batch}: {WAYS[way]}"
        found.append(core.Case(f"{name}-b{batch}-{way}{suffix}", what, {"model": name, "batch": batch, "way": way, "use_tf32": tf32, "prefer_nhwc": nhwc},
                               lambda: measured(name, batch, way, tf32, nhwc), ("onnxruntime",), gpu=True))

    for name in TITLES:
        for batch in BATCHES:
            for way in WAYS:
                case(name, batch, way, False)
            for way in ("bind", "graph"):
                case(name, batch, way, True)
            if name == "cnn":
                for tf32 in (False, True):
                    case(name, batch, "graph", tf32, True)
    return found
