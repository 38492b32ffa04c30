"""Builds the model anew with make_model, and loses what it did not think of.

fails: test_folded
says: producer_version is not as before
"""
import numpy as np


def fold_parameters(weight, bias, scale, shift, mean, variance, epsilon):
    """(new weight, new bias), both in the weight's dtype, of a convolution that does the batch norm's work as well."""
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

from collections import Counter

import onnx
from onnx import numpy_helper


def fold_batch_norms(model):
    """(a new model with batch norms folded into the convolutions before them, {output of each one kept: reason})."""
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
    folded = onnx.helper.make_model(graph, opset_imports=folded.opset_import, functions=folded.functions, ir_version=folded.ir_version, producer_name=folded.producer_name)
    onnx.helper.set_model_props(folded, {p.key: p.value for p in model.metadata_props})
    return folded, kept
