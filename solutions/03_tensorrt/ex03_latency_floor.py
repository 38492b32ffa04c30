# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: an inference loop at the floor of launch latency
#
# Level: mid to senior · 45 minutes · the first half needs no GPU
#
# A small network runs for a few microseconds. A loop that allocates, copies, launches, waits and frees for every request
# takes many times that, and no faster kernel helps. You write the loop that is left when everything is done once that
# can be done once: memory is kept, host memory is pinned, and one request is one launch of a CUDA graph.
#
# Background: [TensorRT in a CUDA graph](../../book/03_tensorrt/questions/21_cuda_graphs.md),
# [launch overhead](../../book/01_foundations/questions/14_launch_overhead_and_cuda_graphs.md),
# [what a copy costs](../../book/01_foundations/questions/16_host_device_copies.md).
#
# ## The contract
#
# **Half one, no GPU needed: `Loop(device, program)`**, on a *counted device*: `course/counted_device.py`, a device of NumPy arrays that has
# CUDA's rules of order, no times, and books. It is no TensorRT. It runs work when somebody waits for it, so a missing wait gives old data;
# and it refuses what CUDA refuses during a capture. Its docstrings are the manual, and you need ten minutes for them.
#
# - `loop(batch)` takes a float32 array `(rows, program.features)`, 1 ≤ rows ≤ `program.max_rows`, in any memory layout, and returns a new float32 array
#   `(rows, program.classes)`. The caller may keep it: no later call changes it. The batch is not changed.
# - `ValueError` for another dtype or shape. After it the loop goes on as if that call had not been made.
# - `loop.close()` frees all device memory, all pinned memory, all graphs, and the instance. No call follows it.
#
# Counted, for a call that has as many rows as the call before it: **0** allocations, **0** frees, **0** enqueues and copies by the host,
# **1** graph launch, **1** wait; and the graph copies exactly the bytes of this batch in and exactly those of its result out, and
# runs the program once.
#
# For a call with another number of rows than the call before it: at most 1 capture and 2 more runs, and no allocation of buffers. Over the whole
# life: device memory for one input and one output of `max_rows`, pinned memory likewise (an instance's own scratch is not counted), and at most
# one graph for each number of rows that was asked for.
#
# **Half two, on a GPU: `EngineLoop(engine_path)`**, the same with TensorRT
#
# - The engine has one input and one output, float32, of any names, and one optimization profile, in which only dimension 0 may vary.
# - `loop(batch)` as above, for the shapes of the profile; `ValueError` for others, for another dtype, and from the constructor if the file holds
#   no engine.
# - `loop.close()` as above.
# - Any CUDA binding will do: pycuda with `ctypes`, as in the solution, or `cuda-python`. Import it and TensorRT inside the class, so that half one runs without.
#
# Counted: a call of the same shape as the call before it has no `execute_async_v3` and allocates nothing. Also counted, once in this course: time.
# The median latency from NumPy array to NumPy array is at most **1.10** times that of the *raw replay*. That is one graph that holds the copy in, the
# run and the copy out of the same engine between pinned buffers, launched and waited for, nothing else. The network for it is 32 layers, batch 1.
#
# Numbers are right if they are within 0.002 of the network in float64 (half one: 0.0001).

# %% [markdown]
# ## The device

# %%
import numpy as np

from course.counted_device import Device, DeviceError, Program

device = Device()
program = Program(features=12, classes=4, max_rows=8)
rows = np.random.default_rng(0).random((3, 12), dtype=np.float32)


def naive(batch):
    """What many tutorials do. Right, and everything is done again for every call."""
    instance, stream = program.instance(device), device.stream()
    result = np.empty((len(batch), program.classes), np.float32)
    there, back = device.alloc(batch.nbytes), device.alloc(result.nbytes)
    instance.bind("input", there)
    instance.bind("output", back)
    instance.set_rows(len(batch))
    stream.copy_in(there, batch, batch.nbytes)
    instance.enqueue(stream)
    stream.copy_out(result, back, result.nbytes)
    stream.synchronize()
    for thing in (there, back):
        device.free(thing)
    instance.free()
    return result


print("right:", np.abs(naive(rows) - program.expected(rows)).max() < 1e-4)
before = len(device.trace)
naive(rows)
print({name: count for name, count in device.counts(before).items() if count})

# %% [markdown]
# `pageable` counts copies of ordinary NumPy memory: each makes the host wait, so one call waits three times. And this is what
# the device says if the rules of a capture are broken:

# %%
stream, instance = device.stream(), program.instance(device)
instance.bind("input", device.alloc(8 * 12 * 4))
instance.bind("output", device.alloc(8 * 4 * 4))
instance.set_rows(3)
for name, call in (("allocate", lambda: device.alloc(64)), ("wait", stream.synchronize), ("first run", lambda: instance.enqueue(stream))):
    stream.begin_capture()
    try:
        call()
    except DeviceError as error:
        print(f"{name}: {error}")
    stream.end_capture()

# %% [markdown] tags=["hint"]
# **Hint 1.** Constructor: stream, instance, two pinned buffers, two device buffers, each for `max_rows`; bind the device buffers once. Call:
# write the batch into the pinned input, launch, wait, copy the result out of the pinned output. Everything else happens when the
# number of rows changes.

# %% [markdown] tags=["hint"]
# **Hint 2.** When the rows change: free the old graph; `set_rows`; `enqueue` once and wait (that run sets the instance up; its numbers are not used);
# then `begin_capture`, copy in, `enqueue`, copy out, `end_capture`. Inside the capture the copies have the bytes of *these* rows, and
# `pinned.view((rows, features))` is made once for these rows too. Set `self.rows` last, so that an error leaves no half state.

# %% [markdown] tags=["hint"]
# **Hint 3.** With TensorRT the same in other words: `cuda.pagelocked_empty`, `cuda.mem_alloc`, `context.set_tensor_address`, `context.set_input_shape`.
# pycuda wraps no graphs: call the driver's library by `ctypes`. `cuStreamBeginCapture_v2(stream, 1)`, the three calls, `cuStreamEndCapture(stream,
# &graph)`, `cuGraphInstantiateWithFlags(&ready, graph, 0)`, then for each request `cuGraphLaunch(ready, stream)`. Handles are
# `ctypes.c_void_p`, `&x` is `ctypes.byref(x)`, each call returns 0 if all is well. Say `argtypes`, or a handle may be cut to 32 bits. Check dtype
# and shape with as little Python as you can: at this scale each microsecond shows.

# %% [markdown]
# ## Half one: the counted device

# %%
# graded cell 1: keep this line
import numpy as np


class Loop:
    """Serves float32 arrays (rows, features): one graph launch and one wait a call."""

    def __init__(self, device, program):
        # <answer>
        self.device, self.program = device, program
        self.stream, self.instance = device.stream(), program.instance(device)
        bytes_in, bytes_out = (4 * program.max_rows * width for width in (program.features, program.classes))
        self.host_in, self.host_out = device.alloc_pinned(bytes_in), device.alloc_pinned(bytes_out)
        self.device_in, self.device_out = device.alloc(bytes_in), device.alloc(bytes_out)
        self.instance.bind("input", self.device_in)      # once: a graph keeps these addresses
        self.instance.bind("output", self.device_out)
        self.rows, self.graph = None, None
        # </answer>
        # stub: raise NotImplementedError("Loop is not written yet")

    def __call__(self, batch):
        # <answer>
        if batch.dtype != np.float32 or batch.ndim != 2 or batch.shape[1] != self.program.features or not 1 <= len(batch) <= self.program.max_rows:
            raise ValueError(f"expected float32 (1 to {self.program.max_rows}, {self.program.features}), got {batch.dtype} {batch.shape}")
        if len(batch) != self.rows:
            self.capture(len(batch))
        self.staging[...] = batch                        # any layout; the one host copy in
        self.stream.launch(self.graph)
        self.stream.synchronize()                        # before this line the pinned output holds the last result
        return self.result.copy()                        # the caller's own; the pinned memory is the next call's
        # </answer>
        # stub: raise NotImplementedError("Loop is not written yet")

    # <answer>
    def capture(self, rows):
        """A graph for this number of rows, in place of the one before."""
        if self.graph is not None:
            self.graph.free()
        self.rows, self.graph = None, None               # if something fails below, no half state is left
        self.instance.set_rows(rows)
        self.instance.enqueue(self.stream)               # once outside: the instance sets itself up for this shape
        self.stream.synchronize()
        self.staging = self.host_in.view((rows, self.program.features))
        self.result = self.host_out.view((rows, self.program.classes))
        self.stream.begin_capture()
        self.stream.copy_in(self.device_in, self.host_in, self.staging.nbytes)
        self.instance.enqueue(self.stream)
        self.stream.copy_out(self.host_out, self.device_out, self.result.nbytes)
        self.graph = self.stream.end_capture()
        self.rows = rows
    # </answer>

    def close(self):
        # <answer>
        if self.graph is not None:
            self.graph.free()
        self.instance.free()
        for memory in (self.host_in, self.host_out, self.device_in, self.device_out):
            self.device.free(memory)
        # </answer>
        # stub: raise NotImplementedError("Loop is not written yet")


# %% [markdown]
# Try it: results, counts, and what is left at the end.

# %%
device = Device()
loop = Loop(device, program)
draw = np.random.default_rng(1)
kept = []
for count in (3, 3, 8, 8, 1, 3):
    batch = draw.random((count, 12), dtype=np.float32)
    before = len(device.trace)
    kept.append((loop(batch), program.expected(batch)))
    shown = {name: number for name, number in device.counts(before).items() if number and name not in ("bytes_in", "bytes_out")}
    print(f"{count} rows: {shown}")
print("all results still right:", all(np.abs(result - want).max() < 1e-4 for result, want in kept))
loop.close()
print("left:", device.live())

# %% [markdown]
# ## Half two: TensorRT

# %%
# graded cell 2: keep this line
import ctypes
import sys

FLOAT32 = np.dtype(np.float32)


class EngineLoop:
    """Serves float32 arrays with the engine in a file: one CUDA graph launch and one wait a call."""

    def __init__(self, engine_path):
        # <answer>
        import pycuda.autoprimaryctx  # noqa: F401  makes the device's primary context current
        import pycuda.driver as cuda
        import tensorrt as trt

        self.cuda = cuda
        with open(engine_path, "rb") as file:
            plan = file.read()
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ValueError(f"{engine_path} holds no engine that TensorRT {trt.__version__} can load on this GPU")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.source, = (n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self.target, = (n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
        self.least, _, self.most = (tuple(shape) for shape in self.engine.get_tensor_profile_shape(self.source, 0))

        self.context = self.engine.create_execution_context()
        self.context.set_input_shape(self.source, self.most)
        largest = tuple(self.context.get_tensor_shape(self.target))
        self.stream = cuda.Stream()                      # not the default stream: that one cannot be captured
        self.host_in = cuda.pagelocked_empty(int(np.prod(self.most)), np.float32)
        self.host_out = cuda.pagelocked_empty(int(np.prod(largest)), np.float32)
        self.device_in, self.device_out = cuda.mem_alloc(self.host_in.nbytes), cuda.mem_alloc(self.host_out.nbytes)
        self.context.set_tensor_address(self.source, int(self.device_in))
        self.context.set_tensor_address(self.target, int(self.device_out))

        # What pycuda does not wrap, with the signatures of cuda.h: a stream, a graph and an executable graph are pointers.
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        pointer, result = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        for name, arguments in (("cuStreamBeginCapture_v2", [pointer, ctypes.c_int]),
                                ("cuStreamEndCapture", [pointer, result]),
                                ("cuGraphInstantiateWithFlags", [result, pointer, ctypes.c_ulonglong]),
                                ("cuGraphLaunch", [pointer, pointer]),
                                ("cuGraphDestroy", [pointer]),
                                ("cuGraphExecDestroy", [pointer])):
            function = getattr(driver, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self.driver, self.launch, self.handle = driver, driver.cuGraphLaunch, ctypes.c_void_p(self.stream.handle)
        self.shape, self.graph = None, None
        # </answer>
        # stub: raise NotImplementedError("EngineLoop is not written yet")

    def __call__(self, batch):
        # <answer>
        if batch.dtype != FLOAT32:
            raise ValueError(f"the engine reads float32, the batch is {batch.dtype}: cast it with astype(numpy.float32)")
        if batch.shape != self.shape:
            self.capture(batch.shape)
        self.staging[...] = batch                        # any layout; the one host copy in
        if status := self.launch(self.graph, self.handle):
            raise RuntimeError(f"cuGraphLaunch failed with CUDA error {status}")
        self.stream.synchronize()                        # before this line the pinned output holds the last result
        return self.result.copy()                        # the caller's own; the pinned memory is the next call's
        # </answer>
        # stub: raise NotImplementedError("EngineLoop is not written yet")

    # <answer>
    def capture(self, shape):
        """A graph for this shape, in place of the one before."""
        if len(shape) != len(self.least) or any(not a <= size <= b for a, size, b in zip(self.least, shape, self.most)):
            raise ValueError(f"{self.source!r} has shape {shape}, the engine takes {self.least} to {self.most}")
        self.forget_graph()
        if not self.context.set_input_shape(self.source, shape):
            raise ValueError(f"the engine refuses shape {shape} for {self.source!r}")
        out_shape = tuple(self.context.get_tensor_shape(self.target))
        self.staging = self.host_in[:int(np.prod(shape))].reshape(shape)         # views: the memory and its address stay
        self.result = self.host_out[:int(np.prod(out_shape))].reshape(out_shape)

        self.enqueue()                                   # once outside: after a new shape TensorRT updates its state here
        self.stream.synchronize()
        captured, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.driver.cuStreamBeginCapture_v2(self.handle, 1), "cuStreamBeginCapture")    # 1: watch this thread's calls only
        try:
            self.enqueue()                               # recorded, not run
        finally:                                         # whatever happened, the stream must not stay in capture mode
            status = self.driver.cuStreamEndCapture(self.handle, ctypes.byref(captured))
        self.check(status, "cuStreamEndCapture")
        try:
            self.check(self.driver.cuGraphInstantiateWithFlags(ctypes.byref(ready), captured, 0), "cuGraphInstantiate")
        finally:
            self.driver.cuGraphDestroy(captured)         # the executable graph is a copy
        self.graph, self.shape = ready, shape

    def enqueue(self):
        """Copy in, run, copy out, on the stream; nothing waits."""
        self.cuda.memcpy_htod_async(self.device_in, self.staging, self.stream)
        if not self.context.execute_async_v3(self.stream.handle):
            raise RuntimeError("execute_async_v3 was refused: the log says why")
        self.cuda.memcpy_dtoh_async(self.result, self.device_out, self.stream)

    def forget_graph(self):
        if self.graph is not None:
            self.driver.cuGraphExecDestroy(self.graph)
        self.graph = self.shape = None

    @staticmethod
    def check(status, what):
        if status:
            raise RuntimeError(f"{what} failed with CUDA error {status}")
    # </answer>

    def close(self):
        # <answer>
        self.stream.synchronize()
        self.forget_graph()
        self.staging = self.result = None
        del self.context                                 # its scratch memory goes with it
        self.device_in.free()
        self.device_out.free()
        del self.host_in, self.host_out                  # pycuda frees pinned memory with its last array
        # </answer>
        # stub: raise NotImplementedError("EngineLoop is not written yet")


# %% [markdown]
# An engine of the digits model for 1 to 32 digits, and all 360 digits through it. The steps of the build are those of
# [the first exercise](ex01_first_engine.ipynb).

# %% tags=["gpu"]
import os
import tempfile

import onnx
import tensorrt as trt

from course import ROOT

model = ROOT / "models/digits_mlp/digits_mlp.onnx"
with np.load(model.with_name("heldout.npz")) as data:
    images, labels = (data["images"].reshape(-1, 784) / 255).astype(np.float32), data["labels"]

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
network = builder.create_network(0 if explicit is None else 1 << int(explicit))
parser = trt.OnnxParser(network, logger)
assert parser.parse(model.read_bytes())
profile, config = builder.create_optimization_profile(), builder.create_builder_config()
profile.set_shape(network.get_input(0).name, (1, 784), (8, 784), (32, 784))
config.add_optimization_profile(profile)
engine_path = os.path.join(tempfile.mkdtemp(), "digits.engine")
with open(engine_path, "wb") as file:
    file.write(builder.build_serialized_network(network, config))

loop = EngineLoop(engine_path)
probabilities = np.concatenate([loop(images[i:i + 32]) for i in range(0, len(images), 32)])
weights = {w.name: onnx.numpy_helper.to_array(w).astype(np.float64) for w in onnx.load(model).graph.initializer}
logits = np.maximum(images @ weights["hidden.weight"].T + weights["hidden.bias"], 0) @ weights["logits.weight"].T + weights["logits.bias"]
exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
print(trt.__name__, trt.__version__)
print("digits read right:", (probabilities.argmax(1) == labels).sum(), "of", len(labels))
print(f"largest difference from float64: {np.abs(probabilities - exact).max():.1e}")

# %% [markdown]
# How long one call takes, against the raw replay of the same graph. Both are timed call by call, in turns, 2,000 times each;
# the middle value counts. These are figures of one machine, shown here to be looked at; the course's measurements are in its
# [figures](../../book/05_measuring/figures_h200.md).

# %% tags=["gpu"]
import time


def median_us(call, times):
    samples = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return np.median(samples) * 1e6


for count in (1, 32):
    batch = images[:count]
    loop(batch)

    def replay():
        loop.launch(loop.graph, loop.handle)
        loop.stream.synchronize()

    ways = {"raw replay": replay, "loop": lambda batch=batch: loop(batch)}
    rounds = [{name: median_us(call, 200) for name, call in ways.items()} for _ in range(11)][1:]
    raw, ours = (np.median([r[name] for r in rounds]) for name in ways)
    print(f"{count:2} digits: raw replay {raw:.1f} us, NumPy to NumPy {ours:.1f} us, ratio {ours / raw:.2f}")
loop.close()

# %% [markdown] tags=["answer"]
# The course's benchmark suite `loops` timed this class on an H100 with TensorRT 8.6.0, beside a raw replay, a loop that keeps its buffers and has no graph, and one that
# allocates for each request. The figures are in [CUDA graphs](../../book/03_tensorrt/questions/21_cuda_graphs.md). In short: for one digit the loop is next to the
# raw replay and the graph is what brings it there. For 32 digits it is no faster than the loop without a graph: the way to the GPU is longer than the launches.

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | :-- | :-- |
# | buffers for `max_rows`, once | the addresses never change | a graph that was captured earlier reads and writes freed memory |
# | pinned host memory | the copy engine reads it itself, and may be part of a graph | the driver copies to a buffer of its own first, and the host waits |
# | a stream of its own | can be captured | CUDA refuses to capture the default stream; TensorRT adds synchronizing calls on it |
# | one run before the capture | TensorRT updates its state for the new shape, outside | a capture that fails, or that holds work of the first run only |
# | wait before the capture | the warm-up is over | it may still run while the state is recorded |
# | copies inside the graph | three driver calls become one | three calls for each request; the gain of the graph is smaller |
# | capture again when the shape changes | the graph holds sizes and kernels of one shape | last shape's rows are computed, with no error |
# | `cuStreamEndCapture` in `finally` | the stream leaves capture mode after an error too | every later call on it fails with "operation not permitted when stream is capturing" |
# | wait, then read | the copy out is over | last call's result, now and then |
# | `.copy()` of the result | the caller owns it | the next call changes what the caller kept |
# | the shape set last | an error leaves no half state | the next call believes that it has a graph |
#
# ## Copies inside the graph, or around it?
#
# Inside, here. The host then makes one call for the request and one to wait, and the graph's edges order copy and kernels. The price: the graph holds the
# host's addresses too. So there is one fixed pinned buffer, and the batch is copied into it by the CPU. For a few kilobytes that is well below a
# microsecond; for tens of megabytes it is a second pass over memory.
# Then put the copies *around* the graph, from wherever the caller's pinned data lies, or let the caller write into the pinned buffer itself. The price of
# that is a documented rule: the buffer is the loop's again from the next call on. A decoder that writes into pinned memory directly is the cheapest of all.
#
# ## What it costs
#
# - Pinned memory that the operating system cannot use for anything else.
# - A capture at each change of shape: a run, a wait, an instantiation. Traffic that changes its batch all the time would pay it all the time: pad to a few
#   sizes, and keep a graph *and a context* for each. Graphs of one context share its state, and a context that was set to another shape has left the
#   state that a graph recorded.
# - One request at a time. The loop waits for each, so the copy of the next request never overlaps with this run. For throughput see
#   [two contexts](ex06_two_contexts.ipynb).
# - A lock, if threads share it: the pinned buffers are one set.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **Why is `ctypes` told `argtypes`?** Without them it passes a Python integer as a C `int`, 32 bits, and handles are 64-bit pointers. It works as long as
# everything is a `c_void_p`, and crashes on the day somebody passes `stream.handle`. In new code take the `cuda-python` package, which wraps the whole
# driver API; or torch, whose `torch.cuda.CUDAGraph` captures any library's work on its stream.
#
# **Why mode 1, thread-local, and not global?** In global mode CUDA prohibits potentially unsafe calls, such as `cudaMalloc`, in *every* thread
# while the capture lasts. Another worker that allocates then gets an error. Thread-local mode prohibits them in the capturing thread alone.
#
# **The ratio is fine for 32 layers. For two layers it is worse. Why?** The host's Python is a fixed cost: checks, one copy in, one copy out. The raw
# replay of a two-layer network is short, so the same microsecond is a larger share. The copy into the pinned buffer also grows with the batch: 32 digits
# are 100 kB that the CPU moves before the launch. Next steps are a C++ loop, a caller that writes into the pinned buffer itself, or more work for each launch.
#
# **A request came with NaN in the result of the request before. How?** Somebody returned the pinned view, or the loop reads before it waits. Both show
# only when calls follow each other closely. The counted device shows them always: it is late on purpose.
#
# **What would you check before you ship it?** That results stay right when shapes alternate; that nothing grows in ten thousand calls; that an exception
# in a capture leaves the loop usable; and the latency's p99, not the median alone, since this loop has no queue to hide behind.

# %% tags=["learner"]
from course.check import check

check("03_tensorrt/ex03_latency_floor")
