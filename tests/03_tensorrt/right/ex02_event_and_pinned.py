"""Switches on a stream of its own and orders the run by an event; keeps pinned memory; counts with a Counter; compares in logarithms."""
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def profiles_for(traffic):
    order, counters = [], {}
    for kind, shape, requests in traffic:
        if kind not in counters:
            order.append(kind)
            counters[kind] = Counter()
        counters[kind][shape] += requests
    if not order:
        raise ValueError("no rows")
    out = []
    for kind in order:
        shapes = np.array(list(counters[kind]))
        busiest = sorted(counters[kind].items(), key=lambda item: (-item[1], -math.prod(item[0])))[0][0]
        out.append([tuple(shapes.min(axis=0).tolist()), busiest, tuple(shapes.max(axis=0).tolist())])
    return out


def pick_profile(profiles, shape):
    best_index, best_distance = None, math.inf
    for index, (least, best, most) in enumerate(profiles):
        if len(least) != len(shape):
            continue
        if (np.asarray(shape) < least).any() or (np.asarray(shape) > most).any():
            continue
        away = math.fsum(abs(math.log(a) - math.log(b)) for a, b in zip(shape, best))
        if away < best_distance - 1e-12:
            best_index, best_distance = index, away
    if best_index is None:
        lines = [f"  profile {i}: min {'x'.join(map(str, p[0]))}, max {'x'.join(map(str, p[2]))}" for i, p in enumerate(profiles)]
        raise ValueError("\n".join([f"no profile for {'x'.join(map(str, shape))}", *lines, "resize the images or send smaller batches"]))
    return best_index


def build_engine(onnx_path, engine_path, profiles):
    model = Path(onnx_path).read_bytes()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    batch = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if batch is None else 1 << int(batch))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model) or not network.num_outputs:
        raise ValueError("not readable: " + " ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    source = network.get_input(0)
    if len(profiles) == 0:
        raise ValueError(f"{source.name}: no profile")
    config = builder.create_builder_config()
    kept = []
    for triple in profiles:
        array = [list(shape) for shape in triple]
        if {len(shape) for shape in array} != {len(source.shape)}:
            raise ValueError(f"{source.name}: rank")
        for dimension, sizes in zip(source.shape, zip(*array)):
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2] or (dimension >= 0 and set(sizes) != {dimension}):
                raise ValueError(f"{source.name}: {sizes} for a dimension of {dimension}")
        kept.append(builder.create_optimization_profile())
        kept[-1].set_shape(source.name, *array)
        assert config.add_optimization_profile(kept[-1]) == len(kept) - 1
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("no engine")
    part = Path(f"{engine_path}.unfinished")
    part.write_bytes(plan)
    os.replace(part, engine_path)


class Detector:
    def __init__(self, plan):
        import pycuda.driver as cuda
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if not self.engine:
            raise ValueError("no engine in this file")
        self.context = self.engine.create_execution_context()
        self.side, self.main, self.switched = cuda.Stream(), cuda.Stream(), cuda.Event()
        self.names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.source = next(n for n in self.names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self.profiles = [tuple(map(tuple, self.engine.get_tensor_profile_shape(self.source, i))) for i in range(self.engine.num_optimization_profiles)]
        self.buffers = {}

    def buffer(self, name, nbytes):
        import pycuda.driver as cuda
        if name not in self.buffers or self.buffers[name][1] < nbytes:
            if name in self.buffers:
                self.buffers.pop(name)[0].free()
            self.buffers[name] = (cuda.mem_alloc(nbytes), nbytes)
        return self.buffers[name][0]

    def run(self, images):
        import pycuda.driver as cuda
        if images.dtype != np.dtype("float32"):
            raise ValueError(f"float32 wanted, {images.dtype} given")
        wanted = pick_profile(self.profiles, images.shape)
        if wanted != self.context.active_optimization_profile:
            if not self.context.set_optimization_profile_async(wanted, self.side.handle):
                raise RuntimeError("switch refused")
            self.switched.record(self.side)
            self.main.wait_for_event(self.switched)
        if not self.context.set_input_shape(self.source, tuple(images.shape)):
            raise RuntimeError("shape refused")
        staging = cuda.pagelocked_empty(images.shape, np.float32)
        staging[...] = images
        results = {}
        device = self.buffer(self.source, staging.nbytes)
        cuda.memcpy_htod_async(device, staging, self.main)
        self.context.set_tensor_address(self.source, int(device))
        for name in self.names:
            if name != self.source:
                results[name] = cuda.pagelocked_empty(tuple(self.context.get_tensor_shape(name)), np.float32)
                self.context.set_tensor_address(name, int(self.buffer(name, results[name].nbytes)))
        if not self.context.execute_async_v3(self.main.handle):
            raise RuntimeError("run refused")
        for name, array in results.items():
            cuda.memcpy_dtoh_async(array, self.buffers[name][0], self.main)
        self.main.synchronize()
        return {name: np.array(array) for name, array in results.items()}


def open_detector(engine_path):
    import pycuda.autoprimaryctx  # noqa: F401
    return Detector(Path(engine_path).read_bytes())


def detect(detector, images):
    return detector.run(images)
