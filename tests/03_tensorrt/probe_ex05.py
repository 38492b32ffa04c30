"""Runs in the submission's process, before it. For ex05_read_an_engine: real engines' layers, and calls that watch their arguments."""
import copy
import sys

try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.layers, self.errors = None, []

    def log(self, severity, text):
        if severity in (trt.Logger.INTERNAL_ERROR, trt.Logger.ERROR):
            self.errors.append(text)
        if text.startswith("Layers:"):
            self.layers = text


def layer_text(path):
    """What the builder says of the engine's layers, at the end of its verbose log: TensorRT for RTX says it in this form. None elsewhere."""
    if trt.__name__ != "tensorrt_rtx":
        return None
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            raise ValueError(str(parser.get_error(0)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if builder.build_serialized_network(network, config) is None:
        raise RuntimeError("; ".join(log.errors)[:500])
    return log.layers


def submitted(name):
    return getattr(sys.modules["submission"], name)


def changes_its_arguments(name, *arguments):
    """Whether a function of the submission changes what it is given."""
    before = copy.deepcopy(arguments)
    submitted(name)(*arguments)
    return arguments != before
