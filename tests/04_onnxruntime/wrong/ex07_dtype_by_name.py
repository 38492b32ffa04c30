"""Compares the names of dtypes, and both byte orders have one name.

fails: test_replay_refuses
says: The array has the other byte order
"""
import warnings

import numpy as np
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
KINDS = {  # the options that this service may set, and what each takes
    "device_id": int, "gpu_mem_limit": int, "use_tf32": bool, "enable_cuda_graph": bool, "prefer_nhwc": bool, "cudnn_conv1d_pad_to_nc1d": bool,
    "cudnn_conv_use_max_workspace": bool, "do_copy_in_default_stream": bool,
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
}
NUMPY_TYPES = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}


def cuda_provider(**wanted):
    """("CUDAExecutionProvider", {option: text}) of the wanted options; ValueError for a name or value that KINDS does not have."""
    options = {}
    for name, value in wanted.items():
        if name not in KINDS:
            raise ValueError(f"{name} is no option of this service; it has {', '.join(KINDS)}")
        kind = KINDS[name]
        if kind is bool:
            fits = type(value) is bool
        elif kind is int:
            fits = type(value) is int and value >= 0
        else:
            fits = value in kind
        if not fits:
            raise ValueError(f"{name} is {value!r}: expected {'one of ' + ', '.join(kind) if isinstance(kind, tuple) else kind.__name__}")
        options[name] = str(int(value)) if kind is bool else str(value)
    return CUDA, options


def unmet(options, provider_options):
    """{option: (asked, have)} of every option that a session's provider_options does not have as asked; have is None if it is not there."""
    have = provider_options.get(CUDA, {})
    return {name: (asked, have.get(name)) for name, asked in options.items() if have.get(name) != asked}


def open_cuda(model_path, options, settings=None, fallback=False):
    """A session on CUDA with these options; RuntimeError if it is not, or with fallback a RuntimeWarning and a session on the CPU."""
    session = ort.InferenceSession(model_path, settings, providers=[(CUDA, options), "CPUExecutionProvider"])
    registered = session.get_providers()
    missing = unmet(options, session.get_provider_options())
    if registered[0] == CUDA and not missing:
        return session
    reason = f"options are not as asked, (asked, have): {missing}" if registered[0] == CUDA else f"{CUDA} was asked for, the session has {registered}"
    if not fallback:
        raise RuntimeError(reason)
    warnings.warn(f"{reason}; going on with the CPU", RuntimeWarning, stacklevel=2)
    if registered != ["CPUExecutionProvider"]:
        session = ort.InferenceSession(model_path, settings, providers=["CPUExecutionProvider"])
    return session

def plan(session, **sizes):
    """{"inputs": {name: (shape, dtype)}, "outputs": …} with every dynamic dimension replaced by its size; ValueError for one without."""
    used = set()

    def fixed(tensor):
        shape = []
        for dimension in tensor.shape:
            if not isinstance(dimension, int):
                if dimension not in sizes:
                    raise ValueError(f"{tensor.name} has the dimension {dimension!r}, and no size is given for it: {tensor.shape}")
                used.add(dimension)
                dimension = sizes[dimension]
            shape.append(dimension)
        return tuple(shape), NUMPY_TYPES[tensor.type]

    found = {"inputs": {t.name: fixed(t) for t in session.get_inputs()}, "outputs": {t.name: fixed(t) for t in session.get_outputs()}}
    if set(sizes) - used:
        raise ValueError(f"no tensor has a dimension named {', '.join(sorted(set(sizes) - used))}")
    return found


class Replay:
    """Runs a session from buffers that are made and bound once, so that a captured CUDA graph reads and writes the right addresses."""

    def __init__(self, session, plan, warm_up=2):
        self.session, self.inputs, self.outputs = session, plan["inputs"], plan["outputs"]
        device = "cuda" if session.get_providers()[0] == CUDA else "cpu"
        self.binding = session.io_binding()
        self.values = {}
        for name, (shape, dtype) in self.inputs.items():
            self.values[name] = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)
            self.values[name].update_inplace(np.zeros(shape, dtype))
            self.binding.bind_ortvalue_input(name, self.values[name])
        for name, (shape, dtype) in self.outputs.items():
            self.values[name] = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)
            self.binding.bind_ortvalue_output(name, self.values[name])
        self.quiet = ort.RunOptions()
        self.quiet.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.running = False
        for _ in range(warm_up):
            session.run_with_iobinding(self.binding)

    def start(self, feeds):
        if self.running:
            raise RuntimeError("an earlier start is not finished: its inputs may still be read")
        if set(feeds) != set(self.inputs):
            raise ValueError(f"missing: {sorted(set(self.inputs) - set(feeds))}, unknown: {sorted(set(feeds) - set(self.inputs))}")
        for name, (shape, dtype) in self.inputs.items():
            if feeds[name].dtype.name != np.dtype(dtype).name:
                raise TypeError(f"{name} is {feeds[name].dtype}: expected {np.dtype(dtype)}")
            if feeds[name].shape != shape:
                raise ValueError(f"{name} has the shape {feeds[name].shape}: the buffer was planned for {shape}")
        for name in self.inputs:
            self.values[name].update_inplace(feeds[name])
        self.session.run_with_iobinding(self.binding, self.quiet)
        self.running = True

    def finish(self):
        if not self.running:
            raise RuntimeError("nothing was started")
        self.binding.synchronize_outputs()
        self.running = False
        return dict(zip(self.outputs, self.binding.copy_outputs_to_cpu()))

    def __call__(self, feeds):
        self.start(feeds)
        return self.finish()
