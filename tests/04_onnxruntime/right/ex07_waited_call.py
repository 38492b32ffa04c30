"""Looks at the list of providers before it opens anything; the call waits inside the run; warms up by runs of its own kind."""
import functools
import warnings

import numpy as np
import onnxruntime as ort

GIVEN = {name: bool for name in ("use_tf32", "enable_cuda_graph", "prefer_nhwc", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_use_max_workspace", "do_copy_in_default_stream")}
GIVEN |= {"device_id": int, "gpu_mem_limit": int, "cudnn_conv_algo_search": {"EXHAUSTIVE", "HEURISTIC", "DEFAULT"}, "arena_extend_strategy": {"kNextPowerOfTwo", "kSameAsRequested"}}


def cuda_provider(**wanted):
    made = {}
    for name, value in wanted.items():
        match GIVEN.get(name), value:
            case (kind, bool()) if kind is bool:
                made[name] = "1" if value else "0"
            case (kind, int()) if kind is int and not isinstance(value, bool) and value >= 0:
                made[name] = repr(value)
            case (set() as words, str()) if value in words:
                made[name] = value
            case _:
                raise ValueError(f"{name}={value!r} is not an option that can be set")
    return ("CUDAExecutionProvider", made)


def unmet(options, provider_options):
    cuda = provider_options.get("CUDAExecutionProvider") or {}
    return {name: (options[name], cuda.get(name)) for name in set(options) - {n for n in options if cuda.get(n) == options[n]}}


def open_cuda(model_path, options, settings=None, fallback=False):
    open_on = functools.partial(ort.InferenceSession, model_path, sess_options=settings)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        reason = "this package has no CUDAExecutionProvider"
    else:
        session = open_on(providers=[("CUDAExecutionProvider", dict(options)), "CPUExecutionProvider"])
        if session.get_providers()[0] == "CUDAExecutionProvider":
            different = unmet(options, session.get_provider_options())
            if not different:
                return session
            reason = f"CUDAExecutionProvider has other options: {different}"
        else:
            reason = f"CUDAExecutionProvider did not start with {options}"
    if not fallback:
        raise RuntimeError(reason)
    warnings.warn(RuntimeWarning(reason), stacklevel=2)
    return open_on(providers=["CPUExecutionProvider"])


def plan(session, **sizes):
    known = {d for t in (*session.get_inputs(), *session.get_outputs()) for d in t.shape if isinstance(d, str)}
    if extra := set(sizes) - known:
        raise ValueError(f"unknown dimensions {extra}, the model has {known}")
    types = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(int64)": "i8", "tensor(int32)": "i4", "tensor(float16)": "f2"}
    shapes = {}
    for side, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        shapes[side] = {}
        for tensor in tensors:
            shape = tuple(sizes.get(d, d) for d in tensor.shape)
            if not all(type(d) is int for d in shape):
                raise ValueError(f"{tensor.name}: {shape}")
            shapes[side][tensor.name] = shape, types[tensor.type]
    return shapes


class Replay:
    def __init__(self, session, plan, warm_up=2):
        self.session, self.plan, self.state = session, plan, "idle"
        place = "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
        self.binding, self.values = session.io_binding(), {}
        for side, bind in (("outputs", self.binding.bind_ortvalue_output), ("inputs", self.binding.bind_ortvalue_input)):
            for name, (shape, dtype) in plan[side].items():
                value = self.values[name] = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, place)
                value.update_inplace(np.zeros(shape, dtype))
                bind(name, value)
        self.unwaited = ort.RunOptions()
        self.unwaited.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for _ in range(warm_up):
            self.session.run_with_iobinding(self.binding, self.unwaited)
            self.binding.synchronize_outputs()

    def fill(self, feeds):
        if self.state != "idle":
            raise RuntimeError("busy")
        if feeds.keys() ^ self.plan["inputs"].keys():
            raise ValueError(f"inputs differ: {feeds.keys() ^ self.plan['inputs'].keys()}")
        for name, array in feeds.items():
            shape, dtype = self.plan["inputs"][name]
            if np.dtype(dtype) != array.dtype:
                raise TypeError(f"{name}: {array.dtype} for {dtype}")
            if shape != array.shape:
                raise ValueError(f"{name}: {array.shape} for {shape}")
        for name, array in feeds.items():
            self.values[name].update_inplace(np.ascontiguousarray(array))

    def take(self):
        return {name: np.array(self.values[name].numpy()) for name in self.plan["outputs"]}

    def start(self, feeds):
        self.fill(feeds)
        self.state = "busy"
        self.session.run_with_iobinding(self.binding, self.unwaited)

    def finish(self):
        if self.state != "busy":
            raise RuntimeError("idle")
        self.binding.synchronize_outputs()
        self.state = "idle"
        return self.take()

    def __call__(self, feeds):
        self.fill(feeds)
        self.session.run_with_iobinding(self.binding)
        return self.take()
