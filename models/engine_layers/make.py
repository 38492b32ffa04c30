"""Builds small engines on a GPU and writes down what `trt.EngineInspector` says of their layers.

    python models/engine_layers/make.py [OUT] [--only NAME …]      (OUT: this folder) needs tensorrt 8.6 to 10, pycuda, onnx

Writes into OUT one `<engine>.json` for each engine of ENGINES, and `engine_layers.json` with versions, machine, date and SHA-256:
  what, builder       the model in words; flags, verbosity, level and tactic sources that the builder was given
  nodes               the ONNX graph without its weights: name, op_type, inputs, outputs of each node, in order
  inputs, outputs     the graph's, name to shape
  inspector           the engine's text in `LayerInformationFormat.JSON`, as it came: 8.6.0 leaves control characters in its strings,
                      which JSON forbids, so Python reads it with `json.loads(text, strict=False)`
  at_shape            (dynamic shapes only) the same, asked after a run, with an execution context whose input shape is set
  microseconds        layer name to mean time in µs over 50 runs with `trt.IProfiler`, after 20 that do not count
  engine_bytes        size of the plan

Weights and inputs are random from fixed seeds. Which tactics a build picks is measured while it runs, so a second recording may
differ in tactics and formats; the names of the nodes and the shapes stay.
"""
import argparse
import datetime
import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from course.bench.int8 import insert_qdq  # noqa: E402


# ---- the graphs -----------------------------------------------------------------------------------------------------

def graph_of(nodes, inputs, outputs, weights):
    graph = helper.make_graph(nodes, "made_to_be_inspected",
                              [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
                              [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
                              [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def node(kind, name, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=name, **attributes)


def mlp(batch=8):
    """The course's digits model, 784-128-10, at a fixed batch."""
    model = onnx.load(HERE.parent / "digits_mlp/digits_mlp.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def residual(batch=8):
    """A stem and a residual block: convolution, batch norm, ReLU, addition, pooling and a linear layer, as torch exports them."""
    rng = np.random.default_rng(11)
    weights = {}

    def convolution(name, source, a, b, target):
        weights[f"{name}.conv.weight"] = rng.normal(0, (2 / (9 * a)) ** 0.5, (b, a, 3, 3)).astype("f4")
        for part, (low, high) in {"weight": (0.8, 1.2), "bias": (-0.2, 0.2), "mean": (-0.2, 0.2), "var": (0.8, 1.2)}.items():
            weights[f"{name}.bn.{part}"] = rng.uniform(low, high, b).astype("f4")
        return [node("Conv", f"/{name}/Conv", [source, f"{name}.conv.weight"], f"{name}.conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
                node("BatchNormalization", f"/{name}/BatchNorm", [f"{name}.conv", *(f"{name}.bn.{p}" for p in ("weight", "bias", "mean", "var"))], target)]

    nodes = [*convolution("stem", "image", 3, 64, "stem.bn"), node("Relu", "/stem/Relu", ["stem.bn"], "stem.relu"),
             *convolution("conv1", "stem.relu", 64, 64, "conv1.bn"), node("Relu", "/conv1/Relu", ["conv1.bn"], "conv1.relu"),
             *convolution("conv2", "conv1.relu", 64, 64, "conv2.bn"),
             node("Add", "/Add", ["conv2.bn", "stem.relu"], "sum"), node("Relu", "/Relu", ["sum"], "relu"),
             node("GlobalAveragePool", "/Pool", ["relu"], "pooled"), node("Flatten", "/Flatten", ["pooled"], "flat"),
             node("Gemm", "/head/Gemm", ["flat", "head.weight", "head.bias"], "scores", transB=1)]
    weights |= {"head.weight": rng.normal(0, 0.125, (10, 64)).astype("f4"), "head.bias": rng.normal(0, 0.1, 10).astype("f4")}
    return graph_of(nodes, {"image": [batch, 3, 32, 32]}, {"scores": [batch, 10]}, weights)


def channels_last(batch=8):
    """A convolution between two transpositions, as an exporter writes them for a framework that keeps channels last."""
    rng = np.random.default_rng(12)
    weights = {"w1": rng.normal(0, 0.08, (48, 20, 3, 3)).astype("f4"), "b1": rng.normal(0, 0.1, 48).astype("f4"),
               "w2": rng.normal(0, 0.05, (20, 48, 1, 1)).astype("f4")}
    nodes = [node("Transpose", "/to_nchw/Transpose", ["image"], "nchw", perm=[0, 3, 1, 2]),
             node("Conv", "/wide/Conv", ["nchw", "w1", "b1"], "wide", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Relu", "/wide/Relu", ["wide"], "wide.relu"),
             node("Conv", "/narrow/Conv", ["wide.relu", "w2"], "narrow", kernel_shape=[1, 1]), node("Sigmoid", "/Sigmoid", ["narrow"], "gate"),
             node("Mul", "/Mul", ["narrow", "gate"], "silu"),
             node("Transpose", "/to_nhwc/Transpose", ["silu"], "features", perm=[0, 2, 3, 1])]
    return graph_of(nodes, {"image": [batch, 40, 40, 20]}, {"features": [batch, 40, 40, 20]}, weights)


def attention(batch=4, tokens=64, width=128, heads=4):
    """One attention block, written out: three projections, scores, softmax, mix, output projection, residual, layer norm."""
    rng = np.random.default_rng(13)
    split, joined = [batch, tokens, heads, width // heads], [batch, tokens, width]
    weights, nodes = {"split": np.array(split, np.int64), "joined": np.array(joined, np.int64), "scale": np.float32((width // heads) ** -0.5)}, []
    for name in ("query", "key", "value", "out"):
        weights[f"{name}.weight"] = rng.normal(0, width**-0.5, (width, width)).astype("f4")
        weights[f"{name}.bias"] = rng.normal(0, 0.1, width).astype("f4")

    def linear(name, source):
        nodes.extend([node("MatMul", f"/{name}/MatMul", [source, f"{name}.weight"], f"{name}.product"),
                      node("Add", f"/{name}/Add", [f"{name}.product", f"{name}.bias"], f"{name}.sum")])

    for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        linear(name, "tokens")
        nodes.extend([node("Reshape", f"/{name}/Reshape", [f"{name}.sum", "split"], f"{name}.split"),
                      node("Transpose", f"/{name}/Transpose", [f"{name}.split"], name, perm=order)])
    nodes.extend([node("MatMul", "/scores/MatMul", ["query", "key"], "scores"), node("Mul", "/scores/Mul", ["scores", "scale"], "scaled"),
                  node("Softmax", "/Softmax", ["scaled"], "shares", axis=-1), node("MatMul", "/mix/MatMul", ["shares", "value"], "mixed"),
                  node("Transpose", "/mix/Transpose", ["mixed"], "mixed.t", perm=[0, 2, 1, 3]), node("Reshape", "/mix/Reshape", ["mixed.t", "joined"], "mix")])
    linear("out", "mix")
    weights |= {"norm.weight": rng.uniform(0.8, 1.2, width).astype("f4"), "norm.bias": rng.uniform(-0.1, 0.1, width).astype("f4")}
    nodes.extend([node("Add", "/residual/Add", ["out.sum", "tokens"], "residual"),
                  node("LayerNormalization", "/norm/LayerNorm", ["residual", "norm.weight", "norm.bias"], "context", axis=-1)])
    return graph_of(nodes, {"tokens": joined}, {"context": joined}, weights)


def with_batch(model, name):
    """The same graph with a dynamic batch called ``name``."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_param = name
    return model


def ranges(model, seed=14):
    """The largest magnitude of each tensor on random inputs, by onnx.reference."""
    from onnx.reference import ReferenceEvaluator

    wide = onnx.ModelProto.FromString(model.SerializeToString())
    names = [output for n in wide.graph.node for output in n.output]
    del wide.graph.output[:]
    wide.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    rng = np.random.default_rng(seed)
    feeds = {v.name: rng.normal(size=[d.dim_value for d in v.type.tensor_type.shape.dim]).astype("f4") for v in wide.graph.input}
    found = dict(zip(names, ReferenceEvaluator(wide).run(None, feeds))) | feeds
    return {name: float(np.abs(array).max()) for name, array in found.items()}


SKIP = ("/Add", 1)
MISPLACED = (("/stem/Relu", 0), ("/conv1/Relu", 0), SKIP)


def quantized(**how):
    model = residual()
    return insert_qdq(model, ranges(model), **how)


# name: (what, graph, builder flags, other settings)
ENGINES = {
    "mlp_tf32": ("MLP 784-128-10 with softmax, batch 8, FP32 with TF32 allowed", mlp, ("TF32",), {}),
    "residual_tf32": ("Residual block with batch norms, batch 8, FP32 with TF32 allowed", residual, ("TF32",), {}),
    "residual_fp16": ("The same graph as residual_tf32, with FP16 allowed too", residual, ("TF32", "FP16"), {}),
    "residual_int8": ("The same with Q/DQ at each convolution's and the Gemm's inputs and at the skip input of the addition", lambda: quantized(also=(SKIP,)), ("TF32", "FP16", "INT8"), {}),
    "residual_int8_float_skip": ("As residual_int8, without the pair at the skip input of the addition", quantized, ("TF32", "FP16", "INT8"), {}),
    "residual_int8_misplaced": ("As residual_int8, with two more pairs between batch norm and ReLU", lambda: quantized(also=MISPLACED), ("TF32", "FP16", "INT8"), {}),
    "residual_int8_stored": ("As residual_int8, the weights stored as int8 in front of DequantizeLinear", lambda: quantized(also=(SKIP,), stored=True), ("TF32", "FP16", "INT8"), {}),
    "residual_fp16_names": ("As residual_fp16, built with the default verbosity, which keeps layer names only", residual, ("TF32", "FP16"), {"verbosity": "LAYER_NAMES_ONLY"}),
    "residual_fp16_dynamic": ("As residual_fp16, the batch 1 to 16, best 8", lambda: with_batch(residual(), "batch"), ("TF32", "FP16"), {"batches": (1, 8, 16)}),
    "channels_last_fp16": ("Transpose, convolutions of 20 and 48 channels, x * sigmoid(x), transpose; FP16 allowed", channels_last, ("TF32", "FP16"), {}),
    "attention_fp16": ("Attention block of 4 heads, 64 tokens, width 128, batch 4; FP16 allowed", attention, ("TF32", "FP16"), {}),
}


# ---- TensorRT -------------------------------------------------------------------------------------------------------

def build(trt, logger, model, flags, verbosity="DETAILED", batches=None, level=3):
    missing = [flag for flag in flags if not hasattr(trt.BuilderFlag, flag)]
    if missing:
        raise RuntimeError(f"TensorRT {trt.__version__} has no builder flag {', '.join(missing)}: record with 8.6 to 10")
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, verbosity)
    config.builder_optimization_level = level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    sources = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]      # TensorRT's own kernels: the same with and without cuDNN and cuBLAS
    config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, source)) for source in sources))
    if batches:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            rest = tuple(network.get_input(i).shape)[1:]
            profile.set_shape(network.get_input(i).name, *((batch, *rest) for batch in batches))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("the builder returned None")
    return plan, {"flags": list(flags), "profiling_verbosity": verbosity, "builder_optimization_level": level, "tactic_sources": sources,
                  "workspace_bytes": 1 << 30, "batches": batches}


def inspect(trt, logger, plan, batches):
    import pycuda.driver as cuda

    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    form = trt.LayerInformationFormat.JSON
    found = {"inspector": engine.create_engine_inspector().get_engine_information(form)}
    context, stream, kept = engine.create_execution_context(), cuda.Stream(), []
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for name in names:
        if batches and engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, (batches[1], *tuple(engine.get_tensor_shape(name))[1:]))
    for name in names:
        array = np.random.default_rng(15).normal(size=tuple(context.get_tensor_shape(name))).astype(trt.nptype(engine.get_tensor_dtype(name)))
        memory = cuda.mem_alloc(array.nbytes)
        cuda.memcpy_htod(memory, array)
        context.set_tensor_address(name, int(memory))
        kept.append(memory)
    found["microseconds"] = times(trt, context, stream)
    if batches:
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        found["at_shape"] = {"batch": batches[1], "inspector": inspector.get_engine_information(form)}
    return found


def times(trt, context, stream, runs=50):
    spent = {}

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer, ms):
            spent[layer] = spent.get(layer, 0.0) + ms

    context.profiler = Profiler()
    context.enqueue_emits_profile = True
    for number in range(20 + runs):
        if number == 20:
            spent.clear()
        if not context.execute_async_v3(stream.handle):
            raise RuntimeError("execute_async_v3 was refused")
        stream.synchronize()
    return {layer: round(ms / runs * 1e3, 2) for layer, ms in spent.items()}


def skeleton(model):
    weights = {tensor.name for tensor in model.graph.initializer}

    def shapes(values):
        return {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values if v.name not in weights}
    return {"nodes": [{"name": n.name, "op_type": n.op_type, "inputs": list(n.input), "outputs": list(n.output)} for n in model.graph.node],
            "inputs": shapes(model.graph.input), "outputs": shapes(model.graph.output)}


def machine(trt):
    import pycuda.driver as cuda

    device, driver = cuda.Device(0), cuda.get_driver_version()
    return {"gpu": device.name(), "compute_capability": ".".join(map(str, device.compute_capability())), "cuda_of_the_driver": f"{driver // 1000}.{driver % 1000 // 10}",
            "tensorrt": trt.__version__, "onnx": onnx.__version__, "numpy": np.__version__, "python": platform.python_version()}


def main():
    parser = argparse.ArgumentParser(description="Records what the engine inspector says of small engines.")
    parser.add_argument("out", nargs="?", type=Path, default=HERE)
    parser.add_argument("--only", nargs="+", default=list(ENGINES), choices=list(ENGINES), metavar="NAME")
    given = parser.parse_args()
    import pycuda.autoprimaryctx  # noqa: F401
    import tensorrt as trt

    given.out.mkdir(parents=True, exist_ok=True)
    logger = trt.Logger(trt.Logger.ERROR)
    done, failed = {}, {}
    for name in given.only:
        what, graph, flags, settings = ENGINES[name]
        try:
            model = graph()
            plan, asked = build(trt, logger, model, flags, **settings)
            found = {"what": what, "builder": asked, **skeleton(model), **inspect(trt, logger, plan, settings.get("batches")), "engine_bytes": plan.nbytes}
        except Exception as problem:  # one engine that this release cannot build is told, and does not stop the others
            failed[name] = f"{type(problem).__name__}: {problem}"
            print(f"{name}: FAILED {failed[name]}", flush=True)
            continue
        path = given.out / f"{name}.json"
        path.write_text(json.dumps(found, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
        done[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        layers = json.loads(found["inspector"], strict=False)["Layers"]
        print(f"{name}: {len(found['nodes'])} nodes became {len(layers)} layers, {path.stat().st_size} bytes", flush=True)
    facts = {"command": "python models/engine_layers/make.py", "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}", **machine(trt), "files": done, "failed": failed}
    (given.out / "engine_layers.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if not done:
        sys.exit("no engine was recorded")


if __name__ == "__main__":
    main()
