"""Compares min alone with what the model fixes.

fails: test_profiles_that_do_not_fit
says: not noticed
"""
import os
import tempfile
from math import prod

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def profiles_for(traffic):
    """One (min, opt, max) for each kind of request in rows (kind, shape, requests)."""
    if not traffic:
        raise ValueError("no traffic, no profiles: give at least one row (kind, shape, requests)")
    kinds = {}
    for kind, shape, requests in traffic:
        counts = kinds.setdefault(kind, {})
        counts[tuple(shape)] = counts.get(tuple(shape), 0) + requests
    return [(tuple(map(min, zip(*counts))),
             max(counts, key=lambda shape: (counts[shape], prod(shape))),
             tuple(map(max, zip(*counts)))) for counts in kinds.values()]


def pick_profile(profiles, shape):
    """The index of the profile that covers the shape and is tuned nearest to it."""
    shape = tuple(shape)

    def covers(least, most):
        return len(shape) == len(least) and all(a <= size <= b for a, size, b in zip(least, shape, most))

    fitting = [i for i, (least, _, most) in enumerate(profiles) if covers(least, most)]
    if not fitting:
        ranges = " or ".join(f"{tuple(least)} to {tuple(most)}" for least, _, most in profiles)
        raise ValueError(f"a request of shape {shape} fits no profile: the engine takes {ranges}. Split the batch, pad or resize the images, "
                         "or rebuild the engine with a profile for this shape")
    return min(fitting, key=lambda i: prod(max(size, best) / min(size, best) for size, best in zip(shape, profiles[i][1])))


def build_engine(onnx_path, engine_path, profiles):
    """Builds one engine with all the profiles from an ONNX file, and writes its plan to engine_path."""
    with open(onnx_path, "rb") as file:
        model = file.read()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
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
            if size != -1 and a != size:
                raise ValueError(f"{told}: the model fixes {size} where the profile has {a} to {c}. Export it with a dynamic dimension")
        profile = builder.create_optimization_profile()
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

from types import SimpleNamespace

import numpy as np


def open_detector(engine_path):
    """What is kept for all requests: engine, one context, one stream, and the profiles."""
    import pycuda.autoprimaryctx
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


def detect(detector, images):
    """{output's name: float32 array} for a float32 array of images."""
    import pycuda.driver as cuda

    if images.dtype != np.float32:
        raise ValueError(f"the engine reads float32, the images are {images.dtype}: cast them with astype(numpy.float32)")
    index = pick_profile(detector.profiles, images.shape)
    images = np.ascontiguousarray(images)
    context, stream = detector.context, detector.stream
    if index != detector.active:

        if not context.set_optimization_profile_async(index, stream.handle):
            raise RuntimeError(f"profile {index} was refused: does another context use it?")
        detector.active = index
    if not context.set_input_shape(detector.source, images.shape):
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
