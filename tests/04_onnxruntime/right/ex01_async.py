"""A wrapper class inside, all outputs asked for, runs handed over with run_async."""
import threading
from functools import cached_property, reduce
from operator import mul
from pathlib import Path

import numpy as np
import onnxruntime as ort


def open_session(model_path, providers=("CPUExecutionProvider",)):
    Path(model_path).open("rb").close()
    session = ort.InferenceSession(Path(model_path).read_bytes(), providers=list(providers))
    name = np.atleast_1d(np.array(providers[0], dtype=object))[0]
    assert isinstance(name, str)
    if session.get_providers()[:1] != [name]:
        raise RuntimeError("not available: " + name)
    return session


def describe(session):
    short = {"float": np.float32, "double": np.float64}

    def entry(n):
        kind = n.type.replace("tensor(", "").replace(")", "")
        return {"name": n.name, "shape": tuple(d if type(d) is int else None for d in n.shape), "dtype": short.get(kind) or getattr(np, kind)}

    return {"inputs": list(map(entry, session.get_inputs())), "outputs": list(map(entry, session.get_outputs()))}


def provider_used(session):
    return session.get_providers()[0]


class Predictor:
    def __init__(self, session):
        self.session = session
        known = describe(session)
        self.input, = known["inputs"]
        self.position, = [i for i, o in enumerate(known["outputs"]) if len(o["shape"]) == 2 and issubclass(o["dtype"], np.floating)]
        self.classes = known["outputs"][self.position]["shape"][1]
        self.batch, self.shape = self.input["shape"][0], self.input["shape"][1:]

    @cached_property
    def features(self):
        return reduce(mul, self.shape, 1)

    def pixels(self, images):
        if images.dtype == np.uint8:
            images = images.astype(np.float64) / 255.0
        elif images.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"{images.dtype} images")
        return images.reshape((len(images),) + self.shape).astype(self.input["dtype"])

    def check(self, images):
        rows = images.reshape(len(images), -1).shape[1] if images.ndim > 1 and images.size else reduce(mul, images.shape[1:], 1)
        if images.ndim < 2 or rows != self.features:
            raise ValueError(f"images {images.shape}, model {(self.batch,) + self.shape}")

    def run(self, part):
        done, box = threading.Event(), []

        def finished(results, _, error):
            box.append((results, error))
            done.set()

        self.session.run_async(None, {self.input["name"]: part}, finished, None)
        done.wait()
        results, error = box[0]
        if error:
            raise RuntimeError(error)
        return results[self.position]


def predict(session, images):
    predictor = Predictor(session)
    predictor.check(images)
    pixels, n = predictor.pixels(images), len(images)
    answer = np.zeros((n, predictor.classes), np.float32)
    step = predictor.batch or n
    for start in range(0, n, step or 1):
        block = np.zeros((step,) + predictor.shape, pixels.dtype)
        rows = pixels[start:start + step]
        block[:len(rows)] = rows
        answer[start:start + step] = predictor.run(block)[:len(rows)]
    return answer.argmax(1).astype(np.int64), answer
