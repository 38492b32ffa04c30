# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: a loop without a copy and without an allocation
#
# Level: mid to senior · 40 minutes · needs no GPU
#
# A service has its requests in one large array, and its answers have to be in another: a ring that a camera fills, memory that two processes share. `session.run` gives new arrays,
# and somebody copies them. You bind the callers' own memory instead, row by row where it is. Then a recurrent model: what step t writes is what step t + 1 reads, and nothing moves.
#
# An address is believed. So the second half of the work is to refuse every array for which the address would be a lie.
#
# Background: [IOBinding](../../book/04_onnxruntime/questions/14_io_binding.md) and [NumPy in, NumPy out](../../book/04_onnxruntime/questions/18_what_a_copy_costs.md).
#
# ## The contract
#
# The first dimension of every input and output is the batch: dynamic, or a fixed number. The session runs on the CPU.
#
# **`Window(session, inputs, outputs)`** holds dicts from names to the callers' arrays. All arrays have the same number of rows.
#
# - `inputs` names every input of the model, `outputs` one or more of its outputs. Outputs that are not named are not asked for.
# - **`run(start, stop)`** runs the model once on the rows `start` to `stop` of the inputs, and the results are in the same rows of the outputs when it returns. It returns nothing, and touches no other row.
#   `start == stop`: no run.
# - **`IndexError`** unless `0 <= start <= stop <= rows`; `ValueError` if the model's batch is fixed and `stop - start` is neither that number nor 0. Both name what was given.
# - The `Window` keeps the arrays alive: a caller may forget them.
# - What could not be used in place is refused when the `Window` is made, with the tensor's name in the message (of two that do not go together, one will do):
#   - `ValueError` for a name that is missing or unknown, and for no outputs at all.
#   - `ValueError` for another number of rows than the other arrays', and for another shape than the model's behind the first dimension.
#   - `ValueError` for an array that is not C-contiguous or not aligned, and for an output that is read-only.
#   - `ValueError` for an output that shares memory with an input or with another output. Two inputs may share theirs.
#   - `TypeError` for what is no NumPy array, and for another dtype than the model's. An array of the other byte order has another dtype.
#
# **`Stepper(session, carry)`** runs a recurrent model. `carry` is a dict from the name of an output to the name of the input that it becomes in the next step. The batch is dynamic.
#
# - **`reset(initial)`** takes an array for each input that is carried, and copies it. The arrays stay the caller's. It may be called again, with another batch. `initial` fits the model, and its arrays are C-contiguous.
# - **`step(feeds, outputs)`** runs one step on the callers' arrays: `feeds` for the inputs that are not carried, `outputs` for those outputs that the caller wants and that are not carried. They fit the model and the batch, are C-contiguous, and may be
#   other arrays in each step. `RuntimeError` if there was no `reset`.
# - **`state()`** returns a dict from the name of each carried input to a copy of what it holds now. `RuntimeError` if there was no `reset`.
#
# Counted, after construction and `reset`: one run for a `run` or `step`. No copy: inputs and outputs are bound where the caller has them, and a state is read where the step before wrote it, and never written
# where it is read. No allocation: neither NumPy nor ONNX Runtime makes a buffer for an input or output. Python may use 16 KiB for its own objects.
#
# Numbers are right if each is within 0.0001 of the same network in float64, after 60 steps too.

# %% [markdown]
# ## Before you write
#
# The model that we use has two inputs and three outputs. `session.run` makes the outputs, so writing them into an array of yours is a copy:

# %%
import tracemalloc

import numpy as np
import onnxruntime as ort
from onnx import parser

ROWS = 4096
bag = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
g (float[n, 256] x, int64[n] kind) => (float[n, 256] y, float[n] total, float[n, 256] unused)
<float[2, 1] gain = {2, -1}, int64[1] last = {1}> {
  g1 = Gather(gain, kind)  y = Mul(x, g1)  total = ReduceSum<keepdims = 0>(y, last)  unused = Neg(y) }""").SerializeToString()
session = ort.InferenceSession(bag, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
x, kind = rng.standard_normal((ROWS, 256), dtype=np.float32), rng.integers(0, 2, ROWS)
y, total = np.zeros((ROWS, 256), np.float32), np.zeros(ROWS, np.float32)

made, = session.run(["y"], {"x": x[:8], "kind": kind[:8]})
print("run() writes to memory of its own:", not np.shares_memory(made, y))

# %% [markdown]
# And an address is believed. This array is contiguous, has the right shape, and its dtype has the right name:

# %%
swapped = x[:2].astype(">f4")
binding = session.io_binding()
binding.bind_input("x", "cpu", 0, np.float32, swapped.shape, swapped.ctypes.data)
binding.bind_cpu_input("kind", kind[:2])
binding.bind_output("y", "cpu", 0, np.float32, (2, 256), y.ctypes.data)
session.run_with_iobinding(binding)
print("its dtype is called", swapped.dtype.name, "- right numbers:", bool(np.allclose(y[:2], x[:2] * np.where(kind[:2], -1, 2)[:, None])))

# %% [markdown] tags=["hint"]
# **Hint 1.** Rows of a C-contiguous array are one piece of memory: `array[start:stop]` is a view, `view.ctypes.data` its address, and nothing was copied. `binding.bind_input(name, "cpu", 0, dtype, shape, address)`
# and `binding.bind_output(...)` with the same arguments take it. An output that you do not bind is not computed for you. A `bind_output` without an address would allocate.

# %% [markdown] tags=["hint"]
# **Hint 2.** Refuse in the order name, class, dtype, rank and shape, flags, memory. Compare `array.dtype` with `np.dtype(...)`, never their names. The flags are `c_contiguous`, `aligned` and `writeable`. Two contiguous
# arrays share memory exactly if `np.may_share_memory` says so. A binding that was given an address keeps nothing alive, so keep the arrays in attributes.

# %% [markdown] tags=["hint"]
# **Hint 3.** Two sets of buffers that swap roles: in even steps the state is read from set 0 and written to set 1, in odd steps the other way. Make them in `reset`, with `ort.OrtValue.ortvalue_from_shape_and_type`; the carried
# output has the shape of the carried input. Binding is cheap, so bind everything in each step. What was bound stays bound: `clear_binding_outputs` first, or an output that this step does not want is written into the array of an earlier one.

# %% [markdown]
# ## Your answer

# %%
# graded cell 1: keep this line
import numpy as np
import onnxruntime as ort

NUMPY_TYPES = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}


class Window:
    """Runs a session on rows of the callers' arrays, in place."""

    # <answer>
    def __init__(self, session, inputs, outputs):
        self.session, self.inputs, self.outputs = session, dict(inputs), dict(outputs)
        sources = {tensor.name: tensor for tensor in session.get_inputs()}
        targets = {tensor.name: tensor for tensor in session.get_outputs()}
        for name in sources.keys() ^ self.inputs.keys():
            raise ValueError(f"{name} is {'missing' if name in sources else 'unknown'}: the model's inputs are {list(sources)}")
        for name in self.outputs.keys() - targets.keys():
            raise ValueError(f"{name} is unknown: the model's outputs are {list(targets)}")
        if not self.outputs:
            raise ValueError(f"no output is named: the model has {list(targets)}")
        self.rows, self.batch = None, None
        for arrays, tensors in ((self.inputs, sources), (self.outputs, targets)):
            for name, array in arrays.items():
                self._check(name, array, tensors[name], arrays is self.outputs)
        memory = list(self.inputs.items())
        for name, array in self.outputs.items():
            for other, taken in memory:
                if np.may_share_memory(array, taken):
                    raise ValueError(f"{name} shares memory with {other}: a result would overwrite what is still read")
            memory.append((name, array))
        self.binding = session.io_binding()

    def _check(self, name, array, tensor, written):
        dtype = np.dtype(NUMPY_TYPES[tensor.type])
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is {type(array).__name__}: expected a NumPy array")
        if array.dtype != dtype:
            raise TypeError(f"{name} is {array.dtype} ({array.dtype.str}): expected {dtype} ({dtype.str})")
        wanted = tensor.shape[1:]
        if array.ndim != len(tensor.shape) or any(isinstance(size, int) and size != given for size, given in zip(wanted, array.shape[1:])):
            raise ValueError(f"{name} has the shape {array.shape}: expected (rows, {', '.join(map(str, wanted))})")
        if not array.flags.c_contiguous or not array.flags.aligned:
            raise ValueError(f"{name} is not contiguous in C order, or not aligned: its rows cannot be used where they are")
        if written and not array.flags.writeable:
            raise ValueError(f"{name} is read-only, and results have to be written there")
        if self.rows is None:
            self.rows = len(array)
        if len(array) != self.rows:
            raise ValueError(f"{name} has {len(array)} rows, and the arrays before it {self.rows}")
        if isinstance(tensor.shape[0], int):
            self.batch = tensor.shape[0]

    def run(self, start, stop):
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of {self.rows}")
        if start == stop:
            return
        if self.batch is not None and stop - start != self.batch:
            raise ValueError(f"rows {start} to {stop} are {stop - start}, and the model's batch is {self.batch}")
        for bind, arrays in ((self.binding.bind_input, self.inputs), (self.binding.bind_output, self.outputs)):
            for name, array in arrays.items():
                rows = array[start:stop]
                bind(name, "cpu", 0, array.dtype, rows.shape, rows.ctypes.data)
        self.session.run_with_iobinding(self.binding)
    # </answer>
    # stub: def __init__(self, session, inputs, outputs):
    # stub:     raise NotImplementedError("Window is not written yet")


# %%
# graded cell 2: keep this line
class Stepper:
    """Runs a recurrent session: what one step writes, the next one reads, in the same memory."""

    # <answer>
    def __init__(self, session, carry):
        self.session, self.carry, self.values = session, dict(carry), None

    def reset(self, initial):
        self.values = [{}, {}]
        for source in self.carry.values():
            for side in self.values:
                side[source] = ort.OrtValue.ortvalue_from_shape_and_type(list(initial[source].shape), initial[source].dtype.type, "cpu", 0)
            self.values[0][source].update_inplace(initial[source])
        self.binding = self.session.io_binding()
        self.now = 0

    def step(self, feeds, outputs):
        if self.values is None:
            raise RuntimeError("there is no state yet: call reset first")
        read, write = self.values[self.now], self.values[1 - self.now]
        self.binding.clear_binding_outputs()        # an output of the step before, not wanted now, would still be written
        for target, source in self.carry.items():
            self.binding.bind_ortvalue_input(source, read[source])
            self.binding.bind_ortvalue_output(target, write[source])
        for bind, arrays in ((self.binding.bind_input, feeds), (self.binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self.session.run_with_iobinding(self.binding)
        self.now = 1 - self.now

    def state(self):
        if self.values is None:
            raise RuntimeError("there is no state yet: call reset first")
        return {source: value.numpy().copy() for source, value in self.values[self.now].items()}
    # </answer>
    # stub: def __init__(self, session, carry):
    # stub:     raise NotImplementedError("Stepper is not written yet")


# %% [markdown]
# ## Try it
#
# The rows of three requests, of different sizes, in one array. `tracemalloc` counts what NumPy allocates; one row of `x` has 1,024 bytes.

# %%
window = Window(session, {"x": x, "kind": kind}, {"y": y, "total": total})
window.run(0, 2)                                        # what Python sets up in a first call is not counted
y[...] = total[...] = 0
tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
tracemalloc.reset_peak()
for start, stop in ((100, 900), (900, 901), (901, 4096)):
    window.run(start, stop)
peak = tracemalloc.get_traced_memory()[1] - before
tracemalloc.stop()
right = x * np.where(kind == 0, 2, -1)[:, None]
print("rows 100 to 4096 are right:", bool(np.allclose(y[100:], right[100:])), bool(np.allclose(total[100:], right[100:].sum(axis=1), atol=1e-3)))
print("the others were not touched:", not y[:100].any() and not total[:100].any())
print("Python allocated less than 16 KiB:", peak < 16384)

# %% [markdown]
# Arrays whose address would be a lie:

# %%
for label, inputs, outputs in (
    ("columns", {"x": np.asfortranarray(x), "kind": kind}, {"y": y}),
    ("every second row", {"x": np.repeat(x, 2, axis=0)[::2], "kind": kind}, {"y": y}),
    ("other byte order", {"x": x.astype(">f4"), "kind": kind}, {"y": y}),
    ("in place", {"x": x, "kind": kind}, {"y": x}),
    ("32-bit kinds", {"x": x, "kind": kind.astype(np.int32)}, {"y": y}),
    ("a list", {"x": x, "kind": list(kind)}, {"y": y}),
):
    try:
        Window(session, inputs, outputs)
        print(f"{label:17} accepted")
    except (ValueError, TypeError) as error:
        print(f"{label:17} {type(error).__name__}: {str(error)[:95]}")

# %% [markdown]
# A recurrent model, 60 steps, with an output of every step written into one history array:

# %%
cell = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
g (float[n, 3] x, float[n, 8] h, float[3, 8] u, float[8, 8] w) => (float[n, 8] h_next, float[n, 8] change) {
  a = MatMul(x, u)  b = MatMul(h, w)  c = Add(a, b)  h_next = Tanh(c)  change = Sub(h_next, h) }""").SerializeToString()
recurrent = ort.InferenceSession(cell, providers=["CPUExecutionProvider"])
u, w = rng.standard_normal((3, 8), dtype=np.float32), rng.standard_normal((8, 8), dtype=np.float32) / 4
signal, history = rng.standard_normal((60, 2, 3), dtype=np.float32), np.empty((60, 2, 8), np.float32)

stepper = Stepper(recurrent, {"h_next": "h"})
stepper.reset({"h": np.zeros((2, 8), np.float32)})
expected, changes = np.zeros((2, 8)), []
for now, change in zip(signal, history):
    stepper.step({"x": now, "u": u, "w": w}, {"change": change})
    later = np.tanh(now @ u.astype(float) + expected @ w)
    changes.append(later - expected)
    expected = later
print("state after 60 steps:", bool(np.abs(stepper.state()["h"] - expected).max() < 1e-4))
print("all changes:", bool(np.abs(history - changes).max() < 1e-4))

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | --- | --- |
# | `array[start:stop]` and its address | names rows where they are | a copy of each request, and one of each answer |
# | the shape of *these* rows at each `run` | the address alone has no length | the shape of the request before: rows of somebody else, or memory behind the array |
# | `dtype` compared as a dtype | type and byte order | `>f4` is called `float32` too, and its numbers are noise |
# | C-contiguous, aligned | the address stands for all of the rows | ONNX Runtime reads the memory behind the address, whatever the strides say |
# | writeable | read-only memory may be shared by others, or be a mapped file | the address ignores the flag: the file changes, or the process dies |
# | no shared memory | nothing is overwritten that is still read | right for one model, wrong for the next version, whose nodes run in another order |
# | the arrays in attributes | an address keeps nothing alive | the caller's array is collected, and the model reads what came after it |
# | `clear_binding_outputs()` | what was bound stays bound | a step writes into an array that the caller has long given away |
# | two sets of state | a step reads one and writes the other | `change` above is zero: the new state is there before the old one was read |
# | `copy()` in `state` | the caller's own | the state that you kept is the state of the step after next |
#
# ## What it costs, and when it is worth it
#
# - On a CPU little is won for small requests: `session.run` does not copy a contiguous input either. You win the output's allocation and its copy, and you decide the address. The gain is in large outputs, in rings and in shared memory.
# - Each `bind_input` and `bind_output` is a call from Python into ONNX Runtime. For windows that come again keep a binding each, and bind nothing at all.
# - Intermediate tensors are still allocated, in the session's arena, which hands out the same memory again. [The arena](../../book/04_onnxruntime/questions/16_memory_arena.md) says what it keeps.
# - Two sets of state are twice the memory. For a decoder's cache that is a lot: there the model writes in place by design, with one buffer, and says so.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **What changes on a GPU?** Addresses on the host are no use to the device. `bind_cpu_input` copies at once and never again, so refilling the array has no effect. Keep `ort.OrtValue` on the device, `update_inplace` for what comes from the host,
# and let the state stay there: `Stepper` needs `"cuda"` for the state and nothing else, and copies a state down only in `state`. That was not run for this exercise.
#
# **How do you prove that nothing is copied?** By addresses: the one that is bound is the one of the caller's row. By counting: `tracemalloc` knows every buffer of NumPy. And by the profile, for copies that the session itself inserts as nodes.
# Not by a stopwatch: a copy of a few kilobytes is lost in the noise, until the load grows.
#
# **Two threads, one `Window`?** No: the binding is changed by each `run`. The session may be shared, so make a `Window` for each thread over the same arrays. Their rows must not overlap, and nobody checks that.
#
# **Why not let ONNX Runtime allocate the outputs once, and reuse them?** It does, for outputs that were bound without an address: after the first run the binding has them. Then the shape is fixed, and every result is in the same place: the next run
# overwrites the last answer.

# %% tags=["learner"]
from course.check import check

check("04_onnxruntime/ex02_iobinding")
