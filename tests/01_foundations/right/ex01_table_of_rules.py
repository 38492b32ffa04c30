"""A table of rules over shapes; ONNX's shape inference in a copy of the model whose dynamic dimensions were renamed to numbers."""
from functools import reduce
from operator import mul

import numpy as np
import onnx
from onnx import shape_inference

ONE = lambda i, o, a: n(o[0])  # noqa: E731
n = lambda shape: reduce(mul, shape, 1)  # noqa: E731
RULES = {
    "Conv": lambda i, o, a: 2 * n(o[0]) * n(i[1][1:]) + (n(o[0]) if len(i) == 3 and i[2] is not None else 0),
    "Gemm": lambda i, o, a: 2 * n(o[0]) * i[1][1 if a.get("transB") else 0] + (n(o[0]) if len(i) == 3 and i[2] is not None else 0),
    "MatMul": lambda i, o, a: 2 * n(o[0]) * i[1][-2],
    "Softmax": lambda i, o, a: 5 * n(o[0]),
    "MaxPool": lambda i, o, a: n(o[0]) * n(a["kernel_shape"]),
    "GlobalAveragePool": lambda i, o, a: n(i[0]),
    **dict.fromkeys(["Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh"], ONE),
    **dict.fromkeys(["Transpose", "Concat", "Cast"], lambda i, o, a: 0),
}
SILENT = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Constant"}


def walk(path, batch):
    if not (isinstance(batch, int) and batch >= 1):
        raise ValueError("batch has to be an int from 1 on")
    model = onnx.load_model(str(path))
    weights = [w.name for w in model.graph.initializer]
    del model.graph.value_info[:]
    for v in list(model.graph.input):
        if v.name in weights:
            model.graph.input.remove(v)
        elif len(v.type.tensor_type.shape.dim) and v.type.tensor_type.shape.dim[0].WhichOneof("value") != "dim_value":
            v.type.tensor_type.shape.dim[0].dim_value = batch
    for v in model.graph.output:
        v.type.tensor_type.ClearField("shape")
    g = shape_inference.infer_shapes(model, data_prop=True).graph
    shape, wide, kind = {}, {}, {}
    for v in [*g.input, *g.value_info, *g.output]:
        shape[v.name] = [d.dim_value for d in v.type.tensor_type.shape.dim]
        kind[v.name] = onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
    for w in g.initializer:
        shape[w.name], kind[w.name] = list(w.dims), onnx.helper.tensor_dtype_to_np_dtype(w.data_type)
    wide = {name: n(shape[name]) * kind[name].itemsize for name in shape}
    root, outer, made, rows = {}, {}, set(), []
    for node in g.node:
        if node.op_type == "Constant":
            continue
        if node.op_type in SILENT:
            root[node.output[0]] = root.get(node.input[0], node.input[0])
            continue
        if node.op_type not in RULES:
            raise ValueError("no rule for " + node.op_type)
        a = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        sources = dict.fromkeys(root.get(x, x) for x in node.input if x != "")
        targets = [x for x in node.output if x != ""]
        made.update(targets)
        outer.update(dict.fromkeys(x for x in sources if x not in made))
        rows.append(dict(name=node.output[0], op=node.op_type, dtype=kind[node.input[0]].name,
                         flops=np.int64(RULES[node.op_type]([shape[x] if x else None for x in node.input], [shape[x] for x in targets], a)),
                         bytes=int(sum(wide[x] for x in [*sources, *targets]))))
    outer.update(dict.fromkeys(root.get(o.name, o.name) for o in g.output))
    return rows, sum(wide[x] for x in outer)


def layers(path, batch):
    return walk(path, batch)[0]


def predict(path, batch, machine):
    rows, fused = walk(path, batch)
    work = 0
    for row in rows:
        if row["op"] in {"Conv", "Gemm", "MatMul"} and row["dtype"] not in machine["matrix"]:
            raise ValueError(f"{row['dtype']} has no rate")
        rate = machine["matrix"][row["dtype"]] if row["op"] in {"Conv", "Gemm", "MatMul"} else machine["vector"]
        options = [(row["bytes"] / machine["bandwidth"], 2, "memory"), (float(row["flops"] / rate), 1, "compute"), (machine["launch"], 0, "launch")]
        row["seconds"], _, row["bound"] = max(options)
        work += options[1][0]
    return {"layers": rows, "seconds": float(np.sum([r["seconds"] for r in rows])), "fused_bytes": fused,
            "floor_seconds": float(np.maximum(work, fused / machine["bandwidth"]))}


def measure(start, finish, clock, prediction, warmup=3, repeats=20):
    if repeats < 1 or warmup < 0:
        raise ValueError(f"{repeats} repeats, {warmup} to warm up")

    def once():
        stamps = [clock()]
        start()
        finish()
        return clock() - stamps[0]

    for _ in range(warmup):
        once()
    seconds = float(np.median([once() for _ in range(repeats)]))
    ratio = seconds / prediction["seconds"]
    return {"seconds": seconds, "ratio": ratio,
            "verdict": "impossible" if seconds < prediction["floor_seconds"] else ("explained", "unexplained")[ratio > 2]}
