"""Goes by the type of a node's output, which has its operands' type; looks formats up in a table; stops at the first doubt."""
import json

import onnx
from onnx import TensorProto

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

ONNX_NAMES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16"}
WORDS = {"BFLOAT16": "BF16", "BF16": "BF16", "HALF": "FP16", "FP16": "FP16", "FLOAT": "FP32", "FP32": "FP32", "INT8": "INT8", "FP8": "FP8"}


class PrecisionMissed(ValueError):
    """Something computes in another precision than was asked for."""


def model_precisions(onnx_path):
    model = onnx.shape_inference.infer_shapes(onnx.load(onnx_path), check_type=True)
    types = {v.name: TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in list(model.graph.value_info) + list(model.graph.output)}
    reading = []
    for node in model.graph.node:
        if node.op_type not in "Conv ConvTranspose Gemm MatMul Einsum".split():
            continue
        reading.append((node.name or node.output[0], ONNX_NAMES.get(types.get(node.output[0]), "unknown")))
    return tuple(reading)


def network_precisions(network):
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    weak = hasattr(trt.BuilderFlag, "FP16")
    if weak and not (typed and network.get_flag(typed)):  # TensorRT since 10.0
        raise PrecisionMissed("a weakly typed network decides nothing")
    names = {trt.DataType.FLOAT: "FP32", trt.DataType.HALF: "FP16"}
    compute = {trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.EINSUM}
    return [(layer.name, names.get(layer.get_input(0).dtype, layer.get_input(0).dtype.name))
            for layer in (network.get_layer(i) for i in range(network.num_layers)) if layer.type in compute]


def require(reading, asked):
    reading = list(reading)
    wrong = {f"{name} in {precision}" for name, precision in reading if precision != asked}
    if wrong:
        raise PrecisionMissed("; ".join(sorted(wrong)))
    if not reading:
        raise PrecisionMissed("nothing seen")


def build_checked(onnx_path, engine_path, asked="FP16"):
    if asked not in {"FP16", "FP32"}:
        raise PrecisionMissed(f"cannot build {asked!r}")
    flag = getattr(trt.BuilderFlag, "FP16", None)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(onnx_path))
    if not parsed:
        raise PrecisionMissed(" / ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if flag is not None and asked == "FP16":
        config.set_flag(flag)
    elif flag is not None:
        require(model_precisions(onnx_path), "FP32")
    else:
        require(network_precisions(network), asked)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("no engine was found")
    with open(engine_path, "wb") as file:
        file.write(plan)


def read_inspector(text):
    try:
        layers = json.JSONDecoder(strict=False).decode(text)["Layers"]
        kinds = [layer["LayerType"].lower() for layer in layers]
    except Exception as error:
        raise PrecisionMissed(f"unreadable: {error!r}") from None
    if not kinds:
        raise PrecisionMissed("no layers")
    reading = []
    for kind, layer in zip(kinds, layers):
        if "myelin" in kind:
            reading.append((layer["Name"], "unknown"))
        elif "conv" in kind or "gemm" in kind or "matmul" in kind or "matrixmultiply" in kind or "correlation" in kind:
            words = layer["Inputs"][0]["Format/Datatype"].upper().replace(".", " ").split() + [str(layer.get("Weights", {}).get("Type")).upper()]
            reading.append((layer["Name"], next((WORDS[w] for w in words if w in WORDS), "unknown")))
    return reading


def engine_precisions(engine):
    context = engine.create_execution_context()
    inputs = [n for n in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)) if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    for name in inputs:
        if min(engine.get_tensor_shape(name)) < 0:
            context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[0])
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return read_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
