"""Computes by ONNX Runtime, keeps folded outputs as Constant nodes, and finds the living by a search from the outputs."""
import math

import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

DRAWS = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


def fold_constants(model, max_bytes=1024):
    model = onnx.load_model_from_string(model.SerializeToString())
    outputs = {o.name for o in model.graph.output}
    tensors = {t.name: t for t in model.graph.initializer}
    for value in model.graph.input:
        tensors.pop(value.name, None)
    nodes = []
    for node in model.graph.node:
        wanted = [o for o in node.output if o]
        found = None
        if may_fold(node, tensors):
            found = evaluate(node, wanted, tensors, model, max_bytes)
        if found is None:
            nodes.append(node)
            continue
        for name, tensor in zip(wanted, found):
            tensor.name = name
            tensors[name] = tensor
            if name in outputs:
                nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            else:
                model.graph.initializer.append(tensor)
    while model.graph.node:
        model.graph.node.pop()
    model.graph.node.extend(nodes)
    return model


def may_fold(node, tensors):
    if node.domain not in ("", "ai.onnx") or node.op_type in DRAWS:
        return False
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        return False
    if any(i and i not in tensors for i in node.input):
        return False
    if node.op_type == "Dropout" and len(node.input) == 3 and node.input[2]:
        return not bool(numpy_helper.to_array(tensors[node.input[2]]))
    return True


def evaluate(node, wanted, tensors, model, max_bytes):
    graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name=o) for o in wanted],
                              [tensors[i] for i in dict.fromkeys(node.input) if i])
    alone = helper.make_model(graph, ir_version=model.ir_version)
    del alone.opset_import[:]
    alone.opset_import.extend(model.opset_import)
    limit = max(max_bytes, sum(numpy_helper.to_array(t).nbytes for t in graph.initializer))
    alone = onnx.shape_inference.infer_shapes(alone)
    total = 0
    for output in alone.graph.output:
        if output.type.HasField("sequence_type") or output.type.HasField("optional_type"):
            return None
        kind = output.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            total += math.prod(d.dim_value for d in kind.shape.dim) * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    if node.op_type == "Constant":
        kinds = [a for a in node.attribute if a.name == "value"]
        if kinds:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(kinds[0].t)
            return [tensor]
    elif total > limit:
        return None
    try:
        onnxruntime.set_default_logger_severity(4)
        session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
        values = session.run_with_ort_values(wanted, {})
        if any(v.element_type() == onnx.TensorProto.BFLOAT16 for v in values):
            import ml_dtypes
            return [numpy_helper.from_array(ReferenceEvaluator(alone).run(None, {})[0].astype(ml_dtypes.bfloat16))]
        return [numpy_helper.from_array(v.numpy()) for v in values]
    except Exception:
        return None


def remove_dead(model):
    model = onnx.load_model_from_string(model.SerializeToString())
    graph = model.graph
    writer = {o: k for k, n in enumerate(graph.node) for o in n.output if o}
    seen, stack, live = set(), [o.name for o in graph.output], set()
    while stack:
        name = stack.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        if name in writer and writer[name] not in live:
            live.add(writer[name])
            todo = [graph.node[writer[name]]]
            while todo:
                node = todo.pop()
                stack.extend(node.input)
                for a in node.attribute:
                    for g in ([a.g] if a.HasField("g") else []) + list(a.graphs):
                        todo.extend(g.node)
                        stack.extend(o.name for o in g.output)
    for k in reversed(range(len(graph.node))):
        if k not in live:
            del graph.node[k]
    inputs = {i.name for i in graph.input}
    for k in reversed(range(len(graph.initializer))):
        if graph.initializer[k].name not in seen | inputs:
            del graph.initializer[k]
    known = inputs | {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    for k in reversed(range(len(graph.value_info))):
        if graph.value_info[k].name not in known:
            del graph.value_info[k]
    return model
