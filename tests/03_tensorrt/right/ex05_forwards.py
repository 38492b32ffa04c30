"""Finds a subgraph forwards and backwards, reads formats with a table, counts with Counter; lists are tuples."""
import collections
import json

SIZES = {"FP32": 4, "FP16": 2, "INT8": 1, "INT32": 4, "BOOL": 1}
SPELLED = {"FLOAT": "FP32", "HALF": "FP16"}
WIDE = {"TWO": 2, "FOUR": 4, "SIXTEEN": 16, "THIRTY-TWO": 32}


def read_layers(text):
    decoder = json.JSONDecoder(strict=False)
    if not isinstance(text, str):
        raise ValueError("no text")
    try:
        found = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("Layers"), list):
        raise ValueError("no layers")
    for layer in found["Layers"]:
        if isinstance(layer, str):
            raise ValueError("built without DETAILED, so there are names only")
        for side in ("Inputs", "Outputs"):
            for tensor in layer[side]:
                if min(tensor["Dimensions"], default=0) < 0:
                    raise ValueError(f"dynamic: {tensor['Name']}")
    return found["Layers"]


def tensor_facts(tensor):
    words = tensor["Format/Datatype"].replace(".", " ").replace(",", " ").upper().split()
    kinds = [SPELLED.get(w, w) for w in words]
    kind = next((k for k in kinds if k in SIZES), None)
    if kind is None:
        raise ValueError(tensor["Format/Datatype"])
    group = 1
    if "%" in words:
        group = int(words[words.index("%") + 1])
    elif "WIDE" in words:
        group = WIDE[words[words.index("WIDE") - 1]]
    count = 1
    for place, size in enumerate(tensor["Dimensions"]):
        count *= (size + group - 1) // group * group if place == 1 else size
    return [kind, count * SIZES[kind]]


def nodes_in(layer, nodes):
    parts = layer.get("Metadata", "").split("[ONNX Layer: ")
    named = {p[:p.index("]")] for p in parts if "]" in p}
    if layer.get("Origin") == "QDQ" and not named:
        head, mark, number = layer["Name"].rpartition("_clone_")
        named.add(head if mark and number.isdigit() else layer["Name"])
    elif layer["LayerType"] == "Myelin" and not named:
        given = {t["Name"] for t in layer["Inputs"]}
        wanted = {t["Name"] for t in layer["Outputs"]} - given
        grew = True
        while grew:
            grew = False
            for n in nodes:
                if wanted.intersection(n["outputs"]) and n["name"] not in named:
                    named.add(n["name"])
                    wanted |= set(n["inputs"]) - given
                    grew = True
    return tuple(n["name"] for n in nodes if n["name"] in named)


def sides(layer):
    return [list({t["Name"]: tuple(tensor_facts(t)) for t in layer[side]}.values()) for side in ("Inputs", "Outputs")]


def report(layers, nodes):
    count, fused, inserted, home = collections.Counter(bytes=0, int8_bytes=0, inserted_bytes=0), [], [], {}
    for layer in [one for one in layers if one["LayerType"] != "NoOp"]:
        names, amount = nodes_in(layer, nodes), 0
        for kind, size in sum(sides(layer), []):
            amount += size
            count["int8_bytes"] += size if kind == "INT8" else 0
        count["bytes"] += amount
        if not names:
            inserted.append(layer["Name"])
            count["inserted_bytes"] += amount
        elif len(names) > 1:
            fused.append(names)
        for name in names:
            if name not in home:
                home[name] = tensor_facts(layer["Inputs"][0])[0]
    reads = collections.defaultdict(list)
    for n in nodes:
        if n["name"] in home:
            reads[home[n["name"]]].append(n["name"])
    return dict(count, fused=tuple(fused), untold=[n["name"] for n in nodes if n["name"] not in home], reads=dict(reads), inserted=inserted)


def difference(before, after, nodes):
    changed = {}
    for n in nodes:
        pair = []
        for layers in (before, after):
            found = None
            for layer in layers:
                if found is None and layer["LayerType"] != "NoOp" and n["name"] in nodes_in(layer, nodes):
                    found = nodes_in(layer, nodes), tuple(tensor_facts(t)[0] for t in layer["Outputs"])
            pair.append(found)
        if pair[0] != pair[1]:
            changed[n["name"]] = tuple(pair)
    return changed
