"""Runs in the submission's process, before it: notes what is built, and changes nothing of it. For ex04_explicit_int8.

The one exception is `fail_next_build`: the next build then returns None, as the builder does when it finds no way to build.
"""
import hashlib
import json
import os

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

builds, state = [], {"fail": False, "profiles": {}, "kept": []}


def add_optimization_profile(config, profile):
    index = real_add(config, profile)
    state["profiles"].setdefault(id(config), []).append((profile, index))
    state["kept"].append(config)           # so that no other config gets this id
    return index


def build_serialized_network(builder, network, config):
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    kinds = [network.get_layer(i).type for i in range(network.num_layers)]
    int8 = getattr(trt.BuilderFlag, "INT8", None)
    record = {
        "inputs": {t.name: tuple(t.shape) for t in inputs},
        "outputs": [network.get_output(i).name for i in range(network.num_outputs)],
        "quantize_layers": kinds.count(trt.LayerType.QUANTIZE), "dequantize_layers": kinds.count(trt.LayerType.DEQUANTIZE),
        "int8": None if int8 is None else bool(config.get_flag(int8)), "verbosity": str(config.profiling_verbosity).rsplit(".", 1)[-1],
        "profiles": [{t.name: [tuple(s) for s in profile.get_shape(t.name)] for t in inputs}
                     for profile, index in state["profiles"].get(id(config), []) if index >= 0],
        "rejected_profiles": sum(index < 0 for _, index in state["profiles"].get(id(config), [])),
        "sha256": None,
    }
    plan = None if state["fail"] else real_build(builder, network, config)
    state["fail"] = False
    if plan is not None:
        record["sha256"] = hashlib.sha256(memoryview(plan)).hexdigest()
    builds.append(record)
    return plan


real_add, real_build = trt.IBuilderConfig.add_optimization_profile, trt.Builder.build_serialized_network
trt.IBuilderConfig.add_optimization_profile = add_optimization_profile
trt.Builder.build_serialized_network = build_serialized_network


def take_builds():
    """What was built since the last call, oldest first."""
    taken = list(builds)
    builds.clear()
    return taken


def fail_next_build():
    state["fail"] = True


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def files_left():
    """What the submission left in its working folder."""
    return sorted(os.listdir())


def calibrate_from_generator(path, batches, percentile):
    """`calibrate` of the submission with a generator, which can be gone through once."""
    import sys
    return sys.modules["submission"].calibrate(path, (feed for feed in batches), percentile)


# ---- what TensorRT makes of a file: the grader's own build ------------------------------------------------------------

class Layers(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines, self.errors = [], []

    def log(self, severity, text):
        if severity in (trt.Logger.INTERNAL_ERROR, trt.Logger.ERROR):
            self.errors.append(text)
        if text.startswith("Layers:"):
            self.lines = [line for line in text.splitlines() if line.startswith("Name: ")]


def kernels(path):
    """What the builder says of a file: {"problem"} or {"layers": [(type, types of its inputs, ONNX nodes), ...]}.

    The list is in the verbose log of TensorRT for RTX; elsewhere nothing is built, and it is empty. Dimension 0 of every input is built for 1, 4 and 8.
    """
    if trt.__name__ != "tensorrt_rtx":
        return {"problem": None, "layers": []}
    log = Layers()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            return {"problem": "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))[:600], "layers": []}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in (1, 4, 8)))
    real_add(config, profile)
    if real_build(builder, network, config) is None:
        return {"problem": "; ".join(log.errors)[:600] or "the builder returned None", "layers": []}
    layers = []
    for line in log.lines:
        inputs = line.split("Inputs: [", 1)[1].split("Outputs: [", 1)[0].split("Constants: [", 1)[0]
        layers.append((line.split("LayerType: ")[1].split(",")[0], [part.split(",")[0] for part in inputs.split("Datatype: ")[1:]],
                       [part.split("]")[0] for part in line.split("[ONNX Layer: ")[1:]]))
    return {"problem": None, "layers": layers}


# ---- for the half that runs on a GPU --------------------------------------------------------------------------------

def load(path):
    import pycuda.autoprimaryctx  # noqa: F401

    with open(path, "rb") as file:
        return trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(file.read())


def run_engine(path, batch):
    """The output of an engine file with one input and one output, for a float32 batch."""
    import numpy as np
    import pycuda.driver as cuda

    engine = load(path)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    source, = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
    result, = (n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
    context, stream = engine.create_execution_context(), cuda.Stream()
    if not context.set_input_shape(source, batch.shape):
        raise ValueError(f"the engine refuses {batch.shape}")
    output = np.empty(tuple(context.get_tensor_shape(result)), np.float32)
    memory = cuda.mem_alloc(batch.nbytes), cuda.mem_alloc(output.nbytes)
    cuda.memcpy_htod(memory[0], np.ascontiguousarray(batch))
    context.set_tensor_address(source, int(memory[0]))
    context.set_tensor_address(result, int(memory[1]))
    if not context.execute_async_v3(stream.handle):
        raise RuntimeError("execute_async_v3 was refused")
    stream.synchronize()
    cuda.memcpy_dtoh(output, memory[1])
    return output


def engine_layers(path, batch):
    """What the inspector says of an engine file's layers at a batch: a list of dicts, or of names where the engine holds no more."""
    engine = load(path)
    context, inspector = engine.create_execution_context(), engine.create_engine_inspector()
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, (batch, *tuple(engine.get_tensor_shape(name))[1:]))
    inspector.execution_context = context
    return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON), strict=False)["Layers"]    # 8.6 leaves control characters in it
