"""Leaves out the fall-backs that this onnxruntime does not offer, then looks at the session."""
# graded cell 1: keep this line
import errno
import math
import os

import numpy as np
import onnxruntime as ort

NUMPY_TYPES = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}


def open_session(model_path, providers=("CPUExecutionProvider",)):
    """An InferenceSession whose first provider is the first of providers; RuntimeError if it cannot be."""
    if not os.path.isfile(model_path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(model_path))
    here = ort.get_available_providers()
    names = [p if isinstance(p, str) else p[0] for p in providers]
    session = ort.InferenceSession(model_path, providers=[p for p, n in zip(providers, names) if n in here] or None)
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    registered = session.get_providers()
    if registered[0] != wanted:
        raise RuntimeError(f"{wanted} was asked for first, but the session has {registered}; "
                           f"this onnxruntime offers {ort.get_available_providers()}")
    return session


def describe(session):
    """Names, shapes (None: dynamic) and NumPy dtypes of all inputs and outputs."""
    def entry(value):
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        return {"name": value.name, "shape": shape, "dtype": np.dtype(NUMPY_TYPES[value.type])}

    return {"inputs": [entry(v) for v in session.get_inputs()], "outputs": [entry(v) for v in session.get_outputs()]}


def provider_used(session):
    """The name of the session's first provider."""
    return session.get_providers()[0]

# graded cell 2: keep this line
def predict(session, images):
    """Labels (n,) int64 and probabilities (n, classes) float32 of n images, uint8 in 0..255 or float in [0, 1]."""
    facts = describe(session)
    source, = facts["inputs"]
    wanted, = (v for v in facts["outputs"] if len(v["shape"]) == 2 and v["dtype"].kind == "f")
    batch, *shape = source["shape"]

    if images.ndim < 1 or math.prod(images.shape[1:]) != math.prod(shape):
        raise ValueError(f"images have shape {images.shape}: expected (n, {', '.join(map(str, shape))}), "
                         f"or other images of {math.prod(shape)} values")
    if images.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise TypeError(f"images are {images.dtype}: expected uint8 in 0..255, or floating point in [0, 1]")

    pixels = images.astype(source["dtype"])
    if images.dtype == np.uint8:
        pixels /= 255
    n = len(images)
    pixels = pixels.reshape((n, *shape))

    size = batch or max(n, 1)
    parts = [np.empty((0, wanted["shape"][1]), np.float32)]
    for start in range(0, n, size):
        chunk = pixels[start:start + size]
        rows = len(chunk)
        if batch and rows < batch:
            chunk = np.concatenate([chunk, np.zeros((batch - rows, *shape), chunk.dtype)])
        output, = session.run([wanted["name"]], {source["name"]: chunk})
        parts.append(output[:rows].astype(np.float32))
    probabilities = np.concatenate(parts)
    return probabilities.argmax(axis=1).astype(np.int64), probabilities

