"""Suites for any machine: the digits MLP on the CPU, through NumPy, ONNX Runtime and, where it is installed, torch."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from course import ROOT
from course.bench import core, count, models

MODEL = ROOT / "models/digits_mlp/digits_mlp.onnx"


def _float64(images):
    """The independent answer: the network in NumPy, float64."""
    weights = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in onnx.load(MODEL).graph.initializer}
    first, second = (w if w.shape[0] in (784, 128) and w.shape[1] in (128, 10) and w.shape[0] > w.shape[1] else w.T
                     for w in weights.values() if w.ndim == 2)
    bias = [w for w in weights.values() if w.ndim == 1]
    bias.sort(key=len, reverse=True)
    hidden = np.maximum(images.astype(np.float64) @ first + bias[0], 0)
    score = np.exp(hidden @ second + bias[1])
    return score / score.sum(1, keepdims=True)


def run(way, batch):
    images = models.inputs("mlp")
    given = np.ascontiguousarray(images[:batch])
    labels = np.load(ROOT / "models/digits_mlp/heldout.npz")["labels"]
    last = [None]
    how = {}
    if way == "ort":
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        session = ort.InferenceSession(str(MODEL), settings, providers=["CPUExecutionProvider"])

        def call():
            last[0] = session.run(None, {"pixels": given})[0]
        how = {"intra_op_num_threads": 1}
    elif way == "numpy":
        weights = [numpy_helper.to_array(t) for t in onnx.load(MODEL).graph.initializer]
        first, second = (np.ascontiguousarray(w if w.shape[0] > w.shape[1] else w.T) for w in weights if w.ndim == 2)
        bias = sorted((w for w in weights if w.ndim == 1), key=len, reverse=True)

        def call():
            score = np.exp(np.maximum(given @ first + bias[0], 0) @ second + bias[1])
            last[0] = score / score.sum(1, keepdims=True)
    else:
        import torch

        torch.set_num_threads(1)
        module, x = models.torch_model("mlp"), torch.from_numpy(given)

        def call():
            with torch.inference_mode():
                last[0] = module(x).numpy()
        how = {"torch_num_threads": 1}
    series, timing = core.time_calls(call, lambda: None, warm_up_s=0.2, rounds=5, blocks=12, singles=24, longest_s=4.0)
    found = count.count_file(MODEL, batch)
    return core.Result(series, {"counts": {"operations": found.operations, "weight_bytes": found.weights, "input_bytes": found.inputs,
                                           "output_bytes": found.outputs, "unfused_bytes": found.unfused, "nodes": found.nodes}},
                       models.accuracy("mlp", "fp32", last[0], _float64(images), labels), {}, {**how, **timing})


def cases():
    titles = {"numpy": "NumPy, as many threads as its BLAS takes", "ort": "ONNX Runtime, one thread", "torch": "torch eager, one thread"}
    ways = {"numpy": ("numpy",), "ort": ("onnxruntime",), "torch": ("torch",)}
    return [core.Case(f"mlp-fp32-b{batch}-{way}", f"MLP 784-128-10 on the CPU, batch {batch}: {titles[way]}",
                      {"model": "mlp", "precision": "fp32", "batch": batch, "way": way}, lambda w=way, b=batch: run(w, b), needs)
            for batch in models.BATCHES for way, needs in ways.items()]
