# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: a custom operator that runs everywhere
#
# Level: senior · 45 minutes · no GPU, no compiler
#
# A model of your team calls `course.lab::GatedNorm`, the normalization at the end of a gated block. No runtime knows it. Three things are needed before anybody
# writes a kernel, and they outlive it: a reference that says what the operator means, a body of standard operators that travels in the file, and a
# test that says who really runs the node. You write all three.
#
# Background: [custom operators](../../book/04_onnxruntime/questions/25_custom_operators.md) and
# [custom symbolic functions](../../book/02_onnx/questions/17_custom_symbolic_and_custom_op.md).
#
# A kernel in C++ is not graded here: the packages of this course bring neither a compiler nor ONNX Runtime's headers. The solution shows one, as text that was not run.
#
# ## The operator
#
# `y = GatedNorm(x, gate, weight)`, domain `course.lab`, version 1.
#
# | | |
# | --- | --- |
# | `x`, `gate`, `y` | float32 or float16, one shape (…, D) of rank 1 or more |
# | `weight` | (D,), of the same type |
# | `epsilon` | float, default 1e-5 |
# | `beta` | float, default 1.0 |
# | `offset` | int, default 0 (1 if the weights were trained around 0) |
#
# y = x / √(mean of x² over the last axis + epsilon) · (weight + offset) · gate · sigmoid(beta · gate). It is computed in float32 or wider, and then rounded to the type of `x`.
#
# ## The contract
#
# **`GatedNorm`** is the reference: a subclass of `onnx.reference.op_run.OpRun`, for `ReferenceEvaluator(model, new_ops=[GatedNorm])`. `ValueError` if `gate` has not the shape of
# `x`, or `weight` not (D,): broadcasting would hide the mistake.
#
# **`add_bodies(onnx_path, target_path)`** writes the model with the operator's body in it. Returns nothing.
#
# - The file defines `course.lab::GatedNorm` as a model-local function, once. It may define more functions of `course.lab`, if the body calls them. Bodies use nothing but
#   operators of domain `""` and functions of `course.lab`.
# - It runs in ONNX Runtime on the CPU, in `onnx.reference` *without* the class, and after `onnx.inliner.inline_local_functions`. Differences to the definition: up to 1e-5 of the
#   largest value in float32, 2e-3 in float16.
# - Every call has all three attributes written out, whether the file had them or not: in the graph, in the subgraphs of `If`, `Loop` and `Scan`, and in other functions of the
#   file. An attribute that refers to one of the function around it stays as it is.
# - `onnx.checker.check_model(…, full_check=True)` passes. Where the shape of `x` is known, `onnx.shape_inference` finds that of `y`.
# - The opset of the model stays; it is 15 to 24. The IR version is at least 8. Nodes keep their names, inputs and outputs; everything else in the file stays.
# - `ValueError`, and no file: the opset is below 15; a call has an attribute that the operator does not have, or one of another type (name it); a call has not three inputs; the file
#   defines `course.lab::GatedNorm` already.
#
# **`who_runs(onnx_path, domain, name)`** says who runs the nodes of this domain and name in the model's graph, in a session on the CPU:
#
# | result | when |
# | --- | --- |
# | `"kernel"` | ONNX Runtime has a kernel of that name: it is used, also if the file has a body |
# | `"body"` | there is none, and the session expanded its body |
# | `"nobody"` | there is no session: no kernel of that name, and no body that is used |
#
# `ValueError` if the graph has no such node. Whatever else keeps the session from loading is raised as it came.

# %%
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.parser
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

ort.set_default_logger_severity(4)
folder = Path(tempfile.mkdtemp())


def model(text, name, opset=17, ir=8):
    """Writes a model given in ONNX's text form, and returns its path."""
    head = f'<ir_version: {ir}, opset_import: ["" : {opset}, "course.lab" : 1, "com.microsoft" : 1]>\n'
    onnx.save(onnx.parser.parse_model(head + text), folder / name)
    return folder / name


BLOCK = """block (float[batch, steps, 8] x, float[batch, steps, 8] gate, float[8] weight) => (float[batch, steps, 8] y) {
  a = course.lab.GatedNorm <epsilon: float = 0.001, offset: int = 1> (x, gate, weight)
  y = course.lab.GatedNorm (a, gate, weight)
}"""
block = model(BLOCK, "block.onnx")
onnx.checker.check_model(onnx.load(block), full_check=True)
try:
    ort.InferenceSession(block, providers=["CPUExecutionProvider"])
except Exception as problem:
    print(type(problem).__name__, "|", str(problem).split("Fatal error: ")[-1])

# %% [markdown]
# The checker has nothing against the file: it does not look into foreign domains.

# %% [markdown] tags=["hint"]
# **Hint 1.** `_run(self, x, gate, weight, epsilon=None, beta=None, offset=None)` gets None for an attribute that the node has not, unless you give another default. It returns a
# *tuple* of arrays. In float16 a square overflows from 256 on, so go up before you square.

# %% [markdown] tags=["hint"]
# **Hint 2.** The text form of ONNX is the shortest way to a body: `onnx.parser.parse_function`. Inside, `@epsilon` is the attribute of the call, as in
# `Constant <value_float: float = @epsilon> ()`. The body is read at the model's opset, so its own import has to say the same, and `ReduceMean` takes its axes as an attribute until 17, as an
# input since 18. `CastLike` brings the result back to the type of `x`. If one function calls another, it imports `course.lab`, and `onnx.reference` wants the called one first in the file:
# put yours in front of the others.

# %% [markdown] tags=["hint"]
# **Hint 3.** Walk recursively: over the nodes of a graph, and for each node over its attributes of type `GRAPH`; then over `model.functions`. For `who_runs`: set
# `optimized_model_filepath` and the level `ORT_DISABLE_ALL`, load, and look at the nodes that are left. A name without schema is an error "is not a registered function/op",
# a schema without kernel "Could not find an implementation for NAME(version)".

# %% [markdown]
# ## The reference

# %%
# graded cell 1: keep this line
import numpy as np
from onnx.reference.op_run import OpRun


class GatedNorm(OpRun):
    """What course.lab::GatedNorm means, in NumPy."""
    # <answer>
    op_domain = "course.lab"

    def _run(self, x, gate, weight, epsilon=1e-5, beta=1.0, offset=0):
        if gate.shape != x.shape or weight.shape != x.shape[-1:]:
            raise ValueError(f"x is {x.shape}: expected gate of the same shape and weight of {x.shape[-1:]}, got {gate.shape} and {weight.shape}")
        wide, g = x.astype(np.float64), gate.astype(np.float64)
        scale = np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
        with np.errstate(over="ignore"):                             # exp of a large number is inf, and 1 / inf the right 0
            swish = g / (1 + np.exp(-beta * g))
        return ((wide / scale * (weight.astype(np.float64) + offset) * swish).astype(x.dtype),)
    # </answer>
    # stub: def _run(self, *inputs, **attributes): raise NotImplementedError("GatedNorm is not written yet")


# %%
draw = np.random.default_rng(0)
feeds = {"x": draw.normal(size=(2, 3, 8)).astype(np.float32), "gate": draw.normal(size=(2, 3, 8)).astype(np.float32), "weight": draw.normal(size=8).astype(np.float32)}
oracle = ReferenceEvaluator(onnx.load(block), new_ops=[GatedNorm]).run(None, feeds)[0]
print(oracle.dtype, oracle.shape, oracle[0, 0, :4].round(4))
half = model(BLOCK.replace("float[", "float16["), "half.onnx")
loud = {name: (array * (300 if name == "x" else 1)).astype(np.float16) for name, array in feeds.items()}
got = ReferenceEvaluator(onnx.load(half), new_ops=[GatedNorm]).run(None, loud)[0]
print(f"{got.dtype}, x up to {np.abs(loud['x']).max():.0f}: largest |y| {np.abs(got).max():.2f}")

# %% [markdown]
# ## The body

# %%
# graded cell 2: keep this line
import onnx
import onnx.parser

ATTRIBUTES = {"epsilon": 1e-5, "beta": 1.0, "offset": 0}


def add_bodies(onnx_path, target_path):
    """Writes the model with course.lab::GatedNorm as a function in it, and with every call complete."""
    # <answer>
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
    # </answer>
    # stub: raise NotImplementedError("add_bodies is not written yet")


# %% [markdown]
# One file, three readers, one oracle. And the shapes:

# %%
whole = folder / "whole.onnx"
add_bodies(block, whole)
readers = {"ONNX Runtime": lambda m: ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0],
           "onnx.reference, without the class": lambda m: ReferenceEvaluator(m).run(None, feeds)[0],
           "ONNX Runtime, inlined first": lambda m: readers["ONNX Runtime"](onnx.inliner.inline_local_functions(m))}
for name, run in readers.items():
    print(f"{name:35} agrees with the class: {np.abs(run(onnx.load(whole)) - oracle).max() < 1e-5 * np.abs(oracle).max()}")


def shapes(path):
    known = onnx.shape_inference.infer_shapes(onnx.load(path)).graph.value_info
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in known}


print("shape of a, bare:", shapes(block), " with body:", shapes(whole))

# %% [markdown]
# Why every attribute stands at the call: FunctionProto can hold default values, in `attribute_proto`. Three readers, three opinions of a call that relies on one:

# %%
DEFAULT = """g (float[4] x) => (float[4] y) { y = course.lab.Shifted (x) }
<domain: "course.lab", opset_import: ["" : 17]>
Shifted <by: float = 0.25> (v) => (w) { b = Constant <value_float: float = @by> ()  w = Add (v, b) }"""
relies = onnx.load(model(DEFAULT, "default.onnx"))
onnx.checker.check_model(relies, full_check=True)
feed = {"x": np.zeros(4, np.float32)}
opinions = {"ONNX Runtime": lambda: ort.InferenceSession(relies.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0],
            "onnx.reference": lambda: ReferenceEvaluator(relies).run(None, feed)[0],
            "the inliner's Constant": lambda: list(onnx.inliner.inline_local_functions(relies).graph.node[0].attribute)}
for name, ask in opinions.items():
    try:
        print(f"{name:23} {ask()}")
    except Exception as problem:
        print(f"{name:23} {type(problem).__name__}")

# %% [markdown]
# ## Who runs it?

# %%
# graded cell 3: keep this line
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort


def who_runs(onnx_path, domain, name):
    """'kernel', 'body' or 'nobody': what a session on the CPU makes of the nodes of this domain and name."""
    # <answer>
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
    # </answer>
    # stub: raise NotImplementedError("who_runs is not written yet")


# %%
QUICK = "g (float[4] x) => (float[4] y) { y = com.microsoft.QuickGelu (x) }"
COMPLEX = "g (float[4, 2] x) => (float[4, 2] y) { y = com.microsoft.ComplexMul (x, x) }"
WRONG_BODY = """
<domain: "com.microsoft", opset_import: ["" : 17]>
QuickGelu (v) => (w) { w = Neg (v) }"""
for what, path, of in (("ours, bare", block, ("course.lab", "GatedNorm")), ("ours, with its body", whole, ("course.lab", "GatedNorm")),
                       ("a contrib operator", model(QUICK, "quick.onnx"), ("com.microsoft", "QuickGelu")),
                       ("the same, with a body (that is wrong)", model(QUICK + WRONG_BODY, "wrong.onnx"), ("com.microsoft", "QuickGelu")),
                       ("a contrib operator for GPUs", model(COMPLEX, "complex.onnx"), ("com.microsoft", "ComplexMul"))):
    print(f"{what:40} {who_runs(path, *of)}")

# %% [markdown]
# The fourth line is the one to remember. A kernel and a body of one name can disagree for months: every accuracy test runs one of them.

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | :-- | :-- |
# | shapes checked in the reference | a wrong `weight` is an error | (1,) and (D, 1) broadcast, and the oracle agrees with the bug |
# | float64 in the reference | the oracle is better than what it judges | reference and body share their rounding, and its faults |
# | `Cast` to float32 in the body | squares fit | in float16 a value of 256 squares to infinity, and y is 0 |
# | `CastLike` at the end | one body serves both types | a float16 model has a float32 tensor in its middle, and no longer type-checks |
# | the body at the model's opset | ONNX Runtime reads it there, whatever the function imports | `ReduceMean` with the other form of axes is no valid node; where both forms are valid, another meaning, silently |
# | all attributes at the call | no reader has to know a default | the inliner of onnx 1.23.2 leaves a `Constant` without a value; `onnx.reference` raises; ONNX Runtime 1.31.1 fills it in |
# | unknown attributes refused | `eps` is a typing error | it is dropped: the call runs, with the default epsilon |
# | subgraphs and other functions | every call is complete | the model loads in your test and fails in the branch that nobody took |
# | the called function first | onnx.reference builds functions in the file's order | "Node type … is unknown"; ONNX Runtime does not mind the order |
# | `course.lab` in the function's own imports | a function has its own import list | the checker and ONNX Runtime: no opset registered for the domain |
# | a name that the standard lacks, `GatedNormSwish` | [TensorRT's parser looks by name first](../../book/02_onnx/questions/17_custom_symbolic_and_custom_op.md) | `Swish` is an operator of ONNX since opset 24: two engines would run two things |
# | the loaded graph, for `who_runs` | what the session kept | "it loads" does not tell kernel from body, and "the file has a function" does not either |
#
# ## What it costs
#
# The body is 19 nodes when it is expanded at load, 20 from opset 18 on. ONNX Runtime folds the constants and may fuse a part; the rest are passes over memory that one kernel would do in a single pass. That price is
# known before anybody writes the kernel: profile the model with the body, and add up its nodes. Their share is all that a kernel can win.

# %% [markdown] tags=["answer"]
# ## The kernel, later
#
# Neither compiled nor run for this page, and not graded: it shows what would be added. With the headers of an ONNX Runtime release, no newer than the runtime that loads it, the function interface (since 1.16) takes
# the tensors as arguments; a struct reads the attributes when its kernel is made. The object must outlive the session, hence `static`.
#
# ```cpp
# #define ORT_API_MANUAL_INIT
# #include "onnxruntime_cxx_api.h"
# #undef ORT_API_MANUAL_INIT
# #include "onnxruntime_lite_custom_op.h"
# #include <cmath>
#
# struct GatedNorm {
#   float epsilon = 1e-5f, beta = 1.0f;
#   int64_t offset = 0;
#   GatedNorm(const OrtApi*, const OrtKernelInfo* info) {      // every call has all three: add_bodies wrote them
#     Ort::ConstKernelInfo node(info);
#     epsilon = node.GetAttribute<float>("epsilon");
#     beta = node.GetAttribute<float>("beta");
#     offset = node.GetAttribute<int64_t>("offset");
#   }
#   void Compute(const Ort::Custom::Tensor<float>& x, const Ort::Custom::Tensor<float>& gate, const Ort::Custom::Tensor<float>& weight,
#                Ort::Custom::Tensor<float>& y) {
#     const auto shape = x.Shape();
#     const int64_t d = shape.back(), rows = d == 0 ? 0 : x.NumberOfElement() / d;
#     const float *px = x.Data(), *pg = gate.Data(), *pw = weight.Data();
#     float* py = y.Allocate(shape);
#     for (int64_t r = 0; r < rows; ++r, px += d, pg += d, py += d) {
#       double sum = 0;
#       for (int64_t i = 0; i < d; ++i) sum += double(px[i]) * px[i];
#       const double scale = 1 / std::sqrt(sum / d + epsilon);
#       for (int64_t i = 0; i < d; ++i) py[i] = float(px[i] * scale * (pw[i] + offset) * pg[i] / (1 + std::exp(-beta * pg[i])));
#     }
#   }
# };
#
# extern "C" OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
#   const OrtApi* api = base->GetApi(ORT_API_VERSION);
#   if (!api) return nullptr;                                  // an older runtime: leave, do not crash; the body in the file will run
#   Ort::InitApi(api);
#   static const std::unique_ptr<Ort::Custom::OrtLiteCustomOp> op{
#       Ort::Custom::CreateLiteCustomOp<GatedNorm>("GatedNorm", "CPUExecutionProvider")};
#   static Ort::CustomOpDomain domain{"course.lab"};
#   static const bool added = (domain.Add(op.get()), true);
#   (void)added;
#   return api->AddCustomOpDomain(options, domain);
# }
# ```
#
# `options.register_custom_ops_library("./libgatednorm.so")` loads it, and `who_runs`, given the same options, would have to answer "kernel": that is the first test of the kernel. The second compares it with the class.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **Why a function, and not 19 nodes in the graph?** The name stays. A kernel can take its place later without a pattern that has to be matched, the profile and the graph stay readable, and the body is
# changed in one place.
#
# **The kernel is for float32 only. What happens in a float16 model?** By its source (`CreateSchema` in custom_ops.cc), the session is refused: a library brings a schema that allows the types
# of its kernels and no others, and a registered schema comes before a function in the file. So the body is not the reserve that it looks like. Two stand-ins were run with 1.31.1: `com.microsoft::FastGelu` of int32 is an invalid graph, and
# `ComplexMul`, a schema without a kernel here, is not implemented, though both files had a body of that name. Give the library a kernel for each type that you ship, or do not register it for such a model. Ask `who_runs` for each type.
#
# **Where do you put the version?** In `opset_import`, as the version of `course.lab`. Raise it when the meaning changes, as from `offset` 0 to 1 by default, and never change what version 1 means.
#
# **Can the body raise an error for a wrong shape?** No: ONNX has no assertion. A `Reshape` that cannot succeed is a trick that ends in a message nobody understands. Shapes are checked when the model is
# made, by shape inference, or by the kernel.
#
# **What does TensorRT do with this file?** It expands the function, as ONNX Runtime does, unless its own importers know the name; see
# [the proofs there](../../book/02_onnx/questions/17_custom_symbolic_and_custom_op.md).

# %% tags=["learner"]
from course.check import check

check("04_onnxruntime/ex06_custom_operator")
