"""The body as two functions from one text with the root mean square in a function of its own; the loaded graph is read from a profile-free session saved by name."""
import shutil
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import parser
from onnx.reference.op_run import OpRun

TEXT = """<ir_version: 8, opset_import: ["" : OPSET, "course.lab" : 1]>
unused (float[1] a) => (float[1] b) { b = Identity (a) }
<domain: "course.lab", opset_import: ["" : OPSET]>
RootMeanSquareOfRows <epsilon> (rows) => (root) {
  squares = Mul (rows, rows)
  MEAN
  small = Constant <value_float: float = @epsilon> ()
  more = Add (mean, small)
  root = Sqrt (more)
}
<domain: "course.lab", opset_import: ["" : OPSET, "course.lab" : 1]>
GatedNorm <epsilon, beta, offset> (x, gate, weight) => (y) {
  x1 = Cast <to: int = 1> (x)
  gate1 = Cast <to: int = 1> (gate)
  weight1 = Cast <to: int = 1> (weight)
  root = course.lab.RootMeanSquareOfRows <epsilon: float = @epsilon> (x1)
  ratio = Div (x1, root)
  plus = Constant <value_int: int = @offset> ()
  plus1 = CastLike (plus, weight1)
  gain = Add (weight1, plus1)
  steep = Constant <value_float: float = @beta> ()
  inner = Mul (gate1, steep)
  squashed = Sigmoid (inner)
  passed = Mul (gate1, squashed)
  gained = Mul (ratio, gain)
  product = Mul (gained, passed)
  y = CastLike (product, x)
}"""


class GatedNorm(OpRun):
    op_domain = "course.lab"

    def _run(self, x, gate, weight, epsilon=1e-5, beta=1.0, offset=0):
        assert_shapes(x, gate, weight)
        x64 = np.array(x, dtype=np.longdouble)
        norm = np.linalg.norm(x64.astype(np.float64), axis=-1, keepdims=True) ** 2 / max(x.shape[-1], 1)
        sigmoid = 0.5 * (1 + np.tanh(0.5 * beta * gate.astype(np.float64)))
        return (np.asarray(x64 / np.sqrt(norm + epsilon) * (weight.astype(np.float64) + offset) * gate.astype(np.float64) * sigmoid, dtype=x.dtype),)


def assert_shapes(x, gate, weight):
    if tuple(gate.shape) != tuple(x.shape):
        raise ValueError(f"gate {gate.shape}, x {x.shape}")
    if tuple(weight.shape) != (x.shape[-1],):
        raise ValueError(f"weight {weight.shape}, x {x.shape}")


def uses(nodes):
    stack, found = list(nodes), []
    while stack:
        node = stack.pop()
        if node.domain + "::" + node.op_type == "course.lab::GatedNorm":
            found.append(node)
        for attribute in node.attribute:
            stack.extend(attribute.g.node)
            for graph in attribute.graphs:
                stack.extend(graph.node)
    return found


def add_bodies(onnx_path, target_path):
    model = onnx.load(onnx_path)
    opset = {entry.domain: entry.version for entry in model.opset_import}[""]
    if opset not in range(15, 25):
        raise ValueError(f"opset {opset}")
    if [f for f in model.functions if f.domain == "course.lab" and f.name == "GatedNorm"]:
        raise ValueError("defined twice")
    found = uses(model.graph.node) + [n for f in model.functions for n in uses(f.node)]
    types = {"epsilon": (onnx.AttributeProto.FLOAT, 1e-5), "beta": (onnx.AttributeProto.FLOAT, 1.0), "offset": (onnx.AttributeProto.INT, 0)}
    for node in found:
        if len(node.input) != 3:
            raise ValueError(f"{len(node.input)} inputs")
        for attribute in node.attribute:
            if attribute.name not in types or attribute.type != types[attribute.name][0]:
                raise ValueError(f"attribute {attribute.name}")
        for name, (_, value) in types.items():
            if all(a.name != name for a in node.attribute):
                node.attribute.insert(0, onnx.helper.make_attribute(name, value))
    if found:
        mean = "mean = ReduceMean <axes: ints = [-1]> (squares)" if opset <= 17 else "where = Constant <value_ints: ints = [-1]> ()  mean = ReduceMean (squares, where)"
        made = parser.parse_model(TEXT.replace("OPSET", str(opset)).replace("MEAN", mean)).functions
        everything = [*made, *model.functions]
        model.ClearField("functions")
        model.functions.extend(everything)
    model.ir_version = max(8, model.ir_version)
    onnx.save(model, target_path)


def who_runs(onnx_path, domain, name):
    def has(graph):
        return sum(node.domain == domain and node.op_type == name for node in graph.node) > 0

    if not has(onnx.load(onnx_path).graph):
        raise ValueError("no such node")
    folder = tempfile.mkdtemp()
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = folder + "/out.onnx"
        onnxruntime.InferenceSession(open(onnx_path, "rb").read(), options, providers=["CPUExecutionProvider"])
        return {True: "kernel", False: "body"}[has(onnx.load(folder + "/out.onnx").graph)]
    except Exception as problem:
        what = str(problem)
        if f"{domain}:{name}(" in what and "is not a registered" in what or f" {name}(" in what and "find an implementation" in what:
            return "nobody"
        raise
    finally:
        shutil.rmtree(folder)
