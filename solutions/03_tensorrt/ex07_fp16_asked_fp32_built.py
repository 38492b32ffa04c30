# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: FP16 was asked for. Was it built?
#
# Level: mid to senior · 45 minutes · only the last function needs a GPU
#
# In September 2026 a user of a detector library reported: `build_engine(fp16=True)` on TensorRT 11 logs one warning, ends
# without an error, and writes an FP32 engine (roboflow/rf-detr, issue 1453). It runs, it is right, and every benchmark of
# it is a benchmark of FP32. You write the check that stops such a build, at the three places where there is something to read:
#
# | place | what can be read | needs a GPU |
# | --- | --- | --- |
# | the ONNX model | the type of every tensor | no |
# | the parsed network | the type of every tensor that the builder gets | no |
# | the built engine | what the builder chose, by `trt.EngineInspector` | yes, to load the engine |
#
# ## The contract
#
# **A reading** is a list of pairs `(name, precision)`, one for each compute layer, in the order in which they stand. Only
# compute layers count: convolutions and matrix products. A Softmax in FP32 inside an FP16 model is good practice, and no
# finding. Precisions are the strings `"FP32"`, `"FP16"`, `"BF16"`, `"INT8"`, `"FP8"` and `"unknown"`. Names may repeat.
#
# - `model_precisions(onnx_path)`: the reading of an ONNX file. Compute nodes are `Conv`, `ConvTranspose`, `Gemm`, `MatMul`
#   and `Einsum`. The precision is the type of the tensors that the node multiplies. The name is the node's; if it has none,
#   its first output's. The models have no subgraphs, no functions and no Q/DQ nodes.
# - `network_precisions(network)`: the reading of a parsed `trt.INetworkDefinition`. Compute layers have the type `CONVOLUTION`,
#   `DECONVOLUTION`, `MATRIX_MULTIPLY` or `EINSUM`. `ValueError` if the network is weakly typed: its types decide nothing.
# - `require(reading, asked)`: returns nothing if every layer of the reading has the precision `asked`. Otherwise `ValueError`, whose text
#   holds the name and the precision of every layer that has not. An empty reading proves nothing: `ValueError` too.
# - `build_checked(onnx_path, engine_path, asked="FP16")`: builds and writes the plan, or says why not. `asked` is `"FP16"` or
#   `"FP32"`, else `ValueError`.
#     - Where `trt.BuilderFlag` has `FP16`, set it if FP16 is asked; the model may then be FP32 or FP16.
#     - Where it has not, the model alone decides: `ValueError`, as from `require`, if a compute node is not in `asked`.
#     - A model that is not FP32 throughout cannot be built for `"FP32"`, in any release: `ValueError` likewise.
#     - `ValueError` with the parser's words if it refuses the model. After any error nothing was built or written.
#     - Build once, by `build_serialized_network` and with `trt.ProfilingVerbosity.DETAILED`: without it nobody can look into the engine later.
#     - The models have fixed shapes.
# - `read_inspector(text)`: the reading of the JSON that the inspector gives. A compute layer's `LayerType` contains, in any case,
#   `conv`, `gemm`, `matmul`, `matrixmultiply` or `correlation`. Its precision stands in the first input's `Format/Datatype`; where that says
#   `N/A`, in the `Type` of its `Weights`, if it has any; else it is `"unknown"`. A layer whose
#   `LayerType` contains `myelin` is a whole region: only its edge can be seen, so it is listed, as `"unknown"`. `ValueError` if
#   the text is no JSON, has no layers, or only their names. Beware: 8.6.0 writes control characters into it as they are.
# - `engine_precisions(engine)`, on a GPU: the reading of a loaded engine, whose inputs may be dynamic.

# %%
try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

import os
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

print("FP16 can be asked of the builder here:", hasattr(trt.BuilderFlag, "FP16"))

# %% tags=["nbval-ignore-output"]
print(trt.__name__, trt.__version__)

# %% [markdown]
# ## Models to look at
#
# Four convolutions. Each may have a type of its own; where it changes, a `Cast` stands between.

# %%
TYPES = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16}


def four_convolutions(path, stem="FP32", body="FP32", neck="FP32", head="FP32", io="FP32"):
    """Writes an ONNX model with one input (8, 3, 56, 56) of type `io` and returns its path."""
    draw, nodes, weights, now, have = np.random.default_rng(7), [], [], "image", io
    for name, kind, cin, cout in [("stem", stem, 3, 64), ("body", body, 64, 128), ("neck", neck, 128, 128), ("head", head, 128, 64)]:
        if kind != have:
            nodes.append(helper.make_node("Cast", [now], [f"{name}_in"], f"{name}_cast", to=TYPES[kind]))
            now, have = f"{name}_in", kind
        w = draw.normal(0, (cin * 9) ** -0.5, (cout, cin, 3, 3)).astype("f2" if kind == "FP16" else "f4")
        weights.append(numpy_helper.from_array(w, f"{name}_w"))
        nodes += [helper.make_node("Conv", [now, f"{name}_w"], [f"{name}_y"], name, pads=[1, 1, 1, 1]),
                  helper.make_node("Relu", [f"{name}_y"], [f"{name}_r"], f"{name}_relu")]
        now = f"{name}_r"
    nodes.append(helper.make_node("Cast", [now], ["features"], "last_cast", to=TYPES[io]))
    graph = helper.make_graph(nodes, "four", [helper.make_tensor_value_info("image", TYPES[io], [8, 3, 56, 56])],
                              [helper.make_tensor_value_info("features", TYPES[io], [8, 64, 56, 56])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


folder = tempfile.mkdtemp()
half = dict(stem="FP16", body="FP16", neck="FP16", head="FP16")
models = {
    "all FP32": four_convolutions(f"{folder}/fp32.onnx"),
    "all FP16": four_convolutions(f"{folder}/fp16.onnx", **half, io="FP16"),
    "FP16, inputs and outputs kept FP32": four_convolutions(f"{folder}/kept.onnx", **half),
    "FP16 at the edges alone": four_convolutions(f"{folder}/edges.onnx", io="FP16"),
    "FP16 with an FP32 island": four_convolutions(f"{folder}/island.onnx", **half | dict(neck="FP32")),
}
for label, path in models.items():
    graph = onnx.load(path).graph
    print(f"{label}: input {TensorProto.DataType.Name(graph.input[0].type.tensor_type.elem_type)}, {os.path.getsize(path)} bytes")

# %% [markdown]
# The type of the input says nothing of what is computed inside: it misleads in the third model and in the fourth.

# %% [markdown] tags=["hint"]
# **Hint 1.** `onnx.shape_inference.infer_shapes(model)` adds the type of every tensor between the nodes to `graph.value_info`. The types
# of inputs, outputs and initializers stand elsewhere. A network layer gives its tensors by `layer.get_input(i)`, with a
# `dtype`; `layer.precision` was removed in TensorRT 11.

# %% [markdown] tags=["hint"]
# **Hint 2.** What a node multiplies is its first input. Look at the initializers' type alone and a weight that is stored in FP16 and cast
# up before its Conv fools you. Since 11.0 every network is strongly typed; before, only one made with the flag
# `STRONGLY_TYPED`, which 8.6 lacks. `getattr(trt.BuilderFlag, "FP16", None)` is None where the flag is gone.

# %% [markdown] tags=["hint"]
# **Hint 3.** The inspector: `engine.create_engine_inspector()`, then
# `inspector.get_engine_information(trt.LayerInformationFormat.JSON)`; Python's reader takes control characters with `strict=False`. Releases write
# `Row major linear FP16 format`, `Half`, `Float`, `BFloat16`: look for BFloat16 before Float. With dynamic inputs a format may be `N/A due to dynamic shapes`, also
# after `inspector.execution_context` was given a context whose input shapes are set but not inferred (`infer_shapes`); `"Weights": {"Type": "Half", …}` still tells.

# %% [markdown]
# ## Before the build

# %%
# graded cell 1: keep this line
import os

import onnx

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def model_precisions(onnx_path):
    """[(name, precision), ...] of the nodes of an ONNX file that convolve or multiply matrices."""
    # <answer>
    graph = onnx.shape_inference.infer_shapes(onnx.load(onnx_path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    spoken = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.BFLOAT16: "BF16"}
    # All operands of these operators have one type, so the first input speaks for the weights that it meets.
    return [(node.name or node.output[0], spoken.get(types.get(node.input[0]), "unknown"))
            for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")]
    # </answer>
    # stub: raise NotImplementedError("model_precisions is not written yet")


def network_precisions(network):
    """[(name, precision), ...] of the layers of a strongly typed trt.INetworkDefinition that convolve or multiply matrices."""
    # <answer>
    if hasattr(trt.BuilderFlag, "FP16"):              # 8.6 to 10.16: precision is the builder's choice, unless ...
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        strong = typed is not None and network.get_flag(typed)   # TensorRT since 10.0
        if not strong:
            raise ValueError("this network is weakly typed: flags and timing decide the precision, its tensors do not. Read the engine")
    compute = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.EINSUM)
    spoken = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8", "FP8": "FP8"}
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [(layer.name, spoken.get(layer.get_input(0).dtype.name, "unknown")) for layer in layers if layer.type in compute]
    # </answer>
    # stub: raise NotImplementedError("network_precisions is not written yet")


def require(reading, asked):
    """Raises ValueError unless the reading has layers and every one of them has the precision asked."""
    # <answer>
    if not reading:
        raise ValueError(f"no compute layer was seen, so nothing shows that {asked} was built")
    missed = [(name, precision) for name, precision in reading if precision != asked]
    if missed:
        raise ValueError(f"{asked} was asked for, and {len(missed)} of {len(reading)} compute layers have it not: "
                         + ", ".join(f"{name} ({precision})" for name, precision in missed))
    # </answer>
    # stub: raise NotImplementedError("require is not written yet")


def build_checked(onnx_path, engine_path, asked="FP16"):
    """Builds the ONNX file in the precision asked and writes the plan, or raises before anything is built."""
    # <answer>
    if asked not in ("FP16", "FP32"):
        raise ValueError(f"asked is {asked!r}: 'FP16' or 'FP32'")
    flag = getattr(trt.BuilderFlag, "FP16", None)     # gone in 11 and in TensorRT for RTX
    if asked == "FP32" or flag is None:
        require(model_precisions(onnx_path), asked)   # no flag would change it: the types of the model are what is built
    with open(onnx_path, "rb") as file:
        model = file.read()

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise ValueError(f"TensorRT cannot read {onnx_path}: " + "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    if flag is None:
        require(network_precisions(network), asked)   # the parser made of it what the model said

    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if asked == "FP16" and flag is not None:
        config.set_flag(flag)                         # a permission: the builder may still find FP32 faster
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT found no engine for {onnx_path}: the log says why")
    with open(f"{engine_path}.part", "wb") as file:
        file.write(plan)
    os.replace(f"{engine_path}.part", engine_path)
    # </answer>
    # stub: raise NotImplementedError("build_checked is not written yet")


# %% [markdown]
# What it says of the five models:

# %%
for label, path in models.items():
    try:
        require(model_precisions(path), "FP16")
        print(f"{label}: all compute in FP16")
    except ValueError as error:
        print(f"{label}: {error}")

# %% [markdown]
# And the build of issue 1453. This cell was run with TensorRT for RTX, which has no FP16 flag either:

# %%
plan_path = f"{folder}/asked_fp16.engine"
try:
    build_checked(models["all FP32"], plan_path, "FP16")
    print("built:", os.path.exists(plan_path))
except ValueError as error:
    print(f"refused: {error}")
    print("an engine was written:", os.path.exists(plan_path))

# %% [markdown]
# The repair is to convert the model, here with its inputs and outputs kept FP32:

# %%
build_checked(models["FP16, inputs and outputs kept FP32"], plan_path, "FP16")
build_checked(models["all FP32"], f"{folder}/asked_fp32.engine", "FP32")
print("the FP16 plan is smaller:", os.path.getsize(plan_path) < 0.8 * os.path.getsize(f"{folder}/asked_fp32.engine"))

# %% [markdown]
# ## After the build

# %%
# graded cell 2: keep this line
import json


def read_inspector(text):
    """[(name, precision), ...] of the compute layers in the JSON text of trt.EngineInspector.get_engine_information."""
    # <answer>
    try:
        layers = json.loads(text, strict=False)["Layers"]    # strict JSON has no raw control characters, 8.6.0 writes them
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"this is no engine information in JSON: {str(text)[:60]!r}") from None
    if not layers or not all(isinstance(layer, dict) and "LayerType" in layer for layer in layers):
        raise ValueError("the engine tells no more than names: build it with trt.ProfilingVerbosity.DETAILED")

    def spoken(words):
        for name, spellings in (("BF16", ("BF16", "BFLOAT16")), ("FP16", ("FP16", "HALF")), ("FP32", ("FP32", "FLOAT")),
                                ("INT8", ("INT8",)), ("FP8", ("FP8",))):       # BFLOAT16 contains FLOAT: it has to come first
            if any(spelling in words.upper() for spelling in spellings):
                return name
        return "unknown"                               # "N/A due to dynamic shapes", and whatever a later release may write

    found = []
    for layer in layers:
        kind, precision = layer["LayerType"].lower(), "unknown"
        if any(word in kind for word in ("conv", "gemm", "matmul", "matrixmultiply", "correlation")):
            if layer.get("Inputs"):
                precision = spoken(layer["Inputs"][0].get("Format/Datatype", ""))
            if precision == "unknown":                 # dynamic shapes: what it multiplies by is still known
                precision = spoken(layer.get("Weights", {}).get("Type", ""))
            found.append((layer["Name"], precision))
        elif "myelin" in kind:
            found.append((layer["Name"], precision))
    return found
    # </answer>
    # stub: raise NotImplementedError("read_inspector is not written yet")


def engine_precisions(engine):
    """[(name, precision), ...] of the compute layers of a loaded trt.ICudaEngine that was built with detailed verbosity."""
    # <answer>
    context = engine.create_execution_context()
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in tuple(engine.get_tensor_shape(name)):
            _, best, _ = engine.get_tensor_profile_shape(name, 0)
            context.set_input_shape(name, best)        # the formats of a dynamic engine follow from the shapes
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return read_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    # </answer>
    # stub: raise NotImplementedError("engine_precisions is not written yet")


# %% [markdown]
# From an engine that TensorRT 8.6.0 built on an H100, with the flag FP16 set: two of its eight layers, shortened. The first has the control
# character, written here as `\x1e`. The second is what the flag did not bring about:

# %%
text = """{"Layers": [{
  "Name": "/stem/Conv + /stem/BatchNorm + /stem/Relu",
  "LayerType": "CaskConvolution",
  "Inputs": [{"Name": "Reformatted Input Tensor 0", "Dimensions": [8,3,32,32],
    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
  "Outputs": [{"Name": "stem.relu", "Dimensions": [8,64,32,32],
    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
  "Weights": {"Type": "Half", "Count": 1728},
  "Metadata": "[ONNX Layer: /stem/Conv]\x1e[ONNX Layer: /stem/BatchNorm]\x1e[ONNX Layer: /stem/Relu]"
},{
  "Name": "/head/Gemm",
  "LayerType": "CaskGemmConvolution",
  "Inputs": [{"Name": "Reformatted Input Tensor 0 to /head/Gemm", "Dimensions": [8,64,1,1], "Format/Datatype": "Row major linear FP32"}],
  "Outputs": [{"Name": "/head/Gemm_out_tensor", "Dimensions": [8,10,1,1], "Format/Datatype": "Row major linear FP32"}],
  "Weights": {"Type": "Float", "Count": 640},
  "Metadata": "[ONNX Layer: /head/Gemm]"
}], "Bindings": ["image", "scores"]}"""
try:
    require(read_inspector(text), "FP16")
except ValueError as error:
    print(f"ValueError: {error}")

# %% [markdown]
# On a GPU, the engines themselves. With 8.6 to 10.16 the same FP32 model can be built with the flag and without:

# %% tags=["gpu"]
import pycuda.autoprimaryctx  # noqa: F401  makes a CUDA context current


def load(path):
    with open(path, "rb") as file:
        return trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(file.read())


print(trt.__name__, trt.__version__)
for label, asked in [("all FP32", "FP32"), ("all FP32", "FP16"), ("FP16, inputs and outputs kept FP32", "FP16")]:
    print(f"\nmodel: {label}; asked: {asked}")
    try:
        build_checked(models[label], f"{folder}/gpu.engine", asked)
        reading = engine_precisions(load(f"{folder}/gpu.engine"))
        for name, precision in reading:
            print(f"  {precision:8} {name}")
        require(reading, asked)
        print("  as asked")
    except ValueError as error:
        print("  refused:", error)

# %% [markdown] tags=["answer"]
# With the flag, the builder took FP16 for all four convolutions, though the file is FP32: the file's types could not have told. The FP32
# engine is FP32 too, and its check refuses it for `last_cast`, which casts FP32 to FP32. With fixed shapes the contract lists only a region of Myelin
# with no type, and the name alone does not say whether a product is inside. So the check says that it does not know. A person looks the name up in the ONNX
# file, and takes the idle Cast out of it or lets the gate pass that one name. The third engine has none such: its layer types are printed below.

# %% [markdown]
# What the inspector wrote of one compute layer, and of an engine that was built without detailed verbosity:

# %% tags=["gpu"]
engine = load(f"{folder}/gpu.engine")
layers = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON), strict=False)["Layers"]
print(sorted({layer["LayerType"] for layer in layers}))
one = next(layer for layer in layers if "conv" in layer["LayerType"].lower())
print(json.dumps({key: one[key] for key in ("Name", "LayerType", "Inputs", "Outputs", "Weights", "TacticName") if key in one}, indent=1))

log = trt.Logger(trt.Logger.ERROR)
maker = trt.Builder(log)
batch = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
net = maker.create_network(0 if batch is None else 1 << int(batch))
reader = trt.OnnxParser(net, log)
assert reader.parse(open(models["all FP32"], "rb").read())
quiet = maker.build_serialized_network(net, maker.create_builder_config())
try:
    engine_precisions(trt.Runtime(log).deserialize_cuda_engine(quiet))
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# And an engine with a dynamic batch: what its layers' formats say without a context, with one whose shape is set, and after the shapes were
# inferred.

# %% tags=["gpu"]
moving = onnx.load(models["all FP32"])
for value in (*moving.graph.input, *moving.graph.output):
    value.type.tensor_type.shape.dim[0].dim_param = "n"
net = maker.create_network(0 if batch is None else 1 << int(batch))
reader = trt.OnnxParser(net, log)
assert reader.parse(moving.SerializeToString())
settings, sizes = maker.create_builder_config(), maker.create_optimization_profile()
settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
sizes.set_shape("image", (1, 3, 56, 56), (8, 3, 56, 56), (16, 3, 56, 56))
settings.add_optimization_profile(sizes)
moving_engine = trt.Runtime(log).deserialize_cuda_engine(maker.build_serialized_network(net, settings))


def formats(inspector):
    told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON), strict=False)["Layers"]
    return sorted({layer["Inputs"][0]["Format/Datatype"] for layer in told if "conv" in layer["LayerType"].lower()})


print("no context:", formats(moving_engine.create_engine_inspector()))
shaped = moving_engine.create_execution_context()
shaped.set_input_shape("image", (8, 3, 56, 56))
looking = moving_engine.create_engine_inspector()
looking.execution_context = shaped
print("a context with its shape set:", formats(looking))
print("tensors without a shape:", shaped.infer_shapes())
looking = moving_engine.create_engine_inspector()
looking.execution_context = shaped
print("after the shapes were inferred:", formats(looking))
print("read:", engine_precisions(moving_engine))

# %% [markdown] tags=["answer"]
# In 8.6.0 a context whose shape is set was not enough: the formats came after `infer_shapes()`, from a fresh inspector. The reading went by the weights
# and was right without. Call `infer_shapes()` before you inspect where a layer has no weights, as a product of two activations. The logged error belongs to the last
# call: `shaped` holds the engine's only profile, so the context that `engine_precisions` makes there has none (-1). See
# [streams and contexts](../../book/03_tensorrt/questions/22_streams_and_contexts.md).

# %% [markdown] tags=["answer"]
# ## How the request gets lost
#
# | way | what the release does | where it is caught |
# | --- | --- | :-- |
# | nobody set the flag (8.6 to 10.16) | builds FP32, which is the default | engine |
# | the flag was asked for by name, and is gone (11, TensorRT for RTX) | the code falls back, with a warning at best | model, before the build |
# | the network is strongly typed and the model FP32 | builds the types it was given | model, network |
# | inputs and outputs FP16, casts right behind them | computes in FP32, and copies half as many bytes in and out | model; the input's type says the opposite |
# | weights stored in FP16, cast up before use | a smaller file, the same FP32 arithmetic | model, by the node's operand; the initializer's type says the opposite |
# | one block was kept FP32, or a converter blocked the one operator that has the work | mixed, as the types say | each, if every layer is named and none is averaged away |
# | the flag is set, FP32 was the fastest tactic (8.6 to 10.16) | the flag permits, it does not force | engine alone |
#
# The opposite mistake is the model that a converter made with inputs and outputs kept FP32: it looks like FP32 from outside, and computes in FP16.
#
# ## Why each step is there
#
# | step | what fails without it |
# | --- | --- |
# | `infer_shapes` | most exporters write no types between the nodes: everything is unknown |
# | initializers among the types | `MatMul(weight, x)` is unknown |
# | only compute layers | Softmax and normalization, rightly in FP32, raise false alarms, and the next person turns the check off |
# | pairs, not a dictionary | ONNX and the inspector both may repeat a name; a dictionary then hides a layer |
# | refusing an empty reading | an engine without detailed verbosity passes, having shown nothing |
# | `"unknown"` is not what was asked | a Myelin region of 8.6 passes on the type of its edge |
# | `DETAILED` at the build | the plan holds names alone, and cannot be asked again |
# | the weights' type, where the format is `N/A` | nothing is known of a dynamic engine |
# | `strict=False` | the JSON of 8.6.0 cannot be read at all |
#
# ## What it costs
#
# The ONNX reading is one load and one inference of types: no GPU, no build. Detailed verbosity keeps names, formats and
# parameters in the plan; it is meant for inspection and profiling, so look at what your plan reveals before you ship it.
# The engine reading may make a context, with its activation memory: do it once after the build, in CI, not in the server.

# %% [markdown] tags=["answer"]
# ## What was run
#
# The cells above were run with TensorRT 8.6.0 on an H100; their box says which run. The grader was run there too, and five of its tests failed, each by a
# wrong expectation of the grader: four took every listed layer for a convolution, and met the region that 8.6.0 made of an idle Identity or Cast;
# one wanted the parser of 8.6 to name the operator that it refuses, which it does not. Both were mended, and a test without a GPU judges the readings that
# 8.6.0 gave. The mended tests have not been rerun on a GPU.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **Can you not just compare the sizes of the plans?** As a smoke test, yes: weights in FP16 take half the bytes. It misses an island, it misses
# activations, it is fooled by weights that are stored small, and a plan also holds kernels. It tells that something is wrong, not where.
#
# **Is an FP16 input format the same as FP16 arithmetic?** It says what is multiplied. In what the sums are kept is the kernel's matter: the tactic's
# name hints at it, in a form that is not documented. And FP32 here includes TF32, which `trt.BuilderFlag.TF32` allows by default: see
# [the first exercise](ex01_first_engine.ipynb).
#
# **Which share of the layers has to be FP16?** Do not count layers: one MatMul can hold most of the multiply-adds. If some
# have to stay FP32 for accuracy, list them by name in the check, and require the rest.
#
# **On 8.6 the flag was set and one layer is FP32. Is that a bug?** Not by itself. The builder times both and keeps the faster, reformatting
# included. To force it, until 10.16, set the layer's `precision` and the builder flag `OBEY_PRECISION_CONSTRAINTS`: the build then fails
# rather than choose otherwise. TensorRT 11 has neither, and takes the model's types.
#
# **Where does this check belong?** In the build script, between build and publication, and its result beside the plan. A benchmark
# that reports FP16 should carry the reading of the engine that it timed.

# %% tags=["learner"]
from course.check import check

check("03_tensorrt/ex07_fp16_asked_fp32_built")
