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
    found = _timed(lambda: device.copy_(host, non_blocking=True))
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
    found.append(case("unsynchronized", "A host clock that does not wait for the GPU, beside one that does", not_waited_for))
    found.append(case("first-calls", "The first 100 calls of ResNet-50 in torch, batch 8, FP16", first_calls))
    return found
