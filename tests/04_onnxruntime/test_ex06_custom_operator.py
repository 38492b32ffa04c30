"""Grader of 04_onnxruntime/ex06_custom_operator. The definition is computed in float64; three readers have to agree with it."""
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import AttributeProto
from onnx.reference import ReferenceEvaluator

from course.grading import Raised, Wrong, show

EXERCISE = "04_onnxruntime/ex06_custom_operator"
PROBE = "probe_ex06.py"
LIMITS = {"call_seconds": 30.0, "memory_gib": 3.0}
DEFAULTS = {"epsilon": 1e-5, "beta": 1.0, "offset": 0}
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}     # of the largest value: half a step of float16 is 5e-4
OURS = ("course.lab", "GatedNorm")


# ---- the definition ---------------------------------------------------------------------------------------------------

def defined(x, gate, weight, epsilon=1e-5, beta=1.0, offset=0):
    wide, g, w = (a.astype("f8") for a in (x, gate, weight))
    return wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + epsilon) * (w + offset) * g / (1 + np.exp(-np.clip(beta * g, -700, 700)))


def mistakes(x, gate, weight, epsilon, beta, offset):
    """What common mistakes come to: words and array."""
    wide, g, w = (a.astype("f8") for a in (x, gate, weight))
    mean = (wide * wide).mean(axis=-1, keepdims=True)
    open_, swish = 1 / (1 + np.exp(-np.clip(beta * g, -700, 700))), g / (1 + np.exp(-np.clip(beta * g, -700, 700)))
    return (("offset is not added to the weight.", wide / np.sqrt(mean + epsilon) * w * swish),
            ("beta is ignored: the gate is gate · sigmoid(gate).", wide / np.sqrt(mean + epsilon) * (w + offset) * g / (1 + np.exp(-np.clip(g, -700, 700)))),
            ("epsilon is ignored, or always 1e-5.", wide / np.sqrt(mean + 1e-5) * (w + offset) * swish),
            ("epsilon is added behind the root.", wide / (np.sqrt(mean) + epsilon) * (w + offset) * swish),
            ("The mean runs over all axes: it is over the last one.", wide / np.sqrt((wide * wide).mean() + epsilon) * (w + offset) * swish),
            ("The sum of squares is not divided by D.", wide / np.sqrt((wide * wide).sum(axis=-1, keepdims=True) + epsilon) * (w + offset) * swish),
            ("The mean of x is subtracted: this is a root mean square, no deviation.", (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(axis=-1, keepdims=True) + epsilon) * (w + offset) * swish),
            ("The gate is sigmoid(beta · gate) alone.", wide / np.sqrt(mean + epsilon) * (w + offset) * open_))


def compare(got, feeds, attributes, call, want=None):
    """Holds `got` to the definition, or to `want`."""
    x = feeds["x"]
    plain = want is None
    want = defined(x, feeds["gate"], feeds["weight"], **DEFAULTS | attributes) if plain else want
    if not isinstance(got, np.ndarray) or got.shape != want.shape or got.dtype != x.dtype:
        raise Wrong("y has not the shape and type of x.", call, show(got), f"shape {want.shape}, {x.dtype}")
    room = TOLERANCE[str(x.dtype)] * max(np.abs(want).max(initial=0), 1e-6)
    if got.size and not np.abs(got.astype("f8") - want).max() <= room:
        mistake = "y is not what the definition says."
        for words, other in mistakes(x, feeds["gate"], feeds["weight"], **DEFAULTS | attributes) if plain else ():
            if np.abs(other - want).max() > 2 * room and np.abs(got - other).max() <= room:
                mistake = words
                break
        else:
            if x.dtype == np.float16:
                mistake = "y is not what the definition says. In float16 a square overflows from 256 on: compute in float32, and round at the end."
        raise Wrong(mistake, call, show(got), show(want.astype(x.dtype)))


def feeds_of(seed, shape, dtype="float32", loud=1.0):
    d = np.random.default_rng(seed)
    return {"x": (loud * d.normal(size=shape)).astype(dtype), "gate": (2 * d.normal(size=shape)).astype(dtype), "weight": d.normal(size=shape[-1:]).astype(dtype)}


# ---- models -----------------------------------------------------------------------------------------------------------

def written(attributes):
    """Attributes in ONNX's text form."""
    parts = [f"{k}: {'int' if isinstance(v, int) else 'float'} = {v if isinstance(v, int) else repr(float(v))}" for k, v in attributes.items()]
    return f"<{', '.join(parts)}>" if parts else ""


def save(path, text, opset=17, ir=8, domains=("course.lab", "other")):
    imports = "".join(f', "{d}" : 1' for d in domains)
    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{imports}]>\n{text}')
    model.producer_name, model.doc_string, model.graph.doc_string = "a grader", "a model", "a graph"
    model.metadata_props.add(key="trained", value="yes")
    onnx.save(model, path)
    return str(path)


def call_model(path, dims, attributes, dtype="float", opset=17, ir=8):
    d = dims.rpartition(",")[2].strip()
    return save(path, f"""g ({dtype}[{dims}] x, {dtype}[{dims}] gate, {dtype}[{d}] weight) => ({dtype}[{dims}] y) {{
      y = course.lab.GatedNorm {written(attributes)} (x, gate, weight) }}""", opset, ir)


# ---- the reference ----------------------------------------------------------------------------------------------------

ATTRIBUTES = [{}, {"epsilon": 0.5}, {"beta": 1.702}, {"offset": 1}, {"epsilon": 0.25, "beta": 0.5, "offset": 2}, {"epsilon": 0.0, "beta": -1.5, "offset": -1}]


def test_reference(submission, tmp_path):
    """GatedNorm computes the definition, with and without its attributes, for ranks 1 to 4"""
    for i, attributes in enumerate(ATTRIBUTES):
        for dims, shape in (("d", (7,)), ("n, d", (5, 16)), ("n, s, d", (2, 3, 8)), ("a, b, c, d", (2, 1, 3, 1)), ("n, d", (0, 4))):
            path, feeds = call_model(tmp_path / "m.onnx", dims, attributes), feeds_of(i, shape)
            call = f"ReferenceEvaluator(model, new_ops=[GatedNorm]), x {shape}, attributes {attributes}"
            compare(ask_reference(submission, path, feeds, call), feeds, attributes, call)


def ask_reference(submission, path, feeds, call):
    try:
        return submission._ask("probe", "reference", (path, feeds), {}, call)["ok"]
    except Raised as error:
        if error.kind == "NotImplementedError" and "not written yet" in error.text:
            raise Wrong("GatedNorm is not written yet.", call, error.text) from None
        raise Wrong("The reference raised an error.", call, str(error), "y") from None


def test_reference_half(submission, tmp_path):
    """GatedNorm computes float16 in something wider, and does not overflow"""
    for loud in (1.0, 300.0, 5000.0, 0.01):
        path, feeds = call_model(tmp_path / "m.onnx", "n, d", {"epsilon": 1e-5}, "float16"), feeds_of(3, (6, 32), "float16", loud)
        call = f"ReferenceEvaluator(model, new_ops=[GatedNorm]), float16, |x| up to {np.abs(feeds['x']).max():.3g}"
        compare(ask_reference(submission, path, feeds, call), feeds, {"epsilon": 1e-5}, call)


def test_reference_refuses(submission, tmp_path):
    """GatedNorm raises ValueError for shapes that would only broadcast"""
    path = save(tmp_path / "m.onnx", "g (float[a, b] x, float[c, d] gate, float[e] weight) => (float[a, b] y) { y = course.lab.GatedNorm (x, gate, weight) }")
    good = feeds_of(4, (3, 8))
    for name, shape in (("gate", (1, 8)), ("gate", (3, 1)), ("weight", (1,)), ("weight", (3,))):
        feeds = good | {name: np.ones(shape, "f4")}
        call = f"GatedNorm, x (3, 8), {name} {shape}"
        try:
            got = submission._ask("probe", "reference", (path, feeds), {}, call)["ok"]
        except Raised as error:
            if "ValueError" not in error.bases:
                raise Wrong("A wrong shape has to raise ValueError.", call, str(error), "ValueError") from None
            if "operands could not be broadcast" in error.text:
                raise Wrong("The shapes are not checked: this error is NumPy's, and comes only where broadcasting fails.", call, str(error), "a ValueError of yours") from None
            continue
        raise Wrong("A wrong shape has to raise ValueError: broadcasting hides the mistake.", call, show(got), "ValueError")


# ---- the body ---------------------------------------------------------------------------------------------------------

def add(submission, path, target):
    before = Path(path).read_bytes()
    call = f"add_bodies('{Path(path).name}', '{target.name}')"
    returned = submission.call("add_bodies", path, str(target))
    if returned is not None:
        raise Wrong("add_bodies returns nothing.", call, show(returned), "None")
    if Path(path).read_bytes() != before:
        raise Wrong("The source was changed.", call)
    if not target.exists():
        raise Wrong("No file was written.", call, "no such file", target.name)
    return check_file(onnx.load(path), onnx.load(target), call), call


def graphs_of(nodes):
    for n in nodes:
        for a in n.attribute:
            for g in [a.g] if a.type == AttributeProto.GRAPH else a.graphs:
                yield g
                yield from graphs_of(g.node)


def places(model):
    """Every list of nodes in the file with its name."""
    yield "graph", model.graph.node
    for g in graphs_of(model.graph.node):
        yield f"subgraph {g.name}", g.node
    for f in model.functions:
        yield f"function {f.domain}::{f.name}", f.node
        for g in graphs_of(f.node):
            yield f"subgraph {g.name} of {f.domain}::{f.name}", g.node


def plain(node):
    """A node without its attributes, subgraphs apart."""
    return node.domain, node.op_type, node.name, list(node.input), list(node.output)


def check_file(source, model, call):
    own = [f for f in model.functions if f.domain == "course.lab"]
    rest = [f for f in model.functions if f.domain != "course.lab"]
    uses = any((n.domain, n.op_type) == OURS for _, nodes in places(source) for n in nodes)
    if uses and sum((f.domain, f.name) == OURS for f in own) != 1:
        raise Wrong("The file does not define course.lab::GatedNorm once.", call, [f"{f.domain}::{f.name}" for f in model.functions], "one function of that name")
    if [(f.domain, f.name) for f in rest] != [(f.domain, f.name) for f in source.functions if f.domain != "course.lab"]:
        raise Wrong("Other functions of the file were lost, added or moved; helpers of yours belong into course.lab.", call, [f"{f.domain}::{f.name}" for f in rest])
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    for f in own:
        kept.functions.remove(f)
    before, after = dict(places(source)), dict(places(kept))
    if before.keys() != after.keys():
        raise Wrong("Subgraphs or functions of the file are gone or new.", call, sorted(after), sorted(before))
    for place, nodes in before.items():
        if [plain(n) for n in nodes] != [plain(n) for n in after[place]]:
            raise Wrong(f"The nodes of the {place} are not the same: the calls stay, and so does everything around them.", call, [n.op_type for n in after[place]], [n.op_type for n in nodes])
        for old, new in zip(nodes, after[place]):
            check_attributes(old, new, place, call)
    for f in own:
        check_function(f, model, own, call)
    for one, other, what in ((source.graph.input, model.graph.input, "inputs"), (source.graph.output, model.graph.output, "outputs"), (source.graph.initializer, model.graph.initializer, "initializers")):
        if [v.SerializeToString() for v in one] != [v.SerializeToString() for v in other]:
            raise Wrong(f"The graph's {what} changed.", call, [v.name for v in other], [v.name for v in one])
    if opset(model) != opset(source):
        raise Wrong("The opset changed.", call, opset(model), opset(source))
    old, new = (bare(m, own_too) for m, own_too in ((source, True), (kept, False)))
    for part in ("ModelProto", "GraphProto"):
        one, other = (m if part == "ModelProto" else m.graph for m in (old, new))
        for f in one.DESCRIPTOR.fields:
            if f.name != "graph" and str(getattr(one, f.name)) != str(getattr(other, f.name)):
                raise Wrong(f"{part}.{f.name} of the file changed.", call, show(str(getattr(other, f.name))), show(str(getattr(one, f.name))))
    if model.ir_version < 8:
        raise Wrong("Functions came with IR version 8, and the file says less.", call, model.ir_version, "8 or more")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise Wrong("onnx.checker does not take the file.", call, str(error).strip()[:300], "check_model(…, full_check=True) passes") from None
    return model


def bare(model, own_too):
    """A copy without what `add_bodies` may change, and without what `check_file` compares by itself."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = 8
    for field in ("node", "initializer", "input", "output"):
        copy.graph.ClearField(field)
    for f in list(copy.functions):
        if f.domain == "course.lab" and own_too:
            copy.functions.remove(f)
        else:
            f.ClearField("node")
    imports = {(o.domain, o.version) for o in copy.opset_import if o.domain != "course.lab"}
    copy.ClearField("opset_import")
    copy.opset_import.extend(onnx.helper.make_opsetid(*pair) for pair in sorted(imports))
    return copy


def check_attributes(old, new, place, call):
    given = {a.name: a for a in old.attribute}
    now = {a.name: a for a in new.attribute}
    ours = (old.domain, old.op_type) == OURS
    for name, a in given.items():
        if a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            continue                                        # its nodes are compared by themselves
        if name not in now or now[name].SerializeToString() != a.SerializeToString():
            raise Wrong(f"The attribute {name!r} of {old.op_type} in the {place} changed.", call, str(now.get(name)).replace("\n", " ") or "gone", str(a).replace("\n", " "))
    if not ours:
        if now.keys() != given.keys():
            raise Wrong(f"A {old.op_type} in the {place} has other attributes.", call, sorted(now), sorted(given))
        return
    missing = sorted(DEFAULTS.keys() - now.keys())
    if missing:
        raise Wrong(f"A call in the {place} does not write {', '.join(missing)} out: not every reader fills in defaults.", call, sorted(now), sorted(DEFAULTS))
    for name, value in DEFAULTS.items():
        if name not in given:
            a = now[name]
            kind = AttributeProto.INT if isinstance(value, int) else AttributeProto.FLOAT
            if a.type != kind or a.ref_attr_name or not np.isclose(a.i if kind == AttributeProto.INT else a.f, value, rtol=1e-6, atol=0):
                raise Wrong(f"The default of {name} at a call is wrong.", call, str(a).replace("\n", " "), value)


def check_function(f, model, own, call):
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in f.node if n.domain not in ("", "ai.onnx") and (n.domain, n.op_type) not in {(g.domain, g.name) for g in own}})
    if foreign:
        raise Wrong(f"The body of {f.name} uses operators that are neither ONNX's nor functions of course.lab.", call, foreign, "domain '' alone")
    imports = {o.domain: o.version for o in f.opset_import}
    if any(n.domain in ("", "ai.onnx") for n in f.node) and imports.get("", imports.get("ai.onnx")) != opset(model):
        raise Wrong(f"The body of {f.name} imports another opset than the model: ONNX Runtime reads it at the model's.", call, imports, opset(model))


def opset(model):
    return next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def session(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


READERS = {"ONNX Runtime": lambda model, feeds: session(model).run(None, feeds)[0],
           "onnx.reference, without the class": lambda model, feeds: ReferenceEvaluator(model).run(None, feeds)[0],
           "ONNX Runtime, after onnx.inliner": lambda model, feeds: session(onnx.inliner.inline_local_functions(model)).run(None, feeds)[0]}


def read(model, feeds, call, attributes=None, want=None):
    for name, run in READERS.items():
        try:
            got = run(model, feeds)
        except Exception as error:
            raise Wrong(f"{name} does not run the file." + (" (It needs a called function before its caller.)" if "is unknown" in str(error) else ""), call, f"{type(error).__name__}: {error}"[:400], "y") from None
        compare(got, {k: feeds[k] for k in ("x", "gate", "weight")}, attributes or {}, f"{call}, run by {name}", want)


@pytest.mark.parametrize("opset_, ir", [(15, 7), (17, 8), (18, 8), (20, 9), (24, 10)])
def test_body(submission, tmp_path, opset_, ir):
    """add_bodies gives a body that three readers compute alike, whatever the opset"""
    for i, attributes in enumerate(ATTRIBUTES):
        model, call = add(submission, call_model(tmp_path / "m.onnx", "n, s, d", attributes, opset=opset_, ir=ir), tmp_path / "t.onnx")
        for shape in ((2, 3, 8), (1, 4, 16)):
            read(model, feeds_of(i, shape), f"{call}, opset {opset_}, attributes {attributes}", attributes)


def test_body_shapes(submission, tmp_path):
    """add_bodies gives a body that works for all ranks and through which shape inference sees"""
    for dims, shape in (("5", (5,)), ("n, 16", (3, 16)), ("batch, steps, 8", (2, 3, 8)), ("2, b, c, 4", (2, 1, 3, 4))):
        d = dims.rpartition(",")[2].strip()
        path = save(tmp_path / "m.onnx", f"""g (float[{dims}] x, float[{dims}] gate, float[{d}] weight) => (float[{', '.join('?' * len(shape))}] y) {{
          a = course.lab.GatedNorm <offset: int = 1> (x, gate, weight)
          y = course.lab.GatedNorm <beta: float = 2.0> (a, gate, weight) }}""".replace("?", "q"))
        source = onnx.load(path)
        for i, dim in enumerate(source.graph.output[0].type.tensor_type.shape.dim):
            dim.dim_param = f"open{i}"
        onnx.save(source, path)
        model, call = add(submission, path, tmp_path / "t.onnx")
        feeds = feeds_of(11, shape)
        first = defined(*feeds.values(), offset=1)
        read(model, feeds, call, want=defined(first, feeds["gate"], feeds["weight"], beta=2.0))
        known = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
        right = [int(x) if x.strip().isdigit() else x.strip() for x in dims.split(",")]
        if known.get("a") != right:
            raise Wrong("Shape inference does not find the shape of y through the body.", call, f"a: {known.get('a')}", f"a: {right}")


def test_body_half(submission, tmp_path):
    """add_bodies gives a body that computes float16 in float32, and does not overflow"""
    for loud in (1.0, 300.0, 5000.0):
        model, call = add(submission, call_model(tmp_path / "m.onnx", "n, d", {"offset": 1}, "float16"), tmp_path / "t.onnx")
        feeds = feeds_of(12, (6, 32), "float16", loud)
        read(model, feeds, f"{call}, float16, |x| up to {np.abs(feeds['x']).max():.3g}", {"offset": 1})


INPUTS = "float[n, s, 8] x, float[n, s, 8] gate, float[8] weight"


def test_body_subgraphs(submission, tmp_path):
    """add_bodies completes the calls in the branches of If and in the body of Loop"""
    path = save(tmp_path / "if.onnx", f"""g ({INPUTS}, bool yes) => (float[n, s, 8] y) {{
      y = If (yes) <then_branch = then () => (float[n, s, 8] p) {{ p = course.lab.GatedNorm <offset: int = 1> (x, gate, weight) }},
                    else_branch = other () => (float[n, s, 8] q) {{ q = course.lab.GatedNorm <epsilon: float = 0.5> (x, gate, weight) }}> }}""")
    model, call = add(submission, path, tmp_path / "t.onnx")
    feeds = feeds_of(13, (2, 3, 8))
    for yes, attributes in ((True, {"offset": 1}), (False, {"epsilon": 0.5})):
        read(model, feeds | {"yes": np.array(yes)}, f"{call}, branch {yes}", attributes)
    path = save(tmp_path / "loop.onnx", f"""g ({INPUTS}, int64 times, bool go) => (float[n, s, 8] y) {{
      y = Loop (times, go, x) <body = body (int64 i, bool c, float[n, s, 8] now) => (bool on, float[n, s, 8] next) {{
        on = Identity (c)
        next = course.lab.GatedNorm (now, gate, weight) }}> }}""")
    model, call = add(submission, path, tmp_path / "t.onnx")
    want = feeds["x"]
    for _ in range(2):
        want = defined(want, feeds["gate"], feeds["weight"])
    read(model, feeds | {"times": np.array(2), "go": np.array(True)}, f"{call}, a Loop", want=want)


def test_body_functions(submission, tmp_path):
    """add_bodies completes the calls in other functions, and keeps references to their attributes"""
    path = save(tmp_path / "m.onnx", f"""g ({INPUTS}) => (float[n, s, 8] y) {{
      y = other.Block <eps: float = 0.25> (x, gate, weight) }}
    <domain: "other", opset_import: ["" : 17, "course.lab" : 1]>
    Block <eps> (v, g, w) => (z) {{
      a = course.lab.GatedNorm <epsilon: float = @eps> (v, g, w)
      z = Neg (a) }}""")
    model, call = add(submission, path, tmp_path / "t.onnx")
    feeds = feeds_of(14, (2, 3, 8))
    read(model, feeds, f"{call}, called by another function", want=-defined(*feeds.values(), epsilon=0.25))
    path = save(tmp_path / "branch.onnx", f"""g ({INPUTS}, bool yes) => (float[n, s, 8] y) {{
      y = other.Choice (x, gate, weight, yes) }}
    <domain: "other", opset_import: ["" : 17, "course.lab" : 1]>
    Choice (v, g, w, c) => (z) {{
      z = If (c) <then_branch = then () => (float[n, s, 8] p) {{ p = course.lab.GatedNorm <beta: float = 2.0> (v, g, w) }},
                  else_branch = other () => (float[n, s, 8] q) {{ q = Neg (v) }}> }}""")
    add(submission, path, tmp_path / "t.onnx")


def test_body_nothing_to_do(submission, tmp_path):
    """add_bodies leaves a model alone that does not call the operator, though one of another domain has its name"""
    path = save(tmp_path / "m.onnx", """g (float[n] x) => (float[n] y) { y = other.GatedNorm (x) }
      <domain: "other", opset_import: ["" : 17]>
      GatedNorm (v) => (w) { w = Neg (v) }""", domains=("other",))
    model, call = add(submission, path, tmp_path / "t.onnx")
    got = session(model).run(None, {"x": np.float32([1, -2])})[0]
    if not np.array_equal(got, [-1, 2]):
        raise Wrong("other::GatedNorm is another operator: domain and name together say which.", call, show(got), "[-1, 2]")


def refused(submission, name, arguments, why, words=()):
    call = f"{name}(…)  ({why})"
    try:
        got = submission.attempt(name, *arguments)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong(f"{name} is not written yet.", call, error.text) from None
        if "ValueError" not in error.bases:
            raise Wrong(f"Given {why}, {name} has to raise ValueError.", call, str(error), "ValueError") from None
        missing = [w for w in words if w not in error.text]
        if missing:
            raise Wrong(f"The message for {why} does not name {missing[0]!r}.", call, str(error), f"a message with {missing[0]!r}") from None
        return
    raise Wrong(f"Given {why}, {name} has to raise ValueError.", call, f"returned {show(got)}", "ValueError")


def test_body_refuses(submission, tmp_path):
    """add_bodies refuses old opsets, attributes and inputs that the operator has not, and a second definition; no file is written"""
    one = f"g ({INPUTS}) => (float[n, s, 8] y) {{{{ y = course.lab.GatedNorm {{}} ({{}}) }}}}"
    three = "x, gate, weight"
    inside = f"""g ({INPUTS}, bool yes) => (float[n, s, 8] y) {{
      y = If (yes) <then_branch = then () => (float[n, s, 8] p) {{ p = course.lab.GatedNorm <eps: float = 0.1> (x, gate, weight) }},
                    else_branch = other () => (float[n, s, 8] q) {{ q = Identity (x) }}> }}"""
    body = '<domain: "course.lab", opset_import: ["" : 17]>\nGatedNorm <epsilon, beta, offset> (a, b, c) => (d) { d = Add (a, b) }'
    cases = [("opset 14", one.format("", three), 14, ()), ("an attribute 'eps'", one.format("<eps: float = 0.1>", three), 17, ("eps",)),
             ("an attribute 'axis' beside good ones", one.format("<epsilon: float = 0.1, axis: int = 1>", three), 17, ("axis",)),
             ("an int for 'beta'", one.format("<beta: int = 2>", three), 17, ("beta",)), ("a float for 'offset'", one.format("<offset: float = 1.0>", three), 17, ("offset",)),
             ("two inputs", one.format("", "x, gate"), 17, ()), ("four inputs", one.format("", "x, gate, weight, weight"), 17, ()),
             ("an attribute 'eps' in a branch", inside, 17, ("eps",)), ("a file that defines course.lab::GatedNorm", one.format("", three) + body, 17, ())]
    for why, text, version, words in cases:
        path, target = save(tmp_path / "m.onnx", text, version), tmp_path / "t.onnx"
        refused(submission, "add_bodies", (path, str(target)), why, words)
        if target.exists():
            raise Wrong("After an error there is a file.", f"add_bodies(…)  ({why})", f"{target.stat().st_size} bytes", "no file")


# ---- who runs ---------------------------------------------------------------------------------------------------------

LAB = "\n<domain: \"course.lab\", opset_import: [\"\" : 17]>\nShift (v) => (w) { w = Neg (v) }"
QUICK = "\n<domain: \"com.microsoft\", opset_import: [\"\" : 17]>\nQuickGelu (v) => (w) { w = Neg (v) }"


@pytest.mark.parametrize("what, text, name, right", [
    ("an operator that nobody knows", "y = course.lab.Shift (x)", ("course.lab", "Shift"), "nobody"),
    ("a function of the file", "y = course.lab.Shift (x) }" + LAB, ("course.lab", "Shift"), "body"),
    ("a contrib operator", "y = com.microsoft.QuickGelu (x)", ("com.microsoft", "QuickGelu"), "kernel"),
    ("a contrib operator with a body in the file", "y = com.microsoft.QuickGelu (x) }" + QUICK, ("com.microsoft", "QuickGelu"), "kernel"),
    ("a contrib operator that has no kernel here", "y = com.microsoft.ComplexMul (x, x)", ("com.microsoft", "ComplexMul"), "nobody"),
    ("a standard operator", "y = Erf (x)", ("", "Erf"), "kernel"),
    ("one of two functions", "a = course.lab.Shift (x) y = com.microsoft.QuickGelu (a) }" + LAB, ("course.lab", "Shift"), "body"),
    ("a kernel beside a function", "a = course.lab.Shift (x) y = com.microsoft.QuickGelu (a) }" + LAB, ("com.microsoft", "QuickGelu"), "kernel"),
    ("a node that an optimizer would remove", "a = Dropout (x) b = Identity (a) y = Neg (b)", ("", "Dropout"), "kernel")])
def test_who_runs(submission, tmp_path, what, text, name, right):
    """who_runs tells kernel, body and nobody apart"""
    path = save(tmp_path / "m.onnx", f"g (float[4, 2] x) => (float[4, 2] y) {{ {text}" + ("" if "}" in text else " }"), domains=("course.lab", "com.microsoft"))
    call = f"who_runs('m.onnx', {name[0]!r}, {name[1]!r})  ({what})"
    got = submission.call("who_runs", path, *name)
    if got != right:
        raise Wrong("who_runs is wrong.", call, show(got), repr(right))


def test_who_runs_other_problems(submission, tmp_path):
    """who_runs says ValueError where there is no such node, and does not swallow problems of other nodes"""
    path = save(tmp_path / "m.onnx", "g (float[4] x) => (float[4] y) { y = Neg (x) }")
    refused(submission, "who_runs", (path, "course.lab", "GatedNorm"), "a model without such a node")
    domains = ("course.lab", "com.microsoft")
    cases = [("another node is the one that nobody knows", "g (float[4] x) => (float[4] y) { a = course.lab.Shift (x) y = course.lab.Unknown (a) }" + LAB, ("course.lab", "Shift")),
             ("another node is the one without a kernel", "g (float[4, 2] x) => (float[4, 2] y) { a = com.microsoft.QuickGelu (x) y = com.microsoft.ComplexMul (a, a) }", ("com.microsoft", "QuickGelu")),
             ("the graph is invalid", "g (float[4] x) => (float[4] y) { a = course.lab.Shift (x) y = Add (a, x, x) }" + LAB, ("course.lab", "Shift"))]
    for why, text, name in cases:
        path = save(tmp_path / "m.onnx", text, domains=domains)
        call = f"who_runs('m.onnx', {name[0]!r}, {name[1]!r})  ({why})"
        try:
            got = submission.attempt("who_runs", path, *name)
        except Raised as error:
            if error.kind in ("NotImplementedError", "NameError", "TypeError", "AttributeError"):
                raise Wrong("who_runs fails by itself.", call, str(error)) from None
            continue
        raise Wrong("The session does not load, and not because of this node: that is an error to raise.", call, show(got), "ONNX Runtime's error")
