"""The session's own optimizer prepares, a StaticQuantConfig quantizes, and one calibration serves all tries of the search."""
import contextlib
import io
import itertools
import os
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (CalibrationDataReader, CalibrationMethod, QuantType, StaticQuantConfig, create_calibrator, save_tensors_data)
from onnxruntime.quantization import quantize as run_config
from onnxruntime.quantization import quantize_static


def prepare(onnx_path, prepared_path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = os.path.join(folder, "basic.onnx")
        try:
            ort.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(str(error)) from None
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(options.optimized_model_filepath), data_prop=True), prepared_path)


class Given(CalibrationDataReader):
    def __init__(self, batches):
        self.batches, self.place = batches, 0

    def get_next(self):
        self.place += 1
        return self.batches[self.place - 1] if self.place <= len(self.batches) else None


def names_of(path):
    graph = onnx.load(path).graph
    stored = [t.name for t in graph.initializer]
    return [n.name for n in graph.node if n.op_type in {"Conv", "Gemm", "MatMul"} and n.input[1] in stored]


def checked(path, batches, percentile, exclude):
    batches = list(batches)
    if not batches:
        raise ValueError("no batches")
    for batch in batches:
        for name in batch:
            if np.isnan(batch[name]).any() or np.isinf(batch[name]).any():
                raise ValueError(f"{name} is not finite")
    if percentile is not None and (percentile <= 0 or percentile > 100):
        raise ValueError("percentile")
    unknown = set(exclude) - set(names_of(path))
    if unknown:
        raise ValueError(f"no such nodes: {unknown}")
    return batches


def collect(path, batches, percentile, cache):
    """One histogram over all batches: each is collected by itself, so they may differ in size."""
    method = CalibrationMethod.MinMax if percentile is None else CalibrationMethod.Percentile
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(str(path), None, os.path.join(folder, "a.onnx"), method, extra_options={} if percentile is None else {"percentile": percentile})
        for batch in sorted(batches, key=lambda b: max(np.abs(v).max() for v in b.values())):      # the quietest sets the width of the bins
            calibrator.collect_data(Given([batch]))
        save_tensors_data(calibrator.compute_data(), cache)
    return method


def quantize(prepared_path, quantized_path, batches, percentile=None, exclude=()):
    batches = checked(prepared_path, batches, percentile, exclude)
    with tempfile.TemporaryDirectory() as folder:
        cache = os.path.join(folder, "ranges.json")
        method = collect(prepared_path, batches, percentile, cache)
        quantize_static(prepared_path, quantized_path, None, per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8, nodes_to_exclude=list(exclude),
                        calibrate_method=method, calibration_cache_path=cache)


def quantize_within(prepared_path, quantized_path, batches, validation, limit, percentile=None, most=2):
    batches = checked(prepared_path, batches, percentile, ())
    session = ort.InferenceSession(str(prepared_path), providers=["CPUExecutionProvider"])
    right, names = session.run(None, validation)[0].argmax(-1), names_of(prepared_path)
    whole = [{k: v[i:i + 1] for k, v in b.items()} for b in batches for i in range(len(next(iter(b.values()))))]
    for size in range(most + 1):
        for kept in itertools.combinations(names, len(names) - size):                              # what is quantized, not what is not
            config = StaticQuantConfig(Given(whole), CalibrationMethod.MinMax if percentile is None else CalibrationMethod.Percentile, activation_type=QuantType.QUInt8,
                                       nodes_to_exclude=[n for n in names if n not in kept], per_channel=True, reduce_range=True,
                                       extra_options={} if percentile is None else {"CalibPercentile": percentile})
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "q.onnx")
                with contextlib.redirect_stdout(io.StringIO()):
                    run_config(str(prepared_path), path, config)
                got = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, validation)[0].argmax(-1)
                if np.mean(got != right) <= limit:
                    onnx.save(onnx.load(path), quantized_path)
                    return [n for n in names if n not in kept]
    raise RuntimeError(f"error above {limit} with {most} nodes in float")
