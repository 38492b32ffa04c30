# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: fold batch norms into convolutions
#
# Level: mid to senior · 45 minutes · needs no GPU
#
# "A batch norm at inference is free. Show me." You write the fold: first the algebra for one convolution, then the rewrite
# of a whole ONNX graph. The algebra is four lines. The rest is knowing when it must not be done, and leaving nothing broken behind.
#
# Background: [changing a graph](../../book/02_onnx/questions/25_graph_surgery.md) and
# [what is in a model](../../book/02_onnx/questions/12_model_graph_node.md).
#
# ## The contract
#
# **`fold_parameters(weight, bias, scale, shift, mean, variance, epsilon)`** gives the pair `(new weight, new bias)` of a convolution that
# computes what convolution and batch norm computed together.
#
# - `weight`: array `(M, C/group, k1, …)` with one or more kernel dimensions; M output channels. `bias`: array `(M,)`, or `None`.
# - `scale`, `shift`, `mean`, `variance`: arrays `(M,)`; `epsilon`: float. Arrays are float32 or float16, also mixed.
# - Both results have the dtype of `weight`. Every element is within 1 unit in the last place of the exact value (of these inputs, as they
#   are). For that, compute in float64 and round once.
# - `ValueError` if one of the arrays of length M has another shape, or if a result is not finite in that dtype.
#
# **`fold_batch_norms(model)`** takes an `onnx.ModelProto` that passes `onnx.checker`. It returns the pair `(folded, kept)`: a new model, and a
# dict that says for each `BatchNormalization` left in the top graph, by the name of its first output, why it is still there.
#
# A batch norm is folded into the `Conv` before it, unless one of these holds. Where several hold, any of them may be given:
#
# | reason | when |
# | --- | --- |
# | `"training"` | `training_mode` is 1, or it has more than one output: it uses the statistics of the batch |
# | `"no_conv"` | its input is not written by an ONNX `Conv` of the top graph |
# | `"shared"` | the convolution's output is read by anything else: a node, a subgraph of a node, or it is an output of the graph |
# | `"not_constant"` | one of its four parameters, or the convolution's weight or bias, is not a constant |
# | `"range"` | a folded weight or bias would not be finite in the type of the weight |
#
# **A constant** is an initializer that is not a graph input as well, or the output of a `Constant` node with the attribute `value` or
# `value_floats`. An initializer that is also a graph input is only a default: the caller may override it.
#
# What else the new model has to be:
#
# - It passes `onnx.checker.check_model(folded, full_check=True)`, if the given one did.
# - The graph's inputs and outputs, the versions, functions, metadata, texts and all other nodes are as before, in the same order. Names of other tensors
#   stay. A batch norm that stands behind a folded one is folded too. Subgraphs are not searched for batch norms, and stay as they are.
# - A convolution with a fold keeps its node's name and attributes. Its weight and bias are initializers.
# - Nothing is left over: no initializer, `Constant` node or `value_info` that only the folded pairs needed. What others read stays, unchanged,
#   and so does `value_info` of tensors that are still there.
# - New tensors do not take a name that is used anywhere in the model, subgraphs included.
# - With equal inputs, outputs are equal within 1e-5 of the output's largest magnitude, in float32.
#
# The model that was given is not changed. Errors, before anything is done:
#
# - `TypeError` if `model` is no `onnx.ModelProto`.
# - `ValueError` if the IR version is below 4 (there every initializer has to be a graph input), if the opset of the default domain is below 9
#   (older batch norms mean other things), or if an initializer lies in another file (`data_location` is `EXTERNAL`).
#
# Counted: nodes and initializers of the result.

# %% [markdown]
# ## A network to try it on
#
# Five batch norms. Which of them can go? Decide before you go on.

# %%
import os
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

ort.set_default_logger_severity(4)
network = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
net (float[N, 4, 8, 8] image) => (float[N, 4, 8, 8] features, float[N, 4, 8, 8] middle) {
  c1 = Conv <pads = [1, 1, 1, 1]> (image, w, b)
  n1 = BatchNormalization <epsilon = 0.001> (c1, g1, b1, m1, v1)
  r1 = Relu (n1)
  c2 = Conv <pads = [1, 1, 1, 1]> (r1, w)
  n2 = BatchNormalization (c2, g2, b2, m2, v2)
  r2 = Relu (n2)
  middle = Conv <group = 4, pads = [1, 1, 1, 1]> (r2, depthwise)
  n3 = BatchNormalization (middle, g2, b2, m2, v2)
  c4 = Conv (n3, pointwise)
  n4 = BatchNormalization (c4, g1, b1, m1, v1)
  n5 = BatchNormalization (r1, g1, b1, m1, v1)
  features = Add (n4, n5) }""")
draw = np.random.default_rng(0)
shapes = {"w": (4, 4, 3, 3), "depthwise": (4, 1, 3, 3), "pointwise": (4, 4, 1, 1)}
for name in ("w", "b", "depthwise", "pointwise", "g1", "b1", "m1", "v1", "g2", "b2", "m2", "v2"):
    values = draw.uniform(0.1, 2, 4) if name[0] in "gv" else draw.normal(0, 0.5, shapes.get(name, 4))
    network.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
onnx.checker.check_model(network, full_check=True)

image = draw.normal(size=(2, 4, 8, 8)).astype(np.float32)


def run(model):
    """The outputs by name, from ONNX Runtime with its own optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": image})))


print([node.op_type for node in network.graph.node])
print({name: value.shape for name, value in run(network).items()})

# %% [markdown] tags=["hint"]
# **Hint 1.** A batch norm computes `scale · (x − mean) / √(variance + epsilon) + shift` for each channel. Put `x = W ∗ input + b` into
# it and collect: one factor `s` for each output channel goes into `W` along axis 0, in grouped convolutions too. The rest is the
# new bias: it exists even where the convolution had none. `epsilon` has a default: 1e-5.

# %% [markdown] tags=["hint"]
# **Hint 2.** Copy first: `copy = onnx.ModelProto(); copy.CopyFrom(model)`. Count how often each name is read, by a function that goes into the
# attributes of type `GRAPH` and `GRAPHS` too, and counts graph outputs. Fold only where the convolution's output is read once.
# Write the folded tensors under new names: somebody else may read the old ones. An empty string among a node's inputs means "not given".

# %% [markdown] tags=["hint"]
# **Hint 3.** Which name stays? The batch norm's output: others read it, and it may be an output of the graph. So the convolution
# takes over that name, and the batch norm's node goes. Keep a dict from tensor name to the node that writes it, and enter the convolution under its
# new name: then a second batch norm behind it finds it. At the end remove what was read before and is not any more.

# %% [markdown]
# ## The algebra

# %%
# graded cell 1: keep this line
import numpy as np


def fold_parameters(weight, bias, scale, shift, mean, variance, epsilon):
    """(new weight, new bias), both in the weight's dtype, of a convolution that does the batch norm's work as well."""
    # <answer>
    given = {"bias": bias, "scale": scale, "shift": shift, "mean": mean, "variance": variance}
    for name, array in given.items():
        if array is not None and array.shape != weight.shape[:1]:
            raise ValueError(f"{name} has shape {array.shape}: expected {weight.shape[:1]}, one number for each output channel")
    wide = {name: np.float64(0) if array is None else array.astype(np.float64) for name, array in given.items()}
    with np.errstate(all="ignore"):                       # what is not finite is refused below, in our words
        s = wide["scale"] / np.sqrt(wide["variance"] + epsilon)
        new_weight = weight.astype(np.float64) * s.reshape(-1, *[1] * (weight.ndim - 1))       # axis 0 holds the output channels
        new_bias = (wide["bias"] - wide["mean"]) * s + wide["shift"]
        new_weight, new_bias = new_weight.astype(weight.dtype), new_bias.astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        raise ValueError(f"the folded weight or bias is not finite in {weight.dtype}")
    return new_weight, new_bias
    # </answer>
    # stub: raise NotImplementedError("fold_parameters is not written yet")


# %% [markdown]
# Rounded once in float64, or at each step in float32:

# %%
big = np.random.default_rng(1)
w, g, h, m, v = (big.normal(0, 1, (64, 64, 3, 3)).astype("f4"), *(big.uniform(0.5, 2, 64).astype("f4") for _ in range(4)))
exact = w.astype("f8") * (g.astype("f8") / np.sqrt(v.astype("f8") + 1e-5))[:, None, None, None]
for label, result in (("float64, then rounded", fold_parameters(w, None, g, h, m, v, 1e-5)[0]),
                      ("float32 throughout", w * (g / np.sqrt(v + np.float32(1e-5)))[:, None, None, None])):
    units = np.abs(result - exact) / np.spacing(np.abs(exact).astype("f4"))
    print(f"{label:22} largest error {units.max():.2f} units in the last place, more than 1 in {np.mean(units > 1):.0%} of the weights")

# %% [markdown]
# ## The graph

# %%
# graded cell 2: keep this line
from collections import Counter

import onnx
from onnx import numpy_helper


def fold_batch_norms(model):
    """(a new model with batch norms folded into the convolutions before them, {output of each one kept: reason})."""
    # <answer>
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model is {type(model).__name__}: expected onnx.ModelProto")
    if model.ir_version < 4:
        raise ValueError(f"IR version {model.ir_version}: before 4, every initializer is a graph input, and a new one would change the interface")
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < 9:
            raise ValueError(f"opset {opset.version}: batch norms before 9 have other attributes (spatial, is_test). Convert the model first")
    outside = [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise ValueError(f"{outside[0]} lies in another file: read the model with onnx.load, which brings it in")

    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph

    def graphs_of(graph):
        """The graph and, at any depth, those in the attributes of its nodes."""
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    yield from graphs_of(inner)

    reads, taken = Counter(), set()
    for each in graphs_of(graph):
        reads.update(name for node in each.node for name in node.input)
        reads.update(value.name for value in each.output)
        taken.update(value.name for value in (*each.input, *each.output, *each.initializer, *each.value_info))
        taken.update(tensor.values.name for tensor in each.sparse_initializer)
        taken.update(name for node in each.node for name in (*node.input, *node.output))

    inputs = {value.name for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
                elif attribute.name == "value_floats":
                    constants[node.output[0]] = numpy_helper.from_array(np.array(attribute.floats, np.float32))

    writer = {name: node for node in graph.node for name in node.output}
    kept = {}

    def fresh(name):
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for norm in [node for node in graph.node if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")]:
        conv, out = writer.get(norm.input[0]), norm.output[0]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in norm.attribute}
        if attributes.get("training_mode", 0) or any(norm.output[1:]):
            kept[out] = "training"
            continue
        if conv is None or conv.op_type != "Conv" or conv.domain not in ("", "ai.onnx"):
            kept[out] = "no_conv"
            continue
        if reads[norm.input[0]] > 1:
            kept[out] = "shared"
            continue
        parameters = [*conv.input[1:2], *filter(None, conv.input[2:]), *norm.input[1:]]
        if not all(name in constants for name in parameters):
            kept[out] = "not_constant"
            continue
        arrays = [numpy_helper.to_array(constants[name]) for name in parameters]
        if len(arrays) == 5:
            arrays.insert(1, None)                        # no bias
        try:
            made = fold_parameters(*arrays, attributes.get("epsilon", 1e-5))
        except ValueError:
            kept[out] = "range"
            continue

        names = [fresh(f"{out}_{kind}") for kind in ("weight", "bias")]
        for name, array in zip(names, made):
            constants[name] = numpy_helper.from_array(array, name)
            graph.initializer.append(constants[name])
        reads.subtract([*parameters, norm.input[0]])
        reads.update(names)
        graph.node.remove(norm)
        conv.input[:] = [conv.input[0], *names]
        conv.output[0] = out                              # the name that others read, and that may be the graph's output
        writer[out] = conv                                # a batch norm behind this one finds it

    unread = {name for name, count in reads.items() if count <= 0}      # were read before, or were an intermediate step of a chain
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] in unread]:
        graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name in unread and t.name not in inputs]:
        graph.initializer.remove(tensor)
    for value in [v for v in graph.value_info if v.name in unread]:
        graph.value_info.remove(value)
    return folded, kept
    # </answer>
    # stub: raise NotImplementedError("fold_batch_norms is not written yet")


# %% [markdown]
# What became of the five:

# %%
untouched = network.SerializeToString(deterministic=True)
folded, kept = fold_batch_norms(network)
onnx.checker.check_model(folded, full_check=True)
print("the given model is as it was:", network.SerializeToString(deterministic=True) == untouched)
print([node.op_type for node in folded.graph.node])
print(kept)
print("initializers:", sorted(t.name for t in folded.graph.initializer))
for name, value in run(network).items():
    print(f"{name}: within 1e-5 of its largest magnitude: {np.abs(run(folded)[name] - value).max() <= 1e-5 * np.abs(value).max()}")

# %% [markdown]
# ONNX Runtime folds as well. It leaves the same two:

# %%
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
with tempfile.TemporaryDirectory() as folder:
    options.optimized_model_filepath = os.path.join(folder, "basic.onnx")
    ort.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    basic = onnx.load(options.optimized_model_filepath)
print("left by ONNX Runtime, basic level:", [n.output[0] for n in basic.graph.node if n.op_type == "BatchNormalization"])

# %% [markdown]
# A default is not a constant. Here the caller may hand in other statistics, as for a model that is adapted to each customer:

# %%
adaptable = onnx.ModelProto()
adaptable.CopyFrom(network)
adaptable.graph.input.append(onnx.helper.make_tensor_value_info("m1", onnx.TensorProto.FLOAT, [4]))
_, kept = fold_batch_norms(adaptable)
print(kept)
session = ort.InferenceSession(adaptable.SerializeToString(), providers=["CPUExecutionProvider"])
default, other = (session.run(["features"], {"image": image, **more})[0] for more in ({}, {"m1": np.full(4, 3, np.float32)}))
print("another mean gives another answer:", bool(np.abs(default - other).max() > 0.1))
print("optional inputs, by the session:", [v.name for v in session.get_overridable_initializers()])

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what fails without it |
# | :-- | :-- |
# | `CopyFrom` first | the caller's model is the oracle of your own test, and it is gone. A plain assignment copies a reference |
# | float64, one rounding | several roundings: some of the weights above are off by more than one unit. In FP16 `variance + epsilon` may lose epsilon altogether |
# | the shapes in `fold_parameters` | a mean of shape `(1,)` broadcasts, and nobody hears of it |
# | `isfinite` | an FP16 weight times a large factor is infinity: the pair worked, the fold does not |
# | `reshape(-1, 1, …)` | with as many input as output channels, a factor on the wrong axis fits and is wrong |
# | `epsilon` by default 1e-5 | exporters leave out what is default; with small variances the factor is far off |
# | reads counted in subgraphs too | an `If` further down reads the convolution by name; the name is gone, or worse, holds other values |
# | graph outputs as readers | an output that somebody asked for changes its values or vanishes |
# | not a graph input | the caller overrides a default, and nothing happens any more |
# | new names for folded tensors | a weight that two convolutions share gets two scales |
# | names of subgraphs in `taken` | a subgraph must not define a name that the outer graph has: the checker refuses it, or a reader finds the wrong one |
# | the batch norm's output name kept | readers, subgraphs and the graph's outputs go by it |
# | `reads` kept up to date | left-overs stay in the file, or something is removed that a subgraph still needs |
# | `value_info` cleaned | types of tensors that are not there: harmless until somebody adds a tensor of that name |
#
# `onnx.checker` sees almost none of these. It proves that the file is valid, not that it computes the same.
#
# ## What it costs
#
# One pass over the nodes, and one pass over the folded weights; the peak in memory is the model twice. At run time a batch norm that was
# run on its own reads and writes the whole activation once, and does two operations for each element: it is bound by memory
# (see [fusion](../../book/01_foundations/questions/17_fusion.md)). Engines fold on their own; ONNX Runtime did three of the five here at its
# basic level, at each start of a session. What the file saves them is that work, and it shows you which ones they will not take.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **The convolution's output has a second reader. Can nothing be done?** Copy the convolution: one with the fold, one without. Both now read the
# input and compute. The work of the convolution is then done twice, to save one pass over its output: it pays where the convolution is small.
#
# **Why is ConvTranspose left alone?** Its weight has the layout `(C, M/group, k1, …)`: output channels on axis 1. With one group the factor goes along axis 1; with
# several, channel m of group g is `weight[g · C/group : (g+1) · C/group, m]`. The algebra is the same, the indexing is not.
#
# **And a `Gemm` before the batch norm?** The same fold, with `transB` to look at, and `alpha` and `beta` in the sum. `BatchNormalization` takes input of rank 2
# `(N, C)`.
#
# **The model is quantized.** Fold before quantization. Afterwards weight scales belong to the unfolded weights, and Q/DQ nodes stand between the pair, which
# is `"no_conv"` here. Quantization-aware training has to simulate the folded weights for this reason: they are what will be rounded.
#
# **Why does the standard allow other types for scale and variance than for the input?** Since opset 14 mean and variance may be FP32 beside an FP16 input, since 15 scale and
# shift too, as mixed-precision training keeps them. So the new weight takes its type from the old weight, not from the statistics.
#
# **How do you test such a pass in CI?** As here: models that are written by hand with a known answer, each with one obstacle; random networks; the unfolded model in
# float64 as the oracle. And assert the number of folds: a pass that matches nothing is always right, and useless.

# %% tags=["learner"]
from course.check import check

check("02_onnx/ex02_fold_conv_bn")
