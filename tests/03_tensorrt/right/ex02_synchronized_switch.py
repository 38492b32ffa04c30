"""Synchronizes after a switch; copies by blocking calls; checks profiles by NumPy; sorts to pick."""
import tempfile
from functools import reduce
from operator import mul
from pathlib import Path

import numpy as np

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def profiles_for(traffic):
    if len(traffic) < 1:
        raise ValueError("traffic is empty")
    result = []
    for wanted in dict.fromkeys(row[0] for row in traffic):
        shapes = [tuple(row[1]) for row in traffic if row[0] == wanted]
        sums = {shape: sum(row[2] for row in traffic if row[0] == wanted and tuple(row[1]) == shape) for shape in shapes}
        most = max(sums.values())
        busy = max((shape for shape in sums if sums[shape] == most), key=lambda shape: reduce(mul, shape))
        result.append((tuple(min(d) for d in zip(*shapes)), busy, tuple(max(d) for d in zip(*shapes))))
    return tuple(result)


def pick_profile(profiles, shape):
    candidates = []
    for index, profile in enumerate(profiles):
        low, best, high = (list(p) for p in profile)
        if len(shape) == len(low) and all(low[i] <= shape[i] <= high[i] for i in range(len(low))):
            candidates.append((float(np.prod([max(a / b, b / a) for a, b in zip(shape, best)])), index))
    if candidates:
        return sorted(candidates)[0][1]
    raise ValueError(f"{list(shape)} is outside of " + ", ".join(f"[{list(p[0])} .. {list(p[2])}]" for p in profiles) + "; rebuild or split")


def build_engine(onnx_path, engine_path, profiles):
    data = open(onnx_path, "rb").read()
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    explicit = trt.NetworkDefinitionCreationFlag.__members__.get("EXPLICIT_BATCH")
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    ok = parser.parse(data)
    if not ok or network.num_inputs != 1:
        raise ValueError(str([str(parser.get_error(i)) for i in range(parser.num_errors)]))
    name, dims = network.get_input(0).name, np.array(network.get_input(0).shape)
    if not profiles:
        raise ValueError(f"give a profile for {name}")
    config = builder.create_builder_config()
    for triple in profiles:
        if any(len(shape) != len(dims) for shape in triple):
            raise ValueError(f"a profile of another rank for {name}")
        low, best, high = np.array(triple)
        if (low < 1).any() or (low > best).any() or (best > high).any() or ((dims != -1) & ((low != dims) | (high != dims))).any():
            raise ValueError(f"the profile {triple} is not for {name} {tuple(dims)}")
        profile = builder.create_optimization_profile()
        profile.set_shape(name, low.tolist(), best.tolist(), high.tolist())
        if config.add_optimization_profile(profile) < 0:
            raise ValueError(f"the profile {triple} is refused for {name}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("the builder returned None")
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "plan"
        part.write_bytes(plan)
        Path(engine_path).write_bytes(part.read_bytes())


def open_detector(engine_path):
    import pycuda.autoprimaryctx  # noqa: F401
    import pycuda.driver as cuda
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(open(engine_path, "rb").read())
    if engine is None:
        raise ValueError("this file is no engine")
    return {"runtime": runtime, "engine": engine, "context": engine.create_execution_context(), "stream": cuda.Stream(), "profile": 0}


def detect(detector, images):
    import pycuda.driver as cuda
    engine, context, stream = detector["engine"], detector["context"], detector["stream"]
    if str(images.dtype) != "float32":
        raise ValueError("only float32 images")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    entry = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT][0]
    profiles = [[tuple(s) for s in engine.get_tensor_profile_shape(entry, i)] for i in range(engine.num_optimization_profiles)]
    index = pick_profile(profiles, images.shape)
    if index != detector["profile"]:
        other = cuda.Stream()
        if not context.set_optimization_profile_async(index, other.handle):
            raise RuntimeError("the profile was refused")
        other.synchronize()
        detector["profile"] = index
    if not context.set_input_shape(entry, images.shape):
        raise RuntimeError("the shape was refused")
    arrays = {n: images.copy("C") if n == entry else np.zeros(tuple(context.get_tensor_shape(n)), "float32") for n in names}
    memory = {n: cuda.mem_alloc(a.nbytes) for n, a in arrays.items()}
    for n in names:
        context.set_tensor_address(n, int(memory[n]))
    cuda.memcpy_htod(memory[entry], arrays[entry])
    if not context.execute_async_v3(stream.handle):
        raise RuntimeError("the run was refused")
    stream.synchronize()
    for n in names:
        if n != entry:
            cuda.memcpy_dtoh(arrays[n], memory[n])
        memory[n].free()
    return {n: a for n, a in arrays.items() if n != entry}
