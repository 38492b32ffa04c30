"""The export through torch.export first; the comparison by flat loops over positions, with masked arrays."""
from itertools import permutations

import numpy as np
import onnx
import onnxruntime


def export(module, sample, input_names, output_names, opset=20):
    import torch
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        free = torch.export.Dim.DYNAMIC
        rows = tuple(torch.cat([t, t]) if len(t) == 1 else t for t in sample)      # torch.export takes a size of 1 for a constant
        captured = torch.export.export(module, rows, dynamic_shapes=tuple({0: free} for _ in sample))
        made = torch.onnx.export(captured, dynamo=True, input_names=list(input_names), output_names=list(output_names), opset_version=opset,
                                 external_data=False, verbose=False).model_proto
    except Exception as error:
        raise ValueError("not exportable") from error
    finally:
        for m in training:
            m.training = True
    model = onnx.ModelProto()
    model.CopyFrom(made)
    ends = [*model.graph.input, *model.graph.output]
    if [e.name for e in ends] != [*input_names, *output_names]:
        raise ValueError("names")
    symbols = {e.type.tensor_type.shape.dim[0].dim_param for e in ends if len(e.type.tensor_type.shape.dim)}
    if len(symbols) != 1 or "" in symbols or not all(len(e.type.tensor_type.shape.dim) for e in ends):
        raise ValueError(f"batch: {symbols}")
    symbol = symbols.pop()
    for value in [*ends, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "batch"
    for value, tensor in zip(model.graph.input, sample):
        if [d.dim_value for d in value.type.tensor_type.shape.dim][1:] != list(tensor.shape)[1:]:
            raise ValueError("other axes")
    if not any(o.domain == "" and o.version == opset for o in model.opset_import):
        raise ValueError("opset")
    return model


def within(a, b):
    if np.shape(a) != np.shape(b):
        return False
    share = {np.dtype("f8"): 1e-10, np.dtype("f4"): 1e-5, np.dtype("f2"): 2e-3}.get(b.dtype, 0)
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    finite = np.isfinite(x) & np.isfinite(y)
    odd = ~finite
    if any(not (p == q or (np.isnan(p) and np.isnan(q))) for p, q in zip(x[odd], y[odd])):
        return False
    magnitude = max((abs(q) for q in y if np.isfinite(q)), default=0.0)
    return all(abs(p - q) <= share * magnitude for p, q in zip(x[finite], y[finite]))


def parity(reference, model, make_feed, batches, seeds):
    sizes = sorted({*batches})
    if len(sizes) <= 1 or len(list(seeds)) == 0:
        raise ValueError("too little to compare")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    found, worst = [], {name: None for name in outputs}
    for batch in batches:
        for seed in seeds:
            truth = {k: np.copy(v) for k, v in reference(make_feed(batch, seed)).items()}
            second = reference(make_feed(batch, seed))
            for key in truth:
                if not within(np.asarray(second[key]), truth[key]):
                    raise ValueError("the reference is random")
            try:
                one = session.run(outputs, make_feed(batch, seed))
                two = session.run(outputs, make_feed(batch, seed))
            except Exception:
                found.append(("refused", batch, seed, None))
                continue
            if set(outputs) ^ set(truth):
                found.append(("names", batch, seed, None))
                continue
            for name, a, again in zip(outputs, one, two):
                b = truth[name]
                if (a.dtype, a.shape) == (b.dtype, b.shape):
                    with np.errstate(invalid="ignore"):
                        off = np.ma.masked_invalid(np.abs(a.astype("f8") - b.astype("f8")))
                    if off.count():
                        where = np.unravel_index(int(off.filled(-1).argmax()), off.shape)
                        if worst[name] is None or off[where] > worst[name]["difference"]:
                            worst[name] = dict(difference=float(off[where]), index=tuple(map(int, where)), batch=batch, seed=seed)
                if not within(again, a):
                    found.append(("random", batch, seed, name))
                elif a.dtype != b.dtype:
                    found.append(("dtype", batch, seed, name))
                elif not within(a, b):
                    other = a.ndim == b.ndim and any(within(np.transpose(a, (0, *p)), b) for p in permutations(range(1, a.ndim)))
                    if other:
                        found.append(("layout", batch, seed, name))
                    elif a.shape != b.shape:
                        found.append(("shape", batch, seed, name))
                    else:
                        x, y = a.astype("f8"), b.astype("f8")
                        odd = ~(np.isfinite(x) & np.isfinite(y))
                        same = np.array_equal(x[odd], y[odd], equal_nan=True)
                        found.append(("difference" if same else "not_finite", batch, seed, name))
    return dict(passed=len(found) == 0, findings=found, worst=worst)
