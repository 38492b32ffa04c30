# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: fold constants, remove dead nodes, change nothing
#
# Level: mid to senior · 45 minutes · runs on a CPU
#
# An exported graph holds work that never depends on the input: shapes put together from single numbers, transposed weights,
# tables that are tiled. It also holds nodes that no output needs. Engines remove most of it when they load the file. You remove
# it in the file itself, for the reader that does not, or that refuses a shape which is not a stored number. Both passes are
# asked for in interviews, and both are easy to get almost right.
#
# ## The contract
#
# Two functions. Each takes an `onnx.ModelProto` and returns a new one; the model that is given stays as it is.
#
# **`fold_constants(model, max_bytes=1024)`** replaces each constant node of the main graph by initializers that hold its results, under the same
# names. A *constant* is an initializer that is not also a graph input, or the result of a node that was folded. A node is folded if all of these hold:
#
# - All its inputs are constants. An empty name is an input left out. A node without inputs, as `Constant`, has none to wait for.
# - It draws no random numbers. `RandomNormal`, `RandomUniform`, their `…Like` forms, `Bernoulli` and `Multinomial` always do, with a `seed` too. `Dropout` does
#   only if its third input is true.
# - It belongs to ONNX's own domain (`""` or `"ai.onnx"`), and no attribute of it is a graph (`If`, `Loop`, `Scan` stay).
# - Its results are tensors, and `onnx.reference` can compute it. A sequence is no tensor.
# - The file does not grow much. A node stays if its results together have more bytes than `max_bytes` *and* more than its distinct inputs
#   together. A `Constant` has no such limit: it only moves. Some results would not fit into memory: look at the size before you compute.
#
# **`remove_dead(model)`** removes each node of the main graph that no graph output needs, and each initializer that nobody
# needs. Names that are read inside a subgraph are needed, at any depth, if the node that has the subgraph is. Entries of `value_info` for tensors that are gone go too.
#
# **What stays as it is**, in both: graph inputs and outputs, with names, types and shapes; versions, metadata, texts, functions; subgraphs; the defaults
# of graph inputs; every node that is left, in its place; what `value_info` says of the tensors that these nodes write. An output may itself be an initializer or a graph input. If you prefer a
# `Constant` node for a folded output, that is accepted.
#
# **What is counted**, after one and then the other: the nodes left, and the bytes of the constants. **What is compared**: all outputs, with type and shape, computed by ONNX Runtime
# without optimizations.
#
# The models are valid and sorted, of IR version 8, with opsets from 10 to 17, without sparse tensors and external data. Numbers are of types whose elements are whole
# bytes; no limit is tested on strings.

# %%
import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[n, 4] x, float[4] scale = {1, 1, 1, 1}) => (float[n, 2, 2] y, float[2] noise, float[4] table)
<int64 heads = {2}, float[4] bias = {0.5, 1, 2, 4}, float[4] old_bias = {0, 0, 0, 0}>
{
  zero = Constant <value_ints = [0]> ()
  h = Unsqueeze (heads, zero)
  rest = Constant <value_ints = [-1]> ()
  shape = Concat <axis = 0> (rest, h, h)
  half = Constant <value_float = 0.5> ()
  table = Mul (bias, half)
  factor = Mul (scale, half)
  scaled = Mul (x, factor)
  moved = Add (scaled, table)
  forgotten = Add (moved, old_bias)
  size = Constant <value_ints = [1024, 1024]> ()
  mask = ConstantOfShape <value = float[1] {1}> (size)
  most = ReduceMax <keepdims = 0> (mask)
  lifted = Add (moved, most)
  y = Reshape (lifted, shape)
  noise = RandomNormal <shape = [2], seed = 1.0> ()
}"""
model = parser.parse_model(MODEL)
onnx.checker.check_model(model, full_check=True)


def describe(model):
    stored = {t.name: numpy_helper.to_array(t).nbytes for t in model.graph.initializer}
    print(f"{len(model.graph.node)} nodes: {' '.join(n.op_type for n in model.graph.node)}")
    print(f"{sum(stored.values())} bytes of initializers: {stored}")


describe(model)

# %% [markdown]
# Which of these nodes are constant? Which are dead? `factor` reads a constant and `scale`: why is it neither?

# %% [markdown] tags=["hint"]
# **Hint 1.** Go through the nodes in file order with a dictionary of what is known: it starts with the initializers that are not inputs. Since the graph is sorted, one pass suffices. For dead
# nodes go backwards, with a set of needed names that starts with the outputs. Whatever you keep adds what it reads.

# %% [markdown] tags=["hint"]
# **Hint 2.** To compute a node, make a model of that node alone: the known inputs as its initializers, its outputs as graph outputs, and the opsets *of the given model*. Then
# `onnx.reference.ReferenceEvaluator(one).run(None, {})`. `helper.make_empty_tensor_value_info(name)` declares an output of unknown type. Before you run it,
# `onnx.shape_inference.infer_shapes(one)` tells type and shape of each output for free: it reads constant inputs, such as the shape that `Expand` is given.

# %% [markdown] tags=["hint"]
# **Hint 3.** `""` stands for *left out* among inputs and outputs: it must not become an initializer, and never be a needed name. What a node reads is `node.input` and, for each attribute of type `GRAPH` or `GRAPHS`, what
# the nodes of that graph read. An initializer stays if its name is needed or is a graph input's.

# %%
# graded cell 1: keep this line
import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def fold_constants(model, max_bytes=1024):
    """A new model in which nodes with constant inputs are initializers. Results of more than max_bytes and more than their inputs stay nodes."""
    # <answer>
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    defaults = {value.name for value in graph.input}
    known = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in defaults}   # a default can be overridden
    kept = []
    for node in graph.node:
        results = compute(node, known, folded, max_bytes)
        if results is None:
            kept.append(node)
        else:
            known |= {tensor.name: tensor for tensor in results}
            graph.initializer.extend(results)
    del graph.node[:]
    graph.node.extend(kept)
    return folded
    # </answer>
    # stub: raise NotImplementedError("fold_constants is not written yet")


# <answer>
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


def compute(node, known, model, max_bytes):
    """The node's results as tensors with their names, or None if it has to stay."""
    inputs, outputs = sorted({name for name in node.input if name}), [name for name in node.output if name]
    if node.domain not in ("", "ai.onnx") or any(subgraphs(node)) or not all(name in known for name in inputs):
        return None
    trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] and numpy_helper.to_array(known[node.input[2]]).item()
    if node.op_type in RANDOM or trains:
        return None

    # The node alone, its inputs as initializers, under the opsets that its attributes were written for.
    alone = helper.make_graph([node], "alone", [], [helper.make_empty_tensor_value_info(name) for name in outputs], [known[name] for name in inputs])
    one = helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)

    # The size first: sixteen bytes can ask for gigabytes.
    if node.op_type != "Constant":
        allowed = max(max_bytes, sum(numpy_helper.to_array(known[name]).nbytes for name in inputs))
        try:
            told = onnx.shape_inference.infer_shapes(one).graph.output
        except onnx.shape_inference.InferenceError:
            return None
        if sum(least_bytes(value.type) for value in told) > allowed:
            return None
    try:
        arrays = ReferenceEvaluator(one).run(None, {})
    except Exception:                     # an operator that the evaluator lacks: the node stays, and the engine computes it
        return None
    if not all(isinstance(array, np.ndarray) for array in arrays):
        return None                       # a sequence
    if node.op_type != "Constant" and sum(array.nbytes for array in arrays) > allowed:
        return None                       # a size that inference could not tell
    return [numpy_helper.from_array(array, name) for array, name in zip(arrays, outputs)]


def least_bytes(kind):
    """Bytes of a tensor of this onnx.TypeProto, as far as they are known: 0 for an unknown shape."""
    tensor = kind.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        return 0
    return int(np.prod([dim.dim_value for dim in tensor.shape.dim], dtype=object)) * helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize


def subgraphs(node):
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
# </answer>


def remove_dead(model):
    """A new model without the nodes and initializers that no graph output needs."""
    # <answer>
    live = onnx.ModelProto()
    live.CopyFrom(model)
    graph = live.graph
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed |= reads(node)
    interface = {value.name for value in graph.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed | interface]
    there = interface | {tensor.name for tensor in tensors} | {name for node in kept for name in node.output}
    infos = [info for info in graph.value_info if info.name in there]
    for field, things in ((graph.node, kept[::-1]), (graph.initializer, tensors), (graph.value_info, infos)):
        del field[:]
        field.extend(things)
    return live
    # </answer>
    # stub: raise NotImplementedError("remove_dead is not written yet")


# <answer>
def reads(node):
    """Every name that the node needs; inner names of subgraphs are among them, and do no harm."""
    names = set(node.input)
    for graph in subgraphs(node):
        names |= {value.name for value in graph.output}
        for inner in graph.node:
            names |= reads(inner)
    return names - {""}
# </answer>


# %% [markdown]
# The graph from above, after the first function and after both:

# %%
folded = fold_constants(model)
describe(folded)
clean = remove_dead(folded)
describe(clean)

# %% [markdown]
# The same answers, also where a caller overrides the default, and the outputs are where they were:

# %%
import onnxruntime as ort

ort.set_default_logger_severity(4)


def outputs(model, **feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(["y", "table"], feed)


x = np.arange(12, dtype=np.float32).reshape(3, 4)
for feed in ({"x": x}, {"x": x, "scale": np.float32([1, 2, 3, 4])}):
    print(list(feed), [np.array_equal(a, b) for a, b in zip(outputs(model, **feed), outputs(clean, **feed))])
print([o.name for o in clean.graph.output], "- the given model still has", len(model.graph.node), "nodes")

# %% [markdown]
# The mask of 4 MiB stayed a node, and so did the maximum of it, which would be one number: behind a node that stays, nothing is constant. With a higher limit both
# are folded. In between the file holds the mask; at the end nobody reads it.

# %%
generous = fold_constants(model, max_bytes=2**23)
print("nodes, bytes after folding:", len(generous.graph.node), generous.ByteSize())
print("nodes, bytes after both:   ", len(remove_dead(generous).graph.node), remove_dead(generous).ByteSize())

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what fails without it |
# | --- | --- |
# | initializers that are graph inputs are no constants | a caller that gives the input gets the answer for the default, and no error |
# | the empty name is left out | `TopK` of which only the indices are read makes an initializer called `""`; backwards, each node with an unused output counts as needed, since some other node leaves out an input |
# | the model's own opsets | `Unsqueeze` with its `axes` as attribute is refused under 13; worse, an operator whose default changed is computed in its new meaning |
# | random operators stay, with a seed too | a seed makes a sequence of numbers repeatable, in one engine: the numbers of another engine for it are others |
# | `Dropout` by its third input | it is the identity in inference, so it can be folded; in training it draws |
# | the size before the value | `ConstantOfShape` of 16 bytes asks for 4 GiB, and the process is gone before a limit is looked at |
# | results against inputs, too | a transposed weight is large, and costs nothing: a plain limit would leave it in the graph for ever |
# | a sequence stays | no initializer can hold it |
# | what subgraphs read is needed | a branch loses a tensor; the checker sees it, if it is asked |
# | any output of the node, not the first | `Split` of which the second half is read is removed |
# | defaults of inputs stay, read or not | an optional input becomes a required one |
# | inputs stay, read or not | callers that feed it are refused: unknown name |
# | `value_info` without what is gone | nothing, until the name is used again for a tensor of another shape |
#
# ## What it costs
#
# One pass forward and one back, each linear in nodes and edges. Every folded node is computed once, by NumPy: slow for a convolution of weights, and it happens in the
# build, once. It costs bytes as well: whatever is stored instead of computed is loaded, and kept in memory, and read from there. That is a second reason for the limit, since an `Expand` is cheaper to compute than to load from a disk.
#
# Folding is not exact in every bit. NumPy and an engine may round an `Exp` differently, so the comparison has a tolerance for floats, and none for integers, strings and truth values.

# %% [markdown] tags=["answer"]
# ## The evaluator is an implementation too
#
# Folding makes its answers part of the file. So compare the folded model with the original one *in another engine*, as the grader does. Here is
# a node for which `onnx.reference` of onnx 1.23.2 does not follow the opset: before opset 13, `Softmax` took all dimensions from `axis` (1 by default) on as one.

# %% tags=["answer"]
old = parser.parse_model('<ir_version: 8, opset_import: ["": 12]> g (float[1, 2, 2] x) => (float[1, 2, 2] y) { y = Softmax (x) }')
four = np.zeros((1, 2, 2), np.float32)
print("ONNX Runtime:", ort.InferenceSession(old.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": four})[0].ravel())
print("evaluator:   ", ReferenceEvaluator(old).run(None, {"x": four})[0].ravel())

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **ONNX Runtime folds when it loads. Why do it in the file?** For other readers, for a load that does not repeat the work, and to see before deployment what
# is left. Engines also fold less than they could where a size is unknown to them. If ONNX Runtime is your only reader, let it write its optimized model once,
# by `optimized_model_filepath`, with the options and on the kind of machine that will run it.
#
# **Is a result that is as large as its input always free?** No. If another node still reads the weight, the transposed copy is added to it. The optimizer of
# onnxscript counts only inputs that go away with the node (microsoft/onnxscript, pull request 2025). With many such weights, do that.
#
# **What about `Shape(x)` where `x` has fixed dimensions?** It is constant although its input is not, if you trust the declared shape. Run shape inference with `data_prop=True`,
# and fold `Shape` where every dimension asked for is a number. This is what makes the shape arithmetic of an exported model fall away after its batch is fixed.
#
# **May you fold a `DequantizeLinear` of a stored INT8 weight?** The contract says: only if it fits the limit, and there it is still a mistake. You get an FP32 weight, four times as large, and
# the engine no longer sees that the layer is quantized. A pass for quantized models needs a list of operators that it never folds; Q and DQ stand first on it.
#
# **Two equal constants, or two equal nodes?** That is common subexpression elimination: hash operator, attributes and inputs, and keep one. The same guards hold: two `RandomNormal` are not one.
#
# **How do you test such a pass?** Properties rather than examples: made graphs, outputs equal, interface equal, doing it twice changes nothing, and the count of nodes against an analysis that was written another way.

# %% tags=["learner"]
from course.check import check

check("02_onnx/ex03_constant_folding")
