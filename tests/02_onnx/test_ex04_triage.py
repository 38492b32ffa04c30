"""Grader of 02_onnx/ex04_triage: networks made from seeds, each with its NumPy twin, and one fault planted in most of them."""
import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from course.grading import Wrong, show

EXERCISE = "02_onnx/ex04_triage"
PROBE = "probe_ex04.py"
LIMITS = {"call_seconds": 60.0, "memory_gib": 2.0}

ort.set_default_logger_severity(4)
WORDS = "amber basil cedar delta ember flint grove haven iris jade kelp linen maple nova onyx pearl quartz reed slate tulip umber vale willow yarrow zinc".split()
CODES = ("version", "order", "type", "frozen", "declared", "broadcast", "none")


# ---- a sound network, and what it computes, in NumPy ----------------------------------------------------------------------

def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Net:
    """A network made from a seed. `steps` are its twin: (inputs, outputs, function) in NumPy, in the order of the nodes."""

    def __init__(self, seed, square=False, flatten=None, must=()):
        self.rng = rng = np.random.default_rng([2024, seed])
        self.nodes, self.weights, self.constants, self.steps, self.movable, self.used = [], [], {}, [], [], set()
        self.batch, self.opset = str(rng.choice(["batch", "N", "n", "rows"])), int(rng.integers(14, 18))
        channels, height, width = (int(v) for v in rng.permutation([3, 4, 5, 6, 7])[:3])
        inner = width if square else int(rng.choice([v for v in (2, 3, 2, 3, 4, 5, 6, 8) if v != width]))
        self.rows = inner if inner < 4 else int(rng.integers(2, 4))       # a number that is the example's batch need not mean the batch
        self.input, self.input_shape = self.name("in"), (channels, height, width)

        h = self.op("Conv", [self.input, self.const(self.draw(inner, channels, 1, 1))], lambda x, w: np.einsum("nchw,kc->nkhw", x, w[:, :, 0, 0]).astype("f4"))
        if rng.random() < 0.5:
            h = self.op("Add", [h, self.const(self.draw(width, scale=0.3))], np.add)      # meant for the last axis
        self.bias = self.const(self.draw(inner, 1, 1, scale=2.0))
        h = self.op("Relu", [self.op("Add", [h, self.bias], np.add)], lambda a: np.maximum(a, 0))
        for extra in rng.permutation(["double", "last", "reshaped", "statistic", "if"]):
            h = getattr(self, f"extra_{extra}")(h, inner, width)

        shape = [inner, height, width]
        for kind in rng.permutation(sorted({*must, *map(str, rng.choice(["reduce", "squeeze", "unsqueeze", "clip", "split"], 3))})):
            h, shape = getattr(self, f"axes_{kind}")(h, shape)
        if rng.random() < 0.5:       # ReduceMean has its axes in an attribute until opset 17: nothing to repair
            h = self.op("ReduceMean", [h], lambda a: a.mean(1, keepdims=True).astype("f4"), axes=[1], keepdims=1)
            shape[0] = 1

        size = int(np.prod(shape))
        self.flat = flatten or str(rng.choice(["zero", "minus", "fixed", "three", "allowzero"]))
        target = {"zero": [0, -1], "minus": [-1, size], "fixed": [0, size], "three": [0, shape[0], -1], "allowzero": [-1, size]}[self.flat]
        self.target = self.const(np.array(target, np.int64), vary=False)
        more = {"allowzero": 1} if self.flat == "allowzero" else {}
        three, first = self.flat == "three", shape[0]
        h = self.op("Reshape", [h, self.target], lambda a, t: a.reshape(len(a), first, -1) if three else a.reshape(len(a), -1), **more)
        if three:
            h = self.op("ReduceMax", [h], lambda a: a.max(1), axes=[1], keepdims=0)
            size //= first
        h = self.op("Softsign", [h], lambda a: a / (1 + np.abs(a)))      # so that the softmax does not saturate, and a wrong answer shows
        classes = int(rng.integers(3, 8))
        h = self.op("MatMul", [h, self.const(self.draw(size, classes, scale=size**-0.5))], lambda a, b: (a @ b).astype("f4"))
        h = self.op("Add", [h, self.const(self.draw(classes))], np.add)
        y = self.op("Softmax", [h], softmax, axis=-1)
        outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, [self.batch, classes])]
        if rng.random() < 0.5:
            best = self.op("ArgMax", [h], lambda a: a.argmax(1)[:, None], axis=1)
            outputs.append(helper.make_tensor_value_info(best, TensorProto.INT64, [self.batch, 1]))

        graph = helper.make_graph(self.nodes, str(rng.choice(WORDS)), [helper.make_tensor_value_info(self.input, TensorProto.FLOAT, [self.batch, *self.input_shape])], outputs, self.weights)
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8, producer_name=str(rng.choice(WORDS)), doc_string="a note of the exporter")
        self.model.metadata_props.add(key="made_from", value=str(seed))
        known = [v for v in onnx.shape_inference.infer_shapes(self.model).graph.value_info
                 if (d := dims(v)) and d[0] == self.batch and all(isinstance(n, int) for n in d[1:])]
        self.model.graph.value_info.extend(known[k] for k in sorted(rng.choice(len(known), 4, replace=False)))
        self.outputs = [o.name for o in outputs]

    def name(self, stem):
        while (made := f"{self.rng.choice(WORDS)}_{stem}{self.rng.integers(100)}") in self.used:
            pass
        self.used.add(made)
        return made

    def draw(self, *shape, scale=1.0):
        return (scale * self.rng.standard_normal(shape)).astype("f4")

    def const(self, array, vary=True):
        """A stored tensor: an initializer, or a Constant node."""
        name = self.name("c")
        self.constants[name] = array
        if self.rng.random() < 0.35:
            self.nodes.append(helper.make_node("Constant", [], [name], self.name("constant"), value=numpy_helper.from_array(array)))
        else:
            self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind, inputs, twin, outputs=1, **attributes):
        names = [self.name("t") for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, self.name(kind.lower()), **attributes))
        self.steps.append((list(inputs), names, twin))
        return names[0] if outputs == 1 else names

    # what is right, and looks like a fault
    def extra_double(self, h, channels, width):       # a float64 constant where it belongs
        wide = self.op("Cast", [h], lambda a: a.astype("f8"), to=TensorProto.DOUBLE)
        scaled = self.op("Mul", [wide, self.const(np.array([1 + self.rng.random()]))], np.multiply)
        return self.op("Cast", [scaled], lambda a: a.astype("f4"), to=TensorProto.FLOAT)

    def extra_last(self, h, channels, width):         # a constant that belongs to the last axis
        return self.op("Mul", [h, self.const(1 + self.draw(width, scale=0.2))], np.multiply)

    def target_of_channels(self, channels):
        return self.const(np.array([[1, channels, 1, 1], [channels, 1, 1]][int(self.rng.integers(2))], np.int64))

    def extra_reshaped(self, h, channels, width):     # a Reshape to a leading number, of a constant
        inputs = [self.const(1 + self.draw(channels, scale=0.2)), self.target_of_channels(channels)]
        scale = self.op("Reshape", inputs, lambda a, t: a.reshape(t))
        return self.op("Mul", [h, scale], np.multiply)

    def extra_statistic(self, h, channels, width):    # the same, of what has no batch any more
        most = self.op("ReduceMax", [h], lambda a: a.max((0, 2, 3)), axes=[0, 2, 3], keepdims=0)
        most = self.op("Reshape", [most, self.target_of_channels(channels)], lambda a, t: a.reshape(t))
        return self.op("Sub", [h, self.op("Mul", [most, self.const(np.full(1, 0.25, "f4"))], np.multiply)], np.subtract)

    def extra_if(self, h, channels, width):
        most = self.op("ReduceMax", [h], lambda a: a.max(), keepdims=0)
        flag = self.op("Greater", [most, self.const(np.float32(self.rng.choice([0.0, 50.0])).reshape(()))], lambda a, b: a > b)
        c, out = self.const(self.draw(1)), self.name("t")
        halves = []
        for kind in ("Add", "Sub"):
            inner = self.name("b")
            halves.append(helper.make_graph([helper.make_node(kind, [h, c], [inner], self.name(kind.lower()))], kind, [], [helper.make_empty_tensor_value_info(inner)]))
        self.nodes.append(helper.make_node("If", [flag], [out], self.name("if"), then_branch=halves[0], else_branch=halves[1]))
        self.steps.append(([flag, h, c], [out], lambda f, a, b: a + b if f else a - b))
        return out

    # operators whose attribute became an input
    def moved(self, kind, inputs, values, twin, outputs=1, **attributes):
        names = [v if v == "" else self.const(np.array(v, np.float32 if kind == "Clip" else np.int64)) for v in values]
        result = self.op(kind, [*inputs, *names], twin, outputs, **attributes)
        self.movable.append(self.nodes[-1].name)
        return result

    def axes_reduce(self, h, shape):
        axis = int(self.rng.integers(2, len(shape) + 1))
        shape = [1 if k == axis - 1 else s for k, s in enumerate(shape)]
        return self.moved("ReduceSum", [h], [[axis]], lambda a, t: a.sum(axis, keepdims=True), keepdims=1), shape

    def axes_unsqueeze(self, h, shape):
        axis = int(self.rng.integers(1, len(shape) + 2))
        return self.moved("Unsqueeze", [h], [[axis]], lambda a, t: np.expand_dims(a, axis)), [*shape[:axis - 1], 1, *shape[axis - 1:]]

    def axes_squeeze(self, h, shape):
        h, shape = self.axes_reduce(h, shape)
        axis = max(k for k, s in enumerate(shape) if s == 1 and k) + 1
        return self.moved("Squeeze", [h], [[axis]], lambda a, t: a.squeeze(axis)), [s for k, s in enumerate(shape) if k != axis - 1]

    def axes_clip(self, h, shape):
        low, high = -round(float(self.rng.uniform(0.5, 2)), 3), round(float(self.rng.uniform(2, 4)), 3)
        which = int(self.rng.integers(3))
        if which == 0:
            return self.moved("Clip", [h], ["", high], lambda a, *t: np.minimum(a, t[-1])), shape
        if which == 1:
            return self.moved("Clip", [h], [low], lambda a, t: np.maximum(a, t)), shape
        return self.moved("Clip", [h], [low, high], lambda a, s, t: np.clip(a, s, t)), shape

    def axes_split(self, h, shape):
        if shape[0] < 2:
            return h, shape
        cut = int(self.rng.integers(1, shape[0]))
        first, second = self.moved("Split", [h], [[cut, shape[0] - cut]], lambda a, t: (a[:, :cut], a[:, cut:]), 2, axis=1)
        return self.op("Concat", [second, first], lambda a, b: np.concatenate([a, b], 1), axis=1), shape

    # running
    def feed(self, count, seed=0):
        return {self.input: np.random.default_rng([self.rows, seed]).standard_normal((count, *self.input_shape)).astype("f4")}

    def truth(self, feed):
        values = self.constants | feed | {"": None}
        for inputs, names, twin in self.steps:
            result = twin(*(values[i] for i in inputs if i))
            values |= dict(zip(names, result if isinstance(result, tuple) else [result]))
        return {name: np.asarray(values[name]) for name in self.outputs}


# ---- faults ------------------------------------------------------------------------------------------------------------------

class Broken:
    """A model with at most one fault: `code` and `where` say which, `net` what was meant."""

    def __init__(self, net, code, where="", label=""):
        self.net, self.code, self.where, self.label = net, code, where, label
        self.model = onnx.load_model_from_string(net.model.SerializeToString())

    @functools.cached_property
    def data(self):
        return self.model.SerializeToString(deterministic=True)

    def node(self, name):
        return next(n for n in self.model.graph.node if n.name == name)

    def replace(self, name, array):
        """Stores another array under a constant's name."""
        for tensor in self.model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(array, name))
        for node in self.model.graph.node:
            if node.op_type == "Constant" and node.output[0] == name:
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(array))

    def drop(self, name):
        graph = self.model.graph
        for field in (graph.initializer, graph.node):
            for thing in list(field):
                if (thing.op_type == "Constant" and thing.output[0] == name) if isinstance(thing, onnx.NodeProto) else thing.name == name:
                    field.remove(thing)


OLD = {"ReduceSum": "axes", "Squeeze": "axes", "Unsqueeze": "axes", "Split": "split"}


def version(seed, kind):
    net = Net(seed, must=(kind,))
    broken = Broken(net, "version", label=kind)
    wanted = {"reduce": "ReduceSum", "squeeze": "Squeeze", "unsqueeze": "Unsqueeze", "clip": "Clip", "split": "Split"}[kind]
    node = next(n for n in broken.model.graph.node if n.name in net.movable and n.op_type == wanted)
    broken.where, values = node.name, [(k, i) for k, i in enumerate(node.input) if k and i]
    for k, i in values:
        array = net.constants[i]
        attribute = ("min", "max")[k - 1] if wanted == "Clip" else OLD[wanted]
        node.attribute.append(helper.make_attribute(attribute, array.item() if array.ndim == 0 else array.tolist()))
        broken.drop(i)
    del node.input[1:]
    return broken


def outer_reads(node):
    inside, names = set(), [i for i in node.input if i]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inside |= {o for n in attribute.g.node for o in n.output}
            names += [i for n in attribute.g.node for i in n.input if i]
    return [n for n in names if n not in inside]


def first_too_early(graph):
    ready = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        if not set(outer_reads(node)) <= ready:
            return node.name
        ready |= set(node.output)
    return None


def order(seed, kind):
    rng = np.random.default_rng([7, seed])
    net = Net(seed)
    broken = Broken(net, "order", label=kind)
    nodes = list(broken.model.graph.node)
    if kind == "shuffled":
        nodes = [nodes[k] for k in rng.permutation(len(nodes))]
    else:
        if kind == "branch":         # the If's branches read a name that only they and no other node between need
            at = next(k for k, n in enumerate(nodes) if n.op_type == "If")
            c = next(i for i in nodes[at].attribute[0].g.node[0].input if i in net.constants)
            broken.drop(c)           # the stored tensor becomes the result of a node, written behind the If
            plain = net.name("c")
            broken.model.graph.initializer.append(numpy_helper.from_array(net.constants[c], plain))
            nodes = list(broken.model.graph.node)
            at = next(k for k, n in enumerate(nodes) if n.op_type == "If")
            nodes.insert(at + 1, helper.make_node("Identity", [plain], [c], net.name("identity")))
        else:
            pairs = [(a, b) for b, n in enumerate(nodes) for a, m in enumerate(nodes[:b]) if set(m.output) & set(outer_reads(n))]
            a, b = pairs[int(rng.integers(len(pairs)))]
            last = len(nodes) - 1 if kind == "appended" else b
            nodes.insert(last, nodes.pop(a))
    del broken.model.graph.node[:]
    broken.model.graph.node.extend(nodes)
    broken.where = first_too_early(broken.model.graph)
    return broken


def type_(seed, kind):
    net = Net(seed)
    broken = Broken(net, "type", label=kind)
    floats = [n for n, a in net.constants.items() if a.dtype == np.float32]
    if kind == "weight":
        broken.where = max(floats, key=lambda n: net.constants[n].size)
    elif kind == "bias":
        broken.where = net.bias
    elif kind == "branch":
        node = next(n for n in broken.model.graph.node if n.op_type == "If")
        broken.where = next(i for i in node.attribute[0].g.node[0].input if i in net.constants)
    elif kind == "double":       # the one that belongs in the part that computes in float64
        broken.where = next(n for n, a in net.constants.items() if a.dtype == np.float64)
    else:
        broken.where = net.target if kind == "shape" else net.bias
    broken.replace(broken.where, net.constants[broken.where].astype({"shape": "i4", "double": "f4", "half": "f2"}.get(kind, "f8")))
    return broken


def frozen(seed, kind):
    net = Net(seed, flatten=kind.split()[0])
    broken = Broken(net, "frozen", net.target, label=kind)
    target = net.constants[net.target].copy()
    if kind.endswith("whole"):
        tail = [d for d in target if d > 0]
        size = int(np.prod(sizes(net)))
        target = np.array([0, *tail, size // int(np.prod(tail or [1]))], np.int64) if -1 in target[1:] else target
    target[0] = net.rows
    broken.replace(net.target, target)
    return broken


def sizes(net):
    """The dimensions, batch apart, of what is flattened."""
    values = net.constants | net.feed(1) | {"": None}
    for inputs, names, twin in net.steps:
        if net.target in inputs:
            return values[inputs[0]].shape[1:]
        result = twin(*(values[i] for i in inputs if i))
        values |= dict(zip(names, result if isinstance(result, tuple) else [result]))


def declared(seed, kind):
    net = Net(seed)
    broken = Broken(net, "declared", label=kind)
    values = broken.model.graph.value_info if kind.startswith("inner") else broken.model.graph.output
    value = values[int(np.random.default_rng([5, seed]).integers(len(values)))]
    broken.where, dims = value.name, value.type.tensor_type.shape.dim
    if kind.endswith("number"):
        dims[-1].dim_value += 1 + seed % 3
    elif kind.endswith("rank"):
        dims.add(dim_value=1)
    else:                             # the batch of the example
        dims[0].Clear()
        dims[0].dim_value = net.rows
    return broken


def broadcast(seed, kind):
    while True:
        net = Net(seed, square=True)
        broken = Broken(net, "broadcast", net.bias, label=kind)
        broken.replace(net.bias, net.constants[net.bias].reshape(-1))
        feed = net.feed(net.rows)
        meant, now = net.truth(feed), run(broken.data, feed)
        if max(np.abs(meant[k].astype("f8") - now[k]).max() for k in meant) > 0.02:      # the example has to show it
            return broken
        seed += 1000


def none(seed, kind):
    return Broken(Net(seed, square=kind == "square"), "none", label=kind)


MAKERS = {"version": version, "order": order, "type": type_, "frozen": frozen, "declared": declared, "broadcast": broadcast, "none": none}
CASES = [("version", s, k) for s, k in enumerate(["reduce", "squeeze", "unsqueeze", "clip", "split", "clip", "clip", "reduce"], 100)]
CASES += [("order", s, k) for s, k in enumerate(["neighbours", "appended", "shuffled", "branch", "neighbours", "branch"], 200)]
CASES += [("type", s, k) for s, k in enumerate(["weight", "bias", "shape", "branch", "double", "shape", "half", "double"], 300)]
CASES += [("frozen", s, k) for s, k in enumerate(["zero", "minus", "fixed", "three", "allowzero", "zero whole", "three whole"], 400)]
CASES += [("declared", s, k) for s, k in enumerate(["output number", "output rank", "output batch", "inner number", "inner batch", "output number"], 500)]
CASES += [("broadcast", s, k) for s, k in enumerate(["plain"] * 5, 600)]
CASES += [("none", s, k) for s, k in enumerate(["plain", "square", "plain", "square", "plain", "square"], 700)]


@functools.lru_cache
def case_of(code, seed, kind):
    return MAKERS[code](seed, kind)


def cases(test):
    return pytest.mark.parametrize("code, seed, kind", CASES, ids=[f"{c}, {k}, seed {s}" for c, s, k in CASES])(test)


HINTS = {"version": "The node has an attribute that its operator does not have in the opset that the model imports.",
         "order": "A node reads a tensor that a later node writes. Branches read outer names, too.",
         "type": "An operator's inputs are of types that do not go together.",
         "frozen": "The example's own batch works. Another batch does not.",
         "declared": "What the model declares of a tensor is not what shape inference makes of it.",
         "broadcast": "All tools accept the model, and its answer is not the example's.",
         "none": "Nothing is wrong with this model: it is valid, it runs with any batch, and it answers as expected."}


@cases
def test_diagnose(submission, code, seed, kind):
    """diagnose finds the fault and the name that it has"""
    case = case_of(code, seed, kind)
    feed = case.net.feed(case.net.rows)
    call = f"diagnose(<{code}, {kind}, seed {seed}>, feed of {case.net.rows} rows, expected)"
    given = submission.probe("hold", case.data)
    got = submission.call("diagnose", given, feed, case.net.truth(feed))
    if submission.probe("look", given, given)[0] != case.data:
        raise Wrong("diagnose changed the model: work on a copy.", call)
    if not isinstance(got, (tuple, list)) or len(got) != 2 or not all(isinstance(v, str) for v in got):
        raise Wrong("diagnose returns two strings, a code and a name.", call, show(got), '(code, name)')
    if got[0] not in CODES:
        raise Wrong("This is no code of the list.", call, got[0], ", ".join(CODES))
    if got[0] != code:
        raise Wrong(f"A wrong diagnosis: {got[0]!r}, where the fault is {code!r}. {HINTS[code]}", call, tuple(got), (code, case.where))
    if got[1] != case.where:
        raise Wrong(f"The fault is {code!r}, and it is somewhere else.", call, tuple(got), (code, case.where))


# ---- repairs ----------------------------------------------------------------------------------------------------------------

def run(data, feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))


def text(message):
    return message.SerializeToString(deterministic=True)


def dims(value):
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def same_fields(before, after, code, call):
    """Nothing outside nodes, initializers and declared shapes differs."""
    bare = []
    for model in (before, after):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for field in ("node", "initializer", "value_info", "output"):
            copy.graph.ClearField(field)
        bare.append(copy)
    old, new = ({o.domain: o.version for o in m.opset_import} for m in (before, after))
    if old[""] != new.get(""):
        raise Wrong("The imported opset was changed: every operator of the model now means what it means in another version.", call, new, old)
    if old != new:
        raise Wrong("The model imports other domains than before: what was asked for is one repair, not another file.", call, new, old)
    if text(bare[0]) != text(bare[1]):
        changed = [f.name for f in onnx.ModelProto.DESCRIPTOR.fields if str(getattr(bare[0], f.name)) != str(getattr(bare[1], f.name))]
        raise Wrong(f"Something that was not broken has changed: {', '.join(changed)}.", call)


def check_nodes(case, before, after, call):
    old, new = list(before.graph.node), list(after.graph.node)
    if case.code == "order":
        if sorted(map(text, old)) != sorted(map(text, new)):
            raise Wrong("To put nodes in order, no node has to change, come or go.", call, f"{len(new)} nodes", f"the same {len(old)} nodes")
        return
    if case.code == "version":
        written = {o for n in old for o in n.output}
        new = [n for n in new if not (n.op_type == "Constant" and n.output[0] not in written)]      # check_tensors counts these
    if len(new) != len(old):
        raise Wrong("This repair needs no other node, and none fewer.", call, f"{len(new)} nodes", f"{len(old)} nodes")
    for a, b in zip(old, new):
        if text(a) == text(b):
            continue
        if case.code == "version" and a.name == case.where and (a.op_type, a.name, list(a.output), a.input[0]) == (b.op_type, b.name, list(b.output), b.input[0]):
            continue
        if case.code in ("type", "frozen", "broadcast") and a.op_type == b.op_type == "Constant" and a.output[0] == b.output[0] == case.where:
            continue
        raise Wrong(f"The node {a.name!r} was not broken, and is not as it was.", call, b.op_type + f" {b.name!r}", "the same node, in the same place")


def check_tensors(case, before, after, call):
    old, new = ({t.name: text(t) for t in m.graph.initializer} for m in (before, after))
    free = {case.where} if case.code in ("type", "frozen", "broadcast") else set()
    for name in old:
        if name not in new:
            raise Wrong(f"The initializer {name!r} is gone.", call, sorted(new), sorted(old))
        if name not in free and old[name] != new[name]:
            raise Wrong(f"The initializer {name!r} was not broken, and is not as it was.", call)
    added = set(new) - set(old)
    if added and case.code != "version":
        raise Wrong("This repair needs no other initializer.", call, sorted(added), "the same names")
    if stored(after) > stored(case.net.model):
        raise Wrong("More constants than the node has to be given.", call, f"{stored(after) - stored(before)} more", f"{stored(case.net.model) - stored(before)} more")


def stored(model):
    return len(model.graph.initializer) + sum(n.op_type == "Constant" for n in model.graph.node)


def check_declared(case, before, after, call):
    for part in ("output", "value_info"):
        old, new, meant = ({v.name: v for v in getattr(m.graph, part)} for m in (before, after, case.net.model))
        for name in old:
            broken = case.code == "declared" and name == case.where
            if name not in new:
                if broken and part == "value_info":
                    continue
                raise Wrong(f"The graph's {part} {name!r} is gone.", call, sorted(new), sorted(old))
            if not broken and text(old[name]) != text(new[name]):
                raise Wrong(f"What the model declares of {name!r} was true, and has changed.", call, dims(new[name]), dims(old[name]))
            if broken and (dims(new[name]), new[name].type.tensor_type.elem_type) != (dims(meant[name]), meant[name].type.tensor_type.elem_type):
                raise Wrong(f"What the model declares of {name!r} is still not true, or says less than is known.", call, dims(new[name]), dims(meant[name]))
        if part == "output" and list(old) != list(new):
            raise Wrong("The graph's outputs are not what they were.", call, list(new), list(old))
        if set(new) - set(old):
            raise Wrong("The repair declares tensors that nobody asked about.", call, sorted(set(new) - set(old)), "no further entry")


@cases
def test_repair(submission, code, seed, kind):
    """repair mends what is broken, for every batch, and nothing else"""
    case = case_of(code, seed, kind)
    call = f"repair(<{code}, {kind}, seed {seed}>, {code!r}, {case.where!r})"
    given = submission.probe("hold", case.data)
    result = submission.call("repair", given, code, case.where)
    after, got, same = submission.probe("look", given, result)
    if got is None:
        raise Wrong("repair returns a model.", call, show(result), "an onnx.ModelProto")
    if same or after != case.data:
        raise Wrong("The model that was given is changed: work on a copy.", call, "the given object, changed" if after != case.data else "the given object itself", "a new model")
    model = onnx.load_model_from_string(got)
    same_fields(case.model, model, code, call)
    check_nodes(case, case.model, model, call)
    check_tensors(case, case.model, model, call)
    check_declared(case, case.model, model, call)
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise Wrong("onnx refuses the repaired model.", call, " ".join(str(error).split())[:300], "a model that checker and strict shape inference accept") from None
    for count in (case.net.rows, 1, 5):
        feed = case.net.feed(count, seed=count)
        fed = f"{call}, run with {count} rows"
        try:
            have = run(got, feed)
        except Exception as error:
            raise Wrong("ONNX Runtime cannot run the repaired model.", fed, " ".join(str(error).split())[:300], "an answer") from None
        for name, value in case.net.truth(feed).items():
            mine = have[name]
            if (mine.shape, mine.dtype) != (value.shape, value.dtype):
                raise Wrong(f"The output {name!r} has not the shape or type that was meant.", fed, f"{mine.dtype} {mine.shape}", f"{value.dtype} {value.shape}")
            if not (np.array_equal(mine, value) if value.dtype.kind == "i" else np.allclose(mine, value, rtol=1e-3, atol=1e-5)):
                raise Wrong(f"The repaired model runs, and its output {name!r} is not what was meant.", fed, mine, value)
