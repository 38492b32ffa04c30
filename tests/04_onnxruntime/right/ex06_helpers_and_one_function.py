"""Builds one flat function with onnx.helper, the reference in float32; asks who runs by taking the function out of the file."""
import copy
import os
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, helper
from onnx.reference.op_run import OpRun


class GatedNorm(OpRun):
    op_domain = "course.lab"

    def _run(self, x, gate, weight, epsilon=None, beta=None, offset=None):
        epsilon, beta, offset = 1e-5 if epsilon is None else epsilon, 1 if beta is None else beta, 0 if offset is None else offset
        if x.shape != gate.shape:
            raise ValueError("gate must have the shape of x")
        if weight.ndim != 1 or len(weight) != x.shape[-1]:
            raise ValueError("weight must be (D,)")
        a, g, w = (np.asarray(v, dtype="float32") for v in (x, gate, weight))
        mean = np.square(a).mean(-1, keepdims=True, dtype="float32")
        with np.errstate(all="ignore"):
            y = a * (1 / np.sqrt(mean + np.float32(epsilon))) * (w + np.float32(offset)) * (g * (1 / (1 + np.exp(-np.float32(beta) * g))))
        return (y.astype(x.dtype),)


SCHEMA = (("epsilon", AttributeProto.FLOAT, 1e-5), ("beta", AttributeProto.FLOAT, 1.0), ("offset", AttributeProto.INT, 0))


def walk(nodes, visit):
    for node in nodes:
        visit(node)
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                walk(a.g.node, visit)
            elif a.type == AttributeProto.GRAPHS:
                for g in a.graphs:
                    walk(g.node, visit)


def function(version):
    def constant(kind, attribute, out):
        node = helper.make_node("Constant", [], [out])
        reference = AttributeProto()
        reference.name, reference.ref_attr_name = kind, attribute
        reference.type = AttributeProto.INT if kind == "value_int" else AttributeProto.FLOAT
        node.attribute.append(reference)
        return node

    make, nodes = helper.make_node, []
    nodes += [make("Cast", [source], [source + "_"], to=1) for source in ("x", "gate", "weight")]
    nodes += [constant("value_float", "epsilon", "eps"), constant("value_float", "beta", "slope"), constant("value_int", "offset", "shift")]
    nodes += [make("Cast", ["shift"], ["shift_"], to=1), make("Constant", [], ["one"], value_float=1.0), make("Constant", [], ["two"], value_float=2.0), make("Pow", ["x_", "two"], ["squares"])]
    if version < 18:
        nodes.append(make("ReduceMean", ["squares"], ["mean"], axes=[-1]))
    else:
        nodes += [make("Constant", [], ["axis"], value_ints=[-1]), make("ReduceMean", ["squares", "axis"], ["mean"])]
    nodes += [make("Add", ["mean", "eps"], ["safe"]), make("Sqrt", ["safe"], ["root"]), make("Reciprocal", ["root"], ["inverse"]), make("Mul", ["x_", "inverse"], ["normed"]),
              make("Add", ["weight_", "shift_"], ["factor"]), make("Mul", ["normed", "factor"], ["scaled"]), make("Mul", ["slope", "gate_"], ["steep"]), make("Neg", ["steep"], ["negative"]),
              make("Exp", ["negative"], ["power"]), make("Add", ["power", "one"], ["below"]), make("Div", ["gate_", "below"], ["opened"]), make("Mul", ["scaled", "opened"], ["wide"]),
              make("CastLike", ["wide", "x"], ["y"])]
    return helper.make_function("course.lab", "GatedNorm", ["x", "gate", "weight"], ["y"], nodes, [helper.make_opsetid("", version)], ["epsilon", "beta", "offset"])


def add_bodies(onnx_path, target_path):
    model = onnx.load(onnx_path)
    version = [o.version for o in model.opset_import if o.domain == ""][0]
    if version < 15:
        raise ValueError("opset below 15")
    found = []

    def visit(node):
        if node.domain == "course.lab" and node.op_type == "GatedNorm":
            found.append(node)

    walk(model.graph.node, visit)
    for f in model.functions:
        if f.domain == "course.lab" and f.name == "GatedNorm":
            raise ValueError("there is a GatedNorm already")
        walk(f.node, visit)
    for node in found:
        if len(node.input) != 3:
            raise ValueError("GatedNorm takes three inputs")
        have = {a.name: a.type for a in node.attribute}
        for name in have:
            if name not in [s[0] for s in SCHEMA]:
                raise ValueError(f"GatedNorm has no attribute {name}")
        for name, kind, value in SCHEMA:
            if name not in have:
                node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
            elif have[name] != kind:
                raise ValueError(f"{name} has the wrong type")
    if found:
        model.functions.insert(0, function(version))
    if model.ir_version < 9:
        model.ir_version = 9
    onnx.save(model, target_path)


def loads(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, os.path.join(folder, "m.onnx"))
        try:
            ort.InferenceSession(os.path.join(folder, "m.onnx"), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            return error


def who_runs(onnx_path, domain, name):
    model = onnx.load(onnx_path)
    if not any(n.domain == domain and n.op_type == name for n in model.graph.node):
        raise ValueError(f"no node {domain}::{name}")
    with_body = loads(model)
    without = copy.deepcopy(model)
    kept = [f for f in without.functions if (f.domain, f.name) != (domain, name)]
    had = len(kept) < len(without.functions)
    del without.functions[:]
    without.functions.extend(kept)
    if with_body is None:
        return "body" if had and loads(without) is not None else "kernel"
    text = str(with_body)
    if (f"{domain}:{name}(" in text and "not a registered function/op" in text) or f"implementation for {name}(" in text:
        return "nobody"
    raise with_body
