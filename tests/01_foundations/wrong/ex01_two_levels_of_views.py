"""Follows a view of a view, and no further.
fails: test_layers_distinct_tensors
says: moves once
"""
import math

import numpy as np
import onnx
from onnx import helper, shape_inference

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh"}
MOVES = {"Transpose", "Concat", "Cast"}
MATRIX = {"Conv", "Gemm", "MatMul"}


def analyse(path, batch):
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch {batch!r} is no int of at least 1")
    model = onnx.load(path)
    g = model.graph
    consts = {i.name for i in g.initializer}
    del g.value_info[:]
    for v in g.input:
        if v.name in consts:
            continue
        dims = v.type.tensor_type.shape.dim
        if len(dims) and dims[0].WhichOneof("value") != "dim_value":
            dims[0].dim_value = batch
    outs = [o.name for o in g.output]
    for o in g.output:
        o.type.tensor_type.ClearField("shape")
    model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    g = model.graph
    info = {}
    for v in [*g.input, *g.value_info, *g.output]:
        t = v.type.tensor_type
        info[v.name] = (tuple(d.dim_value for d in t.shape.dim), helper.tensor_dtype_to_np_dtype(t.elem_type))
    for i in g.initializer:
        info[i.name] = (tuple(i.dims), helper.tensor_dtype_to_np_dtype(i.data_type))
    inputs = {v.name for v in g.input} - consts
    root, rows = {}, []
    for node in g.node:
        if node.op_type == "Constant":
            consts.add(node.output[0])
            for a in node.attribute:
                if a.name == "value":
                    info[node.output[0]] = (tuple(a.t.dims), helper.tensor_dtype_to_np_dtype(a.t.data_type))
            continue
        if node.op_type in VIEWS:
            root[node.output[0]] = node.input[0]
            continue
        rows.append(count(node, info, root))
    size = lambda n: math.prod(info[n][0]) * info[n][1].itemsize
    border = {n for r in rows for n in r["reads"] if n in inputs or n in consts} | {root.get(root.get(n, n), root.get(n, n)) for n in outs}
    return rows, sum(map(size, border))


def count(node, info, root):
    at = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    op = node.op_type
    shape = lambda n: info[n][0]
    out = math.prod(shape(node.output[0]))
    has_bias = len(node.input) > 2 and node.input[2] != ""
    if op == "Conv":
        flops = 2 * out * math.prod(shape(node.input[1])[1:]) + out * has_bias
    elif op == "Gemm":
        a = shape(node.input[0])
        k = a[0] if at.get("transA", 0) else a[1]
        flops = 2 * out * k + out * has_bias
    elif op == "MatMul":
        flops = 2 * out * shape(node.input[0])[-1]
    elif op in ELEMENTWISE:
        flops = out
    elif op == "Softmax":
        flops = 5 * out
    elif op == "MaxPool":
        flops = out * math.prod(at["kernel_shape"])
    elif op == "GlobalAveragePool":
        flops = math.prod(shape(node.input[0]))
    elif op in MOVES:
        flops = 0
    else:
        raise ValueError(f"operator {op} cannot be counted")
    reads = {root.get(root.get(n, n), root.get(n, n)) for n in node.input if n}
    size = lambda n: math.prod(info[n][0]) * info[n][1].itemsize
    moved = sum(size(n) for n in reads) + sum(size(n) for n in node.output if n)
    return {"name": node.output[0], "op": op, "dtype": info[node.input[0]][1].name, "flops": flops, "bytes": moved, "reads": reads}


def layers(path, batch):
    """One dict for each layer of the ONNX file: name, op, dtype, flops, bytes."""
    rows, _ = analyse(path, batch)
    for r in rows:
        del r["reads"]
    return rows


def predict(path, batch, machine):
    """Layers with seconds and bound; total seconds, fused bytes and the floor."""
    rows, fused = analyse(path, batch)
    arithmetic = 0.0
    for r in rows:
        del r["reads"]
        if r["op"] in MATRIX:
            if r["dtype"] not in machine["matrix"]:
                raise ValueError(f"no matrix rate for {r['dtype']}")
            rate = machine["matrix"][r["dtype"]]
        else:
            rate = machine["vector"]
        times = [("memory", r["bytes"] / machine["bandwidth"]), ("compute", r["flops"] / rate), ("launch", machine["launch"])]
        arithmetic += r["flops"] / rate
        r["bound"], r["seconds"] = max(times, key=lambda t: t[1])
    return {"layers": rows, "seconds": sum(r["seconds"] for r in rows), "fused_bytes": fused,
            "floor_seconds": max(fused / machine["bandwidth"], arithmetic)}


def measure(start, finish, clock, prediction, warmup=3, repeats=20):
    """The median of timed inferences against a prediction."""
    if repeats < 1 or warmup < 0:
        raise ValueError("repeats at least 1 and warmup at least 0")
    for _ in range(warmup):
        start()
        finish()
    times = []
    for _ in range(repeats):
        t = clock()
        start()
        finish()
        times.append(clock() - t)
    times.sort()
    mid = len(times) // 2
    median = times[mid] if len(times) % 2 else (times[mid - 1] + times[mid]) / 2
    ratio = median / prediction["seconds"]
    verdict = "impossible" if median < prediction["floor_seconds"] else "explained" if ratio <= 2 else "unexplained"
    return {"seconds": median, "ratio": ratio, "verdict": verdict}
