"""Functions in a chain: types from the onnx package, OrtValues in and out, one generator of batches."""
import os

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper


class ProviderMissing(RuntimeError):
    pass


class NoModel(FileNotFoundError):
    pass


def open_session(model_path, providers=("CPUExecutionProvider",)):
    try:
        session = ort.InferenceSession(os.fspath(model_path), None, [*providers])
    except Exception as error:
        if os.path.lexists(model_path):
            raise
        raise NoModel(f"{model_path}: {error}") from error
    asked, = [*providers][:1]
    asked = asked if isinstance(asked, str) else asked[0]
    if session.get_providers().index("CPUExecutionProvider") == 0 and asked != "CPUExecutionProvider":
        raise ProviderMissing(f"no {asked} here")
    if session.get_providers()[0] != asked:
        raise ProviderMissing(f"{asked} is not first but {session.get_providers()}")
    return session


def _numpy(node):
    return helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(node.type.split("(")[1].rstrip(")").upper()))


def describe(session):
    return {kind: [{"name": n.name, "shape": tuple(map(_fixed, n.shape)), "dtype": _numpy(n).name} for n in nodes]
            for kind, nodes in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))}


def _fixed(size):
    try:
        return int(size)
    except (TypeError, ValueError):
        return None


def provider_used(session):
    return next(iter(session.get_providers()))


def _batches(array, size):
    for part in np.split(array, range(size, len(array), size)):
        missing = size - len(part)
        yield len(part), np.concatenate([part, part[:1].repeat(missing, axis=0)])


def predict(session, images):
    [source] = describe(session)["inputs"]
    [target] = [o for o in describe(session)["outputs"] if o["dtype"].startswith("float") and len(o["shape"]) == 2]
    fixed, shape = source["shape"][0], source["shape"][1:]
    one = np.empty(shape).size
    if images.ndim < 2 or np.empty(images.shape[1:]).size != one:
        raise ValueError(f"an image of shape {images.shape[1:] if images.ndim > 1 else images.shape} does not fit {shape} (shape given: {images.shape})")
    divisor = {"uint8": 255, "float16": 1, "float32": 1, "float64": 1}.get(images.dtype.name)
    if divisor is None:
        raise TypeError(images.dtype.name)
    if not len(images):
        return np.zeros((0,), np.int64), np.zeros((0, target["shape"][1]), np.float32)
    pixels = np.divide(images, divisor, dtype=np.float64).astype(source["dtype"]).reshape(-1, *shape)
    found = []
    for rows, batch in _batches(pixels, fixed or len(pixels)):
        value, = session.run_with_ort_values([target["name"]], {source["name"]: ort.OrtValue.ortvalue_from_numpy(batch)})
        found.append(value.numpy()[:rows])
    probabilities = np.vstack(found).astype(np.float32)
    return np.array([row.argmax() for row in probabilities], dtype=np.int64), probabilities
