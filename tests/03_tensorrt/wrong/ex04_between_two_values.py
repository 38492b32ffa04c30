"""Leaves the percentile to NumPy's default, which interpolates.
fails: test_calibrate_percentile_of_few
says: lies between two values
"""
import numpy as np
import onnx


def calibrate(onnx_path, batches, percentile=100.0):
    """Ranges of all float32 activations over all batches: tensor name to float."""
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}: expected above 0 and at most 100")
    model = onnx.load(onnx_path)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in stored]
    outputs = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    try:
        import onnxruntime as ort
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except ImportError:
        from onnx.reference import ReferenceEvaluator
        session = ReferenceEvaluator(model)

    seen = {}
    for feed in batches:
        found = {name: np.asarray(feed[name]) for name in inputs} | dict(zip(outputs, session.run(outputs, feed)))
        for name, array in found.items():
            if isinstance(array, np.ndarray) and array.dtype == np.float32:
                if not np.isfinite(array).all():
                    raise ValueError(f"tensor {name!r} holds NaN or infinity for a calibration batch: it has no range")
                magnitudes = np.abs(array).reshape(-1)
                if percentile == 100:
                    magnitudes = magnitudes.max(initial=0, keepdims=True)
                seen.setdefault(name, []).append(magnitudes)
    if not seen:
        raise ValueError("there is no calibration batch: ranges come from data")
    return {name: float(np.percentile(np.concatenate(parts), percentile)) for name, parts in seen.items()}

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def insert_qdq(onnx_path, quantized_path, ranges, skip=(), also=()):
    """Writes the model with symmetric INT8 Q/DQ pairs: per tensor on activations, per output channel on weights."""
    model = onnx.load(onnx_path)
    graph = model.graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < 13:
        raise ValueError(f"the model has opset {opset}: a scale for each channel needs the axis that opset 13 brought")
    known = {node.name for node in graph.node}
    for name in [*skip, *(name for name, _ in also)]:
        if name not in known:
            raise ValueError(f"the model has no node named {name!r}")
    stored = {tensor.name: tensor for tensor in graph.initializer}
    pairs, nodes = {}, []

    def through_a_pair(tensor, scale, axis=None):
        """The dequantized tensor; the pair is made when it is first asked for."""
        if (tensor, axis) not in pairs:
            name = f"{tensor}_{'activation' if axis is None else f'axis{axis}'}"
            scale = np.where(scale > 0, scale, 1).astype(np.float32)
            graph.initializer.extend([numpy_helper.from_array(scale, f"{name}_scale"),
                                      numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}_zero")])
            along = {} if axis is None else {"axis": axis}
            nodes.extend([
                helper.make_node("QuantizeLinear", [tensor, f"{name}_scale", f"{name}_zero"], [f"{name}_int8"], name=f"{name}_Q", **along),
                helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale", f"{name}_zero"], [f"{name}_float"], name=f"{name}_DQ", **along)])
            pairs[tensor, axis] = f"{name}_float"
        return pairs[tensor, axis]

    def activation(tensor):
        found = ranges.get(tensor)
        if found is None or not math.isfinite(found) or found < 0:
            raise ValueError(f"tensor {tensor!r} has the range {found}: expected a finite number, 0 or more, from calibration")
        return through_a_pair(tensor, np.asarray(found / 127))

    for node in graph.node:
        kept = [(number, node.input[number]) for name, number in also if name == node.name]
        weight = stored.get(node.input[1]) if node.op_type in ("Conv", "Gemm", "MatMul") and node.name not in skip else None
        if (weight is not None and weight.data_type == TensorProto.FLOAT and node.input[0] not in stored
                and (node.op_type != "MatMul" or len(weight.dims) == 2)):
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            axis = 0 if node.op_type == "Conv" or turned else 1
            values = numpy_helper.to_array(weight)
            others = tuple(place for place in range(values.ndim) if place != axis)
            node.input[1] = through_a_pair(node.input[1], np.abs(values).max(axis=others) / np.float32(127), axis)
            kept.append((0, node.input[0]))
        for number, tensor in kept:
            node.input[number] = activation(tensor)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, quantized_path)

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def build_engine(quantized_path, engine_path, batches=(1, 8, 32)):
    """Builds an engine from a Q/DQ model and writes its plan to engine_path."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    with open(quantized_path, "rb") as file:
        if not parser.parse(file.read()) or network.num_inputs == 0:
            raise ValueError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)) or f"{quantized_path} is no ONNX model")
    config = builder.create_builder_config()
    int8 = getattr(trt.BuilderFlag, "INT8", None)
    if int8 is not None:
        config.set_flag(int8)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in batches))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT found no engine for {quantized_path}: the log says why")
    with open(engine_path, "wb") as file:
        file.write(plan)
