"""Shapes from running the network on zeros with every tensor as an output; one class for the counts; the median by hand."""
import math
from collections import namedtuple

import numpy as np
import onnx
import onnxruntime as ort

Tensor = namedtuple("Tensor", "shape dtype nbytes")


class Counter:
    def __init__(self, path, batch):
        if type(batch) is not int or batch <= 0:
            raise ValueError(f"not a batch: {batch}")
        self.model = onnx.load(path)
        self.graph = self.model.graph
        self.output_names = [o.name for o in self.graph.output]
        self.stored = {i.name: onnx.numpy_helper.to_array(i) for i in self.graph.initializer}
        for node in self.graph.node:
            if not hasattr(self, f"count_{node.op_type.lower()}") and node.op_type not in ("Constant", *self.views):
                raise ValueError(f"cannot count {node.op_type}")
        self.tensors = self.run(batch)
        self.real = {}
        for node in self.graph.node:
            if node.op_type in self.views:
                self.real[node.output[0]] = self.origin(node.input[0])
        self.fixed = set(self.stored) | {n.output[0] for n in self.graph.node if n.op_type == "Constant"}

    views = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")

    def origin(self, name):
        while name in self.real:
            name = self.real[name]
        return name

    def run(self, batch):
        arrays = dict(self.stored)
        feed = {}
        for value in self.graph.input:
            if value.name not in self.stored:
                kind = value.type.tensor_type
                shape = [d.dim_value if d.HasField("dim_value") else batch for d in kind.shape.dim]
                feed[value.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        everything = onnx.ModelProto()
        everything.CopyFrom(self.model)
        del everything.graph.output[:]
        names = [o for n in self.graph.node for o in n.output if o]
        everything.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = ort.InferenceSession(everything.SerializeToString(), options, providers=["CPUExecutionProvider"])
        arrays.update(feed, **dict(zip(names, session.run(names, feed))))
        return {n: Tensor(a.shape, a.dtype, a.nbytes) for n, a in arrays.items()}

    def shape(self, name):
        return self.tensors[name].shape

    def out(self, node):
        return math.prod(self.shape(node.output[0]))

    def bias(self, node):
        return self.out(node) if len(node.input) == 3 and node.input[2] else 0

    def count_conv(self, node):
        n, channels = self.shape(node.input[0])[:2]
        features, of_group, *kernel = self.shape(node.input[1])
        return 2 * self.out(node) * of_group * int(np.prod(kernel)) + self.bias(node)

    def count_gemm(self, node):
        m, n = self.shape(node.output[0])
        return 2 * n * math.prod(self.shape(node.input[0])) + self.bias(node)

    def count_matmul(self, node):
        return 2 * self.out(node) * self.shape(node.input[1])[-2]

    def count_add(self, node):
        return self.out(node)

    count_sub = count_mul = count_div = count_relu = count_sigmoid = count_tanh = count_add

    def count_softmax(self, node):
        return self.out(node) * 5

    def count_maxpool(self, node):
        kernel, = (a.ints for a in node.attribute if a.name == "kernel_shape")
        return self.out(node) * math.prod(kernel)

    def count_globalaveragepool(self, node):
        return math.prod(self.shape(node.input[0]))

    def count_transpose(self, node):
        return 0

    count_concat = count_cast = count_transpose

    def rows(self):
        for node in self.graph.node:
            if node.op_type == "Constant" or node.op_type in self.views:
                continue
            touched = {self.origin(n) for n in node.input if n} | {n for n in node.output if n}
            yield {"name": node.output[0], "op": node.op_type, "dtype": str(self.tensors[node.input[0]].dtype),
                   "flops": getattr(self, f"count_{node.op_type.lower()}")(node), "bytes": sum(self.tensors[n].nbytes for n in touched)}

    def fused(self):
        made = {o for n in self.graph.node if n.op_type != "Constant" and n.op_type not in self.views for o in n.output}
        read = {self.origin(i) for n in self.graph.node if n.op_type not in self.views for i in n.input if i}
        return sum(self.tensors[n].nbytes for n in (read - made) | {self.origin(o) for o in self.output_names})


def layers(path, batch):
    return list(Counter(path, batch).rows())


def predict(path, batch, machine):
    counter = Counter(path, batch)
    answer = {"layers": [], "seconds": 0.0, "fused_bytes": counter.fused(), "floor_seconds": 0.0}
    for row in counter.rows():
        if row["op"] in ("Conv", "Gemm", "MatMul"):
            try:
                rate = machine["matrix"][row["dtype"]]
            except KeyError:
                raise ValueError(f"machine without {row['dtype']}") from None
        else:
            rate = machine["vector"]
        memory, compute, launch = row["bytes"] / machine["bandwidth"], row["flops"] / rate, machine["launch"]
        if memory >= compute and memory >= launch:
            seconds, bound = memory, "memory"
        elif compute >= launch:
            seconds, bound = compute, "compute"
        else:
            seconds, bound = launch, "launch"
        answer["layers"].append({**row, "seconds": seconds, "bound": bound})
        answer["seconds"] += seconds
        answer["floor_seconds"] += compute
    answer["floor_seconds"] = max(answer["floor_seconds"], answer["fused_bytes"] / machine["bandwidth"])
    return answer


def measure(start, finish, clock, prediction, warmup=3, repeats=20):
    if repeats <= 0:
        raise ValueError("repeats")
    if warmup < 0:
        raise ValueError("warmup")
    times = []
    for turn in range(warmup + repeats):
        finish()
        begin = clock()
        start()
        finish()
        end = clock()
        if turn >= warmup:
            times.append(end - begin)
    times.sort()
    middle = len(times) // 2
    median = times[middle] if len(times) % 2 else (times[middle - 1] + times[middle]) / 2
    ratio = median / prediction["seconds"]
    if median < prediction["floor_seconds"]:
        return {"seconds": median, "ratio": ratio, "verdict": "impossible"}
    return {"seconds": median, "ratio": ratio, "verdict": "unexplained" if ratio > 2 else "explained"}
