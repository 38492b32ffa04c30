# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: say what is wrong with a model, and repair that alone
#
# Level: senior · 45 minutes · runs on a CPU
#
# A model comes to you with one example: what it was fed, and what the framework answered. Something is wrong with it, or nothing is. Two of the six faults are loud. Two are seen by a
# checker and not by the engine. Two pass every tool: one shows in the answer, the other not before somebody sends another batch. You write the triage: name the fault, say where it is, and mend it without touching
# anything else.
#
# ## The contract
#
# | code | what is wrong | the name to give | the repair |
# | --- | --- | --- | --- |
# | `"version"` | a node has attributes that its operator does not have in the imported opset: they have become inputs | the node's | they become inputs of the same name; the opset stays |
# | `"order"` | a node reads a tensor that a later node writes; branches of an `If` read outer names, too | the name of the first such node in the file | the nodes in a valid order, each unchanged |
# | `"type"` | a stored constant has a type that does not fit where it is used: a float of another width, or an int of another width | the constant's | the same values in the type that fits |
# | `"frozen"` | the target of a `Reshape` holds the batch of the example as a number | the target's | a target for every batch |
# | `"declared"` | a graph output, or an entry of `value_info`, declares a shape that is not true; a number for the batch is not true either | the tensor's | the true shape |
# | `"broadcast"` | a constant of shape (C,) is meant for the channels of (N, C, H, W), and meets the last axis | the constant's | the constant in shape (C, 1, 1) or (1, C, 1, 1) |
# | `"none"` | nothing | `""` | none |
#
# - `diagnose(model, feed, expected)` returns `(code, name)`. `model` is an `onnx.ModelProto`; `feed` maps input names to arrays, `expected` output names to arrays. The example's answer is right to
#   1e-3, relative, for floats, and it is what the model was meant to compute.
# - `repair(model, code, name)` returns a new model, from the right diagnosis. After it, checker and strict shape inference accept the model, ONNX Runtime runs it for each batch, and it
#   answers as was meant.
#
# Both leave the model that they are given as it is. A repair leaves everything that is not broken as it is too, byte by byte: no node more or fewer, no renaming, the same opset, the same texts. Two exceptions: for
# `"version"` the values that have moved need a constant each (an initializer or a `Constant` node), and a wrong entry of `value_info` may also be removed.
#
# **What you may take for granted.** At most one fault. One input, float32; two outputs at most. Dimension 0 of the input, of every output and of every entry of `value_info` is the batch, and it is named as the input names it; all
# other dimensions are numbers. The example has two or more rows. Opset 14 to 17, ONNX's own domain only. A constant is an initializer or the `value` of a `Constant` node, and is read once, by a node or by the two branches of an `If`.
# Names of nodes are unique. For `"version"` the operators are `ReduceSum`, `Squeeze`, `Unsqueeze`, `Split` and `Clip`.
#
# **What is not a fault**, and is in these models: a float64 constant in a part that computes in float64; a constant of shape (W,) that is meant for the last axis; a `Reshape` of a constant, or of a maximum over
# the whole batch, to (1, C, 1, 1) or (C, 1, 1), where C may be the number of rows of the example; attributes that the operator still has, as the `axes` of `ReduceMean` before opset 18.

# %%
import numpy as np
import onnx
from onnx import parser

HEALTHY = """<ir_version: 8, opset_import: ["": 17]>
net (float[batch, 3, 2, 4] image) => (float[batch, 5] scores)
<float[batch, 4, 2, 4] shifted, float[4, 1, 1] bias = {0, 3, -2, 1}, int64[2] flat = {0, -1}, int64[1] rows = {2}, float top = {4}>
{
  [conv] features = Conv (image, kernel)
  [shift] shifted = Add (features, bias)
  [pool] pooled = ReduceSum <keepdims = 0> (shifted, rows)
  [clip] clipped = Clip (pooled, "", top)
  [flatten] vector = Reshape (clipped, flat)
  [dense] logits = MatMul (vector, weight)
  [softmax] scores = Softmax <axis = -1> (logits)
}"""


def network(text):
    model, draw = parser.parse_model(text), np.random.default_rng(4)
    for name, shape in (("kernel", (4, 3, 1, 1)), ("weight", (16, 5))):
        model.graph.initializer.append(onnx.numpy_helper.from_array((draw.standard_normal(shape) / 3).astype(np.float32), name))
    return model


def changed(*pairs):
    text = HEALTHY
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return network(text)


LINE = "  [shift] shifted = Add (features, bias)\n"
PATIENTS = {
    "healthy": network(HEALTHY),
    "version": changed(("ReduceSum <keepdims = 0> (shifted, rows)", "ReduceSum <axes = [2], keepdims = 0> (shifted)"), (", int64[1] rows = {2}", "")),
    "order": changed((LINE, ""), ("  [clip]", LINE + "  [clip]")),
    "type": changed(("float[4, 1, 1] bias", "double[4, 1, 1] bias")),
    "frozen": changed(("flat = {0, -1}", "flat = {2, -1}")),
    "declared": changed(("float[batch, 5] scores", "float[batch, 6] scores")),
    "broadcast": changed(("float[4, 1, 1] bias", "float[4] bias")),
}

# %% [markdown]
# Which tool objects to which model? The last two columns feed the example of two rows, and the same example with each row twice.

# %%
import onnxruntime as ort

ort.set_default_logger_severity(4)


def answers(model, feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed)))


def verdict(test):
    try:
        return "-" if test() is not False else "WRONG"
    except Exception:      # each tool has its own
        return "REFUSED"


feed = {"image": np.random.default_rng(1).standard_normal((2, 3, 2, 4)).astype(np.float32)}
expected = answers(PATIENTS["healthy"], feed)
twice = [{name: np.repeat(array, 2, axis=0) for name, array in arrays.items()} for arrays in (feed, expected)]
print(f"{'':10} {'checker':>8} {'full':>8} {'load':>8} {'example':>8} {'4 rows':>8}")
for code, model in PATIENTS.items():
    row = [verdict(lambda: onnx.checker.check_model(model)), verdict(lambda: onnx.checker.check_model(model, full_check=True)),
           verdict(lambda: ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]) and True),
           verdict(lambda: bool(np.allclose(answers(model, feed)["scores"], expected["scores"], atol=1e-5))),
           verdict(lambda: bool(np.allclose(answers(model, twice[0])["scores"], twice[1]["scores"], atol=1e-5)))]
    print(f"{code:10} " + " ".join(f"{cell:>8}" for cell in row))

# %% [markdown]
# No two faults have the same row, and no tool has an entry in each. Yet a row tells only the code; where it is, it does not tell.

# %% [markdown] tags=["hint"]
# **Hint 1.** Ask in an order in which each question relies on the ones before: order and attributes need no inference, types need inference, shapes need types, values need a session. `onnx.defs.get_schema(op_type, opset, "")` knows the
# attributes and the inputs of an operator, by name, as they are in that opset.

# %% [markdown] tags=["hint"]
# **Hint 2.** To judge what is declared, remove it first: a copy without `value_info` and without the outputs' shapes, inferred anew, compared with what was declared. Inference does not follow the batch through each `Reshape`: where it
# is silent about dimension 0, you know the name.

# %% [markdown] tags=["hint"]
# **Hint 3.** For the other three, a diagnosis is a repair that works: for each candidate repair a copy, and see if the symptom is gone. A type: cast one constant, and infer with `check_type=True, strict_mode=True`. A frozen batch: change one target, and run the
# example with its rows repeated. A broadcast: give one constant of shape (C,) two more axes, and compare with the example. In a target, 0 takes the input's dimension, unless `allowzero` is 1; -1 can stand once.

# %%
# graded cell 1: keep this line
import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, helper, numpy_helper


def diagnose(model, feed, expected):
    """(code, name) of the model's fault, ("none", "") without one."""
    # <answer>
    graph, opset = model.graph, next(o.version for o in model.opset_import if o.domain == "")

    ready = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if not reads(node) <= ready:
            return "order", node.name
        ready |= set(node.output)

    for node in graph.node:
        if foreign_attributes(node, opset):
            return "version", node.name

    if not types_fit(model):
        for name, tensor in constants(graph).items():
            if types_fit(repair(model, "type", name)):
                return "type", name

    for value in [*graph.output, *graph.value_info]:
        says, true = declared(value), true_shape(model, value.name)
        if len(says) != len(true) or says[0] != true[0] or any(said != known for said, known in zip(says, true) if isinstance(known, int)):
            return "declared", value.name

    # What is left shows in values. Each candidate is repaired in a copy; the one that takes the symptom away is the fault.
    if not right(model, feed, expected):
        for name, tensor in constants(graph).items():
            if len(tensor.dims) == 1 and right(repair(model, "broadcast", name), feed, expected):
                return "broadcast", name
    more, meant = ({key: np.repeat(array, 2, axis=0) for key, array in arrays.items()} for arrays in (feed, expected))
    if not right(model, more, meant):
        for node in graph.node:
            if node.op_type == "Reshape" and node.input[1] in constants(graph) and right(repair(model, "frozen", node.input[1]), more, meant):
                return "frozen", node.input[1]
    return "none", ""
    # </answer>
    # stub: raise NotImplementedError("diagnose is not written yet")


def repair(model, code, name):
    """A new model in which the fault is mended, and all else is as it was."""
    # <answer>
    mended = onnx.ModelProto()
    mended.CopyFrom(model)
    graph = mended.graph
    if code == "version":
        opset = next(o.version for o in model.opset_import if o.domain == "")
        node = next(node for node in graph.node if node.name == name)
        moved = foreign_attributes(node, opset)
        places = [value.name for value in onnx.defs.get_schema(node.op_type, opset, "").inputs]
        for attribute in moved:
            array = np.array(helper.get_attribute_value(attribute), np.float32 if attribute.type == AttributeProto.FLOAT else np.int64)
            tensor = numpy_helper.from_array(array, f"{node.output[0]}_{attribute.name}")
            graph.initializer.append(tensor)
            at = places.index(attribute.name)
            node.input.extend([""] * (at + 1 - len(node.input)))      # Clip with max alone: min is left out, and has a place
            node.input[at] = tensor.name
        for attribute in moved:
            node.attribute.remove(attribute)
    elif code == "order":
        nodes = in_order(graph)
        del graph.node[:]
        graph.node.extend(nodes)
    elif code == "type":
        tensor = constants(graph)[name]
        array = numpy_helper.to_array(tensor)
        for kind in (np.float32, np.int64, np.float64, np.int32, np.float16):
            tensor.CopyFrom(numpy_helper.from_array(array.astype(kind), tensor.name))
            if types_fit(mended):
                break
    elif code == "frozen":
        tensor = constants(graph)[name]
        target = numpy_helper.to_array(tensor).copy()
        target[0] = 0 if -1 in target[1:] else -1                     # -1 holds in every case, where it is still free
        tensor.CopyFrom(numpy_helper.from_array(target, tensor.name))
    elif code == "declared":
        true = true_shape(model, name)
        for value in [*graph.output, *graph.value_info]:
            if value.name == name:
                kind = value.type.tensor_type.elem_type
                value.type.CopyFrom(helper.make_tensor_type_proto(kind, true))
    elif code == "broadcast":
        tensor = constants(graph)[name]
        tensor.dims.extend([1, 1])                                    # the values stay where they are
    return mended
    # </answer>
    # stub: raise NotImplementedError("repair is not written yet")


# <answer>
def constants(graph):
    """{name: TensorProto}, in the graph itself: a change of one is a change of the graph."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found |= {node.output[0]: attribute.t for attribute in node.attribute if attribute.name == "value"}
    return found


def reads(node):
    """Names of the outer graph that the node needs, those of its branches too."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            inner = attribute.g
            own = {name for each in inner.node for name in each.output} | {value.name for value in (*inner.input, *inner.initializer)}
            names |= set().union(*(reads(each) for each in inner.node)) - own
    return names


def in_order(graph):
    """The nodes, each after those that it reads from, and otherwise as they stood."""
    ready = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    waiting, done = list(graph.node), []
    while waiting:
        node = next(node for node in waiting if reads(node) <= ready)
        waiting.remove(node)
        done.append(node)
        ready |= set(node.output)
    return done


def foreign_attributes(node, opset):
    """Attributes of the node that its operator does not have in this opset."""
    known = onnx.defs.get_schema(node.op_type, opset, "").attributes
    return [attribute for attribute in node.attribute if attribute.name not in known]


def bare(model):
    """A copy that declares nothing but its inputs and the types of its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def types_fit(model):
    try:
        onnx.shape_inference.infer_shapes(bare(model), check_type=True, strict_mode=True)
        return True
    except onnx.shape_inference.InferenceError:
        return False


def declared(value):
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim]


def true_shape(model, name):
    """What inference makes of a tensor: numbers, and names where it does not know. Dimension 0 is the batch."""
    graph = onnx.shape_inference.infer_shapes(bare(model), strict_mode=True, data_prop=True).graph
    value = next(value for value in [*graph.output, *graph.value_info] if value.name == name)
    return [declared(graph.input[0])[0], *declared(value)[1:]]


def right(model, feed, expected):
    """Whether the model runs, and answers as expected."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        got = session.run(list(expected), feed)
    except Exception:
        return False
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(got, expected.values()))
# </answer>


# %% [markdown]
# The seven models from above:

# %%
for code, model in PATIENTS.items():
    found = diagnose(model, feed, expected)
    mended = repair(model, *found)
    onnx.checker.check_model(mended, full_check=True)
    fine = all(np.allclose(answers(mended, some)["scores"], meant["scores"], atol=1e-5) for some, meant in ((feed, expected), twice))
    same = [a == b for a, b in zip(model.graph.node, mended.graph.node)]
    print(f"{code:10} {str(found):24} right for 2 and 4 rows: {fine}; nodes as they were, in place: {sum(same)} of {len(same)}")

# %% [markdown] tags=["answer"]
# ## Why in this order
#
# | question | needs | if it is asked too early |
# | --- | --- | --- |
# | is each name written before it is read? | nothing | strict inference stops at the first such node with a type error: expected to have type but instead is null |
# | does each attribute exist in this opset? | the schema | inference takes the old attribute of `ReduceSum` without a word, and says of `Unsqueeze` that an input is out of bounds |
# | do the types fit? | inference, without what is declared | a false declaration also raises an inference error, and no cast takes it away |
# | is what is declared true? | inference that succeeds | |
# | is the answer the example's? | a session, the example | |
# | is it for another batch? | the example with repeated rows | a wrong answer for the example's batch would be wrong for the other too |
#
# ## Why each repair is what it is
#
# | fault | the repair that seems to do, and what it costs |
# | --- | --- |
# | version | import opset 12: other operators change their meaning as well. The `Softmax` of 12 took all dimensions from `axis` on as one; `Clip` has had its bounds as inputs since 11, so the model would still be refused |
# | order | `ort.InferenceSession` sorts by itself, and loads the file: nothing to do, until the next reader |
# | type | a `Cast` behind the constant: a node for each engine to remove, and the file keeps twice the bytes. Or all float64 to float32: the part that needs float64 has lost it |
# | frozen | a `Shape`, `Gather` and `Concat` in front: right, and three nodes for what one number says. Or -1 where a -1 already stands; or 0 under `allowzero`, which then means zero rows |
# | declared | remove the shape of the output: valid, and callers can no longer know its size |
# | broadcast | a `Transpose` around the `Add`: right, and two copies of the activations in each call |
#
# A repair of one place is one that can be reviewed. The diff *is* the explanation.
#
# ## What it costs
#
# Each candidate of the last two questions is a session, and a session for a large model takes seconds and its whole memory. Cut the suspicious region out first with `onnx.utils.extract_model`, or narrow it: outputs are compared from
# the front on, and the first tensor that differs has the fault in front of it. That needs the framework's intermediate values, not only its last.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **The example was exported with one row. What changes?** Then a frozen batch looks like any other 1, as in a `Reshape` of a constant to (1, C, 1, 1). Running with two rows still tells them apart. Which is why an export should
# use an example batch that is no other dimension of the model: two sizes that are equal hide a fault, here the width and the channels.
#
# **Is the example enough to prove the repair?** No. It has one batch, and may leave a branch of an `If` untouched. The grader runs three batches with other numbers. In production, take held-out data, and the tolerance
# that [the accuracy gate](../05_measuring/ex03_accuracy_gate.ipynb) is about.
#
# **The bias is wrong, and C, H and W all differ. What then?** Then (C,) does not broadcast against (N, C, H, W) at all, and shape inference says so. The silent case needs W equal to C. With W equal to 1 the sum grows
# to (N, C, H, C), and a later operator complains.
#
# **A quantized model answers wrongly, and each tool is content. Where do you look?** At the `axis` of `DequantizeLinear`: its default is 1, the weights of `Conv` need 0, and a square weight takes both. It is the same kind of
# fault, and found in the same way: change one axis, and compare.
#
# **Two faults at once?** Loop: diagnose, repair, diagnose again, until it says `none`, with a bound on the rounds. The order of the questions then matters even more, since a loud fault hides the silent ones behind it.

# %% tags=["learner"]
from course.check import check

check("02_onnx/ex04_triage")
