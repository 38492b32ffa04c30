"""What the pages say of TensorRT's runtime and only a GPU can prove: on any machine with tensorrt (8.6 to 11) and pycuda."""
import numpy as np
import pytest

from course import ROOT

pytestmark = pytest.mark.gpu("tensorrt", "pycuda")
MODEL = ROOT / "models/digits_mlp/digits_mlp.onnx"


def network_of(trt, logger, explicit=True):
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(1 << int(flag) if explicit and flag is not None else 0)
    parser = trt.OnnxParser(network, logger)
    return builder, network, parser, parser.parse(MODEL.read_bytes())


@pytest.fixture(scope="module")
def trt():
    import pycuda.autoprimaryctx  # noqa: F401
    import tensorrt
    return tensorrt


@pytest.fixture(scope="module")
def engine(trt):
    logger = trt.Logger(trt.Logger.ERROR)
    builder, network, parser, parsed = network_of(trt, logger)
    assert parsed
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("pixels", (1, 784), (8, 784), (32, 784))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return trt.Runtime(logger).deserialize_cuda_engine(plan)


def bound(engine, cuda, rows):
    """A context for a batch of `rows`, with buffers bound; the buffers have to live as long as it."""
    context = engine.create_execution_context()
    assert context.set_input_shape("pixels", (rows, 784))
    buffers = [cuda.mem_alloc(rows * 784 * 4), cuda.mem_alloc(rows * 10 * 4)]
    context.set_tensor_address("pixels", int(buffers[0]))
    context.set_tensor_address("probabilities", int(buffers[1]))
    return context, buffers


def test_without_explicit_batch_the_parser_of_8_refuses(trt):
    if not trt.__version__.startswith("8."):
        pytest.skip(f"not run here: implicit batch is history in {trt.__version__}")
    *_, parser, parsed = network_of(trt, trt.Logger(trt.Logger.INTERNAL_ERROR), explicit=False)
    assert not parsed and parser.num_errors > 0


def test_a_shape_outside_the_profile_is_refused_by_false(engine):
    context = engine.create_execution_context()
    assert context.set_input_shape("pixels", (32, 784))
    assert not context.set_input_shape("pixels", (33, 784))


def test_output_shape_is_known_only_after_the_inputs(engine):
    context = engine.create_execution_context()
    assert tuple(context.get_tensor_shape("probabilities")) == (-1, 10)
    context.set_input_shape("pixels", (5, 784))
    assert tuple(context.get_tensor_shape("probabilities")) == (5, 10)


def test_no_engine_deserializes_to_none(trt):
    assert trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).deserialize_cuda_engine(b"no engine" * 100) is None


def test_execution_without_addresses_is_refused_by_false(engine):
    import pycuda.driver as cuda
    context = engine.create_execution_context()
    context.set_input_shape("pixels", (1, 784))
    assert not context.execute_async_v3(cuda.Stream().handle)


def test_execute_v2_takes_device_addresses_not_numpy(engine):
    import pycuda.driver as cuda
    context, buffers = bound(engine, cuda, 1)
    with pytest.raises(TypeError):
        context.execute_v2(np.zeros((1, 784), np.float32), np.zeros((1, 10), np.float32))
    assert context.execute_v2([int(b) for b in buffers])


def test_tf32_is_on_by_default_and_can_be_cleared(trt):
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)
    config.clear_flag(trt.BuilderFlag.TF32)
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_without_tf32_the_digits_are_nearer_to_float64(trt):
    import onnx
    import pycuda.driver as cuda
    images = (np.load(MODEL.parent / "heldout.npz")["images"][:32].reshape(32, 784) / 255).astype(np.float32)
    w = {i.name: onnx.numpy_helper.to_array(i).astype(np.float64) for i in onnx.load(MODEL).graph.initializer}
    logits = np.maximum(images @ w["hidden.weight"].T + w["hidden.bias"], 0) @ w["logits.weight"].T + w["logits.bias"]
    exact = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    worst = {}
    for tf32 in (True, False):
        logger = trt.Logger(trt.Logger.ERROR)
        builder, network, parser, parsed = network_of(trt, logger)
        config = builder.create_builder_config()
        if not tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        profile.set_shape("pixels", (1, 784), (8, 784), (32, 784))
        config.add_optimization_profile(profile)
        engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
        context, (source, result) = bound(engine, cuda, 32)
        stream, out = cuda.Stream(), np.empty((32, 10), np.float32)
        cuda.memcpy_htod_async(source, images, stream)
        assert context.execute_async_v3(stream.handle)
        cuda.memcpy_dtoh_async(out, result, stream)
        stream.synchronize()
        worst[tf32] = np.abs(out - exact).max()
    print(f"largest difference of a probability: TF32 {worst[True]:.1e}, FP32 {worst[False]:.1e}")
    assert worst[False] < 1e-5 and worst[True] < 2e-3
