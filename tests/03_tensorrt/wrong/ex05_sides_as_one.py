"""Counts a tensor once that a layer reads and writes.

fails: test_report_counts_once
says: The number of bytes is wrong
"""
import json
import math
import re


def read_layers(text):
    """The layers of an engine, from the inspector's JSON text."""
    try:
        layers = json.loads(text, strict=False)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"this is not what the inspector writes in JSON: {error!r}") from None
    if not isinstance(layers, list):
        raise ValueError("'Layers' is no list")
    for layer in layers:
        if not isinstance(layer, dict):
            raise ValueError(f"the engine holds names only, as {str(layer)[:60]!r}: build it with profiling_verbosity DETAILED")
        for tensor in [*layer.get("Inputs", []), *layer.get("Outputs", [])]:
            if any(size < 0 for size in tensor["Dimensions"]):
                raise ValueError(f"{tensor['Name']!r} has dimensions {tensor['Dimensions']}: a dynamic engine tells no formats")
    return layers


def tensor_facts(tensor):
    """(type, bytes in memory) of one tensor of a layer."""
    text = tensor["Format/Datatype"]
    words = {"fp32": "FP32", "float": "FP32", "fp16": "FP16", "half": "FP16", "int8": "INT8", "int32": "INT32", "bool": "BOOL"}
    found = [words[word] for word in re.findall(r"\w+", text.lower()) if word in words]
    if not found:
        raise ValueError(f"no type in {text!r}")
    size = {"FP32": 4, "FP16": 2, "INT8": 1, "INT32": 4, "BOOL": 1}[found[0]]
    shape = list(tensor["Dimensions"])
    group = re.search(r"channel % (\d+) == 0", text)
    wide = re.search(r"(two|four|sixteen|thirty-two) wide", text.lower())
    step = int(group[1]) if group else {"two": 2, "four": 4, "sixteen": 16, "thirty-two": 32}[wide[1]] if wide else 1
    if len(shape) > 1:
        shape[1] = -(-shape[1] // step) * step
    return found[0], math.prod(shape) * size


def nodes_in(layer, nodes):
    """The names of the graph's nodes that went into the layer, in the graph's order."""
    named = set(re.findall(r"\[ONNX Layer: (.*?)\]", layer.get("Metadata", "")))
    if not named and layer.get("Origin") == "QDQ":
        named = {re.sub(r"_clone_\d+$", "", layer["Name"])}
    elif not named and layer["LayerType"] == "Myelin":
        makers = {output: node for node in nodes for output in node["outputs"]}
        ends, open_tensors = {t["Name"] for t in layer["Inputs"]}, [t["Name"] for t in layer["Outputs"]]
        while open_tensors:
            tensor = open_tensors.pop()
            if tensor not in ends:
                ends.add(tensor)
                if tensor in makers:
                    named.add(makers[tensor]["name"])
                    open_tensors.extend(makers[tensor]["inputs"])
    return [node["name"] for node in nodes if node["name"] in named]

def report(layers, nodes):
    """What the builder fused, left untold and inserted, which types the nodes read, and how much is moved."""
    result = {"fused": [], "untold": [], "reads": {}, "inserted": [], "inserted_bytes": 0, "bytes": 0, "int8_bytes": 0}
    kind_of = {}
    for layer in layers:
        if layer["LayerType"] == "NoOp":
            continue
        inside = nodes_in(layer, nodes)
        read, written = ({t["Name"]: tensor_facts(t) for t in layer[side]} for side in ("Inputs", "Outputs"))
        moved = list((read | written).values())
        amount = sum(size for _, size in moved)
        result["bytes"] += amount
        result["int8_bytes"] += sum(size for kind, size in moved if kind == "INT8")
        if len(inside) > 1:
            result["fused"].append(inside)
        if inside:
            for node in inside:
                kind_of.setdefault(node, tensor_facts(layer["Inputs"][0])[0])
        else:
            result["inserted"].append(layer["Name"])
            result["inserted_bytes"] += amount
    for node in nodes:
        if node["name"] in kind_of:
            result["reads"].setdefault(kind_of[node["name"]], []).append(node["name"])
        else:
            result["untold"].append(node["name"])
    return result


def difference(before, after, nodes):
    """The nodes that have another home in the second engine: node to (old, new)."""
    def homes(layers):
        home = {}
        for layer in layers:
            if layer["LayerType"] != "NoOp":
                inside = nodes_in(layer, nodes)
                for node in inside:
                    home.setdefault(node, (inside, [tensor_facts(t)[0] for t in layer["Outputs"]]))
        return home

    old, new = homes(before), homes(after)
    return {node["name"]: (old.get(node["name"]), new.get(node["name"])) for node in nodes if old.get(node["name"]) != new.get(node["name"])}
