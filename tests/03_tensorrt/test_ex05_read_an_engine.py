"""Grader of 03_tensorrt/ex05_read_an_engine: engines recorded with TensorRT 8.6.0, and engines built here by TensorRT for RTX. No GPU."""
import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.grading import Raised, Wrong, show

EXERCISE = "03_tensorrt/ex05_read_an_engine"
PROBE = "probe_ex05.py"
LIMITS = {"call_seconds": 60.0, "memory_gib": 6.0}
RECORDED = ROOT / "models/engine_layers"
KEYS = ("fused", "untold", "reads", "inserted", "inserted_bytes", "bytes", "int8_bytes")
# What TensorRT 8 to 10 writes into Format/Datatype, with NumPy's type and the size of a group of channels.
# Source: trt-engine-explorer's list of formats (NVIDIA/TensorRT, tools/experimental/trt-engine-explorer, activations.py), and the recorded engines.
FORMATS = {
    "Row major linear FP32": ("FP32", "f4", 1), "Row major linear FP16 format": ("FP16", "f2", 1), "Row major Int8 format": ("INT8", "i1", 1),
    "Row major linear Int32": ("INT32", "i4", 1), "Row major linear BOOL": ("BOOL", "?", 1), "Channel major FP32 format": ("FP32", "f4", 1),
    "Channel major FP16 format where channel % 8 == 0": ("FP16", "f2", 8), "Channel major FP16 format where channel % 4 == 0": ("FP16", "f2", 4),
    "Channel major FP16 format where channel % 16 == 0": ("FP16", "f2", 16), "Channel major FP16 format where channel % 2 == 0": ("FP16", "f2", 2),
    "Channel major FP32 format where channel % 4 == 0": ("FP32", "f4", 4), "Channel major INT8 format where channel % 16 == 0": ("INT8", "i1", 16),
    "Channel major Int8 format where channel % 4 == 0": ("INT8", "i1", 4), "Four wide channel vectorized row major Int8 format": ("INT8", "i1", 4),
    "Thirty-two wide channel vectorized row major Int8 format": ("INT8", "i1", 32), "Thirty-two wide channel vectorized row major FP32 format": ("FP32", "f4", 32),
    "Thirty-two wide channel vectorized row major FP16 format": ("FP16", "f2", 32), "Two wide channel vectorized row major FP16 format": ("FP16", "f2", 2),
    "Sixteen wide channel vectorized row major FP16 format": ("FP16", "f2", 16), "Half": ("FP16", "f2", 1), "Float": ("FP32", "f4", 1), "Int8": ("INT8", "i1", 1),
}
FORMATS |= {f"{layout}, {word}": (name, kind, 1) for layout in ("Row major linear format", "Channel major format")
            for word, name, kind in (("Float", "FP32", "f4"), ("Half", "FP16", "f2"), ("Int8", "INT8", "i1"), ("Int32", "INT32", "i4"), ("Bool", "BOOL", "?"))}


# ---- the oracle: other means, the same questions -----------------------------------------------------------------------

def facts(tensor):
    """Type and bytes by an array of that layout."""
    text = tensor["Format/Datatype"].rstrip(".")
    if text not in FORMATS:
        raise AssertionError(f"the grader does not know the format {text!r}")
    name, kind, group = FORMATS[text]
    shape = list(tensor["Dimensions"])
    if len(shape) > 1 and group > 1:
        shape[1:2] = [(shape[1] + group - 1) // group, group]
    return name, np.lib.stride_tricks.as_strided(np.zeros(1, kind), shape, [0] * len(shape)).size * np.dtype(kind).itemsize


def inside(layer, nodes):
    named = [part.partition("]")[0] for part in layer.get("Metadata", "").split("[ONNX Layer: ")[1:]]
    if not named and layer.get("Origin") == "QDQ":
        head, mark, number = layer["Name"].rpartition("_clone_")
        named = [head if mark and number.isdigit() else layer["Name"]]
    elif not named and layer["LayerType"] == "Myelin":
        return between([t["Name"] for t in layer["Inputs"]], [t["Name"] for t in layer["Outputs"]], nodes)
    return [n["name"] for n in nodes if n["name"] in named]


def between(inputs, outputs, nodes):
    """Through the nodes from the last to the first: what is still needed, but not given, has to be made."""
    needed, found = set(outputs), []
    for n in reversed(nodes):
        if needed.difference(inputs).intersection(n["outputs"]):
            found.insert(0, n["name"])
            needed.update(n["inputs"])
    return found


def wanted_report(layers, nodes):
    real = [layer for layer in layers if layer["LayerType"] != "NoOp"]
    held = [inside(layer, nodes) for layer in real]
    sides = [[list({t["Name"]: facts(t) for t in reversed(layer[side])}.values()) for side in ("Inputs", "Outputs")] for layer in real]
    amounts = [sum(size for side in both for _, size in side) for both in sides]
    names, reads = [n["name"] for n in nodes], {}
    first = {name: next((facts(layer["Inputs"][0])[0] for layer, h in zip(real, held) if name in h), None) for name in names}
    for name in names:
        if first[name]:
            reads.setdefault(first[name], []).append(name)
    return {"fused": [h for h in held if len(h) >= 2], "untold": [n for n in names if first[n] is None], "reads": reads,
            "inserted": [layer["Name"] for layer, h in zip(real, held) if not h], "inserted_bytes": sum(a for a, h in zip(amounts, held) if not h),
            "bytes": sum(amounts), "int8_bytes": sum(size for both in sides for side in both for kind, size in side if kind == "INT8")}


def wanted_difference(before, after, nodes):
    def home(layers, name):
        for layer in layers:
            if layer["LayerType"] != "NoOp" and name in inside(layer, nodes):
                return inside(layer, nodes), [facts(t)[0] for t in layer["Outputs"]]
        return None
    pairs = {n["name"]: (home(before, n["name"]), home(after, n["name"])) for n in nodes}
    return {n: pair for n, pair in pairs.items() if pair[0] != pair[1]}


# ---- engines ----------------------------------------------------------------------------------------------------------

def recorded(name):
    return json.loads((RECORDED / f"{name}.json").read_text())


def layers_of(engine):
    return json.loads(engine["inspector"], strict=False)["Layers"]


def readable(name):
    layers = layers_of(recorded(name))
    return all(isinstance(layer, dict) and all(d >= 0 for side in ("Inputs", "Outputs") for t in layer[side] for d in t["Dimensions"]) for layer in layers)


def recorded_engines():
    """Those whose layers can be read as they are."""
    return [path.stem for path in sorted(RECORDED.glob("*.json")) if path.stem != "engine_layers" and readable(path.stem)]


TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[(.*?)\], Strides: .*?, Datatype: (\w+), Format: (?:\(\w+\) )?([^}]*?) ?\}")


def from_log(text):
    """The log's lines in the form of the inspector's JSON: format and type of a tensor become one text."""
    def tensors(part):
        return [{"Name": n, "Dimensions": [int(d) for d in dims.split(",") if d], "Format/Datatype": f"{form}, {kind}"} for n, dims, kind, form in TENSOR.findall(part)]
    layers = []
    for line in text.splitlines():
        if line.startswith("Name: "):
            name, rest = line[6:].split(", LayerType: ", 1)
            kind, rest = rest.split(", Inputs: [", 1)
            inputs, rest = rest.split("], Constants: [", 1)
            outputs, rest = rest.split("], Outputs: [", 1)[1].split("], TacticName: ", 1)
            layers.append({"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs), "Metadata": rest.split("Metadata: ", 1)[1]})
    return layers


def node(kind, name, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=name, **attributes)


def save(path, nodes, inputs, outputs, weights, kind):
    graph = helper.make_graph(nodes, "made_by_the_grader", [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
                              [helper.make_tensor_value_info(n, kind, s) for n, s in outputs.items()], [numpy_helper.from_array(w, n) for n, w in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return str(path), [{"name": n.name, "op_type": n.op_type, "inputs": list(n.input), "outputs": list(n.output)} for n in nodes]


NAMES = {1: ("conv1", "conv10", "conv1_relu", "same", "turn", "conv", "soft", "add"), 2: ("/b.1/Conv", "/b/Conv", "/b/Relu", "copy", "to nhwc", "+", "/b", "last")}


def made(folder, seed, half=False, quantized=False):
    """A small network of sizes from a seed: convolutions, an Identity, a Transpose, a Softmax; in FP16 or with Q/DQ in front of the first."""
    draw = np.random.default_rng(seed)
    dtype, kind = ("f2", TensorProto.FLOAT16) if half else ("f4", TensorProto.FLOAT)
    n, a, b, size = (int(v) for v in (draw.integers(1, 4), draw.integers(2, 5) * 4, draw.integers(2, 5) * 8, draw.integers(3, 7) * 2))
    weights = {"w1": draw.normal(size=(b, a, 3, 3)).astype(dtype), "w2": draw.normal(size=(a, b, 1, 1)).astype(dtype), "one": np.ones((1, 1, 1, a), dtype)}
    c1, c10, relu, same, turn, conv, soft, add = NAMES[seed]
    nodes, source = [], "x"
    if quantized:
        weights |= {"s": np.array(0.05, dtype), "z": np.array(0, np.int8)}
        for tensor in ("x", "w1"):
            nodes += [node("QuantizeLinear", f"{c1}_{tensor}_Q", [tensor, "s", "z"], f"{tensor}q"), node("DequantizeLinear", f"{c1}_{tensor}_DQ", [f"{tensor}q", "s", "z"], f"{tensor}d")]
        source = "xd"
    nodes += [node("Conv", c1, [source, "w1d" if quantized else "w1"], "a", pads=[1, 1, 1, 1]), node("Relu", relu, ["a"], "b"), node("Conv", c10, ["b", "w2"], "c"),
              node("Identity", same, ["c"], "d"), node("Add", conv, ["d", "x"], "e"), node("Transpose", turn, ["e"], "f", perm=[0, 2, 3, 1]),
              node("Softmax", soft, ["f"], "g", axis=-1), node("Add", add, ["g", "one"], "y")]
    return save(folder / f"m{seed}{half}{quantized}.onnx", nodes, {"x": [n, a, size, size]}, {"y": [n, size, size, a]}, weights, kind)


@pytest.fixture(scope="module")
def built(submission, tmp_path_factory):
    """(layers, nodes) of an engine that TensorRT builds here."""
    folder, cache = tmp_path_factory.mktemp("built"), {}

    def build(seed, **how):
        key = seed, tuple(sorted(how.items()))
        if key not in cache:
            path, nodes = made(folder, seed, **how)
            text = submission.probe("layer_text", path)
            if text is None:
                pytest.skip("not run here: this TensorRT does not list its layers in the build's log")
            cache[key] = from_log(text), nodes
        return cache[key]
    return build


# ---- comparing --------------------------------------------------------------------------------------------------------

def plain(value):
    """Tuples as lists and NumPy numbers as numbers, so that what means the same is equal."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return int(value) if isinstance(value, np.integer) and not isinstance(value, bool) else value


def check_report(submission, layers, nodes, call):
    got, want = submission.call("report", layers, nodes), wanted_report(layers, nodes)
    if not isinstance(got, dict) or set(got) != set(KEYS):
        raise Wrong("report returns a dict with the seven keys of the contract.", call, sorted(map(str, got)) if isinstance(got, dict) else got, sorted(KEYS))
    for key in KEYS:
        if plain(got[key]) != plain(want[key]):
            raise Wrong(why_report(key, got[key], want, layers, nodes), call, f"{key}: {show(got[key], 400)}", f"{key}: {show(want[key], 400)}")


def why_report(key, got, want, layers, nodes):
    noops = [layer["Name"] for layer in layers if layer["LayerType"] == "NoOp"]
    if key == "fused" and isinstance(got, list) and [sorted(plain(g)) for g in got] == [sorted(w) for w in want["fused"]]:
        return "The nodes of a layer stand in the order of the graph."
    if key in ("untold", "inserted") and any(layer["LayerType"] == "Myelin" for layer in layers):
        return f"The {key} nodes or layers are wrong: a Myelin layer without metadata holds the nodes between its tensors."
    if key == "inserted" and isinstance(got, list) and set(got) & set(noops):
        return "A NoOp layer moves nothing: it counts nowhere."
    if key == "inserted" and isinstance(got, list) and set(want["inserted"]) - set(got):
        return "A layer that holds no node of the graph was put there by the builder, whatever its LayerType or its Name says."
    if key in ("bytes", "inserted_bytes", "int8_bytes"):
        twice = [(layer, side) for layer in layers for side in ("Inputs", "Outputs") if len({t["Name"] for t in layer[side]}) < len(layer[side])]
        if isinstance(got, (int, np.integer)) and got > want[key] and noops:
            return "More bytes than are moved: a NoOp layer moves nothing."
        if isinstance(got, (int, np.integer)) and got > want[key] and twice:
            return "More bytes than are moved: a tensor that is listed twice on one side of a layer is read once."
        return f"The number of {key} is wrong: each layer reads its inputs and writes its outputs."
    return {"fused": "The fused groups are wrong.", "untold": "The nodes that no layer tells are wrong.", "inserted": "The inserted layers are wrong: those that hold no node of the graph.",
            "reads": "The types that the nodes read are wrong: each node once, by the first input of the first layer that holds it."}[key]


def check_difference(submission, before, after, nodes, call):
    got, want = submission.call("difference", before, after, nodes), wanted_difference(before, after, nodes)
    if not isinstance(got, dict):
        raise Wrong("difference returns a dict.", call, got, "node name to (old, new)")
    if set(got) != set(want):
        missing, extra = [n for n in want if n not in got], [n for n in got if n not in want]
        raise Wrong("A node that has the same home in both engines is named." if extra else "A node whose home changed is not named.", call, extra or f"no {missing}", sorted(want))
    for name in want:
        if plain(got[name]) != plain(want[name]):
            raise Wrong(f"The homes of {name!r} are wrong: the first layer that holds it, as (nodes in it, types that it writes).", call, f"{got[name]}", f"{want[name]}")


# ---- tests ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", recorded_engines())
def test_read_layers(submission, name):
    """read_layers returns the layers of a recorded engine as they are"""
    engine = recorded(name)
    call = f"read_layers(<the inspector's text of {name}>)"
    try:
        got = submission.attempt("read_layers", engine["inspector"])
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("read_layers is not written yet.", call, error.text) from None
        mistake = "read_layers raised an error for a text that TensorRT 8.6.0 wrote."
        if "control character" in error.text:
            mistake = "The text of 8.6.0 has control characters between the names of its metadata. Python's json takes them when it is not strict."
        raise Wrong(mistake, call, str(error), "the layers") from None
    if got != layers_of(engine):
        raise Wrong("read_layers returns the list 'Layers', unchanged: the control characters stay, too.", call, show(got, 200), f"{len(layers_of(engine))} layers")


def refused(submission, text, why, words=()):
    call = f"read_layers(…)  ({why})"
    try:
        got = submission.attempt("read_layers", text)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("read_layers is not written yet.", call, error.text) from None
        if "ValueError" not in error.bases or error.kind == "JSONDecodeError" and words:
            raise Wrong(f"Given {why}, read_layers has to raise ValueError.", call, str(error), "ValueError") from None
        missing = [w for w in words if w.lower() not in error.text.lower()]
        if missing:
            raise Wrong(f"The message for {why} does not say {missing[0]!r}, which is what is missing.", call, str(error), f"a message with {missing[0]!r}") from None
        return
    raise Wrong(f"Given {why}, read_layers has to raise ValueError.", call, show(got, 100), "ValueError")


def test_read_layers_refuses(submission):
    """read_layers refuses what is no engine's JSON"""
    for text, why in (("", "an empty text"), ("Layers: conv1", "the text of another format"), ("[]", "a JSON list"), ("null", "null"), ('{"Bindings": []}', "no Layers"),
                      ('{"Layers": 3}', "Layers that are a number"), ('"Layers"', "a JSON string")):
        refused(submission, text, why)


def test_read_layers_names_only(submission):
    """read_layers refuses an engine that holds names only, and says how to build one that can be read"""
    refused(submission, recorded("residual_fp16_names")["inspector"], "an engine built with the default verbosity", ("DETAILED",))


def test_read_layers_dynamic(submission):
    """read_layers refuses the layers of an engine with a dynamic batch, and names a tensor; it reads them where the shapes are set"""
    engine = recorded("residual_fp16_dynamic")
    refused(submission, engine["inspector"], "an engine with a dynamic batch", ("image",))
    late = {"Layers": [{"Name": n, "LayerType": "PointWiseV2", "Metadata": "", "Inputs": [{"Name": f"{n}_in", "Dimensions": [4], "Format/Datatype": "Float"}],
                        "Outputs": [{"Name": f"{n}_out", "Dimensions": dims, "Format/Datatype": "Float"}]} for n, dims in (("one", [4]), ("two", [2, -1]))]}
    refused(submission, json.dumps(late), "layers of which the last one's output alone has a dimension of -1", ("two_out",))
    text = engine["at_shape"]["inspector"]
    if submission.call("read_layers", text) != json.loads(text, strict=False)["Layers"]:
        raise Wrong("read_layers returns the list 'Layers', unchanged.", "read_layers(<the same engine, asked through the context of a run>)", expected="its layers")


@pytest.mark.parametrize("text", FORMATS)
def test_tensor_facts(submission, text):
    """tensor_facts knows type and bytes of every format"""
    for dims in ([8, 3, 32, 32], [1, 20, 7, 5], [2, 33, 1, 1], [7, 10], [2, 5, 9], [1, 3, 4, 5, 6]) + (([], [5]) if FORMATS[text][2] == 1 else ()):
        for ending in ("", "."):
            tensor = {"Name": "x", "Location": "Device", "Dimensions": dims, "Format/Datatype": text + ending}
            got, want = submission.call("tensor_facts", tensor), facts(tensor)
            call = f"tensor_facts({{'Dimensions': {dims}, 'Format/Datatype': {text + ending!r}}})"
            if not isinstance(got, (tuple, list)) or len(got) != 2:
                raise Wrong("tensor_facts returns (type, bytes).", call, got, want)
            if got[0] != want[0]:
                raise Wrong("The type is wrong.", call, got[0], want[0])
            if got[1] != want[1]:
                full = int(np.prod(dims)) * np.dtype(FORMATS[text][1]).itemsize
                raise Wrong("Channels are kept in whole groups: dimension 1 is rounded up before anything is multiplied." if got[1] == full else "The number of bytes is wrong.", call, got[1], want[1])


def test_tensor_facts_refuses(submission):
    """tensor_facts refuses a format that names no type"""
    for text in ("N/A due to dynamic shapes", "Unknown format", "Row major linear FP8", "Row major linear BFloat16", "Row major linear UInt8"):
        try:
            got = submission.attempt("tensor_facts", {"Name": "x", "Dimensions": [1, 2], "Format/Datatype": text})
        except Raised as error:
            if error.kind == "NotImplementedError":
                raise Wrong("tensor_facts is not written yet.", error.call, error.text) from None
            if "ValueError" not in error.bases or text not in error.text:
                raise Wrong("A format without a known type is a ValueError that shows the text.", f"tensor_facts(… {text!r})", str(error), f"ValueError with {text!r}") from None
            continue
        found = " A word counts as a whole: neither is BFloat16 Float nor UInt8 Int8." if re.search("BFloat|UInt", text) else ""
        raise Wrong(f"A format without a known type is a ValueError that shows the text.{found}", f"tensor_facts(… {text!r})", got, "ValueError")


def test_nodes_in(submission):
    """nodes_in finds names as a whole, in the graph's order, whatever stands between them"""
    names = ["/stem/conv1", "/stem/conv10", "conv1", "a b+c", "conv", "/stem/conv1/relu", "w.1", "wx1"]
    nodes = [{"name": n, "op_type": "Relu", "inputs": [f"t{i}"], "outputs": [f"t{i + 1}"]} for i, n in enumerate(names)]
    cases = [("[ONNX Layer: conv1]", ["conv1"], "one name that others contain"), ("[ONNX Layer: /stem/conv10]\x1e[ONNX Layer: /stem/conv1]", ["/stem/conv1", "/stem/conv10"], "the record separator"),
             ("[ONNX Layer: conv]\x1f[ONNX Layer: conv1]\x1f[ONNX Layer: conv]", ["conv1", "conv"], "the unit separator, and a name twice"),
             ("[ONNX Layer: a b+c][ONNX Layer: w.1]", ["a b+c", "w.1"], "nothing between the names"), ("", [], "no metadata"),
             ("[ONNX Layer: somebody else's]\x1f[ONNX Layer: conv]", ["conv"], "a name that is not the graph's"), ("[ONNX Layer: /stem/conv1/relu]", ["/stem/conv1/relu"], "a name that begins with another's"),
             (None, [], "a layer without the key Metadata")]
    for metadata, want, why in cases:
        layer = {"Name": "Reformatting CopyNode for Input Tensor 0 to wx1", "LayerType": "Reformat", "Inputs": [{"Name": "t2", "Dimensions": [1], "Format/Datatype": "Half"}],
                 "Outputs": [{"Name": "t5", "Dimensions": [1], "Format/Datatype": "Half"}]} | ({} if metadata is None else {"Metadata": metadata})
        check_nodes(submission, layer, nodes, want, f"nodes_in({{'Metadata': {metadata!r}, …}}, {names})  ({why})")


def check_nodes(submission, layer, nodes, want, call):
    got = submission.call("nodes_in", layer, nodes)
    if plain(got) == want:
        return
    mistake, extra = "nodes_in is wrong.", set(map(str, got)) - set(want) if isinstance(got, (list, tuple)) else set()
    if isinstance(got, list) and got and isinstance(got[0], dict):
        mistake = "nodes_in returns names, not nodes."
    elif layer.get("Origin") == "QDQ":
        mistake = "A layer with the origin QDQ and without metadata holds the node of its name, without _clone_ and a number at the end."
    elif extra and all(name in layer["Name"] and name not in layer.get("Metadata", "") for name in extra):
        mistake = "A node is taken from the layer's Name: a reformat for the input of a node names it, and holds no node."
    elif not want and got:
        mistake = "A layer without metadata that is not of type Myelin holds no node, whatever its Name or its tensors say."
    elif isinstance(got, list) and sorted(map(str, got)) == sorted(want):
        mistake = "The nodes are not in the order of the graph, each once."
    elif layer["LayerType"] == "Myelin":
        mistake = "A Myelin layer without metadata holds what its outputs need, backwards up to its inputs and no further."
    elif isinstance(got, list) and set(want) < set(map(str, got)):
        mistake = "A name is found inside a longer one: compare whole names."
    raise Wrong(mistake, call, got, want)


def test_nodes_in_a_lone_conversion(submission):
    """nodes_in knows a QuantizeLinear or DequantizeLinear that runs by itself, under its name or as a clone"""
    names = ["x_Q", "x_DQ", "x_DQ_clone_1_copy", "relu"]
    nodes = [{"name": n, "op_type": "QuantizeLinear", "inputs": [f"t{i}"], "outputs": [f"t{i + 1}"]} for i, n in enumerate(names)]
    ends = {side: [{"Name": f"t{i}", "Dimensions": [1], "Format/Datatype": "Row major Int8 format"}] for i, side in enumerate(("Inputs", "Outputs"))}
    for name, origin, metadata, want in (("x_Q", "QDQ", "", ["x_Q"]), ("x_DQ_clone_1", "QDQ", "", ["x_DQ"]), ("x_DQ_clone_12", "QDQ", "", ["x_DQ"]), ("x_DQ_clone_1_copy", "QDQ", "", ["x_DQ_clone_1_copy"]),
                                         ("x_Q", "REFORMAT", "", []), ("x_Q", "QDQ", "[ONNX Layer: relu]", ["relu"]), ("y_Q", "QDQ", "", [])):
        layer = {"Name": name, "LayerType": "Reformat", "Origin": origin, "Metadata": metadata, **ends}
        got = submission.call("nodes_in", layer, nodes)
        if plain(got) != want:
            mistake = "A layer with the origin QDQ and without metadata holds the node of its name, without _clone_ and a number at the end."
            if origin == "REFORMAT":
                mistake = "A node is taken from the layer's Name: only a layer with the origin QDQ is named after its node."
            raise Wrong(mistake, f"nodes_in({{'Name': {name!r}, 'Origin': {origin!r}, 'Metadata': {metadata!r}, …}}, {names})", got, want)
    engine = recorded("residual_int8")
    for layer in layers_of(engine):
        check_nodes(submission, layer, engine["nodes"], inside(layer, engine["nodes"]), f"nodes_in(<{layer['Name'][:50]} of residual_int8>, <its nodes>)")


def test_nodes_in_a_subgraph(submission):
    """nodes_in follows the tensors of a Myelin layer that has no metadata"""
    engine = recorded("attention_fp16")
    nodes = engine["nodes"]
    for layer in layers_of(engine):
        check_nodes(submission, layer, nodes, inside(layer, nodes), "nodes_in(<the layer of attention_fp16>, <its 22 nodes>)")
    for inputs, outputs in ((["query", "key"], ["shares"]), (["tokens", "shares"], ["mix"]), (["tokens"], ["key", "value"]), (["mix", "tokens"], ["context"]), (["query.sum"], ["query"]),
                            (["tokens", "query.sum"], ["scores"]), (["tokens"], ["tokens"])):
        layer = {"Name": "{ForeignNode[a...b]}", "LayerType": "Myelin", "Metadata": "", "Inputs": [{"Name": n, "Dimensions": [4, 64, 128], "Format/Datatype": "Row major linear FP32"} for n in inputs],
                 "Outputs": [{"Name": n, "Dimensions": [4, 64, 128], "Format/Datatype": "Row major linear FP32"} for n in outputs]}
        check_nodes(submission, layer, nodes, between(inputs, outputs, nodes), f"nodes_in(<a Myelin layer from {inputs} to {outputs}>, <the nodes of attention_fp16>)")
    nodes = [{"name": n, "op_type": n, "inputs": i, "outputs": o} for n, i, o in (("Split", ["x", "sizes"], ["left", "right"]), ("Relu", ["right"], ["r"]), ("Tanh", ["left"], ["t"]))]
    layer = {"Name": "{ForeignNode[Split...Tanh]}", "LayerType": "Myelin"} | {side: [{"Name": n, "Dimensions": [4], "Format/Datatype": "Float"}] for side, n in (("Inputs", "x"), ("Outputs", "r"))}
    check_nodes(submission, layer, nodes, ["Split", "Relu"], "nodes_in(<a Myelin layer from ['x'] to ['r'], without the key Metadata>, <Split with two outputs, Relu, Tanh>)")
    got = submission.call("nodes_in", layer | {"Metadata": "[ONNX Layer: Relu]\x1f[ONNX Layer: Tanh]"}, nodes)
    if plain(got) != ["Relu", "Tanh"]:
        raise Wrong("A Myelin layer that has metadata holds the nodes that it names: its tensors are followed only where it names none.",
                    "nodes_in(<a Myelin layer from ['x'] to ['r'], whose metadata names Relu and Tanh>, <Split, Relu, Tanh>)", got, ["Relu", "Tanh"])


@pytest.mark.parametrize("name", recorded_engines())
def test_report_of_a_recorded_engine(submission, name):
    """report describes engines that TensorRT 8.6.0 built on a GPU"""
    engine = recorded(name)
    check_report(submission, layers_of(engine), engine["nodes"], f"report(<layers of {name}>, <its {len(engine['nodes'])} nodes>)")


@pytest.mark.parametrize("how", [{}, {"half": True}, {"quantized": True}], ids=["FP32", "FP16", "INT8"])
@pytest.mark.parametrize("seed", [1, 2])
def test_report_of_an_engine_built_here(submission, built, seed, how):
    """report describes engines that TensorRT builds here, now"""
    layers, nodes = built(seed, **how)
    check_report(submission, layers, nodes, f"report(<layers of an engine built here>, <nodes {[n['name'] for n in nodes]}>)")


def test_report_counts_once(submission):
    """report counts a tensor once that a layer lists twice, and a tensor again that another layer reads; a node's first layer is its home"""
    def tensor(name, dims=(1, 3, 4, 4), text="Channel major FP16 format where channel % 8 == 0"):
        return {"Name": name, "Dimensions": list(dims), "Format/Datatype": text}
    layers = [{"Name": "Reformatting CopyNode for Input Tensor 0 to b", "LayerType": "NoOp", "Inputs": [tensor("x")], "Outputs": [tensor("x2")], "Metadata": ""},
              {"Name": "copy", "LayerType": "Reformat", "Inputs": [tensor("x", text="Row major linear FP32")], "Outputs": [tensor("x3")], "Metadata": ""},
              {"Name": "b", "LayerType": "PointWiseV2", "Inputs": [tensor("x3"), tensor("x3")], "Outputs": [tensor("y", text="Row major Int8 format")], "Metadata": "[ONNX Layer: b]\x1e[ONNX Layer: a]"},
              {"Name": "c", "LayerType": "CaskConvolution", "Inputs": [tensor("y", text="Row major Int8 format"), tensor("x3")], "Outputs": [tensor("z")], "Metadata": "[ONNX Layer: c]"}]
    nodes = [{"name": n, "op_type": "Relu", "inputs": [], "outputs": [n]} for n in ("gone", "a", "b", "c")]
    check_report(submission, layers[1:], nodes, "report(<three layers: a copy, b that reads one tensor twice, c>, <nodes gone, a, b, c>)")
    check_report(submission, layers, nodes, "report(<four layers: a NoOp, a copy, b that reads one tensor twice, c>, <nodes gone, a, b, c>)")
    check_report(submission, [], nodes, "report([], <4 nodes>)")
    check_report(submission, [{"Name": "a", "LayerType": "PointWiseV2", "Inputs": [tensor("x"), tensor("x3")], "Outputs": [tensor("x3")], "Metadata": "[ONNX Layer: a]"}], nodes,
                 "report(<one layer, which writes a tensor that it reads>, <nodes gone, a, b, c>)")
    tail = {"Name": "c's end", "LayerType": "kgen", "Inputs": [tensor("z")], "Outputs": [tensor("end", text="Row major linear FP32"), tensor("too", text="Half")], "Metadata": "[ONNX Layer: c]\x1f[ONNX Layer: gone]"}
    check_report(submission, [*layers, tail], nodes, "report(<five layers, of which two hold c>, <nodes gone, a, b, c>)")
    check_difference(submission, [*layers, tail], [], nodes, "difference(<five layers, of which two hold c>, [], <nodes gone, a, b, c>)")


def test_difference_of_recorded_engines(submission):
    """difference tells what another precision changed"""
    nodes = recorded("residual_tf32")["nodes"]
    for before, after in (("residual_tf32", "residual_fp16"), ("residual_fp16", "residual_int8"), ("residual_int8", "residual_int8_float_skip"), ("residual_int8", "residual_int8")):
        if all((RECORDED / f"{name}.json").exists() for name in (before, after)):
            check_difference(submission, layers_of(recorded(before)), layers_of(recorded(after)), nodes, f"difference(<{before}>, <{after}>, <the float graph's nodes>)")


def test_difference_from_nothing(submission):
    """difference gives every node's home, if the other engine is empty"""
    for name in recorded_engines():
        engine = recorded(name)
        check_difference(submission, layers_of(engine), [], engine["nodes"], f"difference(<{name}>, [], <its nodes>)")


def test_difference_of_engines_built_here(submission, built):
    """difference tells what FP16 and Q/DQ change in an engine built here"""
    for seed in (1, 2):
        plain_layers, nodes = built(seed)
        for how in ({"half": True}, {"quantized": True}):
            check_difference(submission, plain_layers, built(seed, **how)[0], nodes, f"difference(<FP32>, <{'FP16' if 'half' in how else 'Q/DQ'}>, <nodes>)")
            check_difference(submission, built(seed, **how)[0], plain_layers, nodes, f"difference(<{'FP16' if 'half' in how else 'Q/DQ'}>, <FP32>, <nodes>)")


def test_arguments_stay(submission):
    """Nothing that is passed in is changed"""
    for name in ("residual_fp16", "attention_fp16"):
        engine = recorded(name)
        layers, nodes = layers_of(engine), engine["nodes"]
        for function, arguments in (("tensor_facts", (layers[0]["Inputs"][0],)), ("nodes_in", (layers[0], nodes)), ("report", (layers, nodes)), ("difference", (layers, layers_of(recorded("residual_tf32")), nodes))):
            if submission.drive("changes_its_arguments", function, *arguments):
                raise Wrong(f"{function} changes what it is given.", f"{function}(…)", "changed arguments", "the arguments as they were")
