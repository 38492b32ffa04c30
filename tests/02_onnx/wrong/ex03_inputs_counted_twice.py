"""Adds up the bytes of all inputs, one that is read twice two times.

fails: test_fold
says: one that is read twice counts once
"""
import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def fold_constants(model, max_bytes=1024):
    """A new model in which nodes with constant inputs are initializers. Results of more than max_bytes and more than their inputs stay nodes."""
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


RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


def compute(node, known, model, max_bytes):
    """The node's results as tensors with their names, or None if it has to stay."""
    inputs, outputs = sorted([name for name in node.input if name]), [name for name in node.output if name]
    if node.domain not in ("", "ai.onnx") or any(subgraphs(node)) or not all(name in known for name in inputs):
        return None
    trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] and numpy_helper.to_array(known[node.input[2]]).item()
    if node.op_type in RANDOM or trains:
        return None

    # The node alone, its inputs as initializers, under the opsets that its attributes were written for.
    alone = helper.make_graph([node], "alone", [], [helper.make_empty_tensor_value_info(name) for name in outputs], [known[name] for name in sorted(set(inputs))])
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


def remove_dead(model):
    """A new model without the nodes and initializers that no graph output needs."""
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


def reads(node):
    """Every name that the node needs; inner names of subgraphs are among them, and do no harm."""
    names = set(node.input)
    for graph in subgraphs(node):
        names |= {value.name for value in graph.output}
        for inner in graph.node:
            names |= reads(inner)
    return names - {""}
