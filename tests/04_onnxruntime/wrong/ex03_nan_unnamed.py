"""Says that there is a NaN, and not where.

fails: test_quantize_refuses
says: does not name 'right'
"""
import onnxruntime as ort
from onnxruntime.quantization.shape_inference import quant_pre_process


def prepare(onnx_path, prepared_path):
    """Writes the model with its normalizations folded and its shapes inferred."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(onnx_path, options, providers=["CPUExecutionProvider"])      # quant_pre_process would only log it
    except Exception as error:
        raise ValueError(f"ONNX Runtime cannot load {onnx_path}: {error}") from error
    quant_pre_process(onnx_path, prepared_path, skip_symbolic_shape=True)

import contextlib
import io

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static


def quantize(prepared_path, quantized_path, batches, percentile=None, exclude=()):
    """Writes the QDQ model: uint8 activations, int8 weights per output channel, the nodes in exclude in float."""
    if percentile is not None and not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}: expected above 0 and at most 100, or None")
    known = quantizable(prepared_path)
    for name in exclude:
        if name not in known:
            raise ValueError(f"exclude has {name!r}, and the model's quantizable nodes are {known}")
    rows = []
    for batch in batches:
        for name, array in batch.items():
            if not np.isfinite(array).all():
                raise ValueError("expected finite calibration data, found NaN or infinity")
        size = len(next(iter(batch.values())))
        rows += [{name: array[i:i + 1] for name, array in batch.items()} for i in range(size)]
    if not rows:
        raise ValueError("there is no calibration batch: ranges come from data")
    how = {"calibrate_method": CalibrationMethod.MinMax}
    if percentile is not None:
        how = {"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": percentile}}
    with contextlib.redirect_stdout(io.StringIO()):                                      # the tool prints its progress
        quantize_static(prepared_path, quantized_path, Rows(rows), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8, per_channel=True, reduce_range=True, nodes_to_exclude=list(exclude), **how)


class Rows(CalibrationDataReader):
    """Gives each row once, then None. A reader that has been read is empty: every calibration needs a new one."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def get_next(self):
        return next(self.rows, None)


def quantizable(path):
    """The names of the nodes that have a weight to quantize."""
    graph = onnx.load(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in stored]

import itertools
import shutil
import tempfile
from pathlib import Path

import onnxruntime as ort


def quantize_within(prepared_path, quantized_path, batches, validation, limit, percentile=None, most=2):
    """Quantizes with the fewest nodes in float that keep the error on validation within limit; returns their names."""
    def answers(path):
        options = ort.SessionOptions()                                                   # default options, as it will be served
        options.log_severity_level = 3
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, validation)[0].argmax(-1)

    batches, names, wanted = list(batches), quantizable(prepared_path), answers(prepared_path)
    tried = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "try.onnx"
        for size in range(min(most, len(names)) + 1):
            for exclude in itertools.combinations(names, size):
                quantize(prepared_path, path, batches, percentile, exclude)
                tried[exclude] = (answers(path) != wanted).mean()
                if tried[exclude] <= limit:
                    shutil.copyfile(path, quantized_path)
                    return list(exclude)
    best = min(tried, key=tried.get)
    raise RuntimeError(f"with up to {most} nodes in float the error is {tried[best]:.3f} at best (without {list(best)}): the limit is {limit}")
