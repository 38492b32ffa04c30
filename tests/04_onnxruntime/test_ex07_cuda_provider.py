"""Grader of 04_onnxruntime/ex07_cuda_provider: tables of options written out here, models from seeds, answers from NumPy in float64."""
import math
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course.codec import Opaque
from course.exercises import gpu_problem
from course.grading import Raised, Wrong, show, write_call

EXERCISE = "04_onnxruntime/ex07_cuda_provider"
PROBE = "probe_ex07.py"
# With a GPU, loading CUDA's libraries counts too: seconds, and gigabytes of resident memory.
LIMITS = {"call_seconds": 10.0, "memory_gib": 2.0} if gpu_problem("onnxruntime") else {"call_seconds": 60.0, "memory_gib": 8.0}
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
TOLERANCE = 1e-4


# ---- models and what they must answer -------------------------------------------------------------------------------

@dataclass
class Model:
    """A file, its tensors (name, shape with names for dynamic dimensions, dtype), and what it computes, in float64."""
    path: str
    inputs: list
    outputs: list
    compute: object
    vocabulary: int = 0
    sizes: dict = field(default_factory=dict)   # sizes of the dynamic dimensions that the tests use

    def shape(self, dims):
        return tuple(self.sizes.get(d, d) for d in dims)

    def feeds(self, seed):
        rng = np.random.default_rng(seed)
        return {name: rng.integers(0, self.vocabulary, self.shape(dims)) if dtype == "int64" else rng.standard_normal(self.shape(dims)).astype(dtype)
                for name, dims, dtype in self.inputs}

    def __str__(self):
        return "model with " + ", ".join(f"{name} {dims} {dtype}" for name, dims, dtype in self.inputs)


KINDS = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64}


def write(folder, name, nodes, inputs, outputs, constants):
    def info(entries):
        return [helper.make_tensor_value_info(n, KINDS[dtype], list(dims)) for n, dims, dtype in entries]
    graph = helper.make_graph(nodes, "grader", info(inputs), info(outputs), [numpy_helper.from_array(a, n) for n, a in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return str(path)


def mlp(folder, seed, batch="batch", size=4, features=20, classes=5, source="x", target="y"):
    rng, node = np.random.default_rng(seed), helper.make_node
    w1, b1, w2 = (rng.normal(0, s, shape).astype(np.float32) for s, shape in ((1 / math.sqrt(features), (features, 12)), (0.3, 12), (0.3, (12, classes))))
    nodes = [node("Gemm", [source, "_w1", "_b1"], ["_a"]), node("Relu", ["_a"], ["_h"]), node("MatMul", ["_h", "_w2"], [target])]
    inputs, outputs = [(source, (batch, features), "float32")], [(target, (batch, classes), "float32")]
    path = write(folder, f"mlp{seed}{batch}", nodes, inputs, outputs, {"_w1": w1, "_b1": b1, "_w2": w2})
    w1, b1, w2 = (w.astype(np.float64) for w in (w1, b1, w2))
    return Model(path, inputs, outputs, lambda x: [np.maximum(x[source].astype(np.float64) @ w1 + b1, 0) @ w2], sizes={} if batch == size else {batch: size})


def tokens(folder, seed, batch=3, length=7, words=50, width=6, classes=4):
    """Two inputs, one of them indices; two outputs."""
    rng, node = np.random.default_rng(seed), helper.make_node
    table, w = rng.standard_normal((words, width)).astype(np.float32), rng.normal(0, 0.4, (width, classes)).astype(np.float32)
    nodes = [node("Gather", ["_table", "ids"], ["_e"]), node("Unsqueeze", ["weight", "_last"], ["_m"]), node("Mul", ["_e", "_m"], ["_s"]),
             node("ReduceMean", ["_s"], ["pooled"], axes=[1], keepdims=0), node("MatMul", ["pooled", "_w"], ["scores"])]
    inputs = [("ids", ("batch", "length"), "int64"), ("weight", ("batch", "length"), "float32")]
    outputs = [("pooled", ("batch", width), "float32"), ("scores", ("batch", classes), "float32")]
    path = write(folder, f"tokens{seed}", nodes, inputs, outputs, {"_table": table, "_w": w, "_last": np.array([-1], np.int64)})

    def compute(x):
        pooled = (table.astype(np.float64)[x["ids"]] * x["weight"].astype(np.float64)[..., None]).mean(axis=1)
        return [pooled, pooled @ w.astype(np.float64)]
    return Model(path, inputs, outputs, compute, words, {"batch": batch, "length": length})


def doubles(folder, rows=3):
    """An output with a dimension of its own, and float64 throughout."""
    inputs, outputs = [("signal", ("n", 4), "float64")], [("twice", ("m", 4), "float64")]
    path = write(folder, "doubles", [helper.make_node("Concat", ["signal", "signal"], ["twice"], axis=0)], inputs, outputs, {})
    return Model(path, inputs, outputs, lambda x: [np.concatenate([x["signal"]] * 2)], sizes={"n": rows, "m": 2 * rows})


def unnamed(folder):
    inputs, outputs = [("signal", (None, 4), "float32")], [("out", (None, 4), "float32")]
    return Model(write(folder, "unnamed", [helper.make_node("Neg", ["signal"], ["out"])], inputs, outputs, {}), inputs, outputs, lambda x: [-x["signal"]])


# ---- asking a submission and reading its answers ---------------------------------------------------------------------

def raises(submission, name, args, kwargs, kinds, mistake, words=()):
    """Raises `Wrong` unless the call raises one of `kinds` with all `words` in its text."""
    call = write_call(name, args, kwargs)
    try:
        got = submission.attempt(name, *args, **kwargs)
    except Raised as error:
        judge_error((error.kind, error.text, error.bases), kinds, mistake, words, call)
    else:
        raise Wrong(mistake, call, got, f"{' or '.join(kinds)}" + (f" with {', '.join(words)} in its text" if words else ""))


def judge_error(error, kinds, mistake, words, call):
    kind, text, bases = error
    if kind == "NotImplementedError":
        raise Wrong("This is not written yet.", call, text)
    if not set(kinds) & set(bases):
        raise Wrong(mistake, call, f"{kind}: {text}", " or ".join(kinds))
    missing = [w for w in words if w not in text]
    if missing:
        raise Wrong(f"The {kind} does not name {', '.join(missing)}.", call, text, f"{', '.join(missing)} in the message")


def plain(submission, model):
    return submission.probe("open_plain", model.path)


def make(submission, model, session=None, call="Replay(session, plan)", **more):
    session = session or plain(submission, model)
    try:
        return submission._ask("probe", "make_replay", (session, model.sizes), more, f"{call} of a {model}")["ok"]
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("Replay is not written yet.", call, error.text) from None
        raise Wrong(f"Making a Replay raised {error.kind}{explain_making(error)}.", error.call, error.text) from None


def explain_making(error):
    if "indices element out of data bounds" in error.text:
        return ": the inputs of the warm-up runs are what fresh memory happened to hold, and these are indices"
    return f" (your {error.where})" if error.where else ""


def use(submission, replay, *steps):
    return submission._ask("probe", "use", (replay, list(steps)), {}, " then ".join(action for action, _ in steps))["ok"]


def fine(entry, call):
    if entry["error"]:
        raise Wrong(f"It raised {entry['error'][0]}.", call, entry["error"][1])
    return entry["got"]


def verify(model, feeds, got, call, limit=TOLERANCE):
    names = [name for name, _, _ in model.outputs]
    if not isinstance(got, dict) or list(sorted(got)) != sorted(names) or not all(isinstance(a, np.ndarray) for a in got.values()):
        raise Wrong("The answer is not a dict from each output's name to a NumPy array.", call, got, f"a dict with {', '.join(names)}")
    for (name, dims, dtype), right in zip(model.outputs, model.compute(feeds)):
        if got[name].shape != model.shape(dims) or got[name].dtype != np.dtype(dtype):
            raise Wrong(f"{name} has the wrong shape or dtype.", call, got[name], f"{model.shape(dims)} {dtype}")
        difference = np.abs(got[name].astype(np.float64) - right).max()
        if not difference <= limit:
            mistake = f"{name} is wrong"
            others = [n for n, a in zip(names, model.compute(feeds)) if n != name and a.shape == right.shape and np.abs(got[name] - a).max() <= limit]
            raise Wrong(f"{mistake}: these are the numbers of {others[0]}." if others else f"{mistake}.", call, f"{show(got[name])}, off by {difference:.1e}",
                        f"{show(right.astype(dtype))}, each within {limit:g}")


# ---- options ----------------------------------------------------------------------------------------------------------

def test_cuda_provider_makes_the_pair(submission):
    """cuda_provider gives the provider with exactly the options that are wanted, as text"""
    cases = [({}, {}), ({"use_tf32": False}, {"use_tf32": "0"}), ({"use_tf32": True, "enable_cuda_graph": True}, {"use_tf32": "1", "enable_cuda_graph": "1"}),
             ({"device_id": 1, "gpu_mem_limit": 2**33, "prefer_nhwc": True}, {"device_id": "1", "gpu_mem_limit": "8589934592", "prefer_nhwc": "1"}),
             ({"device_id": 0, "cudnn_conv1d_pad_to_nc1d": False}, {"device_id": "0", "cudnn_conv1d_pad_to_nc1d": "0"}),
             ({"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_use_max_workspace": False},
              {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_use_max_workspace": "0"}),
             ({"cudnn_conv_algo_search": "DEFAULT", "do_copy_in_default_stream": True}, {"cudnn_conv_algo_search": "DEFAULT", "do_copy_in_default_stream": "1"})]
    for wanted, right in cases:
        call = write_call("cuda_provider", (), wanted)
        got = submission.call("cuda_provider", **wanted)
        if not (isinstance(got, tuple) and len(got) == 2 and got[0] == CUDA and isinstance(got[1], dict)):
            raise Wrong("cuda_provider returns the pair that ONNX Runtime takes.", call, got, (CUDA, right))
        texts = all(isinstance(v, str) for v in got[1].values())
        if set(got[1]) - set(right):
            raise Wrong("There are options that nobody asked for: a default that is written down stays when the provider's own default changes.", call, got, (CUDA, right))
        if not texts or got[1] != right:
            truths = [k for k in right if str(got[1].get(k)) in ("True", "False")]
            mistake = ("True and False are handed on as these words: the session reads them, and answers with 1 and 0, so nothing can be compared." if truths else
                       "The options are not text." if not texts else "The options are not those that were asked for.")
            raise Wrong(mistake, call, got, (CUDA, right))
        names, options = submission.probe("normalized", got)
        if names != [CUDA, CPU] or options[0] != right:
            raise Wrong("ONNX Runtime reads the pair otherwise.", call, (names, options), ([CUDA, CPU], [right, {}]))


def test_cuda_provider_refuses(submission):
    """cuda_provider raises ValueError for an unknown option and for a value that does not fit"""
    unknown = ["use_tf23", "cuda_mem_limit", "USE_TF32", "enable_cuda_graphs", "trt_fp16_enable", "has_user_compute_stream"]
    for name in unknown:
        raises(submission, "cuda_provider", (), {name: True}, ("ValueError",),
               f"{name} is no option in KINDS: handed on, it makes ONNX Runtime go to the CPU.", [name])
    values = [("use_tf32", "0", "a string that is not empty is true"), ("use_tf32", 0, "0 is no bool"), ("enable_cuda_graph", 1, "1 is no bool"), ("prefer_nhwc", None, "None is no bool"),
              ("gpu_mem_limit", True, "True is an int in Python, and 1 byte is no limit that anybody wants"), ("gpu_mem_limit", -1, "the number is below 0"),
              ("gpu_mem_limit", "2147483648", "text is no int"), ("gpu_mem_limit", 1.5e9, "a float is no int"), ("device_id", False, "False is an int in Python"),
              ("cudnn_conv_algo_search", "exhaustive", "the word is written in capitals"), ("cudnn_conv_algo_search", "E", "this is a part of a word"),
              ("cudnn_conv_algo_search", True, "this option takes a word"), ("arena_extend_strategy", 0, "this option takes a word"), ("arena_extend_strategy", "kNextPowerOf2", "there is no such word")]
    for name, value, why in values:
        raises(submission, "cuda_provider", (), {"cudnn_conv1d_pad_to_nc1d": True, name: value}, ("ValueError",), f"{value!r} does not fit {name}: {why}.", [name])


def test_unmet(submission):
    """unmet compares every option that was asked for with what the session has"""
    answer = {"device_id": "0", "use_tf32": "1", "enable_cuda_graph": "0", "prefer_nhwc": "0", "gpu_mem_limit": "18446744073709551615", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    all_three = {"TensorrtExecutionProvider": {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"}, CUDA: answer, CPU: {}}
    cases = [({}, {CUDA: answer, CPU: {}}, {}), ({"use_tf32": "1", "device_id": "0"}, {CUDA: answer, CPU: {}}, {}),
             ({"use_tf32": "0", "device_id": "0"}, {CUDA: answer, CPU: {}}, {"use_tf32": ("0", "1")}),
             ({"use_tf32": "0", "enable_cuda_graph": "1", "prefer_nhwc": "0"}, {CUDA: answer}, {"use_tf32": ("0", "1"), "enable_cuda_graph": ("1", "0")}),
             ({"cudnn_conv1d_pad_to_nc1d": "0"}, {CUDA: answer, CPU: {}}, {"cudnn_conv1d_pad_to_nc1d": ("0", None)}),
             ({"use_tf32": "0", "gpu_mem_limit": "1024"}, {CPU: {}}, {"use_tf32": ("0", None), "gpu_mem_limit": ("1024", None)}),
             ({"use_tf32": "0"}, {CPU: {"use_tf32": "0"}}, {"use_tf32": ("0", None)}), ({}, {CPU: {}}, {}), ({"use_tf32": "0"}, {}, {"use_tf32": ("0", None)}),
             ({"use_tf32": "0", "enable_cuda_graph": "1"}, all_three, {"use_tf32": ("0", "1"), "enable_cuda_graph": ("1", "0")}),
             ({"cudnn_conv_algo_search": "HEURISTIC"}, all_three, {"cudnn_conv_algo_search": ("HEURISTIC", "EXHAUSTIVE")})]
    for options, have, right in cases:
        call = write_call("unmet", (options, have), {})
        got = submission.call("unmet", options, have)
        if not isinstance(got, dict) or {k: tuple(v) if isinstance(v, list) else v for k, v in got.items()} != right:
            if isinstance(got, dict) and set(got) < set(right):
                mistake = f"{', '.join(sorted(set(right) - set(got)))} is not as asked, and passes."
                if CUDA not in have:
                    mistake += " The session has no CUDA provider at all."
            elif isinstance(got, dict) and set(got) - set(right):
                mistake = f"{', '.join(sorted(set(got) - set(right)))} is as asked, or was not asked for."
            else:
                mistake = "unmet gives something else than the pairs (asked, have)."
            raise Wrong(mistake, call, got, right)


# ---- opening ----------------------------------------------------------------------------------------------------------

def without_cuda(submission):
    if CUDA in submission.probe("available"):
        pytest.skip("not run here: this onnxruntime has CUDA, so there is nothing to refuse")


def opened(submission, path, options, given, **more):
    return submission._ask("probe", "open_watched", (path, options, given), more, write_call("open_cuda", (path, options), more))["ok"]


def check_asked(asked, options, most, call):
    """Of the sessions that were opened: how many, and whether those that ask for CUDA ask for it first, with the options, and for the CPU after it."""
    if len(asked) > most:
        raise Wrong("Opening takes too many sessions.", call, f"{len(asked)} sessions", f"at most {most}")
    for providers in asked:
        if any(name == CUDA for name, _ in providers) and providers != [[CUDA, options], [CPU, {}]]:
            mistake = "The options are not handed on." if [name for name, _ in providers] == [CUDA, CPU] else "The session's providers are CUDA, then the CPU."
            raise Wrong(mistake, call, providers, [[CUDA, options], [CPU, {}]])


def test_open_cuda_refuses_the_cpu(submission, tmp_path):
    """open_cuda raises RuntimeError where there is no CUDA"""
    without_cuda(submission)
    model = mlp(tmp_path, 1)
    for options in ({}, {"use_tf32": "0"}):
        call = write_call("open_cuda", (model.path, options), {})
        session, error, _, asked = opened(submission, model.path, options, None)
        if error is None:
            raise Wrong("There is no CUDA here, and a session came all the same: the silent CPU.", call, (submission.probe("facts", session) or {}).get("providers"),
                        f"RuntimeError that names {CUDA}")
        judge_error(error, ("RuntimeError",), "open_cuda refuses with another exception.", [CUDA], call)
        check_asked(asked, options, 1, call)


def test_open_cuda_falls_back(submission, tmp_path):
    """open_cuda with fallback=True warns, and gives a session on the CPU"""
    without_cuda(submission)
    model = mlp(tmp_path, 2)
    for options, logid in (({}, "first"), ({"use_tf32": "0", "enable_cuda_graph": "1"}, "second")):
        given = submission.probe("settings", logid, 1)
        call = write_call("open_cuda", (model.path, options), {"settings": "SessionOptions", "fallback": True})
        session, error, warned, asked = opened(submission, model.path, options, given, fallback=True)
        if error:
            judge_error(error, (), "A fall-back was allowed, and open_cuda raised.", [], call)
        facts = submission.probe("facts", session)
        if facts is None:
            raise Wrong("open_cuda returns a session.", call, session, "an ort.InferenceSession")
        if facts["providers"] != [CPU]:
            raise Wrong("The fall-back runs on the CPU alone.", call, facts["providers"], [CPU])
        if not any(is_ours and CUDA in text for is_ours, text in warned):
            raise Wrong("The fall-back is silent: nobody hears that the service runs on the CPU. ONNX Runtime's own UserWarning is not the service's.", call,
                        [text for is_ours, text in warned if is_ours] or "no RuntimeWarning", f"a RuntimeWarning that names {CUDA}")
        if (facts["logid"], facts["threads"]) != (logid, 1):
            raise Wrong("The session does not have the settings that were given.", call, {k: facts[k] for k in ("logid", "threads")}, {"logid": logid, "threads": 1})
        check_asked(asked, options, 2, call)
        feeds = model.feeds(3)
        if np.abs(submission.probe("run_plain", session, feeds)[0] - model.compute(feeds)[0]).max() > TOLERANCE:
            raise Wrong("The session does not compute the model.", call)


def test_open_cuda_lets_errors_through(submission, tmp_path):
    """open_cuda does not hide what ONNX Runtime says of a broken model"""
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"this is no model")
    call = write_call("open_cuda", (str(path), {}), {"fallback": True})
    session, error, _, _ = opened(submission, str(path), {}, None, fallback=True)
    if error is None:
        raise Wrong("The file is no model, and nothing was raised.", call, session, "InvalidProtobuf")
    if error[0] not in ("InvalidProtobuf", "InvalidGraph", "Fail"):
        judge_error(error, ("InvalidProtobuf",), "ONNX Runtime's own error for a broken file is hidden behind another.", [], call)


# ---- the plan ---------------------------------------------------------------------------------------------------------

def test_plan(submission, tmp_path):
    """plan gives every tensor's fixed shape and dtype"""
    models = [mlp(tmp_path, 3), mlp(tmp_path, 4, batch="n", size=1, source="pixels", target="scores"), mlp(tmp_path, 5, batch=6, size=6), tokens(tmp_path, 6),
              tokens(tmp_path, 7, batch=1, length=1), doubles(tmp_path)]
    for model in models:
        call = f"plan(session, {', '.join(f'{k}={v}' for k, v in model.sizes.items())})  ({model})"
        try:
            got = submission._ask("probe", "planned", (plain(submission, model), model.sizes), {}, call)["ok"]
        except Raised as error:
            if error.kind == "NotImplementedError":
                raise Wrong("plan is not written yet.", call, error.text) from None
            raise Wrong(f"plan raised {error.kind}.", call, error.text) from None
        for side, entries in (("inputs", model.inputs), ("outputs", model.outputs)):
            right = [(name, model.shape(dims), "tuple", dtype) for name, dims, dtype in entries]
            if not isinstance(got, dict) or got.get(side) != right:
                names = [e[0] for e in got.get(side, [])] if isinstance(got, dict) else None
                mistake = f"The {side} are not those of the model, in its order." if names != [e[0] for e in right] else f"The {side} have another shape or dtype."
                raise Wrong(mistake, call, got.get(side) if isinstance(got, dict) else got, right)


def test_plan_refuses(submission, tmp_path):
    """plan raises ValueError for a dimension without a size, and for a size without a dimension"""
    cases = [(mlp(tmp_path, 8), {}, ["x"], "The batch has no size: buffers cannot be fixed."),
             (tokens(tmp_path, 9), {"batch": 3}, ["ids"], "The length has no size: buffers cannot be fixed."),
             (doubles(tmp_path), {"n": 3}, ["twice"], "An output has a dimension of its own, and no size is given for it."),
             (unnamed(tmp_path), {}, ["signal"], "A dimension without a name cannot be given a size."),
             (mlp(tmp_path, 10), {"batch": 3, "bacth": 4}, ["bacth"], "No tensor has a dimension of this name: a typing error, and another size stays."),
             (mlp(tmp_path, 11, batch=6, size=6), {"batch": 3}, ["batch"], "The model's batch is fixed, and the size that was asked for is not used.")]
    for model, sizes, words, mistake in cases:
        raises(submission, "plan", (plain(submission, model),), sizes, ("ValueError",), f"{mistake} ({model})", words)


# ---- buffers and runs -------------------------------------------------------------------------------------------------

def test_replay_computes(submission, tmp_path):
    """A Replay gives the model's outputs for every feed, whatever the arrays' layout in memory"""
    for model in (mlp(tmp_path, 12), mlp(tmp_path, 13, batch=6, size=6, source="pixels"), tokens(tmp_path, 14), doubles(tmp_path)):
        replay, _ = make(submission, model)
        feeds = [model.feeds(seed) for seed in (1, 2, 3)]
        feeds[1] = {name: np.asfortranarray(array) for name, array in feeds[1].items()}
        feeds[2] = dict(reversed([(name, np.repeat(array, 2, axis=-1)[..., ::2]) for name, array in feeds[2].items()]))
        for given, entry in zip(feeds, use(submission, replay, *(("call", f) for f in feeds))):
            call = f"replay({', '.join(f'{k}: {a.shape} {a.dtype}' for k, a in given.items())})  ({model})"
            got = fine(entry, call)
            if isinstance(got, Opaque) or got is None:
                raise Wrong("The answer is not a dict from each output's name to a NumPy array.", call, got)
            verify(model, given, got, call)
            if not entry["unchanged"]:
                raise Wrong("The caller's arrays are changed.", call)


def test_replay_buffers(submission, tmp_path):
    """A Replay binds one OrtValue for each tensor, once, and never another"""
    for model in (mlp(tmp_path, 15), tokens(tmp_path, 16)):
        replay, making = make(submission, model)
        call = f"Replay(session, plan)  ({model})"
        names = [name for name, _, _ in model.inputs + model.outputs]
        values = submission.probe("values_of", replay)
        if not isinstance(values, dict) or set(values) != set(names):
            raise Wrong("The attribute values is a dict from each tensor's name to its OrtValue.", call, values, names)
        for name, dims, _ in model.inputs + model.outputs:
            if values[name][1:] != ("cpu", model.shape(dims)):
                raise Wrong(f"The OrtValue of {name} has another shape or device.", call, values[name][1:], ("cpu", model.shape(dims)))
        made = sum(event[0] == "value" for event in making)
        if made > len(names):
            raise Wrong("More OrtValues are made than there are tensors.", call, f"{made} made", f"{len(names)}: one each")
        for n, entry in enumerate(use(submission, replay, *(("call", model.feeds(seed)) for seed in range(4)))):
            call = f"call {n + 1} of a Replay  ({model})"
            fine(entry, call)
            runs = [event for event in entry["events"] if event[0] == "run"]
            if len(runs) != 1:
                raise Wrong("One call is one run.", call, f"{len(runs)} runs", "1 run")
            bound = runs[0][2]
            if bound is None:
                raise Wrong("The run does not go through a binding: every input and output is copied, and a CUDA graph cannot be used.", call, "session.run", "run_with_iobinding")
            later = [event for event in entry["events"] if event[0] in ("value", "bind")]
            if any(event[0] == "value" for event in later):
                raise Wrong("A call makes a new OrtValue: a graph goes on with the old one, and on the device it is an allocation.", call, later, "none after construction")
            if later:
                raise Wrong("A call binds again: a captured graph does not look at the binding any more.", call, later, "none after construction")
            for side, entries in (("input", model.inputs), ("output", model.outputs)):
                for name, _, _ in entries:
                    how, address = bound.get(f"{side} {name}", ("nothing", None))
                    if how == "array":
                        raise Wrong(f"{name} is bound by bind_cpu_input: on a GPU this array is copied when it is bound, and later contents are not seen.", call, how, "the OrtValue of values")
                    if how == "nothing":
                        raise Wrong(f"{name} has no buffer of its own: ONNX Runtime allocates one, and nobody says where.", call, "no address", "the OrtValue of values")
                    if address != values[name][0]:
                        raise Wrong(f"{name} is bound to other memory than the OrtValue in values.", call, "another address", "the address of values")
            if not {event[1] for event in entry["events"] if event[0] == "update"} >= {values[name][0] for name, _, _ in model.inputs}:
                raise Wrong("The buffers are filled past ONNX Runtime (through a NumPy view): that works on a CPU only.", call, "no update_inplace", "update_inplace of each input's OrtValue")
        if submission.probe("values_of", replay) != values:
            raise Wrong("values holds other memory than before the calls.", call)


def test_replay_warms_up(submission, tmp_path):
    """A Replay runs as often as asked when it is made, with zeros"""
    for model in (tokens(tmp_path, 17), mlp(tmp_path, 18)):
        for more, count in (({}, 2), ({"warm_up": 1}, 1), ({"warm_up": 5}, 5), ({"warm_up": 0}, 0)):
            call = write_call("Replay", (), {"session": "session", "plan": "plan", **more})
            _, making = make(submission, model, call=call, **more)
            runs = [event for event in making if event[0] == "run"]
            if len(runs) != count:
                mistake = "The first user pays for the capture: nothing was run before." if not runs else "The number of warm-up runs is not the one that was asked for."
                raise Wrong(mistake, call, f"{len(runs)} runs", f"{count} runs")
            for run in runs:
                if run[2] is None or set(run[2]) != {f"input {n}" for n, _, _ in model.inputs} | {f"output {n}" for n, _, _ in model.outputs}:
                    raise Wrong("A warm-up run does not use the buffers, so it captures a graph of others.", call, run[2])
                rubbish = [name for name, zero in run[3].items() if not zero]
                if rubbish:
                    raise Wrong(f"A warm-up run reads {', '.join(rubbish)} as fresh memory happened to be.", call, "not zeros", "zeros: update_inplace before the run")


def test_replay_waits_in_finish(submission, tmp_path):
    """start does not wait for the device; finish waits, then copies"""
    model = mlp(tmp_path, 19)
    replay, _ = make(submission, model)
    feeds = [model.feeds(seed) for seed in (4, 5)]
    first, second, third = use(submission, replay, ("start", feeds[0]), ("finish", None), ("call", feeds[1]))
    for entry, call in ((first, "start"), (second, "finish"), (third, "the call")):
        fine(entry, call)
    if first["got"] is not None:
        raise Wrong("start returns something: the result is not there yet.", "start", first["got"], "None")
    runs = [event for event in first["events"] if event[0] == "run"]
    if len(runs) != 1:
        raise Wrong("start does not run the model: the work belongs there, so that the host can do something else meanwhile.", "start", f"{len(runs)} runs", "1 run")
    if runs[0][1]:
        raise Wrong("start waits for the device: the run has no option disable_synchronize_execution_providers.", "start", "a run that is waited for", "the run option at \"1\"")
    for entry, call in ((second, "finish"), (third, "replay(feeds)")):
        order = [event[0] for event in entry["events"] if event[0] in ("run", "synchronize", "copy")]
        unwaited = any(event[0] == "run" and not event[1] for event in entry["events"]) or call == "finish"
        if call == "finish" and "run" in order:
            raise Wrong("finish runs the model again.", call, order, "synchronize, copy")
        if unwaited and "synchronize" not in order:
            raise Wrong("Nothing waits for the device: the copy runs on another stream than the model, and may be first.", call, order, "synchronize_outputs(), then the copy")
        if unwaited and "copy" in order[:order.index("synchronize")]:
            raise Wrong("The outputs are copied before the wait.", call, order, "synchronize_outputs(), then the copy")
    verify(model, feeds[0], second["got"], "start then finish")
    verify(model, feeds[1], third["got"], "replay(feeds)")


def test_replay_results_are_the_callers(submission, tmp_path):
    """A result does not change with the next run"""
    model = tokens(tmp_path, 20)
    replay, _ = make(submission, model)
    feeds = [model.feeds(seed) for seed in (6, 7, 8)]
    done = use(submission, replay, ("call", feeds[0]), ("start", feeds[1]), ("finish", None), ("call", feeds[2]))
    for given, entry in zip((feeds[0], feeds[1], feeds[2]), (done[0], done[2], done[3])):
        verify(model, given, fine(entry, "replay(feeds)"), "replay(feeds)")
        if any(not np.array_equal(entry["kept"][name], entry["got"][name]) for name in entry["got"]):
            raise Wrong("A kept result changed with a later run: it is a view of the buffer.", "a = replay(one); b = replay(two)", "a is now b", "arrays of the caller's own")


def test_replay_refuses(submission, tmp_path):
    """start refuses arrays that do not fit, runs nothing then, and goes on afterwards"""
    model = tokens(tmp_path, 21)
    good, later = model.feeds(9), model.feeds(10)
    ids, weight = good["ids"], good["weight"]
    bad = [({"ids": ids}, ("ValueError",), ["weight"], "An input is missing: the buffer still holds the last request's."),
           ({**good, "mask": weight}, ("ValueError",), ["mask"], "An input is unknown, and nobody says so."),
           ({"ids": ids[:2], "weight": weight}, ("ValueError",), ["ids"], "Fewer rows than planned."),
           ({"ids": ids, "weight": weight.T}, ("ValueError",), ["weight"], "The same number of elements in another shape: update_inplace takes it, and mixes the rows."),
           ({"ids": ids, "weight": weight.reshape(-1)}, ("ValueError",), ["weight"], "The same number of elements in another shape: update_inplace takes it."),
           ({"ids": ids[..., None], "weight": weight}, ("ValueError",), ["ids"], "The same number of elements, with a dimension of 1 more: that is another shape than planned."),
           ({"ids": ids, "weight": weight.astype(weight.dtype.newbyteorder())}, ("TypeError",), ["weight"], "The array has the other byte order: its dtype is called float32 too, and is another."),
           ({"ids": ids.astype(np.int32), "weight": weight}, ("TypeError",), ["ids"], "A narrower type: update_inplace takes it, and reads past its end."),
           ({"ids": ids, "weight": weight.astype(np.float64)}, ("TypeError",), ["weight"], "A wider type: update_inplace takes it, and cuts it."),
           ({"ids": ids, "weight": weight.view(np.int32)}, ("TypeError",), ["weight"], "Another type of the same size: update_inplace takes it, bit by bit.")]
    for feeds, kinds, words, mistake in bad:
        replay, _ = make(submission, model)
        call = f"start({', '.join(f'{k}: {a.shape} {a.dtype}' for k, a in feeds.items())})  ({model})"
        refused, started, finished = use(submission, replay, ("start", feeds), ("start", later), ("finish", None))
        if refused["error"] is None:
            raise Wrong(mistake, call, "no error", f"{kinds[0]} that names {words[0]}")
        judge_error(refused["error"], kinds, mistake, words, call)
        if any(event[0] == "run" for event in refused["events"]):
            raise Wrong("The model ran before the arrays were refused.", call, "1 run", "none")
        fine(started, "a good start after a refused one")
        verify(model, later, fine(finished, "finish"), "a good start after a refused one")


def test_replay_keeps_order(submission, tmp_path):
    """start twice, or finish with nothing started, is a RuntimeError"""
    model = mlp(tmp_path, 22)
    replay, _ = make(submission, model)
    one, two = model.feeds(11), model.feeds(12)
    done = use(submission, replay, ("finish", None), ("start", one), ("start", two), ("finish", None), ("finish", None), ("call", two), ("finish", None))
    for place, mistake, call in ((0, "There is nothing to finish, and an answer came: it is that of the warm-up.", "finish()"),
                                 (2, "The inputs of a run in flight are overwritten.", "start(one), start(two)"),
                                 (4, "The same run is finished twice.", "start, finish, finish"), (6, "A call leaves something to finish.", "replay(two), finish()")):
        if done[place]["error"] is None:
            raise Wrong(mistake, call, done[place]["got"], "RuntimeError")
        judge_error(done[place]["error"], ("RuntimeError",), mistake, [], call)
    fine(done[1], "start(one)")
    verify(model, one, fine(done[3], "start(one), start(two), finish()"), "start(one), start(two), finish()")
    verify(model, two, fine(done[5], "replay(two)"), "replay(two)")


# ---- with a GPU -------------------------------------------------------------------------------------------------------

def on_cuda(submission):
    if CUDA not in submission.probe("available"):
        pytest.skip("not run here: this onnxruntime has no CUDAExecutionProvider (the package onnxruntime-gpu has)")


def open_on_gpu(submission, model, options):
    call = write_call("open_cuda", (model.path, options), {})
    session, error, _, asked = opened(submission, model.path, options, None)
    if error:
        judge_error(error, (), "open_cuda raised, with a GPU.", [], call)
    facts = submission.probe("facts", session)
    if facts is None or facts["providers"][:1] != [CUDA]:
        raise Wrong("The session is not on CUDA.", call, facts and facts["providers"], [CUDA, CPU])
    check_asked(asked, options, 1, call)
    return session, facts


@pytest.mark.gpu("onnxruntime")
def test_gpu_options_arrive(submission, tmp_path):
    """On the GPU: the session has the options that were asked for"""
    on_cuda(submission)
    model = mlp(tmp_path, 23)
    for wanted in ({}, {"use_tf32": False}, {"use_tf32": True, "prefer_nhwc": True, "cudnn_conv_algo_search": "HEURISTIC"},
                   {"enable_cuda_graph": True, "gpu_mem_limit": 2**31, "arena_extend_strategy": "kSameAsRequested"}):
        options = submission.call("cuda_provider", **wanted)[1]
        _, facts = open_on_gpu(submission, model, options)
        have = facts["options"][CUDA]
        wrong = {name: (text, have.get(name)) for name, text in options.items() if have.get(name) != text}
        if wrong:
            raise Wrong("The session has other options than asked for.", write_call("open_cuda", (model.path, options), {}), wrong, "as asked")


@pytest.mark.gpu("onnxruntime")
def test_gpu_refuses_an_unknown_option(submission, tmp_path):
    """On the GPU: an option that CUDA does not have ends in an error, never in a silent CPU"""
    on_cuda(submission)
    model = mlp(tmp_path, 24)
    call = write_call("open_cuda", (model.path, {"use_tf23": "0"}), {})
    session, error, _, _ = opened(submission, model.path, {"use_tf23": "0"}, None)
    if error is None:
        raise Wrong("ONNX Runtime went to the CPU for an option that it does not know, and open_cuda did not notice.", call, submission.probe("facts", session)["providers"], "RuntimeError")
    judge_error(error, ("RuntimeError",), "open_cuda refuses with another exception.", [], call)
    session, error, warned, _ = opened(submission, model.path, {"use_tf23": "0"}, None, fallback=True)
    if error or submission.probe("facts", session)["providers"] != [CPU] or not any(ours for ours, _ in warned):
        raise Wrong("With fallback=True the same ends in a RuntimeWarning and a session on the CPU.", call, error or warned, f"a warning, and {[CPU]}")


@pytest.mark.gpu("onnxruntime")
@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "CUDA graph"])
def test_gpu_replay(submission, tmp_path, graph):
    """On the GPU: a Replay keeps its buffers on the device, and gives the model's outputs with and without a CUDA graph"""
    on_cuda(submission)
    for model in (mlp(tmp_path, 25), tokens(tmp_path, 26)):
        session, _ = open_on_gpu(submission, model, {"use_tf32": "0", "enable_cuda_graph": str(int(graph))})
        replay, _ = make(submission, model, session)
        values = submission.probe("values_of", replay)
        if not isinstance(values, dict) or {v[1] for v in values.values()} != {"cuda"}:
            raise Wrong("The session is on CUDA, and buffers are on the CPU: each run copies them.", "Replay(session, plan)", values, "OrtValues on cuda")
        feeds = [model.feeds(seed) for seed in (13, 14, 15)]
        done = use(submission, replay, ("call", feeds[0]), ("start", feeds[1]), ("finish", None), ("call", feeds[2]))
        for given, entry in zip(feeds, (done[0], done[2], done[3])):
            verify(model, given, fine(entry, "replay(feeds)"), f"replay(feeds) on the GPU, enable_cuda_graph={graph:d}  ({model})")
        if submission.probe("values_of", replay) != values:
            raise Wrong("The buffers moved.", "replay(feeds)")
