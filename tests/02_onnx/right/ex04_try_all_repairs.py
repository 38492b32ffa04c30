"""One loop: each possible repair of each place is tried, and the one after which nothing is left to object to is the diagnosis."""
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

onnxruntime.set_default_logger_severity(4)


def clone(model):
    return onnx.load_model_from_string(model.SerializeToString())


def objection(model, feed, expected):
    """The first thing that is wrong, as a word; None if nothing is."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        return "order" if "topologically sorted" in str(error) else "version"
    plain = clone(model)
    plain.graph.ClearField("value_info")
    for o in plain.graph.output:
        o.type.tensor_type.ClearField("shape")
    try:
        true = onnx.shape_inference.infer_shapes(plain, True, True, True)
    except onnx.shape_inference.InferenceError:
        return "type"
    if next(lies(model, true), None):
        return "declared"
    for times, word in ((1, "broadcast"), (2, "frozen")):
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            got = session.run(list(expected), {k: np.concatenate([v] * times) for k, v in feed.items()})
        except Exception:
            return word
        for a, b in zip(got, expected.values()):
            b = np.concatenate([b] * times)
            if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-5):
                return word
    return None


def lies(model, true):
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    found = {v.name: v.type.tensor_type.shape.dim for v in (*true.graph.value_info, *true.graph.output)}
    for v in (*model.graph.output, *model.graph.value_info):
        said = v.type.tensor_type.shape.dim
        pairs = list(zip(said, found[v.name]))[1:]
        if len(said) != len(found[v.name]) or said[0] != batch or any(b.HasField("dim_value") and a != b for a, b in pairs):
            yield v.name


def diagnose(model, feed, expected):
    word = objection(model, feed, expected)
    if word is None:
        return "none", ""
    graph = model.graph
    if word == "order":
        late = {o: k for k, n in enumerate(graph.node) for o in n.output}
        return "order", next(n.name for k, n in enumerate(graph.node) if any(late.get(name, -1) > k for name in free(n)))
    places = {"version": [n.name for n in graph.node if n.op_type in ("ReduceSum", "Squeeze", "Unsqueeze", "Split", "Clip")],
              "declared": [v.name for v in (*graph.output, *graph.value_info)]}.get(word, list(held(model)))
    for place in places:
        try:
            changed = repair(model, word, place)
        except (ValueError, KeyError, IndexError, TypeError):
            continue
        if changed.SerializeToString() != model.SerializeToString() and objection(changed, feed, expected) is None:
            return word, place
    return "none", ""


def free(node):
    """Names that a node reads, branches included."""
    names = set(node.input) - {""}
    for a in node.attribute:
        names |= {i for n in a.g.node for i in free(n)} - {o for n in a.g.node for o in n.output}
    return names


def held(model):
    return {**{t.name: t for t in model.graph.initializer}, **{n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}}


def swap(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def repair(model, code, name):
    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    if code == "version":
        node = next(n for n in graph.node if n.name == name)
        old = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for place, words in ((1, ("axes", "split", "min")), (2, ("max",))):
            for word in words:
                if word in old:
                    array = np.array(old[word], np.float32 if node.op_type == "Clip" else np.int64)
                    graph.initializer.append(numpy_helper.from_array(array, f"moved:{name}:{word}"))
                    while len(node.input) < place:
                        node.input.append("")
                    node.input.append(f"moved:{name}:{word}")
                    for a in list(node.attribute):
                        if a.name == word:
                            node.attribute.remove(a)
    if code == "order":
        k = 0
        made = [i.name for i in graph.input] + [t.name for t in graph.initializer]
        nodes = [clone_node(n) for n in graph.node]
        out = []
        while nodes:
            if free(nodes[k]) <= set(made):
                made += nodes[k].output
                out.append(nodes.pop(k))
                k = 0
            else:
                k += 1
        del graph.node[:]
        graph.node.extend(out)
    if code == "type":
        array = numpy_helper.to_array(held(new)[name])
        for kind in ("f4", "f8") if array.dtype.kind == "f" else ("i8",):
            swap(held(new)[name], array.astype(kind))
            if objection(new, {}, {}) != "type":
                break
    if code == "frozen":
        tensor = held(new)[name]
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype != np.int64:
            raise TypeError("no target")
        array[0] = 0 if -1 in array[1:] else -1
        swap(tensor, array)
    if code == "declared":
        plain = clone(new)
        plain.graph.ClearField("value_info")
        for o in plain.graph.output:
            o.type.tensor_type.ClearField("shape")
        true = onnx.shape_inference.infer_shapes(plain, strict_mode=True, data_prop=True).graph
        for v in (*graph.output, *graph.value_info):
            for t in (*true.output, *true.value_info):
                if v.name == t.name == name:
                    del v.type.tensor_type.shape.dim[:]
                    v.type.tensor_type.shape.dim.append(graph.input[0].type.tensor_type.shape.dim[0])
                    v.type.tensor_type.shape.dim.extend(t.type.tensor_type.shape.dim[1:])
    if code == "broadcast":
        tensor = held(new)[name]
        if len(tensor.dims) != 1:
            raise ValueError("no vector")
        swap(tensor, numpy_helper.to_array(tensor)[:, None, None])
    return new


def clone_node(node):
    new = onnx.NodeProto()
    new.CopyFrom(node)
    return new
