"""Carries types through the graph itself, without shape inference; reads the network through its tensors; one layer of the engine at a time."""
import json
import re
from pathlib import Path

import onnx

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

NAMES = {1: "FP32", 10: "FP16", 16: "BF16"}
PATTERNS = [(re.compile(pattern, re.IGNORECASE), name) for pattern, name in
            [(r"\bb(f|float)16\b", "BF16"), (r"\b(fp16|half)\b", "FP16"), (r"\b(fp32|float)\b", "FP32"), (r"\bint8\b", "INT8"), (r"\bfp8\b", "FP8")]]


def model_precisions(onnx_path):
    graph, known, found = onnx.load(onnx_path).graph, {}, []
    for tensor in graph.initializer:
        known[tensor.name] = tensor.data_type
    for value in graph.input:
        known[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        kind = next((known[name] for name in node.input if name in known), None)
        if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"}:
            found += [(node.name if node.name else node.output[0], NAMES.get(kind, "unknown"))]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                kind = attribute.i
            if node.op_type == "Constant" and attribute.name == "value":
                kind = attribute.t.data_type
        for output in node.output:
            known[output] = kind
    return found


def network_precisions(network):
    if "FP16" in trt.BuilderFlag.__members__:
        typed = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
        if typed is None or not getattr(network, "flags") & (1 << int(typed)):
            raise ValueError("weakly typed")
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM"):
            kind = layer.get_output(0).dtype
            found.append([layer.name, {trt.float32: "FP32", trt.float16: "FP16"}.get(kind, kind.name)])
    return found


def require(reading, asked):
    bad = "\n".join(f"  {name}: {precision}" for name, precision in reading if precision != asked)
    if bad or len(reading) == 0:
        raise ValueError(f"not {asked}:\n{bad or '  no layer at all'}")


def build_checked(onnx_path, engine_path, asked="FP16"):
    if asked != "FP16" and asked != "FP32":
        raise ValueError(f"{asked!r} is neither FP16 nor FP32")
    permitted = asked == "FP16" and hasattr(trt.BuilderFlag, "FP16")
    if not permitted:
        require(model_precisions(onnx_path), asked)
    builder = trt.Builder(logger := trt.Logger(trt.Logger.WARNING))
    batch = trt.NetworkDefinitionCreationFlag.__members__.get("EXPLICIT_BATCH")
    network = builder.create_network(1 << int(batch) if batch is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(onnx_path).read_bytes()):
        raise ValueError("\n".join(parser.get_error(i).desc() + str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if permitted:
        config.set_flag(getattr(trt.BuilderFlag, "FP16"))
    plan = builder.build_serialized_network(network, config)
    if not plan:
        raise RuntimeError("no engine")
    Path(engine_path).write_bytes(plan)


def read_inspector(text):
    try:
        information = json.loads(re.sub(r"[\x00-\x1f]", " ", text))
    except json.JSONDecodeError as error:
        raise ValueError("not JSON") from error
    found, layers = [], information.get("Layers")
    if not layers:
        raise ValueError("no layers")
    for layer in layers:
        if isinstance(layer, str):
            raise ValueError("only names")
        if re.search("myelin", layer["LayerType"], re.IGNORECASE):
            found.append((layer["Name"], "unknown"))
        if re.search("conv|gemm|matmul|matrixmultiply|correlation", layer["LayerType"], re.IGNORECASE):
            words = layer["Inputs"][0]["Format/Datatype"]
            words = words if "N/A" not in words else layer.get("Weights", {"Type": ""})["Type"]
            found.append((layer["Name"], next((name for pattern, name in PATTERNS if pattern.search(words)), "unknown")))
    return found


def engine_precisions(engine):
    inspector, context = engine.create_engine_inspector(), engine.create_execution_context()
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in list(engine.get_tensor_shape(name)):
            context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[2])
    inspector.execution_context = context
    layers = [inspector.get_layer_information(i, trt.LayerInformationFormat.JSON) for i in range(engine.num_layers)]
    return read_inspector('{"Layers": [' + ",".join(layers) + "]}")
