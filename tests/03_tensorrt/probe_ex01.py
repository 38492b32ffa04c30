"""Runs in the submission's process, before it: watches the real TensorRT and pycuda, and changes nothing they do.

The one exception is `fail_next_build`: the next build then returns None, as the builder does when it finds no way to
build, which no small model brings about on every release.
"""
import hashlib
import os

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

builds, trace, state = [], [], {"fail": False, "profiles": {}, "kept": []}


def add_optimization_profile(config, profile):
    index = real_add(config, profile)
    state["profiles"].setdefault(id(config), []).append((profile, index))
    state["kept"].append(config)           # so that no other config gets this id
    return index


def build_serialized_network(builder, network, config):
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    record = {
        "inputs": {t.name: tuple(t.shape) for t in inputs},
        "outputs": [network.get_output(i).name for i in range(network.num_outputs)],
        "profiles": [{t.name: [tuple(s) for s in profile.get_shape(t.name)] for t in inputs}
                     for profile, index in state["profiles"].get(id(config), []) if index >= 0],
        "rejected_profiles": sum(index < 0 for _, index in state["profiles"].get(id(config), [])),
        "sha256": None, "bytes": 0,
    }
    plan = None if state["fail"] else real_build(builder, network, config)
    state["fail"] = False
    if plan is not None:
        record |= {"sha256": hashlib.sha256(memoryview(plan)).hexdigest(), "bytes": plan.nbytes}
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


def parse(onnx_path, severity):
    """Builder, network, parser, and whether it parsed: the grader's own, apart from the submission's."""
    logger = trt.Logger(severity)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    with open(onnx_path, "rb") as file:
        return builder, network, parser, parser.parse(file.read())


def operators_refused(onnx_path, operators):
    """Those of the operators that the real parser names when it reports its errors."""
    _builder, _network, parser, _parsed = parse(onnx_path, trt.Logger.INTERNAL_ERROR)
    text = " ".join(f"{parser.get_error(i)} {parser.get_error(i).desc()}" for i in range(parser.num_errors))
    return [o for o in operators if o in text]


def files_left():
    """What the submission left in its working folder and in its temporary files."""
    return sorted(os.listdir())


def fail_next_build():
    state["fail"] = True


# ---- for the half that runs on a GPU --------------------------------------------------------------------------------

def build_plan(onnx_path, engine_path, shapes):
    """Builds an engine independently of the submission. shapes: input name to its min, opt and max shape."""
    builder, network, parser, parsed = parse(onnx_path, trt.Logger.ERROR)
    if not parsed:
        raise ValueError(str(parser.get_error(0)))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, tuple(least), tuple(best), tuple(most))
    real_add(config, profile)
    plan = real_build(builder, network, config)
    with open(engine_path, "wb") as file:
        file.write(plan)


def watch_cuda():
    """From now on, notes every launch, copy and synchronization that goes through pycuda and the execution context."""
    import pycuda.driver as cuda

    def noted(owner, name, kind):
        real = getattr(owner, name, None)
        if real is None:
            return

        def call(*args, **kwargs):
            trace.append(kind)
            return real(*args, **kwargs)
        setattr(owner, name, call)

    if state.get("watched"):
        return
    state["watched"] = True
    for name in ("execute_async_v3", "execute_v2", "execute_async_v2"):
        noted(trt.IExecutionContext, name, name)
    for name in ("memcpy_htod", "memcpy_dtoh"):
        noted(cuda, name, name)
        noted(cuda, name + "_async", name + "_async")
    noted(cuda.Stream, "synchronize", "synchronize")
    noted(cuda.Context, "synchronize", "synchronize")
    noted(cuda.Event, "synchronize", "synchronize")
    noted(cuda, "mem_alloc", "mem_alloc")


def take_trace():
    taken = list(trace)
    trace.clear()
    return taken


def free_device_bytes():
    import gc

    import pycuda.driver as cuda
    gc.collect()
    return int(cuda.mem_get_info()[0])


def versions():
    return {"module": trt.__name__, "version": trt.__version__}


def submitted(name):
    import sys
    return getattr(sys.modules["submission"], name)


def call_twice(engine, one, two):
    infer = submitted("infer")
    first = infer(engine, one)
    before = first.copy()
    infer(engine, two)
    return bool((first == before).all())


def call_many(engine, x, times):
    infer = submitted("infer")
    for _ in range(times):
        infer(engine, x)
