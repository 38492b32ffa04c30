"""Plans on the given model, folds all batch norms of a row with one rounding, reuses the place of a weight that nobody else reads."""
import copy

import numpy as np
import onnx
from onnx import numpy_helper

STANDARD = {"", "ai.onnx"}


def _affine(scale, shift, mean, variance, epsilon):
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    return factor, shift.astype(np.float64) - factor * mean.astype(np.float64)


def _apply(weight, bias, factor, offset):
    wide = np.moveaxis(np.moveaxis(weight.astype(np.float64), 0, -1) * factor, -1, 0)
    moved = offset if bias is None else bias.astype(np.float64) * factor + offset
    return wide.astype(weight.dtype), moved.astype(weight.dtype)


def fold_parameters(weight, bias, scale, shift, mean, variance, epsilon):
    for vector in filter(lambda v: v is not None, (bias, scale, shift, mean, variance)):
        if vector.ndim != 1 or vector.size != weight.shape[0]:
            raise ValueError("one number for each output channel is needed")
    with np.errstate(all="ignore"):
        s = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        old = 0.0 if bias is None else bias.astype(np.float64)
        pair = _apply(weight, None, s, (old - mean.astype(np.float64)) * s + shift.astype(np.float64))
    if not all(np.isfinite(a).all() for a in pair):
        raise ValueError("not finite")
    return pair


def _walk(graph):
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        for node in current.node:
            for a in node.attribute:
                if a.HasField("g"):
                    stack.append(a.g)
                stack.extend(a.graphs)


def _reads(graph):
    count = {}
    for g in _walk(graph):
        for name in [n for node in g.node for n in node.input] + [o.name for o in g.output]:
            count[name] = count.get(name, 0) + 1
    return count


def fold_batch_norms(model):
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(type(model))
    versions = {o.domain: o.version for o in model.opset_import}
    if model.ir_version < 4 or min([v for d, v in versions.items() if d in STANDARD], default=9) < 9:
        raise ValueError("this model is too old to be folded")
    if any(t.HasField("data_location") and t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ValueError("load the weights first")

    model = copy.deepcopy(model)
    graph = model.graph
    reads, open_names = _reads(graph), {i.name for i in graph.input}
    stored = {t.name: t for t in graph.initializer}
    arrays = {n: numpy_helper.to_array(t) for n, t in stored.items() if n not in open_names}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD:
            a = node.attribute[0]
            if a.name == "value":
                arrays[node.output[0]] = numpy_helper.to_array(a.t)
            if a.name == "value_floats":
                arrays[node.output[0]] = np.float32(list(a.floats))
    used = set()
    for g in _walk(graph):
        used |= {v.name for v in g.input} | {t.name for t in g.initializer} | {v.name for v in g.value_info}
        used |= {n for node in g.node for n in [*node.input, *node.output]}

    made_by = {o: node for node in graph.node for o in node.output}
    kept, chains, head = {}, {}, {}
    for node in graph.node:                                              # topological order: a row is met from its front
        if node.op_type != "BatchNormalization" or node.domain not in STANDARD:
            continue
        x, y = node.input[0], node.output[0]
        conv = head.get(x) or made_by.get(x)
        options = {a.name: (a.f if a.name == "epsilon" else a.i) for a in node.attribute}
        if conv is None or conv.op_type != "Conv" or conv.domain not in STANDARD:
            kept[y] = "no_conv"
        elif options.get("training_mode") or sum(map(bool, node.output)) > 1:
            kept[y] = "training"
        elif reads[x] != 1:
            kept[y] = "shared"
        elif not all(n in arrays for n in list(node.input[1:]) + [n for n in conv.input[1:] if n]):
            kept[y] = "not_constant"
        else:
            key = conv.output[0]
            factor, offset, nodes = chains.get(key, (1.0, 0.0, []))
            with np.errstate(all="ignore"):
                f, o = _affine(*(arrays[n] for n in node.input[1:]), options.get("epsilon", 1e-5))
                f, o = factor * f, offset * f + o
                bias = arrays[conv.input[2]] if len(conv.input) > 2 and conv.input[2] else None
                fine = all(np.isfinite(a).all() for a in _apply(arrays[conv.input[1]], bias, f, o))
            if not fine:
                kept[y] = "range"
            else:
                chains[key], head[y] = (f, o, [*nodes, node]), conv

    for key, (f, o, nodes) in chains.items():
        conv = made_by[key]
        bias = arrays[conv.input[2]] if len(conv.input) > 2 and conv.input[2] else None
        pair = _apply(arrays[conv.input[1]], bias, f, o)
        inputs = [conv.input[0]]
        for array, old, kind in zip(pair, [*conv.input[1:], ""], "wb"):
            if old in stored and reads[old] == 1:
                stored[old].CopyFrom(numpy_helper.from_array(array, old))
                inputs.append(old)
            else:
                name = f"{kind}/{key}"
                while name in used:
                    name = f"/{name}"
                used.add(name)
                graph.initializer.add().CopyFrom(numpy_helper.from_array(array, name))
                inputs.append(name)
        del conv.input[:]
        conv.input.extend(inputs)
        conv.output[0] = nodes[-1].output[0]
    gone = {n.output[0] for _, _, nodes in chains.values() for n in nodes}
    nodes = [copy.deepcopy(n) for n in graph.node if not (n.op_type == "BatchNormalization" and n.output[0] in gone)]
    graph.ClearField("node")
    graph.node.extend(nodes)
    now = _reads(graph)
    nodes = [copy.deepcopy(n) for n in nodes if n.op_type != "Constant" or n.output[0] in now or n.output[0] not in reads]
    graph.ClearField("node")
    graph.node.extend(nodes)
    tensors = [copy.deepcopy(t) for t in graph.initializer if t.name in now or t.name in open_names]
    graph.ClearField("initializer")
    graph.initializer.extend(tensors)
    there = {o for node in graph.node for o in node.output} | {t.name for t in tensors}
    told = [v for v in graph.value_info if v.name in there]
    graph.ClearField("value_info")
    graph.value_info.extend(told)
    return model, kept
