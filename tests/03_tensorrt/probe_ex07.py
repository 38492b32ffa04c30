"""Runs in the submission's process, before it: watches the real builder, parses models and makes engines of known precision."""
import hashlib

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

builds, kept = [], []
FLAG = getattr(trt.BuilderFlag, "FP16", None)                                        # 8.6 to 10.16
TYPED = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)           # since 10.0


def build_serialized_network(builder, network, config):
    plan = real_build(builder, network, config)
    builds.append({
        "flag": FLAG is not None and config.get_flag(FLAG),
        "verbosity": config.profiling_verbosity.name,
        "sha256": None if plan is None else hashlib.sha256(memoryview(plan)).hexdigest(),
    })
    return plan


real_build = trt.Builder.build_serialized_network
trt.Builder.build_serialized_network = build_serialized_network


def take_builds():
    taken = list(builds)
    builds.clear()
    return taken


def release():
    """Whether the builder has an FP16 flag, and whether a network can be strongly typed."""
    return {"flag": FLAG is not None, "typed": FLAG is None or TYPED is not None}


def parse(onnx_path, typed=True):
    """The network of an ONNX file, strongly typed where that can be asked for."""
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    flags = 0 if explicit is None else 1 << int(explicit)
    if typed and TYPED is not None and FLAG is not None:
        flags |= 1 << int(TYPED)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    with open(onnx_path, "rb") as file:
        if not parser.parse(file.read()):
            raise ValueError(str(parser.get_error(0)))
    kept.append((logger, builder, parser))
    return network


def refusal(onnx_path):
    """What the parser says of a file that it refuses, for each of its errors: the operator where it names one (8.6 does not), else its description."""
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    with open(onnx_path, "rb") as file:
        if parser.parse(file.read()):
            raise AssertionError(f"{trt.__name__} {trt.__version__} reads {onnx_path}")
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return [hasattr(error, "node_operator") and error.node_operator() or error.desc() for error in errors]


# ---- for the half that runs on a GPU --------------------------------------------------------------------------------

def make_engine(onnx_path, precisions, detailed=True, ranges=None):
    """A loaded engine. precisions: layer's name to FP32 or FP16, obeyed where types decide nothing; ranges: input to min, opt, max."""
    import pycuda.autoprimaryctx  # noqa: F401
    network = parse(onnx_path)
    logger, builder, _ = kept[-1]
    config = builder.create_builder_config()
    if detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not release()["typed"]:
        if "FP16" in precisions.values():
            config.set_flag(FLAG)
        config.set_flag(getattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"))
        made = {}                                      # tensor to precision: an activation goes with its convolution, or no kernel has both
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            wanted = precisions.get(layer.name)
            if layer.type == trt.LayerType.ACTIVATION:
                wanted = made.get(layer.get_input(0).name)
            if wanted:
                setattr(layer, "precision", {"FP32": trt.float32, "FP16": trt.float16}[wanted])
                made[layer.get_output(0).name] = wanted
    if ranges:
        shapes = builder.create_optimization_profile()
        for name, (least, best, most) in ranges.items():
            shapes.set_shape(name, tuple(least), tuple(best), tuple(most))
        config.add_optimization_profile(shapes)
    plan = real_build(builder, network, config)
    runtime = trt.Runtime(logger)
    kept.append(runtime)
    return runtime.deserialize_cuda_engine(plan)


def load(engine_path):
    import pycuda.autoprimaryctx  # noqa: F401
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    kept.append(runtime)
    with open(engine_path, "rb") as file:
        return runtime.deserialize_cuda_engine(file.read())
