"""A class around the graph, shapes from inferred protobufs in one table, K from B, NumPy's median."""
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
ONE = {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh"}
RULES = dict.fromkeys(ONE, lambda s, o, a: o) | dict.fromkeys(("Transpose", "Concat", "Cast"), lambda s, o, a: 0) | {
    "Conv": lambda s, o, a: 2 * o * product(s[1][1:]) + o * (len(s) == 3 and s[2] is not None),
    "Gemm": lambda s, o, a: 2 * o * s[1][1 if a.get("transB") else 0] + o * (len(s) == 3 and s[2] is not None),
    "MatMul": lambda s, o, a: 2 * o * s[1][-2],
    "Softmax": lambda s, o, a: 5 * o,
    "MaxPool": lambda s, o, a: o * product(a["kernel_shape"]),
    "GlobalAveragePool": lambda s, o, a: product(s[0])}


def product(numbers):
    total = 1
    for number in numbers:
        total *= int(number)
    return total


@dataclass
class Graph:
    path: str
    batch: int
    shape: dict = field(default_factory=dict)
    kind: dict = field(default_factory=dict)
    alias: dict = field(default_factory=dict)

    def __post_init__(self):
        if type(self.batch) is not int or self.batch < 1:
            raise ValueError(f"no batch: {self.batch!r}")
        model = onnx.load_model_from_string(Path(self.path).read_bytes())
        constants = {t.name: t for t in model.graph.initializer}
        fed = [v for v in model.graph.input if v.name not in constants]
        for value in fed:
            dims = value.type.tensor_type.shape.dim
            if dims and dims[0].dim_value == 0:
                dims[0].dim_value = self.batch
        model.graph.ClearField("value_info")
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True).graph
        for value in [*graph.input, *graph.value_info, *graph.output]:
            self.shape[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
            self.kind[value.name] = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for name, tensor in constants.items():
            self.shape[name], self.kind[name] = list(tensor.dims), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nodes = [n for n in graph.node if n.op_type not in VIEWS | {"Constant"}]
        self.outside = {v.name for v in fed} | set(constants) | {o for n in graph.node if n.op_type == "Constant" for o in n.output}
        self.results = [v.name for v in graph.output]
        for node in graph.node:
            if node.op_type in VIEWS:
                self.alias[node.output[0]] = node.input[0]

    def root(self, name):
        while name in self.alias:
            name = self.alias[name]
        return name

    def size(self, names):
        return sum(product(self.shape[n]) * self.kind[n].itemsize for n in names)

    def rows(self):
        for node in self.nodes:
            if node.op_type not in RULES:
                raise ValueError(f"{node.op_type}?")
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            shapes = [self.shape[n] if n else None for n in node.input]
            first = node.output[0]
            yield {"name": first, "op": node.op_type, "dtype": str(self.kind[node.input[0]]),
                   "flops": RULES[node.op_type](shapes, product(self.shape[first]), attributes),
                   "bytes": self.size({self.root(n) for n in node.input if n}) + self.size(filter(None, node.output))}

    def fused(self):
        read = {self.root(n) for node in self.nodes for n in node.input if n}
        return self.size((read & self.outside) | {self.root(n) for n in self.results})


def layers(path, batch):
    return list(Graph(path, batch).rows())


def predict(path, batch, machine):
    graph = Graph(path, batch)
    rows, total, work = [], 0, 0
    for row in graph.rows():
        if row["op"] in ("Conv", "Gemm", "MatMul"):
            rate = machine["matrix"].get(row["dtype"])
            if rate is None:
                raise ValueError(f"the machine has no matrix rate for {row['dtype']}")
        else:
            rate = machine["vector"]
        memory, compute, launch = row["bytes"] / machine["bandwidth"], row["flops"] / rate, machine["launch"]
        if memory >= compute and memory >= launch:
            row |= {"bound": "memory", "seconds": memory}
        elif compute >= launch:
            row |= {"bound": "compute", "seconds": compute}
        else:
            row |= {"bound": "launch", "seconds": launch}
        rows, total, work = [*rows, row], total + row["seconds"], work + compute
    fused = graph.fused()
    return dict(layers=rows, seconds=total, fused_bytes=fused, floor_seconds=max(fused / machine["bandwidth"], work))


def measure(start, finish, clock, prediction, warmup=3, repeats=20):
    if not (repeats >= 1 and warmup >= 0):
        raise ValueError((warmup, repeats))
    took = np.empty(warmup + repeats)
    for i in range(len(took)):
        took[i] = -clock()
        start()
        finish()
        took[i] += clock()
    median = float(np.median(took[warmup:]))
    ratio = median / prediction["seconds"]
    words = ["impossible"] * (median < prediction["floor_seconds"]) + ["explained"] * (ratio <= 2) + ["unexplained"]
    return {"seconds": median, "ratio": ratio, "verdict": words[0]}
