# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: one engine for many shapes
#
# Level: mid · 45 minutes · the first half needs no GPU
#
# A detector serves two kinds of traffic: live frames, one to four at a time and of several sizes, and bulk jobs, up to 32
# small images at once. You turn the traffic into optimization profiles, build one engine with all of them, pick the profile for
# each request, and run requests of both kinds in turn. Before you start, read [Your first engine](ex01_first_engine.ipynb).
#
# ## The contract
#
# A **shape** is a tuple of four integers, `(batch, channels, height, width)`. A **profile** is a triple of shapes, `(min, opt, max)`.
# It covers a shape if the shape has its rank and every dimension lies between `min` and `max`, both included.
#
# **Half one, no GPU needed**
#
# - `profiles_for(traffic)`: `traffic` is a list of rows `(kind, shape, requests)`. Returns one profile for each kind, in the order in
#   which the kinds first appear. `min` and `max` are the smallest and the largest of each dimension among the kind's shapes; `opt` is the shape with the
#   most requests. A shape may stand in several rows: its requests add up. Of two shapes with equally many, the one with more
#   elements. `ValueError` if there are no rows.
# - `pick_profile(profiles, shape)`: the index of the profile to run `shape` with. Of the profiles that cover it, the one whose `opt`
#   is nearest: the distance is the product, over the dimensions, of the larger size divided by the smaller. Of equally near ones, the first.
#   `ValueError` if none covers it. Its message holds the shape, `min` and `max` of every profile, and what the caller can do: at least one of the words
#   split, pad, resize, rebuild.
# - `build_engine(onnx_path, engine_path, profiles)`: builds one engine with these profiles, in this order, and writes its plan. Returns
#   nothing. The model has one input, of any name, and any number of dimensions of it may be dynamic.
#     - `ValueError` that names the input, before anything is built, if there is no profile or one is impossible: another rank than the input's, a
#       dimension that the model fixes otherwise, or not `1 <= min <= opt <= max` in every dimension.
#     - `FileNotFoundError` if there is no file; `ValueError` if the parser refuses it; `RuntimeError` if no engine is found.
#     - After any error, what stood at `engine_path` still stands there, and nothing else is left on disk.
#
# **Half two, on a GPU, with pycuda**
#
# - `open_detector(engine_path)` returns whatever you want to keep for a detector: an object of yours. `ValueError` if the file holds no engine.
# - `detect(detector, images)` takes a float32 array in any memory layout and returns a dictionary: the name of each output and a new float32 array.
#     - It reads the profiles from the engine, and picks with your `pick_profile`.
#     - A detector has one execution context. Its profile is switched by `set_optimization_profile_async`, and only if the request needs
#       another one than the request before.
#     - The run must not begin before the switch is done: same stream, or an event, or a synchronization between.
#     - `ValueError` if no profile covers the array's shape, or it is not float32. The next request works as ever.
#
# Counted: one build (by `build_serialized_network`), the switches, the contexts. Numbers are right within 0.01 of the same network in float64 (TF32 is on by default).

# %%
try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

import os
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# %% tags=["nbval-ignore-output"]
print(trt.__name__, trt.__version__)

# %% [markdown]
# ## A detector to build
#
# Four strided convolutions, two heads at 1/8 and 1/16 of the size, each reshaped to a row per cell and concatenated. Batch, height and width are
# dynamic, so the number of rows is known only at run time. The weights are random.


# %%
def small_detector(path, classes=3):
    draw, nodes, weights = np.random.default_rng(2), [], []

    def constant(name, values):
        weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def conv(source, name, cin, cout, stride, size=3):
        constant(f"{name}_w", draw.normal(0, (cin * size * size / 2) ** -0.5, (cout, cin, size, size)).astype("f4"))
        nodes.append(helper.make_node("Conv", [source, f"{name}_w"], [f"{name}_y"], name, strides=[stride] * 2, pads=[size // 2] * 4))
        return f"{name}_y"

    def block(source, name, cin, cout):
        nodes.append(helper.make_node("Relu", [conv(source, name, cin, cout, 2)], [name], f"{name}_relu"))
        return name

    def rows(source, name, cin):
        """(n, cin, h, w) to (n, h * w, 4 + classes), by a shape that is computed from the tensor's own, as exporters write it."""
        out = conv(source, name, cin, 4 + classes, 1, 1)
        nodes.extend([
            helper.make_node("Shape", [out], [f"{name}_shape"], f"{name}_shape_of"),
            helper.make_node("Gather", [f"{name}_shape", constant(f"{name}_0", [0])], [f"{name}_n"], f"{name}_batch"),
            helper.make_node("Concat", [f"{name}_n", constant(f"{name}_rest", [4 + classes, -1])], [f"{name}_to"], f"{name}_to_shape", axis=0),
            helper.make_node("Reshape", [out, f"{name}_to"], [f"{name}_flat"], f"{name}_reshape"),
            helper.make_node("Transpose", [f"{name}_flat"], [f"{name}_rows"], f"{name}_transpose", perm=[0, 2, 1])])
        return f"{name}_rows"

    eighth = block(block(block("images", "c1", 3, 16), "c2", 16, 32), "c3", 32, 64)
    nodes.append(helper.make_node("Concat", [rows(eighth, "near", 64), rows(block(eighth, "c4", 64, 64), "far", 64)], ["cells"], "join", axis=1))
    nodes += [helper.make_node("Slice", ["cells", constant("s0", [0]), constant("s4", [4]), constant("axis", [2])], ["boxes"], "boxes_of"),
              helper.make_node("Slice", ["cells", "s4", constant("end", [4 + classes]), "axis"], ["logits"], "logits_of"),
              helper.make_node("Sigmoid", ["logits"], ["scores"], "scores_of")]
    graph = helper.make_graph(nodes, "small_detector", [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])],
                              [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", "cells", 4]),
                               helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "cells", classes])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


folder = tempfile.mkdtemp()
model_path = small_detector(f"{folder}/detector.onnx")

# kind, shape, requests an hour
TRAFFIC = [
    ("live", (1, 3, 320, 320), 52_000),
    ("live", (1, 3, 640, 640), 9_000),
    ("live", (4, 3, 320, 320), 6_000),
    ("live", (2, 3, 480, 640), 3_000),
    ("bulk", (32, 3, 320, 320), 800),
    ("bulk", (16, 3, 320, 320), 300),
    ("bulk", (8, 3, 256, 256), 40),
]

# %% [markdown] tags=["hint"]
# **Hint 1.** The builder chooses kernels that are fast at `opt` and right everywhere between `min` and `max`; memory is planned for `max`.
# Each profile is an object of its own from `builder.create_optimization_profile()`; `config.add_optimization_profile(profile)` returns its index,
# or -1.

# %% [markdown] tags=["hint"]
# **Hint 2.** `set_shape` and the builder tell you little of what is wrong: compare each profile with `network.get_input(0).shape` yourself, where -1 is a
# dynamic dimension. At run time `engine.num_optimization_profiles` and `engine.get_tensor_profile_shape(name, index)` give the profiles back.

# %% [markdown] tags=["hint"]
# **Hint 3.** In this order: pick; `context.set_optimization_profile_async(index, stream.handle)` if it is another; `context.set_input_shape`, which
# returns False out of range; `context.get_tensor_shape` of each output; addresses; copy in; `execute_async_v3(stream.handle)`; copy back; synchronize.
# A context begins with profile 0. The input's shape has to be set after a switch.

# %% [markdown]
# ## Half one: profiles, and the build

# %%
# graded cell 1: keep this line
import os
import tempfile
from math import prod

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def profiles_for(traffic):
    """One (min, opt, max) for each kind of request in rows (kind, shape, requests)."""
    # <answer>
    if not traffic:
        raise ValueError("no traffic, no profiles: give at least one row (kind, shape, requests)")
    kinds = {}
    for kind, shape, requests in traffic:
        counts = kinds.setdefault(kind, {})
        counts[tuple(shape)] = counts.get(tuple(shape), 0) + requests
    return [(tuple(map(min, zip(*counts))),
             max(counts, key=lambda shape: (counts[shape], prod(shape))),     # tuned for what is asked most, not for the largest
             tuple(map(max, zip(*counts)))) for counts in kinds.values()]
    # </answer>
    # stub: raise NotImplementedError("profiles_for is not written yet")


def pick_profile(profiles, shape):
    """The index of the profile that covers the shape and is tuned nearest to it."""
    # <answer>
    shape = tuple(shape)

    def covers(least, most):
        return len(shape) == len(least) and all(a <= size <= b for a, size, b in zip(least, shape, most))

    fitting = [i for i, (least, _, most) in enumerate(profiles) if covers(least, most)]
    if not fitting:
        ranges = " or ".join(f"{tuple(least)} to {tuple(most)}" for least, _, most in profiles)
        raise ValueError(f"a request of shape {shape} fits no profile: the engine takes {ranges}. Split the batch, pad or resize the images, "
                         "or rebuild the engine with a profile for this shape")
    return min(fitting, key=lambda i: prod(max(size, best) / min(size, best) for size, best in zip(shape, profiles[i][1])))
    # </answer>
    # stub: raise NotImplementedError("pick_profile is not written yet")


def build_engine(onnx_path, engine_path, profiles):
    """Builds one engine with all the profiles from an ONNX file, and writes its plan to engine_path."""
    # <answer>
    with open(onnx_path, "rb") as file:
        model = file.read()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)      # 8.6 needs it, 11 lacks it
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model) or network.num_inputs == 0:
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ValueError(f"TensorRT cannot read {onnx_path}: " + ("; ".join(reasons) or "it is no ONNX model"))

    tensor = network.get_input(0)
    name, fixed = tensor.name, tuple(tensor.shape)
    if not profiles:
        raise ValueError(f"input {name!r} has shape {fixed}, and there is no profile for it")
    config = builder.create_builder_config()
    for number, (least, best, most) in enumerate(profiles):
        told = f"profile {number}, {tuple(least)} {tuple(best)} {tuple(most)}, for input {name!r} of shape {fixed}"
        if not len(least) == len(best) == len(most) == len(fixed):
            raise ValueError(f"{told}: the rank is another")
        for size, a, b, c in zip(fixed, least, best, most):
            if not 1 <= a <= b <= c:
                raise ValueError(f"{told}: needs 1 <= min <= opt <= max in every dimension")
            if size != -1 and (a, c) != (size, size):
                raise ValueError(f"{told}: the model fixes {size} where the profile has {a} to {c}. Export it with a dynamic dimension")
        profile = builder.create_optimization_profile()              # a new one each time: the config keeps the object
        profile.set_shape(name, tuple(least), tuple(best), tuple(most))
        if config.add_optimization_profile(profile) != number:
            raise ValueError(f"{told}: TensorRT refuses it")

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT found no engine for {onnx_path}: the log says why")
    handle, unfinished = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(engine_path)), suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(plan)
        os.replace(unfinished, engine_path)
    except BaseException:
        os.unlink(unfinished)
        raise
    # </answer>
    # stub: raise NotImplementedError("build_engine is not written yet")


# %%
profiles = profiles_for(TRAFFIC)
for kind, (least, best, most) in zip(("live", "bulk"), profiles):
    print(kind, "min", least, "opt", best, "max", most)
box, = profiles_for([("all", shape, requests) for _, shape, requests in TRAFFIC])
print("one profile for both would reach up to", box[2], "which nobody asks for")

engine_path = f"{folder}/detector.engine"
build_engine(model_path, engine_path, profiles)
print("built:", os.path.getsize(engine_path) > 0)

# %% [markdown]
# Two profiles leave a gap between them, and a request may fall into it:

# %%
for shape in [(1, 3, 320, 320), (3, 3, 400, 400), (8, 3, 320, 320), (6, 3, 320, 320), (1, 3, 1080, 1920)]:
    try:
        print(shape, "->", pick_profile(profiles, shape))
    except ValueError as error:
        print(f"ValueError: {error}")

# %%
for wrong in [[((1, 3, 320, 320), (1, 3, 640, 640), (4, 3, 320, 320))], [((1, 1, 320, 320), (1, 1, 320, 320), (4, 1, 640, 640))]]:
    try:
        build_engine(model_path, engine_path, wrong)
    except ValueError as error:
        print(f"ValueError: {error}")

# %% [markdown]
# ## Half two: run

# %%
# graded cell 2: keep this line
from types import SimpleNamespace

import numpy as np


def open_detector(engine_path):
    """What is kept for all requests: engine, one context, one stream, and the profiles."""
    # <answer>
    import pycuda.autoprimaryctx  # noqa: F401  makes a CUDA context current before TensorRT looks for one
    import pycuda.driver as cuda

    with open(engine_path, "rb") as file:
        plan = file.read()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ValueError(f"{engine_path} holds no engine that this TensorRT {trt.__version__} can load on this GPU")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    source, = (name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    context = engine.create_execution_context()
    if context is None:
        raise RuntimeError("no execution context: is there enough device memory?")
    return SimpleNamespace(
        engine=engine, context=context, stream=cuda.Stream(), source=source, results=[name for name in names if name != source],
        profiles=[[tuple(shape) for shape in engine.get_tensor_profile_shape(source, i)] for i in range(engine.num_optimization_profiles)],
        active=context.active_optimization_profile)
    # </answer>
    # stub: raise NotImplementedError("open_detector is not written yet")


def detect(detector, images):
    """{output's name: float32 array} for a float32 array of images."""
    # <answer>
    import pycuda.driver as cuda

    if images.dtype != np.float32:
        raise ValueError(f"the engine reads float32, the images are {images.dtype}: cast them with astype(numpy.float32)")
    index = pick_profile(detector.profiles, images.shape)            # ValueError here leaves the context as it was
    images = np.ascontiguousarray(images)
    context, stream = detector.context, detector.stream
    if index != detector.active:
        # On the stream that runs the network, so its work comes after whatever the switch copies.
        if not context.set_optimization_profile_async(index, stream.handle):
            raise RuntimeError(f"profile {index} was refused: does another context use it?")
        detector.active = index
    if not context.set_input_shape(detector.source, images.shape):   # after the switch, never before it
        raise ValueError(f"the engine refuses shape {images.shape} with profile {index}")
    outputs = {name: np.empty(tuple(context.get_tensor_shape(name)), np.float32) for name in detector.results}

    buffers = {name: cuda.mem_alloc(array.nbytes) for name, array in [(detector.source, images), *outputs.items()]}
    try:
        for name, buffer in buffers.items():
            context.set_tensor_address(name, int(buffer))
        cuda.memcpy_htod_async(buffers[detector.source], images, stream)
        if not context.execute_async_v3(stream.handle):
            raise RuntimeError("execute_async_v3 was refused: the log says why")
        for name, array in outputs.items():
            cuda.memcpy_dtoh_async(array, buffers[name], stream)
        stream.synchronize()
    finally:
        for buffer in buffers.values():
            buffer.free()
    return outputs
    # </answer>
    # stub: raise NotImplementedError("detect is not written yet")


# %% [markdown]
# Requests of both kinds in turn, and one that fits neither:

# %% tags=["gpu"]
print(trt.__name__, trt.__version__)
detector = open_detector(engine_path)
draw = np.random.default_rng(0)
for shape in [(1, 3, 320, 320), (32, 3, 320, 320), (2, 3, 480, 640), (6, 3, 320, 320), (8, 3, 256, 256), (1, 3, 320, 320)]:
    try:
        found = detect(detector, draw.random(shape, dtype="f4"))
        print(shape, {name: array.shape for name, array in found.items()})
    except ValueError as error:
        print(f"ValueError: {error}")

# %% [markdown]
# What the box costs that nobody asks for: activation memory of a context, of one profile up to `(32, 3, 640, 640)` and of the two.

# %% tags=["gpu"]
build_engine(model_path, f"{folder}/box.engine", [box])
boxed = open_detector(f"{folder}/box.engine")
for label, one in [("one box", boxed), ("two profiles", detector)]:
    size = getattr(one.engine, "device_memory_size_v2", None) or getattr(one.engine, "device_memory_size")
    print(f"{label}: {size / 2**20:.1f} MiB")

# %% [markdown] tags=["answer"]
# Two profiles need a quarter of the one box's memory. The box has to hold 32 images of 640 by 640, which nobody asks for. The largest request that
# the two profiles allow, 32 images of 320 by 320, has a quarter of its pixels, and it sets the context's size: the other profile's largest has half of that.

# %% [markdown]
# And what a switch costs: the same 200 requests, half of each kind, sorted by kind and alternating. The whole call is timed, with its
# copies and allocations.

# %% tags=["gpu"]
from time import perf_counter

one, many = draw.random((1, 3, 320, 320), dtype="f4"), draw.random((8, 3, 256, 256), dtype="f4")
for label, order in [("sorted", [one] * 100 + [many] * 100), ("alternating", [one, many] * 100)] * 2:
    for images in order[:4]:
        detect(detector, images)
    begin = perf_counter()
    for images in order:
        detect(detector, images)
    print(f"{label}: {(perf_counter() - begin) / len(order) * 1e6:.0f} us a request")

# %% [markdown] tags=["answer"]
# Alternating was slower in both rounds. But the two sorted rounds differ from each other by about as much as sorted from alternating, because the whole call with
# its copies and allocations is timed. So a switch costs something, and these four lines do not say how much: that would take more rounds, and
# CUDA events around the switch and the run alone.

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | --- | --- |
# | a profile for each kind of traffic | kernels are chosen at each kind's own `opt`, memory is planned for each kind's `max` | one box with a corner that nobody asks for, tuned for one of the kinds |
# | `opt` from the counts | the shape that most requests have gets the kernels chosen for it | tuned for the largest, the common request is served by kernels chosen for another |
# | a new profile object each time | the config keeps what it was given | one object, changed and added twice, is the last shape twice |
# | looking at the returned index | the only sign of an invalid profile | the build fails later, with less to say |
# | comparing with the network's input | a fixed dimension cannot be widened by a profile | the same |
# | picking by the nearest `opt` | profiles may overlap; each covers the shape, one is tuned for it | right numbers, slower |
# | `ValueError` with ranges | the caller learns what would fit | `set_input_shape` returns False, and whoever ignores that runs with the shape of the request before |
# | `set_optimization_profile_async` on the run's stream | TensorRT may copy data on that stream | on another stream with no event between: undefined |
# | `set_input_shape` after the switch | the run is checked against the active profile, and the output's shape follows from the input's | the shape from before is kept (seen with 8.6.0); outside the new profile the run is refused |
# | `get_tensor_shape` for each request | the number of rows follows from height and width | arrays that are too large, or too small |
#
# ## What it costs
#
# Every profile is timed by the builder for itself, so the build takes longer with each. A switch makes the next run update
# what depends on the profile: sort requests by profile where you may, or keep one context for each profile. Activation
# memory is that of the largest profile: by default a context allocates, once, what the largest of them needs.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **Why not one profile from 1 to 32 and 256 to 640?** It is allowed, and simplest. Its memory is that of 32 images of 640 by 640, and it is
# tuned for one shape. Measure both at the shapes that you serve.
#
# **Two threads serve one engine. What do they share?** The engine, not the context. In 8.6, contexts that run at the same time also need a
# profile each: add the profile as often as you need it, or set the preview feature `PROFILE_SHARING_0806`. Since 10.0 sharing is on by default.
#
# **When do you need the event?** When the switch goes to another stream than the run, say to overlap it with the previous request's copy back. Record an event on
# the first stream after the switch, and let the second wait for it: `event.record(first)`, `second.wait_for_event(event)`.
#
# **Is a profile with min = opt = max as good as a model with fixed shapes?** The kernels are chosen for one size in both. A model with fixed
# shapes needs no profile and no shape arithmetic at run time; whether that shows in the latency is to be measured, and was not measured here.
#
# **The number of boxes depends on the data, as after NMS. What changes?** `get_tensor_shape` then returns -1 for that dimension, also after the input's
# shape is set. Ask `context.get_max_output_size(name)` for the buffer, or give an `trt.IOutputAllocator`, and read the shape after the run.

# %% tags=["learner"]
from course.check import check

check("03_tensorrt/ex02_dynamic_shapes")
