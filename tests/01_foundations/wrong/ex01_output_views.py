"""Takes a view for a tensor of its own when it is an output.
fails: test_predict_fused
says: it counts once
"""
# graded cell 1: keep this line
import math
import statistics

import numpy as np
import onnx
from onnx import helper, shape_inference

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh"}
MOVES = {"Transpose", "Concat", "Cast"}
MATRIX = {"Conv", "Gemm", "MatMul"}


def read(path, batch):
    """The graph with shapes for this batch: (graph, {name: (shape, dtype)}, names of constants, {view: its source})."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch is {batch!r}: expected an int of at least 1")
    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    del graph.value_info[:]                                   # they may speak of another batch
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph

    tensors = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        tensors[value.name] = (tuple(d.dim_value for d in kind.shape.dim), helper.tensor_dtype_to_np_dtype(kind.elem_type))
    for tensor in graph.initializer:
        tensors[tensor.name] = (tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type))

    source = {}
    for node in graph.node:                                   # in topological order, so a source is known before its views
        if node.op_type == "Constant":
            constants.add(node.output[0])
        elif node.op_type in VIEWS:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
    return graph, tensors, constants, source


def operations(node, tensors):
    """Operations of one node, by the contract's table."""
    shapes = [tensors[name][0] if name else None for name in node.input]
    out = math.prod(tensors[node.output[0]][0])
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    third = len(shapes) > 2 and shapes[2] is not None         # a bias, or the C of a Gemm
    if node.op_type == "Conv":
        return 2 * out * math.prod(shapes[1][1:]) + third * out
    if node.op_type == "Gemm":
        return 2 * out * shapes[0][0 if attributes.get("transA", 0) else 1] + third * out
    if node.op_type == "MatMul":
        return 2 * out * shapes[0][-1]
    if node.op_type in ELEMENTWISE:
        return out
    if node.op_type == "Softmax":
        return 5 * out
    if node.op_type == "MaxPool":
        return out * math.prod(attributes["kernel_shape"])
    if node.op_type == "GlobalAveragePool":
        return math.prod(shapes[0])
    if node.op_type in MOVES:
        return 0
    raise ValueError(f"the operator {node.op_type} (output {node.output[0]!r}) has no count here")


def size(tensor):
    """Bytes of a tensor given as (shape, dtype)."""
    return math.prod(tensor[0]) * np.dtype(tensor[1]).itemsize


def analyze(path, batch):
    """(layers, fused bytes)."""
    graph, tensors, constants, source = read(path, batch)
    inputs = {value.name for value in graph.input}
    rows, outside = [], {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type == "Constant" or node.op_type in VIEWS:
            continue
        flops = operations(node, tensors)
        reads = {source.get(name, name) for name in node.input if name}
        writes = [name for name in node.output if name]
        moved = sum(size(tensors[name]) for name in reads) + sum(size(tensors[name]) for name in writes)
        outside |= {name for name in reads if name in inputs or name in constants}
        rows.append({"name": node.output[0], "op": node.op_type, "dtype": np.dtype(tensors[node.input[0]][1]).name,
                     "flops": flops, "bytes": moved})
    return rows, sum(size(tensors[name]) for name in outside)


def layers(path, batch):
    """One dict for each layer of the ONNX file: name, op, dtype, flops, bytes."""
    return analyze(path, batch)[0]


def predict(path, batch, machine):
    """Layers with seconds and bound; total seconds, fused bytes and the floor."""
    rows, fused = analyze(path, batch)
    arithmetic = 0.0
    for row in rows:
        rate = machine["vector"]
        if row["op"] in MATRIX:
            if row["dtype"] not in machine["matrix"]:
                raise ValueError(f"no matrix rate for {row['dtype']}: the machine has {sorted(machine['matrix'])}")
            rate = machine["matrix"][row["dtype"]]
        times = {"memory": row["bytes"] / machine["bandwidth"], "compute": row["flops"] / rate, "launch": machine["launch"]}
        row["bound"] = max(times, key=times.get)              # the first of equals
        row["seconds"] = times[row["bound"]]
        arithmetic += times["compute"]
    return {"layers": rows, "seconds": math.fsum(row["seconds"] for row in rows), "fused_bytes": fused,
            "floor_seconds": max(fused / machine["bandwidth"], arithmetic)}

# graded cell 2: keep this line
def measure(start, finish, clock, prediction, warmup=3, repeats=20):
    """The median of timed inferences against a prediction."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}: expected at least 1 and at least 0")
    for _ in range(warmup):
        start()
    finish()                                                  # nothing of the warm-up is left in the queue
    times = []
    for _ in range(repeats):
        begin = clock()
        start()
        finish()
        times.append(clock() - begin)
    median = statistics.median(times)
    ratio = median / prediction["seconds"]
    if median < prediction["floor_seconds"]:
        verdict = "impossible"
    else:
        verdict = "explained" if ratio <= 2 else "unexplained"
    return {"seconds": median, "ratio": ratio, "verdict": verdict}
