"""Runs in the submission's process, before it, and in the grader's: NumPy references, feeds, and PyTorch modules. For 02_onnx/ex01_export_and_parity."""
import sys

import numpy as np
import onnx
import onnxruntime as ort

sessions = []


class InferenceSession(ort.InferenceSession):
    """The real session, counted."""

    def __init__(self, *args, **kwargs):
        sessions.append(1)
        super().__init__(*args, **kwargs)


# ---- references in NumPy: each computes in float64 and rounds once --------------------------------------------------------------

W = np.random.default_rng(5).normal(0, 0.5, (6, 5))
state = {"calls": 0}


def dense(x):
    return x.astype(np.float64) @ W


def as32(f):
    return lambda feed: {"y": f(feed["x"]).astype(np.float32)}


def in_place(feed):
    y = dense(feed["x"]).astype(np.float32)
    feed["x"] += 1                         # as torch's add_ on from_numpy does
    return {"y": y}


def unsteady(feed):
    state["calls"] += 1
    return {"y": (dense(feed["x"]) * (1 + 0.1 * (state["calls"] % 2))).astype(np.float32)}


def late_unsteady(feed):
    """Steady for batches below 5: dropout of a branch that few inputs take."""
    return unsteady(feed) if len(feed["x"]) > 4 else {"y": dense(feed["x"]).astype(np.float32)}


def barely(feed):
    """Two answers that differ by far less than the tolerance."""
    state["calls"] += 1
    return {"y": (dense(feed["x"]) * (1 + 1e-7 * (state["calls"] % 2))).astype(np.float32)}


def special(feed):
    y = dense(feed["x"]).astype(np.float32)
    y[:, 0], y[:, 1], y[:, 2] = np.nan, np.inf, -np.inf
    return {"y": y}


def by_sign(x):
    return (2 if x.sum() > 0 else -1) * x.astype(np.float64)


def two(feed):
    a, b = feed["a"].astype(np.float64), feed["b"]
    return {"total": (a.sum(1) * b).astype(np.float32), "best": a.argmax(1)}


REFERENCES = {
    "dense": as32(dense), "dense64": lambda feed: {"y": dense(feed["x"])}, "dense16": lambda feed: {"y": dense(feed["x"]).astype(np.float16)},
    "in place": in_place, "unsteady": unsteady, "late unsteady": late_unsteady, "barely": barely, "special": special, "by sign": as32(by_sign),
    "by size": as32(lambda x: (2 if len(x) > 2 else -1) * x.astype(np.float64)), "other name": lambda feed: {"logits": dense(feed["x"]).astype(np.float32)},
    "one more": lambda feed: {"y": dense(feed["x"]).astype(np.float32), "z": feed["x"]}, "two": two,
    "small": lambda feed: {"y": (np.abs(feed["x"]) > 1).astype(np.uint8) * 3}, "flag": lambda feed: {"y": feed["x"] > 0},
    "sum of rows": as32(lambda x: x.astype(np.float64) + x.astype(np.float64).mean(axis=(1, 2), keepdims=True)), "double": as32(lambda x: 2 * x.astype(np.float64)),
    "large16": lambda feed: {"y": np.full((len(feed["x"]), 2), -60000, np.float16)},
    "column": as32(lambda x: dense(x).sum(1, keepdims=True)),
}


def feed_of(kind, batch, seed):
    draw = np.random.default_rng([batch, seed])
    if kind == "two":
        return {"a": draw.normal(size=(batch, 5)).astype(np.float32), "b": draw.integers(1, 4, batch).astype(np.float32)}
    if kind == "signed":
        return {"x": (np.abs(draw.normal(size=(batch, 6))) * (-1) ** (seed % 2)).astype(np.float32)}
    shape = {"rows": (6,), "image": (2, 3, 4), "cube": (3, 3, 3), "rows16": (6,), "rows64": (6,), "wide": (6, 40)}[kind]
    return {"x": draw.normal(size=(batch, *shape)).astype({"rows16": np.float16, "rows64": np.float64}.get(kind, np.float32))}


def compare(data, reference, kind, batches, seeds):
    """Calls the submission's parity; what it returned, how often the reference was called, what the reference got, how many sessions were made."""
    got, state["calls"] = [], 0
    del sessions[:]

    def called(feed):
        got.append({name: np.array(value) for name, value in feed.items()})
        return REFERENCES[reference](feed)

    report = sys.modules["submission"].parity(called, onnx.load_model_from_string(data), lambda batch, seed: feed_of(kind, batch, seed), batches, seeds)
    return {"report": report, "calls": len(got), "sessions": len(sessions), "feeds": got}


if __name__ == "probe":                   # in the submission's process
    ort.InferenceSession = InferenceSession


# ---- PyTorch --------------------------------------------------------------------------------------------------------------------

def module_of(kind):
    import torch
    from torch import nn
    torch.manual_seed(3)

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.drop, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Linear(4, 3)
            self.norm.running_mean += 0.5

        def forward(self, image):
            return self.head(self.drop(torch.relu(self.norm(self.conv(image))).mean((2, 3))))

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.drop = nn.Embedding(11, 4), nn.Dropout(0.3)

        def forward(self, tokens, weights):
            rows = self.drop(self.table(tokens)) * weights[..., None]
            return rows.sum(1), weights.sum(1, keepdim=True)

    class Rows(nn.Module):
        def forward(self, x):
            last = x[0]
            for i in range(x.shape[0]):
                last = last / 2 + x[i]
            return x + last

    class Merge(nn.Module):
        def forward(self, x):
            return x.reshape(4, -1)

    class Size(nn.Module):
        def forward(self, x):
            return 2 * x if x.shape[0] > 2 else -x

    made = {"classifier": Classifier, "tokens": Tokens, "rows": Rows, "merge": Merge, "size": Size, "linear": lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.9))}[kind]()
    return made.train()


def tensors_of(kind, batch, seed):
    import torch
    draw = np.random.default_rng([batch, seed])
    if kind == "tokens":
        arrays = draw.integers(0, 11, (batch, 5)), draw.normal(size=(batch, 5)).astype(np.float32)
    else:
        arrays = (draw.normal(size=(batch, *((2, 6, 5) if kind == "classifier" else (6,)))).astype(np.float32),)
    return tuple(torch.from_numpy(a) for a in arrays)


def export(kind, sample_batch, input_names, output_names, opset, frozen=()):
    """Calls the submission's export. Gives the model, the modes of all parts before and after, and the module's answers in evaluation mode."""
    import contextlib
    import io
    import logging
    import warnings

    import torch
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    module = module_of(kind)
    for name in frozen:
        getattr(module, name).eval()
    modes = {name: part.training for name, part in module.named_modules()}
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    report = {"error": None, "bases": [], "model": None}
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            model = sys.modules["submission"].export(module, tensors_of(kind, sample_batch, 0), input_names, output_names, **({} if opset is None else {"opset": opset}))
            report["type"] = type(model).__name__
            report["model"] = model.SerializeToString() if isinstance(model, onnx.ModelProto) else None
        except NotImplementedError:
            raise
        except Exception as error:
            report |= {"error": f"{type(error).__name__}: {error}"[:400], "bases": [c.__name__ for c in type(error).__mro__]}
    after = {name: part.training for name, part in module.named_modules()}
    report["modes"] = {name: [modes[name], after[name]] for name in modes if modes[name] != after[name]}
    report["weights"] = [name for name, value in module.state_dict().items() if not torch.equal(value, weights[name])]
    module.eval()
    report["cases"] = []
    for batch in (1, 2, 5) if report["model"] and kind in ("classifier", "tokens", "linear") else ():
        tensors = tensors_of(kind, batch, 9)
        with torch.no_grad():
            answers = module(*tensors)
        answers = answers if isinstance(answers, tuple) else (answers,)
        report["cases"].append([[t.numpy() for t in tensors], [a.numpy() for a in answers]])
    return report


def export_and_compare(kind, batches, seeds):
    """The submission's parity on the submission's export, against PyTorch."""
    import contextlib
    import io
    import logging

    import torch
    logging.getLogger("torch").setLevel(logging.ERROR)
    module = module_of(kind)
    with contextlib.redirect_stderr(io.StringIO()):
        model = sys.modules["submission"].export(module, tensors_of(kind, 4, 0), ["x"], ["y"])
    module.eval()

    def reference(feed):
        with torch.no_grad():
            return {"y": module(torch.from_numpy(feed["x"])).numpy()}
    return sys.modules["submission"].parity(reference, model, lambda batch, seed: {"x": tensors_of(kind, batch, seed)[0].numpy()}, batches, seeds)
