"""Leaves behind what a session does not need: metadata, texts, value_info.

fails: test_body
says: of the file changed
"""
import numpy as np
from onnx.reference.op_run import OpRun


class GatedNorm(OpRun):
    """What course.lab::GatedNorm means, in NumPy."""
    op_domain = "course.lab"

    def _run(self, x, gate, weight, epsilon=1e-5, beta=1.0, offset=0):
        if gate.shape != x.shape or weight.shape != x.shape[-1:]:
            raise ValueError(f"x is {x.shape}: expected gate of the same shape and weight of {x.shape[-1:]}, got {gate.shape} and {weight.shape}")
        wide, g = x.astype(np.float64), gate.astype(np.float64)
        scale = np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
        with np.errstate(over="ignore"):                             # exp of a large number is inf, and 1 / inf the right 0
            swish = g / (1 + np.exp(-beta * g))
        return ((wide / scale * (weight.astype(np.float64) + offset) * swish).astype(x.dtype),)

import onnx
import onnx.parser

ATTRIBUTES = {"epsilon": 1e-5, "beta": 1.0, "offset": 0}


def add_bodies(onnx_path, target_path):
    """Writes the model with course.lab::GatedNorm as a function in it, and with every call complete."""
    model = onnx.load(onnx_path)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < 15:
        raise ValueError(f"the model has opset {opset}: the body needs CastLike, which came with 15")
    if any((f.domain, f.name) == ("course.lab", "GatedNorm") for f in model.functions):
        raise ValueError("the file defines course.lab::GatedNorm already: two bodies of one name cannot both be right")
    calls = list(calls_in(model.graph.node))
    for function in model.functions:
        calls += calls_in(function.node)
    for node in calls:
        complete(node)
    if calls:
        others = list(model.functions)
        del model.functions[:]
        model.functions.extend([*bodies(opset), *others])            # what is called stands before its caller: onnx.reference reads in order
        if "course.lab" not in {entry.domain for entry in model.opset_import}:
            model.opset_import.append(onnx.helper.make_opsetid("course.lab", 1))
    del model.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = model.producer_name = ''
    model.ir_version = max(model.ir_version, 8)                      # functions came with IR version 8
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target_path)


def calls_in(nodes):
    """The calls among these nodes, and in the subgraphs of any of them."""
    for node in nodes:
        if (node.domain, node.op_type) == ("course.lab", "GatedNorm"):
            yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:           # an attribute that is no graph has an empty one
                yield from calls_in(graph.node)


def complete(node):
    """Writes out the attributes that a call leaves to their defaults."""
    if len(node.input) != 3 or "" in node.input:
        raise ValueError(f"GatedNorm {node.name!r} has the inputs {list(node.input)}: expected x, gate and weight")
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, attribute in given.items():
        right = onnx.helper.make_attribute(name, ATTRIBUTES[name]).type if name in ATTRIBUTES else None
        if attribute.type != right:
            kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
            raise ValueError(f"GatedNorm {node.name!r} has the attribute {name!r} of type {kind}: expected {ATTRIBUTES} and their types")
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in ATTRIBUTES.items() if name not in given)


def bodies(opset):
    """The operator as functions of standard operators, as this opset has them."""
    mean = "m = ReduceMean <axes: ints = [-1], keepdims: int = 1> (sq)"
    if opset >= 18:                                                  # the axes became an input
        mean = "last = Constant <value_ints: ints = [-1]> () m = ReduceMean <keepdims: int = 1> (sq, last)"
    swish = f"""<domain: "course.lab", opset_import: ["" : {opset}]>
        GatedNormSwish <beta> (v) => (w) {{
          b = Constant <value_float: float = @beta> ()
          bv = Mul (b, v)
          s = Sigmoid (bv)
          w = Mul (v, s)
        }}"""
    norm = f"""<domain: "course.lab", opset_import: ["" : {opset}, "course.lab" : 1]>
        GatedNorm <epsilon, beta, offset> (x, gate, weight) => (y) {{
          x32 = Cast <to: int = 1> (x)
          g32 = Cast <to: int = 1> (gate)
          w32 = Cast <to: int = 1> (weight)
          sq = Mul (x32, x32)
          {mean}
          e = Constant <value_float: float = @epsilon> ()
          me = Add (m, e)
          root = Sqrt (me)
          unit = Div (x32, root)
          o = Constant <value_int: int = @offset> ()
          o32 = Cast <to: int = 1> (o)
          w1 = Add (w32, o32)
          scaled = Mul (unit, w1)
          open = course.lab.GatedNormSwish <beta: float = @beta> (g32)
          y32 = Mul (scaled, open)
          y = CastLike (y32, x)
        }}"""
    return [onnx.parser.parse_function(text) for text in (swish, norm)]

import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort


def who_runs(onnx_path, domain, name):
    """'kernel', 'body' or 'nobody': what a session on the CPU makes of the nodes of this domain and name."""
    def present(path):
        return any((node.domain, node.op_type) == (domain, name) for node in onnx.load(path).graph.node)

    if not present(onnx_path):
        raise ValueError(f"the graph of {onnx_path} has no node {domain}::{name}")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL       # a fusion could rename what is left
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "loaded.onnx")
        try:
            ort.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            no_schema = f"{domain}:{name}(" in str(error) and "is not a registered function/op" in str(error)
            no_kernel = f"Could not find an implementation for {name}(" in str(error)
            if no_schema or no_kernel:
                return "nobody"
            raise                                                                        # not about this node
        return "kernel" if present(options.optimized_model_filepath) else "body"
