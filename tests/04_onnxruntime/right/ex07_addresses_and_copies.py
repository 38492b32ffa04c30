"""Values from zeroed arrays, bound by address; ONNX Runtime's own retry switched off; results copied from the values."""
import numpy
import onnxruntime
from warnings import warn

FLAGS = ("use_tf32", "enable_cuda_graph", "prefer_nhwc", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_use_max_workspace", "do_copy_in_default_stream")
NUMBERS = ("device_id", "gpu_mem_limit")
WORDS = {"cudnn_conv_algo_search": ["EXHAUSTIVE", "HEURISTIC", "DEFAULT"], "arena_extend_strategy": ["kNextPowerOfTwo", "kSameAsRequested"]}
NAMES = {"float": "float32", "double": "float64"}


def cuda_provider(**wanted):
    def text(name, value):
        if name in FLAGS and isinstance(value, bool):
            return "01"[value]
        if name in NUMBERS and isinstance(value, int) and not isinstance(value, bool) and value > -1:
            return f"{value:d}"
        if isinstance(value, str) and value in WORDS.get(name, []):
            return value
        raise ValueError(f"cannot set {name} to {value!r}")

    return "CUDAExecutionProvider", {name: text(name, value) for name, value in wanted.items()}


def unmet(options, provider_options):
    different = {}
    for name in options:
        have = provider_options["CUDAExecutionProvider"].get(name) if "CUDAExecutionProvider" in provider_options else None
        if have is None or have != options[name]:
            different[name] = options[name], have
    return different


def open_cuda(model_path, options, settings=None, fallback=False):
    problem = None
    try:
        session = onnxruntime.InferenceSession(model_path, settings, ["CUDAExecutionProvider", "CPUExecutionProvider"], [options, {}], enable_fallback=0)
    except RuntimeError as error:
        problem = f"CUDAExecutionProvider did not take {', '.join(options)}: {error}"
    else:
        if session.get_providers() == ["CPUExecutionProvider"]:
            problem = "no CUDAExecutionProvider here"
        elif different := unmet(options, session.get_provider_options()):
            problem = f"CUDAExecutionProvider differs: {different}"
    if problem is None:
        return session
    if not fallback:
        raise RuntimeError(problem)
    warn(problem, RuntimeWarning, stacklevel=2)
    return onnxruntime.InferenceSession(model_path, settings, ["CPUExecutionProvider"])


def plan(session, **sizes):
    open_sizes = set(sizes)

    def entry(node):
        shape = []
        for place, size in enumerate(node.shape):
            if isinstance(size, str) and size in sizes:
                open_sizes.discard(size)
                size = sizes[size]
            if not isinstance(size, int):
                raise ValueError(f"dimension {place} of {node.name} is open ({size})")
            shape.append(size)
        inside = node.type.removeprefix("tensor(").removesuffix(")")
        return node.name, (tuple(shape), numpy.dtype(NAMES.get(inside, inside)))

    shapes = {"inputs": dict(map(entry, session.get_inputs())), "outputs": dict(map(entry, session.get_outputs()))}
    for name in open_sizes:
        raise ValueError(f"{name} is the name of no dimension")
    return shapes


class Replay:
    def __init__(self, session, plan, warm_up=2):
        self.session, self.plan = session, plan
        self.device = {"CUDAExecutionProvider": "cuda"}.get(session.get_providers()[0], "cpu")
        self.values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(numpy.zeros(shape, dtype), self.device, 0)
                       for side in plan.values() for name, (shape, dtype) in side.items()}
        self.io = session.io_binding()
        for side, bind in (("inputs", self.io.bind_input), ("outputs", self.io.bind_output)):
            for name, (shape, dtype) in plan[side].items():
                bind(name, self.device, 0, dtype, shape, self.values[name].data_ptr())
        self.pending = False
        while warm_up > 0:
            self.session.run_with_iobinding(self.io)
            warm_up -= 1

    def check(self, feeds):
        wanted = self.plan["inputs"]
        for name in {*wanted, *feeds}:
            if name not in wanted or name not in feeds:
                raise ValueError(f"{name} is not among {list(wanted)}, or was not given")
            if (feeds[name].dtype, feeds[name].shape) != (wanted[name][1], wanted[name][0]):
                kind = TypeError if feeds[name].dtype != wanted[name][1] else ValueError
                raise kind(f"{name}: given {feeds[name].shape} {feeds[name].dtype}, planned {wanted[name]}")

    def start(self, feeds):
        if self.pending:
            raise RuntimeError("finish first")
        self.check(feeds)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for name, array in feeds.items():
            self.values[name].update_inplace(array)
        self.session.run_with_iobinding(self.io, options)
        self.pending = True

    def finish(self):
        if not self.pending:
            raise RuntimeError("start first")
        self.pending = False
        self.io.synchronize_outputs()
        return {name: self.values[name].numpy().copy() for name in self.plan["outputs"]}

    def __call__(self, feeds):
        self.start(feeds)
        return self.finish()
