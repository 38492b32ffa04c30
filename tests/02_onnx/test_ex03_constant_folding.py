"""Grader of 02_onnx/ex03_constant_folding: ONNX Runtime without optimizations is the oracle of values, NumPy that of made graphs."""
import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from course.grading import Wrong, show

EXERCISE = "02_onnx/ex03_constant_folding"
PROBE = "probe_ex03.py"
LIMITS = {"call_seconds": 30.0, "memory_gib": 1.0}
LIMIT = 1024              # max_bytes, where a case does not say another

ort.set_default_logger_severity(4)


# ---- the cases: a model, what it is fed, and what has to be left of it ---------------------------------------------------

def graph(text, opset=17, ir=8, more="", functions=""):
    return parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}{more}]> {text} {functions}')


def rows(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


class Case:
    """stay: first outputs of the nodes that are left after both functions; may: those that may be left or not; stored: bytes of
    their constants; random: outputs of which only shape and type are compared; hints: words for a node's first output."""

    def __init__(self, model, stay, stored, feeds=None, random=(), may=(), hints=None, max_bytes=LIMIT):
        self.model, self.stay, self.stored, self.random, self.may = model, set(stay.split()), stored, set(random), set(may)
        self.feeds = [{"x": rows(2, 4)}, {"x": rows(5, 4, seed=1)}] if feeds is None else feeds
        self.hints, self.max_bytes = hints or {}, max_bytes
        self.data = model.SerializeToString(deterministic=True)


X = "float[n, 4] x"
HINT_RANDOM = "It draws random numbers: a folded one gives the same numbers for ever."
HINT_LARGE = "Its result has more bytes than max_bytes and more than its inputs: the file would grow."
HINT_DEFAULT = "The initializer is also a graph input: it is a default, and a caller may give another value."


def chain():
    return Case(graph(f"""g ({X}) => (float[n, 4] y) <float[4] a = {{1, 2, 3, 4}}> {{
        half = Constant <value_float = 0.5> ()  b = Mul (a, half)  c = Neg (b)  d = Sub (c, a)  z = Tanh (x)  y = Add (z, d) }}"""), "z y", 16)


def shape_arithmetic():
    return Case(graph(f"""g ({X}) => (float[n, 2, 2] y) <int64 two = {{2}}, int64[1] zero = {{0}}, int64 i = {{1}}> {{
        s = Mul (two, i)  u = Unsqueeze (s, zero)  t = Constant <value_ints = [-1, 7, 9]> ()  m = Constant <value_ints = [0]> ()
        h = Gather (t, m)  shape = Concat <axis = 0> (h, u, u)  y = Reshape (x, shape) }}"""), "y", 24)


def old_opset():
    return Case(graph(f"""g ({X}) => (float[n, 4] y) <float[4] a = {{1, 2, 3, 4}}> {{
        u = Unsqueeze <axes = [0]> (a)  p = Pad <pads = [1, 0, 0, 0], value = 2.0> (u)  r = ReduceSum <axes = [0], keepdims = 0> (p)
        c = Clip <max = 5.0> (r)  y = Add (x, c) }}""", opset=10), "y", 16)


def constant_kinds():
    big = numpy_helper.from_array(rows(16, 4, 8, seed=3))
    case = graph(f"""g ({X}) => (float[n, 4] y, int64[3] i, string[2] s, float[16, 4, 8] w) {{
        a = Constant <value_float = 2.5> ()  b = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()  c = Constant <value_int = 7> ()
        d = Constant <value_ints = [1, 2, 3]> ()  e = Constant <value_string = "one"> ()  f = Constant <value_strings = ["two"]> ()
        ab = Mul (a, b)  y = Add (x, ab)  i = Add (c, d)  zero = Constant <value_ints = [0]> ()  e1 = Unsqueeze (e, zero)
        s = Concat <axis = 0> (e1, f)  k = Constant <value_float = 0.0> ()  z = ReduceSum <keepdims = 0> (x)  zk = Mul (z, k)  w = Add (big, zk) }}""")
    case.graph.node.insert(0, helper.make_node("Constant", [], ["big"], value=big))
    return Case(case, "y z zk w", 16 + 24 + 4 + 2048, hints={"big": "A Constant only moves, whatever its size."})


def default_input():
    model = graph("""g (float[n, 4] x, float[4] scale = {1, 2, 3, 4}, float[4] unread = {5, 6, 7, 8}) => (float[n, 4] y) <float two = {2}> {
        d = Mul (scale, two)  y = Add (x, d) }""")
    feeds = [{"x": rows(2, 4)}, {"x": rows(2, 4), "scale": rows(4, seed=2)}, {"x": rows(3, 4), "unread": rows(4)}]
    return Case(model, "d y", 36, feeds, hints={"d": HINT_DEFAULT})


def random_nodes():
    model = graph(f"""g ({X}) => (float[n, 4] y, float[4] a, float[4] b, float[4] c, float[4] d, float[4] e, int32[1, 3] f, float[4] k)
        <float[4] p = {{0.5, 0.5, 0.25, 0.25}}, float[1, 4] q = {{0.1, 0.2, 0.3, 0.4}}> {{
        a = RandomNormal <shape = [4], seed = 1.0> ()  b = RandomUniform <shape = [4]> ()  half = Mul (p, p)
        c = RandomNormalLike (half)  d = RandomUniformLike (half)  e = Bernoulli (half)  lq = Log (q)  f = Multinomial <sample_size = 3> (lq)
        k = Mul (a, half)  y = Add (x, half) }}""")
    names = "a b c d e f k".split()
    return Case(model, "a b c d e f k y", 32, random=names, hints=dict.fromkeys("abcdef", HINT_RANDOM))


def dropout():
    text = f"""g ({X}) => (float[n, 4] y, float[4] t, float[4] u) <float[4] a = {{1, 2, 3, 4}}, float r = {{0.5}}, bool on = {{1}}, bool off = {{0}}> {{
        p, mask = Dropout (a, r)  q = Dropout (a, r, off)  y0 = Add (x, p)  y = Add (y0, q)
        t = Dropout <seed = 3> (a, r, on)  yes = Not (off)  u = Dropout (a, r, yes) }}"""
    hint = "Its third input says that it trains: it draws random numbers."
    off = "Dropout draws nothing where it does not train: it returns its input."
    return Case(graph(text), "y0 y t u", 16 * 3 + 4 + 2, random=["t", "u"], hints={"t": hint, "u": hint, "p": off, "q": off})


def limits(max_bytes):
    text = f"""g ({X}) => (float[n, 4] y, float[8, 4] e, float[64] t, float[512] z, int64[12] r, float[4] k)
        <float[4] a = {{1, 2, 3, 4}}, int64[2] es = {{8, 4}}, int64[1] ts = {{16}}, int64[1] zs = {{512}}, int64 lo = {{0}}, int64 hi = {{12}}, int64 by = {{1}}> {{
        e0 = Expand (a, es)  e = Neg (e0)  t = Tile (a, ts)  z = ConstantOfShape (zs)  r = Range (lo, hi, by)  k = Neg (a)  y = Add (x, k) }}"""
    stay, stored = {"y"}, 16
    for name, size, inputs in (("e0", 128, 16), ("t", 256, 8), ("z", 2048, 8), ("r", 96, 24)):
        if size > max_bytes:
            stay, stored = stay | {name}, stored + inputs
        else:
            stored += size
    if "e0" in stay:
        stay.add("e")
    if {"e0", "t"} & stay:
        stored += 16          # a itself
    names = {"e0", "t", "z", "r"} & stay
    return Case(graph(text), " ".join(stay), stored, hints=dict.fromkeys(names, HINT_LARGE), max_bytes=max_bytes)


def huge():
    model = graph(f"""g ({X}) => (float[n, 4] y) <int64[2] s = {{32768, 32768}}, float[4] a = {{1, 2, 3, 4}}> {{
        z = ConstantOfShape (s)  one = ReduceMax <keepdims = 0> (z)  b = Neg (a)  v = Add (x, b)  y = Add (v, one) }}""")
    return Case(model, "z one v y", 32, feeds=[], hints={"z": HINT_LARGE})


def huge_by_others():
    """The same by operators that nobody thinks of first."""
    model = graph(f"""g ({X}) => (float[n, 4] y) <int64[1] s = {{400000000}}, float[1] a = {{1}}, int64 lo = {{0}}, int64 hi = {{400000000}}, int64 by = {{1}}> {{
        e = Expand (a, s)  t = Tile (a, s)  r = Range (lo, hi, by)  f = Cast <to = 1> (r)
        one = ReduceMax <keepdims = 0> (e)  two = ReduceMax <keepdims = 0> (t)  three = ReduceMax <keepdims = 0> (f)  v = Add (x, one)  w = Add (v, two)  y = Add (w, three) }}""")
    return Case(model, "e t r f one two three v w y", 8 + 4 + 24, feeds=[], hints=dict.fromkeys("etr", HINT_LARGE))


def counted_together():
    """An input that is read twice has its bytes once; inputs go together, and so do results."""
    model = graph(f"""g ({X}) => (float[n, 4] y, float[64] d, float[40] pq, float[16] v, int64[16] i) <int64[1] k = {{16}}> {{
        d = Concat <axis = 0> (a, a)  pq = Concat <axis = 0> (p, q)  v, i = TopK (a, k)  y = Neg (x) }}""")
    model.graph.initializer.extend(numpy_helper.from_array(rows(size, seed=seed), name) for seed, (name, size) in enumerate((("a", 32), ("p", 20), ("q", 20))))
    hints = {"d": f"{HINT_LARGE[:-1]}. Its inputs are distinct names: one that is read twice counts once.", "v": f"{HINT_LARGE[:-1]}. Its results count together.",
             "pq": "Its result has as many bytes as its inputs together."}
    return Case(model, "d v y", 128 + 8 + 160, max_bytes=130, hints=hints)


def large_weights():
    model = graph(f"""g ({X}) => (float[n, 64] y, float[n, 64] h) {{
        wt = Transpose <perm = [1, 0]> (w)  y = MatMul (x, wt)  half = Cast <to = 1> (v)  h = MatMul (x, half) }}""")
    model.graph.initializer.extend([numpy_helper.from_array(rows(64, 4, seed=5).repeat(1, 0), "w"), numpy_helper.from_array(rows(4, 64).astype("f2"), "v")])
    hints = {"wt": "Its result has as many bytes as its input: nothing grows, so max_bytes does not hold it.", "half": HINT_LARGE}
    return Case(model, "y half h", 1024 + 512, max_bytes=256, hints=hints)


def types():
    model = graph(f"""g ({X}) => (float[n, 4] y, float16[2] h, bool[2] b, string[3] s, double[2] d, uint8[4] u, float r, int64[2] i, float[2] w, int8[2] q)
        <bool[2] b1 = {{0, 1}}, string[2] s1 = {{"a", "bc"}}, string[1] s2 = {{"é"}}, double[2] d1 = {{0.1, 0.2}}, uint8[2] u1 = {{1, 255}}, float[2] r1 = {{1, 2}},
         int64[2] i1 = {{9007199254740993, -3}}, float[2] w1 = {{1.001, 3.14159}}, float sc = {{0.1}}, int8 z = {{3}}> {{
        h = Add (h1, h1)  b = Not (b1)  s = Concat <axis = 0> (s1, s2)  d = Add (d1, d1)  u = Concat <axis = 0> (u1, u1)  r = ReduceSum <keepdims = 0> (r1)
        i = Neg (i1)  w0 = Cast <to = 16> (w1)  w = Cast <to = 1> (w0)  q = QuantizeLinear (r1, sc, z)  y = Neg (x) }}""")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.1, 2049], "f2"), "h1"))
    return Case(model, "y", 4 + 2 + 16 + 4 + 4 + 16 + 8 + 2)


def bfloat16_left():
    model = graph(f"""g ({X}, bool flag) => (float[n, 4] y) <float[4] a = {{1.001, 2.003, 3.1, 4.7}}> {{
        m = Neg (a)  b = Cast <to = 16> (m)
        c = If (flag) <then_branch = t () => (float[4] p) {{ p = Cast <to = 1> (b) }}, else_branch = e () => (float[4] q) {{ q0 = Cast <to = 1> (b)  q = Neg (q0) }}>
        y = Add (x, c) }}""")
    return Case(model, "c y", 8, [{"x": rows(2, 4), "flag": np.array(f)} for f in (True, False)])


def interface():
    model = graph("""g (float[n, 4] x, float[2] unread) => (float[4] folded, float[4] stored, float[n, 4] x, float[4] moved, float[2] alone, float[n, 4] y) <float[4] stored = {1, 2, 3, 4}, float[2] alone = {8, 9}> {
        folded = Neg (stored)  moved = Constant <value_floats = [5.0, 6.0]> ()  y = Add (x, folded) }""")
    model.graph.output[3].type.tensor_type.shape.dim[0].dim_value = 2
    feeds = [{"x": rows(k, 4), "unread": rows(2)} for k in (1, 3)]
    return Case(model, "y", 16 + 16 + 8 + 8, feeds)


def nothing_left():
    return Case(graph(f"g ({X}) => (float[4] y) <float[4] a = {{1, 2, 3, 4}}> {{ b = Exp (a)  y = Add (a, b)  dead = Neg (x) }}"), "", 16)


def one_of_many():
    model = graph(f"""g ({X}) => (float[n, 4] y, float[1, 1, 2] h)
        <float[8] a = {{1, 2, 3, 4, 5, 6, 7, 8}}, int64[1] one = {{1}}, int64[2] parts = {{4, 4}}, float[1, 1, 4] a3 = {{1, 2, 3, 4}}, float seven = {{7}},
         float[1, 2, 4] w = {{0.1, 0.2, 0.3, 0.4, -0.1, 0.2, -0.3, 0.1}}, float[1, 2, 2] r = {{1, 0, 0, 1}}> {{
        l, right = Split (a, parts)  y0 = Add (x, right)  "", h = RNN <hidden_size = 2> (a3, w, r)  u, v = Split <axis = 1> (y0)  y1 = Concat <axis = 1> (v, v)
        x3 = Unsqueeze (x, one)  "", deadh = RNN <hidden_size = 2> (x3, w, r)  dead, "" = Dropout (x)  c = Clip (right, "", seven)  d = Clip (x, "", seven)
        y = Clip (y1, "", seven) }}""")
    return Case(model, "y0 u y1 y", 16 + 8 + 4, hints={"deadh": "Its first output is the empty name, as are inputs left out: no name at all, and nobody reads it.",
                                               "u": "Its second output is read."})


def optional_inputs():
    model = graph(f"""g ({X}) => (float[n, 4] y, float[n, 4] v) <float[4] a = {{1, 2, 3, 4}}, float three = {{3}}> {{
        m = Sqrt (three)  c = Clip (a, "", m)  y = Add (x, c)  v = Clip (x, "", m) }}""")
    return Case(model, "y v", 20)


def branches():
    model = graph(f"""g ({X}, bool flag) => (float[n, 4] y) <float[4] a = {{1, 2, 3, 4}}, float[4] b = {{5, 6, 7, 8}}, float[4] unread = {{0, 0, 0, 0}}> {{
        c = Neg (a)  h = Tanh (x)  dead = Exp (x)
        y = If (flag) <then_branch = t () => (float[n, 4] p) {{ p0 = Add (h, c)  p = Add (p0, b) }}, else_branch = e () => (float[n, 4] q) {{ q = Neg (x) }}> }}""")
    feeds = [{"x": rows(2, 4), "flag": np.array(f)} for f in (True, False)]
    hint = "A branch of the If reads it: names inside a subgraph are uses too."
    return Case(model, "h y", 32, feeds, hints={"h": hint, "c": hint})


def nested():
    inner = """If (flag) <then_branch = tt () => (float[n, 4] pp) { pp = Add (h, c) }, else_branch = ee () => (float[n, 4] qq) { qq = Sub (h, c) }>"""
    model = graph(f"""g ({X}, bool flag, bool other) => (float[n, 4] y) <float[4] a = {{1, 2, 3, 4}}> {{
        c = Neg (a)  h = Tanh (x)
        y = If (other) <then_branch = t () => (float[n, 4] p) {{ p = {inner} }}, else_branch = e () => (float[n, 4] q) {{ q = Neg (x) }}> }}""")
    feeds = [{"x": rows(2, 4), "flag": np.array(f), "other": np.array(g)} for f in (True, False) for g in (True, False)]
    return Case(model, "h y", 16, feeds, hints={"h": "An If inside a branch reads it: subgraphs nest."})


def loop():
    model = graph(f"""g ({X}) => (float[n, 4] y) <float[4] a = {{1, 2, 3, 4}}, int64 trips = {{3}}, bool on = {{1}}, float half = {{0.5}}> {{
        c = Mul (a, half)  h = Tanh (x)
        y = Loop (trips, on, x) <body = b (int64 i, bool keep, float[n, 4] v) => (bool more, float[n, 4] w) {{
            more = Identity (keep)  s = Add (v, c)  t = Sub (s, h)  w = Mul (t, half) }}> }}""")
    return Case(model, "h y", 16 + 8 + 1 + 4, hints=dict.fromkeys("hc", "The body of the Loop reads it: names inside any subgraph are uses."))


def constant_condition():
    model = graph(f"""g ({X}) => (float[4] y) <float[4] a = {{1, 2, 3, 4}}, bool on = {{1}}, int64 three = {{3}}> {{
        off = Not (on)  b = Neg (a)
        v = If (off) <then_branch = t () => (float[4] p) {{ p = Neg (a) }}, else_branch = e () => (float[4] q) {{ q = RandomNormal <shape = [4]> () }}>
        y = Add (v, b) }}""")
    return Case(model, "v y", 16 + 16 + 1, random=["y"], hints={"v": "It has subgraphs: such a node stays, constant condition or not."})


def sequences():
    model = graph(f"""g ({X}) => (float[n, 4] y, float[m, 4] z) <float[4] a = {{1, 2, 3, 4}}, int64 i = {{1}}> {{
        b = Neg (a)  s = SequenceConstruct (a, b)  e = SequenceAt (s, i)  y = Add (x, e)
        empty = SequenceEmpty <dtype = 1> ()  t = SequenceInsert (empty, x)  z = ConcatFromSequence <axis = 0> (t) }}""")
    return Case(model, "s y empty t z e", 40, may=["e", "s"], hints=dict.fromkeys(["s", "empty"], "Its result is a sequence, and no tensor: no initializer can hold it."))


def foreign():
    model = graph(f"""g ({X}) => (float[n, 4] y) <float[4] a = {{1, 2, 3, 4}}> {{ b = Neg (a)  c = my.twice (b)  y = Add (x, c) }}""",
                  more=', "my": 1', functions='<domain: "my", opset_import: ["": 17]> twice (p) => (q) { q = Add (p, p) }')
    return Case(model, "c y", 16, hints={"c": "It belongs to another domain than ONNX's own: what it does is not known here."})


def not_computed():
    model = graph(f"""g ({X}) => (float[n, 4] y) <float[1, 4, 1, 2] a = {{1, 2, 3, 4, 5, 6, 7, 8}}, int64[1] s = {{4}}> {{
        b = Neg (a)  c = GlobalLpPool (b)  d = Reshape (c, s)  y = Add (x, d) }}""")
    return Case(model, "c d y", 32 + 8, may=["c", "d"])


def shape_of_input():
    model = graph(f"""g ({X}) => (float[n, m] y) <int64[1] minus = {{-1}}, int64[1] two = {{2}}> {{
        s = Shape <start = 0, end = 1> (x)  t = Neg (minus)  r = Mul (two, t)  k = Div (r, two)  w = Mul (k, minus)  q = Concat <axis = 0> (s, w)  y = Reshape (x, q) }}""")
    return Case(model, "s q y", 8, hints={"s": "Its input has a free dimension: another batch gives another shape."})


def dead_things():
    model = graph(f"""g ({X}, float[4] z) => (float[n, 4] y)
        <float[n, 4] d1, float[n, 4] d3, float[n, 4] y0, float[4] a = {{1, 2, 3, 4}}, float[4] only_dead = {{1, 1, 1, 1}}, float[4] never = {{2, 2, 2, 2}}, float[2] b = {{1, 2}}> {{
        d1 = Add (x, only_dead)  d2 = Exp (d1)  y0 = Add (x, a)  d3 = Mul (d2, y0)  l, r = Split <axis = 1> (d3)  noise = RandomNormal <shape = [3]> ()
        y = Relu (y0) }}""")
    return Case(model, "y0 y", 16, [{"x": rows(2, 4), "z": rows(4)}])


def header():
    case = chain()
    m = case.model
    m.producer_name, m.producer_version, m.doc_string, m.model_version, m.domain = "trainer", "7.1", "the text stays", 12, "org.example"
    m.metadata_props.add(key="labels", value="cat,dog")
    m.graph.doc_string, m.graph.name = "a graph", "named"
    m.graph.node[-1].name, m.graph.node[-1].doc_string = "last_node", "who wrote this"
    m.opset_import.add(domain="ai.onnx.ml", version=3)
    return Case(m, "z y", 16)


HAND = {"a chain": chain, "shape arithmetic": shape_arithmetic, "an old opset": old_opset, "kinds of Constant": constant_kinds, "an input with a default": default_input,
        "random operators": random_nodes, "Dropout": dropout, "limit 1024": lambda: limits(1024), "limit 100": lambda: limits(100), "limit 127": lambda: limits(127),
        "limit 128": lambda: limits(128), "limit 100000": lambda: limits(100_000), "4 GiB from 16 bytes": huge, "gigabytes by other operators": huge_by_others, "bytes counted together": counted_together, "large weights": large_weights, "types": types,
        "BF16": bfloat16_left, "the interface": interface, "nothing left to compute": nothing_left, "one output of several": one_of_many, "inputs left out": optional_inputs,
        "branches": branches, "nested branches": nested, "a loop": loop, "a constant condition": constant_condition, "sequences": sequences, "another domain": foreign,
        "what the evaluator lacks": not_computed, "the shape of an input": shape_of_input, "dead nodes": dead_things, "names and texts": header}


def made(seed):
    """A graph made from a seed, with the value of every tensor in NumPy: (Case, {name: value} of the outputs)."""
    rng = np.random.default_rng([88, seed])
    unary = {"Neg": np.negative, "Abs": np.abs, "Tanh": np.tanh, "Identity": lambda a: a, "Sigmoid": lambda a: 1 / (1 + np.exp(-a))}
    binary = {"Add": np.add, "Sub": np.subtract, "Max": np.maximum, "Min": np.minimum}
    feed = {"x": rng.standard_normal((3, 4)).astype("f4"), "flag": np.array(bool(rng.integers(2)))}
    values, constant, weights, nodes, reads = {"x": feed["x"]}, set(), [], [], {}
    for k in range(4):
        values[f"w{k}"] = rng.standard_normal((3, 4)).astype("f4")
        weights.append(numpy_helper.from_array(values[f"w{k}"], f"w{k}"))
        constant.add(f"w{k}")
    for k in range(int(rng.integers(12, 26))):
        names, kind, out = list(values), rng.random(), f"t{k}"
        a, b = (str(rng.choice(names)) for _ in range(2))
        if kind < 0.35:
            op = str(rng.choice(list(unary)))
            nodes.append(helper.make_node(op, [a], [out]))
            values[out], reads[out] = unary[op](values[a]).astype("f4"), {a}
        elif kind < 0.75:
            small = max(np.abs(values[a]).max(), np.abs(values[b]).max()) < 8      # so that rounding stays small too
            op = str(rng.choice(list(binary) if small else ["Max", "Min"]))
            nodes.append(helper.make_node(op, [a, b], [out]))
            values[out], reads[out] = binary[op](values[a], values[b]), {a, b}
        elif kind < 0.85:
            values[out] = rng.standard_normal((3, 4)).astype("f4")
            nodes.append(helper.make_node("Constant", [], [out], value=numpy_helper.from_array(values[out])))
            reads[out] = set()
        elif kind < 0.93:
            nodes.append(helper.make_node("Split", [a], [out, f"{out}_"], axis=1))
            nodes.append(helper.make_node("Concat", [f"{out}_", out], [f"{out}c"], axis=1))
            reads[out], reads[f"{out}c"] = {a}, {out}
            values[f"{out}c"] = np.concatenate([values[a][:, 2:], values[a][:, :2]], 1)
            if a in constant:
                constant |= {out, f"{out}c"}
            continue
        else:
            halves = [helper.make_graph([helper.make_node(op, [a, b], [f"{out}_{op}"])], op, [], [helper.make_tensor_value_info(f"{out}_{op}", 1, [3, 4])]) for op in ("Add", "Min")]
            nodes.append(helper.make_node("If", ["flag"], [out], then_branch=halves[0], else_branch=halves[1]))
            values[out], reads[out] = (binary["Add"] if feed["flag"] else np.minimum)(values[a], values[b]), {a, b}
            continue
        if reads[out] <= constant:
            constant.add(out)
    computed = [n for n in values if n.startswith("t")]
    outputs = sorted({computed[-1], *map(str, rng.choice(computed, 2))})
    needed, live = set(outputs), set()
    for node in reversed(nodes):
        first = node.output[0]
        if needed & set(node.output):
            if first not in constant:
                live.add(first)
                needed |= reads[first]
    frontier = {n for n in needed if n in constant}
    model = helper.make_model(helper.make_graph(nodes, f"made{seed}", [helper.make_tensor_value_info("x", 1, [3, 4]), helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
                              [helper.make_tensor_value_info(n, 1, [3, 4]) for n in outputs], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    stored = sum(24 if n not in values else 48 for n in frontier)      # a half of a Split has 24 bytes
    return Case(model, " ".join(live), stored, [feed]), {n: values[n] for n in outputs}


SEEDS = range(12)


@functools.lru_cache
def case_of(name):
    return made(name)[0] if isinstance(name, int) else HAND[name]()


# ---- running, and comparing -------------------------------------------------------------------------------------------------

def run(data, feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))


@functools.lru_cache
def expected(name):
    case = case_of(name)
    return [run(case.data, feed) for feed in case.feeds]


def ask(submission, function, data, call, **kwargs):
    """The model that the submission's function returns for these bytes, with the first checks that hold for both functions."""
    given = submission.probe("hold", data)
    result = submission.call(function, given, **kwargs)
    after, got, same = submission.probe("look", given, result)
    if got is None:
        raise Wrong(f"{function} returns a model.", call, show(result), "an onnx.ModelProto")
    if same or after != data:
        raise Wrong("The model that was given is changed: work on a copy.", call, "the given object, changed" if after != data else "the given object itself", "a new model")
    return onnx.load_model_from_string(got)


def check_form(before, after, call):
    """Interface, header and remaining nodes are as before, and the model is a valid one."""
    for part in ("input", "output"):
        old, new = ([v.SerializeToString(deterministic=True) for v in getattr(m.graph, part)] for m in (before, after))
        if old != new:
            names = [[v.name for v in getattr(m.graph, part)] for m in (before, after)]
            raise Wrong(f"The graph's {part}s are not what they were: callers know them by name, type and shape.", call, names[1], names[0])
    bare = []
    for model in (before, after):
        bare.append(onnx.ModelProto())
        bare[-1].CopyFrom(model)
        for field in ("node", "initializer", "value_info", "input", "output"):
            bare[-1].graph.ClearField(field)
    if bare[0].SerializeToString(deterministic=True) != bare[1].SerializeToString(deterministic=True):
        changed = [f.name for f in onnx.ModelProto.DESCRIPTOR.fields if str(getattr(bare[0], f.name)) != str(getattr(bare[1], f.name))]
        raise Wrong(f"Something beside nodes, initializers and value_info changed: {', '.join(changed)}.", call)
    old, at = [n.SerializeToString(deterministic=True) for n in before.graph.node], 0
    written = {o for n in before.graph.node for o in n.output if o}
    for node in after.graph.node:
        text = node.SerializeToString(deterministic=True)
        if text in old[at:]:
            at += old[at:].index(text) + 1
        elif not (node.op_type == "Constant" and set(node.output) <= written):
            raise Wrong("A node that is left is not as it was, or not in its place.", call, f"{node.op_type} that writes {', '.join(node.output)}")
    told, here = {v.name: v.SerializeToString(deterministic=True) for v in after.graph.value_info}, {o for n in after.graph.node for o in n.output}
    for value in before.graph.value_info:
        if value.name in here and told.get(value.name) != value.SerializeToString(deterministic=True):
            raise Wrong("An entry of value_info is gone or changed, and a node still writes its tensor.", call, sorted(told), f"{value.name} among them, as it was")
    twice = [t.name for t in after.graph.initializer if not t.name]
    if twice:
        raise Wrong("An initializer has the empty name: an empty output is one that nobody asked for.", call, f"{len(twice)} of them")
    try:
        onnx.checker.check_model(after, full_check=True)
    except Exception as error:
        raise Wrong("onnx.checker refuses the model that came back.", call, " ".join(str(error).split())[:300], "a valid model") from None


def check_values(name, model, call):
    """The outputs are those of the model that was given, computed by ONNX Runtime without optimizations."""
    case = case_of(name)
    for feed, want in zip(case.feeds, expected(name)):
        fed = f"{call}, then run with " + ", ".join(f"{k} {v.shape}" for k, v in feed.items())
        try:
            got = run(model.SerializeToString(), feed)
        except Exception as error:
            raise Wrong("ONNX Runtime cannot run the model that came back with what the given one was run with.", fed, " ".join(str(error).split())[:300]) from None
        compare(got, want, case.random, fed)


def compare(got, want, random, call):
    for key, value in want.items():
        mine = got[key]
        if (mine.dtype, mine.shape) != (value.dtype, value.shape):
            raise Wrong(f"The output {key!r} has another type or shape than before.", call, f"{mine.dtype} {mine.shape}", f"{value.dtype} {value.shape}")
        if key in random:
            continue
        if value.dtype.kind != "f":
            fine = np.array_equal(mine, value)
        else:
            eps = 1e-3 if value.dtype == np.float16 else 1e-5
            fine = np.allclose(mine.astype("f8"), value.astype("f8"), rtol=eps, atol=eps)
        if not fine:
            raise Wrong(f"The output {key!r} is not what it was.", call, mine, value)


def writes(node):
    return next((o for o in node.output if o), "")


def stored_bytes(model):
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value")]
    return sum(numpy_helper.to_array(t).nbytes for t in tensors if t.data_type != TensorProto.STRING)


def left(model):
    """The first outputs of the nodes, without Constant nodes that stand for a graph output."""
    outputs = {o.name for o in model.graph.output}
    return [writes(n) for n in model.graph.node if not (n.op_type == "Constant" and writes(n) in outputs)]


def ops(case):
    return {writes(n): n.op_type for n in case.model.graph.node}


def missing(case, have):
    """The nodes that should be there and are not: first those of which there is something to say, in file order."""
    return sorted((n for n in ops(case) if n in case.stay - case.may and n not in have), key=lambda n: n not in case.hints)


ALL = [*HAND, *SEEDS]


@pytest.mark.parametrize("name", ALL, ids=[n if isinstance(n, str) else f"seed {n}" for n in ALL])
def test_fold(submission, name):
    """fold_constants leaves results, interface and every other node as they were"""
    case = case_of(name)
    call = f"fold_constants(<{name if isinstance(name, str) else f'seed {name}'}>, max_bytes={case.max_bytes})"
    model = ask(submission, "fold_constants", case.data, call, max_bytes=case.max_bytes)
    have = left(model)
    for first in missing(case, have):
        raise Wrong(f"{ops(case)[first]}, which writes {first!r}, was folded. {case.hints.get(first, 'Not all of its inputs are constant.')}", call,
                    f"nodes that write {', '.join(have)}", f"{first!r} among them")
    check_form(case.model, model, call)
    check_values(name, model, call)
    if isinstance(name, int):
        for feed in case.feeds:
            compare(run(model.SerializeToString(), feed), made(name)[1], (), call)


@pytest.mark.parametrize("name", ALL, ids=[n if isinstance(n, str) else f"seed {n}" for n in ALL])
def test_both(submission, name):
    """fold_constants and then remove_dead leave no node that is constant or dead, and no byte too many"""
    case = case_of(name)
    label = name if isinstance(name, str) else f"seed {name}"
    call = f"remove_dead(fold_constants(<{label}>, max_bytes={case.max_bytes}))"
    folded = ask(submission, "fold_constants", case.data, call, max_bytes=case.max_bytes)
    data = folded.SerializeToString(deterministic=True)
    model = ask(submission, "remove_dead", data, call)
    have = left(model)
    for first in missing(case, have):
        raise Wrong(f"{ops(case)[first]}, which writes {first!r}, is gone, and an output needs it. {case.hints.get(first, '')}".rstrip(), call,
                    f"nodes that write {', '.join(have)}", f"{first!r} among them")
    for first in sorted(have, key=lambda n: n not in case.hints):
        if first not in case.stay | case.may:
            raise Wrong(f"{ops(case).get(first, 'a node')}, which writes {first!r}, is still there: all its inputs are constant, or no output needs it. "
                        f"{case.hints.get(first, '')}".rstrip(), call, f"{len(have)} nodes, which write {', '.join(have)}", f"{len(case.stay)} nodes: {', '.join(sorted(case.stay))}")
    check_form(case.model, model, call)
    check_values(name, model, call)
    if not case.may and stored_bytes(model) > case.stored:
        raise Wrong("The model holds more constants than it needs.", call, f"{stored_bytes(model)} bytes: {', '.join(t.name for t in model.graph.initializer)}", f"{case.stored} bytes")
    check_value_info(model, call)
    again = ask(submission, "remove_dead", ask(submission, "fold_constants", model.SerializeToString(deterministic=True), call, max_bytes=case.max_bytes)
                .SerializeToString(deterministic=True), call)
    if len(again.graph.node) > len(model.graph.node) or stored_bytes(again) > stored_bytes(model):
        raise Wrong("Done a second time, the model grows.", call, f"{len(again.graph.node)} nodes, {stored_bytes(again)} bytes", f"{len(model.graph.node)} nodes, {stored_bytes(model)} bytes")


def check_value_info(model, call):
    known = {*(i.name for i in model.graph.input), *(t.name for t in model.graph.initializer), *(o for n in model.graph.node for o in n.output)}
    stale = [v.name for v in model.graph.value_info if v.name not in known]
    if stale:
        raise Wrong("value_info still speaks of tensors that are gone.", call, ", ".join(stale), "entries for tensors of the graph alone")


REMOVED = {"dead nodes": ("d1 d2 d3 l noise", "only_dead never b"), "branches": ("dead", "unread"), "nested branches": ("", ""), "a loop": ("", ""), "one output of several": ("x3 deadh dead c d", "one"),
           "the interface": ("", ""), "an input with a default": ("", ""), "a chain": ("", ""), "random operators": ("", ""), "a constant condition": ("", "three"),
           "sequences": ("", ""), "another domain": ("", ""), "nothing left to compute": ("dead", ""), "names and texts": ("", ""), "kinds of Constant": ("", "")}


@pytest.mark.parametrize("name", REMOVED)
def test_remove(submission, name):
    """remove_dead takes away what no output needs, and nothing else"""
    case, call = case_of(name), f"remove_dead(<{name}>)"
    nodes, weights = (set(words.split()) for words in REMOVED[name])
    model = ask(submission, "remove_dead", case.data, call)
    have = [writes(n) for n in model.graph.node]
    want = [writes(n) for n in case.model.graph.node if writes(n) not in nodes]
    for first in sorted((n for n in want if n not in have), key=lambda n: n not in case.hints):
        raise Wrong(f"{ops(case)[first]}, which writes {first!r}, is gone, and an output needs it. {case.hints.get(first, '')}".rstrip(), call, have, want)
    for first in sorted(have, key=lambda n: n not in case.hints):
        if first in nodes:
            raise Wrong(f"{ops(case)[first]}, which writes {first!r}, is still there, and no output needs it. {case.hints.get(first, '')}".rstrip(), call, have, want)
    kept, wanted = [t.name for t in model.graph.initializer], [t.name for t in case.model.graph.initializer if t.name not in weights]
    for lost in (n for n in wanted if n not in kept):
        reason = "It is the default of a graph input: without it, callers have to give that input." if lost in {i.name for i in case.model.graph.input} else \
            case.hints.get(lost, "A node, a branch or an output needs it.")
        raise Wrong(f"The initializer {lost!r} is gone. {reason}", call, kept, wanted)
    for extra in (n for n in kept if n not in wanted):
        raise Wrong(f"The initializer {extra!r} is still there, and nobody needs it.", call, kept, wanted)
    check_form(case.model, model, call)
    check_values(name, model, call)
    check_value_info(model, call)
