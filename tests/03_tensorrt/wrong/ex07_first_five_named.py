"""Names five of the layers that were missed, and leaves the others out.

fails: test_require_refuses
says: does not mention
"""
import os

import onnx

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def model_precisions(onnx_path):
    """[(name, precision), ...] of the nodes of an ONNX file that convolve or multiply matrices."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(onnx_path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    spoken = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.BFLOAT16: "BF16"}

    return [(node.name or node.output[0], spoken.get(types.get(node.input[0]), "unknown"))
            for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")]


def network_precisions(network):
    """[(name, precision), ...] of the layers of a strongly typed trt.INetworkDefinition that convolve or multiply matrices."""
    if hasattr(trt.BuilderFlag, "FP16"):              # 8.6 to 10.16: precision is the builder's choice, unless ...
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        strong = typed is not None and network.get_flag(typed)
        if not strong:
            raise ValueError("this network is weakly typed: flags and timing decide the precision, its tensors do not. Read the engine")
    compute = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.EINSUM)
    spoken = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8", "FP8": "FP8"}
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [(layer.name, spoken.get(layer.get_input(0).dtype.name, "unknown")) for layer in layers if layer.type in compute]


def require(reading, asked):
    """Raises ValueError unless the reading has layers and every one of them has the precision asked."""
    if not reading:
        raise ValueError(f"no compute layer was seen, so nothing shows that {asked} was built")
    missed = [(name, precision) for name, precision in reading if precision != asked]
    if missed:
        raise ValueError(f"{asked} was asked for, and {len(missed)} of {len(reading)} compute layers have it not: "
                         + ", ".join(f"{name} ({precision})" for name, precision in missed[:5]))


def build_checked(onnx_path, engine_path, asked="FP16"):
    """Builds the ONNX file in the precision asked and writes the plan, or raises before anything is built."""
    if asked not in ("FP16", "FP32"):
        raise ValueError(f"asked is {asked!r}: 'FP16' or 'FP32'")
    flag = getattr(trt.BuilderFlag, "FP16", None)
    if asked == "FP32" or flag is None:
        require(model_precisions(onnx_path), asked)
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
        require(network_precisions(network), asked)

    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if asked == "FP16" and flag is not None:
        config.set_flag(flag)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT found no engine for {onnx_path}: the log says why")
    with open(f"{engine_path}.part", "wb") as file:
        file.write(plan)
    os.replace(f"{engine_path}.part", engine_path)

import json


def read_inspector(text):
    """[(name, precision), ...] of the compute layers in the JSON text of trt.EngineInspector.get_engine_information."""
    try:
        layers = json.loads(text, strict=False)["Layers"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"this is no engine information in JSON: {str(text)[:60]!r}") from None
    if not layers or not all(isinstance(layer, dict) and "LayerType" in layer for layer in layers):
        raise ValueError("the engine tells no more than names: build it with trt.ProfilingVerbosity.DETAILED")

    def spoken(words):
        for name, spellings in (("BF16", ("BF16", "BFLOAT16")), ("FP16", ("FP16", "HALF")), ("FP32", ("FP32", "FLOAT")),
                                ("INT8", ("INT8",)), ("FP8", ("FP8",))):
            if any(spelling in words.upper() for spelling in spellings):
                return name
        return "unknown"                               # "N/A due to dynamic shapes", and whatever a later release may write

    found = []
    for layer in layers:
        kind, precision = layer["LayerType"].lower(), "unknown"
        if any(word in kind for word in ("conv", "gemm", "matmul", "matrixmultiply", "correlation")):
            if layer.get("Inputs"):
                precision = spoken(layer["Inputs"][0].get("Format/Datatype", ""))
            if precision == "unknown":
                precision = spoken(layer.get("Weights", {}).get("Type", ""))
            found.append((layer["Name"], precision))
        elif "myelin" in kind:
            found.append((layer["Name"], precision))
    return found


def engine_precisions(engine):
    """[(name, precision), ...] of the compute layers of a loaded trt.ICudaEngine that was built with detailed verbosity."""
    context = engine.create_execution_context()
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in tuple(engine.get_tensor_shape(name)):
            _, best, _ = engine.get_tensor_profile_shape(name, 0)
            context.set_input_shape(name, best)
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return read_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
