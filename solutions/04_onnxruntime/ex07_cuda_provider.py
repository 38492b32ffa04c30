# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: the CUDA provider, and proof that it does what you asked
#
# Level: senior · 45 minutes · needs no GPU, and has a part that runs on one
#
# Options of a provider are strings in a dictionary, and a misspelled one can end with the whole model on the CPU. A CUDA graph reads the addresses of its first run for ever. A run that
# nobody waited for gives back what the buffer held before. You write the part of a service that is not fooled by any of these. Options are checked, sent and read back; buffers stay where
# they are; the wait is in the right place.
#
# Background: [options of the CUDA provider](../../book/04_onnxruntime/questions/22_cuda_provider_options.md) and
# [IOBinding](../../book/04_onnxruntime/questions/14_io_binding.md).
#
# ## The contract
#
# **`cuda_provider(**wanted)`** returns the pair `("CUDAExecutionProvider", options)`, `options` being a dict of `str` to `str`.
#
# - It has exactly the options that were wanted. `KINDS`, given below, says what each takes. `bool`: `True` gives `"1"`, `False` gives `"0"`, and nothing else
#   is taken, neither `0` nor `"0"`. `int`: a whole number from 0 on that is no `bool`. A tuple: one of its words.
# - `ValueError` for a name that `KINDS` lacks, with the name in the message, and for a value that does not fit, with the option's name.
#
# **`unmet(options, provider_options)`** returns what is not as it was asked for: a dict from an option's name to the pair `(asked, have)`.
#
# - `options` is such a dict of `str` to `str`. `provider_options` is what `session.get_provider_options()` returned: a dict from a
#   provider's name to its dict of options. `have` is `None` if the option, or the provider, is not there.
#
# **`open_cuda(model_path, options, settings=None, fallback=False)`** returns an `ort.InferenceSession`.
#
# - Its providers are CUDA with these options, then the CPU, where shape arithmetic belongs. `settings` is an `ort.SessionOptions` for the session.
# - If CUDA is not the session's first provider, or an option is unmet: `RuntimeError` that names what is missing, the provider or the options.
# - With `fallback=True` there is no error in that case: a `RuntimeWarning` (by `warnings.warn`) says the same, and the session runs on the CPU alone, with the same `settings`.
# - An error that ONNX Runtime itself raises for the model comes out as it is.
# - Counted: without `fallback` at most one session is opened, with it at most two.
#
# **`plan(session, **sizes)`** returns `{"inputs": {name: (shape, dtype)}, "outputs": {name: (shape, dtype)}}`, in the model's order.
#
# - `shape` is a tuple of `int`: dynamic dimensions are replaced by `sizes`, by their name in the model. `dtype` is anything that `np.dtype()` takes and is the tensor's type.
# - `ValueError`, naming the tensor, for a dimension that nobody gave a size for; naming the size, for one that no tensor has.
#
# **`Replay(session, plan, warm_up=2)`** runs the session from buffers that never move.
#
# - It makes one `ort.OrtValue` for each input and output, on the device where the session's first provider works: `"cuda"` for CUDA, else `"cpu"`.
#   They are bound once, as values or by their address. The attribute `values` is a dict from name to that `OrtValue`.
# - It runs the model `warm_up` times when it is made, with inputs that are all zeros. What fresh memory holds is never read.
# - **`start(feeds)`** copies the arrays of the dict `feeds` into the buffers and runs without waiting for the device: the run option
#   `disable_synchronize_execution_providers` is `"1"`. It returns nothing.
# - **`finish()`** waits with `synchronize_outputs()` of the binding, then returns a dict from each output's name to a NumPy array that belongs to the caller: no later run changes it.
# - **`replay(feeds)`**, the call of the object, is `start` and `finish`.
# - `start` raises `ValueError` for a missing or unknown name or another shape than planned, and `TypeError` for another dtype (the other byte order is one), each naming the input. Then nothing was run, and the next
#   `start` is as good as ever. Arrays of any memory layout are taken.
# - `RuntimeError` for a `start` while an earlier one is not finished, and for a `finish` with nothing started.
# - Counted: one run for a call, no new `OrtValue` and no new binding after construction. The device memory keeps its addresses.
#
# Numbers are right if each is within 0.0001 of the same network in float64; on a GPU with TF32 off too.

# %% [markdown]
# ## Before you write
#
# The CPU package cannot run CUDA, but it is a good place to see what a request for CUDA becomes. Nothing is raised.

# %%
import warnings

import numpy as np
import onnxruntime as ort

from course import ROOT

MODEL = str(ROOT / "models/digits_mlp/digits_mlp.onnx")
with np.load(ROOT / "models/digits_mlp/heldout.npz") as data:
    images, truth = data["images"], data["labels"]
pixels = (images.reshape(-1, 784) / 255).astype(np.float32)

if "CUDAExecutionProvider" in ort.get_available_providers():
    ort.preload_dlls()        # CUDA and cuDNN from NVIDIA's wheels, before the first session that wants them

# %% tags=["nbval-ignore-output"]
print(ort.__version__, ort.get_available_providers())

# %% [markdown]
# An option for the CPU provider that it does not have, and what comes back: the option was taken, and is not there.

# %%
session = ort.InferenceSession(MODEL, providers=[("CPUExecutionProvider", {"use_tf23": "0"})])
print("read back:", session.get_provider_options())

# %% [markdown]
# ONNX Runtime makes strings of whatever values the dictionary holds. This is its own code, asked what it would do in a package that has CUDA:

# %%
from onnxruntime.capi.onnxruntime_inference_collection import check_and_normalize_provider_args

for value in (False, 0, "0", None):
    names, options = check_and_normalize_provider_args([("CUDAExecutionProvider", {"use_tf32": value})], None, ["CUDAExecutionProvider"])
    print(f"{value!r:6} is handed on as {options[0]['use_tf32']!r}")

# %% [markdown] tags=["hint"]
# **Hint 1.** `True` is an `int` in Python, and `bool("0")` is `True`: ask `type(value) is bool`, `type(value) is int`. For `unmet`, one comprehension does:
# `provider_options.get("CUDAExecutionProvider", {})`, then `.get(name)` for each option. `open_cuda` opens first and looks afterwards, since the list of available
# providers says only what the package was built with. In a GPU package a bad option makes ONNX Runtime's Python class open the session again without CUDA, so the look afterwards finds that too.

# %% [markdown] tags=["hint"]
# **Hint 2.** `get_inputs()` and `get_outputs()` give `.name`, `.shape` and `.type`; in a shape a dynamic dimension is a `str`, or `None` if it has no name.
# For the buffers: `ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)`. It is not cleared, so `update_inplace(np.zeros(shape, dtype))` comes first: an index
# input that holds rubbish makes `Gather` fail, or read anywhere. `binding.bind_ortvalue_input(name, value)`, `binding.bind_ortvalue_output(name, value)`, once.

# %% [markdown] tags=["hint"]
# **Hint 3.** `update_inplace` compares the number of elements and nothing else, so names, dtypes and shapes are yours to check, all of them before the first copy. For the run:
# `quiet = ort.RunOptions()`, `quiet.add_run_config_entry("disable_synchronize_execution_providers", "1")`, then `session.run_with_iobinding(binding, quiet)`.
# In `finish`: `binding.synchronize_outputs()`, then `binding.copy_outputs_to_cpu()`, which copies; `value.numpy()` shares the memory on a CPU, and the next run would change it.

# %% [markdown]
# ## Your answer

# %%
# graded cell 1: keep this line
import warnings

import numpy as np
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
KINDS = {  # the options that this service may set, and what each takes
    "device_id": int, "gpu_mem_limit": int, "use_tf32": bool, "enable_cuda_graph": bool, "prefer_nhwc": bool, "cudnn_conv1d_pad_to_nc1d": bool,
    "cudnn_conv_use_max_workspace": bool, "do_copy_in_default_stream": bool,
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
}
NUMPY_TYPES = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}


def cuda_provider(**wanted):
    """("CUDAExecutionProvider", {option: text}) of the wanted options; ValueError for a name or value that KINDS does not have."""
    # <answer>
    options = {}
    for name, value in wanted.items():
        if name not in KINDS:
            raise ValueError(f"{name} is no option of this service; it has {', '.join(KINDS)}")
        kind = KINDS[name]
        if kind is bool:
            fits = type(value) is bool
        elif kind is int:
            fits = type(value) is int and value >= 0
        else:
            fits = value in kind
        if not fits:
            raise ValueError(f"{name} is {value!r}: expected {'one of ' + ', '.join(kind) if isinstance(kind, tuple) else kind.__name__}")
        options[name] = str(int(value)) if kind is bool else str(value)
    return CUDA, options
    # </answer>
    # stub: raise NotImplementedError("cuda_provider is not written yet")


def unmet(options, provider_options):
    """{option: (asked, have)} of every option that a session's provider_options does not have as asked; have is None if it is not there."""
    # <answer>
    have = provider_options.get(CUDA, {})
    return {name: (asked, have.get(name)) for name, asked in options.items() if have.get(name) != asked}
    # </answer>
    # stub: raise NotImplementedError("unmet is not written yet")


def open_cuda(model_path, options, settings=None, fallback=False):
    """A session on CUDA with these options; RuntimeError if it is not, or with fallback a RuntimeWarning and a session on the CPU."""
    # <answer>
    session = ort.InferenceSession(model_path, settings, providers=[(CUDA, options), "CPUExecutionProvider"])
    registered = session.get_providers()
    missing = unmet(options, session.get_provider_options())
    if registered[0] == CUDA and not missing:
        return session
    reason = f"options are not as asked, (asked, have): {missing}" if registered[0] == CUDA else f"{CUDA} was asked for, the session has {registered}"
    if not fallback:
        raise RuntimeError(reason)
    warnings.warn(f"{reason}; going on with the CPU", RuntimeWarning, stacklevel=2)
    if registered != ["CPUExecutionProvider"]:
        session = ort.InferenceSession(model_path, settings, providers=["CPUExecutionProvider"])
    return session
    # </answer>
    # stub: raise NotImplementedError("open_cuda is not written yet")


# %%
# graded cell 2: keep this line
def plan(session, **sizes):
    """{"inputs": {name: (shape, dtype)}, "outputs": …} with every dynamic dimension replaced by its size; ValueError for one without."""
    # <answer>
    used = set()

    def fixed(tensor):
        shape = []
        for dimension in tensor.shape:
            if not isinstance(dimension, int):
                if dimension not in sizes:
                    raise ValueError(f"{tensor.name} has the dimension {dimension!r}, and no size is given for it: {tensor.shape}")
                used.add(dimension)
                dimension = sizes[dimension]
            shape.append(dimension)
        return tuple(shape), NUMPY_TYPES[tensor.type]

    found = {"inputs": {t.name: fixed(t) for t in session.get_inputs()}, "outputs": {t.name: fixed(t) for t in session.get_outputs()}}
    if set(sizes) - used:
        raise ValueError(f"no tensor has a dimension named {', '.join(sorted(set(sizes) - used))}")
    return found
    # </answer>
    # stub: raise NotImplementedError("plan is not written yet")


class Replay:
    """Runs a session from buffers that are made and bound once, so that a captured CUDA graph reads and writes the right addresses."""

    # <answer>
    def __init__(self, session, plan, warm_up=2):
        self.session, self.inputs, self.outputs = session, plan["inputs"], plan["outputs"]
        device = "cuda" if session.get_providers()[0] == CUDA else "cpu"
        self.binding = session.io_binding()
        self.values = {}
        for name, (shape, dtype) in self.inputs.items():
            self.values[name] = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)
            self.values[name].update_inplace(np.zeros(shape, dtype))
            self.binding.bind_ortvalue_input(name, self.values[name])
        for name, (shape, dtype) in self.outputs.items():
            self.values[name] = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)
            self.binding.bind_ortvalue_output(name, self.values[name])
        self.quiet = ort.RunOptions()
        self.quiet.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.running = False
        for _ in range(warm_up):
            session.run_with_iobinding(self.binding)

    def start(self, feeds):
        if self.running:
            raise RuntimeError("an earlier start is not finished: its inputs may still be read")
        if set(feeds) != set(self.inputs):
            raise ValueError(f"missing: {sorted(set(self.inputs) - set(feeds))}, unknown: {sorted(set(feeds) - set(self.inputs))}")
        for name, (shape, dtype) in self.inputs.items():
            if feeds[name].dtype != dtype:
                raise TypeError(f"{name} is {feeds[name].dtype}: expected {np.dtype(dtype)}")
            if feeds[name].shape != shape:
                raise ValueError(f"{name} has the shape {feeds[name].shape}: the buffer was planned for {shape}")
        for name in self.inputs:
            self.values[name].update_inplace(feeds[name])
        self.session.run_with_iobinding(self.binding, self.quiet)
        self.running = True

    def finish(self):
        if not self.running:
            raise RuntimeError("nothing was started")
        self.binding.synchronize_outputs()
        self.running = False
        return dict(zip(self.outputs, self.binding.copy_outputs_to_cpu()))

    def __call__(self, feeds):
        self.start(feeds)
        return self.finish()
    # </answer>
    # stub: def __init__(self, session, plan, warm_up=2):
    # stub:     raise NotImplementedError("Replay is not written yet")


# %% [markdown]
# ## Try it, as far as a CPU goes

# %%
provider, options = cuda_provider(use_tf32=False, enable_cuda_graph=True)
print(provider, options)
for wanted in ({"use_tf23": False}, {"use_tf32": "0"}, {"cudnn_conv_algo_search": "exhaustive"}):
    try:
        cuda_provider(**wanted)
    except ValueError as error:
        print("ValueError:", str(error).split(";")[0])

print("unmet on a CPU session:", unmet(options, session.get_provider_options()))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    served = open_cuda(MODEL, options, fallback=True)
    print("with a fall-back:", served.get_providers(), [str(w.message).partition(",")[0] for w in caught if w.category is RuntimeWarning])
    try:
        open_cuda(MODEL, options)
    except RuntimeError as error:
        print("without:", str(error).partition(",")[0])

# %%
on_cpu = ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
shapes = plan(on_cpu, batch=8)
print(shapes)
replay = Replay(on_cpu, shapes)
addresses = {name: value.data_ptr() for name, value in replay.values.items()}
answers = [replay({"pixels": pixels[start:start + 8]})["probabilities"].argmax(axis=1) for start in range(0, 360, 8)]
print("right:", (np.concatenate(answers) == truth).sum(), "of", len(truth))
print("addresses kept:", addresses == {name: value.data_ptr() for name, value in replay.values.items()})

# %% [markdown]
# What has to be refused, and a result that is kept:

# %%
first = replay({"pixels": pixels[:8]})["probabilities"]
kept = first.copy()
replay({"pixels": pixels[8:16]})
print("the first result is still the first:", bool((first == kept).all()))
for feeds in ({"pixels": pixels[:7]}, {"pixels": pixels[:8].astype(np.float64)}, {"image": pixels[:8]}):
    try:
        replay(feeds)
    except (ValueError, TypeError) as error:
        print(f"{type(error).__name__}: {error}")

# %% [markdown]
# ## On a GPU
#
# The same functions with `onnxruntime-gpu`. First the options: what is asked for, and what the session says it has. `prefer_nhwc` and the search of cuDNN concern convolutions only, the
# digits model has none.

# %% tags=["gpu"]
_, wanted = cuda_provider(use_tf32=False, prefer_nhwc=True, cudnn_conv_algo_search="HEURISTIC", gpu_mem_limit=2 << 30)
on_gpu = open_cuda(MODEL, wanted)
have = on_gpu.get_provider_options()[CUDA]
print("unmet:", unmet(wanted, on_gpu.get_provider_options()))
for name in sorted(have):
    print(f"  {name} = {have[name]}{'   asked for' if name in wanted else ''}")

# %% [markdown]
# A misspelled option, given by hand past `cuda_provider`:

# %% tags=["gpu"]
import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    plain = ort.InferenceSession(MODEL, providers=[(CUDA, {"use_tf23": "0"}), "CPUExecutionProvider"])
print("ONNX Runtime:", plain.get_providers(), "after printing", [line[:90] for line in printed.getvalue().splitlines() if "Error" in line])
with contextlib.redirect_stdout(io.StringIO()):
    try:
        outcome = open_cuda(MODEL, {"use_tf23": "0"}).get_providers()
    except RuntimeError as error:
        outcome = f"RuntimeError: {error}"
print("open_cuda:   ", outcome)

# %% [markdown]
# TF32 and the CUDA graph, on all digits: how far from the CPU, and whether the buffers stayed.

# %% tags=["gpu"]
reference = on_cpu.run(None, {"pixels": pixels})[0]


def all_digits(replay):
    return np.concatenate([replay({"pixels": pixels[start:start + 8]})["probabilities"] for start in range(0, 360, 8)])


for tf32 in (True, False):
    for graph in (False, True):
        fast = open_cuda(MODEL, cuda_provider(use_tf32=tf32, enable_cuda_graph=graph)[1])
        replay = Replay(fast, plan(fast, batch=8))
        where = {name: value.data_ptr() for name, value in replay.values.items()}
        got = all_digits(replay)
        print(f"use_tf32={tf32:d} enable_cuda_graph={graph:d}: largest difference to the CPU {np.abs(got - reference).max():.0e}, "
              f"right {(got.argmax(axis=1) == truth).sum()} of {len(truth)}")
        print("   buffers on", {value.device_name() for value in replay.values.values()}, "- addresses kept:",
              where == {name: value.data_ptr() for name, value in replay.values.items()})

# %% [markdown]
# Is the graph really used? A profile has an event for each node that the host ran; the replay of a graph runs no node.

# %% tags=["gpu"]
import json
import os


def node_events(path):
    with open(path) as file:
        events = [event for event in json.load(file) if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    os.remove(path)
    return len(events)


for graph in (False, True):
    settings = ort.SessionOptions()
    settings.enable_profiling = True
    try:
        fast = open_cuda(MODEL, cuda_provider(use_tf32=False, enable_cuda_graph=graph)[1], settings)
        all_digits(Replay(fast, plan(fast, batch=8)))
        print(f"enable_cuda_graph={graph:d}: {node_events(fast.end_profiling())} node events in 2 + 45 runs")
    except Exception as error:          # a profiler and a capture may not go together: then this says so
        print(f"enable_cuda_graph={graph:d}: {type(error).__name__}: {str(error)[:160]}")

# %% [markdown]
# What the graph does with a buffer that is bound after the capture. ONNX Runtime raises nothing for CUDA.

# %% tags=["gpu"]
fast = open_cuda(MODEL, cuda_provider(use_tf32=False, enable_cuda_graph=True)[1])
replay = Replay(fast, plan(fast, batch=1))
print("the graph's own buffer:", replay({"pixels": pixels[:1]})["probabilities"].argmax(), "- the label is", truth[0])
other = next(i for i in range(len(truth)) if truth[i] != truth[0] and reference[i].argmax() == truth[i])
moved = ort.OrtValue.ortvalue_from_numpy(pixels[other:other + 1], "cuda", 0)
replay.binding.bind_ortvalue_input("pixels", moved)
fast.run_with_iobinding(replay.binding)
print("another buffer bound:  ", replay.binding.copy_outputs_to_cpu()[0].argmax(), "- the label is", truth[other])
replay.values["pixels"].update_inplace(pixels[other:other + 1])
fast.run_with_iobinding(replay.binding)
print("the old one, refilled: ", replay.binding.copy_outputs_to_cpu()[0].argmax(), "- the label is", truth[other])

# %% [markdown]
# A model that cannot be captured, and what kind of error says so:

# %% tags=["gpu"]
from onnx import parser

branch = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
g (float[4] x, bool[1] flag) => (float[4] y) {
  y = If(flag) <then_branch = g1 () => (float[4] t) { t = Neg(x) }, else_branch = g2 () => (float[4] e) { e = Abs(x) }> }""")
for graph in (False, True):
    try:
        outcome = open_cuda(branch.SerializeToString(), cuda_provider(enable_cuda_graph=graph)[1]).get_providers()
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:200]}"
    print(f"enable_cuda_graph={graph:d}:", outcome)

# %% [markdown]
# A run that is not waited for. A chain of large products keeps the device busy; the output is read before and after the wait, by a copy on another stream than the session's.

# %% tags=["gpu"]
chain = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
g (float[2048, 2048] x) => (float[2048, 2048] y) {
  a = MatMul(x, x) b = MatMul(a, x) c = MatMul(b, x) d = MatMul(c, x) e = MatMul(d, x) f = MatMul(e, x) h = MatMul(f, x) i = MatMul(h, x)
  k = MatMul(i, x) l = MatMul(k, x) m = MatMul(l, x) n = MatMul(m, x) o = MatMul(n, x) p = MatMul(o, x) q = MatMul(p, x) y = MatMul(q, x) }""")
busy = open_cuda(chain.SerializeToString(), cuda_provider(use_tf32=False)[1])
replay = Replay(busy, plan(busy))
identity = np.eye(2048, dtype=np.float32)
replay({"x": identity})
replay.start({"x": 2 * identity})
early = replay.values["y"].numpy()[0, 0]
late = replay.finish()["y"][0, 0]
print("expected", 2.0 ** 17, "- read before the wait:", early, "- after it:", late)

# %% [markdown]
# And a convolution: which layout the nodes have, and which transposes `prefer_nhwc` costs.

# %% tags=["gpu"]
import onnx

cnn = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
g (float[1, 3, 32, 32] x, float[8, 3, 3, 3] w1, float[8, 8, 3, 3] w2) => (float[1, 8, 32, 32] y) {
  a = Conv<pads = [1, 1, 1, 1]>(x, w1) b = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(b, w2) y = Relu(c) }""")
rng = np.random.default_rng(0)
feeds = {i.name: rng.standard_normal([d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32) / 4 for i in cnn.graph.input}
results = {}
for nhwc in (False, True):
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = "nhwc.onnx"
    settings.log_severity_level = 3
    try:
        conv = open_cuda(cnn.SerializeToString(), cuda_provider(use_tf32=False, prefer_nhwc=nhwc)[1], settings)
        print(f"prefer_nhwc={nhwc:d}:", [f"{node.domain}:{node.op_type}".lstrip(":") for node in onnx.load("nhwc.onnx").graph.node])
        os.remove("nhwc.onnx")
        results[nhwc] = Replay(conv, plan(conv))(feeds)["y"]
    except Exception as error:          # cuDNN is loaded late: without it a convolution fails here, and not before
        print(f"prefer_nhwc={nhwc:d}: {type(error).__name__}: {str(error)[:160]}")
if len(results) == 2:
    print(f"largest difference: {np.abs(results[True] - results[False]).max():.0e}")

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | --- | --- |
# | `KINDS` and `ValueError` before any session | stops a typing error where it was made | ONNX Runtime's provider refuses the name, its Python class prints that and opens the session again on the CPU |
# | `type(value) is bool` | `"0"` is a string that is true | `str(int(bool("0")))` switches TF32 on |
# | `"1"` and `"0"`, not `"True"` | the text in which the session answers | `unmet` compares `"True"` with `"1"` and refuses a good session |
# | `get_providers()[0]` after opening | finds the silent CPU | a GPU service that runs on the CPU |
# | `unmet` after opening | reads what the provider uses, not what the code says | an option that a wrapper, an environment or a release dropped goes unnoticed |
# | the CPU after CUDA | a home for shape arithmetic, and for nodes without a kernel | without it in the list, ONNX Runtime adds it all the same |
# | a size for every dynamic dimension | a captured graph holds launch grids of one shape | another shape replays kernels of the old one, or fails |
# | one `OrtValue` a tensor, on the device | addresses for the graph to hold | the graph reads the buffer that was there at capture: old data, no error |
# | `update_inplace(zeros)` | fresh memory holds anything | `Gather` with rubbish for an index, NaN in the first result |
# | check names, dtypes, shapes | `update_inplace` compares the number of elements only | float64 is cut to the size of float32 and becomes noise |
# | warm up when made | capture, loading of kernels and growth of the arena happen before the first request | the first user waits for them |
# | `synchronize_outputs()`, then the copy | waits for the device | the copy runs on another stream and may be first |
# | `copy_outputs_to_cpu()` | gives arrays of the caller's own | on a CPU `value.numpy()` shares the buffer: each result becomes the latest |
#
# ## What it costs
#
# - TF32 off costs matrix speed, and gives back thirteen bits of each factor. Decide by the task's metric; parity tests run without.
# - A captured graph keeps the memory of its run, for each shape. Two batch sizes are two `Replay` objects on two sessions, or two ids in the run option `gpu_graph_id`.
# - `prefer_nhwc` pays for transposes where the chain of convolutions ends.
# - `update_inplace` copies from ordinary host memory. Pinned memory, or inputs that are made on the device, spare the staging.
# - One copy down in `finish`, and only there. If the next step is on the device too, hand on `values` instead.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **How many warm-up runs does a CUDA graph need?** Since 2023, one call of yours. The provider wants two ordinary runs, in which the arena takes all the memory that it will need, and captures the third. ONNX Runtime
# makes these runs inside your first call. So a model with a state that is updated in place is ahead after that call:
# [what runs more often than you think](../../book/04_onnxruntime/questions/22_cuda_provider_options.md). The second warm-up run here is the first replay, so a broken graph is found before traffic.
#
# **May a second thread use the same `Replay`?** No. The binding is state, and `running` is not guarded. By its source, the CUDA provider keeps captured graphs in a context for each thread: another thread would capture
# anew. One object for each thread, made and warmed up in that thread.
#
# **Which models cannot be captured?** Those with `If`, `Loop` or `Scan`, and those with a copy between CPU and GPU inside. By its source, ONNX Runtime refuses them when the session is created. Count `MemcpyToHost` and
# `MemcpyFromHost` in the optimized model first: [an exercise](ex04_silent_fallback.ipynb) does that.
#
# **Does `cudnn_conv_algo_search` still search?** Not for a plain `Conv` since 1.20: the word chooses which of cuDNN's heuristics is asked. The default, `EXHAUSTIVE`, times nothing there.
#
# **Why not just trust the dictionary?** Because three layers stand between it and the provider: Python makes strings of all values, the provider parses them, and a failure there is answered with a session
# on the CPU. `get_provider_options()` asks the last layer.
#
# **What was seen of all this on a GPU?** The grader's checks for a GPU passed on one H100, with `onnxruntime-gpu` 1.31.1: options are read back as asked, an unknown one never ends in a silent CPU, and a `Replay` gives the right numbers with and without a
# CUDA graph, its buffers on the device. What single options gain was measured on other H100s: see *One option at a time* on
# [the page of the options](../../book/04_onnxruntime/questions/22_cuda_provider_options.md).

# %% tags=["learner"]
from course.check import check

check("04_onnxruntime/ex07_cuda_provider")
