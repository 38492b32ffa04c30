# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: read an engine, and say what the builder did
#
# Level: mid to senior · 40 minutes · needs no GPU
#
# "Is it fused? Is it really INT8? Where do the copies come from?" The engine tells, if one asks: `trt.EngineInspector` lists its
# layers with their tensors, formats and kernels. You write the few functions that turn this list into answers.
#
# Two sources of real lists, both without a GPU: engines that were recorded on one with TensorRT 8.6.0
# (`models/engine_layers/`, with the script that made them), and engines that TensorRT for RTX builds here, which tells its
# layers in the verbose log at the end of a build.
#
# Background: [how TensorRT works](../../book/03_tensorrt/questions/02_how_it_works.md) and
# [layouts](../../book/01_foundations/questions/18_nchw_and_nhwc.md).
#
# ## The form of a layer
#
# ```text
# {"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv1]␞[ONNX Layer: relu1]", "TacticName": "…",
#  "Inputs": [{"Name": "image", "Dimensions": [8, 3, 32, 32], "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
#  "Outputs": [{"Name": "relu1", …}], …}
# ```
#
# `nodes` below is the ONNX graph without its weights: a list of dicts `{"name", "op_type", "inputs", "outputs"}` in the graph's order, where `inputs` and `outputs` are
# lists of tensor names.
#
# ## The contract
#
# **`read_layers(text)`** returns the list of layers (dicts, unchanged) from what `get_engine_information(JSON)` returned.
#
# - In 8.6.0 this text is not quite JSON: the separators between names stand in it as raw control characters. It has to be read all the same.
# - `ValueError` if the text is no JSON object with a list `"Layers"`; if layers are mere names (the message says `DETAILED`, which the
#   build lacked); if a tensor has a dimension below 0 (the message names the tensor: such an engine tells no formats).
#
# **`tensor_facts(tensor)`** returns `(type, bytes)`.
#
# - `type` is `"FP32"`, `"FP16"`, `"INT8"`, `"INT32"` or `"BOOL"`. The text of `"Format/Datatype"` says it in one of these words, in upper or
#   lower case, or as `Float` and `Half`. `ValueError` with that text if it says none of them; a word counts as a whole, so `BFloat16` says none.
# - `bytes` is what the tensor takes in memory. Where the text says that channels come in groups, dimension 1 is rounded up to
#   whole groups: `channel % 8 == 0` means 8; `Two wide`, `Four wide`, `Sixteen wide`, `Thirty-two wide` mean 2, 4, 16, 32.
#
# **`nodes_in(layer, nodes)`** returns the names of the nodes that a layer tells to be in it, in the graph's order, each once.
#
# - The names stand in `"Metadata"`, each as `[ONNX Layer: NAME]`, with a control character between them or nothing. Names that are not in
#   `nodes` are left out.
# - A layer of type `Myelin` is a whole subgraph that another compiler took over, and may come without metadata. It then holds the nodes between its
#   tensors: those that its outputs need, going backwards and stopping at its inputs.
# - A layer with `"Origin": "QDQ"` is a QuantizeLinear or DequantizeLinear that runs by itself. Without metadata it holds the node that its `Name` is, or is with
#   `_clone_` and a number at the end.
# - Any other layer without metadata holds no node.
#
# **`report(layers, nodes)`** returns a dict. Layers of type `NoOp` cost nothing and count nowhere in it.
#
# | key | value |
# | --- | :-- |
# | `"fused"` | list of lists: the nodes of each layer that holds two or more, in the order of the layers |
# | `"untold"` | list: nodes that no layer tells, in the order of the graph |
# | `"reads"` | dict, type to list: each node under the type of the first input of the first layer that holds it, in the order of the graph |
# | `"inserted"` | list: the `Name` of each layer that holds no node: the builder put it there |
# | `"inserted_bytes"` | int: what these read and write |
# | `"bytes"` | int: what all layers read and write |
# | `"int8_bytes"` | int: the part of `"bytes"` that is INT8 |
#
# A layer reads its inputs and writes its outputs once each: a tensor that is listed twice on one side of a layer counts once. Weights do not count. Layers that
# hold a node have an input.
#
# **`difference(before, after, nodes)`** compares two lists of layers. It returns a dict: node name to `(old, new)` for each of `nodes` whose home
# differs. The home is the first layer that holds the node, as a pair: the list of those of `nodes` that are in this layer, and the
# list of types that it writes, one for each output. A node in no layer has the home `None`. `NoOp` layers are no home.
#
# Nothing that is passed in is changed. Counted: nothing.

# %%
import json

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

from course import ROOT

RECORDED = ROOT / "models/engine_layers"


def recorded(name):
    """A recorded engine: what, builder, nodes, inspector and more, as models/engine_layers/make.py explains."""
    return json.loads((RECORDED / f"{name}.json").read_text())


facts = recorded("engine_layers")
print("recorded on", facts["gpu"], "with TensorRT", facts["tensorrt"], "on", facts["date"][:10])
for file in facts["files"]:
    engine = recorded(file.removesuffix(".json"))
    print(f"{file.removesuffix('.json'):26} {len(engine['nodes']):2} nodes. {engine['what']}")
for name, problem in facts["failed"].items():
    print(f"{name:26} 8.6.0 could not build it: {problem[:90]}")

# %% [markdown]
# What the inspector of 8.6.0 wrote, in its own words: the beginning, and the place that Python's `json.loads` stumbles over.

# %%
text = recorded("residual_fp16")["inspector"]
print(text[:620])
try:
    json.loads(text)
except ValueError as error:
    print("…", error)
    print(repr(text[error.pos - 40:error.pos + 30]))

# %% [markdown] tags=["hint"]
# **Hint 1.** Five small functions, each on top of the ones before. `json.loads(text, strict=False)` takes control characters.
# `re.findall(r"\[ONNX Layer: (.*?)\]", text)` finds the names whatever stands between them. For the groups of channels:
# `re.search(r"channel % (\d+) == 0", text)`, else a dict of the words.

# %% [markdown] tags=["hint"]
# **Hint 2.** Do not look for a node's name *in* a text with `in`: `conv1` is in `conv10`. And do not use the layer's `Name` for `nodes_in`: a reformat for
# the input of `conv1` has `conv1` in its name. For `Myelin`, start from the layer's outputs: take the node that makes a tensor, then its inputs, and so
# on; a tensor that is an input of the layer is not followed. `{output: node for node in nodes for output in node["outputs"]}` finds the maker.

# %% [markdown] tags=["hint"]
# **Hint 3.** `-(-channels // group) * group` rounds up. In `report`, count `{t["Name"]: tensor_facts(t) for t in layer["Inputs"]}` and the same of the
# outputs: the dict makes a tensor count once. In `difference`, make `homes(layers)` first: walk over the layers, and let
# `home.setdefault(node, …)` keep the first.

# %% [markdown]
# ## Your answer

# %%
# graded cell 1: keep this line
import json
import math
import re


def read_layers(text):
    """The layers of an engine, from the inspector's JSON text."""
    # <answer>
    try:
        layers = json.loads(text, strict=False)["Layers"]             # strict: no control characters in strings; 8.6.0 has them
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
    # </answer>
    # stub: raise NotImplementedError("read_layers is not written yet")


def tensor_facts(tensor):
    """(type, bytes in memory) of one tensor of a layer."""
    # <answer>
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
        shape[1] = -(-shape[1] // step) * step                   # memory is taken for whole groups of channels
    return found[0], math.prod(shape) * size
    # </answer>
    # stub: raise NotImplementedError("tensor_facts is not written yet")


def nodes_in(layer, nodes):
    """The names of the graph's nodes that went into the layer, in the graph's order."""
    # <answer>
    named = set(re.findall(r"\[ONNX Layer: (.*?)\]", layer.get("Metadata", "")))
    if not named and layer.get("Origin") == "QDQ":
        named = {re.sub(r"_clone_\d+$", "", layer["Name"])}
    elif not named and layer["LayerType"] == "Myelin":
        makers = {output: node for node in nodes for output in node["outputs"]}
        ends, open_tensors = {t["Name"] for t in layer["Inputs"]}, [t["Name"] for t in layer["Outputs"]]
        while open_tensors:
            tensor = open_tensors.pop()
            if tensor not in ends:
                ends.add(tensor)                                      # seen: no tensor is followed twice
                if tensor in makers:                                  # weights have no maker
                    named.add(makers[tensor]["name"])
                    open_tensors.extend(makers[tensor]["inputs"])
    return [node["name"] for node in nodes if node["name"] in named]
    # </answer>
    # stub: raise NotImplementedError("nodes_in is not written yet")


# %%
# graded cell 2: keep this line
def report(layers, nodes):
    """What the builder fused, left untold and inserted, which types the nodes read, and how much is moved."""
    # <answer>
    result = {"fused": [], "untold": [], "reads": {}, "inserted": [], "inserted_bytes": 0, "bytes": 0, "int8_bytes": 0}
    kind_of = {}
    for layer in layers:
        if layer["LayerType"] == "NoOp":
            continue                                                  # a new name for the same bytes
        inside = nodes_in(layer, nodes)
        read, written = ({t["Name"]: tensor_facts(t) for t in layer[side]} for side in ("Inputs", "Outputs"))
        moved = [*read.values(), *written.values()]
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
    # </answer>
    # stub: raise NotImplementedError("report is not written yet")


def difference(before, after, nodes):
    """The nodes that have another home in the second engine: node to (old, new)."""
    # <answer>
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
    # </answer>
    # stub: raise NotImplementedError("difference is not written yet")


# %% [markdown]
# ## The recorded engines

# %%
for file in facts["files"]:
    name = file.removesuffix(".json")
    engine = recorded(name)
    try:
        layers = read_layers(engine["inspector"])
    except ValueError as error:
        print(f"{name}: {str(error)[:150]}")
        continue
    found = report(layers, engine["nodes"])
    print(f"{name}: {len(engine['nodes'])} nodes, {len(layers)} layers, {len(found['fused'])} of them fused, {len(found['inserted'])} inserted with "
          f"{found['inserted_bytes'] / found['bytes']:.0%} of the bytes")
    print("   read", "; ".join(f"{kind}: {len(names)}" for kind, names in found["reads"].items()), "nodes; untold:", ", ".join(found["untold"])[:100] or "none")

# %% [markdown]
# Layer by layer. `-` holds no node.


# %%
def show(found, nodes):
    for layer in found:
        sides = [", ".join(f"{kind} {size:,}" for kind, size in map(tensor_facts, layer[side])) for side in ("Inputs", "Outputs")]
        print(f"   {layer['LayerType']:20} {' + '.join(nodes_in(layer, nodes))[:80] or '-':50} {sides[0]} -> {sides[1]}")


for name in ("residual_fp16", "residual_int8", "residual_int8_float_skip", "channels_last_fp16", "attention_fp16"):
    engine = recorded(name)
    print(f"{name}: {engine['what']}")
    show(read_layers(engine["inspector"]), engine["nodes"])

# %% [markdown]
# In the INT8 engines batch norm and ReLU are untold. Are they gone? The layers' other fields know:

# %%
for layer in read_layers(recorded("residual_int8")["inspector"]):
    if "Activation" in layer:
        print(f"{layer['Name'][:76]:76} {layer['Activation']:5} residual {layer['HasResidual']}, weights {layer['Weights']['Type']}")

# %% [markdown]
# And the dynamic engine: asked through the context of a run, it tells its formats for that batch.

# %%
at_shape = recorded("residual_fp16_dynamic")["at_shape"]
print("batch", at_shape["batch"])
show(read_layers(at_shape["inspector"]), recorded("residual_fp16_dynamic")["nodes"])

# %% [markdown]
# ## An engine of this machine
#
# The same graph, built here by TensorRT for RTX. It says in its verbose log what the inspector would say of the engine; the
# inspector itself needs a GPU, since it asks a deserialized engine. `from_log` turns these lines into the form above.


# %%
import re
import runpy


class Log(trt.ILogger):
    """Keeps the list of layers that a build ends with."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.layers = ""

    def log(self, severity, text):
        if text.startswith("Layers:"):
            self.layers = text


def from_log(text):
    """The log's list of layers as dicts. Type and format of a tensor are two fields there; here they become one text."""
    tensor = re.compile(r"\{ Name: (.*?), Dimensions: \[(.*?)\], Strides: .*?, Datatype: (\w+), Format: ([^}]*)\}")
    line = re.compile(r"Name: (.*?), LayerType: (.*?), Inputs: \[(.*?)\], Constants: \[.*?\], Outputs: \[(.*?)\], TacticName: (.*?), StreamId: \d+, Metadata: (.*)")

    def tensors(part):
        return [{"Name": name, "Dimensions": [int(d) for d in dims.split(",") if d], "Format/Datatype": f"{form.strip()}, {kind}"}
                for name, dims, kind, form in tensor.findall(part)]
    return [{"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs), "TacticName": tactic, "Metadata": metadata}
            for name, kind, inputs, outputs, tactic, metadata in line.findall(text)]


def built_here(model):
    if trt.__name__ != "tensorrt_rtx":
        print("   only TensorRT for RTX writes this list")
        return []
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    trt.OnnxParser(network, log).parse(model.SerializeToString())
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    builder.build_serialized_network(network, config)
    return from_log(log.layers)


graphs = runpy.run_path(str(RECORDED / "make.py"))
float32, int8 = graphs["residual"](), graphs["quantized"](also=(graphs["SKIP"],))
for name, model in (("float32", float32), ("Q/DQ", int8)):
    print(name)
    show(built_here(model), graphs["skeleton"](model)["nodes"])

# %% [markdown]
# ## What one precision changed

# %%
nodes = recorded("residual_tf32")["nodes"]
for before, after in (("residual_tf32", "residual_fp16"), ("residual_fp16", "residual_int8")):
    if f"{after}.json" not in facts["files"]:
        continue
    print(f"{before} -> {after}")
    old, new = (read_layers(recorded(name)["inspector"]) for name in (before, after))
    moves = {}
    for node, pair in difference(old, new, nodes).items():
        moves.setdefault(str(pair), []).append(node)
    for names in moves.values():
        was, becomes = difference(old, new, nodes)[names[0]]
        print(f"   {', '.join(names)}:\n      {was} -> {becomes}")

# %% [markdown] tags=["answer"]
# ## What the builder did, and where one sees it
#
# | seen in the lists above | what it means |
# | --- | :-- |
# | convolution, batch norm and ReLU in one layer | the batch norm went into the weights, the ReLU into the kernel's end; the layer's JSON says `"Activation": "RELU"` |
# | `/conv2/Conv + /conv2/BatchNorm + /Add + /Relu` with two inputs | the residual is a second input of the convolution (`"HasResidual": 1`); the sum is never written and read again |
# | `/Flatten` untold | (8, 64, 1, 1) and (8, 64) are the same bytes: no layer is needed |
# | batch norm and ReLU untold in the INT8 engines | they are in the convolution all the same (`"Activation": "RELU"`). Metadata is a help, not a proof: of a fused INT8 layer 8.6.0 tells less than of a float one |
# | an image of 3 channels in INT8 "thirty-two wide" | 32 channels are stored: the INT8 image is larger than the FP32 image it was made from |
# | layers with `"Origin": "QDQ"` | pairs that found no kernel to go into: at the engine's input, where one tensor is read as INT8 and as float, and in front of the last product |
# | `residual_int8` beside `residual_int8_float_skip` | the pair at the skip input changed which conversion runs, not how many: no Q follows the sum, so it is written in FP16 either way |
# | two more pairs between batch norm and ReLU (`residual_int8_misplaced`) | 8.6.0 took them into the convolutions: no layer more; by the model's rules each is one more rounding |
# | `Reformat` in front of `/Pool` | the INT8 kernel writes 32-wide, the pooling kernel reads another layout: the border of the INT8 region costs a pass over 1 MiB and back |
# | a `Reformat` in front of the first convolution | the engine's input is FP32, channels first; the kernel wants channels last in groups, so 3 channels become 4 or 8 |
# | a node that reads FP32 in an engine where FP16 was allowed | allowed is not demanded: the builder times both and keeps the faster. Until 10.16 the flag is a permission; since 11 the graph's types decide |
# | a `Shuffle` that writes channels last | the transposition and the reformat that the next kernel needs are one pass |
# | one `Myelin` layer for the whole attention block | another compiler took the subgraph. The inspector of 8.6.0 tells its ends and nothing of its inside: what the nodes compute in, only a profiler tells |
# | `NoOp` | the same bytes under another name or shape; its time is 0 |
# | the last product reads FP32 in `residual_fp16` and FP16 in its dynamic twin | two builds of the same graph may differ: tactics are chosen by timing |
# | TensorRT for RTX splits or joins other groups | another compiler with other fusions; here, without a GPU, the tactic of a product is a placeholder (`__myelin_CASK_STUB`): its kernel is chosen at run time |
#
# ## Why each step of the code is there
#
# | step | what happens without it |
# | --- | :-- |
# | `strict=False` | 8.6.0 cannot be read at all: the separators between names are raw control characters |
# | refuse mere names | an engine built without `DETAILED` looks like one with no types and no bytes |
# | refuse dimensions below 0 | a product with -1 in it is a number, and wrong. Set the inspector's `execution_context`: after a run 8.6.0 told shapes and formats |
# | whole groups of channels | 3 channels of FP16 in groups of 8 take 2.7 times what the shape says; the reformat at the input looks cheaper than it is |
# | names compared whole | `conv1` is found in `conv10` |
# | metadata, not `Name` | the reformat *for* a layer counts as the layer; names leave out what was fused, and show what the parser added (`(Unnamed Layer* 11) [Shuffle]`) |
# | the name of a `QDQ` layer | the conversions that the model asked for look as if the builder had inserted them |
# | walking through the tensors of a `Myelin` layer | the largest part of a transformer counts as inserted by the builder |
# | a tensor once a side | a fused softmax lists its input twice, and would seem to need two tensors |
#
# Bytes are what a layer asks for, not what the memory delivers: caches keep small tensors. For what a layer costs, profile it (`trt.IProfiler`); for why it
# costs that, read it here first.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **The INT8 engine is no faster than the FP16 one. What do you look at first?** `report`: how many nodes read INT8, and what was inserted. Each border between INT8
# and float is a conversion, and a pair in the wrong place cuts a fusion in two. Then profile the inserted layers.
#
# **How do you get rid of the reformat at the input?** Give the engine what the kernel wants: set the type and `allowed_formats` of the network's input, so that the
# producer writes FP16, channels last. The price is a contract with the producer, padded channels included.
#
# **A layer shows a tactic called `sm80_…` on a GPU of compute capability 9.0. Is that wrong?** No: kernels of an older architecture run on a newer one, and this one won the
# timing. Many of them on a new GPU say that the release has few kernels of its own for it.
#
# **Your parser of the inspector's text breaks with every upgrade. Why, and what do you do?** The text is for people and has no promise: 8.6 has `Bindings`, 11 has
# `I/O Tensors` with objects; separators and layer types changed, too. Keep one recorded text of each release as a test, as here, and fail loudly.
#
# **Can you tell from this list which layer loses accuracy?** Only suspects: layers that read INT8 or FP16, and long chains of them. For proof, mark inner tensors as outputs and compare
# them with ONNX Runtime, or switch one layer at a time back to float.

# %% tags=["learner"]
from course.check import check

check("03_tensorrt/ex05_read_an_engine")
