"""Sizes the output by the profile's largest batch.

fails: test_gpu_digits
says: sized by the profile's maximum
"""
import os

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def build_engine(onnx_path, engine_path, batches=(1, 8, 32)):
    low, best, high = batches
    if not 1 <= low <= best <= high:
        raise ValueError(f"batches out of order: {batches}")
    with open(onnx_path, "rb") as file:
        model = file.read()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model) or not network.num_inputs or not network.num_outputs:
        raise ValueError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)) or "no ONNX model")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if tensor.shape[0] != -1 or -1 in tuple(tensor.shape)[1:]:
            raise ValueError(f"{tensor.name}: {tuple(tensor.shape)}: the batch, and nothing else, has to be dynamic")
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (low, *rest), (best, *rest), (high, *rest))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("no engine was found")
    with open(engine_path, "wb") as file:
        file.write(plan)


def load_engine(engine_path):
    import pycuda.autoprimaryctx  # noqa: F401
    with open(engine_path, "rb") as file:
        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(file.read())
    if engine is None:
        raise ValueError("no engine")
    return engine


def infer(engine, batch):
    import numpy as np
    import pycuda.driver as cuda
    if batch.dtype != np.float32:
        raise ValueError(f"float32 is needed, not {batch.dtype}")
    source, result = sorted((engine.get_tensor_name(i) for i in range(2)), key=lambda n: engine.get_tensor_mode(n) != trt.TensorIOMode.INPUT)
    low, _, high = engine.get_tensor_profile_shape(source, 0)
    if batch.ndim != len(low) or any(not a <= b <= c for a, b, c in zip(low, batch.shape, high)):
        raise ValueError(f"shape {batch.shape} is outside {tuple(low)} to {tuple(high)}")
    batch = np.ascontiguousarray(batch)
    context = engine.create_execution_context()
    context.set_input_shape(source, batch.shape)
    output = np.empty((high[0], context.get_tensor_shape(result)[1]), np.float32)
    stream = cuda.Stream()
    a, b = cuda.mem_alloc(batch.nbytes), cuda.mem_alloc(output.nbytes)
    context.set_tensor_address(source, int(a))
    context.set_tensor_address(result, int(b))
    cuda.memcpy_htod_async(a, batch, stream)
    context.execute_async_v3(stream.handle)
    cuda.memcpy_dtoh_async(output, b, stream)
    stream.synchronize()
    return output
