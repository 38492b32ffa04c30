"""One model through ONNX Runtime and its peers on the CPU, in one run: NumPy, torch eager, torch.compile, OpenVINO.

A case is a model, a batch and a number of threads; every peer of it has a process of its own, pinned to the same processors, with the
same weights, inputs and number of threads. The rounds go around: each round takes samples of every peer, one after the other, so that
what else the machine does meets all of them, and each round gives a ratio to ``ort``. A peer that does not measure waits on a pipe.

Both the clock and the processor time are recorded. A case is judged by the clock; one that ends in ``-cpu``, of one thread, by the processor
time, which leaves out the waits behind other work of a busy machine, and not what that work takes of caches and memory.

    python -m course.bench cpupeers --system ID        needs onnxruntime, torch and openvino in one interpreter
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from course import ROOT
from course.bench import core, models, nets

WAYS = {
    "ort": "ONNX Runtime, session.run",
    "ortbind": "ONNX Runtime, arrays bound in place",
    "numpy": "NumPy",
    "torch": "torch eager",
    "compile": "torch.compile, frozen weights",
    "openvino": "OpenVINO, latency hint",
}
ROUNDS, BLOCKS = 10, 5  # of each way; a sample is the mean of the calls of one block
BLOCK_S, WARM_UP_S = 0.01, 1.0
PAUSE_S = 0.05  # between two ways: idle workers of the one before spin for some milliseconds
READY_S = 600.0


def ways(model):
    """NumPy has matrix products, and neither a convolution nor the erf of an exact GELU."""
    return [way for way in WAYS if way != "numpy" or model == "mlp"]


# ---- a peer's process ---------------------------------------------------------------------------------------------------


def torch_module(model, weights):
    """The network as a torch user writes it; ``weights`` are the float32 arrays of the ONNX file, in their order."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    if model == "mlp":
        return models.torch_model("mlp")
    left = iter(torch.from_numpy(array.copy()) for array in weights)

    def filled(layer, turned=False):
        weight = next(left)
        layer.weight.data, layer.bias.data = weight.T.contiguous() if turned else weight, next(left)
        return layer

    def conv(deep, wide, size=3, stride=1):
        return filled(nn.Conv2d(deep, wide, size, stride, size // 2))

    def linear(deep, wide):
        return filled(nn.Linear(deep, wide), turned=True)

    class Residual(nn.Module):
        def __init__(self, deep, wide, stride):
            super().__init__()
            self.side = conv(deep, wide, 1, stride) if stride == 2 else nn.Identity()
            self.first = conv(deep, wide, 3, stride)
            self.second = conv(wide, wide)

        def forward(self, x):
            return F.relu(self.second(F.relu(self.first(x))) + self.side(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, blocks, deep = conv(3, 64), [], 64
            for stage, wide in enumerate((64, 128, 256)):
                for place in range(2):
                    blocks.append(Residual(deep, wide, 2 if stage and not place else 1))
                    deep = wide
            self.blocks, self.last = nn.Sequential(*blocks), linear(deep, 10)

        def forward(self, x):
            return self.last(self.blocks(F.relu(self.stem(x))).mean((2, 3)))

    class Block(nn.Module):
        def __init__(self, width=512, heads=8):
            super().__init__()
            self.heads = heads
            self.norm1 = filled(nn.LayerNorm(width))
            self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
            self.norm2 = filled(nn.LayerNorm(width))
            self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

        def split(self, x):
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        def forward(self, x):
            normed = self.norm1(x)
            mixed = F.scaled_dot_product_attention(self.split(self.query(normed)), self.split(self.key(normed)), self.split(self.value(normed)))
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    module = Network() if model == "cnn" else Block()
    if next(left, None) is not None:
        raise RuntimeError(f"the torch {model} leaves weights of the ONNX file unused")
    return module.eval()


def prepare(way, model, path, given, threads):
    """(call, output): ``call()`` does the work once, ``output()`` gives the array of the last call."""
    last = [None]
    if way.startswith("ort"):
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        source, target = session.get_inputs()[0].name, session.get_outputs()[0]
        if way == "ort":
            def call():
                last[0] = session.run([target.name], {source: given})[0]

            return call, lambda: last[0]
        result = np.empty(target.shape, np.float32)
        value, place = ort.OrtValue.ortvalue_from_numpy(given), ort.OrtValue.ortvalue_from_numpy(result)
        binding = session.io_binding()
        binding.bind_ortvalue_input(source, value)
        binding.bind_ortvalue_output(target.name, place)
        return lambda: session.run_with_iobinding(binding), lambda: result
    if way == "openvino":
        import openvino

        engine = openvino.Core()
        compiled = engine.compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
                                                      "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False})
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(given, shared_memory=True))
        return request.infer, lambda: np.array(request.get_output_tensor().data)
    weights = [array for array in map(numpy_helper.to_array, onnx.load(path).graph.initializer) if array.dtype == np.float32 and array.ndim]
    if way == "numpy":
        first, second = (np.ascontiguousarray(w if w.shape[0] > w.shape[1] else w.T) for w in weights if w.ndim == 2)
        bias = sorted((w for w in weights if w.ndim == 1), key=len, reverse=True)

        def call():
            hidden = given @ first
            hidden += bias[0]
            score = np.maximum(hidden, 0, out=hidden) @ second
            score += bias[1]
            np.exp(score, out=score)
            score /= score.sum(1, keepdims=True)
            last[0] = score

        return call, lambda: last[0]
    import torch

    torch.set_num_threads(threads)
    module, x = torch_module(model, weights), torch.from_numpy(given)
    if model == "cnn":
        module, x = module.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    if way != "torch":
        import torch._inductor.config

        torch._inductor.config.freezing = True
        module = torch.compile(module)

    last.append(torch.inference_mode())  # for good, and kept: entering it costs a part of a small call
    last[1].__enter__()

    def call():
        last[0] = module(x)

    return call, lambda: last[0].numpy()


def serve(way, model, path, batch, threads, processors):
    """A peer: says when it is ready, with its first output, then answers each line of standard input with a round: milliseconds by the clock and of processor time."""
    if processors:
        os.sched_setaffinity(0, processors)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    given = np.ascontiguousarray(np.load(Path(path).with_name("given.npy"))[:batch])
    begun = time.perf_counter()
    call, output = prepare(way, model, path, given, threads)
    call()
    ready = time.perf_counter() - begun
    np.save(Path(path).with_name(f"{way}.npy"), np.array(output()))
    begun, calls = time.perf_counter(), 0
    while time.perf_counter() - begun < WARM_UP_S or calls < 3:
        call()
        calls += 1
    inner = max(1, min(5000, round(BLOCK_S * calls / (time.perf_counter() - begun))))
    print(json.dumps({"ready_s": round(ready, 3), "calls_per_block": inner}), file=answers, flush=True)
    for _ in sys.stdin:
        wall, spent = [], []
        for number in range(BLOCKS + 1):  # the first block warms up again what the others have pushed out
            start, before = time.perf_counter(), time.process_time()
            for _ in range(inner):
                call()
            if number:
                wall.append((time.perf_counter() - start) / inner * 1e3)
                spent.append((time.process_time() - before) / inner * 1e3)
        print(json.dumps([wall, spent]), file=answers, flush=True)


# ---- the rounds ---------------------------------------------------------------------------------------------------------


def started(way, model, path, batch, threads, processors):
    quiet = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    # A cache of its own, empty: what a first call takes is then what a first call takes.
    own = {"TORCHINDUCTOR_CACHE_DIR": str(Path(path).with_name("inductor")), "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "course.bench.cpupeers", way, model, path, str(batch), str(threads), json.dumps(processors)], cwd=ROOT,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **quiet, **own})


def asked(process, way, line=""):
    """The peer's next answer. Raises RuntimeError with its last words where it has ended."""
    try:
        if line:
            process.stdin.write(line)
            process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        answer = ""
    if not answer:
        raise RuntimeError(f"{way} ended with {process.wait()}: {process.stderr.read()[-600:]}")
    return json.loads(answer)


def ratios(rounds, to="ort"):
    """Of each way: the median over the rounds of its time over that of ``to`` in the same round, the least and the largest."""
    medians = {way: [statistics.median(values) for values in found] for way, found in rounds.items()}
    found = {}
    for way, middle in medians.items():
        each = [a / b for a, b in zip(middle, medians[to], strict=True)]
        found[way] = {"p50": float(f"{statistics.median(each):.6g}"), "min": float(f"{min(each):.6g}"), "max": float(f"{max(each):.6g}")}
    return found


def measured(model, batch, threads, chosen=None, judged="clock"):
    """One model, one batch, one number of threads: every way, in turns. ``judged``: clock or cpu, the time whose rounds may not lie apart."""
    home, given, reference = nets.prepared(model)
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if processors and len(processors) < threads:
        raise RuntimeError(f"{threads} threads are asked for, and this process may use {len(processors)} processors")
    processors = processors[:threads]
    chosen = chosen or ways(model)
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes((Path(home.name) / f"b{batch}.onnx").read_bytes())
        np.save(path.with_name("given.npy"), given)
        peers, about = {}, {}
        try:
            for way in chosen:  # one after the other: a compiler at work is no neighbour for a warm-up
                peers[way] = started(way, model, str(path), batch, threads, processors)
                about[way] = asked(peers[way], way)
            rounds, spent = {way: [] for way in chosen}, {way: [] for way in chosen}
            for number in range(ROUNDS):
                for way in [*chosen[number % len(chosen):], *chosen[:number % len(chosen)]]:
                    time.sleep(PAUSE_S)
                    for kept, values in zip((rounds, spent), asked(peers[way], way, "round\n"), strict=True):
                        kept[way].append(values)
        finally:
            for process in peers.values():
                process.kill()
                process.wait()
        errors = {way: models.accuracy(model if model != "block" else "bert", "fp32", np.load(path.with_name(f"{way}.npy")), reference) for way in chosen}
    worst = max(errors.values(), key=lambda found: float("inf") if found["error"] is None else found["error"])
    by = {"clock": rounds, "cpu": spent}
    series = {f"{way}_{kind}" + ("_back_to_back" if kind == judged else ""): ("ms", by[kind][way]) for kind in by for way in chosen}
    return core.Result(series, {"ratio": {kind: ratios(found) for kind, found in by.items()}, "ready_s": {way: about[way]["ready_s"] for way in chosen}},
                       {**worst, "error_of": {way: found["error"] for way, found in errors.items()}},
                       configuration={"processors": processors, "rounds": ROUNDS, "pinned": bool(processors),
                                      "calls_per_block": {way: about[way]["calls_per_block"] for way in chosen}})


def cases():
    found = []
    for model in nets.TITLES:
        for batch in nets.BATCHES:
            for threads, judged in ((1, "cpu"), (1, "clock"), (2, "clock")):
                what = f"{nets.TITLES[model]}, FP32, batch {batch}, {threads} thread{'s' * (threads > 1)}: all peers in turns, by the {'clock' if judged == 'clock' else 'processor time'}"
                found.append(core.Case(f"{model}-fp32-b{batch}-t{threads}" + ("-cpu" if judged == "cpu" else ""), what,
                                       {"model": model, "precision": "fp32", "batch": batch, "threads": threads, "judged": judged, "ways": {way: WAYS[way] for way in ways(model)}},
                                       lambda m=model, b=batch, t=threads, j=judged: measured(m, b, t, judged=j), ("onnxruntime", "torch", "openvino")))
    return found


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), json.loads(sys.argv[6]))
