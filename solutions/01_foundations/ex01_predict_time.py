# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: predict the time from bytes and operations, then measure
#
# Level: mid to senior · 45 minutes · needs no GPU
#
# "How fast can this model be on that GPU?" can be answered before anything is run: count the operations and the bytes that
# have to move, and divide by what the machine can do. What you measure later is then good, bad or impossible, and not just
# a number. You write the counter, the prediction, and a measurement that is honest about the ratio of the two.
#
# Background: [why a small batch is memory-bound](../../book/01_foundations/questions/28_small_batch_memory_bound.md) and
# [how to evaluate performance](../../book/05_measuring/questions/07_how_to_evaluate.md).
#
# ## The contract
#
# **`layers(path, batch)`** returns a list with one dict for each *layer* of an ONNX file, in the order of the graph's nodes.
#
# - The file: standard operators, opset 13 to 18, shapes static except that the first dimension of a graph input may be dynamic
#   (a name or nothing). It becomes `batch`; a fixed one stays. Everything else can be inferred with
#   `onnx.shape_inference`. The file need not contain shapes of intermediate tensors. An initializer may be listed among the
#   graph's inputs too: it is a constant all the same. Floating-point data are float16, float32 or float64, and others, such as
#   uint8, may come before a `Cast`.
# - A layer's dict is `{"name": str, "op": str, "dtype": str, "flops": int, "bytes": int}`. `name` is the name of its first
#   output, `op` its operator, `dtype` the NumPy name of its first input's type, for example `"float32"`.
# - `flops`, where one multiply-add is two operations and positions in padding count like others:
#
#   | operator | operations |
#   | --- | --- |
#   | `Conv` (1, 2 or 3 spatial dimensions, any group, strides, pads, dilations) | 2 · output elements · weights that one output element uses; + output elements if there is a bias |
#   | `Gemm` | 2·M·N·K; + M·N if there is a `C`. `alpha` and `beta` are free |
#   | `MatMul` (rank 2 or more, leading dimensions broadcast) | 2 · output elements · K |
#   | `Add` `Sub` `Mul` `Div` `Relu` `Sigmoid` `Tanh` | 1 · output elements |
#   | `Softmax` | 5 · output elements |
#   | `MaxPool` | kernel positions · elements of the first output |
#   | `GlobalAveragePool` | 1 · input elements |
#   | `Transpose` `Concat` `Cast` | 0 |
#
# - `bytes`: every distinct tensor that the node reads, once, and every output, each with its own element size. An optional
#   input or output that is left out (the empty name) is none.
# - `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze` and `Identity` are *views*, no layers: their output is their first input
#   under another name, also when you ask whether two tensors are the same. What else they read (a shape, axes) is free.
#   A `Constant` node is no layer; its output is a constant, like an initializer.
# - `ValueError` that names the operator for any other operator, and a `ValueError` for a `batch` that is no `int` of at least 1.
#
# **`predict(path, batch, machine)`** returns `{"layers": [...], "seconds": float, "fused_bytes": int, "floor_seconds": float}`.
#
# - `machine` is `{"bandwidth": bytes per second, "matrix": {dtype name: operations per second}, "vector": operations per second,
#   "launch": seconds}`. `Conv`, `Gemm` and `MatMul` run at the matrix rate of the layer's `dtype`; the others at the vector rate.
#   `ValueError` that names the dtype if the machine has no matrix rate for it.
# - Each layer's dict gains `"seconds"` and `"bound"`. Three times compete: bytes / bandwidth (`"memory"`), operations / rate
#   (`"compute"`), and the launch (`"launch"`), which the host pays while the GPU works on the layer before. The longest is
#   `seconds`, and its word is `bound`. In a tie `memory` goes before `compute`, and that before `launch`.
# - `seconds` is the sum over the layers.
# - `fused_bytes` is what moves if no intermediate tensor ever leaves the chip: the sizes of all distinct tensors that are a
#   graph input or a constant and are read by a layer, or a graph output. Each once, however many layers read it.
# - `floor_seconds` is the greater of `fused_bytes` / bandwidth and the sum of all layers' operations / rate: no launch.
#
# **`measure(start, finish, clock, prediction, warmup=3, repeats=20)`** returns `{"seconds": float, "ratio": float, "verdict": str}`.
#
# - `start()` enqueues one inference and returns at once. `finish()` returns when everything that was enqueued is done. `clock()`
#   gives seconds. All three are handed in; use no other clock.
# - First `warmup` inferences that are not timed, then `repeats` timed ones, one after the other: the clock is read, the
#   inference runs to its end, the clock is read. No inference of the warm-up may reach into a timed one.
# - `seconds` is the median of the timed ones: of an even number, the mean of the middle two. `ratio` is `seconds` divided by
#   the prediction's `seconds`.
# - `verdict` is `"impossible"` if the median is below `floor_seconds`; otherwise `"explained"` if the ratio is at most 2, and
#   `"unexplained"` if it is more.
# - `ValueError` if `repeats` is below 1 or `warmup` below 0.
#
# Nothing that is handed in may be changed, no file may be written beside the model, and nothing may be kept between calls: a file
# of the same name, size and time can have another content. Counted: calls of `start`. Not graded: how fast your code or this machine is.

# %% [markdown]
# ## The model
#
# The same digits network as everywhere in this course, as the file stores it. Look before you count: which weights are
# there, and what is dynamic?

# %%
import onnx

from course import ROOT

MODEL = ROOT / "models/digits_mlp/digits_mlp.onnx"
digits = onnx.load(MODEL).graph
for value in (*digits.input, *digits.output):
    print(value.name, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim])
for tensor in digits.initializer:
    print("constant", tensor.name, list(tensor.dims))
for node in digits.node:
    print(node.op_type, list(node.input), "→", list(node.output), {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})

# %% [markdown] tags=["hint"]
# **Hint 1.** Set the dynamic first dimension of every graph input (not of constants) with `dim.dim_value = batch`, then call
# `onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)`. Shape and type of each tensor are then in `graph.input`,
# `graph.value_info`, `graph.output` or `graph.initializer`. Stale shapes in `value_info` and in the outputs can contradict the new
# batch: remove them first. A dict from name to `(shape, dtype)` makes the rest short.

# %% [markdown] tags=["hint"]
# **Hint 2.** A convolution's weight has the shape (output channels, input channels / group, kernel…), so the weights that one output
# element uses are `math.prod(weight.shape[1:])`: group, strides and dilations need no formula of their own. K of a `Gemm` is the
# first dimension of A if `transA` is set, else the second. For bytes, take a *set* of names: `Mul(x, x)` reads one tensor. A second
# dict maps the output of each view to its source; the nodes are in topological order, so one pass is enough.

# %% [markdown] tags=["hint"]
# **Hint 3.** For a layer: `times = {"memory": ..., "compute": ..., "launch": ...}`, `bound = max(times, key=times.get)`. A dict keeps its
# order and `max` returns the first of equals, which is the order for ties. In `measure`: warm up with `start()` *and* `finish()`, then
# read the clock before `start()` and again after `finish()`, keep the difference, and take `statistics.median` of all of them.

# %% [markdown]
# ## Your answer

# %%
# graded cell 1: keep this line
import math
import statistics

import numpy as np
import onnx
from onnx import helper, shape_inference

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh"}
MOVES = {"Transpose", "Concat", "Cast"}
MATRIX = {"Conv", "Gemm", "MatMul"}


# <answer>
def read(path, batch):
    """The graph with shapes for this batch: (graph, {name: (shape, dtype)}, names of constants, {view: its source})."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch is {batch!r}: expected an int of at least 1")
    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    del graph.value_info[:]                                   # they may speak of another batch
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph

    tensors = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        tensors[value.name] = (tuple(d.dim_value for d in kind.shape.dim), helper.tensor_dtype_to_np_dtype(kind.elem_type))
    for tensor in graph.initializer:
        tensors[tensor.name] = (tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type))

    source = {}
    for node in graph.node:                                   # in topological order, so a source is known before its views
        if node.op_type == "Constant":
            constants.add(node.output[0])
        elif node.op_type in VIEWS:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
    return graph, tensors, constants, source


def operations(node, tensors):
    """Operations of one node, by the contract's table."""
    shapes = [tensors[name][0] if name else None for name in node.input]
    out = math.prod(tensors[node.output[0]][0])
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    third = len(shapes) > 2 and shapes[2] is not None         # a bias, or the C of a Gemm
    if node.op_type == "Conv":
        return 2 * out * math.prod(shapes[1][1:]) + third * out
    if node.op_type == "Gemm":
        return 2 * out * shapes[0][0 if attributes.get("transA", 0) else 1] + third * out
    if node.op_type == "MatMul":
        return 2 * out * shapes[0][-1]
    if node.op_type in ELEMENTWISE:
        return out
    if node.op_type == "Softmax":
        return 5 * out
    if node.op_type == "MaxPool":
        return out * math.prod(attributes["kernel_shape"])
    if node.op_type == "GlobalAveragePool":
        return math.prod(shapes[0])
    if node.op_type in MOVES:
        return 0
    raise ValueError(f"the operator {node.op_type} (output {node.output[0]!r}) has no count here")


def size(tensor):
    """Bytes of a tensor given as (shape, dtype)."""
    return math.prod(tensor[0]) * np.dtype(tensor[1]).itemsize


def analyze(path, batch):
    """(layers, fused bytes)."""
    graph, tensors, constants, source = read(path, batch)
    inputs = {value.name for value in graph.input}
    rows, outside = [], {source.get(value.name, value.name) for value in graph.output}
    for node in graph.node:
        if node.op_type == "Constant" or node.op_type in VIEWS:
            continue
        flops = operations(node, tensors)
        reads = {source.get(name, name) for name in node.input if name}
        writes = [name for name in node.output if name]
        moved = sum(size(tensors[name]) for name in reads) + sum(size(tensors[name]) for name in writes)
        outside |= {name for name in reads if name in inputs or name in constants}
        rows.append({"name": node.output[0], "op": node.op_type, "dtype": np.dtype(tensors[node.input[0]][1]).name,
                     "flops": flops, "bytes": moved})
    return rows, sum(size(tensors[name]) for name in outside)
# </answer>


def layers(path, batch):
    """One dict for each layer of the ONNX file: name, op, dtype, flops, bytes."""
    # <answer>
    return analyze(path, batch)[0]
    # </answer>
    # stub: raise NotImplementedError("layers is not written yet")


def predict(path, batch, machine):
    """Layers with seconds and bound; total seconds, fused bytes and the floor."""
    # <answer>
    rows, fused = analyze(path, batch)
    arithmetic = 0.0
    for row in rows:
        rate = machine["vector"]
        if row["op"] in MATRIX:
            if row["dtype"] not in machine["matrix"]:
                raise ValueError(f"no matrix rate for {row['dtype']}: the machine has {sorted(machine['matrix'])}")
            rate = machine["matrix"][row["dtype"]]
        times = {"memory": row["bytes"] / machine["bandwidth"], "compute": row["flops"] / rate, "launch": machine["launch"]}
        row["bound"] = max(times, key=times.get)              # the first of equals
        row["seconds"] = times[row["bound"]]
        arithmetic += times["compute"]
    return {"layers": rows, "seconds": math.fsum(row["seconds"] for row in rows), "fused_bytes": fused,
            "floor_seconds": max(fused / machine["bandwidth"], arithmetic)}
    # </answer>
    # stub: raise NotImplementedError("predict is not written yet")


# %%
# graded cell 2: keep this line
def measure(start, finish, clock, prediction, warmup=3, repeats=20):
    """The median of timed inferences against a prediction."""
    # <answer>
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}: expected at least 1 and at least 0")
    for _ in range(warmup):
        start()
    finish()                                                  # nothing of the warm-up is left in the queue
    times = []
    for _ in range(repeats):
        begin = clock()
        start()
        finish()
        times.append(clock() - begin)
    median = statistics.median(times)
    ratio = median / prediction["seconds"]
    if median < prediction["floor_seconds"]:
        verdict = "impossible"
    else:
        verdict = "explained" if ratio <= 2 else "unexplained"
    return {"seconds": median, "ratio": ratio, "verdict": verdict}
    # </answer>
    # stub: raise NotImplementedError("measure is not written yet")


# %% [markdown]
# ## Try it
#
# On an invented machine with round numbers, so that you can check by hand:

# %%
MACHINE = {"bandwidth": 1e12, "matrix": {"float32": 1e14, "float16": 2e14}, "vector": 1e13, "launch": 5e-6}
for batch in (1, 360, 100_000):
    prediction = predict(MODEL, batch, MACHINE)
    print("batch", batch)
    for row in prediction["layers"]:
        print(f"  {row['op']:8} {row['flops']:>14,} operations {row['bytes']:>12,} bytes {row['flops'] / row['bytes']:6.2f} a byte  {row['bound']}")
    share = prediction["floor_seconds"] / prediction["seconds"]
    print(f"  bytes fused: {prediction['fused_bytes']:,}; floor / prediction: {share:.4f}")

# %% [markdown] tags=["answer"]
# At batch 1 every layer is bound by its launch, and the floor is far below: this model asks for a CUDA graph or for fusion,
# not for a faster GPU. Even at batch 100,000 nothing is compute-bound: 128 hidden units give too little work for each byte.
#
# ## This machine, honestly
#
# The same comparison on the CPU that runs this notebook, with ONNX Runtime. The machine's numbers come from three small models:
# a large addition for bandwidth, a square product for the matrix rate, a chain of tiny ReLUs for what a node costs at least. A
# CPU has no asynchronous queue here, so `start` does all the work and `finish` nothing. No time is printed: it would be another one
# on your machine.

# %% tags=["answer"]
import time

import onnxruntime as ort
from onnx import TensorProto


def session_of(nodes, shape, constants=()):
    """A session with one thread for a float32 graph from `x` to `y`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], [onnx.numpy_helper.from_array(a, n) for n, a in constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return open_session(model.SerializeToString())


def open_session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL    # one kernel for each node, as counted
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def best(session, feed, repeats=7):
    session.run(None, feed)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - begin)
    return min(times)


large, square, tiny = np.zeros((2**23,), np.float32), np.ones((512, 512), np.float32), np.zeros((1,), np.float32)
chain = [helper.make_node("Relu", ["x" if i == 0 else f"t{i}"], ["y" if i == 99 else f"t{i + 1}"]) for i in range(100)]
adding = session_of([helper.make_node("Add", ["x", "b"], ["y"])], [2**23], [("b", large)])
product = session_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [512, 512], [("w", square)])
relus = session_of(chain, [1])
here = {"bandwidth": 3 * large.nbytes / best(adding, {"x": large}), "launch": best(relus, {"x": tiny}) / 100}
here["matrix"] = {"float32": 2 * 512**3 / best(product, {"x": square})}
here["vector"] = here["matrix"]["float32"] / 8            # an assumption: not measured

digits = open_session(MODEL.read_bytes())
ratios = {}
for batch in (1, 360):
    feed = {"pixels": np.zeros((batch, 784), np.float32)}
    result = measure(lambda: digits.run(None, feed), lambda: None, time.perf_counter, predict(str(MODEL), batch, here), repeats=201)
    ratios[batch] = result["ratio"]
print("batch 1 within a factor of 100 of its prediction:", 0.01 < ratios[1] < 100)
print("batch 360 within a factor of 30:", 1 / 30 < ratios[360] < 30)

# %% [markdown] tags=["answer"]
# The factors are wide because the claim has to hold on any machine, loaded or not. Print `ratios` on yours. Three reasons for
# what you see there. A call of `session.run` costs something that no node is charged with, so batch 1 lies above its
# prediction. The weights, 397 KiB, stay in the CPU's cache, so the true bandwidth is higher than that of the large addition: a
# ratio below 1, even `"impossible"`, then says that a *number of the machine* does not fit the regime. And a product with 128 columns does
# not reach the rate of a 512 by 512 one.
#
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | --- | --- |
# | set the batch, delete old shapes, infer | every tensor has numbers | dynamic dimensions count as 0, or as the batch of the export |
# | skip constants among the inputs | weights keep their shape | files of old IR versions list weights as inputs; their first dimension is none of yours |
# | `weight.shape[1:]` | input channels of *one group* | depthwise convolutions count as many times too much as they have channels |
# | output elements | strides, pads and dilations are in them | a strided convolution counts four times |
# | a set of names, views resolved | the compulsory traffic | `x * x` reads twice; a residual connection through a view counts double |
# | element size from the tensor | FP16 is half, uint8 a quarter | everything is 4 bytes, and FP16 seems to bring nothing for memory |
# | `fused_bytes` apart from the sum | what fusion could save at most | shared weights and intermediates hide in one number |
# | `max`, not sum, of three times | copies, arithmetic and the next launch overlap | predictions up to three times too slow |
# | `finish` inside the timed part | the end is the result's | a stopwatch for putting work into a queue |
# | `finish` after the warm-up | the queue is empty | the first timed inference pays for the warm-up |
# | median | one interruption does not count | the mean of 20 with one hiccup says nothing |
#
# ## What it costs, and what it leaves out
#
# - Counting costs one shape inference. It needs no weights' values, so a file with external data can be counted without them.
# - Compulsory bytes are a lower bound for a layer: a tile that does not fit into cache is read again. The prediction is therefore
#   optimistic, and more so for large convolutions with little cache.
# - Peak rates are not reached: tiles at the edge, waves, clocks. A measured rate, from a product of similar shape, is the better
#   number to put into `machine`.
# - Launches may be fewer: an engine fuses. Compare with the engine's own layers, not with the file's nodes.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **The verdict is `"impossible"`. What do you check, in which order?** The end of the timed part (was the GPU awaited?), then whether the
# inference did the work (same batch, no cached output), then the machine's numbers: a cache instead of memory, a matrix rate
# with sparsity, a boost clock. A measurement below a true floor does not exist.
#
# **How would you count an engine after fusion?** Ask it: with `trt.EngineInspector` the layers of a TensorRT engine and their tensors,
# in ONNX Runtime the optimized model (`optimized_model_filepath` of `ort.SessionOptions`). Bytes: the tensors at the border of
# each fused layer. Operations stay, apart from constants that were folded.
#
# **Which layers does a better kernel help, and which a better graph?** Compute-bound with a large ratio: kernel, precision, layout.
# Memory-bound: fusion and smaller types. Launch-bound: fusion, a CUDA graph, a larger batch. Sort the layers by measured minus predicted
# seconds and start at the top.
#
# **Why is the launch not added to each layer?** The host enqueues the next kernel while the GPU works on this one. As long as it is
# ahead, a launch costs nothing; where the kernels are shorter than a launch, the host sets the pace. If the host waits after every layer, as
# a profiler may make it, the sum is right and `max` is not.
#
# **What changes with two inferences in flight?** The floor of a single one stays. The throughput may come closer to it: while one is
# launch-bound, the other's kernels can run. Measure throughput then, and do not divide one by the latency.

# %% tags=["learner"]
from course.check import check

check("01_foundations/ex01_predict_time")
