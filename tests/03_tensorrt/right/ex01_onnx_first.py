"""Reads the model with the onnx package first, names the interface from there; blocking copies on the default stream's side."""
import onnx

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


def shapes_of(model):
    weights = {w.name for w in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights:
            yield value.name, [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]


def build_engine(onnx_path, engine_path, batches=(1, 8, 32)):
    a, b, c = batches
    if a < 1 or b < a or c < b:
        raise ValueError(f"batches {batches}")
    try:
        model = onnx.load(onnx_path)
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{onnx_path} is not a valid ONNX model: {error}") from error
    profiles = {}
    for name, (first, *rest) in shapes_of(model):
        if first is not None or None in rest:
            raise ValueError(f"{name}: {[first, *rest]}")
        profiles[name] = [[n, *rest] for n in (a, b, c)]

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        nodes = [model.graph.node[e.node()].op_type if e.node() >= 0 else "?" for e in errors]
        raise ValueError("; ".join(f"node {e.node()} ({op}): {e.desc()}" for e, op in zip(errors, nodes)))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, triple in profiles.items():
        profile.set_shape(name, *triple)
    config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise RuntimeError("build failed")
    with open(engine_path, "wb") as out:
        out.write(bytes(serialized))


def load_engine(engine_path):
    import pycuda.autoprimaryctx  # noqa: F401
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    with open(engine_path, "rb") as file:
        if (engine := runtime.deserialize_cuda_engine(file.read())) is not None:
            return engine
    raise ValueError(f"{engine_path} is not an engine")


def infer(engine, batch):
    import numpy as np
    import pycuda.driver as cuda
    import pycuda.gpuarray as gpuarray
    names = {engine.get_tensor_mode(n): n for n in map(engine.get_tensor_name, range(engine.num_io_tensors))}
    source, result = names[trt.TensorIOMode.INPUT], names[trt.TensorIOMode.OUTPUT]
    context = engine.create_execution_context()
    if batch.dtype != np.dtype("float32"):
        raise ValueError("float32, please")
    low, _, high = (np.array(s) for s in engine.get_tensor_profile_shape(source, 0))
    size = np.array(batch.shape)
    if size.shape != low.shape or (size < low).any() or (size > high).any() or not context.set_input_shape(source, batch.shape):
        raise ValueError(f"{batch.shape} does not fit {low.tolist()}..{high.tolist()}")
    x = gpuarray.to_gpu(np.array(batch, order="C"))
    y = gpuarray.empty(tuple(context.get_tensor_shape(result)), np.float32)
    for name, array in ((source, x), (result, y)):
        context.set_tensor_address(name, int(array.gpudata))
    stream = cuda.Stream()
    context.execute_async_v3(stream.handle)
    stream.synchronize()
    return y.get()
