# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: find the silent CPU and the hidden copies
#
# Level: senior · 40 minutes · needs no GPU
#
# A service is slower than it was. Its session says CUDA, no exception was raised, the answers are right. You write the tool that says which nodes ran where, which tensors were copied between the devices, and because of
# which nodes. Then you write the gate that stops the next such deployment before it takes traffic.
#
# The evidence was recorded on a GPU by `models/cuda_placements/make.py`: profiles of six small models, and the graphs that ONNX Runtime made of them, as it wrote them. The gate runs here, since the CPU package has a second
# provider too.
#
# Background: [providers and partitioning](../../book/04_onnxruntime/questions/11_execution_providers_and_partitioning.md), [the silent CPU](../../book/04_onnxruntime/questions/12_silent_fallback.md) and
# [profiling](../../book/04_onnxruntime/questions/19_profiling.md).
#
# ## The contract
#
# `events` is the list that a profile's JSON file holds. `optimized` is the `onnx.ModelProto` that a session saved, with the copy nodes that it inserted: `MemcpyToHost` and `MemcpyFromHost`. All nodes have names.
#
# **`nodes_that_ran(events)`** returns a list of tuples `(name, operator, provider, runs)`, in the order in which they ran first.
#
# - A node that ran has events of the category `Node` whose name is the node's name and `_kernel_time`. Other events, of other categories or with other endings, are no runs. `runs` counts them.
# - A name may stand in the main graph and in a nested one. Events that differ in name, operator or provider are different nodes.
#
# **`copies(optimized, events)`** returns a list of dicts, one for each copy node of the main graph and of all graphs nested in it, in any order:
#
# - `"node"`: its name. `"direction"`: `"to host"` or `"to device"`. `"bytes"`: an `int`, the largest `output_size` of its events; 0 if it never ran.
# - `"tensor"`: the name of what it copies, as the model that was given calls it. ONNX Runtime leaves that name to the value on the host, and makes a new one for the value on the device.
# - `"because"`: the sorted list of the names of the nodes that made it necessary. They ran on another provider than the copy node. For a copy to the host: the nodes that read the copy. For a copy to the device: the node that
#   made the tensor; or, if the tensor is an input or a weight of the model, the nodes that read it as it is. A reader may be in a nested graph. Nodes that never ran are not listed, and a copy that never ran has an empty list.
#
# **`problems(events, optimized, wanted, allowed=(), copy_bytes=0)`** returns a list of `str`, one for each of these, and empty if there is none:
#
# - a node that ran on another provider than `wanted` and whose operator is not in `allowed`: the text has the node's name and the provider's;
# - a copy that moved more than `copy_bytes` bytes: the text has the tensor's name and the number of bytes.
# - If no node at all ran on `wanted`, there is one problem instead of all others, with the names of `wanted` and of the providers that did the work.
# - Copy nodes are no nodes here, wherever they ran: they are judged as copies.
#
# **`open_checked(model, providers, wanted, allowed=())`** returns an `ort.InferenceSession` for a path or the bytes of a model, or raises `RuntimeError`.
#
# - It raises if `wanted` is not among the session's providers, and names it. This holds for a provider that the package does not have and for a misspelled one.
# - It raises if a node is assigned to another provider than `wanted` and its operator is not in `allowed`. The text has the node's name, its operator and its provider. Nodes of nested graphs count.
# - It raises if no node is assigned to `wanted`, even if all operators are allowed elsewhere.
# - It knows all that before any run: nothing is run. The session that it returns does not change its providers when a run fails.
# - Counted: one session.

# %% [markdown]
# ## The evidence

# %%
import json

import onnx
import onnxruntime as ort

from course import ROOT

FOLDER = ROOT / "models/cuda_placements"
record = json.loads((FOLDER / "record.json").read_text())


def load(name):
    """(events of the profile, optimized model) of one of the recorded models."""
    return json.loads((FOLDER / f"{name}.profile.json").read_text()), onnx.load(FOLDER / f"{name}.optimized.onnx")


print("recorded on", record["described"]["gpu"].split(",")[0], "with onnxruntime-gpu", record["described"]["packages"]["onnxruntime-gpu"], "on", record["date"][:10])
print("no kernel for CUDA:", ", ".join(record["operators"]))
for name, one in record["models"].items():
    print(f"{name:15} get_providers(): {one['providers']}")

# %% [markdown]
# Five of the six sessions give the same answer to the question that everybody asks. The sixth was asked for an option that CUDA does not have. Here is what a profile looks like: some events of one run.

# %%
events, optimized = load("no_kernel")
for event in events[:7]:
    print(event["cat"], event["name"], {key: event["args"].get(key) for key in ("op_name", "provider", "output_size")})

# %% [markdown]
# And the graph that was saved, node by node, as `inputs -> outputs`:

# %%
for node in optimized.graph.node:
    print(f"{node.name:15} {node.op_type:15} {list(node.input)} -> {list(node.output)}")

# %% [markdown] tags=["hint"]
# **Hint 1.** `event["name"].endswith("_kernel_time")` and `removesuffix`: a node's own name may contain these words too. A `collections.Counter` of `(name, operator, provider)` keeps the order in which keys came first. For nested graphs write one
# generator that goes through `graph.node`, and for every attribute of type `onnx.AttributeProto.GRAPH` (or `GRAPHS`) through its graph.

# %% [markdown] tags=["hint"]
# **Hint 2.** For `copies` make three tables over all graphs: who makes a tensor, who reads it, and the providers of each name from the profile. A copy node has one input and one output, and the value on the host is the output of the one kind and
# the input of the other. `because` for `MemcpyToHost`: readers of the output. For `MemcpyFromHost`: the maker of the input, if there is one, else the readers of the input. Then keep those that ran on another provider than the copy itself.

# %% [markdown] tags=["hint"]
# **Hint 3.** For `open_checked`: the session config entry `session.record_ep_graph_assignment_info` with the value `"1"`, then `session.get_provider_graph_assignment_info()`: each part has `ep_name` and `get_nodes()`, and a node has `name` and `op_type`. Pass
# `enable_fallback=0` to the constructor, so that a misspelled provider raises at once, and the session that you return does not retry elsewhere either.

# %% [markdown]
# ## Your answer

# %%
# graded cell 1: keep this line
import collections

import onnx
import onnxruntime as ort

COPIES = {"MemcpyToHost": "to host", "MemcpyFromHost": "to device"}


def nodes_that_ran(events):
    """[(name, operator, provider, runs)] of the nodes that a profile saw running, in the order of their first run."""
    # <answer>
    runs = collections.Counter()
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"], event["args"]["provider"]] += 1
    return [(*node, count) for node, count in runs.items()]
    # </answer>
    # stub: raise NotImplementedError("nodes_that_ran is not written yet")


def copies(optimized, events):
    """[{"node", "direction", "tensor", "bytes", "because"}] of every copy node, nested graphs included."""
    # <answer>
    def walk(graph):
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                for nested in ([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs):
                    yield from walk(nested)

    nodes = list(walk(optimized.graph))
    makers = {output: node for node in nodes for output in node.output}
    readers = collections.defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    providers = collections.defaultdict(set)
    for name, operator, provider, _ in nodes_that_ran(events):
        providers[name, operator].add(provider)
    sizes = collections.defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            sizes[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(int(event["args"]["output_size"]))

    found = []
    for copy in nodes:
        if copy.op_type not in COPIES:
            continue
        down, own = copy.op_type == "MemcpyToHost", providers[copy.name, copy.op_type]
        tensor = copy.output[0] if down else copy.input[0]
        if down:
            suspects = readers[tensor]
        elif tensor in makers:
            suspects = [makers[tensor]]
        else:
            suspects = readers[tensor]
        because = {node.name for node in suspects if own and node.op_type not in COPIES and providers[node.name, node.op_type] - own}
        found.append({"node": copy.name, "direction": COPIES[copy.op_type], "tensor": tensor,
                      "bytes": max(sizes[copy.name, copy.op_type], default=0), "because": sorted(because)})
    return found
    # </answer>
    # stub: raise NotImplementedError("copies is not written yet")


def problems(events, optimized, wanted, allowed=(), copy_bytes=0):
    """What is not on the wanted provider, and what is copied, one sentence each; [] if all is well."""
    # <answer>
    work = [node for node in nodes_that_ran(events) if node[1] not in COPIES]
    if not any(provider == wanted for _, _, provider, _ in work):
        return [f"no node ran on {wanted}: the work was done by {', '.join(sorted({node[2] for node in work})) or 'nobody'}"]
    found = [f"{name} ({operator}) ran on {provider}, not on {wanted}" for name, operator, provider, _ in work
             if provider != wanted and operator not in allowed]
    for copy in copies(optimized, events):
        if copy["bytes"] > copy_bytes:
            found.append(f"{copy['tensor']} is copied {copy['direction']}, {copy['bytes']} bytes a run, because of {', '.join(copy['because'])}")
    return found
    # </answer>
    # stub: raise NotImplementedError("problems is not written yet")


# %%
# graded cell 2: keep this line
def open_checked(model, providers, wanted, allowed=()):
    """A session whose nodes are all assigned to the wanted provider, but for allowed operators; RuntimeError if they are not."""
    # <answer>
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
    if wanted not in session.get_providers():
        raise RuntimeError(f"{wanted} is not there: the session has {session.get_providers()}")
    assigned = [(part.ep_name, node.name, node.op_type) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    elsewhere = [f"{name} ({operator}) on {provider}" for provider, name, operator in assigned if provider != wanted and operator not in allowed]
    if elsewhere:
        raise RuntimeError(f"{len(elsewhere)} of {len(assigned)} nodes are not on {wanted}: {', '.join(elsewhere)}")
    if not any(provider == wanted for provider, _, _ in assigned):
        raise RuntimeError(f"{wanted} is registered and runs no node")
    return session
    # </answer>
    # stub: raise NotImplementedError("open_checked is not written yet")


# %% [markdown]
# ## The six cases
#
# Where the nodes ran, and which copies came of it:

# %%
for name in record["models"]:
    events, optimized = load(name)
    print(name)
    where = collections.defaultdict(list)
    for node, operator, provider, runs in nodes_that_ran(events):
        if operator not in COPIES:
            where[provider.removesuffix("ExecutionProvider")].append(node)
    for provider, nodes in where.items():
        print(f"  {provider}: {', '.join(nodes)}")
    for moved in copies(optimized, events):
        print(f"  copied {moved['direction']}: {moved['tensor']}, {moved['bytes']} bytes, because of {moved['because']}")

# %% [markdown]
# And the gate, with arithmetic on shapes allowed on the CPU:

# %%
SHAPE_WORK = {"Shape", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Add", "Mul", "Cast", "Range"}
for name in record["models"]:
    found = problems(*load(name), "CUDAExecutionProvider", SHAPE_WORK)
    print(f"{name}: {len(found)} problems")
    for problem in found:
        print("  -", problem)

# %% [markdown]
# ## The gate at start-up
#
# `AzureExecutionProvider` of the CPU package is registered when it is asked for, comes first, and takes no node.

# %%
MODEL = str(ROOT / "models/digits_mlp/digits_mlp.onnx")
AZURE, CPU, CUDA = (f"{name}ExecutionProvider" for name in ("Azure", "CPU", "CUDA"))
import contextlib
import io
import warnings

for providers, wanted in (([CPU], CPU), ([AZURE, CPU], CPU), ([AZURE, CPU], AZURE), ([CUDA, CPU], CUDA), (["CUDAExecutionProvidr"], CUDA)):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outcome = f"opened, {open_checked(MODEL, providers, wanted).get_providers()}"
        except RuntimeError as error:
            outcome = f"refused: {str(error)[:88]}"
    print([p.removesuffix("ExecutionProvider") for p in providers], "->", wanted.removesuffix("ExecutionProvider"), outcome)

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | --- | --- |
# | count by node events, not by `get_providers()` | says who worked | five of the six recorded sessions answer "CUDA first" |
# | the ending `_kernel_time` | one event a run | profiles have other events of a node in some releases, and a node may be called so |
# | name, operator and provider as the key | tells nodes of nested graphs apart | copies in two graphs may have one name, and counts are added up |
# | the copy node's own output size | bytes over the bus, as they were | the tensor's declared shape is dynamic |
# | readers of the *copy* for the way down | names the nodes that cannot run on the device | the maker of the tensor is blamed, which is where it should be |
# | the maker of the tensor for the way up | one node on the CPU causes both copies | every reader on the device is blamed |
# | graphs inside `If`, `Loop`, `Scan` | copies are inserted there as well, as in `branch` | a model with a loop looks clean |
# | one problem if nothing ran on `wanted` | says what happened | a list as long as the model, and no hint that the provider never started |
# | `allowed` by operator | shape arithmetic belongs on the CPU | the gate refuses good models, and somebody removes it |
# | the assignment, before any run | stops the process before it reports ready | the first user finds out |
# | "no node on `wanted`" | finds the registered provider that does nothing | a model of allowed operators passes on the CPU |
# | `enable_fallback=0` | a misspelled provider raises; a failing run raises | ONNX Runtime prints a line and goes on elsewhere |
#
# ## What it costs
#
# - The record is written once, while the graph is divided, and no run pays for it. Ask for it in production; what it adds to the start was not measured here.
# - A profile costs time in every run, and a file that grows. Take one in a test, with the shapes of production, and end it.
# - The saved graph is for reading. It has the copies of that session in it, and a session on another provider refuses it, as the cell below shows.

# %% tags=["answer"]
quiet = ort.SessionOptions()
quiet.log_severity_level = 4
try:
    ort.InferenceSession(str(FOLDER / "no_kernel.optimized.onnx"), quiet, providers=["CPUExecutionProvider"])
except Exception as error:
    print(type(error).__name__, str(error).split(" : ")[-1][:90])

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **The record and the profile disagree. Which one is right?** Both. The record is written when providers claim nodes, before later fusions, casts and copies. The profile has what ran, and only that: a branch that was not taken is missing. Use the
# record as a gate and the profile as the explanation.
#
# **Can `problems` miss a copy?** Yes, two kinds, which have no node. Inputs and outputs of the model are copied at the start and the end of a run: [IOBinding](../../book/04_onnxruntime/questions/14_io_binding.md) decides those. And a nested graph gets
# values of the graph around it. Look at the recorded `branch`: `inside` ran on the CPU and reads `a`, which `up` made on CUDA, and no copy node stands between them. Only the way back, of `u`, has one. So a node on the CPU inside a branch or a loop is
# a problem by itself, whatever the copies say.
#
# **The model's nodes have no names. What now?** Then the profile invents one, the operator and an index, that the file does not have. Name the nodes before you ask: one loop over `graph.node`.
#
# **How would you get rid of the two copies in `no_kernel`?** In order: write the operator in terms of others that CUDA has; move it to the end or the start, where it costs one copy; give the provider a kernel. Moving the *neighbours* to the CPU
# as well is right only when they are small.
#
# **Was this seen with a second device?** The six sessions were: CUDA 13.0, one H100, `onnxruntime-gpu` 1.31.1. `open_checked` was not run there. Its grader has a check for a GPU, which is skipped without one.
#
# **Why does the lock `session.disable_cpu_ep_fallback` not replace all this?** It is a yes or no for the whole graph. It refuses shape arithmetic on the CPU, and it does not name the node. It is one line, though: use it where it fits.

# %% tags=["learner"]
from course.check import check

check("04_onnxruntime/ex04_silent_fallback")
