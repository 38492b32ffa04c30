"""Grader of 04_onnxruntime/ex04_silent_fallback: graphs from seeds whose placement is decided here, profiles that ONNX Runtime writes here, and the recorded ones."""
import json
import random
import re
from dataclasses import dataclass, field

import numpy as np
import pytest
from onnx import TensorProto, helper, parser

from course import ROOT
from course.exercises import gpu_problem
from course.grading import Raised, Wrong, write_call

EXERCISE = "04_onnxruntime/ex04_silent_fallback"
PROBE = "probe_ex04.py"
# With a GPU, loading CUDA's libraries counts too: seconds, and gigabytes of resident memory.
LIMITS = {"call_seconds": 10.0, "memory_gib": 2.0} if gpu_problem("onnxruntime") else {"call_seconds": 60.0, "memory_gib": 8.0}
CUDA, CPU, AZURE = (f"{name}ExecutionProvider" for name in ("CUDA", "CPU", "Azure"))
FOLDER = ROOT / "models/cuda_placements"


# ---- graphs whose placement is decided here ------------------------------------------------------------------------------

@dataclass
class Case:
    """A saved graph with copies in it, its profile, and what is true of both."""
    model: bytes
    events: list
    ran: list                                   # (name, operator, provider, runs) in order
    copies: list                                # dicts as in the contract
    nodes: dict = field(default_factory=dict)   # name -> (operator, provider)


def event(name, operator, provider, size, ending="_kernel_time", category="Node"):
    return {"cat": category, "pid": 4711, "tid": 12, "dur": 40, "ts": 1000, "ph": "X", "name": name + ending,
            "args": {"op_name": operator, "provider": provider, "output_size": str(size), "node_index": "3", "input_type_shape": [], "output_type_shape": []}}


def session_event(name):
    return {"cat": "Session", "pid": 4711, "tid": 12, "dur": 400, "ts": 1, "ph": "X", "name": name, "args": {}}


OPERATORS = ["MatMul", "Add", "Sigmoid", "Shape", "Gather", "Concat", "Hardmax", "Relu", "Expand"]
NAMES = ["up", "/block.0/attn/MatMul", "gate_kernel_time", "proj 2", "norm::final", "Memcpy_like", "x_kernel_time_y", "head", "mix", "Träger", "out_fence", "deep/er"]


def scenario(seed, nested=True, share_on_cpu=0.4, runs=3, device=CUDA):
    """A random graph over two providers, with the copies that ONNX Runtime inserts: one for each value and direction, the value on the device under a new name.

    As in the recorded sessions, a nested graph takes a value of the graph around it without a copy node, and has copies of its own.
    """
    rng = random.Random(seed)
    names = rng.sample(NAMES, 8)
    inputs, weights = ["x", "mask"], ["w", "b"]
    made, order = {}, []                        # tensor -> provider of its maker; (name, operator, provider, inputs, output)
    for n, name in enumerate(names):
        provider = CPU if rng.random() < share_on_cpu else device
        sources = rng.sample([*inputs, *weights, *made], min(2, 4 + len(made)))
        order.append((name, rng.choice(OPERATORS), provider, sources, f"t{n}"))
        made[f"t{n}"] = provider
    branch = None
    if nested:                                  # an If on the device, one branch reads a value of the main graph on the CPU
        outer = rng.choice(list(made))
        branch = {"reads": outer, "inside": ("inside", "Hardmax", CPU), "behind": ("behind", "Relu", device)}
    readers = {}
    for name, _, provider, sources, _ in order:
        for tensor in dict.fromkeys(sources):
            readers.setdefault(tensor, []).append((name, provider))
    copies, on_device = [], {}                  # copies: (operator, tensor, input, output, because); on_device: tensor -> its name on the device
    for tensor, who in readers.items():
        sides = {provider for _, provider in who}
        maker = made.get(tensor)
        if maker == device and CPU in sides:
            because = {n for n, p in who if p == CPU} | ({"inside"} if branch and branch["reads"] == tensor else set())
            on_device[tensor] = f"{tensor}_{device}"
            copies.append(("MemcpyToHost", tensor, on_device[tensor], tensor, sorted(because)))
        elif maker == CPU and device in sides:
            on_device[tensor] = f"{tensor}_{device}"
            copies.append(("MemcpyFromHost", tensor, tensor, on_device[tensor], [next(o[0] for o in order if o[4] == tensor)]))
        elif maker is None and len(sides) == 2:
            on_device[tensor] = f"{tensor}_{device}"
            because = {n for n, p in who if p == CPU} | ({"inside"} if branch and branch["reads"] == tensor else set())
            copies.append(("MemcpyFromHost", tensor, tensor, on_device[tensor], sorted(because)))
    copy_names = [f"Memcpy_token_{n}" if n else "Memcpy" for n in range(len(copies))]
    rng.shuffle(copy_names)
    copies = [(name, *copy) for name, copy in zip(copy_names, copies)]

    def node(name, operator, sources, output, provider):
        here = on_device if provider == device else {}
        made_as = on_device.get(output, output) if provider == device else output
        return helper.make_node(operator, [here.get(s, s) for s in sources], [made_as], name=name)

    def copy_node(copy):
        return helper.make_node(copy[1], [copy[3]], [copy[4]], name=copy[0])

    graph_nodes = [(copy_node(c), c) for c in copies if c[2] not in made]
    sequence = []
    for name, operator, provider, sources, output in order:
        graph_nodes.append((node(name, operator, sources, output, provider), (name, operator, provider)))
        graph_nodes += [(copy_node(c), c) for c in copies if c[2] == output]
    inside_events = []
    if branch:
        inside, behind = branch["inside"], branch["behind"]
        # a nested node that has the name of a node of the main graph, and another operator
        twin = (names[0], "Tanh" if order[0][1] != "Tanh" else "Neg", CPU)
        nested_copy = ("Memcpy_in_branch", "MemcpyFromHost", "u2", "u2", f"u2_{device}", [twin[0]])
        body = helper.make_graph([helper.make_node(inside[1], [branch["reads"]], ["u"], name=inside[0]), helper.make_node(twin[1], ["u"], ["u2"], name=twin[0]), copy_node(nested_copy),
                                  helper.make_node(behind[1], [f"u2_{device}"], ["then_out"], name=behind[0])],
                                 "then", [], [helper.make_tensor_value_info("then_out", TensorProto.FLOAT, None)])
        never = helper.make_graph([helper.make_node("Relu", ["t0"], [f"v_{device}"], name="unvisited"), helper.make_node("MemcpyToHost", [f"v_{device}"], ["v"], name="Memcpy_never"),
                                   helper.make_node("Hardmax", ["v"], ["else_out"], name="unvisited_too")],
                                  "else", [], [helper.make_tensor_value_info("else_out", TensorProto.FLOAT, None)])
        chooser = helper.make_node("If", ["mask_flag"], ["chosen"], name="choose", then_branch=body, else_branch=never)
        graph_nodes.append((chooser, ("choose", "If", device)))
        inside_events = [inside, twin, nested_copy, behind]
    sequence = [what for _, what in graph_nodes]
    graph = helper.make_graph([n for n, _ in graph_nodes], "saved", [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in (*inputs, "mask_flag")],
                              [helper.make_tensor_value_info("t7", TensorProto.FLOAT, None)],
                              [helper.make_tensor(w, TensorProto.FLOAT, [1], [1.0]) for w in weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    sizes = {c[0]: [rng.randrange(1, 9) * 512 for _ in range(runs)] for c in [*copies, *([nested_copy] if branch else [])]}
    events, ran = [session_event("model_loading_array"), session_event("session_initialization")], {}

    def happen(name, operator, provider, size):
        events.append(event(name, operator, provider, size, "_fence_before"))
        events.append(event(name, operator, provider, size))
        events.append(event(name, operator, provider, 10**6, "_fence_after"))
        if provider == device:
            events.append(event("void gemm<float>", operator, provider, 10**6, category="Kernel"))
        ran[name, operator, provider] = ran.get((name, operator, provider), 0) + 1

    for n in range(runs):
        for what in sequence:
            if len(what) == 6:
                happen(what[0], what[1], device, sizes[what[0]][n])
            elif what[1] == "If":
                for one in inside_events:
                    happen(*one, 64) if len(one) == 3 else happen(one[0], one[1], device, sizes[one[0]][n])
                events.append(session_event("SequentialExecutor::Execute"))
                happen(*what, 64)
            else:
                happen(*what, rng.randrange(1, 99) * 64)
        events.append(session_event("model_run"))
    truth = [{"node": c[0], "direction": "to host" if c[1] == "MemcpyToHost" else "to device", "tensor": c[2], "bytes": max(sizes[c[0]]), "because": c[5]}
             for c in [*copies, *([nested_copy] if branch else [])]]
    if branch:
        truth.append({"node": "Memcpy_never", "direction": "to host", "tensor": "v", "bytes": 0, "because": []})
    return Case(model.SerializeToString(), events, [(*key, count) for key, count in ran.items()], truth, {o[0]: o[1:3] for o in order})


def scenarios():
    return [scenario(1), scenario(2), scenario(3, nested=False), scenario(4, share_on_cpu=0.15), scenario(5, share_on_cpu=0.8), scenario(6, nested=False, share_on_cpu=0.0, runs=1),
            scenario(7, device="TensorrtExecutionProvider")]


# ---- asking a submission --------------------------------------------------------------------------------------------------

def of_model(submission, function, model, *args, call, **more):
    try:
        return submission._ask("probe", "of_model", (function, model, *args), more, call)["ok"]
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong(f"{function} is not written yet.", call, error.text) from None
        raise Wrong(f"{function} raised {error.kind}{f' (your {error.where})' if error.where else ''}.", call, error.text) from None


def check_ran(submission, events, right, what):
    call = f"nodes_that_ran(events)  ({what})"
    got = submission.call("nodes_that_ran", events)
    if not isinstance(got, list) or not all(isinstance(entry, (tuple, list)) and len(entry) == 4 for entry in got):
        raise Wrong("nodes_that_ran gives a list of (name, operator, provider, runs).", call, got, right)
    got = [tuple(entry) for entry in got]
    if got == right:
        return
    keys, wanted = [entry[:3] for entry in got], [entry[:3] for entry in right]
    extra, absent = [k for k in keys if k not in wanted], [k for k in wanted if k not in keys]
    if any(k[0].endswith(("_fence_before", "_fence_after", "_fence", "_kernel_time")) and k[0] not in NAMES for k in extra) or any("gemm<" in k[0] for k in extra):
        mistake = "Events that are no runs of a node are taken for nodes."
    elif absent and extra:
        mistake = "The name of a node is cut: it may contain the words of the ending itself."
    elif absent:
        mistake = "Nodes are missing: one name may belong to nodes with different operators or providers, in the main graph and in a nested one."
    elif extra:
        mistake = "There are nodes that did not run."
    elif sorted(keys) == sorted(wanted) and keys != wanted:
        mistake = "The order is not that of the first runs."
    else:
        mistake = "The runs are counted wrong: a run is one event with the ending _kernel_time."
    difference = next((a, b) for a, b in zip([*got, None], [*right, None]) if a != b) if mistake.startswith(("The runs", "The order")) else (extra or got[:3], absent or right[:3])
    raise Wrong(mistake, call, difference[0], difference[1])


def check_copies(submission, model, events, right, what):
    call = f"copies(optimized, events)  ({what})"
    got = of_model(submission, "copies", model, events, call=call)
    keys = {"node", "direction", "tensor", "bytes", "because"}
    if not isinstance(got, list) or not all(isinstance(c, dict) and set(c) == keys for c in got):
        raise Wrong("copies gives a list of dicts.", call, got, sorted(keys))
    order = [(c["node"], c["tensor"], c["direction"]) for c in got]
    wanted = [(c["node"], c["tensor"], c["direction"]) for c in right]
    if sorted(order) != sorted(wanted):
        missing, extra = [w for w in wanted if w not in order], [o for o in order if o not in wanted]
        nested = any(m[0] in ("Memcpy_never", "Memcpy_in_branch") for m in missing)
        mistake = ("Copies in nested graphs are missing." if nested and not extra else "Copies are missing, or there are too many." if len(order) != len(wanted) else
                   "The direction or the tensor of a copy is wrong: the tensor has the name of the model that was given, which is that of the value on the host.")
        raise Wrong(mistake, call, extra or order, missing or wanted)
    for one in right:
        mine = next(c for c in got if (c["node"], c["tensor"], c["direction"]) == (one["node"], one["tensor"], one["direction"]))
        where = f"{one['node']}, {one['tensor']} {one['direction']}"
        if mine["bytes"] != one["bytes"] or not isinstance(mine["bytes"], int):
            mistake = "The bytes are wrong: the largest output_size of the copy's own runs, as an int."
            raise Wrong(mistake, call, f"{where}: {mine['bytes']!r}", f"{where}: {one['bytes']}")
        because = list(mine["because"]) if isinstance(mine["because"], (list, tuple)) else mine["because"]
        if because != one["because"]:
            if one["direction"] == "to host":
                mistake = "A copy to the host is needed by the nodes that read the copy, nested graphs included."
            elif one["tensor"] not in ("x", "mask", "w", "b"):
                mistake = "A copy to the device is needed because of the node that made the tensor elsewhere, not because of its readers."
            else:
                mistake = "An input or a weight is copied because nodes elsewhere read it as it is."
            raise Wrong(mistake, call, f"{where}: because {mine['because']}", f"{where}: because {one['because']}")


def check_problems(submission, case, wanted, allowed, copy_bytes, what):
    call = f"problems(events, optimized, {wanted!r}, {sorted(allowed)}, {copy_bytes})  ({what})"
    got = of_model(submission, "problems", case.model, case.events, wanted, allowed, copy_bytes, call=call)
    if not isinstance(got, list) or not all(isinstance(text, str) for text in got):
        raise Wrong("problems gives a list of str.", call, got)
    work = [node for node in case.ran if not node[1].startswith("Memcpy")]
    if not any(provider == wanted for _, _, provider, _ in work):
        names = [wanted, *sorted({node[2] for node in work})]
        if len(got) != 1 or any(name not in got[0] for name in names):
            raise Wrong("Nothing ran on the wanted provider: that is one problem, which says who did the work.", call, got[:4], f"one text with {', '.join(names)}")
        return
    needles = [(name, provider) for name, operator, provider, _ in work if provider != wanted and operator not in allowed]
    moved = [(c["tensor"], str(c["bytes"])) for c in case.copies if c["bytes"] > copy_bytes]
    for needle in needles:
        if not any(all(word in text for word in needle) for text in got):
            raise Wrong(f"{needle[0]} ran on {needle[1]}, and nobody says so.", call, got, f"a text with {needle[0]} and {needle[1]}")
    for needle in moved:
        if not any(all(re.search(rf"(?<!\d){re.escape(w)}(?!\d)", text) for w in needle) for text in got):
            raise Wrong(f"A copy of {needle[1]} bytes is not reported.", call, got, f"a text with {needle[0]} and {needle[1]}")
    if len(got) != len(needles) + len(moved):
        copies = [text for text in got if re.search("Memcpy(ToHost|FromHost)|Memcpy_token", text)]
        mistake = ("Copy nodes are reported as nodes." if copies else "There are problems that are none: an allowed operator, a copy that is small enough, or one thing twice.")
        raise Wrong(mistake, call, got, f"{len(needles)} nodes and {len(moved)} copies")


# ---- nodes and copies -----------------------------------------------------------------------------------------------------

def test_nodes_that_ran(submission):
    """nodes_that_ran finds every node, its provider and how often it ran"""
    for n, case in enumerate(scenarios()):
        check_ran(submission, case.events, case.ran, f"graph {n + 1} of the grader")
    check_ran(submission, [session_event("model_loading_array")], [], "a session that never ran")


def test_nodes_that_ran_here(submission):
    """nodes_that_ran reads a profile that ONNX Runtime wrote on this machine"""
    half = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float16[n, 4] x, bool[1] flag) => (float16[n, 4] y) { [angle] a = Atan(x) [wave] b = Cosh(a)
          [choose] y = If(flag) <then_branch = g1 () => (float16[n, 4] t) { [down] t = Neg(b) }, else_branch = g2 () => (float16[n, 4] e) { [other] e = Abs(b) }> }""").SerializeToString()
    providers = [p for p in (AZURE, CPU) if p in submission.probe("available")]
    events, saved = submission.probe("profile_here", half, {"x": np.ones((3, 4), np.float16), "flag": np.array([True])}, providers, 2)
    right = {}
    for one in events:
        match = re.fullmatch(r"(.*)_kernel_time", one["name"], re.DOTALL)
        if one["cat"] == "Node" and match:
            key = match[1], one["args"]["op_name"], one["args"]["provider"]
            right[key] = right.get(key, 0) + 1
    assert {"angle", "wave", "choose", "down"} < {key[0] for key in right} and any(key[1] == "Cast" for key in right), "ONNX Runtime writes another profile than this grader knows"
    check_ran(submission, events, [(*key, count) for key, count in right.items()], "a profile that was written here")
    check_copies(submission, saved, events, [], "a graph of one device: no copies")


def test_copies(submission):
    """copies finds every copy, how many bytes it moved, and because of which nodes"""
    for n, case in enumerate(scenarios()):
        check_copies(submission, case.model, case.events, case.copies, f"graph {n + 1} of the grader")


# ---- problems -------------------------------------------------------------------------------------------------------------

SHAPE_WORK = ["Shape", "Gather", "Concat"]


def test_problems(submission):
    """problems lists what ran elsewhere and what was copied, and nothing else"""
    for n, case in enumerate(scenarios()):
        for wanted in (CUDA, CPU, "TensorrtExecutionProvider"):
            for allowed, copy_bytes in (((), 0), (SHAPE_WORK, 0), (SHAPE_WORK, 2048), (OPERATORS + ["If", "Tanh", "Neg"], 10**9)):
                check_problems(submission, case, wanted, allowed, copy_bytes, f"graph {n + 1} of the grader")


def test_problems_of_nothing(submission):
    """problems says so where no node ran on the wanted provider, though its copies did, and where nothing ran at all"""
    copy = Case(parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[n] y) {
        [Memcpy] x_CUDA = MemcpyFromHost (x)  [Memcpy_token_1] h = MemcpyToHost (x_CUDA)  [only] y = Hardmax (h) }""").SerializeToString(),
                [event("Memcpy", "MemcpyFromHost", CUDA, 64), event("Memcpy_token_1", "MemcpyToHost", CUDA, 64), event("only", "Hardmax", CPU, 64)],
                [("Memcpy", "MemcpyFromHost", CUDA, 1), ("Memcpy_token_1", "MemcpyToHost", CUDA, 1), ("only", "Hardmax", CPU, 1)], [])
    check_problems(submission, copy, CUDA, ["Hardmax"], 10**9, "copies alone ran on the device")
    idle = Case(copy.model, [session_event("session_initialization")], [], [])
    check_problems(submission, idle, CUDA, ["Hardmax"], 0, "a session that never ran")


def test_problems_defaults(submission):
    """problems allows nothing by default"""
    case = scenario(3, nested=False)
    call = "problems(events, optimized, 'CUDAExecutionProvider')"
    got = of_model(submission, "problems", case.model, case.events, CUDA, call=call)
    count = sum(node[2] != CUDA for node in case.ran) + len(case.copies)
    if not isinstance(got, list) or len(got) != count:
        raise Wrong("By default no operator is allowed elsewhere, and no byte is copied for nothing.", call, got, f"{count} problems")


# ---- the recorded sessions ------------------------------------------------------------------------------------------------

# What is true of the recordings, read by hand in the files: nodes on the CPU, and copies as (tensor, direction, because). record.json says on what they were made.
RECORDED = {
    "all_cuda": ({}, []),
    "no_kernel": ({"alone": "Hardmax"}, [("a", "to host", ["alone"]), ("b", "to device", ["alone"])]),
    "shared": ({"first": "Hardmax", "second": "Hardmax", "third": "Atan", "fourth": "Hardmax"},
               [("a", "to host", ["first", "third"]), ("c", "to device", ["second"]), ("d", "to device", ["third"]), ("e", "to device", ["fourth"]), ("x", "to device", ["fourth"])]),
    "shape_work": ({"pick": "Gather", "double": "Add", "glue": "Concat"}, []),
    "branch": ({"inside": "Hardmax"}, [("u", "to device", ["inside"])]),
    "whole_fallback": ({"up": "MatMul", "bend": "Sigmoid", "down/MatMulAddFusion": "Gemm"}, []),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(submission, name):
    """The recorded sessions: who ran where, which copies, and what the gate says"""
    on_cpu, moved = RECORDED[name]
    record = json.loads((FOLDER / "record.json").read_text())["models"][name]
    events, model = json.loads((FOLDER / f"{name}.profile.json").read_text()), (FOLDER / f"{name}.optimized.onnx").read_bytes()
    call = f"nodes_that_ran(events)  (recorded: {name})"
    got = submission.call("nodes_that_ran", events)
    mine = {entry[0]: entry[1] for entry in got if entry[2] == CPU}
    if mine != on_cpu or any(entry[3] != 2 for entry in got):
        raise Wrong("Other nodes ran on the CPU, or not twice.", call, got, f"on the CPU: {on_cpu}, each 2 runs")
    assert (record["providers"] == [CPU]) == (name == "whole_fallback") and json.loads((FOLDER / "record.json").read_text())["provider"] == CUDA
    call = f"copies(optimized, events)  (recorded: {name})"
    got = of_model(submission, "copies", model, events, call=call)
    mine = sorted((c["tensor"], c["direction"], list(c["because"])) for c in got)
    if mine != moved or any(c["bytes"] != 512 for c in got):
        raise Wrong("The copies of a recorded session are others.", call, got, [(*m, 512) for m in moved])
    call = f"problems(events, optimized, {CUDA!r}, {SHAPE_WORK + ['Add']})  (recorded: {name})"
    got = of_model(submission, "problems", model, events, CUDA, SHAPE_WORK + ["Add"], call=call)
    count = 1 if name == "whole_fallback" else len(moved) + sum(operator not in [*SHAPE_WORK, "Add"] for operator in on_cpu.values())
    if len(got) != count:
        raise Wrong("A recorded session has another number of problems.", call, got, f"{count}")


# ---- the gate -------------------------------------------------------------------------------------------------------------

def opened(submission, model, providers, wanted, allowed=()):
    call = write_call("open_checked", ("model.onnx", providers, wanted), {"allowed": list(allowed)} if allowed else {})
    return *submission._ask("probe", "open_watched", (model, providers, wanted, allowed), {}, call)["ok"], call


def refused(answer, mistake, words):
    _, error, counted, providers, _, call = answer
    if error is None:
        raise Wrong(mistake, call, f"a session on {providers}", f"RuntimeError with {', '.join(words)} in its text")
    kind, text, bases = error
    if kind == "NotImplementedError":
        raise Wrong("open_checked is not written yet.", call, text)
    if "RuntimeError" not in bases:
        raise Wrong("It is refused with another exception.", call, f"{kind}: {text}", "RuntimeError")
    missing = [word for word in words if word not in text]
    if missing:
        raise Wrong(f"The RuntimeError does not name {', '.join(missing)}.", call, text, f"{', '.join(words)} in the text")
    check_counted(counted, call)


def check_counted(counted, call):
    if counted["sessions"] > 1:
        raise Wrong("More than one session is opened.", call, f"{counted['sessions']} sessions", "1")
    if counted["runs"]:
        raise Wrong("The model is run to find out: that is too late, and inputs are not known.", call, f"{counted['runs']} runs", "none")


def small(names=("first", "second", "third")):
    a, b, c = names
    return parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 4] x) => (int64[2] z) {{ [{a}] h = Sin(x) [{b}] k = Sigmoid(h) [{c}] z = Shape(k) }}""").SerializeToString()


def need_azure(submission):
    if AZURE not in submission.probe("available"):
        pytest.skip("not run here: this onnxruntime has no AzureExecutionProvider (the package onnxruntime has)")


def test_gate_opens(submission, tmp_path):
    """open_checked opens a session whose nodes are where they should be"""
    path = tmp_path / "small.onnx"
    path.write_bytes(small())
    for model, providers in ((str(path), [CPU]), (small(), (CPU,)), (str(path), [(CPU, {})])):
        session, error, counted, names, retries, call = opened(submission, model, providers, CPU)
        if error:
            if error[0] == "NotImplementedError":
                raise Wrong("open_checked is not written yet.", call, error[1])
            raise Wrong(f"A good session was refused with {error[0]}.", call, error[1], "a session")
        if names != [CPU]:
            raise Wrong("open_checked returns the session.", call, session, "an ort.InferenceSession")
        check_counted(counted, call)
        if retries:
            raise Wrong("This session still goes to another provider when a run fails: ONNX Runtime prints a line and rebuilds it.", call, "the retry of run is on", "off")
        got, = submission.probe("run_once", session, {"x": np.ones((3, 4), np.float32)})
        if got.tolist() != [3, 4]:
            raise Wrong("The session computes another model.", call, got, [3, 4])


def test_gate_counts_nodes(submission):
    """open_checked refuses a session whose provider is registered first and owns no node"""
    need_azure(submission)
    refused(opened(submission, small(), [AZURE, CPU], AZURE), "The provider is registered, and every node runs elsewhere.", ["first", "Sin", "second", "Sigmoid", "third", "Shape", CPU])
    refused(opened(submission, small(("alpha", "beta", "gamma")), [AZURE], AZURE, ["Sin", "Shape"]), "A node is elsewhere whose operator is not allowed there.", ["beta", "Sigmoid", CPU])
    answer = opened(submission, small(("alpha", "beta", "gamma")), [AZURE, CPU], AZURE, ("Sigmoid", "Sin"))
    refused(answer, "A node is elsewhere whose operator is not allowed there.", ["gamma", "Shape", CPU])
    if "alpha" in answer[1][1] or "beta" in answer[1][1]:
        raise Wrong("Nodes are named whose operators are allowed elsewhere.", answer[-1], answer[1][1], "gamma alone")
    nested = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 4] x, bool[1] flag) => (float[n, 4] y) { [choose] y = If(flag) <then_branch = g1 () => (float[n, 4] t) { [within] t = Neg(x) },
          else_branch = g2 () => (float[n, 4] e) { [beside] e = Abs(x) }> }""").SerializeToString()
    refused(opened(submission, nested, [AZURE, CPU], AZURE, ["If"]), "Nodes of nested graphs are elsewhere.", ["within", "beside"])
    refused(opened(submission, small(), [AZURE, CPU], AZURE, ["Sin", "Sigmoid", "Shape"]),
            "No node is on the wanted provider: that its operators may be elsewhere does not make it the one that works.", [AZURE])
    session, error, *_, call = opened(submission, small(), [AZURE, CPU], CPU)
    if error:
        raise Wrong("All nodes are on the CPU, and that was wanted: who is first in the list does not matter.", call, f"{error[0]}: {error[1]}", "a session")


def test_gate_missing_provider(submission):
    """open_checked refuses a provider that is not there, and one that does not exist"""
    if CUDA not in submission.probe("available"):
        for providers in ([CUDA], [CUDA, CPU], [(CUDA, {"use_tf32": "0"}), CPU]):
            refused(opened(submission, small(), providers, CUDA), "There is no CUDA here, and a session came: the silent CPU.", [CUDA])
    for providers in (["CUDAExecutionProvidr", CPU], ["CUDAExecutionProvidr"]):
        refused(opened(submission, small(), providers, "CUDAExecutionProvidr"), "There is no such provider at all, and a session came.", ["CUDAExecutionProvidr"])
    refused(opened(submission, small(), [CPU], "OpenVINOExecutionProvider"), "The wanted provider is not even in the list.", ["OpenVINOExecutionProvider"])


# ---- with a GPU -------------------------------------------------------------------------------------------------------

@pytest.mark.gpu("onnxruntime")
def test_gpu_gate(submission):
    """On the GPU: open_checked finds the one node that CUDA leaves to the CPU, and lets it pass where it is allowed"""
    if CUDA not in submission.probe("available"):
        pytest.skip("not run here: this onnxruntime has no CUDAExecutionProvider (the package onnxruntime-gpu has)")
    op = submission.probe("without_a_kernel_on", CUDA)

    def model(operator):
        return parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
            g (float[n, 4] x) => (float[n, 4] y) {{ [before] a = Sigmoid(x) [alone] b = {operator}(a) [behind] y = Exp(b) }}""").SerializeToString()

    for code, allowed in ((model("Tanh"), ()), (model(op), (op,))):
        session, error, counted, names, retries, call = opened(submission, code, [CUDA, CPU], CUDA, allowed)
        if error:
            raise Wrong(f"A good session was refused with {error[0]}.", call, error[1], "a session")
        if not names or names[0] != CUDA or retries:
            raise Wrong("The session is not on CUDA, or goes to another provider when a run fails.", call, (names, retries), ([CUDA, CPU], False))
        check_counted(counted, call)
    answer = opened(submission, model(op), [CUDA, CPU], CUDA)
    refused(answer, f"CUDA has no kernel for {op}: this node is on the CPU, with a copy on each side.", ["alone", op, CPU])
    if "before" in answer[1][1] or "behind" in answer[1][1]:
        raise Wrong("Nodes are named that are where they should be.", answer[-1], answer[1][1], "alone, and no other")
