"""Takes only a float64 or an int32 for a constant of the wrong type.

fails: test_diagnose
says: An operator's inputs are of types that do not go together
"""
import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, helper, numpy_helper


def diagnose(model, feed, expected):
    """(code, name) of the model's fault, ("none", "") without one."""
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
            if tensor.data_type in (6, 11) and types_fit(repair(model, "type", name)):
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


def repair(model, code, name):
    """A new model in which the fault is mended, and all else is as it was."""
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
