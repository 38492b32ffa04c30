# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: explicit INT8, from calibration to an engine
#
# Level: senior · 45 minutes · everything but the last two cells runs without a GPU
#
# A float ONNX model becomes an INT8 engine in three steps: measure the ranges of its activations on calibration data, write
# them into the graph as Q/DQ pairs, build. Since TensorRT 11 this is the only way to INT8 (calibrators and the INT8 flag are
# gone); 8.6 knows it, too. You write the three steps and prove the accuracy on digits that were not used to calibrate.
#
# Background: [Q and DQ](../../book/02_onnx/questions/20_qdq.md) and
# [choosing a precision](../../book/06_choosing/questions/20_choosing_a_precision.md).
#
# ## The contract
#
# Models have opset 13 or later (of ONNX's own operators; `opset_import` may list other domains before it), no subgraphs, any names, any number of inputs; each `Conv` has its `kernel_shape`. *Quantizable* are the nodes `Conv`, `Gemm` and `MatMul` whose input
# 1 is a float32 initializer (its *weight*; for `MatMul` of two dimensions) and whose input 0 is not an initializer. Numbers are float32.
#
# **`calibrate(onnx_path, batches, percentile=100.0)`** returns a dict: tensor name to range (a Python float) for each float32
# tensor that is a graph input or an output of a node, and for no other.
#
# - `batches` is an iterable of dicts, input name to array. It may be a generator, and batches may differ in size.
# - The range of a tensor is the nearest-rank percentile of all its absolute values over all batches together: the smallest of
#   them that at least `percentile` percent do not exceed. 100 is the largest. Below 100 a histogram will do: 1 % off is right.
# - `ValueError` if there is no batch, if `percentile` is not in (0, 100], or if a tensor holds NaN or infinity (name it).
#
# **`insert_qdq(onnx_path, quantized_path, ranges, skip=(), also=())`** writes the quantized model. Returns nothing.
#
# - Each quantizable node whose name is not in `skip` reads its input 0 and its weight through QuantizeLinear and
#   DequantizeLinear. Nothing else does, but the inputs in `also`: pairs (node name, input number) of activations that go
#   through a pair too, as the skip input of a residual addition.
# - An activation: one scale, of shape `()`, range / 127. Counted: one pair for one tensor, however many nodes read it so.
# - A weight: one scale for each output channel, 1-D, largest magnitude of the channel / 127, with the `axis` of the output
#   channels. The weight stands as float32 in front of Q, or is stored as int8 in front of DQ, rounded half to even.
# - Everything is int8 with zero points 0. A scale that would be 0 is 1 instead. Scales may be 1e-5 off (relative).
# - The bias stays float32 and has no pair. All nodes of the model stay, with names, attributes, outputs and order; graph inputs and outputs
#   and the opset too. The file at `onnx_path` stays as it is.
# - `ValueError`, and no file written, if the opset is below 13; if an activation to be quantized has no range, or one that is negative or not
#   finite (name it); if a name in `skip` or `also` is not a node's.
#
# **`build_engine(quantized_path, engine_path, batches=(1, 8, 32))`** builds an engine and writes its plan. Returns nothing.
#
# - Dimension 0 of every input is dynamic, and nothing else; one profile with the smallest, best and largest batch.
# - With the builder flag INT8 where this release has it (until 10.16). Profiling verbosity is DETAILED, so that the engine can be read later.
# - `ValueError` if the parser refuses the model, `RuntimeError` if the builder finds no engine; then no file is written.
#
# Counted: pairs, one build (by `build_serialized_network`). Not counted: time, memory.

# %% [markdown]
# ## What is installed here
#
# This was run with TensorRT for RTX 1.7 on a CPU, which builds the engine and cannot run it. With TensorRT 8.6.0 on a GPU the grader was run: the reference
# passes all of it, the digits, the numbers and the INT8 layers included. For 10.0, 10.16 and 11.4 only the names were checked.

# %%
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

from course import ROOT

MODEL = ROOT / "models/digits_mlp/digits_mlp.onnx"
with np.load(ROOT / "models/digits_mlp/heldout.npz") as data:
    images, labels = (data["images"].reshape(-1, 784) / 255).astype(np.float32), data["labels"]
calibration, test, truth = images[:60], images[60:], labels[60:]
folder = Path(tempfile.mkdtemp())
print("calibrate on", len(calibration), "digits, judge by", len(test), "others")

# %% [markdown] tags=["hint"]
# **Hint 1.** For `calibrate`, add every node's output to `model.graph.output` as `onnx.ValueInfoProto(name=…)` and run the model: ONNX Runtime and
# `onnx.reference.ReferenceEvaluator` then return them all. Keep only what comes back as float32. A percentile of each batch, averaged, is not the
# percentile of all.

# %% [markdown] tags=["hint"]
# **Hint 2.** For `insert_qdq`, walk over a copy of the node list and build a new one: before a node that needs it, append the pair; then set
# `node.input[i]` to the pair's output. Keep a dict from (tensor, axis) to that output, and no pair is made twice. The axis of the output channels: 0
# for `Conv`, and for `Gemm` with `transB=1`; 1 for `Gemm` without and for `MatMul`.

# %% [markdown] tags=["hint"]
# **Hint 3.** QuantizeLinear without a zero point makes uint8: give an int8 initializer of zeros, of the scale's shape. Check
# ranges and names first and call `onnx.save` last. In `build_engine`: `getattr(trt.BuilderFlag, "INT8", None)`,
# `config.profiling_verbosity` at `DETAILED`, and for 8.6 the flag `EXPLICIT_BATCH` of `create_network`.

# %% [markdown]
# ## Step one: calibrate

# %%
# graded cell 1: keep this line
import numpy as np
import onnx


def calibrate(onnx_path, batches, percentile=100.0):
    """Ranges of all float32 activations over all batches: tensor name to float."""
    # <answer>
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}: expected above 0 and at most 100")
    model = onnx.load(onnx_path)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in stored]
    outputs = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)      # without types: the engine infers them
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
                    magnitudes = magnitudes.max(initial=0, keepdims=True)              # all that the maximum needs
                seen.setdefault(name, []).append(magnitudes)
    if not seen:
        raise ValueError("there is no calibration batch: ranges come from data")
    return {name: float(np.percentile(np.concatenate(parts), percentile, method="inverted_cdf")) for name, parts in seen.items()}
    # </answer>
    # stub: raise NotImplementedError("calibrate is not written yet")


# %%
ranges = calibrate(MODEL, [{"pixels": calibration[:30]}, {"pixels": calibration[30:]}])
tight = calibrate(MODEL, [{"pixels": calibration}], percentile=99.9)
for name in ranges:
    print(f"{name:16} largest {ranges[name]:8.4f}   99.9 % are within {tight[name]:8.4f}")

# %% [markdown]
# ## Step two: Q and DQ

# %%
# graded cell 2: keep this line
import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def insert_qdq(onnx_path, quantized_path, ranges, skip=(), also=()):
    """Writes the model with symmetric INT8 Q/DQ pairs: per tensor on activations, per output channel on weights."""
    # <answer>
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
            scale = np.where(scale > 0, scale, 1).astype(np.float32)                  # a channel of zeros must not divide by zero
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
            axis = 0 if node.op_type == "Conv" or turned else 1                        # where the output channels are
            values = numpy_helper.to_array(weight)
            others = tuple(place for place in range(values.ndim) if place != axis)
            node.input[1] = through_a_pair(node.input[1], np.abs(values).max(axis=others) / np.float32(127), axis)
            kept.append((0, node.input[0]))
        for number, tensor in kept:
            node.input[number] = activation(tensor)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]                                                           # types of inner tensors: anyone can infer them again
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, quantized_path)
    # </answer>
    # stub: raise NotImplementedError("insert_qdq is not written yet")


# %%
QUANTIZED = folder / "digits_int8.onnx"
insert_qdq(MODEL, QUANTIZED, ranges)
quantized = onnx.load(QUANTIZED)
for node in quantized.graph.node:
    print(f"{node.op_type:16} {', '.join(node.input)}")

# %% [markdown]
# The proof, before any GPU: the Q/DQ graph runs anywhere, and rounds where the engine will. `onnx.reference` computes it as written. Beside the
# right graph stand two whose ranges are wrong; both load and run. (Weights with one scale for all would pass here: the channels of this model are alike.
# The grader's are not.)


# %%
def answers(model):
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    raised.opset_import[0].version = 21         # onnx.reference has DequantizeLinear from 19 on; these operators compute the same in 18 and 21
    return ReferenceEvaluator(raised).run(None, {"pixels": test})[0]


def with_scales(change):
    """The quantized model, its scales changed: name and array to array."""
    changed = onnx.load(QUANTIZED)
    for tensor in changed.graph.initializer:
        if tensor.name.endswith("_scale"):
            tensor.CopyFrom(numpy_helper.from_array(change(tensor.name, numpy_helper.to_array(tensor)).astype(np.float32), tensor.name))
    return changed


float32 = answers(onnx.load(MODEL))
for name, model in (("INT8", quantized), ("activations: a tenth of the range", with_scales(lambda n, s: s / 10 if s.ndim == 0 else s)),
                    ("activations: 20 times the range", with_scales(lambda n, s: s * 20 if s.ndim == 0 else s))):
    int8 = answers(model)
    print(f"{name:34} right {(int8.argmax(1) == truth).sum()} of {len(truth)} (float {(float32.argmax(1) == truth).sum()}), "
          f"changed {(int8.argmax(1) != float32.argmax(1)).sum()}, largest difference {np.abs(int8 - float32).max():.3f}")

# %% [markdown]
# ## Step three: build

# %%
# graded cell 3: keep this line
try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def build_engine(quantized_path, engine_path, batches=(1, 8, 32)):
    """Builds an engine from a Q/DQ model and writes its plan to engine_path."""
    # <answer>
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)      # 8.6 needs it, 11 has it no more
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    with open(quantized_path, "rb") as file:
        if not parser.parse(file.read()) or network.num_inputs == 0:
            raise ValueError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)) or f"{quantized_path} is no ONNX model")
    config = builder.create_builder_config()
    int8 = getattr(trt.BuilderFlag, "INT8", None)                                      # until 10.16; later the graph's types decide alone
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
    # </answer>
    # stub: raise NotImplementedError("build_engine is not written yet")


# %%
build_engine(QUANTIZED, folder / "digits_int8.engine")
plan_bytes = (folder / "digits_int8.engine").stat().st_size
weight_bytes = sum(numpy_helper.to_array(t).nbytes for t in onnx.load(MODEL).graph.initializer)
print("an engine was written:", plan_bytes > weight_bytes / 4)

# %% [markdown]
# Did the pairs become INT8 kernels? TensorRT for RTX tells it at the end of a build, in its verbose log, without a GPU. (Other releases write this
# list in another form or not at all; there the inspector of the next section tells it.) Beside the two models stands a third, whose scales of the first weight
# lie along the inputs. It parses, it builds, and by the ONNX rules it computes nearly the same.


# %%
class Log(trt.ILogger):
    """Keeps the lines of the log that describe the engine's layers, and the errors."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines, self.errors = [], []

    def log(self, severity, text):
        if severity == trt.Logger.ERROR:
            self.errors.append(text)
        if text.startswith("Layers:"):
            self.lines = [line for line in text.splitlines() if line.startswith("Name: ")]


def kernels(model):
    """(name, layer type, type of its first input, ONNX nodes) for each layer of the engine that RTX builds."""
    if trt.__name__ != "tensorrt_rtx":
        print("   only TensorRT for RTX lists its layers in the log")
        return
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        print("   refused by the parser:", parser.get_error(0).desc().split(". ")[0])
        return
    settings, rows = builder.create_builder_config(), builder.create_optimization_profile()
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    rows.set_shape("pixels", (1, 784), (8, 784), (32, 784))
    settings.add_optimization_profile(rows)
    builder.build_serialized_network(network, settings)
    for line in log.lines:
        nodes = [part.split("]")[0] for part in line.split("[ONNX Layer: ")[1:]]
        inputs = line.split("Inputs: [")[1].split("Outputs: [")[0]
        yield (line.split(",")[0].removeprefix("Name: ").split("_myl0")[0], line.split("LayerType: ")[1].split(",")[0],
               inputs.split("Datatype: ")[1].split(",")[0] if "Datatype" in inputs else "-", nodes)


def replace(model, name, array):
    """Gives an initializer of the model another value."""
    next(t for t in model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(array, name))


wrong_axis = onnx.load(QUANTIZED)
weight = numpy_helper.to_array(next(t for t in wrong_axis.graph.initializer if t.name == "hidden.weight"))
peaks = np.abs(weight).max(axis=0)
replace(wrong_axis, "hidden.weight_axis0_scale", np.where(peaks > 0, peaks / 127, 1).astype(np.float32))
replace(wrong_axis, "hidden.weight_axis0_zero", np.zeros(784, np.int8))
for node in wrong_axis.graph.node:
    if node.name.startswith("hidden.weight"):
        node.attribute[0].i = 1

for title, model in (("float32", onnx.load(MODEL)), ("INT8", quantized), ("INT8, scales along the inputs", wrong_axis)):
    print(title)
    for name, kind, first, nodes in kernels(model):
        if nodes:
            print(f"   {name:32} {kind:15} reads {first:6}", [node for node in nodes if node.startswith("node_")])

# %% [markdown]
# In the third model the first product is a fusion called Cast, Mul, …, Fc: both operands are brought back to float and multiplied there. All the
# rounding, none of the INT8 arithmetic, and no word of warning. Other mistakes are louder:

# %%
shifted, unsigned = onnx.load(QUANTIZED), onnx.load(QUANTIZED)
replace(shifted, "pixels_activation_zero", np.array(3, np.int8))
replace(unsigned, "pixels_activation_zero", np.array(128, np.uint8))
for title, model in (("zero point 3", shifted), ("uint8, zero point 128", unsigned)):
    print(title)
    list(kernels(model))

# %% [markdown]
# ## On a GPU: run it, and read what the engine became

# %% tags=["gpu"]
import json

import pycuda.autoprimaryctx  # noqa: F401
import pycuda.driver as cuda


def load(path):
    return trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())


def run(engine, batch):
    """The engine's output for one batch: as `infer` of the first exercise."""
    context, stream = engine.create_execution_context(), cuda.Stream()
    source, result = engine.get_tensor_name(0), engine.get_tensor_name(1)
    context.set_input_shape(source, batch.shape)
    output = np.empty(tuple(context.get_tensor_shape(result)), np.float32)
    memory = cuda.mem_alloc(batch.nbytes), cuda.mem_alloc(output.nbytes)
    cuda.memcpy_htod_async(memory[0], batch, stream)
    context.set_tensor_address(source, int(memory[0]))
    context.set_tensor_address(result, int(memory[1]))
    assert context.execute_async_v3(stream.handle)
    cuda.memcpy_dtoh_async(output, memory[1], stream)
    stream.synchronize()
    return output


engine = load(folder / "digits_int8.engine")
int8 = np.concatenate([run(engine, np.ascontiguousarray(test[i:i + 30])) for i in range(0, len(test), 30)])
print(trt.__name__, trt.__version__)
print(f"right: {(int8.argmax(1) == truth).sum()} of {len(truth)}, float in onnx.reference {(float32.argmax(1) == truth).sum()}")
print("answers that differ from float:", (int8.argmax(1) != float32.argmax(1)).sum())
print("answers that differ from the Q/DQ graph in onnx.reference:", (int8.argmax(1) != answers(quantized).argmax(1)).sum())
print(f"largest difference of a probability: from float {np.abs(int8 - float32).max():.3f}, from the Q/DQ graph {np.abs(int8 - answers(quantized)).max():.3f}")

# %% tags=["gpu"]
inspector, context = engine.create_engine_inspector(), engine.create_execution_context()
context.set_input_shape(engine.get_tensor_name(0), (30, 784))
inspector.execution_context = context            # with a dynamic batch the formats are known only for a shape
text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
layers = json.loads(text, strict=False)["Layers"]      # 8.6 leaves control characters between names, which JSON forbids
print(len(layers), "layers:", dict(Counter(layer["LayerType"] for layer in layers)))
for layer in layers:
    kinds = [", ".join(tensor.get("Format/Datatype", "?") for tensor in layer.get(side, [])) for side in ("Inputs", "Outputs")]
    print(f"{layer['Name'][:100]}\n      {kinds[0]}  ->  {kinds[1]}")

# %% [markdown] tags=["answer"]
# Where this prints `N/A due to dynamic shapes`, as 8.6.0 did, the shape alone was not enough: that release tells formats only after `context.infer_shapes()` or a run, to an
# inspector made afterwards ([the inspector](../../book/03_tensorrt/questions/25_engine_inspector.md)). The layers' types say it too: two convolution kernels with weight, Q and bias fused into
# them (`CaskConvolution`), and the Softmax.

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | :-- | :-- |
# | all outputs in one run | every activation is seen on the same data | a run for each tensor costs as many runs as tensors |
# | one percentile over all batches | the range belongs to the data set | a mean of batch percentiles depends on the order and size of the batches |
# | refuse NaN and infinity | a range is a number | one broken image makes the scale infinite, and every value becomes 0 |
# | zero point 0, int8 | the scheme that TensorRT takes: symmetric, signed | the parser refuses other zero points |
# | an explicit zero point | says "int8" | the default of QuantizeLinear is uint8; TensorRT for RTX 1.7 took such a node for int8, so it and ONNX Runtime compute different things |
# | a scale for each output channel | a quiet channel keeps its bits | the loudest channel sets the step for all |
# | `axis` of the output channels | the scale can leave the sum | the product runs in float (see above); scales of one axis applied along another, which a square matrix allows, give wrong numbers |
# | one pair for one tensor | readers share one INT8 tensor | each pair is one more rounding pass over the same memory, unless the builder merges them |
# | `kernel_shape` on every `Conv` | ONNX lets it be left out, since the weight tells it | the parser of 8.6.0 refuses the node once its weight comes from a DequantizeLinear |
# | float32 bias | the kernel adds it to the scaled sum | the parser refuses an int32 bias behind a DequantizeLinear |
# | no pair behind a product | ReLU, addition, normalization fuse into the kernel's end | one more rounding where none was needed; 8.6.0 fused such a pair away in a small network (next exercise), which nothing promises |
# | `also` for the skip input | where the sum is quantized too, the convolution with the addition can write INT8 | the skip stays float, and so does what the block writes; without a Q behind the sum the pair gains nothing (next exercise) |
# | the INT8 flag until 10.16 | permits INT8 kernels in a weakly typed network | 8.6.0 builds no engine of the Q/DQ graph |
# | DETAILED | the plan keeps what the inspector shows | names only: nobody can tell afterwards what ran in INT8 |
#
# ## What it costs
#
# Calibration is one pass in float over some hundred samples. This reference keeps all magnitudes of all tensors in memory below 100 %; a histogram with
# 2,048 bins a tensor needs 16 KB each and two passes, or a range that grows. The weights in the ONNX file stay float32, so the file does not shrink; the plan does.
# Accuracy costs an evaluation on data that calibration did not see. Speed is not promised: a pair whose neighbours stay in float is extra work, which is why a
# quantized model is read layer by layer before it is timed. On an H100 with TensorRT 8.6.0 another Q/DQ graph of
# these digits was slower than its FP16 engine, and a wide network faster: [explicit quantization](../../book/03_tensorrt/questions/16_explicit_quantization.md) has the figures.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **Max, percentile or entropy?** The maximum clips nothing and lets one outlier widen every step. A percentile clips the outliers and halves the step where
# tails are long. Entropy picks the clipping point whose histogram is closest to the original by Kullback-Leibler divergence, as the entropy calibrators did
# that went with TensorRT 11. Compare by the metric on held-out data; often the difference is smaller than the test set can see.
#
# **Why is the activation's scale not per channel?** Its channels are what the product sums over. A different scale for each term cannot be taken out of the
# sum, so an integer accumulator cannot be rescaled once at the end.
#
# **INT8 lost two points. Which layer?** Use `skip`: quantize all but one node at a time, or one node alone, score each, and rank. First and last layers and
# those with wide ranges are the usual finds. Leave the worst in float and look at the speed again.
#
# **Your engine has more reformat layers than the FP16 one. Why?** Each border between INT8 and float regions is a conversion, and INT8 kernels want other
# layouts. Fewer, larger INT8 regions: quantize the layers between two quantized ones, or none of them.
#
# **Does the engine compute exactly what `onnx.reference` computes from the Q/DQ graph?** No. Rounding stands in the same places, but sums run in another order, scales are
# multiplied together beforehand, and a value near a rounding border can fall on the other side. Compare by tolerance and by the metric.

# %% tags=["learner"]
from course.check import check

check("03_tensorrt/ex04_explicit_int8")
