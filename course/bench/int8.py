"""INT8 beside FP16 and TF32 on an NVIDIA GPU with TensorRT 8.6 to 10: the same model, its speed and its accuracy.

Three models: ``wide``, a perceptron of four layers 4,096 wide; ``conv``, ten 3x3 convolutions in the sizes of a ResNet; both with random
weights, so that their accuracy is the distance from float64; and ``digits``, the course's trained MLP, whose accuracy is labels.
They are made on the spot, with NumPy and onnx alone. INT8 is explicit: the Q/DQ graph comes from :func:`insert_qdq`, with the ranges
of float64 activations on inputs that are not the measured ones. One engine a batch; one enqueue is one CUDA graph launch.
"""

from __future__ import annotations

import collections
import functools
import json
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.bench import core, gpu, models

WIDTH, LAYERS = 4096, 4
BATCHES = {"wide": (1, 32, 256), "conv": (1, 32), "digits": (360,)}
PRECISIONS = ("int8", "fp16", "tf32")
TITLES = {"wide": f"MLP of {LAYERS} layers {WIDTH:,} wide, random weights", "conv": "10 convolutions 3x3, 64 to 512 channels, random weights",
          "digits": "MLP 784-128-10, all 360 held-out digits"}
# (input channels, output channels, stride) of each 3x3 convolution; images are 3 x 56 x 56
CONVOLUTIONS = ((3, 64, 1), (64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))
LEVEL = 3  # builder_optimization_level: the default of 8.6


# ---- Q/DQ -----------------------------------------------------------------------------------------------------------

def weight_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a Conv's, Gemm's or MatMul's constant input 1 that belongs to the outputs: the axis of its scales."""
    if node.op_type == "Gemm":
        turned = next((a.i for a in node.attribute if a.name == "transB"), 0)
        return 0 if turned else 1
    return 0 if node.op_type == "Conv" else rank - 1


def insert_qdq(model: onnx.ModelProto, highest: dict[str, float], also: tuple[tuple[str, int], ...] = (), skip: tuple[str, ...] = (),
               stored: bool = False) -> onnx.ModelProto:
    """A copy of ``model`` with Q/DQ pairs for TensorRT: symmetric INT8, zero point 0, bias left in float.

    Each Conv, Gemm and MatMul with a constant input 1 gets one pair on its activation (per tensor, from ``highest[tensor]``) and one on its
    weight (per output channel, by the largest value). ``also`` are further (node name, input) to quantize, such as the skip input of a residual
    addition; ``skip`` are node names to leave alone. Weights stay float32 in front of their Q, or are ``stored`` as int8 without a Q.
    A Conv needs its attribute kernel_shape: the parser of 8.6 does not take it from a weight that a DequantizeLinear makes.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pairs, nodes, gone = {}, [], set()

    def pair(tensor, scale, axis=None, quantized=None):
        name = f"{tensor}_{'q' if axis is None else 'w'}"
        if name not in pairs:
            scale = np.asarray(scale, np.float32)
            graph.initializer.extend([numpy_helper.from_array(scale, f"{name}_scale"), numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}_zero")])
            along = {} if axis is None else {"axis": axis}
            if quantized is None:
                nodes.append(helper.make_node("QuantizeLinear", [tensor, f"{name}_scale", f"{name}_zero"], [f"{name}_int8"], name=f"{name}_Quantize", **along))
            else:
                graph.initializer.append(numpy_helper.from_array(quantized, f"{name}_int8"))
                gone.add(tensor)
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale", f"{name}_zero"], [f"{name}_float"], name=f"{name}_Dequantize", **along))
            pairs[name] = f"{name}_float"
        return pairs[name]

    for node in list(graph.node):
        wanted = [index for name, index in also if name == node.name]
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.name not in skip and node.input[1] in weights:
            array = numpy_helper.to_array(weights[node.input[1]])
            axis = weight_axis(node, array.ndim)
            shape = [-1 if place == axis else 1 for place in range(array.ndim)]
            scale = np.maximum(np.abs(array).max(tuple(place for place in range(array.ndim) if place != axis)), 1e-12).astype(np.float32) / np.float32(127)
            whole = np.clip(np.rint(array / scale.reshape(shape)), -127, 127).astype(np.int8) if stored else None
            node.input[1] = pair(node.input[1], scale, axis, whole)
            wanted.append(0)
        for index in wanted:
            node.input[index] = pair(node.input[index], np.float32(highest[node.input[index]] / 127))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


# ---- the models: float32 weights, a graph for a batch, and the same in float64 ----------------------------------------

def graph_of(nodes, source, target, weights, opset=17):
    graph = helper.make_graph(nodes, "made_for_this_run", [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])],
                              [helper.make_tensor_value_info(target[0], TensorProto.FLOAT, target[1])],
                              [numpy_helper.from_array(array, name) for name, array in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


class Wide:
    """Gemm and ReLU, the last layer without ReLU; weights (out, in), as torch's Linear stores them."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.weights = {f"w{n}": (rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) * np.float32((2 / WIDTH) ** 0.5)) for n in range(LAYERS)}
        self.weights |= {f"b{n}": 0.1 * rng.standard_normal(WIDTH, dtype=np.float32) for n in range(LAYERS)}
        self.inputs = rng.standard_normal((256, WIDTH), dtype=np.float32)
        self.calibration = rng.standard_normal((64, WIDTH), dtype=np.float32)
        self.labels = None

    def graph(self, batch):
        nodes, tensor = [], "x"
        for n in range(LAYERS):
            nodes.append(helper.make_node("Gemm", [tensor, f"w{n}", f"b{n}"], [f"y{n}"], name=f"linear{n}", transB=1))
            tensor = f"y{n}"
            if n < LAYERS - 1:
                nodes.append(helper.make_node("Relu", [tensor], [f"r{n}"], name=f"relu{n}"))
                tensor = f"r{n}"
        return graph_of(nodes, ("x", [batch, WIDTH]), (tensor, [batch, WIDTH]), self.weights)

    def forward(self, x):
        """Outputs in float64, and the largest magnitude of each layer's input."""
        highest, x, tensor = {}, x.astype(np.float64), "x"
        for n in range(LAYERS):
            highest[tensor] = float(np.abs(x).max())
            x = x @ self.weights[f"w{n}"].T.astype(np.float64) + self.weights[f"b{n}"]
            if n < LAYERS - 1:
                x, tensor = np.maximum(x, 0), f"r{n}"
        return x, highest

    def operations(self, batch):
        return 2 * batch * LAYERS * WIDTH**2


class Conv:
    """Convolutions with ReLU, global average pooling, one linear layer of 1,000."""

    def __init__(self):
        rng = np.random.default_rng(2)
        self.inputs, self.calibration = self.images(rng, 32), self.images(rng, 64)
        self.labels = None
        self.weights, x = {}, self.calibration[:8]
        for n, (a, b, stride) in enumerate(CONVOLUTIONS):
            w = rng.standard_normal((b, a, 3, 3), dtype=np.float32)
            y = convolved(x, w, stride)  # each channel gets mean 0 and variance 1, as from a batch norm: else all inputs come to look alike
            mean, spread = y.mean((0, 2, 3)), y.std((0, 2, 3))
            self.weights |= {f"w{n}": w / spread[:, None, None, None], f"b{n}": -mean / spread}
            x = np.maximum((y - mean[:, None, None]) / spread[:, None, None], 0)
        self.weights |= {"w": rng.standard_normal((1000, CONVOLUTIONS[-1][1]), dtype=np.float32) * np.float32(CONVOLUTIONS[-1][1] ** -0.5), "b": 0.1 * rng.standard_normal(1000, dtype=np.float32)}

    @staticmethod
    def images(rng, count):
        coarse = rng.standard_normal((count, 3, 7, 7), dtype=np.float32).repeat(8, 2).repeat(8, 3)
        return coarse + np.float32(0.3) * rng.standard_normal((count, 3, 56, 56), dtype=np.float32)

    def graph(self, batch):
        nodes, tensor = [], "x"
        for n, (_, _, stride) in enumerate(CONVOLUTIONS):
            nodes += [helper.make_node("Conv", [tensor, f"w{n}", f"b{n}"], [f"y{n}"], name=f"conv{n}", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride]),
                      helper.make_node("Relu", [f"y{n}"], [f"r{n}"], name=f"relu{n}")]
            tensor = f"r{n}"
        nodes += [helper.make_node("GlobalAveragePool", [tensor], ["pooled"], name="pool"), helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
                  helper.make_node("Gemm", ["flat", "w", "b"], ["scores"], name="linear", transB=1)]
        return graph_of(nodes, ("x", [batch, 3, 56, 56]), ("scores", [batch, 1000]), self.weights)

    def forward(self, x):
        highest, x, tensor = {}, x.astype(np.float64), "x"
        for n, (_, _, stride) in enumerate(CONVOLUTIONS):
            highest[tensor] = float(np.abs(x).max())
            x, tensor = np.maximum(convolved(x, self.weights[f"w{n}"].astype(np.float64), stride) + self.weights[f"b{n}"][:, None, None], 0), f"r{n}"
        x = x.mean((2, 3))
        highest["flat"] = float(np.abs(x).max())
        return x @ self.weights["w"].T.astype(np.float64) + self.weights["b"], highest

    def operations(self, batch):
        size, total = 56, 0
        for a, b, stride in CONVOLUTIONS:
            size //= stride
            total += 2 * 9 * a * b * size * size
        return batch * (total + 2 * CONVOLUTIONS[-1][1] * 1000)


def convolved(x, w, stride):
    """A 3x3 convolution, padding 1: nine shifted matrix products."""
    count, _, high, wide = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))).transpose(0, 2, 3, 1)
    total = 0
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + high : stride, j : j + wide : stride]
            total = total + part.reshape(-1, part.shape[-1]) @ w[:, :, i, j].T
    return total.reshape(count, -(-high // stride), -(-wide // stride), -1).transpose(0, 3, 1, 2)


class Digits:
    """The course's trained model. It is calibrated on noisy copies of 60 digits, since only the held-out ones are in the repository."""

    def __init__(self):
        self.model = onnx.load(ROOT / "models/digits_mlp/digits_mlp.onnx")
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        with np.load(ROOT / "models/digits_mlp/heldout.npz") as data:
            self.inputs, self.labels = (data["images"].reshape(-1, 784) / 255).astype(np.float32), data["labels"]
        noise = np.random.default_rng(3).normal(0, 0.05, (60, 784))
        self.calibration = np.clip(np.roll(self.inputs[:60].reshape(-1, 28, 28), 1, 2).reshape(-1, 784) + noise, 0, 1).astype(np.float32)

    def graph(self, batch):
        model = onnx.ModelProto.FromString(self.model.SerializeToString())
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_value = batch
        return model

    def forward(self, x):
        x = x.astype(np.float64)
        hidden = np.maximum(x @ self.weights["hidden.weight"].T.astype(np.float64) + self.weights["hidden.bias"], 0)
        logits = hidden @ self.weights["logits.weight"].T.astype(np.float64) + self.weights["logits.bias"]
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        gemms = [node for node in self.model.graph.node if node.op_type in ("Gemm", "MatMul")]
        return e / e.sum(axis=1, keepdims=True), {gemms[0].input[0]: float(np.abs(x).max()), gemms[1].input[0]: float(np.abs(hidden).max())}

    def operations(self, batch):
        return 2 * batch * (784 * 128 + 128 * 10)


@functools.cache
def prepared(name):
    """The model, the ranges of its calibration inputs, and the float64 outputs of its measured inputs."""
    model = {"wide": Wide, "conv": Conv, "digits": Digits}[name]()
    return model, model.forward(model.calibration)[1], model.forward(model.inputs)[0]


def onnx_model(name, precision, batch):
    model, highest, _ = prepared(name)
    graph = model.graph(batch)
    return insert_qdq(graph, highest) if precision == "int8" else graph


# ---- TensorRT -------------------------------------------------------------------------------------------------------

def build(trt, logger, model, precision):
    """The plan, and what was asked of the builder. FP16 and INT8 take and give float16, as gpu.build_engine's do.

    An INT8 graph whose Q refuses float16 (that depends on the release) is built with float32 at its ends; ``io_dtype`` says so.
    """
    flags = {"int8": ["INT8", "FP16"], "fp16": ["FP16"], "tf32": ["TF32"]}[precision]
    missing = [flag for flag in flags if not hasattr(trt.BuilderFlag, flag)]
    if missing:
        raise RuntimeError(f"TensorRT {trt.__version__} has no builder flag {', '.join(missing)}: this suite is for 8.6 to 10")
    for kind in {"int8": ("float16", "float32"), "fp16": ("float16",), "tf32": ("float32",)}[precision]:
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(model.SerializeToString()):
            raise RuntimeError("; ".join(str(parser.get_error(n)) for n in range(parser.num_errors)))
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        for flag in flags:
            config.set_flag(getattr(trt.BuilderFlag, flag))
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 4 << 30)
        config.builder_optimization_level = LEVEL
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # As in gpu.build_engine: TensorRT's own kernels alone, with or without cuDNN and cuBLAS on the host.
        config.set_tactic_sources(1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS) | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS))
        network.get_input(0).dtype = network.get_output(0).dtype = getattr(trt, kind)
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            return plan, {"builder_optimization_level": LEVEL, "builder_flags": flags, "tactic_sources": ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"],
                          "workspace_bytes": 4 << 30, "io_dtype": kind}
    raise RuntimeError("the builder returned None; its log says why")


def outputs_by_type(trt, engine):
    """What `trt.EngineInspector` says of the layers: how many write which type ('Int8', 'FP16', …), and the weights' types."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    written, held = collections.Counter(), collections.Counter()
    try:
        layers = json.loads(text, strict=False)["Layers"]  # 8.6 leaves control characters as they are between the names of its Metadata
    except (ValueError, KeyError) as problem:
        return {"problem": f"{type(problem).__name__}: {problem}"}
    for layer in layers:
        if not isinstance(layer, dict):
            return {"problem": "the engine holds layer names only"}
        for tensor in layer.get("Outputs", ()):
            words = tensor.get("Format/Datatype", "").replace(".", " ").split()
            written[next((word for word in words if word in ("Int8", "INT8", "FP16", "FP32", "Half", "Float")), "other")] += 1
        if isinstance(layer.get("Weights"), dict):
            held[layer["Weights"].get("Type", "other")] += 1
    return {"layers": len(layers), "outputs": dict(written), "weights": dict(held)}


def measured(name, precision, batch):
    """One engine for this batch: built, checked, timed as one CUDA graph; accuracy of the outputs of the last timed launch."""
    import pycuda.autoprimaryctx  # noqa: F401
    import pycuda.driver as cuda
    import tensorrt as trt

    model, _, reference = prepared(name)
    logger = trt.Logger(trt.Logger.ERROR)
    start = time.perf_counter()
    plan, asked = build(trt, logger, onnx_model(name, precision, batch), precision)
    build_s = time.perf_counter() - start
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context, stream = engine.create_execution_context(), cuda.Stream()
    names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
    source, = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
    target, = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
    given = np.ascontiguousarray(model.inputs[:batch].astype(trt.nptype(engine.get_tensor_dtype(source))))
    result = np.full(tuple(engine.get_tensor_shape(target)), np.nan, trt.nptype(engine.get_tensor_dtype(target)))
    gpu_in, gpu_out = cuda.mem_alloc(given.nbytes), cuda.mem_alloc(result.nbytes)
    cuda.memcpy_htod(gpu_in, given)
    cuda.memcpy_htod(gpu_out, result)
    context.set_tensor_address(source, int(gpu_in))
    context.set_tensor_address(target, int(gpu_out))
    if not context.execute_async_v3(stream.handle):  # once outside the graph: TensorRT may set itself up in its first call
        raise RuntimeError("execute_async_v3 returned False")
    stream.synchronize()
    call = gpu.driver_graph(stream, lambda: context.execute_async_v3(stream.handle))
    with core.Clocks() as clocks:
        begun = time.perf_counter()
        while time.perf_counter() - begun < core.WARM_UP_S:
            call()
            stream.synchronize()
        clocks.mark()
        series, how = core.time_calls(call, stream.synchronize, warm_up_s=0.1, longest_s=3.0)
    cuda.memcpy_dtoh(result, gpu_out)
    accuracy = models.accuracy(name, precision, result, reference, model.labels)
    weight_bytes = sum(array.size for array in model.weights.values()) * {"int8": 1, "fp16": 2, "tf32": 4}[precision]
    results = {"build_s": round(build_s, 2), "engine_bytes": plan.nbytes, "device_memory_bytes": engine.device_memory_size, "operations": model.operations(batch),
               "weight_bytes": weight_bytes, "inspector": outputs_by_type(trt, engine), "profile": gpu.layer_times(trt, context, stream)}
    return core.Result(series, results, accuracy, clocks.summary(), {**how, **asked, "path": "CUDA graph over execute_async_v3"})


def cases():
    """Models, batches, precisions; the three precisions of one batch follow each other, so that they see the same machine."""
    return [core.Case(f"{name}-{precision}-b{batch}", f"{TITLES[name]}; {precision.upper()}, batch {batch}", {"model": name, "precision": precision, "batch": batch},
                      lambda n=name, p=precision, b=batch: measured(n, p, b), ("tensorrt", "pycuda"), gpu=True)
            for name in ("digits", "wide", "conv") for batch in BATCHES[name] for precision in PRECISIONS]
