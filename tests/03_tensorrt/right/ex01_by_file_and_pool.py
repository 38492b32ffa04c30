"""Parses from the path, limits the workspace, keeps the context and its buffers with the engine."""
from pathlib import Path

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


class Collector(trt.ILogger):
    """Keeps the messages, so that an error can say why."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, message):
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.lines.append(message)


def build_engine(onnx_path, engine_path, batches=(1, 8, 32)):
    path = Path(onnx_path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if list(batches) != sorted(batches) or batches[0] < 1:
        raise ValueError(f"not min <= opt <= max, from 1 on: {batches}")
    log = Collector()
    with_flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):
        with_flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)  # TensorRT until 10.16
    builder = trt.Builder(log)
    network = builder.create_network(with_flags)
    parser = trt.OnnxParser(network, log)
    ok = parser.parse_from_file(str(path))
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if errors or not ok:
        raise ValueError("\n".join(log.lines + [e.desc() for e in errors]))
    if network.num_outputs == 0:
        raise ValueError(f"{path} holds no network")

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 28)
    shapes = {network.get_input(i).name: tuple(network.get_input(i).shape) for i in range(network.num_inputs)}
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        if [d for d in shape if d < 0] != [-1] or shape[0] != -1:
            raise ValueError(f"cannot serve a range of batches with input {name} of shape {shape}")
        profile.set_shape(name, *((b,) + shape[1:] for b in batches))
    index = config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config) if index == 0 else None
    if not plan:
        raise RuntimeError("\n".join(log.lines) or "the builder returned nothing")
    Path(engine_path).write_bytes(memoryview(plan))


def load_engine(engine_path):
    import pycuda.autoprimaryctx  # noqa: F401
    engine = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).deserialize_cuda_engine(Path(engine_path).read_bytes())
    if not engine:
        raise ValueError(f"{engine_path}: no engine of this release for this GPU")
    return engine


kept = {}


def infer(engine, batch):
    import numpy as np
    import pycuda.driver as cuda
    if id(engine) not in kept:
        tensors = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        tensors.sort(key=lambda n: engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
        kept[id(engine)] = engine, engine.create_execution_context(), cuda.Stream(), tensors, {}
    engine, context, stream, (source, result), buffers = kept[id(engine)]
    if batch.dtype != np.float32 or batch.ndim != len(engine.get_tensor_shape(source)) or 0 in batch.shape:
        raise ValueError(f"wrong dtype or rank: {batch.dtype}, {batch.shape}")
    if not context.set_input_shape(source, batch.shape):
        raise ValueError(f"{batch.shape} is outside the profile")
    shape = tuple(context.get_tensor_shape(result))
    if batch.shape not in buffers:
        buffers[batch.shape] = (cuda.pagelocked_empty(batch.shape, np.float32), cuda.mem_alloc(batch.nbytes),
                                cuda.pagelocked_empty(shape, np.float32), cuda.mem_alloc(4 * int(np.prod(shape))))
    host_in, device_in, host_out, device_out = buffers[batch.shape]
    host_in[...] = batch
    context.set_tensor_address(source, int(device_in))
    context.set_tensor_address(result, int(device_out))
    cuda.memcpy_htod_async(device_in, host_in, stream)
    context.execute_async_v3(stream_handle=stream.handle)
    cuda.memcpy_dtoh_async(host_out, device_out, stream)
    stream.synchronize()
    return host_out.copy()
