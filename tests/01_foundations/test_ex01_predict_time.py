"""Grader of 01_foundations/ex01_predict_time: networks made here from seeds; their shapes come from running them."""
import math
import numbers
import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.grading import Raised, Wrong, write_call

EXERCISE = "01_foundations/ex01_predict_time"
PROBE = "probe_ex01.py"
LIMITS = {"call_seconds": 20.0, "memory_gib": 3.0}

DIGITS = ROOT / "models" / "digits_mlp" / "digits_mlp.onnx"
ROUND = {"bandwidth": 1e12, "matrix": {"float16": 2e14, "float32": 1e14, "float64": 1e13}, "vector": 1e13, "launch": 5e-6}
FINE = {"bandwidth": 3e11, "matrix": {"float16": 4e12, "float32": 2e12, "float64": 1e12}, "vector": 7e11, "launch": 1e-9}
MATRIX, VIEWS = ("Conv", "Gemm", "MatMul"), ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


# ---- networks ------------------------------------------------------------------------------------------------------

class Net:
    """A graph in the making. Its tensors are float32 here; `save` writes them in another floating-point type."""

    def __init__(self, seed=0):
        self.rng, self.nodes, self.constants, self.inputs, self.outputs = np.random.default_rng(seed), [], {}, {}, []
        self.seen = {}

    def input(self, name, *shape, kind=np.float32, batch="N"):
        self.inputs[name] = (shape, np.dtype(kind), batch)
        return name

    def weight(self, name, *shape):
        self.constants[name] = self.rng.normal(0, 0.1, shape).astype(np.float32)
        return name

    def ints(self, name, *values):
        self.constants[name] = np.array(values, np.int64)
        return name

    def add(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, list(inputs), [output] if isinstance(output, str) else list(output),
                                           name=f"node_{len(self.nodes)}", **attributes))
        return output

    def model(self, dtype="float32", every=False, constants_as_inputs=False, shapes=False):
        """every: all tensors are outputs, for running. shapes: stale shapes of intermediates, from an export with batch 1."""
        kinds = {np.dtype(np.float32): np.dtype(dtype)}

        def info(name, shape, kind):
            kind = kinds.get(kind, kind)
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), shape)

        inputs = [info(n, [b, *s], k) for n, (s, k, b) in self.inputs.items()]
        constants = {n: a.astype(kinds.get(a.dtype, a.dtype)) for n, a in self.constants.items()}
        if constants_as_inputs:
            inputs += [info(n, list(a.shape), a.dtype) for n, a in constants.items()]
        nodes = []
        for node in self.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for a in copy.attribute:
                if a.name == "value":
                    a.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(a.t).astype(dtype)))
                if node.op_type == "Cast" and a.i == TensorProto.FLOAT:
                    a.i = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            nodes.append(copy)
        names = [o for n in self.nodes for o in n.output if o] if every else self.outputs
        outputs = [onnx.ValueInfoProto(name=n) for n in names] if every else [self.declared(n, dtype) for n in names]
        graph = helper.make_graph(nodes, "grader", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if shapes:
            seen = run(self, 1)
            for name in (o for n in self.nodes for o in n.output if o and o not in self.outputs):
                shape, kind = seen[name]
                model.graph.value_info.append(info(name, ["N", *shape[1:]] if shape and shape[0] == 1 else list(shape), kind))
        return model

    def declared(self, name, dtype):
        """An output as an exporter declares it: a name for the batch, numbers for the rest."""
        shape, kind = run(self, 2)[name]
        fixed = all(isinstance(b, int) for _, _, b in self.inputs.values())
        kind = np.dtype(dtype) if kind == np.float32 else kind
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), list(shape) if fixed else ["N", *shape[1:]])

    def save(self, folder, name="net", **options):
        path = str(folder / f"{name}.onnx")
        onnx.save(self.model(**options), path)
        return path


def run(net, batch):
    """Shape and dtype of every tensor, from running the float32 network on zeros: {name: (shape, dtype)}."""
    key = (batch, len(net.nodes), repr(net.inputs))
    if key not in net.seen:
        net.seen[key] = run_once(net, batch)
    return net.seen[key]


def run_once(net, batch):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(net.model(every=True).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {n: np.zeros((b if isinstance(b, int) else batch, *s), k) for n, (s, k, b) in net.inputs.items()}
    names = [o.name for o in session.get_outputs()]
    seen = {n: (a.shape, a.dtype) for n, a in zip(names, session.run(names, feed))}
    seen |= {n: (a.shape, a.dtype) for n, a in feed.items()}
    return seen | {n: (a.shape, a.dtype) for n, a in net.constants.items()}


def truth(net, batch, dtype="float32"):
    """What `layers` has to return, with `why` for the messages; and the fused bytes."""
    seen, same = run(net, batch), {}
    fixed = {o for n in net.nodes if n.op_type == "Constant" for o in n.output} | set(net.constants)

    def width(kind):
        return np.dtype(dtype).itemsize if kind == np.float32 else kind.itemsize

    def size(name):
        return math.prod(seen[name][0]) * width(seen[name][1])

    rows, border = [], set()
    for node in net.nodes:
        if node.op_type in VIEWS:
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        if node.op_type in (*VIEWS, "Constant"):
            continue
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        ins, out = [seen[n][0] if n else None for n in node.input], math.prod(seen[node.output[0]][0])
        why = {}
        extra = out if node.op_type in ("Conv", "Gemm") and len(ins) > 2 and ins[2] is not None else 0
        if node.op_type == "Conv":
            group, channels, kernel = given.get("group", 1), ins[0][1], math.prod(ins[1][2:])
            pairs = out * (channels // group) * kernel
            why["The group is ignored: an output channel sees only the input channels of its own group."] = 2 * out * channels * kernel + extra
            positions = math.prod(ins[0][2:]) * ins[0][0] * ins[1][0]
            why["Strides, pads or dilations are ignored: take the output's positions, not the input's."] = 2 * positions * (channels // group) * kernel + extra
            why["The kernel's area is missing."] = 2 * out * (channels // group) + extra
        elif node.op_type == "Gemm":
            m, n = seen[node.output[0]][0]
            k = math.prod(ins[0]) // m
            pairs = m * n * k
            wrong_k = ins[0][1] if given.get("transA") else ins[0][0]
            why["K is taken from the wrong dimension of A: transA decides."] = 2 * m * n * wrong_k + extra
            if extra:
                why["The C of a Gemm costs one operation for each output element, whatever its own size."] = 2 * pairs + math.prod(ins[2])
        elif node.op_type == "MatMul":
            pairs = out * ins[1][-2]
            why["The leading dimensions of a MatMul are ignored."] = 2 * math.prod(seen[node.output[0]][0][-2:]) * ins[1][-2]
            why["The leading dimensions come from A, but a MatMul broadcasts them: take the output's."] = 2 * math.prod(ins[0]) * ins[1][-1]
        else:
            pairs = 0
        flops = {"Softmax": 5 * out, "GlobalAveragePool": math.prod(ins[0]), "Transpose": 0, "Concat": 0, "Cast": 0,
                 "MaxPool": out * math.prod(given.get("kernel_shape", [1]))}.get(node.op_type, out)
        if pairs:
            flops = 2 * pairs + extra
            why["A multiply-add counts as two operations."] = pairs + extra
            why["A multiply-add counts as two operations, and the bias is missing."] = pairs if extra else -1
            why["The bias is not counted: it adds one operation for each output element."] = 2 * pairs if extra else -1
            why["There is no bias here, and one is counted."] = 2 * pairs + out if not extra else -1
        if node.op_type == "Softmax":
            why["Softmax counts five operations an element."] = out
        if node.op_type == "GlobalAveragePool":
            why["GlobalAveragePool reads every input element, so it counts the input's elements."] = out
        if node.op_type == "MaxPool":
            why["MaxPool looks at every position of its kernel."] = out
        reads, writes = {same.get(n, n) for n in node.input if n}, [n for n in node.output if n]
        moved = sum(map(size, reads)) + sum(map(size, writes))
        elements = {n: math.prod(seen[n][0]) for n in (*reads, *writes)}
        bytes_why = {
            "A tensor that a node reads twice, by name or through a view, moves once.": sum(size(n) for n in node.input if n) + sum(map(size, writes)),
            "Every element is taken for 4 bytes: ask each tensor for its type.": 4 * sum(elements[n] for n in (*reads, *writes)),
            "Every element is taken for as wide as the first input's.": width(seen[node.input[0]][1]) * sum(elements[n] for n in (*reads, *writes)),
            "The constants (weights, biases) are missing.": sum(size(n) for n in reads if n not in fixed) + sum(map(size, writes)),
            "The outputs are missing.": sum(map(size, reads)),
            "The inputs are missing.": sum(map(size, writes)),
            "Only the first output is counted.": sum(map(size, reads)) + size(writes[0]),
            "The bias is missing.": moved - (size(node.input[2]) if extra else 0),
            "These are elements, not bytes.": sum(elements[n] for n in (*reads, *writes))}
        border |= {n for n in reads if n in net.inputs or n in fixed}
        kind = seen[node.input[0]][1]
        rows.append({"name": node.output[0], "op": node.op_type, "dtype": dtype if kind == np.float32 else kind.name, "flops": flops,
                     "bytes": moved, "why": {"flops": why, "bytes": bytes_why}})
    outputs = {same.get(n, n) for n in net.outputs}
    fused = sum(map(size, border | outputs))
    return rows, fused, {
        "A constant that several layers read is counted more than once.":
            sum(size(n) for r in net.nodes if r.op_type not in (*VIEWS, "Constant") for n in r.input if n in fixed) + sum(map(size, (border - fixed) | outputs)),
        "A view that is an output is its source under another name: it counts once.": sum(map(size, border | set(net.outputs))),
        "Constants are counted that no layer reads.": sum(map(size, set(net.constants) | border | outputs)),
        "A graph input is counted that no layer reads.": sum(map(size, set(net.inputs) | border | outputs)),
        "The graph's outputs are missing.": sum(map(size, border)),
        "The graph's inputs are missing.": sum(map(size, (border & fixed) | outputs)),
        "The constants are missing.": sum(map(size, (border - fixed) | outputs)),
        "That is the sum over the layers, with every intermediate tensor.": sum(r["bytes"] for r in rows)}


# ---- asking ----------------------------------------------------------------------------------------------------------

def ask(submission, function, path, batch, *more):
    """(answer, call), or Wrong with what is known of the failure."""
    call = write_call(function, (path, batch, *more), {})
    try:
        return submission.attempt(function, path, batch, *more), call
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong(f"{function} is not written yet.", call=error.call, got=error.text) from None
        hint = " Everything that your answer uses belongs into the graded cells." if error.kind == "NameError" else ""
        at = f" (your {error.where})" if error.where else ""
        raise Wrong(f"{function} raised {error.kind}{at}.{hint}", call=call, got=error.text) from None


def check_rows(got, rows, call, keys):
    if not isinstance(got, (list, tuple)) or not all(isinstance(r, dict) for r in got):
        raise Wrong("The layers are a list of dicts.", call, got, "[{'name': …, 'op': …}, …]")
    names, wanted = [r.get("name") for r in got], [r["name"] for r in rows]
    if names != wanted:
        ops = [r.get("op") for r in got]
        if set(ops) & {*VIEWS, "Constant"}:
            mistake = "Views and Constant nodes are no layers."
        elif sorted(map(str, names)) == sorted(wanted):
            mistake = "The layers are not in the order of the graph's nodes."
        elif len(names) == len(wanted):
            mistake = "A layer's name is the name of its first output."
        else:
            mistake = "The list does not have one entry for each layer."
        raise Wrong(mistake, call, f"{list(zip(names, ops))}", f"{[(r['name'], r['op']) for r in rows]}")
    for mine, row in zip(got, rows):
        if not set(keys) <= set(mine):
            raise Wrong(f"A layer's dict has the keys {', '.join(keys)}.", call, sorted(mine), list(keys))
        for key in ("op", "dtype"):
            if mine[key] != row[key]:
                raise Wrong(f"{key} of the layer {row['name']!r} is wrong.", call, mine[key], row[key])
        for key in ("flops", "bytes"):
            value = mine[key]
            if isinstance(value, bool) or not isinstance(value, (numbers.Integral, np.integer)):
                raise Wrong(f"{key} of the layer {row['name']!r} is no int.", call, value, row[key])
            if value != row[key]:
                guess = next((text for text, number in row["why"][key].items() if number == value and number != row[key]), None)
                raise Wrong(f"{guess or 'The count is wrong.'} ({key} of {row['op']} {row['name']!r})", call, f"{int(value):,}", f"{row[key]:,}")


def check_layers(submission, net, path, batch, dtype="float32"):
    got, call = ask(submission, "layers", path, batch)
    check_rows(got, truth(net, batch, dtype)[0], call, ("name", "op", "dtype", "flops", "bytes"))


def close(a, b):
    return isinstance(a, (numbers.Real, np.number)) and not isinstance(a, bool) and math.isclose(a, b, rel_tol=1e-9)


def check_predict(submission, net, path, batch, machine, dtype="float32"):
    got, call = ask(submission, "predict", path, batch, machine)
    rows, fused, fused_why = truth(net, batch, dtype)
    keys = ("layers", "seconds", "fused_bytes", "floor_seconds")
    if not isinstance(got, dict) or not set(keys) <= set(got):
        raise Wrong(f"predict returns a dict with the keys {', '.join(keys)}.", call, got, list(keys))
    check_rows(got["layers"], rows, call, ("name", "op", "dtype", "flops", "bytes", "seconds", "bound"))
    total = arithmetic = 0.0
    for mine, row in zip(got["layers"], rows):
        rate = machine["matrix"][row["dtype"]] if row["op"] in MATRIX else machine["vector"]
        memory, compute, launch = row["bytes"] / machine["bandwidth"], row["flops"] / rate, machine["launch"]
        wanted = max(memory, compute, launch)
        bound = "memory" if memory == wanted else "compute" if compute == wanted else "launch"
        total, arithmetic = total + wanted, arithmetic + compute
        if not close(mine["seconds"], wanted):
            guesses = [("The three times are added: they overlap, the longest counts.", memory + compute + launch),
                       ("The launch is added: the host pays it while the GPU works.", max(memory, compute) + launch),
                       ("Memory and arithmetic are added: they overlap.", max(memory + compute, launch)),
                       ("The launch is left out.", max(memory, compute)),
                       ("The wrong rate is taken: Conv, Gemm and MatMul run at the matrix rate of their dtype, the rest at the vector rate.",
                        max(memory, row["flops"] / (machine["vector"] if row["op"] in MATRIX else machine["matrix"][dtype]), launch)),
                       *(("The matrix rate of another dtype is taken.", max(memory, row["flops"] / r, launch)) for r in machine["matrix"].values())]
            guess = next((text for text, value in guesses if close(mine["seconds"], value)), "The time of a layer is wrong.")
            raise Wrong(f"{guess} ({row['op']} {row['name']!r})", call, mine["seconds"], wanted)
        if mine["bound"] != bound:
            tie = [memory, compute, launch].count(wanted) > 1
            raise Wrong(f"bound of {row['op']} {row['name']!r} is wrong{': in a tie memory goes before compute, and that before launch' if tie else ''}.",
                        call, mine["bound"], bound)
    if not close(got["seconds"], total):
        raise Wrong("seconds is the sum over the layers.", call, got["seconds"], total)
    if isinstance(got["fused_bytes"], bool) or not isinstance(got["fused_bytes"], (numbers.Integral, np.integer)):
        raise Wrong("fused_bytes is no int.", call, got["fused_bytes"], fused)
    if got["fused_bytes"] != fused:
        guess = next((t for t, v in fused_why.items() if v == got["fused_bytes"]), "fused_bytes is wrong.")
        raise Wrong(f"{guess} (fused_bytes)", call, got["fused_bytes"], f"{fused:,}")
    floor = max(fused / machine["bandwidth"], arithmetic)
    if not close(got["floor_seconds"], floor):
        guesses = [("The floor adds bytes and operations: the greater of the two counts.", fused / machine["bandwidth"] + arithmetic),
                   ("The floor is the bytes alone: arithmetic can be the longer part.", fused / machine["bandwidth"]),
                   ("The floor is the arithmetic alone.", arithmetic),
                   ("The floor takes the bytes of all layers, not the fused ones.", max(sum(r["bytes"] for r in rows) / machine["bandwidth"], arithmetic)),
                   ("The floor has no launches in it.", max(fused / machine["bandwidth"], arithmetic, len(rows) * machine["launch"]))]
        guess = next((t for t, v in guesses if close(got["floor_seconds"], v)), "floor_seconds is wrong.")
        raise Wrong(guess, call, got["floor_seconds"], floor)


# ---- networks from seeds ---------------------------------------------------------------------------------------------

def conv_net(seed, dims=2):
    """Convolutions with every attribute, pooling, a residual connection, a classifier."""
    net = Net(seed)
    rng = net.rng
    group = int(rng.integers(2, 4))
    channels, extent = group * int(rng.integers(1, 4)), [int(v) for v in rng.integers(17, 25, dims)]
    width = group * int(rng.integers(2, 5))
    x = net.input("image", channels, *extent)
    kernel = [int(v) for v in rng.integers(2, 5, dims)]
    net.add("Conv", [x, net.weight("w1", width, channels // group, *kernel), net.weight("b1", width)], "c1", group=group, kernel_shape=kernel,
            strides=[int(v) for v in rng.integers(1, 4, dims)], pads=[int(v) for v in rng.integers(0, 3, 2 * dims)],
            dilations=[int(v) for v in rng.integers(1, 3, dims)])
    net.add("Relu", ["c1"], "r1")
    net.add("Conv", ["r1", net.weight("dw", width, 1, *[3] * dims)], "c2", group=width, pads=[1] * (2 * dims))
    net.add("Conv", ["c2", net.weight("pw", width, width, *[1] * dims), net.weight("pb", width)], "c3")
    net.add("Add", ["c3", "r1"], "s")
    net.add("MaxPool", ["s"], "p" if seed % 2 else ["p", "where"], kernel_shape=[2] * dims, strides=[int(v) for v in rng.integers(1, 3, dims)])
    net.add("GlobalAveragePool", ["p"], "g")
    net.add("Flatten", ["g"], "flat", axis=1)
    trans = seed % 2
    net.add("Gemm", ["flat", net.weight("fc", *((7, width) if trans else (width, 7))), *([net.weight("fb", 7)] if seed % 3 else [])], "logits", transB=trans)
    net.add("Softmax", ["logits"], "y", axis=-1)
    net.outputs = ["y"]
    return net


def attention(seed):
    """Self-attention with views, batched products, a shared weight and a constant scale."""
    net = Net(seed)
    heads, depth, length = int(net.rng.integers(2, 4)), int(net.rng.integers(3, 7)), int(net.rng.integers(5, 10))
    d = heads * depth
    x = net.input("tokens", length, d)
    net.weight("wq", d, d), net.weight("shared", d, d), net.weight("unused", d, 3 * d)
    net.ints("split", 0, 0, heads, depth), net.ints("join", 0, 0, d)
    for name, weight in (("q", "wq"), ("k", "shared"), ("v", "shared")):
        net.add("MatMul", [x, weight], name)
        net.add("Reshape", [name, "split"], f"{name}4")
        net.add("Transpose", [f"{name}4"], f"{name}t", perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])
    net.add("MatMul", ["qt", "kt"], "scores")
    net.add("Constant", [], "scale", value=numpy_helper.from_array(np.float32(depth**-0.5)))
    net.add("Mul", ["scores", "scale"], "scaled")
    net.add("Softmax", ["scaled"], "probabilities", axis=-1)
    net.add("MatMul", ["probabilities", "vt"], "mixed")
    net.add("Transpose", ["mixed"], "back", perm=[0, 2, 1, 3])
    net.add("Reshape", ["back", "join"], "joined")
    net.add("Add", ["joined", x], "residual")
    net.add("MatMul", ["residual", net.weight("wide", 1, d, 2 * d)], "y")
    net.outputs = ["y"]
    return net


def mlp(seed, batch="N"):
    """Two Gemms; C of one element, of a row, or none."""
    net = Net(seed)
    a, b, c = (int(v) for v in net.rng.integers(5, 30, 3))
    x = net.input("x", a, batch=batch)
    net.add("Gemm", [x, net.weight("w", a, b), *([net.weight("one", 1)] if seed % 2 else [])], "h", alpha=0.5)
    net.add("Tanh", ["h"], "t")
    net.add("Gemm", ["t", net.weight("v", c, b), net.weight("row", 1, c)], "z", transB=1, beta=2.0)
    net.add("Sigmoid", ["z"], "y")
    net.outputs = ["y"]
    return net


def one(op, inputs, outputs="y", **attributes):
    """A network of one node. inputs: (shape without batch) for data, or an array shape in a list for a weight."""
    net = Net(5)
    names = []
    for i, given in enumerate(inputs):
        names.append(net.weight(f"w{i}", *given) if isinstance(given, list) else net.input(f"x{i}", *given) if given is not None else "")
    net.add(op, names, outputs, **attributes)
    net.outputs = [outputs] if isinstance(outputs, str) else [o for o in outputs if o]
    return net


# ---- layers ----------------------------------------------------------------------------------------------------------

KNOWN = {  # worked out by hand: network, batch, operations, bytes
    "first convolution of ResNet-50": (one("Conv", [(3, 224, 224), [64, 3, 7, 7]], strides=[2, 2], pads=[3, 3, 3, 3]), 1, 236_027_904, 3_851_008),
    "depthwise 3x3 with bias": (one("Conv", [(32, 112, 112), [32, 1, 3, 3], [32]], group=32, pads=[1, 1, 1, 1]), 1, 7_626_752, 3_212_544),
    "two groups, batch 2": (one("Conv", [(4, 5, 5), [6, 2, 3, 3]], group=2), 2, 3_888, 1_664),
    "causal 1-D, dilated": (one("Conv", [(2, 10), [3, 2, 2]], dilations=[3], pads=[3, 0]), 1, 240, 248),
    "hidden layer of the digits": (one("Gemm", [(784,), [128, 784], [128]], transB=1), 1, 200_832, 405_568),
    "more operations than an int32 holds": (one("Gemm", [(784,), [1024, 784], [1024]], transB=1), 1500, 2_409_984_000, 14_063_360),
    "matrix-vector product": (one("MatMul", [(1, 1024), [1024, 1024]]), 1, 2_097_152, 4_202_496),
    "product with a shared matrix": (one("MatMul", [(4, 8, 16), [16, 32]]), 2, 65_536, 14_336),
    "product that broadcasts both": (one("MatMul", [(1, 5, 7), [3, 7, 2]]), 4, 1_680, 1_208),
    "ReLU": (one("Relu", [(10, 10)]), 3, 300, 2_400),
    "sum with a row": (one("Add", [(10, 10), [10]]), 3, 300, 2_440),
    "sum that broadcasts both": (one("Add", [(1, 7), [5, 1]]), 2, 70, 356),
    "softmax": (one("Softmax", [(1000,)], axis=-1), 2, 10_000, 16_000),
    "max pooling": (one("MaxPool", [(8, 112, 112)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 1, 225_792, 501_760),
    "global average": (one("GlobalAveragePool", [(16, 7, 7)]), 2, 1_568, 6_400),
    "transpose": (one("Transpose", [(3, 8, 8)], perm=[0, 2, 3, 1]), 2, 0, 3_072),
    "concatenation": (one("Concat", [(3, 8), (5, 8)], axis=1), 2, 0, 1_024),
}


@pytest.mark.parametrize("case", KNOWN)
def test_layers_known_counts(submission, tmp_path, case):
    """layers counts single operators as worked out by hand"""
    net, batch, flops, moved = KNOWN[case]
    row, = truth(net, batch)[0]
    assert (row["flops"], row["bytes"]) == (flops, moved), (case, row["flops"], row["bytes"])
    check_layers(submission, net, net.save(tmp_path), batch)


@pytest.mark.parametrize("seed", [1, 2, 3, 6])
def test_layers_convolutions(submission, tmp_path, seed):
    """layers counts networks of convolutions, for several batches"""
    net = conv_net(seed, dims=(2, 1, 2, 3)[seed % 4])
    path = net.save(tmp_path)
    for batch in (1, 5):
        check_layers(submission, net, path, batch)


@pytest.mark.parametrize("seed", [11, 12])
def test_layers_attention(submission, tmp_path, seed):
    """layers counts attention: batched products, views, constants"""
    net = attention(seed)
    path = net.save(tmp_path)
    for batch in (1, 4):
        check_layers(submission, net, path, batch)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_layers_types(submission, tmp_path, dtype):
    """layers asks every tensor for its type"""
    for net in (mlp(21), attention(22), *([conv_net(23)] if dtype == "float16" else [])):     # ONNX Runtime has no float64 Conv
        check_layers(submission, net, net.save(tmp_path, dtype=dtype), 3, dtype)
    net = Net(24)                                              # uint8 comes in and is cast
    net.add("Cast", [net.input("pixels", 3, 9, kind=np.uint8)], "x", to=TensorProto.FLOAT)
    net.add("Div", ["x", net.weight("scale")], "y")
    net.outputs = ["y"]
    check_layers(submission, net, net.save(tmp_path, dtype=dtype), 2, dtype)


def test_layers_distinct_tensors(submission, tmp_path):
    """layers counts a tensor that a node reads twice once, by name or through a view"""
    net = Net(31)
    x = net.input("x", 6, 4)
    net.add("Mul", [x, x], "square")
    net.add("Identity", [x], "alias")
    net.add("Identity", ["alias"], "alias2")
    net.add("Identity", ["alias2"], "alias3")
    net.add("Identity", ["alias3"], "alias4")
    net.add("Add", ["alias4", x], "double")
    net.ints("flat", 0, 24)
    net.add("Reshape", ["double", "flat"], "row")
    net.add("Reshape", ["square", "flat"], "row2")
    net.add("Sub", ["row", "row2"], "y")
    net.outputs = ["y", "double"]
    check_layers(submission, net, net.save(tmp_path), 3)


def test_layers_left_out_tensors(submission, tmp_path):
    """layers takes optional tensors with the empty name for none"""
    net = one("Gemm", [(6,), [6, 4], None])
    check_layers(submission, net, net.save(tmp_path), 2)
    net = one("Conv", [(2, 6, 6), [4, 2, 3, 3], None])
    check_layers(submission, net, net.save(tmp_path, "conv"), 2)
    net = one("MaxPool", [(2, 6, 6)], ["y", ""], kernel_shape=[2, 2])
    check_layers(submission, net, net.save(tmp_path, "pool"), 2)


def test_layers_files_as_exporters_write_them(submission, tmp_path):
    """layers reads files with stale shapes, with constants among the inputs, with a fixed or a nameless batch"""
    for i, options in enumerate(({"shapes": True}, {"constants_as_inputs": True}, {"shapes": True, "constants_as_inputs": True})):
        for net in (conv_net(41), attention(42), mlp(43)):
            check_layers(submission, net, net.save(tmp_path, f"net{i}", **options), 6)
    for batch in (7, None):
        net = mlp(44, batch=batch)
        check_layers(submission, net, net.save(tmp_path, f"mlp{batch}"), 3)
    net = Net(45)                                              # A transposed; the batch becomes a column of the output
    net.add("Gemm", [net.input("x", 9), net.weight("b", 4, 9)], "h", transB=1)
    net.add("Gemm", ["h", net.weight("c", 9, 8)], "y", transA=1, transB=1)
    net.inputs["x"] = ((9,), np.dtype(np.float32), 8)
    net.outputs = ["y"]
    check_layers(submission, net, net.save(tmp_path, "transposed"), 2)


def test_layers_keeps_nothing(submission, tmp_path):
    """layers reads the file that is there now, and changes none"""
    path = tmp_path / "net.onnx"
    for net in (mlp(51), mlp(52), conv_net(53)):
        net.save(tmp_path)
        before = path.read_bytes()
        for batch in (2, 9, 2):
            try:
                check_layers(submission, net, str(path), batch)
            except Wrong as error:
                submission.close()                             # the next call starts a fresh process
                check_layers(submission, net, str(path), batch)
                raise Wrong("layers is right for this file alone, but not after another of the same name, or another batch: "
                            f"something is kept.\n  The failure was: {error}") from None
        if path.read_bytes() != before:
            raise Wrong("The file that was read was changed.", write_call("layers", (str(path), 2), {}))
        if others := sorted({p.name for p in tmp_path.iterdir()} - {path.name}):
            raise Wrong("A file was written beside the model: its folder is the caller's.", write_call("layers", (str(path), 2), {}), others, "no other file")


def test_layers_keeps_no_file(submission, tmp_path):
    """layers notices another content of the same name, size and time, and gives rows of their own"""
    path, seen = tmp_path / "net.onnx", set()
    for op in ("Relu", "Tanh", "Relu"):                        # names of the same length: the files have the same size
        net = one(op, [(6, 5)])
        net.save(tmp_path)
        os.utime(path, ns=(10**18, 10**18))
        seen.add(path.stat().st_size)
        got, call = ask(submission, "layers", str(path), 4)
        rows = truth(net, 4)[0]
        if isinstance(got, (list, tuple)) and len(got) == 1 and isinstance(got[0], dict) and got[0].get("op") in ("Relu", "Tanh") and got[0]["op"] != op:
            raise Wrong("This is the answer for an earlier file of the same name, size and time: something is kept.", call, got[0]["op"], op)
        check_rows(got, rows, call, ("name", "op", "dtype", "flops", "bytes"))
    assert len(seen) == 1, "the files differ in size"
    if not submission.drive("rows_are_new", str(path), 4, {**FINE, "matrix": dict(FINE["matrix"])}):
        raise Wrong("The rows of one answer are those of another: what a caller does to them shows in the next answer.",
                    "rows = layers(path, 4), predict(path, 4, machine), layers(path, 4)")


def expect_value_error(submission, function, args, mistake, words):
    call = write_call(function, args, {})
    try:
        got = submission.attempt(function, *args)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong(f"{function} is not written yet.", call=error.call, got=error.text) from None
        if "ValueError" not in error.bases:
            raise Wrong(f"{mistake} It raised {error.kind}, which is no ValueError.", call, f"{error.kind}: {error.text}", "ValueError") from None
        if words not in error.text:
            raise Wrong(f"{mistake} The ValueError does not name it.", call, error.text, f"{words} in the message") from None
        return
    raise Wrong(mistake, call, got, f"ValueError with {words!r} in its message" if words else "ValueError")


def test_layers_refuses(submission, tmp_path):
    """layers refuses operators that it cannot count, and batches that are none"""
    for op, attributes in (("Erf", {}), ("LeakyRelu", {}), ("LogSoftmax", {"axis": -1}), ("Dropout", {}), ("Shape", {}), ("Sum", {}), ("Sqrt", {})):
        net = Net(61)
        net.add("Relu", [net.input("x", 4)], "r")
        net.add(op, ["r"], "y", **attributes)
        net.outputs = ["y"]
        expect_value_error(submission, "layers", (net.save(tmp_path), 2), f"{op} is not in the table: a count of nothing would be a lie.", op)
    path = mlp(62).save(tmp_path)
    for batch in (0, -1, 2.5, 8.0, "8", None):
        expect_value_error(submission, "layers", (path, batch), f"{batch!r} is no batch.", "")


# ---- predict ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", [71, 72, 73])
def test_predict(submission, tmp_path, seed):
    """predict gives every layer its time and what bounds it"""
    for net in (conv_net(seed), attention(seed), mlp(seed)):
        path = net.save(tmp_path)
        for batch, machine in ((2, {**FINE, "vector": 1e9}), (1, FINE), (33, FINE), (2000, ROUND), (2, ROUND)):
            check_predict(submission, net, path, batch, machine)


def test_predict_types(submission, tmp_path):
    """predict takes the matrix rate of the layer's type, and refuses a type without a rate"""
    slow = {**FINE, "matrix": {"float16": 1e9, "float32": 2e9, "float64": 3e9}}
    for dtype in ("float16", "float64"):
        net = mlp(75)
        check_predict(submission, net, net.save(tmp_path, dtype=dtype), 4, slow, dtype)
    path = mlp(76).save(tmp_path, dtype="float16")
    expect_value_error(submission, "predict", (path, 4, {**FINE, "matrix": {"float32": 1e12}}), "The machine has no matrix rate for float16.", "float16")
    net = one("Relu", [(5, 5)])                                # no matrix layer: no rate is needed
    check_predict(submission, net, net.save(tmp_path), 2, {**FINE, "matrix": {}})


def test_predict_ties(submission, tmp_path):
    """predict decides ties: memory, then compute, then launch"""
    net = one("Relu", [(8,)])                                  # 16 operations and 128 bytes for batch 2
    path = net.save(tmp_path)
    for bandwidth, vector, launch in ((128.0, 16.0, 1.0), (128.0, 16.0, 0.5), (256.0, 16.0, 1.0), (128.0, 64.0, 1.0), (512.0, 64.0, 1.0)):
        check_predict(submission, net, path, 2, {"bandwidth": bandwidth, "matrix": {}, "vector": vector, "launch": launch})


def test_predict_fused(submission, tmp_path):
    """predict counts shared, unused and aliased tensors right in fused_bytes"""
    net = Net(81)                                              # one weight for three layers; a view of a weight; a view as an output
    x = net.input("x", 6)
    net.weight("w", 6, 6), net.weight("idle", 100), net.weight("flat", 36)
    net.ints("square", 6, 6)
    net.add("MatMul", [x, "w"], "a")
    net.add("MatMul", ["a", "w"], "b")
    net.add("Reshape", ["flat", "square"], "folded")
    net.add("MatMul", ["b", "folded"], "c")
    net.add("MatMul", ["c", "folded"], "d")
    net.add("Identity", ["d"], "y")
    net.outputs = ["y", "b", "d"]
    check_predict(submission, net, net.save(tmp_path), 5, FINE)
    net = attention(82)
    check_predict(submission, net, net.save(tmp_path, constants_as_inputs=True), 5, FINE)
    net = Net(84)                                              # an input that nobody reads, one that only a view reads, one that is an output too
    net.input("idle", 11), net.input("seen", 4, 3)
    net.add("Flatten", [net.input("x", 5)], "flat")
    net.add("Flatten", ["seen"], "folded", axis=1)
    net.add("Relu", ["flat"], "y")
    net.outputs = ["y", "folded"]
    check_predict(submission, net, net.save(tmp_path), 3, FINE)
    net = Net(83)                                              # an intermediate tensor that is an output too, and is read again
    net.add("Relu", [net.input("x", 50)], "r")
    net.add("Add", ["r", net.input("z", 50)], "y")
    net.outputs = ["r", "y"]
    check_predict(submission, net, net.save(tmp_path), 3, FINE)


def test_predict_floor(submission, tmp_path):
    """predict gives the floor: fused bytes or all arithmetic, whichever takes longer, and no launch"""
    net = mlp(85)
    path = net.save(tmp_path)
    for machine in ({**FINE, "bandwidth": 1e3}, {**FINE, "matrix": {"float32": 1e3}}, {**FINE, "launch": 10.0}):
        check_predict(submission, net, path, 4, machine)


def test_predict_changes_nothing(submission, tmp_path):
    """predict changes neither the machine nor a later answer"""
    net = mlp(87)
    path = net.save(tmp_path)
    if not submission.drive("unchanged", path, 3, {**FINE, "matrix": dict(FINE["matrix"])}):
        raise Wrong("The dict of the machine was changed: it is the caller's.", "predict(path, 3, machine)")
    check_predict(submission, net, path, 3, ROUND)
    check_predict(submission, net, path, 3, FINE)
    check_layers(submission, net, path, 3)


def test_digits(submission):
    """The digits model: the four layers of the course's own file"""
    got, call = ask(submission, "predict", str(DIGITS), 32, ROUND)
    want = {"linear": (6_426_624, 518_656), "relu": (4_096, 32_768), "linear_1": (82_240, 22_824), "probabilities": (1_600, 2_560)}
    counts = {r.get("name"): (r.get("flops"), r.get("bytes")) for r in got["layers"]}
    if counts != want:
        raise Wrong("The counts of the digits model at batch 32 are wrong.", call, f"{counts}", f"{want}")
    if got["fused_bytes"] != 508_712:
        raise Wrong("fused_bytes of the digits model at batch 32 is wrong.", call, got["fused_bytes"], "508,712")


# ---- measure ---------------------------------------------------------------------------------------------------------

def check_measure(submission, costs, warmup, repeats, seconds, floor, host=0.5, defaults=False):
    """costs: what each inference takes on the simulated device, the warm-up's first."""
    prediction = {"seconds": seconds, "floor_seconds": floor}
    options = {} if defaults else {"warmup": warmup, "repeats": repeats}
    answer = submission.drive("timed", host, [float(c) for c in costs], prediction, options)
    call = f"measure(start, finish, clock, {prediction}{''.join(f', {k}={v}' for k, v in options.items())}) on a simulated device"
    if "unwritten" in answer:
        raise Wrong("measure is not written yet.", call, answer["unwritten"])
    if "raised" in answer:
        raise Wrong(f"measure raised {answer['raised'][0]}.", call, answer["text"])
    if not answer["unchanged"]:
        raise Wrong("The prediction was changed: it is the caller's.", call)
    got = answer["ok"]
    keys = ("seconds", "ratio", "verdict")
    if not isinstance(got, dict) or not set(keys) <= set(got):
        raise Wrong(f"measure returns a dict with the keys {', '.join(keys)}.", call, got, list(keys))
    if answer["started"] != warmup + repeats:
        raise Wrong("start is called once for each inference: warmup + repeats times.", call, f"{answer['started']} calls", f"{warmup + repeats}")
    times = [host + c for c in costs[warmup:warmup + repeats]]
    median = float(np.median(times))
    if not close(got["seconds"], median):
        ordered = sorted(times)
        left = sum(costs[:warmup])
        first = float(np.median([times[0] + left, *times[1:]])) if warmup else None
        whole = sorted(host + c for c in costs[:warmup + repeats])
        guesses = [("The clock was stopped before the inference was done: finish() belongs inside.", host),
                   ("That is the mean: one slow inference moves it.", float(np.mean(times))),
                   ("That is the fastest, not the median.", ordered[0]), ("That is the slowest, not the median.", ordered[-1]),
                   ("Of an even number, the median is the mean of the middle two.", ordered[len(ordered) // 2]),
                   ("Of an even number, the median is the mean of the middle two.", ordered[(len(ordered) - 1) // 2]),
                   ("The warm-up is in the median.", float(np.median(whole))),
                   ("That is the sum over all inferences.", sum(times))]
        guess = next((t for t, v in guesses if close(got["seconds"], v)), None)
        if guess is None and warmup and (repeats < 3 or close(got["seconds"], first)):
            guess = "Work of the warm-up is still in the queue when the first timed inference starts: wait for it before."
        raise Wrong(guess or "seconds is not the median of the timed inferences.", call, got["seconds"], median)
    ratio = median / seconds
    if not close(got["ratio"], ratio):
        upside = " It is upside down." if close(got["ratio"], seconds / median) else ""
        raise Wrong(f"ratio is measured seconds over predicted seconds.{upside}", call, got["ratio"], ratio)
    verdict = "impossible" if median < floor else "explained" if ratio <= 2 else "unexplained"
    if got["verdict"] != verdict:
        raise Wrong("The verdict does not follow from the floor and the ratio.", call, got["verdict"], f"{verdict!r} (median {median}, floor {floor}, ratio {ratio})")


def test_measure_median(submission):
    """measure takes the median of the timed inferences, of odd and even numbers"""
    check_measure(submission, [9, 9, 9, 4, 1, 2, 90, 3], 3, 5, 4.0, 1.0)
    check_measure(submission, [9, 9, 1, 2, 4, 80], 2, 4, 4.0, 1.0)
    check_measure(submission, [50, 1, 7], 1, 2, 4.0, 1.0)
    check_measure(submission, [3, 1, 2], 0, 3, 4.0, 1.0)


def test_measure_waits(submission):
    """measure times an inference to its end, and lets nothing of the warm-up reach into it"""
    check_measure(submission, [500, 40, 30, 2], 3, 1, 2.0, 1.0)
    check_measure(submission, [7, 3], 1, 1, 2.0, 1.0, host=0.001)
    check_measure(submission, [5], 0, 1, 2.0, 1.0)


def test_measure_defaults(submission):
    """measure warms up 3 times and repeats 20 times if nothing is said"""
    check_measure(submission, [100, 60, 40, *range(1, 21)], 3, 20, 9.0, 1.0, defaults=True)


def test_measure_verdict(submission):
    """measure judges by the floor first, then by the ratio"""
    for seconds, floor in ((4.0, 1.0), (1.0, 1.0), (1.25, 1.0), (1.2, 0.5), (9.0, 3.0), (9.0, 2.5), (0.5, 2.6), (100.0, 2.5), (100.0, 2.51)):
        check_measure(submission, [2] * 4, 1, 3, seconds, floor)        # every inference takes 2.5


def test_measure_refuses(submission):
    """measure refuses fewer than one repetition and a negative warm-up"""
    for options in ({"warmup": 1, "repeats": 0}, {"warmup": 0, "repeats": -2}, {"warmup": -1, "repeats": 3}):
        answer = submission.drive("timed", 0.5, [1.0], {"seconds": 1.0, "floor_seconds": 0.1}, options)
        if "unwritten" in answer:
            raise Wrong("measure is not written yet.", f"measure(…, {options})", answer["unwritten"])
        if "ValueError" not in answer.get("raised", ()):
            raise Wrong("repeats below 1 or warmup below 0 is a ValueError.", f"measure(…, {options})", answer.get("ok", answer.get("raised", ["nothing"])[0]), "ValueError")
