"""Binds inputs and outputs with IOBinding, scales with a table, and pads the whole set once."""
import pathlib

import numpy as np
import onnxruntime

SCALE = np.arange(256) / 255.0


def open_session(model_path, providers=("CPUExecutionProvider",)):
    if not pathlib.Path(model_path).exists():
        raise FileNotFoundError(f"no model at {model_path}")
    names = [p if isinstance(p, str) else p[0] for p in providers]
    options = [{} if isinstance(p, str) else p[1] for p in providers]
    if names[0] not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this onnxruntime was built without {names[0]}")
    session = onnxruntime.InferenceSession(model_path, providers=names, provider_options=options, enable_fallback=0)
    if provider_used(session) != names[0]:
        raise RuntimeError(f"{names[0]} did not start; the log above says why")
    return session


def dtype_of(node):
    inside = node.type[len("tensor("):-1]
    return np.dtype({"float": "float32", "double": "float64"}.get(inside, inside))


def describe(session):
    def entries(nodes):
        return [{"name": n.name, "shape": tuple(d if isinstance(d, int) else None for d in n.shape), "dtype": dtype_of(n)}
                for n in nodes]

    return {"outputs": entries(session.get_outputs()), "inputs": entries(session.get_inputs())}


def provider_used(session):
    first, *_ = session.get_providers()
    return first


def predict(session, images):
    source = session.get_inputs()[0]
    target = next(o for o in session.get_outputs() if len(o.shape) == 2 and np.issubdtype(dtype_of(o), np.floating))
    wanted = tuple(source.shape[1:])
    if images.ndim == 1 or np.prod(images.shape[1:], dtype=int) != np.prod(wanted, dtype=int):
        raise ValueError(f"given {images.shape}, expected (n, *{wanted})")
    if images.dtype == np.uint8:
        pixels = SCALE[images]
    elif np.issubdtype(images.dtype, np.floating):
        pixels = images
    else:
        raise TypeError(f"cannot tell the range of {images.dtype} pixels")
    count = images.shape[0]
    if count == 0:
        return np.empty(0, np.int64), np.empty((0, target.shape[1]), np.float32)
    batch = source.shape[0] if isinstance(source.shape[0], int) else count
    pixels = np.ascontiguousarray(pixels.reshape(count, *wanted), dtype_of(source))
    pixels = np.pad(pixels, [(0, -count % batch)] + [(0, 0)] * len(wanted), mode="edge")
    result = np.empty((len(pixels), target.shape[1]), np.float32)
    for rows in range(0, len(pixels), batch):
        binding = session.io_binding()
        binding.bind_cpu_input(source.name, pixels[rows:rows + batch])
        binding.bind_output(target.name)
        session.run_with_iobinding(binding)
        result[rows:rows + batch] = binding.copy_outputs_to_cpu()[0]
    result = result[:count]
    return np.argmax(result, axis=1).astype("int64"), result
