"""Declares a Dim, and believes it.

fails: test_torch_no_free_batch
says: The capture fixed the batch
"""
import onnx


def export(module, sample, input_names, output_names, opset=20):
    """The onnx.ModelProto of a torch.nn.Module in evaluation mode, with axis 0 of every input and output free and called batch."""
    import torch

    modes = {part: part.training for part in module.modules()}
    module.eval()                                              # dropout off, batch norm by its stored statistics
    try:
        program = torch.onnx.export(module, tuple(sample), dynamo=True, dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in sample), verbose=False,
                                    input_names=list(input_names), output_names=list(output_names), opset_version=opset)
    except Exception as error:                                 # an OnnxExporterError; the reason is its cause
        reason = error.__cause__ or error
        raise ValueError(f"PyTorch does not export this module with a free batch: {type(reason).__name__}: {str(reason)[:300]}") from error
    finally:
        for part, mode in modes.items():                       # not module.train(): a frozen part stays frozen
            part.training = mode
    model = program.model_proto

    given = {o.domain: o.version for o in model.opset_import}[""]
    if given != opset:
        raise ValueError(f"opset {opset} was asked for, and the exporter gave {given}")
    for kind, values, names in (("inputs", model.graph.input, input_names), ("outputs", model.graph.output, output_names)):
        if [v.name for v in values] != list(names):
            raise ValueError(f"the {kind} are {[v.name for v in values]}, and not {list(names)}")
        for value in values:
            axes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            if not axes:
                raise ValueError(f"the batch is not free on axis 0 of {value.name}, whose shape is {axes}")
    for value, tensor in zip(model.graph.input, sample):
        axes = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
        if axes != list(tensor.shape[1:]):
            raise ValueError(f"{value.name} has the axes {axes} after the batch, and not {list(tensor.shape[1:])}")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ValueError("weights are not in the model")
    return model

import itertools

import numpy as np
import onnxruntime as ort

SHARES = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-3}


def parity(reference, model, make_feed, batches, seeds):
    """Compares model and reference for every batch size with every seed: {"passed", "findings", "worst"}, see the contract."""
    batches, seeds = list(batches), list(seeds)
    if len(set(batches)) < 2 or not seeds:
        raise ValueError(f"batches {batches} and seeds {seeds}: two batch sizes and one seed are the least that proves anything")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL      # the file, not what this engine makes of it
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def copies(feed):
        return {name: np.array(value) for name, value in feed.items()}

    def agree(got, want):
        """Whether no element is outside."""
        if got.shape != want.shape:
            return False
        share = SHARES.get(want.dtype.name, 0.0)
        a, b = got.astype(np.float64), want.astype(np.float64)         # uint8 wraps, float16 overflows, bool has no minus
        finite = np.isfinite(b)
        if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return False
        return bool((np.abs(a - b)[finite] <= share * np.abs(b[finite]).max(initial=0)).all())

    def transposed(got, want):
        """Whether another order of the axes after the first makes them agree."""
        orders = itertools.permutations(range(1, got.ndim))
        return got.ndim == want.ndim and any(agree(got.transpose(0, *order), want) for order in orders)

    findings, worst = [], dict.fromkeys(names)
    for batch, seed in itertools.product(batches, seeds):
        feed = make_feed(batch, seed)
        want, again = copies(reference(copies(feed))), copies(reference(copies(feed)))
        if want.keys() != again.keys() or not all(agree(again[name], want[name]) for name in want):
            raise ValueError(f"the reference gives two answers to one feed (batch {batch}, seed {seed}): is it in evaluation mode?")
        try:
            got, repeated = (dict(zip(names, session.run(None, copies(feed)))) for _ in range(2))
        except Exception:                                              # ONNX Runtime raises several classes, none of them documented
            findings.append(("refused", batch, seed, None))
            continue
        if got.keys() != want.keys():
            findings.append(("names", batch, seed, None))
            continue
        for name in names:
            g, w = got[name], want[name]
            if g.dtype == w.dtype and g.shape == w.shape and g.size:
                with np.errstate(invalid="ignore"):
                    difference = np.abs(g.astype(np.float64) - w.astype(np.float64))
                difference[~np.isfinite(difference)] = -1              # not finite on one side or on both
                index = np.unravel_index(difference.argmax(), difference.shape)
                if difference[index] >= 0 and (worst[name] is None or difference[index] > worst[name]["difference"]):
                    worst[name] = {"difference": float(difference[index]), "index": tuple(int(i) for i in index), "batch": batch, "seed": seed}

            if not agree(repeated[name], g):
                kind = "random"
            elif g.dtype != w.dtype:
                kind = "dtype"
            elif agree(g, w):
                continue
            elif transposed(g, w):
                kind = "layout"
            elif g.shape != w.shape:
                kind = "shape"
            elif not np.array_equal(np.isfinite(g), np.isfinite(w)) or not np.array_equal(g[~np.isfinite(w)], w[~np.isfinite(w)], equal_nan=True):
                kind = "not_finite"
            else:
                kind = "difference"
            findings.append((kind, batch, seed, name))
    return {"passed": not findings, "findings": findings, "worst": worst}
