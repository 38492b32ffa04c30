# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: from an ONNX file to an engine, and back to NumPy
#
# Level: junior to mid · 40 minutes · the first half needs no GPU
#
# You write the whole path that a TensorRT deployment takes: parse an ONNX model, build an engine for a range of
# batches, save it; then load it, bring a batch to the GPU, run it, and bring the result back. The network is
# 784-128-10 and reads handwritten digits.
#
# ## The contract
#
# **Half one, no GPU needed: `build_engine(onnx_path, engine_path, batches=(1, 8, 32))`**
#
# - Parses the ONNX file at `onnx_path`, builds an engine, writes its plan to `engine_path`. Returns nothing.
# - `batches` is the smallest, the best and the largest batch. Dimension 0 of every input is the batch, and it is dynamic.
#   The engine has exactly one optimization profile, and it covers every input. Inputs may have any name, rank and
#   number; every other dimension is the model's.
# - `FileNotFoundError`, naming the file, if there is no file `onnx_path`.
# - `ValueError` if the file is no ONNX model, or the parser refuses it (with the parser's own words, for every error it
#   reports), or an input's batch is fixed, or another dimension of it is dynamic (both name the input), or `batches`
#   is not `1 <= smallest <= best <= largest`.
# - `RuntimeError` if the builder finds no engine.
# - After any error, what stood at `engine_path` before still stands there. Nothing else is left on disk.
#
# **Half two, on a GPU: `load_engine(engine_path)` and `infer(engine, batch)`**
#
# - `load_engine` returns a deserialized `trt.ICudaEngine`; `ValueError` if the file holds none.
# - `infer` takes the engine and a float32 array `(n, features)`, in any memory layout, and returns a new float32 array
#   `(n, classes)`. The engine has one input and one output, of any names. It runs once, by `execute_async_v3` on a stream
#   of yours, and leaves no device memory behind.
# - `ValueError` if the array is not float32, or its shape is outside the engine's profile.
# - The CUDA binding is pycuda. Import it inside the two functions, so that half one runs without it.
#
# Counted: one build, one profile, one `execute_async_v3` for a batch. Not counted: time.
#
# Numbers are right if they are within 0.002 of the same network in float64: TensorRT may use TF32 for float32 matrix
# products unless told otherwise.

# %% [markdown]
# ## What is installed here
#
# The same code serves TensorRT 8.6 to 11 (`import tensorrt`) and, for the build half, TensorRT for RTX
# (`import tensorrt_rtx`), which builds engines on a machine without a GPU. It was run with 8.6.0 on a GPU and with
# TensorRT for RTX 1.7 on a CPU; for 10.0, 10.16 and 11.4 only the names were checked.

# %%
try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

import numpy as np
import onnx

from course import ROOT

MODEL = ROOT / "models/digits_mlp/digits_mlp.onnx"
data = np.load(ROOT / "models/digits_mlp/heldout.npz")
images, labels = (data["images"].reshape(-1, 784) / 255).astype(np.float32), data["labels"]
print("digits the network never saw:", images.shape, images.dtype)

# %% tags=["nbval-ignore-output"]
print(trt.__name__, trt.__version__)

# %% [markdown]
# Some of them, with their labels:

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 10, figsize=(10, 1.4))
for axis, image, label in zip(axes, images, labels):
    axis.imshow(image.reshape(28, 28), cmap="gray")
    axis.set_title(str(label))
    axis.axis("off")
figure.show()

# %% [markdown] tags=["hint"]
# **Hint 1.** Five objects, in this order: `trt.Logger`, `trt.Builder`, `builder.create_network(flags)`,
# `trt.OnnxParser(network, logger)`, `builder.create_builder_config()`. The builder makes the plan with
# `builder.build_serialized_network(network, config)`. None of them raises when it fails: each tells by what it
# returns, and you have to look.

# %% [markdown] tags=["hint"]
# **Hint 2.** `parser.parse(bytes)` returns a bool, and the reasons are in `str(parser.get_error(i))` for each `i` below
# `parser.num_errors`. A file of random text can parse "successfully" into a network without inputs. The profile comes
# from `builder.create_optimization_profile()`; call `profile.set_shape(name, min, opt, max)` for each
# `network.get_input(i)`, then `config.add_optimization_profile(profile)`.

# %% [markdown] tags=["hint"]
# **Hint 3.** TensorRT 8.6 wants the flag `EXPLICIT_BATCH` in `create_network`; TensorRT 11 no longer has it, so look for it
# with `getattr`. For `infer`: `engine.get_tensor_name(i)` and `engine.get_tensor_mode(name)` find the tensors;
# `context.set_input_shape(name, shape)` returns False for a shape outside the profile; only after it does
# `context.get_tensor_shape(output)` have no -1. `context.set_tensor_address(name, int(pointer))` for both, then
# `context.execute_async_v3(stream.handle)`, the copy back on the same stream, and `stream.synchronize()`.

# %% [markdown]
# ## Half one: build

# %%
# graded cell 1: keep this line
import os
import tempfile

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def build_engine(onnx_path, engine_path, batches=(1, 8, 32)):
    """Builds an engine from an ONNX file for a range of batches and writes its plan to engine_path."""
    # <answer>
    smallest, best, largest = batches
    if not 1 <= smallest <= best <= largest:
        raise ValueError(f"batches must be 1 <= smallest <= best <= largest, not {batches}")
    with open(onnx_path, "rb") as file:              # FileNotFoundError, with the name, if there is none
        model = file.read()

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # 8.6 builds an implicit-batch network without this flag, and its ONNX parser refuses that. 10 ignores it, 11 lacks it.
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model)
    if not parsed or network.num_inputs == 0 or network.num_outputs == 0:
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ValueError(f"TensorRT cannot read {onnx_path}: " + ("; ".join(reasons) or "it is no ONNX model"))

    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        batch, *rest = tensor.shape
        if batch != -1:
            raise ValueError(f"input {tensor.name!r} has the fixed batch {batch}: export it with a dynamic one")
        if -1 in rest:
            raise ValueError(f"input {tensor.name!r} has shape {tuple(tensor.shape)}: only dimension 0 may be dynamic")
        profile.set_shape(tensor.name, (smallest, *rest), (best, *rest), (largest, *rest))
    config = builder.create_builder_config()
    if config.add_optimization_profile(profile) < 0:
        raise RuntimeError(f"TensorRT rejected the profile {batches}")

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT found no engine for {onnx_path}: the log says why")

    folder = os.path.dirname(os.path.abspath(engine_path))
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(plan)
        os.replace(unfinished, engine_path)          # all or nothing: no reader ever sees half a plan
    except BaseException:
        os.unlink(unfinished)
        raise
    # </answer>
    # stub: raise NotImplementedError("build_engine is not written yet")


# %% [markdown]
# Try it. The plan holds the weights, so it cannot be smaller than they are.

# %%
folder = tempfile.mkdtemp()
engine_path = os.path.join(folder, "digits.engine")
build_engine(str(MODEL), engine_path)
plan_bytes = os.path.getsize(engine_path)
weight_bytes = sum(onnx.numpy_helper.to_array(w).nbytes for w in onnx.load(MODEL).graph.initializer)
print("weights in the ONNX file:", weight_bytes, "bytes")
print("the plan is larger:", plan_bytes > weight_bytes)

# %%
for bad in (dict(onnx_path="no_such_file.onnx"), dict(batches=(8, 4, 32))):
    try:
        build_engine(**{"onnx_path": str(MODEL), "engine_path": engine_path} | bad)
    except (FileNotFoundError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")
print("the engine from before is still there:", os.path.getsize(engine_path) == plan_bytes)

# %% [markdown]
# ## Half two: run

# %%
# graded cell 2: keep this line
import numpy as np


def load_engine(engine_path):
    """The engine in the file engine_path, deserialized on the current GPU."""
    # <answer>
    import pycuda.autoprimaryctx  # noqa: F401  makes the device's primary context current before TensorRT looks for one

    with open(engine_path, "rb") as file:
        plan = file.read()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ValueError(f"{engine_path} holds no engine that this TensorRT {trt.__version__} can load on this GPU")
    return engine
    # </answer>
    # stub: raise NotImplementedError("load_engine is not written yet")


def infer(engine, batch):
    """Probabilities (n, classes) float32 for a batch (n, features) float32."""
    # <answer>
    import pycuda.driver as cuda

    if batch.dtype != np.float32:
        raise ValueError(f"the engine reads float32, the batch is {batch.dtype}: cast it with astype(numpy.float32)")
    batch = np.ascontiguousarray(batch)              # the device copy takes the bytes as they lie in memory

    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    source, = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
    result, = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
    least, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(source, 0))
    if len(batch.shape) != len(least) or any(not a <= size <= b for a, size, b in zip(least, batch.shape, most)):
        raise ValueError(f"{source!r} has shape {batch.shape}, the engine takes {least} to {most}")

    context = engine.create_execution_context()
    if not context.set_input_shape(source, batch.shape):
        raise ValueError(f"the engine refuses shape {batch.shape} for {source!r}")
    output = np.empty(tuple(context.get_tensor_shape(result)), np.float32)   # known only now: the batch is dynamic

    stream = cuda.Stream()
    to_device, from_device = cuda.mem_alloc(batch.nbytes), cuda.mem_alloc(output.nbytes)
    try:
        context.set_tensor_address(source, int(to_device))
        context.set_tensor_address(result, int(from_device))
        cuda.memcpy_htod_async(to_device, batch, stream)
        if not context.execute_async_v3(stream.handle):
            raise RuntimeError("execute_async_v3 was refused: the log says why")
        cuda.memcpy_dtoh_async(output, from_device, stream)
        stream.synchronize()                         # until here nothing need have happened; now all of it has
    finally:
        to_device.free()
        from_device.free()
    return output
    # </answer>
    # stub: raise NotImplementedError("infer is not written yet")


# %% [markdown]
# All 360 digits, 32 at a time, against the same network in NumPy and float64:

# %% tags=["gpu"]
engine = load_engine(engine_path)
probabilities = np.concatenate([infer(engine, images[i:i + 32]) for i in range(0, len(images), 32)])

weights = {w.name: onnx.numpy_helper.to_array(w).astype(np.float64) for w in onnx.load(MODEL).graph.initializer}
hidden = np.maximum(images @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
logits = hidden @ weights["logits.weight"].T + weights["logits.bias"]
exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

print(trt.__name__, trt.__version__)
print("digits read right:", (probabilities.argmax(1) == labels).sum(), "of", len(labels))
print("labels that differ from float64:", (probabilities.argmax(1) != exact.argmax(1)).sum())
print(f"largest difference of a probability: {np.abs(probabilities - exact).max():.1e}")

# %% tags=["gpu"]
for n in (1, 31, 32, 33):
    try:
        print(n, infer(engine, images[:n]).shape)
    except ValueError as error:
        print(n, error)

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | --- | --- |
# | `trt.Logger` | receives every message; errors are told there, not raised | `trt.Builder` demands one; if it keeps errors to itself, a `None` with no reason |
# | explicit batch (8.6) | makes dimension 0 an ordinary dimension | the ONNX parser of 8.6 refuses the network |
# | look at what `parse` returned | the parser never raises | an empty or half network, and an error far away |
# | look at `num_inputs` | text that is no model can parse into an empty network | a build error about missing outputs |
# | the profile | fixes the range that kernels must serve, and the size they are tuned for | the build fails: dynamic input, no profile |
# | look at `None` after the build | the builder never raises | `TypeError` while writing; if in place, an empty file where an engine was |
# | write aside, then `os.replace` | a plan appears whole or not at all | a server reads half a plan |
# | `pycuda.autoprimaryctx` | makes a CUDA context current | pycuda refuses the first stream or allocation: no active context |
# | `np.ascontiguousarray` | bytes in the order of the shape | a transposed batch is read as another batch |
# | `set_input_shape` | tells the context this call's shape | output shape with -1, execution refused |
# | `set_tensor_address` | binds names to device addresses | execution refused; a NumPy array is not on the device |
# | `stream.synchronize` | waits for copies and kernels | with pinned memory the array is read before it is written; with pageable memory, as here, the copy may wait by itself, but CUDA does not promise it |
#
# ## What it costs
#
# `infer` is the simple form: each call makes a context and a stream, allocates twice, copies pageable memory and waits.
# A server keeps the context, the stream and pinned buffers, and only sets shapes and addresses when they change.
# The build is the expensive step, and is done once for a model, a TensorRT release and, unless asked otherwise, a GPU model.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **Why does the plan not load on another machine?** Unless it is built for compatibility, it holds kernels chosen by timing on
# this GPU by this release, and the runtime refuses another release or another compute capability.
# `trt.BuilderFlag.VERSION_COMPATIBLE` and `trt.HardwareCompatibilityLevel.AMPERE_PLUS` widen that, at a possible price in
# speed. Another GPU model of the same compute capability may load the plan with no more than a warning.
#
# **The seed article writes `context.execute_v2(input_data, output_data)`. What is wrong?** `execute_v2` takes one list of device
# addresses, one for each input and output in the engine's order, as integers. NumPy arrays live on the host. It also blocks
# the caller until the GPU is done; `execute_async_v3`, in 8.6 and all later releases, takes a stream and finds its addresses
# by name.
#
# **Is the result float32?** Its dtype is. The products may have been computed in TF32, 10 bits of mantissa, since
# `trt.BuilderFlag.TF32` is on by default. Clear it with `config.clear_flag` where the last digits matter.
#
# **How would you serve batch 1 and batch 32 equally well?** One profile is tuned at its `opt` alone. Add a second profile, or
# build a second engine, and choose by batch; every further profile costs build time and memory.

# %% tags=["learner"]
from course.check import check

check("03_tensorrt/ex01_first_engine")
