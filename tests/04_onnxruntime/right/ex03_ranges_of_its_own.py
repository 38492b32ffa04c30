"""Finds the ranges itself with NumPy, exactly, and hands them to the tool as a calibration cache; searches with the most suspicious layers first."""
import os
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process


def open_session(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])


def prepare(onnx_path, prepared_path):
    try:
        open_session(onnx_path)
    except BaseException as problem:
        raise ValueError(f"{onnx_path}: {problem}")
    quant_pre_process(str(onnx_path), str(prepared_path), skip_symbolic_shape=True)


def weighted(graph):
    stored = {t.name for t in graph.initializer}
    return {n.name: n for n in graph.node if n.op_type in ("MatMul", "Gemm", "Conv") and n.input[1] in stored}


def measure(model, batches, percentile):
    graph = model.graph
    names = [v.name for v in graph.input] + [o for n in graph.node for o in n.output]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for n in graph.node for name in n.output)
    session, values = open_session(model.SerializeToString()), {name: [] for name in names}
    for batch in batches:
        for name, array in [*batch.items(), *zip([o.name for o in session.get_outputs()], session.run(None, batch))]:
            values[name].append(array.ravel())
    found = {}
    for name, parts in values.items():
        x = np.concatenate(parts)
        low, high = x.min(), x.max()
        if percentile is not None:
            bound = np.percentile(np.abs(x), percentile, method="inverted_cdf")
            low, high = max(low, -bound), min(high, bound)
        found[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return TensorsData(CalibrationMethod.MinMax, found)


def quantize(prepared_path, quantized_path, batches, percentile=None, exclude=()):
    if percentile is not None and not (0 < percentile <= 100):
        raise ValueError(f"percentile {percentile}")
    model, batches = onnx.load(prepared_path), list(batches)
    if not batches:
        raise ValueError("calibration needs data")
    if missing := [name for name in exclude if name not in weighted(model.graph)]:
        raise ValueError(f"not a node with a weight: {missing}")
    for batch in batches:
        for name, array in batch.items():
            if not np.isfinite(array.sum()):
                raise ValueError(f"input {name} has values that are not finite")
    with tempfile.TemporaryDirectory() as folder:
        cache = os.path.join(folder, "cache.json")
        save_tensors_data(measure(model, batches, percentile), cache)
        quantize_static(Path(prepared_path), Path(quantized_path), None, calibration_cache_path=cache, per_channel=True, reduce_range=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=[*exclude])


def quantize_within(prepared_path, quantized_path, batches, validation, limit, percentile=None, most=2):
    batches = list(batches)
    spread = measure(onnx.load(prepared_path), batches, percentile)
    nodes = weighted(onnx.load(prepared_path).graph)

    def suspicion(name):
        low, high = spread[nodes[name].output[0]].range_value
        return -float(high - low)

    order = sorted(nodes, key=suspicion)
    wanted = open_session(prepared_path).run(None, validation)[0].argmax(axis=-1)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, "t.onnx")
        for lists in (combinations(order, size) for size in range(most + 1)):
            for floats in lists:
                quantize(prepared_path, trial, batches, percentile, floats)
                if (open_session(trial).run(None, validation)[0].argmax(axis=-1) != wanted).mean() <= limit:
                    Path(quantized_path).write_bytes(trial.read_bytes())
                    return list(floats)
    raise RuntimeError("the limit cannot be kept")
