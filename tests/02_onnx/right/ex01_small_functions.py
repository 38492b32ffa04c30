"""A Dim object and a look at the result; the comparison through one record for each output."""
import itertools

import numpy as np
import onnx
import onnxruntime as ort


class EvaluationMode:
    def __init__(self, module):
        self.before = [(m, m.training) for m in module.modules()]

    def __enter__(self):
        for m, _ in self.before:
            m.training = False

    def __exit__(self, *_):
        for m, mode in self.before:
            m.training = mode


def export(module, sample, input_names, output_names, opset=20):
    from torch.export import Dim
    from torch.onnx import export as to_onnx
    batch = Dim("batch", min=1)
    with EvaluationMode(module):
        try:
            program = to_onnx(module, sample, input_names=input_names, output_names=output_names, opset_version=opset,
                              dynamic_shapes=[{0: batch}] * len(sample), dynamo=True, optimize=True)
        except Exception as error:
            raise ValueError(str(error)) from error
    model = program.model_proto

    def ends(values):
        return [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values]

    wanted = [(name, ["batch", *tensor.shape[1:]]) for name, tensor in zip(input_names, sample)]
    outputs = ends(model.graph.output)
    problems = []
    if ends(model.graph.input) != wanted:
        problems.append(f"inputs {ends(model.graph.input)}")
    if [n for n, _ in outputs] != list(output_names) or any(not axes or axes[0] != "batch" for _, axes in outputs):
        problems.append(f"outputs {outputs}")
    if onnx.helper.make_opsetid("", opset) not in model.opset_import:
        problems.append("opset")
    if problems:
        raise ValueError("; ".join(problems))
    return model


def parity(reference, model, make_feed, batches, seeds):
    if min(len(set(batches)) - 1, len(seeds)) < 1:
        raise ValueError("nothing would be proved")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=ort.get_available_providers()[-1:])
    names = [o.name for o in session.get_outputs()]
    worst, findings = {n: None for n in names}, []
    for batch, seed in ((b, s) for b in batches for s in seeds):
        feed = make_feed(batch, seed)

        def fresh():
            return {k: v.copy() for k, v in feed.items()}

        want = {k: np.array(v) for k, v in reference(fresh()).items()}
        if any(verdict(np.array(v), want[k]) for k, v in reference(fresh()).items()):
            raise ValueError(f"two answers of the reference differ at batch {batch}, seed {seed}")
        try:
            runs = [dict(zip(names, session.run(None, fresh()))) for _ in "12"]
        except Exception:
            findings += [("refused", batch, seed, None)]
            continue
        if sorted(want) != sorted(names):
            findings += [("names", batch, seed, None)]
            continue
        for name in names:
            got = runs[0][name]
            kind = "random" if verdict(runs[1][name], got) else verdict(got, want[name])
            if kind:
                findings += [(kind, batch, seed, name)]
            if got.dtype == want[name].dtype and got.shape == want[name].shape:
                gap = gaps(got, want[name])
                if np.isfinite(gap).any():
                    at = int(np.nanargmax(gap))
                    value = float(gap.flat[at])
                    if not worst[name] or worst[name]["difference"] < value:
                        worst[name] = {"difference": value, "index": tuple(np.unravel_index(at, gap.shape)), "batch": batch, "seed": seed}
                        worst[name]["index"] = tuple(i.item() for i in worst[name]["index"])
    return {"worst": worst, "passed": findings == [], "findings": findings}


def gaps(got, want):
    """|got - want| in float64, NaN where one is not finite."""
    a, b = np.float64(got), np.float64(want)
    ok = np.isfinite(a) & np.isfinite(b)
    return np.where(ok, np.abs(np.where(ok, a, 0) - np.where(ok, b, 0)), np.nan)


def verdict(got, want):
    if got.dtype != want.dtype:
        return "dtype"
    first = plain(got, want)
    if first and got.ndim == want.ndim:
        for order in itertools.permutations(range(1, got.ndim)):
            if plain(np.transpose(got, [0, *order]), want) == "":
                return "layout"
    return first


def plain(got, want):
    if got.shape != want.shape:
        return "shape"
    a, b = np.float64(got), np.float64(want)
    ok = np.isfinite(b)
    with np.errstate(invalid="ignore"):
        if not (np.isfinite(a) == ok).all() or not ((a == b) | (np.isnan(a) & np.isnan(b)))[~ok].all():
            return "not_finite"
    share = {8: 1e-10, 4: 1e-5, 2: 2e-3}[want.itemsize] if want.dtype.kind == "f" else 0.0
    limit = share * np.abs(b[ok]).max() if ok.any() else 0.0
    return "difference" if (gaps(got, want)[ok] > limit).any() else ""
