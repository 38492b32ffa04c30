"""Folds one pair, counts everything anew, and goes on until nothing folds; numbers by einsum, names by a counter."""
import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper


def fold_parameters(weight, bias, scale, shift, mean, variance, epsilon):
    m = len(weight)
    vectors = [np.zeros(m) if bias is None else bias, scale, shift, mean, variance]
    if any(np.shape(v) != (m,) for v in vectors):
        raise ValueError(f"expected arrays of shape ({m},), got {[np.shape(v) for v in vectors]}")
    b, g, h, mu, var = (np.array(v, dtype=np.float64) for v in vectors)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        deviation = (var + epsilon) ** 0.5
        results = (np.einsum("m...,m->m...", weight.astype(np.float64), g / deviation).astype(weight.dtype),
                   (g * (b - mu) / deviation + h).astype(weight.dtype))
    if any(not np.all(np.isfinite(r.astype(np.float64))) for r in results):
        raise ValueError("infinite or not a number")
    return results


def everything(graph, reads, names):
    for value in list(graph.input) + list(graph.output) + list(graph.value_info):
        names.add(value.name)
    names.update(t.name for t in graph.initializer)
    reads.extend(o.name for o in graph.output)
    for node in graph.node:
        reads.extend(node.input)
        names.update(node.input)
        names.update(node.output)
        for a in node.attribute:
            for sub in ([a.g] if a.type == AttributeProto.GRAPH else a.graphs):
                everything(sub, reads, names)


def standard(node, op):
    return node.op_type == op and node.domain in ("", "ai.onnx")


def constant(graph, name):
    if any(v.name == name for v in graph.input):
        return None
    for t in graph.initializer:
        if t.name == name:
            return numpy_helper.to_array(t)
    for node in graph.node:
        if standard(node, "Constant") and node.output[0] == name:
            value = helper.get_attribute_value(node.attribute[0])
            if isinstance(value, TensorProto):
                return numpy_helper.to_array(value)
            if node.attribute[0].name == "value_floats":
                return np.array(value, np.float32)
    return None


def reason_or_values(graph, norm, reads):
    attributes = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
    convs = [n for n in graph.node if norm.input[0] in n.output and standard(n, "Conv")]
    if not convs:
        return "no_conv", None
    if attributes.get("training_mode") == 1 or len([o for o in norm.output if o != ""]) != 1:
        return "training", None
    conv = convs[0]
    has_bias = len(conv.input) == 3 and conv.input[2] != ""
    values = [constant(graph, n) for n in [conv.input[1], conv.input[2] if has_bias else "", *norm.input[1:]]]
    if any(v is None for i, v in enumerate(values) if has_bias or i != 1):
        return "not_constant", None
    if reads.count(conv.output[0]) != 1:
        return "shared", None
    try:
        return None, (conv, fold_parameters(*values, attributes.get("epsilon", 0.00001)))
    except ValueError:
        return "range", None


def fold_batch_norms(model):
    if type(model) is not onnx.ModelProto:
        raise TypeError("an onnx.ModelProto is needed")
    if model.ir_version <= 3 or any(o.version <= 8 for o in model.opset_import if o.domain in ("", "ai.onnx")):
        raise ValueError("too old")
    if any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer):
        raise ValueError("weights are not in the model")
    result = onnx.load_model_from_string(model.SerializeToString())
    graph, number = result.graph, 0
    at_start, names = [], set()
    everything(graph, at_start, names)
    while True:
        kept, found = {}, None
        reads = []
        everything(graph, reads, names)
        for norm in graph.node:
            if standard(norm, "BatchNormalization"):
                reason, values = reason_or_values(graph, norm, reads)
                if reason is None:
                    found = (norm, *values)
                    break
                kept[norm.output[0]] = reason
        if found is None:
            break
        norm, conv, arrays = found
        made = []
        for array in arrays:
            while f"folded_{number}" in names:
                number += 1
            made.append(f"folded_{number}")
            names.add(made[-1])
            graph.initializer.insert(0, numpy_helper.from_array(array, made[-1]))
        merged = helper.make_node("Conv", [conv.input[0], *made], [norm.output[0]], name=conv.name, domain=conv.domain)
        merged.attribute.extend(conv.attribute)
        merged.doc_string = conv.doc_string
        nodes = [merged if n.output[0] == conv.output[0] else n for n in graph.node if n.output[0] != norm.output[0]]
        copies = []
        for n in nodes:
            c = onnx.NodeProto()
            c.CopyFrom(n)
            copies.append(c)
        del graph.node[:]
        graph.node.extend(copies)
    reads = []
    everything(graph, reads, names)

    def dead(name):
        return name not in reads and (name in at_start or name.startswith("folded_")) and name not in [v.name for v in graph.input]

    for i in reversed(range(len(graph.initializer))):
        if dead(graph.initializer[i].name):
            del graph.initializer[i]
    for i in reversed(range(len(graph.node))):
        if standard(graph.node[i], "Constant") and dead(graph.node[i].output[0]):
            del graph.node[i]
    there = {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    for i in reversed(range(len(graph.value_info))):
        if graph.value_info[i].name not in there:
            del graph.value_info[i]
    return result, kept
