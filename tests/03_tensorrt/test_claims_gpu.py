"""What the pages say of TensorRT's runtime and only a GPU can prove: on any machine with tensorrt (8.6 to 11) and pycuda.

Run with 8.6.0 on an H100, last on 2026-11-26: all seventeen passed. 10 and 11 have not run them.
"""
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


# What the inspector, the profiler, two contexts and four ways to ask for FP16 say: pages 22, 25 and 32 ------------------------

WIDE = 2048


def float_model(half, width=256, layers=3, rows="N"):
    """An MLP in ONNX with weights of FP32, or of FP16 between two casts; its input and output are FP32 in both."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    rng, kind = np.random.default_rng(0), np.float16 if half else np.float32
    nodes, stored, now = [], [], "x"
    if half:
        nodes, now = [helper.make_node("Cast", ["x"], ["x16"], "cast_in", to=TensorProto.FLOAT16)], "x16"
    for i in range(layers):
        weight = (rng.standard_normal((width, width)) * (2 / width) ** 0.5).astype(kind)
        stored.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [now, f"w{i}"], [f"p{i}"], f"product{i}"))
        nodes.append(helper.make_node("Relu", [f"p{i}"], [f"r{i}"], f"relu{i}"))
        now = f"r{i}"
    nodes.append(helper.make_node("Cast", [now], ["y"], "cast_out", to=TensorProto.FLOAT) if half
                 else helper.make_node("Identity", [now], ["y"], "same"))
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, width])] for n in "xy"]
    graph = helper.make_graph(nodes, "mlp", *ends, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def built(trt, model, flags=(), width=256, profiles=1, verbosity="DETAILED"):
    """(engine, plan) of `model`, or (None, None); what the library says goes to the test's output."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, verbosity)
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    for _ in range(profiles):
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, width), (64, width), (64, width))
        assert config.add_optimization_profile(profile) >= 0
    plan = builder.build_serialized_network(network, config)
    return (None, None) if plan is None else (trt.Runtime(logger).deserialize_cuda_engine(plan), plan)


def layers_of(trt, engine, context=None):
    import json
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return json.loads(text, strict=False)              # 8.6 separates the metadata's nodes with a raw control character
    except ValueError:
        return {"Layers": [], "not JSON": text[:500]}      # with verbosity NONE 8.6 gives an empty text


def test_only_a_detailed_plan_tells_the_inspector_more_than_names(trt):
    import json
    seen = {}
    for verbosity in ("NONE", "LAYER_NAMES_ONLY", "DETAILED"):
        engine, plan = built(trt, float_model(False, rows=64), profiles=0, verbosity=verbosity)
        seen[verbosity] = layers_of(trt, engine)
        rows = seen[verbosity].get("Layers", [])
        print(f"{verbosity}: keys {sorted(seen[verbosity])}, layers {len(rows)}, of type {sorted({type(r).__name__ for r in rows})}")
    print(json.dumps(seen["DETAILED"])[:6000])
    assert all(isinstance(row, str) for row in seen["LAYER_NAMES_ONLY"]["Layers"])
    assert seen["DETAILED"]["Layers"] and all(isinstance(row, dict) for row in seen["DETAILED"]["Layers"])


def test_a_dynamic_engine_needs_a_context_with_shapes_to_be_inspected_whole(trt):
    """Setting the shape is not enough in 8.6.0: formats come when the shapes were inferred too, by infer_shapes or by a run."""
    import json
    engine, plan = built(trt, float_model(False))
    context, unknown = engine.create_execution_context(), {}

    def ask(label, *context):
        told = layers_of(trt, engine, *context)["Layers"]
        unknown[label] = json.dumps(told).count("N/A due to dynamic shapes")
        print(f"{label}: {unknown[label]} formats are N/A; last layer {json.dumps(told[-1])[:600]}")

    ask("no context")
    assert context.set_input_shape("x", (64, 256))
    ask("shape set", context)
    assert context.infer_shapes() == []
    ask("shapes inferred", context)
    assert unknown["shapes inferred"] <= unknown["shape set"] <= unknown["no context"]
    assert not trt.__version__.startswith("8.") or unknown["shapes inferred"] == 0 < unknown["no context"]


def test_types_at_the_ends_do_not_tell_fp16_from_fp32(trt):
    import json
    has_flag = hasattr(trt.BuilderFlag, "FP16")
    for half in (False, True):
        for flags in ((), ("FP16",)) if has_flag else ((),):
            engine, plan = built(trt, float_model(half, WIDE, rows=64), flags, WIDE, profiles=0)
            if engine is None:
                print(f"file {'FP16' if half else 'FP32'}, flags {flags}: refused")
                continue
            text = json.dumps([row.get("Outputs") for row in layers_of(trt, engine)["Layers"]])
            inner = {word: text.count(word) for word in ("FP32", "FP16", "Float", "Half")}
            names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
            ends = {name: engine.get_tensor_dtype(name).name for name in names}
            print(f"file {'FP16' if half else 'FP32'}, flags {flags}: plan {plan.nbytes:,} bytes, ends {ends}, in outputs of layers {inner}")
            assert set(ends.values()) == {"FLOAT"}


def test_the_profiler_speaks_of_the_inspectors_layers_and_only_when_asked(trt):
    import pycuda.driver as cuda

    class Names(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)
            self.names = []

        def report_layer_time(self, layer_name, ms):
            self.names.append(layer_name)

    engine, plan = built(trt, float_model(False))
    context, stream, profiler = engine.create_execution_context(), cuda.Stream(), Names()
    buffers = {name: cuda.mem_alloc(64 * 256 * 4) for name in "xy"}
    assert context.set_input_shape("x", (64, 256))
    for name, buffer in buffers.items():
        context.set_tensor_address(name, int(buffer))
    context.profiler, context.enqueue_emits_profile = profiler, False
    assert context.execute_async_v3(stream.handle)
    stream.synchronize()
    before = list(profiler.names)
    assert context.report_to_profiler()
    inspected = [row["Name"] for row in layers_of(trt, engine)["Layers"]]
    print("profiler:", profiler.names)
    print("inspector:", inspected)
    assert before == [] and set(profiler.names) & set(inspected)


def test_a_second_context_costs_activations_and_no_weights(trt, record_property):
    import pycuda.driver as cuda
    free = [cuda.mem_get_info()[0]]
    engine, plan = built(trt, float_model(False, WIDE, 8), (), WIDE, profiles=2)
    free.append(cuda.mem_get_info()[0])
    contexts = []
    for _ in range(2):
        contexts.append(engine.create_execution_context())
        free.append(cuda.mem_get_info()[0])
    used = [(a - b) / 2**20 for a, b in zip(free, free[1:])]
    weights = 8 * WIDE * WIDE * 4 / 2**20
    need = getattr(engine, "device_memory_size_v2", None) or getattr(engine, "device_memory_size", 0)
    print(f"weights {weights:.0f} MiB; taken by build and engine {used[0]:.0f} MiB, by the contexts {used[1]:.0f} and {used[2]:.0f} MiB; "
          f"activations {need / 2**20:.1f} MiB")
    record_property("second_context", {"weights_mib": round(weights), "build_and_engine_mib": round(used[0]), "first_context_mib": round(used[1]),
                                       "second_context_mib": round(used[2]), "activations_mib": round(need / 2**20, 1)})
    assert used[2] < weights / 2


def test_two_contexts_on_two_streams_do_not_disturb_each_other(trt):
    import pycuda.driver as cuda
    engine, plan = built(trt, float_model(False), profiles=2)
    rng, jobs = np.random.default_rng(1), []
    for index in range(2):
        stream, context = cuda.Stream(), engine.create_execution_context()
        assert context.set_optimization_profile_async(index, stream.handle)
        stream.synchronize()
        assert context.set_input_shape("x", (64, 256))
        batch = rng.standard_normal((64, 256)).astype(np.float32)
        ends = {name: cuda.mem_alloc(batch.nbytes) for name in "xy"}
        cuda.memcpy_htod(ends["x"], batch)
        for name, buffer in ends.items():
            context.set_tensor_address(name, int(buffer))
        jobs.append((context, stream, batch, ends))
    for _ in range(200):
        for context, stream, *_ in jobs:
            assert context.execute_async_v3(stream.handle)
    weights = np.random.default_rng(0)
    weights = [(weights.standard_normal((256, 256)) * (2 / 256) ** 0.5).astype(np.float32) for _ in range(3)]
    for _, stream, batch, ends in jobs:
        stream.synchronize()
        got, want = np.empty_like(batch), batch.astype(np.float64)
        cuda.memcpy_dtoh(got, ends["y"])
        for weight in weights:
            want = np.maximum(want @ weight, 0)
        assert np.abs(got - want).max() < 0.02 * want.max()


SECOND = """
import sys
sys.path.insert(0, "tests/03_tensorrt")
import pycuda.autoprimaryctx
import pycuda.driver as cuda
import tensorrt as trt
from test_claims_gpu import built, float_model

engine, plan = built(trt, float_model(False))
pair, stream = (engine.create_execution_context(), engine.create_execution_context()), cuda.Stream()
print("profiles", [context.active_optimization_profile for context in pair], flush=True)
print("shape set", [bool(context.set_input_shape("x", (64, 256))) for context in pair], flush=True)
ends = {name: cuda.mem_alloc(64 * 256 * 4) for name in "xy"}
for name, buffer in ends.items():
    pair[1].set_tensor_address(name, int(buffer))
print("the second runs", bool(pair[1].execute_async_v3(stream.handle)), flush=True)
stream.synchronize()
print("the second may choose profile 0", bool(pair[1].set_optimization_profile_async(0, stream.handle)), flush=True)
stream.synchronize()
"""


def test_a_second_context_of_an_engine_with_one_profile(trt):
    """In a process of its own: 8.6.0 on an H100 ended it by a segmentation fault when the second context was given the first one's profile."""
    import subprocess
    import sys
    done = subprocess.run([sys.executable, "-c", SECOND], cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = [line for line in done.stdout.splitlines() if line.startswith(("profiles ", "shape set ", "the second "))]
    print("\n".join(said), f"exit status {done.returncode}", done.stdout, done.stderr[-2000:], sep="\n")
    if trt.__version__.startswith("8."):
        assert said[:3] == ["profiles [0, -1]", "shape set [True, True]", "the second runs False"]
    else:
        assert done.returncode == 0 and said[2:] == ["the second runs True", "the second may choose profile 0 True"]


def test_a_bisection_finds_the_layers_that_fp16_breaks(trt):
    """Page 26, on releases with weak typing: FP16 for all blocks but the first k, by binary search over k. A block is a product with its
    Relu: in 8.6 a fused pair whose halves want different types has no implementation, and the build returns None."""
    if not hasattr(trt.BuilderFlag, "FP16"):
        pytest.skip(f"not run here: {trt.__version__} has no FP16 flag, the search is over files")
    import re

    import onnx
    import pycuda.driver as cuda
    from onnx import numpy_helper
    blocks = 12
    model = onnx.load_from_string(float_model(False, rows=64, layers=blocks))
    for stored in model.graph.initializer:                 # product4 reaches 10^5 and more, product5 takes it back
        scale = {"w4": 3e4, "w5": 1 / 3e4}.get(stored.name)
        if scale:
            stored.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(stored) * scale).astype(np.float32), stored.name))
    weights = [numpy_helper.to_array(w).astype(np.float64) for w in model.graph.initializer]
    batch = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    want = batch.astype(np.float64)
    for weight in weights:
        want = np.maximum(want @ weight, 0)
    logger = trt.Logger(trt.Logger.ERROR)

    def error(keep):
        """Largest error with FP16 allowed and the first `keep` blocks held in FP32; inf where the result is not finite."""
        builder = trt.Builder(logger)
        explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        network = builder.create_network(0 if explicit is None else 1 << int(explicit))
        parser = trt.OnnxParser(network, logger)
        assert parser.parse(model.SerializeToString())
        config = builder.create_builder_config()
        config.set_flag(trt.BuilderFlag.FP16)  # TensorRT until 10.16
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)  # TensorRT until 10.16
        config.clear_flag(trt.BuilderFlag.TF32)
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            block = re.fullmatch(r"(?:product|relu)(\d+)", layer.name)
            if block:
                kind = trt.float32 if int(block[1]) < keep else trt.float16
                layer.precision = kind  # TensorRT until 10.16
                layer.set_output_type(0, kind)  # TensorRT until 10.16
        plan = builder.build_serialized_network(network, config)
        assert plan is not None, f"no plan with {keep} blocks in FP32"
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        context, stream = engine.create_execution_context(), cuda.Stream()
        ends, got = {name: cuda.mem_alloc(batch.nbytes) for name in "xy"}, np.empty_like(batch)
        cuda.memcpy_htod(ends["x"], batch)
        for name, buffer in ends.items():
            context.set_tensor_address(name, int(buffer))
        assert context.execute_async_v3(stream.handle)
        stream.synchronize()
        cuda.memcpy_dtoh(got, ends["y"])
        return float(np.abs(got - want).max()) if np.isfinite(got).all() else float("inf")

    limit, good, bad, builds = 0.05 * want.max(), blocks, 0, 0
    whole, start = error(blocks), error(0)
    print(f"{blocks} blocks; all in FP32: error {whole:.1e}, all in FP16: error {start:.2g}, allowed {limit:.1e}")
    assert whole < limit < start
    while good - bad > 1:
        middle, builds = (good + bad) // 2, builds + 1
        found = error(middle)
        print(f"first {middle} blocks in FP32: error {found:.2g}")
        good, bad = (middle, bad) if found < limit else (good, middle)
    print(f"needed: the first {good} of {blocks} blocks, after {builds} builds")
    assert good == 6, "blocks 0 to 5: the overflow is made in 4 and taken back in 5"


def test_in_8_fp16_and_int8_are_bits_0_and_1_and_sources_start_with_cublas(trt):
    if not trt.__version__.startswith("8."):
        pytest.skip(f"not run here: {trt.__version__} has other numbers, or none")
    numbers = {name: int(value) for name, value in trt.BuilderFlag.__members__.items()}
    assert (numbers["FP16"], numbers["INT8"]) == (0, 1)
    sources = {name: int(value) for name, value in trt.TacticSource.__members__.items()}
    assert sources == {"CUBLAS": 0, "CUBLAS_LT": 1, "CUDNN": 2, "EDGE_MASK_CONVOLUTIONS": 3, "JIT_CONVOLUTIONS": 4}
    assert int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) == 0  # TensorRT until 10.16
