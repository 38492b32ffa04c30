"""Runs the model by onnx.reference, keeps histograms, and stores the weights as int8 in front of DequantizeLinear."""
import math

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

BINS = 8192


class Histogram:
    """Counts of magnitudes; the range doubles when a value does not fit, and neighbouring bins are joined."""

    def __init__(self):
        self.top, self.largest, self.counts = 0.0, 0.0, np.zeros(BINS, np.int64)

    def add(self, values):
        peak = float(values.max(initial=0))
        self.largest = max(self.largest, peak)
        if self.top == 0 and peak:
            self.top = peak
        elif self.top == 0:
            self.counts[0] += values.size
            return
        while peak > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.top *= 2
        self.counts += np.histogram(values, BINS, (0, self.top))[0]

    def percentile(self, share):
        if share == 100 or self.top == 0:
            return self.largest
        place = int(np.searchsorted(np.cumsum(self.counts), math.ceil(self.counts.sum() * share / 100)))
        return min((place + 0.5) * self.top / BINS, self.largest) if place else 0.0


def calibrate(onnx_path, batches, percentile=100.0):
    if not (percentile > 0 and percentile <= 100):
        raise ValueError("percentile has to be in (0, 100]")
    model = onnx.load(onnx_path)
    weights = set(t.name for t in model.graph.initializer)
    names = [o for n in model.graph.node for o in n.output if o]
    while len(model.graph.output):
        model.graph.output.pop()
    for name in names:
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    evaluator, kept = ReferenceEvaluator(model), {}
    for feed in batches:
        tensors = dict(feed)
        tensors.update(zip(names, evaluator.run(None, feed)))
        for name, value in tensors.items():
            value = np.asarray(value)
            if name in weights or value.dtype != np.float32:
                continue
            if np.isnan(value).any() or np.isinf(value).any():
                raise ValueError(f"{name} is not finite")
            kept.setdefault(name, Histogram()).add(np.abs(value).ravel())
    if len(kept) == 0:
        raise ValueError("no batches")
    return {name: histogram.percentile(percentile) for name, histogram in kept.items()}


def insert_qdq(onnx_path, quantized_path, ranges, skip=(), also=()):
    model = onnx.load(onnx_path)
    opset, = (entry.version for entry in model.opset_import if not entry.domain)
    if opset < 13:
        raise ValueError(f"opset {opset} is below 13")
    graph = model.graph
    names = [n.name for n in graph.node]
    wrong = [n for n in list(skip) + [n for n, _ in also] if n not in names]
    if wrong:
        raise ValueError(f"no such nodes: {wrong}")
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    asked = [tuple(a) for a in also]
    activations, ours = {}, {}
    for i, n in enumerate(graph.node):
        if n.op_type not in ("Conv", "Gemm", "MatMul") or n.name in skip or n.input[1] not in constants or n.input[0] in constants:
            pass
        elif constants[n.input[1]].dtype == np.float32 and not (n.op_type == "MatMul" and constants[n.input[1]].ndim != 2):
            ours[i] = n
        for place, tensor in enumerate(n.input):
            if (i in ours and place == 0) or (n.name, place) in asked:
                activations.setdefault(tensor, []).append((n, place))
    for tensor in activations:
        if tensor not in ranges or not 0 <= ranges[tensor] < float("inf"):
            raise ValueError(f"{tensor} has no usable range")
    constant = {}

    def put(array, name):
        constant[name] = array
        return name
    new = []
    for i, n in ours.items():
        weight = constants[n.input[1]].astype(np.float64)
        if n.op_type == "Gemm" and any(a.name == "transB" and a.i == 1 for a in n.attribute) or n.op_type == "Conv":
            axis = 0
        else:
            axis = 1
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        scale = (np.abs(rows).max(1) / 127).astype(np.float32)
        scale[scale == 0] = 1
        shape = [1] * weight.ndim
        shape[axis] = -1
        whole = np.rint(weight / scale.reshape(shape)).clip(-127, 127).astype(np.int8)
        new.append(helper.make_node("DequantizeLinear", [put(whole, f"dq{i}/int8"), put(scale, f"dq{i}/scale"), put(np.zeros(len(scale), np.int8), f"dq{i}/zero")],
                                    [f"dq{i}/out"], axis=axis))
        n.input[1] = f"dq{i}/out"
    zero = put(np.zeros((), np.int8), "activations/zero")
    pairs = {}
    for k, (tensor, readers) in enumerate(activations.items()):
        scale = put(np.float32(ranges[tensor] / 127 if ranges[tensor] else 1), f"q{k}/scale")
        pairs[tensor] = [helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"q{k}/int8"]),
                         helper.make_node("DequantizeLinear", [f"q{k}/int8", scale, zero], [f"q{k}/out"])]
        for n, place in readers:
            n.input[place] = f"q{k}/out"
    order = list(new)
    for value in graph.input:
        order += pairs.pop(value.name, [])
    for n in graph.node:
        order.append(n)
        for output in n.output:
            order += pairs.pop(output, [])
    del graph.node[:]
    graph.node.extend(order)
    used = {name for n in order for name in n.input} | {o.name for o in graph.output}
    left = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(left + [numpy_helper.from_array(np.asarray(a), name) for name, a in constant.items()])
    onnx.save(model, quantized_path)


def build_engine(quantized_path, engine_path, batches=(1, 8, 32)):
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    flags = 1 if "EXPLICIT_BATCH" in trt.NetworkDefinitionCreationFlag.__members__ else 0
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(quantized_path)) or not network.num_outputs:
        raise ValueError("the parser refused it")
    config = builder.create_builder_config()
    if "INT8" in trt.BuilderFlag.__members__:
        config.flags |= 1 << int(trt.BuilderFlag.__members__["INT8"])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for tensor in [network.get_input(i) for i in range(network.num_inputs)]:
        low, best, high = [[b] + list(tensor.shape)[1:] for b in batches]
        profile.set_shape(tensor.name, low, best, high)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if not plan:
        raise RuntimeError("no engine")
    with open(engine_path, "wb") as f:
        f.write(memoryview(plan))
