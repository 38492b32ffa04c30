# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: a first session, and a prediction you can trust
#
# Level: junior to mid · 25 minutes · needs no GPU
#
# The five lines of every tutorial open a session, feed a name that somebody read off a screen, and take output 0. They
# break on the next model, and they do not notice when the GPU is not used. You write the version that you can ship: it
# refuses a silent fall-back, asks the model for everything it needs to know, and runs once a batch.
#
# Background: [what ONNX Runtime is](../../book/04_onnxruntime/questions/04_what_is_onnx_runtime.md) and
# [how it works](../../book/04_onnxruntime/questions/05_how_it_works.md).
#
# ## The contract
#
# **`open_session(model_path, providers=("CPUExecutionProvider",))`** returns an `ort.InferenceSession`.
#
# - An item of `providers` is a name, or a pair of a name and a dict of options, as ONNX Runtime takes them. Options are
#   handed on.
# - `RuntimeError`, naming the provider, if the first one is not the first of the session that you got. This holds for a
#   provider that is not on this machine, for a name that ONNX Runtime does not know, and for a provider that was lost
#   while the session was opened.
# - The providers after the first are the fall-backs that the caller agreed to: they may be absent.
# - `FileNotFoundError`, naming the file, if there is no file `model_path`.
#
# **`describe(session)`** returns `{"inputs": [...], "outputs": [...]}`, one entry for each, in the model's order.
#
# - An entry is `{"name": str, "shape": tuple, "dtype": ...}`. A dynamic dimension is `None` in `shape`. `dtype` is anything
#   that `np.dtype()` takes and that is the NumPy type of the tensor: `tensor(float)` is `float32`.
#
# **`provider_used(session)`** returns the name of the provider that is first in this session.
#
# **`predict(session, images)`** returns a tuple `(labels, probabilities)`: int64 `(n,)` and float32 `(n, classes)`.
#
# - The model has one input, `(batch, ...)`, of any name. Its batch may be dynamic or a fixed number, its other dimensions
#   are fixed. Its dtype is float16, float32 or float64.
# - The model's probabilities are its only output of rank 2 with a floating-point type. Other outputs may stand before and
#   after. The name tells nothing. A label is the index of the highest probability.
# - `images` is an array of n images: `(n, height, width)`, `(n, features)`, or any other shape whose first dimension is n.
#   An image fits if it has as many values as the model's input without the batch. Values keep their C order (the last
#   index runs fastest), whatever the array's layout in memory.
# - uint8 images hold 0 to 255 and are divided by 255. Floating-point images (float16, float32, float64) are in [0, 1]
#   already. Only the dtype decides, never the values: what is above 1 stays as it is. Any other dtype: `TypeError`, naming it.
# - Images that do not fit, or an array without a first dimension for n: `ValueError` that says which shape was given and
#   which one is expected.
# - n may be 0, 1 or more than the fixed batch. A fixed batch is always filled: pad the last one, and drop what the padding
#   gave.
#
# Counted: runs and sessions. `predict` opens no session. It runs the model once if the batch is dynamic, `ceil(n / batch)`
# times if it is fixed, and not at all for n = 0. Not counted: time.
#
# Numbers are right if each probability is within 0.0001 of the same network in float64 (0.005 for a float16 model).

# %% [markdown]
# ## The model and the digits
#
# The network is 784-128-10 and has never seen these 360 handwritten digits.

# %%
import matplotlib.pyplot as plt
import numpy as np
import onnxruntime as ort

from course import ROOT

MODEL = ROOT / "models/digits_mlp/digits_mlp.onnx"
with np.load(ROOT / "models/digits_mlp/heldout.npz") as data:
    images, truth = data["images"], data["labels"]
print("images:", images.shape, images.dtype, "from", images.min(), "to", images.max())

figure, axes = plt.subplots(1, 10, figsize=(10, 1.4))
for axis, image, digit in zip(axes, images, truth):
    axis.imshow(image, cmap="gray")
    axis.set_title(str(digit))
    axis.axis("off")
plt.show()

# %% tags=["nbval-ignore-output"]
print(ort.__version__, ort.get_available_providers())

# %% [markdown]
# Before you write: what ONNX Runtime does with a provider that it cannot use. Nothing is raised in either case.

# %%
import contextlib
import io
import warnings

for name in ("OpenVINOExecutionProvider", "CPUExecutionProvidr"):        # not in this package; misspelled
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.simplefilter("always")
        session = ort.InferenceSession(MODEL, providers=[name])
    print(name)
    print("  warned: ", *(str(w.message).split("Available")[0] for w in caught))
    print("  printed:", *(line for line in printed.getvalue().splitlines() if not line.startswith("*")), sep=" ")
    print("  session:", session.get_providers())

# %% [markdown] tags=["hint"]
# **Hint 1.** Everything that you need to know is in the session: `session.get_inputs()` and `session.get_outputs()` give
# objects with `.name`, `.shape` and `.type`, and `session.get_providers()` gives what was registered. In a shape, a fixed
# dimension is an `int`. ONNX Runtime's own error for an absent file, `NoSuchFile`, is not derived from `FileNotFoundError`.

# %% [markdown] tags=["hint"]
# **Hint 2.** Write `predict` in this order: look at the shapes, then at the dtype, then cast with
# `images.astype(dtype of the input)`, then divide (only what was uint8), then `reshape((n, *shape of one image))`. Check
# with the product of `images.shape[1:]`: a `reshape` to `(-1, 784)` accepts 56 rows of 28 and makes 2 images of them.
# The wanted output is found with two conditions: `len(shape) == 2` and `np.dtype(...).kind == "f"`.

# %% [markdown] tags=["hint"]
# **Hint 3.** One loop serves both kinds of batch: `size = batch if isinstance(batch, int) else max(n, 1)`, then
# `for start in range(0, n, size)`. With a fixed batch, add `np.zeros((batch - len(chunk), *shape), dtype)` to a chunk that
# is too short. `session.run([output_name], {input_name: chunk})[0]` gives the rows; keep the first `len(chunk)`, as it was
# before the padding. No rows at all: `np.empty((0, classes))`, with the classes from the output's shape.

# %% [markdown]
# ## Your answer
#
# The table of types is given. An import or a helper function that you need belongs into a graded cell too.

# %%
# graded cell 1: keep this line
import errno
import math
import os

import numpy as np
import onnxruntime as ort

NUMPY_TYPES = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}


def open_session(model_path, providers=("CPUExecutionProvider",)):
    """An InferenceSession whose first provider is the first of providers; RuntimeError if it cannot be."""
    # <answer>
    if not os.path.isfile(model_path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(model_path))
    session = ort.InferenceSession(model_path, providers=list(providers))
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    registered = session.get_providers()
    if registered[0] != wanted:
        raise RuntimeError(f"{wanted} was asked for first, but the session has {registered}; "
                           f"this onnxruntime offers {ort.get_available_providers()}")
    return session
    # </answer>
    # stub: raise NotImplementedError("open_session is not written yet")


def describe(session):
    """Names, shapes (None: dynamic) and NumPy dtypes of all inputs and outputs."""
    # <answer>
    def entry(value):
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        return {"name": value.name, "shape": shape, "dtype": np.dtype(NUMPY_TYPES[value.type])}

    return {"inputs": [entry(v) for v in session.get_inputs()], "outputs": [entry(v) for v in session.get_outputs()]}
    # </answer>
    # stub: raise NotImplementedError("describe is not written yet")


def provider_used(session):
    """The name of the session's first provider."""
    # <answer>
    return session.get_providers()[0]
    # </answer>
    # stub: raise NotImplementedError("provider_used is not written yet")


# %%
# graded cell 2: keep this line
def predict(session, images):
    """Labels (n,) int64 and probabilities (n, classes) float32 of n images, uint8 in 0..255 or float in [0, 1]."""
    # <answer>
    facts = describe(session)
    source, = facts["inputs"]
    wanted, = (v for v in facts["outputs"] if len(v["shape"]) == 2 and v["dtype"].kind == "f")
    batch, *shape = source["shape"]

    if images.ndim < 1 or math.prod(images.shape[1:]) != math.prod(shape):
        raise ValueError(f"images have shape {images.shape}: expected (n, {', '.join(map(str, shape))}), "
                         f"or other images of {math.prod(shape)} values")
    if images.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise TypeError(f"images are {images.dtype}: expected uint8 in 0..255, or floating point in [0, 1]")

    pixels = images.astype(source["dtype"])
    if images.dtype == np.uint8:
        pixels /= 255
    n = len(images)
    pixels = pixels.reshape((n, *shape))

    size = batch or max(n, 1)
    parts = [np.empty((0, wanted["shape"][1]), np.float32)]
    for start in range(0, n, size):
        chunk = pixels[start:start + size]
        rows = len(chunk)
        if batch and rows < batch:
            chunk = np.concatenate([chunk, np.zeros((batch - rows, *shape), chunk.dtype)])
        output, = session.run([wanted["name"]], {source["name"]: chunk})
        parts.append(output[:rows].astype(np.float32))
    probabilities = np.concatenate(parts)
    return probabilities.argmax(axis=1).astype(np.int64), probabilities
    # </answer>
    # stub: raise NotImplementedError("predict is not written yet")


# %% [markdown]
# ## Try it on real digits

# %%
session = open_session(MODEL)
print("provider:", provider_used(session))
for kind, entries in describe(session).items():
    for entry in entries:
        print(kind, entry["name"], entry["shape"], np.dtype(entry["dtype"]))

# %%
labels, probabilities = predict(session, images)
print("right:", (labels == truth).sum(), "of", len(truth))
print("digit  images  right")
for digit in range(10):
    of_digit = truth == digit
    print(f"{digit:>5}  {of_digit.sum():>6}  {(labels[of_digit] == digit).sum():>5}")

# %% [markdown]
# One image, the same pixels as float64, and what has to be refused:

# %%
print("image 0:", predict(session, images[:1])[0], "the label is", truth[0])
print("float64 in [0, 1], same labels:", (predict(session, images / 255)[0] == labels).all())

misspelled = [("CPUExecutionProvidr", {}), "CPUExecutionProvider"]
for attempt in (lambda: open_session(MODEL, misspelled), lambda: open_session("no_such_model.onnx"),
                lambda: predict(session, images[:3, :14]), lambda: predict(session, images.astype(np.int64))):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            outcome = attempt()
        except (RuntimeError, FileNotFoundError, ValueError, TypeError) as error:
            outcome = f"{type(error).__name__}: {str(error).split(';')[0]}"
    print(outcome)

# %% [markdown]
# ## On a GPU
#
# The same functions with `CUDAExecutionProvider`, once as it comes and once with TF32 off. This needs an NVIDIA GPU and
# the package `onnxruntime-gpu`. `ort.preload_dlls()` loads CUDA and cuDNN from NVIDIA's wheels, if they came as wheels.

# %% tags=["gpu"]
ort.preload_dlls()
for options, limit in (({}, 5e-3), ({"use_tf32": "0"}, 1e-4)):
    on_gpu = open_session(MODEL, [("CUDAExecutionProvider", options), "CPUExecutionProvider"])
    gpu_labels, gpu_probabilities = predict(on_gpu, images)
    difference = np.abs(gpu_probabilities - probabilities).max()
    print("use_tf32:", options.get("use_tf32", "as by default"))
    print("  provider:", provider_used(on_gpu))
    print("  right:", (gpu_labels == truth).sum(), "of", len(truth))
    print(f"  largest difference to the CPU: {difference:.0e}, below {limit:g}: {difference < limit}")

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | --- | --- |
# | look for the file | gives the error that Python's callers catch | `NoSuchFile`, which `except FileNotFoundError` lets pass |
# | compare `get_providers()[0]` with the request | finds that another provider took the place | a server on the CPU that everybody takes for a GPU server |
# | look *after* opening, not at `get_available_providers()` | the list tells what the package was built with | a missing CUDA library goes unnoticed, and so does a misspelled fall-back, for which 1.31.1 gives up the whole list |
# | `list(providers)`, never a plain string | a string is a sequence of letters to ONNX Runtime | `"CPUExecutionProvider"` asks for a provider named `C` |
# | `isinstance(size, int)` | a dynamic dimension is a `str`, or `None` if it has no name | a test for `str` misses the dimension without a name |
# | two conditions for the output | rank and type, not position or name | labels or scores of rank 1 are taken for probabilities |
# | product of `images.shape[1:]` | compares one image with the model's | `reshape(-1, 784)` makes 2 images of a `(56, 28)` array |
# | scale by dtype | 0 to 255 only ever comes as uint8 here | `if images.max() > 1` leaves a dark image as it is |
# | `astype` to the declared type | ONNX Runtime never casts an input | `InvalidArgument: Unexpected input data type` |
# | pad the last batch | a fixed dimension takes this size only | `InvalidArgument: Got invalid dimensions` |
# | `[:rows]` | drops what the padding gave | more answers than images, the last ones about black images |
#
# ## What it costs
#
# - Opening a session reads, optimizes and plans the whole model. Do it once, and share it: `run` may be called from
#   several threads.
# - Every `run` pays for the call, the checks and the hand-over of arrays. One run for n images pays once. A dynamic batch
#   has its price as well: memory grows with n, so a server puts a ceiling on it.
# - A fixed batch of 8 computes 8 rows for 1 image. Padding is work thrown away, and with n = 9 it is 7 rows of 16.
# - `run([name], …)` returns only the output you name, `run(None, …)` all of them. Every node runs in both cases. In 1.31.1,
#   on the CPU, `only_execute_path_to_fetches` of `ort.RunOptions` did not change that.
# - `astype` copies the images once, as float32 four times their size in uint8. Put the cast and the division into
#   the model to send uint8 instead: it matters on a GPU, where the bytes cross the bus.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **Does `get_providers()[0]` prove that the model runs there?** No. It is the registered provider with the highest priority, and
# each node goes to the first provider that takes it. It may take none. The CPU package of ONNX Runtime 1.31.1 offers
# `AzureExecutionProvider`: ask for it, and it is first in the list, while every node of this model runs on the CPU. Proof
# needs the assignment of nodes, which ONNX Runtime records on request:

# %% tags=["answer"]
options = ort.SessionOptions()
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
first = [p for p in ("AzureExecutionProvider",) if p in ort.get_available_providers()]
session = ort.InferenceSession(MODEL, options, providers=[*first, "CPUExecutionProvider"])
print("asked for first and registered first:", session.get_providers()[0] == [*first, "CPUExecutionProvider"][0])
for part in session.get_provider_graph_assignment_info():
    print(part.ep_name, [node.op_type for node in part.get_nodes()])

# %% [markdown] tags=["answer"]
# **Can a session lose its provider after it was opened?** Yes. If a run fails with the status `EP_FAIL`, `InferenceSession.run` in
# Python builds the session again on the fall-back providers, prints that, and runs there. `session.disable_fallback()` turns
# this off. It does not change what happened when the session was opened: for that, look at `get_providers()`.
#
# **GPU and CPU give different probabilities. Is one of them wrong?** Both sum float32 products, in another order. The CUDA
# provider may also use TF32, 10 bits of mantissa, on Ampere and later; its option `use_tf32` is on by default, and `"0"`
# turns it off. Compare with a tolerance, and compare labels only where the two highest probabilities are further apart.
#
# **The first run on the GPU is slow. What do you tell the monitoring?** The first run loads kernels, sets up libraries and
# allocates memory. Warm up with every batch size you serve before the service reports ready, and measure after that:
# [how to evaluate](../../book/05_measuring/questions/07_how_to_evaluate.md).
#
# **How would you avoid the copies between host and GPU?** With `session.io_binding()`: bind inputs and outputs to device memory,
# then `session.run_with_iobinding(binding)`. It pays when the data is on the device before, or stays there after.

# %% tags=["learner"]
from course.check import check

check("04_onnxruntime/ex01_first_session")
