"""Grader of 02_onnx/ex02_fold_conv_bn. Oracle: the model as it was given, evaluated in float64."""
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from course.grading import Raised, Wrong, show

EXERCISE = "02_onnx/ex02_fold_conv_bn"
PROBE = "probe_ex02.py"
TOLERANCE = {np.float32: 1e-5, np.float16: 2e-3}      # of the output's largest magnitude
ort.set_default_logger_severity(4)


# ---- the algebra -----------------------------------------------------------------------------------------------------------

def drawn(seed, shape, dtype, bias, statistics=None):
    draw, m = np.random.default_rng(seed), shape[0]
    weight = draw.normal(0, 0.5, shape)
    weight.reshape(-1)[0] = 0
    arrays = [weight, draw.normal(0, 1, m) if bias else None, draw.uniform(-2, 2, m), draw.normal(0, 1, m), draw.normal(0, 3, m), draw.uniform(0.01, 4, m)]
    kinds = [dtype, dtype, *[statistics or dtype] * 4]
    return [a if a is None else a.astype(k) for a, k in zip(arrays, kinds)]


def exact(weight, bias, scale, shift, mean, variance, epsilon):
    """In the widest type that NumPy has here, channel by channel."""
    wide = np.longdouble
    new_weight, new_bias = weight.astype(wide), np.zeros(len(weight), wide)
    for c in range(len(weight)):
        factor = wide(scale[c]) / np.sqrt(wide(variance[c]) + wide(epsilon))
        new_weight[c] *= factor
        new_bias[c] = wide(shift[c]) + factor * ((0 if bias is None else wide(bias[c])) - wide(mean[c]))
    return new_weight, new_bias


PARAMETERS = {
    "3x3": (0, (8, 4, 3, 3), np.float32, True, 1e-5, None), "3x3, no bias": (1, (64, 32, 3, 3), np.float32, False, 1e-3, None),
    "depthwise": (2, (6, 1, 3, 3), np.float32, True, 1e-5, None), "as many inputs as outputs": (3, (5, 5, 5, 5), np.float32, True, 1e-5, None),
    "1-D": (4, (7, 3, 4), np.float32, True, 0.1, None), "3-D": (5, (4, 2, 3, 2, 1), np.float32, False, 1e-5, None),
    "one channel": (6, (1, 1, 1, 1), np.float32, True, 1e-5, None), "FP16": (7, (16, 8, 3, 3), np.float16, True, 1e-5, None),
    "FP16, statistics FP32": (8, (16, 8, 3, 3), np.float16, False, 1e-5, np.float32), "large": (9, (128, 64, 3, 3), np.float32, True, 1e-5, None),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters(submission, case):
    """The folded weight and bias are the exact ones, rounded once"""
    seed, shape, dtype, bias, epsilon, statistics = PARAMETERS[case]
    arrays = drawn(seed, shape, dtype, bias, statistics)
    call = f"fold_parameters(<{case}: weight {shape} {np.dtype(dtype)}, bias {'given' if bias else 'None'}>, epsilon={epsilon})"
    got = submission.call("fold_parameters", *arrays, epsilon)
    if not (isinstance(got, tuple) and len(got) == 2 and all(isinstance(a, np.ndarray) for a in got)):
        raise Wrong("fold_parameters returns the pair (new weight, new bias) of arrays.", call=call, got=got)
    for name, array, want in zip(("weight", "bias"), got, exact(*arrays, epsilon)):
        if array.shape != want.shape:
            raise Wrong(f"The new {name} has another shape.", call=call, got=array.shape, expected=want.shape)
        if array.dtype != dtype:
            raise Wrong(f"The new {name} has another type than the weight.", call=call, got=str(array.dtype), expected=str(np.dtype(dtype)))
        unit = np.spacing(np.abs(want).astype(dtype)).astype(np.longdouble)
        off = np.abs(array.astype(np.longdouble) - want) / unit
        if not (off <= 1).all():
            worst = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
            near = off[worst] < 1e4
            mistake = (f"The new {name} is rounded more than once: compute in float64, and round at the end." if near else
                       f"The new {name} is not that of convolution and batch norm together.")
            raise Wrong(mistake, call=call, got=f"{name}{[int(i) for i in worst]} = {array[worst]!r}, {float(off[worst]):.3g} units in the last place away",
                        expected=f"{float(want[worst])!r}, within 1")


def test_parameters_are_not_changed(submission):
    """The arrays given are not changed, and a second call gives the same"""
    arrays = drawn(20, (4, 3, 3, 3), np.float32, True)
    first, second = (submission.call("fold_parameters", *arrays, 1e-5) for _ in range(2))
    if not all(np.array_equal(a, b) for a, b in zip(first, second)):
        raise Wrong("A second call with the same arrays gives something else.", call="fold_parameters(…) twice", got=show(second[1]), expected=show(first[1]))


BROADCAST = "Arrays that do not belong together were taken: NumPy broadcasts them."
NOT_FINITE = "A result that is not finite in the weight's type was returned."
DAMAGED = {"scale for the input channels": BROADCAST, "one mean for all": BROADCAST, "bias of shape (4, 1)": BROADCAST, "variance below zero": NOT_FINITE,
           "variance and epsilon zero": NOT_FINITE, "weight too large for FP16": NOT_FINITE, "bias too large for FP16": NOT_FINITE}


def damaged(case):
    (weight, bias, scale, shift, mean, variance), epsilon = drawn(21, (4, 3, 3, 3), np.float32, True), 1e-5
    if case == "scale for the input channels":
        scale = scale[:3]
    elif case == "one mean for all":
        mean = mean[:1]
    elif case == "bias of shape (4, 1)":
        bias = bias[:, None]
    elif case == "variance below zero":
        variance[2] = -1
    elif case == "variance and epsilon zero":
        variance[1], epsilon = 0, 0.0
    elif case == "weight too large for FP16":
        weight[0, 0, 0, 1], scale[0], variance[0] = 1, 300, 0
    else:
        weight[3], mean[3], scale[3], variance[3] = 0, 60000, -2, 1
    arrays = [weight, bias, scale, shift, mean, variance]
    return [a.astype(np.float16) for a in arrays] if "FP16" in case else arrays, epsilon


@pytest.mark.parametrize("case", DAMAGED)
def test_parameters_refused(submission, case):
    """Shapes that do not belong together, and results that are not finite: ValueError"""
    arrays, epsilon = damaged(case)
    call = f"fold_parameters(<{case}>)"
    try:
        got = submission.attempt("fold_parameters", *arrays, epsilon)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("fold_parameters is not written yet.", call=call, got=error.text) from None
        if "ValueError" in error.bases:
            return
        raise Wrong("The wrong kind of error.", call=call, got=f"{error.kind}: {error.text}", expected="ValueError") from None
    raise Wrong(DAMAGED[case], call=call, got=show(got), expected="ValueError")


# ---- models whose answer is known because the grader wrote them -----------------------------------------------------------------

class Net:
    """Writes a model node by node. `kept`: output of a batch norm that has to stay, to the reasons that hold."""

    def __init__(self, seed=0, opset=17, ir=8, channels=3, spatial=(6, 6), dtype=np.float32):
        self.draw, self.opset, self.ir, self.dtype = np.random.default_rng(seed), opset, ir, dtype
        self.nodes, self.weights, self.kept, self.count, self.extra = [], [], {}, 0, []
        self.kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.channels, self.spatial = {"x": channels}, spatial
        self.inputs = [helper.make_tensor_value_info("x", self.kind, ["N", channels, *spatial])]

    def fresh(self, stem):
        self.count += 1
        return f"{stem}{self.count}"

    def tensor(self, values, stem="p", where="initializer", dtype=None):
        """A tensor under a new name. where: initializer, constant, floats, default (overridable), input, computed or identity."""
        name, values = self.fresh(stem), np.asarray(values).astype(dtype or self.dtype)
        if where == "constant":
            self.node("Constant", [], name, value=numpy_helper.from_array(values))
        elif where == "floats":
            self.node("Constant", [], name, value_floats=[float(v) for v in values])
        elif where == "input":
            self.inputs.append(helper.make_tensor_value_info(name, self.kind, values.shape))
            self.extra.append((name, values))
        else:
            self.weights.append(numpy_helper.from_array(values, name))
            if where == "default":
                self.inputs.append(helper.make_tensor_value_info(name, self.kind, values.shape))
                self.extra.append((name, values))
            elif where == "computed":
                return self.node("Add", [name, name], self.fresh("sum"))
            elif where == "identity":
                return self.node("Identity", [name], self.fresh("same"))
        return name

    def node(self, op, inputs, out=None, domain="", name=None, **attributes):
        """Adds a node; `out`: the name of its first output, or a list of all."""
        outs = out if isinstance(out, list) else [out or self.fresh("t")]
        self.nodes.append(helper.make_node(op, inputs, outs, name=self.fresh(op.lower()) if name is None else name, domain=domain, **attributes))
        if inputs and inputs[0] in self.channels:
            self.channels[outs[0]] = self.channels[inputs[0]]
        return outs[0]

    def conv(self, x, channels=4, kernel=3, group=1, bias="initializer", weight="initializer", out=None, op="Conv", domain="", **attributes):
        """bias: where it comes from, None, or "" for an empty name; weight: where from, or the name of a tensor."""
        cin, rank = self.channels[x], len(self.spatial)
        if weight in ("initializer", "constant", "default", "input", "computed", "identity"):
            shape = (cin, channels // group, *[kernel] * rank) if op == "ConvTranspose" else (channels, cin // group, *[kernel] * rank)
            weight = self.tensor(self.draw.normal(0, np.prod(shape[1:]) ** -0.5, shape), "w", weight)
        inputs = [x, weight]
        if bias == "":
            inputs.append("")
        elif bias in ("initializer", "constant", "floats", "default", "input", "computed", "identity"):
            inputs.append(self.tensor(self.draw.normal(0, 1, channels), "b", bias))
        elif bias:
            inputs.append(bias)
        out = self.node(op, inputs, out or self.fresh("c"), domain=domain, group=group, pads=[kernel // 2] * 2 * rank, **attributes)
        self.channels[out] = channels
        return out

    def parameters(self, channels, where="initializer", scale=None, mean=None, variance=None, dtype=None):
        """Names of scale, shift, mean and variance. where: for all four, or a dict."""
        ways = where if isinstance(where, dict) else dict.fromkeys(("scale", "shift", "mean", "variance"), where)
        values = {"scale": self.draw.uniform(0.5, 2, channels) if scale is None else scale, "shift": self.draw.normal(0, 1, channels),
                  "mean": self.draw.normal(0, 1, channels) if mean is None else mean, "variance": self.draw.uniform(0.1, 2, channels) if variance is None else variance}
        return [self.tensor(v, k, ways.get(k, "initializer"), dtype) for k, v in values.items()]

    def norm(self, x, out=None, reasons=(), names=None, outputs=1, domain="", epsilon=None, training=None, **how):
        """A batch norm; reasons: why it has to stay, if it has."""
        attributes = {k: v for k, v in (("epsilon", epsilon), ("training_mode", training)) if v is not None}
        outs = [out or self.fresh("n"), *[self.fresh("stat") for _ in range(outputs - 1)]]
        self.node("BatchNormalization", [x, *(names or self.parameters(self.channels[x], **how))], outs, domain=domain, **attributes)
        if reasons:
            self.kept[outs[0]] = set(reasons if isinstance(reasons, tuple) else (reasons,))
        return outs[0]

    def branch(self, name, op, inputs, more=()):
        """A subgraph with no inputs, one output and one node (after `more`)."""
        graph = helper.make_graph([*more, helper.make_node(op, inputs, [name])], f"{name}_graph", [], [helper.make_tensor_value_info(name, self.kind, None)])
        return graph

    def condition(self):
        name = self.fresh("flag")
        self.weights.append(numpy_helper.from_array(np.array(True), name))
        return name

    def model(self, *outputs, check=True, infer=False):
        values = [helper.make_tensor_value_info(o, self.kind, ["N", self.channels[o], *[f"{o}_{i}" for i in range(len(self.spatial))]]) for o in outputs]
        graph = helper.make_graph(self.nodes, "made_by_the_grader", self.inputs, values, self.weights, doc_string="a graph")
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset), helper.make_opsetid("com.example", 1)], ir_version=self.ir,
                                  producer_name="a grader", producer_version="7", doc_string="a model", domain="com.example", model_version=3)
        helper.set_model_props(model, {"trained": "yes"})
        if check:
            onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model) if infer else model


def graphs_of(graph):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)


def reads_of(graph):
    found = Counter()
    for each in graphs_of(graph):
        found.update(name for node in each.node for name in node.input if name)
        found.update(value.name for value in each.output)
    return found


def names_of(graph):
    found = set()
    for each in graphs_of(graph):
        found |= {v.name for v in (*each.input, *each.output, *each.initializer, *each.value_info)}
        found |= {name for node in each.node for name in (*node.input, *node.output)}
    return found


# ---- the oracle: the given model in float64 --------------------------------------------------------------------------------------

def in_float64(model):
    """A copy that computes in float64. Batch norms mean the same in inference from opset 9 to 15; onnx.reference takes those of
    9 to 13 for training, so the copy says 15."""
    copy = onnx.load_model_from_string(model.SerializeToString())
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)

    def widen(tensor):
        if tensor.data_type in kinds:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))

    for graph in graphs_of(copy.graph):
        for tensor in graph.initializer:
            widen(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in kinds:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "value":
                    widen(attribute.t)
                elif attribute.name == "value_floats":
                    attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.array(attribute.floats, np.float64))))
    for opset in copy.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, 15)
    return copy


def values_of(model, feed):
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(in_float64(model)).run(None, {k: v.astype(np.float64) for k, v in feed.items()})


def feeds_for(net, model, seed):
    draw = np.random.default_rng(seed + 1000)
    shape = [2, *[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]]
    feeds = [{"x": draw.normal(size=shape).astype(net.dtype)} | {n: v for n, v in net.extra}]
    if net.extra:
        feeds.append({"x": feeds[0]["x"]} | {n: (v * 1.5).astype(v.dtype) for n, v in net.extra})      # the caller overrides the defaults
    return feeds


# ---- the judge -------------------------------------------------------------------------------------------------------------------

FOLDED_WRONGLY = {
    "training": "{n} normalizes by the statistics of the batch, and was folded with stored ones.",
    "no_conv": "{n} has no Conv before it, and was folded.",
    "shared": "{n} was folded, and somebody else reads the output of its convolution.",
    "not_constant": "{n} was folded, and one of the tensors that were folded is not a constant.",
    "range": "{n} was folded, and the folded values are not finite in the weight's type.",
}


def text_of(model):
    return ", ".join(f"{node.op_type}({', '.join(node.input)}) -> {', '.join(node.output)}" for node in model.graph.node)


def judge(submission, net, model, case, hint="", run=True, seed=0):
    """Everything that the contract says of one model. Returns the folded model."""
    call = f"fold_batch_norms(<{case}>)"
    report = submission.drive("fold", model.SerializeToString(deterministic=True))
    if not report["pair"]:
        raise Wrong("fold_batch_norms returns the pair (new model, dict of what was kept).", call=call, got=report["type"])
    if "model" not in report:
        raise Wrong("The first of the pair is not an onnx.ModelProto.", call=call, got=report["type"])
    if report["same"] or report["changed"]:
        raise Wrong("The model that was given has been changed: work on a copy, also of what is inside.", call=call)
    folded, kept = onnx.load_model_from_string(report["model"]), report["kept"]

    # which batch norms are gone
    norms = {node.output[0]: node for node in model.graph.node if node.op_type == "BatchNormalization" and node.domain == ""}
    left = [node.output[0] for node in folded.graph.node if node.op_type == "BatchNormalization" and node.domain == ""]
    for name in norms:
        if name in net.kept and name not in left:
            raise Wrong(FOLDED_WRONGLY[sorted(net.kept[name])[0]].format(n=name) + hint, call=call, got=text_of(folded), expected=f"{name} stays")
        if name not in net.kept and name in left:
            why = f", because {kept[name]!r}" if isinstance(kept, dict) and name in kept else ""
            raise Wrong(f"{name} could be folded, and was not.{hint}", call=call, got=f"kept{why}: {text_of(folded)}")
    if not isinstance(kept, dict):
        raise Wrong("The second of the pair is not a dict.", call=call, got=show(kept))
    if set(kept) != set(net.kept):
        raise Wrong("The dict does not name the batch norms that are left in the top graph, by their first output.", call=call, got=show(kept), expected=show(sorted(net.kept)))
    for name, reason in kept.items():
        if reason not in net.kept[name]:
            raise Wrong(f"The reason given for {name} does not hold.", call=call, got=show(reason), expected=" or ".join(map(repr, sorted(net.kept[name]))))

    # the interface and the rest of the model
    for owner, old, new, changing in (("model", model, folded, ("graph",)), ("graph", model.graph, folded.graph, ("node", "initializer", "value_info", "input", "output"))):
        for part in (f.name for f in old.DESCRIPTOR.fields if f.name not in changing):
            if str(getattr(old, part)) != str(getattr(new, part)):
                raise Wrong(f"The {owner}'s {part} is not as before.", call=call, got=show(str(getattr(new, part))), expected=show(str(getattr(old, part))))
    for part in ("input", "output"):
        if str(getattr(model.graph, part)) != str(getattr(folded.graph, part)):
            raise Wrong(f"The interface has changed: the graph's {part}s are not as before.", call=call, got=[v.name for v in getattr(folded.graph, part)],
                        expected=[v.name for v in getattr(model.graph, part)])

    # node by node
    gone, source, pairs = {n for n in norms if n not in net.kept}, {}, {}
    writers = {name: node for node in model.graph.node for name in node.output}
    for name in gone:
        conv = norms[name].input[0]
        while writers[conv].op_type == "BatchNormalization":
            conv = writers[conv].input[0]
        pairs.setdefault(conv, []).append(name)
    for conv, chain in pairs.items():                       # the last of a chain gives its name to the convolution
        read_inside = {norms[n].input[0] for n in chain}
        source[conv] = next(n for n in chain if n not in read_inside)
    expected_reads = Counter()
    for node in model.graph.node:
        if node.output[0] in gone:
            continue
        inside = node.input[:1] if node.output[0] in source else node.input
        expected_reads.update(name for name in inside if name)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                expected_reads.update(reads_of(attribute.g))
    expected_reads.update(v.name for v in model.graph.output)
    before = reads_of(model.graph)
    dead = {name for name in before if not expected_reads[name]}
    want = [node for node in model.graph.node if node.output[0] not in gone and not (node.op_type == "Constant" and node.output[0] in dead)]
    have = list(folded.graph.node)
    if [n.op_type for n in have] != [n.op_type for n in want]:
        extra = Counter(n.op_type for n in have) - Counter(n.op_type for n in want)
        mistake = ("Constant nodes that only the folded pair read are still there." if set(extra) == {"Constant"} else
                   f"The nodes that are left are not those that should be left, in their order.{hint}")
        raise Wrong(mistake, call=call, got=f"{len(have)} nodes: {text_of(folded)}", expected=f"{len(want)} nodes: {', '.join(n.op_type for n in want)}")
    for a, b in zip(want, have):
        folded_here = a.output[0] in source
        outputs = [source[a.output[0]]] if folded_here else list(a.output)
        if list(b.output) != outputs:
            raise Wrong(f"The {b.op_type} writes another name: what others read, and the graph's outputs, keep theirs.", call=call, got=list(b.output), expected=outputs)
        inputs = list(a.input)
        if folded_here:
            if len(b.input) != 3 or b.input[0] != a.input[0] or not all(b.input):
                raise Wrong("A convolution with a folded batch norm reads its old input, a new weight and a new bias.", call=call, got=list(b.input))
        elif list(b.input) != inputs:
            raise Wrong(f"A {b.op_type} that has nothing to do with a fold reads other tensors.", call=call, got=list(b.input), expected=inputs)
        if sorted(map(str, a.attribute)) != sorted(map(str, b.attribute)) or a.name != b.name:
            raise Wrong(f"The name or the attributes of a {b.op_type} are not as before.", call=call, got=show(str(b)), expected=show(str(a)))

    # the tensors
    after, reads = {t.name: t for t in folded.graph.initializer}, reads_of(folded.graph)
    if len(after) != len(folded.graph.initializer):
        raise Wrong("Two initializers have one name.", call=call, got=[t.name for t in folded.graph.initializer])
    fixed = {v.name for v in model.graph.input}
    for tensor in model.graph.initializer:
        if expected_reads[tensor.name] or tensor.name in fixed:
            if tensor.name not in after:
                raise Wrong(f"{tensor.name} is gone, and somebody else still reads it (a node, a subgraph or the caller).", call=call, got=sorted(after))
            if after[tensor.name].SerializeToString() != tensor.SerializeToString():
                raise Wrong(f"{tensor.name} has been changed, and it is still read by another.", call=call, got=show(numpy_helper.to_array(after[tensor.name])),
                            expected=show(numpy_helper.to_array(tensor)))
    for name in after:
        if not reads[name] and name not in fixed and (name not in {t.name for t in model.graph.initializer} or before[name]):
            raise Wrong(f"Left over: nobody reads the initializer {name} any more.", call=call, got=f"{len(after)} initializers: {', '.join(after)}")
    inner = set().union(*(names_of(a.g) for n in model.graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH), set())
    old = names_of(model.graph)
    for name in set(after) - {t.name for t in model.graph.initializer}:
        if name in old:
            raise Wrong(f"A new tensor is called {name}, and that name is already used{' in a subgraph' if name in inner else ''}.", call=call, got=sorted(after))
    there = {*reads, *after, *fixed, *(o for node in folded.graph.node for o in node.output)}
    for value in folded.graph.value_info:
        if value.name not in there:
            raise Wrong(f"Left over: value_info speaks of {value.name}, which is no longer there.", call=call, got=[v.name for v in folded.graph.value_info])
    told = {v.name: str(v) for v in folded.graph.value_info}
    for value in model.graph.value_info:
        if value.name in there and told.get(value.name) != str(value):
            raise Wrong(f"The entry of value_info for {value.name}, which is still there, is gone or changed.", call=call, got=sorted(told), expected=f"{value.name} among them, as it was")
    weights = {**{t.name: t for t in model.graph.initializer}, **{n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"}}
    for a, b in zip(want, have):
        if a.output[0] in source:
            for name in b.input[1:]:
                if name not in after or after[name].data_type != weights[a.input[1]].data_type:
                    raise Wrong("A folded weight or bias is not an initializer of the weight's type.", call=call,
                                got=f"{name}: {TensorProto.DataType.Name(after[name].data_type) if name in after else 'no initializer'}",
                                expected=TensorProto.DataType.Name(weights[a.input[1]].data_type))
    try:
        onnx.checker.check_model(folded, full_check=True)
    except Exception as error:
        if run:
            raise Wrong("onnx.checker refuses the new model.", call=call, got=str(error).strip()[:300]) from None

    # the numbers
    if not run:
        return folded
    for feed in feeds_for(net, model, seed):
        truth = values_of(model, feed)
        ways = [("evaluated in float64", values_of(folded, feed))]
        if run == "ort":
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            try:
                session = ort.InferenceSession(folded.SerializeToString(), options, providers=["CPUExecutionProvider"])
                ways.append(("run by ONNX Runtime", session.run(None, feed)))
            except Exception as error:
                raise Wrong("ONNX Runtime refuses the new model.", call=call, got=str(error)[:300]) from None
        for how, got in ways:
            for value, g, t in zip(model.graph.output, got, truth):
                known = np.isfinite(t)                       # a batch norm that was kept may divide by zero: then that has to stay so
                far, limit = np.inf, TOLERANCE[net.dtype] * np.abs(t[known]).max(initial=0)
                if g.shape == t.shape:
                    far = np.abs(g[known] - t[known]).max(initial=0)
                if not far <= limit or not np.array_equal(np.isfinite(g), known):
                    raise Wrong(f"The output {value.name!r}, {how}, is not that of the given model.{hint}", call=call, got=f"{show(g)}; largest difference {far:.3g}",
                                expected=f"{show(t)}; at most {limit:.3g}")
    return folded


# ---- what has to be folded ---------------------------------------------------------------------------------------------------------

def chain(net, *steps, **options):
    """conv, batch norm, Relu for each step's options of the convolution."""
    x = "x"
    for step in steps:
        x = net.node("Relu", [net.norm(net.conv(x, **step), **options)])
    return net, net.model(x)


def one(seed=0, conv=None, norm=None, infer=False, **options):
    net = Net(seed, **options)
    y = net.norm(net.conv("x", **(conv or {})), **(norm or {}))
    return net, net.model(net.node("Relu", [y]), infer=infer)


def residual():
    net = Net(3, channels=4)
    a = net.node("Relu", [net.norm(net.conv("x", 4))])
    b = net.norm(net.conv(a, 4, bias=None))
    c = net.norm(net.conv("x", 4, kernel=1))
    return net, net.model(net.node("Relu", [net.node("Add", [b, c])]), infer=True)


def is_output():
    net = Net(4)
    y = net.norm(net.conv("x"), out="answer")
    return net, net.model(y, net.node("Relu", [y], "relu"))


def read_by_branch():
    """The batch norm's output is read by a subgraph, and goes on."""
    net = Net(5)
    n = net.norm(net.conv("x"))
    y = net.node("If", [net.condition()], "y", then_branch=net.branch("a", "Neg", [n]), else_branch=net.branch("b", "Relu", [n]))
    net.channels["y"] = 4
    return net, net.model(y)


def shared_weight(second):
    net = Net(6, channels=4)
    w = net.tensor(net.draw.normal(0, 0.3, (4, 4, 3, 3)), "w")
    a = net.norm(net.conv("x", 4, weight=w))
    b = net.conv(a, 4, weight=w, bias=None)
    return net, net.model(net.norm(b) if second else b)


def shared_parameters():
    net = Net(7, channels=4)
    names = net.parameters(4)
    a = net.norm(net.conv("x", 4), names=names)
    b = net.norm(net.conv(a, 4, bias=names[1]), names=names)          # the shift is a bias, too
    c = net.norm(net.conv(b, 4, bias=None), names=[names[3], names[1], names[2], names[3]])
    return net, net.model(c)


def weight_in_branch():
    """The old weight and the old variance are read inside a subgraph."""
    net = Net(8)
    w = net.tensor(net.draw.normal(0, 0.3, (4, 3, 3, 3)), "w")
    names = net.parameters(4)
    n = net.norm(net.conv("x", 4, weight=w), names=names)
    v = [helper.make_node("Mul", [w, w], ["ww"]), helper.make_node("ReduceSum", ["ww"], ["sum"], keepdims=0), helper.make_node("Mul", [n, "sum"], ["scaled"])]
    y = net.node("If", [net.condition()], "y", then_branch=net.branch("a", "Identity", ["scaled"], v), else_branch=net.branch("b", "Relu", [names[3]]))
    net.channels["y"] = 4
    return net, net.model(y, check=False)


def weight_is_output():
    """The old weight is an output of the graph."""
    net = Net(22)
    w = net.tensor(net.draw.normal(0, 0.3, (4, 3, 3, 3)), "w")
    n = net.norm(net.conv("x", 4, weight=w))
    model = net.model(n, check=False)
    model.graph.output.append(helper.make_tensor_value_info(w, net.kind, [4, 3, 3, 3]))
    onnx.checker.check_model(model, full_check=True)
    return net, model


def constant_shared():
    net = Net(9, channels=4)
    w = net.tensor(net.draw.normal(0, 0.3, (4, 4, 3, 3)), "w", "constant")
    a = net.norm(net.conv("x", 4, weight=w, bias="constant"), where="constant")
    return net, net.model(net.conv(a, 4, weight=w, bias=None))


def two_in_a_row(more=1):
    net = Net(10)
    y = net.conv("x", 4)
    for _ in range(1 + more):
        y = net.norm(y)
    return net, net.model(net.node("Relu", [y]), infer=True)


def inside_branch():
    """A subgraph has a convolution and a batch norm of its own; the top graph has another pair."""
    net = Net(11, channels=4)
    n = net.norm(net.conv("x", 4))
    w, names = net.tensor(net.draw.normal(0, 0.3, (4, 4, 3, 3)), "w"), net.parameters(4)
    pair = [helper.make_node("Conv", [n, w], ["ic"], pads=[1] * 4), helper.make_node("BatchNormalization", ["ic", *names], ["inn"])]
    y = net.node("If", [net.condition()], "y", then_branch=net.branch("a", "Relu", ["inn"], pair), else_branch=net.branch("b", "Neg", [n]))
    net.channels["y"] = 4
    return net, net.model(y)


def zero_channel():
    net = Net(12)
    y = net.norm(net.conv("x", 4), scale=[0.0, -1.5, 1e-3, 2], mean=[5.0, -50, 0, 1], variance=[1e-6, 4, 0, 100])
    return net, net.model(y)


def with_function():
    net, model = one(13)
    model.functions.append(helper.make_function("com.example", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]))
    return net, model


def foreign():
    """A node of another domain is called BatchNormalization."""
    net = Net(14)
    y = net.norm(net.conv("x", 4), domain="com.example")
    z = net.norm(net.conv(y, 4))
    return net, net.model(z, check=False)


def mixed_types():
    net = Net(15, opset=15, dtype=np.float16)
    y = net.norm(net.conv("x", 4), dtype=np.float32)
    return net, net.model(y)


def nodes_without_names():
    net, model = chain(Net(16), {}, {})
    for node in model.graph.node:
        node.name = ""
    return net, model


def float_data():
    """Initializers as helper.make_tensor writes them: numbers in float_data, no raw bytes."""
    net, model = one(20)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, numpy_helper.to_array(tensor).ravel().tolist()))
    return net, model


def dead_before():
    """An initializer and a node that nobody reads, in the model that is given."""
    net = Net(21)
    net.tensor([1.0, 2.0], "unread")
    y = net.norm(net.conv("x"))
    net.node("Neg", [y], "nobody")
    return net, net.model(y)


def two_readers_behind():
    """The batch norm's output has two readers: that is no obstacle."""
    net = Net(17)
    n = net.norm(net.conv("x"))
    return net, net.model(net.node("Add", [net.node("Relu", [n]), net.node("Neg", [n])]), infer=True)


FOLDS = {
    "a convolution with a bias": (lambda: one(1), "ort"), "one without a bias": (lambda: one(2, {"bias": None}), "ort"),
    "an empty name in the place of the bias": (lambda: one(3, {"bias": ""}), "ort"),
    "groups": (lambda: one(4, {"channels": 6, "group": 2}, channels=4), "ort"), "depthwise": (lambda: one(5, {"channels": 8, "group": 4}, channels=4), "ort"),
    "1-D": (lambda: one(6, spatial=(9,)), "ort"), "3-D, strided": (lambda: one(7, {"strides": [2, 1, 2]}, spatial=(5, 4, 6)), "ort"),
    "dilated, no padding": (lambda: one(8, {"dilations": [2, 1]}), "ort"),
    "three in a chain": (lambda: chain(Net(9), {}, {"channels": 5, "bias": None}, {"channels": 2, "kernel": 1}), "ort"), "a residual block, with value_info": (residual, "ort"),
    "no epsilon written, small variances": (lambda: one(10, norm={"variance": np.array([1e-6, 2e-5, 1e-7, 3e-5])}), "ort"),
    "a large epsilon": (lambda: one(11, norm={"epsilon": 0.25}), "ort"), "training_mode written, 0": (lambda: one(12, norm={"training": 0}), "ort"),
    "the batch norm's output is an output of the graph": (is_output, "ort"), "a subgraph reads the batch norm's output": (read_by_branch, "ort"),
    "two nodes read the batch norm's output": (two_readers_behind, "ort"),
    "a weight shared by two pairs": (lambda: shared_weight(True), "ort"), "a weight shared with another convolution": (lambda: shared_weight(False), "ort"),
    "parameters shared by three pairs": (shared_parameters, "ort"), "a subgraph reads the old weight": (weight_in_branch, "ort"),
    "the old weight is an output of the graph": (weight_is_output, "ort"),
    "weights in Constant nodes": (lambda: one(13, {"weight": "constant", "bias": "constant"}, {"where": "constant"}), "ort"),
    "parameters in Constant nodes, as value_floats": (lambda: one(14, {"bias": "floats"}, {"where": "floats"}), "ort"),
    "a Constant that another node reads": (constant_shared, "ort"), "two batch norms in a row": (two_in_a_row, "ort"), "three batch norms in a row": (lambda: two_in_a_row(2), "ort"),
    "a pair inside a subgraph as well": (inside_branch, "ort"), "channels with scale or variance 0": (zero_channel, "ort"),
    "opset 9": (lambda: one(15, opset=9, ir=4), "ort"), "opset 13, with value_info": (lambda: one(16, opset=13, ir=7, infer=True), "ort"), "opset 14": (lambda: one(17, opset=14), "ort"),
    "opset 22": (lambda: one(18, opset=22, ir=10), "ort"), "a model with a function": (with_function, "ort"), "nodes without names": (nodes_without_names, "ort"),
    "numbers in float_data": (float_data, "ort"), "something unread from the start": (dead_before, "ort"),
    "a batch norm of another domain": (foreign, False), "FP16": (lambda: one(19, dtype=np.float16), True), "FP16, statistics in FP32": (mixed_types, True),
}
HINTS = {
    "no epsilon written, small variances": " Where the attribute is not written, epsilon is 1e-5.", "a subgraph reads the old weight": " A subgraph reads names of the outer graph.",
    "two batch norms in a row": " After the first fold, the second one stands behind the convolution.", "a batch norm of another domain": " An operator is its domain and its name.",
    "three batch norms in a row": " After the first fold, the second one stands behind the convolution.",
    "weights in Constant nodes": " A Constant node holds a constant, too.", "parameters in Constant nodes, as value_floats": " A Constant node may hold its numbers in value_floats.",
}


@pytest.mark.parametrize("case", FOLDS)
def test_folded(submission, case):
    """A batch norm that can go into the convolution goes, and nothing else changes"""
    make, run = FOLDS[case]
    net, model = make()
    judge(submission, net, model, case, HINTS.get(case, ""), run)


# ---- what has to stay --------------------------------------------------------------------------------------------------------------

def output_of_conv():
    net = Net(30)
    c = net.conv("x", out="middle")
    return net, net.model(net.norm(c, reasons="shared"), c)


def two_readers(other):
    net = Net(31)
    c = net.conv("x")
    n = net.norm(c, reasons="shared")
    return net, net.model(net.node("Add", [n, c]) if other == "Add" else net.node("Add", [n, net.norm(c, reasons="shared")]))


def branch_reads_conv(depth):
    net = Net(32)
    c = net.conv("x")
    n = net.norm(c, reasons="shared")
    inner = net.branch("deep", "Neg", [c])
    if depth == 2:
        flag = net.condition()
        inner = helper.make_graph([helper.make_node("If", [flag], ["deeper"], then_branch=inner, else_branch=net.branch("deep2", "Relu", [c]))], "outer", [],
                                  [helper.make_tensor_value_info("deeper", net.kind, None)])
    y = net.node("If", [net.condition()], "y", then_branch=inner, else_branch=net.branch("b", "Relu", [n]))
    net.channels["y"] = 4
    return net, net.model(y)


def not_constant(place, way):
    net = Net(33)
    conv = {place: way} if place in ("weight", "bias") else {}
    norm = {"where": {place: way}} if not conv else {}
    return net, net.model(net.norm(net.conv("x", **conv), reasons="not_constant", **norm))


def after(op):
    net = Net(34)
    if op == "nothing":
        y = "x"
    elif op == "ConvTranspose":
        y = net.conv("x", 3, op="ConvTranspose", bias=None)
    elif op == "com.example":
        y = net.conv("x", 4, domain="com.example")
    else:
        y = net.node(op, [net.conv("x")])
    return net, net.model(net.norm(y, reasons="no_conv"), check=op != "com.example")


def trained(outputs, opset, mode):
    net = Net(35, opset=opset)
    y = net.norm(net.conv("x"), reasons="training", outputs=outputs, training=mode)
    return net, net.model(y, check=False)


def too_large(what):
    net = Net(36, dtype=np.float16)
    options = {"weight": {"scale": np.array([30000.0, 1, 1, 1]), "variance": np.array([1e-3, 1, 1, 1])}, "bias": {"mean": np.array([-60000.0, 1, 1, 1]), "scale": np.array([2.0, 1, 1, 1]),
                                                                                                         "variance": np.array([0.3, 1, 1, 1])}}
    return net, net.model(net.norm(net.conv("x"), reasons="range", **options[what]))


def no_variance():
    net = Net(37)
    return net, net.model(net.norm(net.conv("x"), reasons="range", epsilon=0.0, variance=np.array([1.0, 0, 1, 1])))


def fold_then_keep():
    """conv, batch norm, batch norm with an overridable mean: the first goes, the second stays."""
    net = Net(38)
    a = net.norm(net.conv("x"))
    return net, net.model(net.norm(a, reasons="not_constant", where={"mean": "default"}))


STAYS = {
    "the convolution's output is an output of the graph": (output_of_conv, True, " The graph's outputs are readers, too."),
    "a second node reads the convolution": (lambda: two_readers("Add"), True, ""), "two batch norms behind one convolution": (lambda: two_readers("norm"), True, ""),
    "a subgraph reads the convolution": (lambda: branch_reads_conv(1), True, " A subgraph reads it by its name."),
    "a subgraph in a subgraph reads the convolution": (lambda: branch_reads_conv(2), True, " A subgraph reads it by its name."),
    **{f"the {place} is an initializer and a graph input": ((lambda place=place: not_constant(place, "default")), True, " The caller may override an initializer that is a graph input.")
       for place in ("weight", "bias", "scale", "shift", "mean", "variance")},
    "the weight is a graph input": (lambda: not_constant("weight", "input"), True, ""), "the weight is computed": (lambda: not_constant("weight", "computed"), True, ""),
    "the variance is computed": (lambda: not_constant("variance", "identity"), True, ""), "a Relu between them": (lambda: after("Relu"), True, ""),
    "a ConvTranspose before it": (lambda: after("ConvTranspose"), True, ""), "nothing before it": (lambda: after("nothing"), True, ""),
    "a Conv of another domain": (lambda: after("com.example"), False, " An operator is its domain and its name."),
    "training_mode 1": (lambda: trained(1, 15, 1), False, ""), "training_mode 1, three outputs": (lambda: trained(3, 15, 1), False, ""),
    "opset 9, five outputs": (lambda: trained(5, 9, None), False, " Before opset 14 there is no training_mode: more outputs than one mean training."),
    "a weight too large for FP16": (lambda: too_large("weight"), True, ""), "a bias too large for FP16": (lambda: too_large("bias"), True, ""), "variance and epsilon 0": (no_variance, True, ""),
    "one goes, the one behind it stays": (fold_then_keep, True, ""),
}


@pytest.mark.parametrize("case", STAYS)
def test_kept(submission, case):
    """A batch norm that cannot be folded stays, with its reason"""
    make, run, hint = STAYS[case]
    net, model = make()
    judge(submission, net, model, case, hint, run)


# ---- larger ones -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(4))
def test_random_network(submission, seed):
    """Networks of many pairs, some foldable, some not"""
    pick = np.random.default_rng(seed + 77)
    net = Net(seed + 100, channels=4)
    x, outputs, w = "x", [], net.tensor(net.draw.normal(0, 0.2, (4, 4, 3, 3)), "w")
    names = net.parameters(4)
    for _ in range(9):
        way = pick.choice(["plain", "plain", "shared weight", "shared parameters", "output", "reader", "default", "constant", "twice", "relu between", "skip"])
        if way == "shared weight":
            c = net.conv(x, 4, weight=w, bias=None)
        else:
            c = net.conv(x, 4, group=int(pick.choice([1, 2, 4])), bias=pick.choice(["initializer", "constant", ""]) if pick.random() < 0.7 else None)
        if way == "output":
            outputs.append(c)
            n = net.norm(c, reasons="shared")
        elif way == "reader":
            n = net.node("Add", [net.norm(c, reasons="shared"), c])
        elif way == "default":
            n = net.norm(c, reasons="not_constant", where={str(pick.choice(["scale", "shift", "mean", "variance"])): "default"})
        elif way == "relu between":
            n = net.norm(net.node("Relu", [c]), reasons="no_conv")
        elif way == "twice":
            n = net.norm(net.norm(c, epsilon=1e-3))
        else:
            n = net.norm(c, names=names if way == "shared parameters" else None, **({"where": "constant"} if way == "constant" else {}))
        x = net.node("Add", [net.node("Tanh", [n]), x]) if way == "skip" else net.node("Tanh", [n])
    model = net.model(x, *outputs, infer=bool(seed % 2))
    judge(submission, net, model, f"random network {seed}", "", "ort", seed)


@pytest.mark.parametrize("where", ["an initializer", "inside a subgraph", "another node's output"])
def test_names_that_are_taken(submission, where):
    """New tensors get names that nobody uses, in subgraphs neither"""
    net, model = one(50)
    first = onnx.load_model_from_string(submission.drive("fold", model.SerializeToString())["model"])
    made = [t.name for t in first.graph.initializer if t.name not in names_of(model.graph)] or ["w_folded", "b_folded"]
    net = Net(50)                                                       # the same pair again, and beside it somebody with these names
    n = net.norm(net.conv("x"))
    y = net.node("Relu", [n])
    if where == "an initializer":
        for name in made:
            net.weights.append(numpy_helper.from_array(np.full(1, 0.5, np.float32), name))
            y = net.node("Mul", [y, name])
    elif where == "another node's output":
        for name in made:
            y = net.node("Neg", [y], name)
    else:
        inside = [helper.make_node("Neg", [y], [made[0]]), *[helper.make_node("Neg", [made[i]], [made[i + 1]]) for i in range(len(made) - 1)]]
        y = net.node("If", [net.condition()], "y", then_branch=net.branch("a", "Abs", [made[-1]], inside), else_branch=net.branch("b", "Relu", [y]))
        net.channels["y"] = 4
    judge(submission, net, net.model(y), f"the names of your new tensors are taken by {where}", "", "ort")


def test_folding_twice(submission):
    """Folding a folded model changes nothing any more"""
    net, model = residual()
    once = submission.drive("fold", model.SerializeToString(deterministic=True)).get("model")
    if once is None:
        raise Wrong("fold_batch_norms did not return a model.", call="fold_batch_norms(<a residual block>)")
    again = submission.drive("fold", once)
    if again.get("kept") != {} or again.get("model") != once:
        raise Wrong("A model without batch norms came back changed.", call="fold_batch_norms(fold_batch_norms(<a residual block>)[0])", got=show(again.get("kept")), expected="the same model, {}")


# ---- what is refused ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", ["None", "a number", "a path", "IR version 3", "opset 8", "weights in another file"])
def test_refused(submission, case):
    """No model, an old IR or opset, weights in another file: an error"""
    want, mistake, external = "ValueError", "A model was taken that this function cannot fold rightly.", False
    net, model = one(60)
    data = model.SerializeToString()
    if case in (things := {"None": None, "a number": 5, "a path": "model.onnx"}):
        want, mistake, data = "TypeError", "Something that is no ModelProto was taken.", things[case]
    elif case == "opset 8":
        model.opset_import[0].version = 8
        data = model.SerializeToString()
    elif case == "IR version 3":
        model.ir_version = 3
        model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
        data = model.SerializeToString()
    else:
        external = True
    call = f"fold_batch_norms(<{case}>)"
    try:
        submission._ask("probe", "refuse", (data, external), {}, call)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("fold_batch_norms is not written yet.", call=call, got=error.text) from None
        if want in error.bases:
            return
        raise Wrong("The wrong kind of error.", call=call, got=f"{error.kind}: {error.text}", expected=want) from None
    raise Wrong(mistake, call=call, got="no error", expected=want)
