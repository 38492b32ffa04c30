"""Experiments on one GPU, with torch: the machine's ceilings, and what the chapters on foundations and measuring claim."""

from __future__ import annotations

import time

from course.bench import core

GIB = 1 << 30


def _cuda():
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch, torch.cuda.synchronize


def _timed(call, **more):
    from torch.cuda import synchronize as wait  # not _cuda(): a case may have allowed TF32 by now

    with core.Clocks() as clocks:
        core.time_calls(call, wait, rounds=1, blocks=2, singles=2, warm_up_s=more.pop("warm_up_s", 0.6))
        clocks.mark()
        series, how = core.time_calls(call, wait, warm_up_s=0.1, longest_s=more.pop("longest_s", 3.0), **more)
    return core.Result(series, {}, {}, clocks.summary(), how)


def _median(result):
    return core.summary(result.series["back_to_back"][1])["p50"] / 1e3


def copy_bandwidth():
    torch, _ = _cuda()
    source = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    found = _timed(lambda: target.copy_(source))
    found.results["bytes_per_s"] = float(f"{2 * source.nbytes / _median(found):.5g}")
    found.configuration["bytes_moved"] = 2 * source.nbytes
    return found


def matrix_rate(kind, size=8192, zeros=False):
    torch, _ = _cuda()
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    torch.manual_seed(0)
    make = torch.zeros if zeros else torch.randn
    a, b = (make(size, size, device="cuda") for _ in range(2))
    want = (a[:64].double() @ b.double()).float() if not zeros else None
    if kind == "int8":
        a, b = (x.mul(40).clamp(-127, 127).to(torch.int8) for x in (a, b))
        b = b.t().contiguous().t()
        want = a[:64].double() @ b.double()
        def call():
            return torch._int_mm(a, b)
    elif kind == "fp8":
        a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t().contiguous().t()
        want = a[:64].double() @ b.double()
        one = torch.ones((), device="cuda")
        def call():
            return torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16)
    else:
        a, b = (x.to({"fp16": torch.float16, "bf16": torch.bfloat16}.get(kind, torch.float32)) for x in (a, b))
        def call():
            return torch.mm(a, b)
    found = _timed(call, longest_s=4.0)
    found.results["operations_per_s"] = float(f"{2 * size**3 / _median(found):.5g}")
    found.configuration["operations"] = 2 * size**3
    if want is not None:
        got = call()[:64].double()
        error = ((got - want.double()).norm() / want.double().norm()).item()
        found.accuracy = {"error": error, "measure": "relative distance of 64 rows from float64",
                          "tolerance": {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1e-2, "int8": 1e-9, "fp8": 1e-2}[kind]}
    return found


def launches(graph):
    """1,000 launches of an addition to one element: in a stream, or as one CUDA graph."""
    torch, _ = _cuda()
    one = torch.zeros(1, device="cuda")

    def work():
        for _ in range(1000):
            one.add_(1)

    call = work
    if graph:
        work()
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            work()
        call = captured.replay
    found = _timed(call)
    found.results["us_per_kernel"] = float(f"{_median(found) * 1e6 / 1000:.4g}")
    found.configuration["kernels"] = 1000
    return found


def host_copy(megabytes, pinned):
    torch, _ = _cuda()
    host = torch.empty(int(megabytes * 1e6), dtype=torch.uint8, pin_memory=pinned)
    host.random_()
    device = torch.empty_like(host, device="cuda")
    found = _timed(lambda: device.copy_(host, non_blocking=True), longest_s=12.0 if megabytes >= 100 else 3.0)
    found.results["bytes_per_s"] = float(f"{host.nbytes / _median(found):.4g}")
    found.configuration["bytes_moved"] = host.nbytes
    return found


def pointwise(fused):
    """bias, GELU, scale and residual over 256 MiB of FP16: four kernels, or one from torch.compile."""
    torch, _ = _cuda()
    x, r = (torch.randn(128 << 20, device="cuda", dtype=torch.float16) for _ in range(2))

    def chain(x, r):
        return torch.nn.functional.gelu(x + 0.5) * 0.7 + r

    work = torch.compile(chain, dynamic=False) if fused else chain
    with torch.inference_mode():
        found = _timed(lambda: work(x, r))
        error = (work(x, r).float() - chain(x.double()[: 1 << 20], r.double()[: 1 << 20]).float().new_zeros(1)).isnan().sum().item()
        want = chain(x[: 1 << 20].double(), r[: 1 << 20].double())
        error = ((work(x, r)[: 1 << 20].double() - want).norm() / want.norm()).item()
    found.accuracy = {"error": error, "tolerance": 2e-3, "measure": "relative distance from float64"}
    tensor = x.nbytes
    found.configuration["bytes_moved"] = tensor * (3 if fused else 9)  # read x, read r, write; or 2 + 2 + 2 + 3 passes
    found.results["bytes_per_s"] = float(f"{found.configuration['bytes_moved'] / _median(found):.4g}")
    return found


def convolution(last):
    """3x3 convolution, 256 to 256 channels, 56x56, batch 32, FP16: channels first or channels last."""
    torch, _ = _cuda()
    torch.backends.cudnn.benchmark = True
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(32, 256, 56, 56, device="cuda", dtype=torch.float16).to(memory_format=form)
    layer = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False, device="cuda", dtype=torch.float16).to(memory_format=form)
    with torch.inference_mode():
        found = _timed(lambda: layer(x))
        want = torch.nn.functional.conv2d(x[:1].double(), layer.weight.double(), padding=1)
        error = ((layer(x)[:1].double() - want).norm() / want.norm()).item()
    found.accuracy = {"error": error, "tolerance": 2e-3, "measure": "relative distance from float64"}
    found.configuration["operations"] = 2 * 32 * 256 * 56 * 56 * 256 * 9
    found.results["operations_per_s"] = float(f"{found.configuration['operations'] / _median(found):.4g}")
    return found


def not_waited_for():
    """What a host clock around a matrix product says when nobody waits for the GPU, beside the time with the wait."""
    torch, wait = _cuda()
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    torch.mm(a, a)
    wait()
    wrong, right = [], []
    for _ in range(5):
        w, r = [], []
        for _ in range(20):
            start = time.perf_counter()
            torch.mm(a, a)
            w.append((time.perf_counter() - start) * 1e3)
            wait()
            start = time.perf_counter()
            torch.mm(a, a)
            wait()
            r.append((time.perf_counter() - start) * 1e3)
        wrong.append(w)
        right.append(r)
    return core.Result({"not_waited": ("ms", wrong), "waited": ("ms", right)}, configuration={"warm_up_calls": 1})


def first_calls():
    """The first 100 calls of a fresh ResNet-50 in torch, cuDNN searching: each with its wait, none left out."""
    torch, wait = _cuda()
    from course.bench import models

    torch.backends.cudnn.benchmark = True
    module = models.resnet50().eval().cuda().half()
    x = torch.randn(8, 3, 224, 224, device="cuda", dtype=torch.float16)
    samples = []
    with torch.inference_mode():
        for _ in range(100):
            start = time.perf_counter()
            module(x)
            wait()
            samples.append((time.perf_counter() - start) * 1e3)
    return core.Result({"call": ("ms", [samples])}, {"first_ms": samples[0], "second_ms": samples[1]}, configuration={"warm_up_calls": 0})


def _swept(calls, wait, repeats=1, block_s=0.004, rest=4.0):
    """Times each of ``calls`` (label: function) back to back; a series each, in ms of one repeat.

    The GPU rests between blocks: else the heavier calls reach the board's power limit and run at another clock than the lighter ones.
    """
    series, how = {}, {}
    with core.Clocks() as clocks:
        for label, call in calls.items():
            found, how = core.time_calls(call, wait, warm_up_s=0.15, singles=2, block_s=block_s, rest=rest)
            series[label] = ("ms", [[value / repeats for value in values] for values in found["back_to_back"][1]])
            if len(series) == 1:
                clocks.mark()
    return core.Result(series, {}, {}, clocks.summary(), {**how, "repeats_a_call": repeats})


def _rates(found, amount):
    """``amount(label)`` a second for each series of milliseconds, by its median."""
    return {label: float(f"{amount(label) / (core.summary(rounds)['p50'] / 1e3):.4g}") for label, (_, rounds) in found.series.items()}


def _graphed(torch, work, repeats=20):
    """``repeats`` calls of ``work`` as one CUDA graph, so that a kernel of a few microseconds is not timed by its launch."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            kept = work()

    def replay(alive=work):  # a graph does not own what its kernels read: without this, the inputs' memory is given back
        graph.replay()

    return replay, kept


def linear_by_batch(width):
    """One FP16 matrix of width x width times 1 to 1,024 rows: where the time stops being that of reading the matrix."""
    torch, wait = _cuda()
    torch.manual_seed(0)
    matrix = torch.randn(width, width, device="cuda", dtype=torch.float16)
    calls, worst = {}, 0.0
    for batch in (1, 8, 32, 64, 128, 256, 512, 1024):
        rows = torch.randn(batch, width, device="cuda", dtype=torch.float16)
        calls[f"batch_{batch}"], got = _graphed(torch, lambda r=rows: torch.mm(r, matrix))
        calls[f"batch_{batch}"]()
        want = rows.double() @ matrix.double()
        worst = max(worst, ((got.double() - want).norm() / want.norm()).item())
    found = _swept(calls, wait, repeats=20)
    found.accuracy = {"error": worst, "tolerance": 2e-3, "measure": "largest relative distance of a batch from float64"}
    found.configuration["weight_bytes"] = matrix.nbytes
    return found


def matvec_by_size():
    """A matrix times a vector in FP16, the matrix 4 to 512 MiB, again and again: bytes of it a second, in cache and out of it."""
    torch, wait = _cuda()
    torch.manual_seed(0)
    calls, worst = {}, 0.0
    for size in (4, 16, 32, 48, 64, 128, 512):
        matrix = torch.randn((size << 20) // 8192, 4096, device="cuda", dtype=torch.float16)
        vector = torch.randn(4096, device="cuda", dtype=torch.float16)
        calls[f"MiB_{size}"], got = _graphed(torch, lambda m=matrix, v=vector: torch.mv(m, v))
        calls[f"MiB_{size}"]()
        want = matrix.double() @ vector.double()
        worst = max(worst, ((got.double() - want).norm() / want.norm()).item())
    found = _swept(calls, wait, repeats=20)
    found.accuracy = {"error": worst, "tolerance": 2e-3, "measure": "largest relative distance of a size from float64"}
    found.results["bytes_per_s"] = _rates(found, lambda label: int(label[4:]) << 20)
    return found


def waves():
    """FP16 products of 1,408 x 4,096 by 4,096 x N, N in steps of 256: 11 tiles of 128 x 256 more each, on 132 multiprocessors."""
    torch, wait = _cuda()
    torch.manual_seed(0)
    a = torch.randn(1408, 4096, device="cuda", dtype=torch.float16)
    calls, worst = {}, 0.0
    for tiles in range(8, 27, 2):
        b = torch.randn(4096, 256 * tiles, device="cuda", dtype=torch.float16)
        calls[f"tiles_{11 * tiles}"], got = _graphed(torch, lambda b=b: torch.mm(a, b))
        calls[f"tiles_{11 * tiles}"]()
        want = a[:64].double() @ b.double()
        worst = max(worst, ((got[:64].double() - want).norm() / want.norm()).item())
    found = _swept(calls, wait, repeats=20, block_s=0.001, rest=20.0)
    found.accuracy = {"error": worst, "tolerance": 2e-3, "measure": "largest relative distance of 64 rows from float64"}
    return found


TRANSPOSE = r"""
extern "C" __global__ void transpose(const float* from, float* to, int width) {
  __shared__ float tile[32][32 + PAD];
  int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
  for (int row = 0; row < 32; row += 8) tile[threadIdx.y + row][threadIdx.x] = from[(size_t)(y + row) * width + x];
  __syncthreads();
  x = blockIdx.y * 32 + threadIdx.x, y = blockIdx.x * 32 + threadIdx.y;
  for (int row = 0; row < 32; row += 8) to[(size_t)(y + row) * width + x] = tile[threadIdx.x][threadIdx.y + row];
}
"""
COPY = r"""
extern "C" __global__ void copy(const WORD* from, WORD* to) {
  size_t place = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  to[place] = from[place];
}
"""


def bank_conflicts():
    """Transpose of 8,192 x 8,192 floats through a shared tile of 32 x 32, and of 32 x 33: the same kernel but for the padding."""
    import cupy

    source = cupy.random.standard_normal((8192, 8192), dtype=cupy.float32)
    target, calls, wrong = cupy.empty_like(source), {}, 0
    for pad in (0, 1):
        kernel = cupy.RawKernel(TRANSPOSE.replace("PAD", str(pad)), "transpose")
        calls[f"pad_{pad}"] = lambda k=kernel: k((256, 256), (32, 8), (source, target, cupy.int32(8192)))
        target.fill(0)
        calls[f"pad_{pad}"]()
        wrong += int((target != source.T).sum())
    found = _swept(calls, cupy.cuda.Device().synchronize)
    found.accuracy = {"error": wrong, "tolerance": 0, "measure": "elements that differ from the transpose"}
    found.results["bytes_per_s"] = _rates(found, lambda label: 2 * source.nbytes)
    return found


def occupancy():
    """A copy of 1 GiB, 256 threads a block, 4 or 16 bytes a thread; unused shared memory leaves room for 2, 4, 6 or 8 blocks on a multiprocessor."""
    import cupy

    source = cupy.random.randint(0, 2**31, 1 << 28, dtype=cupy.int32)
    target, calls, wrong = cupy.empty_like(source), {}, 0
    for word, size in (("float", 4), ("float4", 16)):
        for blocks, kib in ((2, 100), (4, 50), (6, 36), (8, 0)):
            kernel = cupy.RawKernel(COPY.replace("WORD", word), "copy")
            kernel.max_dynamic_shared_size_bytes = 100 << 10  # the same for all: CuPy compiles a text once, and the limit stays with it
            label = f"bytes_{size}_blocks_{blocks}"
            calls[label] = lambda k=kernel, n=source.nbytes // size // 256, m=kib << 10: k((n,), (256,), (source, target), shared_mem=m)
            target.fill(0)
            calls[label]()
            wrong += int((target != source).sum())
    found = _swept(calls, cupy.cuda.Device().synchronize)
    found.accuracy = {"error": wrong, "tolerance": 0, "measure": "elements that were not copied"}
    found.results["bytes_per_s"] = _rates(found, lambda label: 2 * source.nbytes)
    return found


def cases():
    def case(name, what, run, **configuration):
        return core.Case(name, what, configuration, run, ("torch",), gpu=True)

    found = [case("copy", "Copy of 4 GiB inside the GPU's memory: bytes read and written", copy_bandwidth)]
    for kind in ("fp32", "tf32", "fp16", "bf16", "int8", "fp8"):
        found.append(case(f"matmul-{kind}", f"Matrix product 8192x8192x8192 in {kind.upper()}", lambda k=kind: matrix_rate(k), dtype=kind))
    found.append(case("matmul-fp16-zeros", "The same product in FP16, of zeros", lambda: matrix_rate("fp16", zeros=True), dtype="fp16"))
    found.append(case("launch-stream", "1,000 tiny kernels launched in a stream by torch", lambda: launches(False)))
    found.append(case("launch-graph", "1,000 tiny kernels as one CUDA graph", lambda: launches(True)))
    for size in (0.004, 0.1, 1, 16, 256):
        for pinned in (True, False):
            kind = "pinned" if pinned else "pageable"
            found.append(case(f"h2d-{kind}-{size:g}MB", f"Copy of {size:g} MB from {kind} host memory to the GPU", lambda s=size, p=pinned: host_copy(s, p)))
    for fused in (False, True):
        found.append(case(f"pointwise-{'fused' if fused else 'eager'}", f"Bias, GELU, scale, residual over 256 MiB: {'one kernel' if fused else 'a kernel each'}", lambda f=fused: pointwise(f)))
    for last in (False, True):
        found.append(case(f"conv-{'nhwc' if last else 'nchw'}", f"3x3 convolution in FP16, {'channels last' if last else 'channels first'}", lambda n=last: convolution(n)))
    for width in (1024, 8192):
        found.append(case(f"linear-{width}", f"One FP16 matrix of {width} x {width} times 1 to 1,024 rows", lambda w=width: linear_by_batch(w)))
    found.append(case("matvec-sizes", "FP16 matrix times vector, the matrix 4 to 512 MiB, repeated", matvec_by_size))
    found.append(case("waves", "FP16 products of 88 to 286 tiles of 128 x 256", waves))
    for name, what, run in (("bank-conflicts", "Transpose of 8,192 x 8,192 floats, shared tile padded or not", bank_conflicts),
                            ("occupancy", "Copy of 1 GiB at four limits of blocks on a multiprocessor", occupancy)):
        found.append(core.Case(name, what, {}, run, ("cupy",), gpu=True))
    found.append(case("unsynchronized", "A host clock that does not wait for the GPU, beside one that does", not_waited_for))
    found.append(case("first-calls", "The first 100 calls of ResNet-50 in torch, batch 8, FP16", first_calls))
    return found
