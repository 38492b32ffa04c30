"""Grader of 03_tensorrt/ex03_latency_floor. The first half runs on the counted device, the second needs a GPU."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course import ROOT
from course.grading import Wrong, show

EXERCISE = "03_tensorrt/ex03_latency_floor"
PROBE = "probe_ex03.py"
LIMITS = {"call_seconds": 150.0, "memory_gib": 8.0}
DIGITS = ROOT / "models/digits_mlp/digits_mlp.onnx"
EXACT = 1e-4          # absolute, half one: float32 against float64, numbers near 1
TOLERANCE = 2e-3      # absolute, half two; the grader's engines compute in float32, without TF32
RATIO = 1.10          # NumPy to NumPy over the raw replay
LAYERS = 32
gpu = pytest.mark.gpu("tensorrt", "pycuda")


# ---- half one: the counted device -------------------------------------------------------------------------------------

def batches(features, counts, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((n, features)).astype(np.float32) for n in counts]


def complain(error, call):
    """An exception where none was expected."""
    if error["error"] == "NotImplementedError":
        raise Wrong(f"{call.partition('(')[0]} is not written yet.", call=call, got=error["text"])
    at = f" (your {error['where']})" if error["where"] else ""
    if error["error"] == "DeviceError":
        raise Wrong(f"The device refused{at}: {error['text']}", call=call)
    raise Wrong(f"Your code raised {error['error']}{at}.", call=call, got=error["text"])


def serve(submission, counts, features=12, classes=4, max_rows=8, seed=0, given=None, **more):
    """What the submission's loop did with batches of so many rows."""
    given = batches(features, counts, seed) if given is None else given
    found = submission.probe("serve", features, classes, max_rows, seed, given, **more)
    if "missing" in found:
        raise Wrong(f"Your answer defines no class named {found['missing']}.")
    if "failed" in found:
        complain(found["failed"], found["during"])
    return found


def check_result(done, want, call, before=None):
    if "error" in done:
        complain(done, call)
    got = done["ok"]
    if not isinstance(got, np.ndarray) or got.dtype != np.float32 or got.shape != want.shape:
        raise Wrong("A call has to return a float32 array of shape (rows, classes).", call=call, got=show(got), expected=f"shape {want.shape}, float32")
    if not np.isfinite(got).all() or np.abs(got - want).max() > EXACT:
        mistake = "The numbers are wrong."
        if np.isnan(got).any():
            mistake = "There is NaN where nothing was computed yet: was the result read before the stream was waited for, or for other rows?"
        elif before is not None and before.shape == got.shape and np.abs(got - before).max() <= EXACT:
            mistake = "That is the result of the call before: it was read before the stream was waited for."
        raise Wrong(mistake, call=call, got=show(got), expected=f"{show(want.astype('f4'))} within {EXACT}")


def check_results(found, counts, what="loop"):
    before = None
    for n, (done, want) in enumerate(zip(found["calls"], found["expected"])):
        check_result(done, want, f"{what}(<{counts[n]} rows>), call {n + 1} of rows {list(counts)}", before)
        before = want


@pytest.mark.parametrize("features, classes, max_rows, rows, seed", [(12, 4, 8, 3, 0), (5, 9, 1, 1, 1), (40, 2, 16, 16, 2)],
                         ids=["3 of 8 rows", "1 row", "16 rows"])
def test_results(submission, features, classes, max_rows, rows, seed):
    """One shape, several batches: the right numbers for each"""
    counts = [rows] * 4
    check_results(serve(submission, counts, features, classes, max_rows, seed), counts)


@pytest.mark.parametrize("counts", [(2, 5, 5, 1, 8, 8, 3), (8, 1, 8, 1, 8), (4, 4, 2, 2, 4, 4)], ids=["seven calls", "to and fro", "back to an earlier shape"])
def test_shapes_change(submission, counts):
    """The number of rows changes from call to call, and comes back"""
    check_results(serve(submission, counts, seed=3), counts)


def steady(done, rows, features, classes, call):
    """A call of the same shape as the one before costs one launch and one wait."""
    c = done["counts"]

    def wrong(mistake, expected):
        raise Wrong(mistake, call=call, got=f"the host's calls: {'; '.join(done['lines']) or 'none'}", expected=expected)

    if c["alloc"] or c["alloc_pinned"]:
        wrong(f"A call of the same shape allocates {c['alloc'] + c['alloc_pinned']} times: keep the memory.", "0 allocations")
    if c["free"]:
        wrong(f"A call of the same shape frees {c['free']} times.", "0 frees")
    if c["pageable"]:
        wrong("A copy of ordinary (pageable) memory makes the host wait each time: use pinned memory.", "no such copy")
    if c["capture"]:
        wrong("A call of the same shape captures again: a capture is kept until the shape changes.", "0 captures")
    if c["kernel"]:
        wrong("The host enqueues the run itself: let the graph do it.", "1 graph launch, and no enqueue")
    if c["copy_in"] or c["copy_out"]:
        wrong("The host enqueues copies of its own: the contract wants both copies inside the graph.", "1 graph launch, and no copy")
    if c["graph_launch"] != 1:
        wrong(f"There are {c['graph_launch']} graph launches in one call.", "1 graph launch")
    if c["synchronize"] != 1:
        wrong("Nobody waits for the result." if not c["synchronize"] else f"The host waits {c['synchronize']} times.", "1 wait")
    if c["bytes_in"] != 4 * rows * features:
        wrong(f"The copy in has {c['bytes_in']} bytes, and this batch has {4 * rows * features}: copy what is there, not what fits.", f"{4 * rows * features} bytes")
    if c["bytes_out"] != 4 * rows * classes:
        wrong(f"The copy out has {c['bytes_out']} bytes, and this result has {4 * rows * classes}.", f"{4 * rows * classes} bytes")
    if c["kernels"] != 2:
        wrong(f"The graph runs {c['kernels']} kernels; one run of the program has 2.", "2 kernels")


@pytest.mark.parametrize("rows, features, classes, max_rows", [(3, 12, 4, 8), (8, 12, 4, 8), (1, 7, 3, 5)], ids=["3 of 8 rows", "8 of 8 rows", "1 of 5 rows"])
def test_steady_state(submission, rows, features, classes, max_rows):
    """A call of the same shape as before: 0 allocations, 1 graph launch, 1 wait, and exactly the bytes of the batch"""
    counts = [rows] * 5
    found = serve(submission, counts, features, classes, max_rows)
    check_results(found, counts)
    for n, done in enumerate(found["calls"][1:], 2):
        steady(done, rows, features, classes, f"call {n}, with {rows} rows as before")


def test_steady_again_after_a_change(submission):
    """After a change of shape the second call is steady again"""
    counts = (2, 2, 6, 6, 2, 2)
    found = serve(submission, counts)
    check_results(found, counts)
    for n in (1, 3, 5):
        steady(found["calls"][n], counts[n], 12, 4, f"call {n + 1} of rows {list(counts)}")


def test_cost_of_a_change(submission):
    """A change of shape: at most one capture and two more runs, no allocation of buffers"""
    counts = (4, 2, 7, 4, 1)
    found = serve(submission, counts)
    check_results(found, counts)
    for n, done in enumerate(found["calls"]):
        c, call = done["counts"], f"call {n + 1} of rows {list(counts)}"
        if c["capture"] > 1:
            raise Wrong(f"One change of shape captures {c['capture']} times.", call=call, expected="at most 1 capture")
        if c["kernels"] > 6:
            raise Wrong(f"One call runs the program {c['kernels'] // 2} times.", call=call, expected="at most 3 runs: twice outside the graph, once in it")
        if n and (c["alloc_pinned"] or done["buffers"]):
            raise Wrong("A change of shape allocates buffers: allocate once for max_rows, and use the first part.", call=call,
                        got="; ".join(done["lines"]), expected="no new buffers")


def test_memory(submission):
    """Memory for one input and one output of max_rows, on the device and pinned, and not more"""
    counts, limit = (1, 8, 3, 8, 1), 4 * 8 * (12 + 4)
    found = serve(submission, counts)
    check_results(found, counts)
    for n, done in enumerate(found["calls"]):
        for kind in ("device", "pinned"):
            if done["live"][kind] > limit:
                raise Wrong(f"There is more {kind} memory than one input and one output of max_rows need.", call=f"after call {n + 1} of rows {list(counts)}",
                            got=f"{done['live'][kind]} bytes", expected=f"at most {limit} bytes")
        if done["live"]["graphs"] > len(set(counts[:n + 1])):
            raise Wrong("Graphs pile up: free the old one when you capture again.", call=f"after call {n + 1} of rows {list(counts)}",
                        got=f"{done['live']['graphs']} graphs", expected=f"at most {len(set(counts[:n + 1]))}, one for each shape")


def test_caller_may_keep(submission):
    """A result that was returned stays what it was, and the batch is not changed"""
    counts = (3,) * 40 + (5, 3)
    found = serve(submission, counts)
    check_results(found, counts)
    if found["overwritten"]:
        raise Wrong("A later call changed a result that was returned before: it is the pinned memory itself. Return a copy.",
                    call=f"result of call {found['overwritten'][0] + 1} of {len(counts)}, looked at again at the end", got="other numbers", expected="the same numbers")
    changed = [n for n, done in enumerate(found["calls"], 1) if done["changed_input"]]
    if changed:
        raise Wrong("The caller's batch was changed.", call=f"call {changed[0]}")


def test_caller_may_refill(submission):
    """A caller may fill its own array anew and pass it again"""
    counts = (3, 3, 3, 3)
    found = serve(submission, counts, seed=7, layout="the same array, filled anew")
    check_results(found, counts)


@pytest.mark.parametrize("layout", ["columns first", "every second column", "rows backwards", "read-only"])
def test_layouts(submission, layout):
    """Batches that do not lie in memory row by row"""
    counts = (4, 4, 2)
    found = serve(submission, counts, seed=5, layout=layout)
    for n, (done, want) in enumerate(zip(found["calls"], found["expected"])):
        call = f"loop(<{counts[n]} rows, {layout}>)"
        if "ok" in done and isinstance(done["ok"], np.ndarray) and done["ok"].shape == want.shape and not np.abs(done["ok"] - want).max() <= EXACT:
            raise Wrong("A batch that is not contiguous gives wrong numbers: its bytes were taken in the wrong order.", call=call, got=show(done["ok"]),
                        expected=show(want.astype("f4")))
        check_result(done, want, call)


BAD = {"17 rows": ((17, 12), "f4"), "no row": ((0, 12), "f4"), "11 features": ((3, 11), "f4"), "float64": ((3, 12), "f8"), "int32": ((3, 12), "i4"),
       "one dimension": ((12,), "f4"), "three dimensions": ((1, 1, 12), "f4")}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(submission, what):
    """What the program cannot take: ValueError, and the loop goes on as if nothing had happened"""
    bad = np.zeros(*BAD[what])
    first, second = batches(12, (3, 3), 7)
    found = serve(submission, (3, 0, 3), given=[first, bad, second], max_rows=16)
    call = f"loop(<array {bad.shape} {bad.dtype}>)"
    check_result(found["calls"][0], found["expected"][0], "loop(<3 rows>)")
    done = found["calls"][1]
    if "error" not in done:
        raise Wrong(f"Given {what}, the loop has to raise ValueError.", call=call, got=show(done["ok"]), expected="ValueError")
    if "ValueError" not in done["bases"]:
        raise Wrong(f"Given {what}, the loop has to raise ValueError.", call=call, got=f"{done['error']}: {done['text']}", expected="ValueError")
    after = "loop(<3 rows>), after the same before and a batch that was refused"
    check_result(found["calls"][2], found["expected"][2], after)
    steady(found["calls"][2], 3, 12, 4, after)


def test_close(submission):
    """After close nothing is left on the device"""
    for counts in ((3, 3, 8), (2,), ()):
        found = serve(submission, counts)
        check_results(found, counts)
        if "error" in found["closed"]:
            complain(found["closed"], "loop.close()")
        left = {name: number for name, number in found["left"].items() if number}
        if left:
            raise Wrong("close() leaves something behind.", call=f"loop.close() after {len(counts)} calls", got=f"{left} (bytes; graphs: how many)", expected="nothing")


def test_moods(submission):
    """A device that runs ahead at random moments: the same numbers"""
    counts = (3, 3, 6, 6, 3)
    for mood in range(6):
        check_results(serve(submission, counts, seed=mood, mood=mood), counts, f"device of mood {mood}: loop")


# ---- half two: TensorRT -----------------------------------------------------------------------------------------------

def save(path, nodes, features, classes, weights):
    graph = helper.make_graph(nodes, "made_by_the_grader", [helper.make_tensor_value_info("given:0", TensorProto.FLOAT, ["n", features])],
                              [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes])], [numpy_helper.from_array(w, n) for n, w in weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return str(path)


def small(path, seed=11, features=48, classes=6):
    """A network of two layers, and the same in float64."""
    draw = np.random.default_rng(seed)
    w1, w2 = (draw.normal(0, a**-0.5, (a, b)).astype("f4") for a, b in ((features, 32), (32, classes)))
    save(path, [helper.make_node("MatMul", ["given:0", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
                helper.make_node("MatMul", ["r", "w2"], ["logits"]), helper.make_node("Softmax", ["logits"], ["scores"], axis=-1)],
         features, classes, [("w1", w1), ("w2", w2)])

    def oracle(x):
        logits = np.maximum(x.astype("f8") @ w1.astype("f8"), 0) @ w2.astype("f8")
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    return oracle


def tower(path, layers=LAYERS, width=256):
    """Many thin layers: launches, not arithmetic, are its time. Its outputs are near 1."""
    draw = np.random.default_rng(4)
    weights = [(f"w{n}", draw.normal(0, (2 / width) ** 0.5, (width, width)).astype("f4")) for n in range(layers)]
    nodes, last = [], "given:0"
    for name, _ in weights:
        nodes += [helper.make_node("MatMul", [last, name], [f"{name}_p"]), helper.make_node("Relu", [f"{name}_p"], [f"{name}_r"])]
        last = f"{name}_r"
    nodes[-1].output[0] = "scores"
    save(path, nodes, width, width, weights)

    def oracle(x):
        x = x.astype("f8")
        for _, w in weights:
            x = np.maximum(x @ w.astype("f8"), 0)
        return x
    return oracle


@pytest.fixture(scope="module")
def opened(submission, tmp_path_factory):
    """opened(): (key of the submission's loop on the grader's two-layer engine for 1 to 32 rows, its oracle, the engine's path)."""
    made = {}

    def get(model=small, most=32, features=48):
        name = model.__name__
        if name not in made:
            folder = tmp_path_factory.mktemp("engines")
            oracle = model(folder / "m.onnx")
            submission.probe("gpu_build", str(folder / "m.onnx"), str(folder / "m.engine"), {"given:0": [(1, features), (max(1, most // 4), features), (most, features)]})
            done = submission.probe("gpu_open", name, str(folder / "m.engine"))
            if "error" in done:
                complain(done, "EngineLoop('m.engine')")
            made[name] = name, oracle, str(folder / "m.engine")
        return made[name]
    return get


def uniform(rows, features=48, seed=0):
    return np.random.default_rng(seed).random((rows, features), dtype="f4")


def run(submission, key, oracle, given, mistake="The numbers are wrong.", **more):
    """Calls the loop with each array and checks each result; returns what the probe found."""
    found = submission.probe("gpu_calls", key, given, **more)
    for n, (x, done) in enumerate(zip(given, found["calls"])):
        call, want = f"loop(<array {x.shape} float32>), call {n + 1} of rows {[len(g) for g in given]}", oracle(x)
        if "error" in done:
            complain(done, call)
        got = done["ok"]
        if not isinstance(got, np.ndarray) or got.dtype != np.float32 or got.shape != want.shape:
            raise Wrong("A call has to return a float32 array of the engine's output shape.", call=call, got=show(got), expected=f"shape {want.shape}, float32")
        if not np.isfinite(got).all() or np.abs(got - want).max() > TOLERANCE:
            if n and got.shape == found["calls"][n - 1]["ok"].shape and np.abs(got - oracle(given[n - 1])).max() <= TOLERANCE:
                mistake += " That is the result of the call before: was it read before the stream was waited for, or was the new batch never copied?"
            raise Wrong(mistake, call=call, got=show(got), expected=f"{show(want.astype('f4'))} within {TOLERANCE}")
    return found


@gpu
@pytest.mark.parametrize("counts", [(1, 1, 1), (32, 32), (1, 32, 2, 32, 1, 31, 8, 8)], ids=["1 row", "32 rows", "changing rows"])
def test_gpu_results(submission, opened, counts):
    """On the GPU: the right numbers, also when the shape changes"""
    key, oracle, _ = opened()
    run(submission, key, oracle, [uniform(n, seed=i) for i, n in enumerate(counts)])


@gpu
def test_gpu_digits(submission, tmp_path):
    """On the GPU: the digits model over all held-out digits agrees with NumPy"""
    weights = {i.name: numpy_helper.to_array(i).astype("f8") for i in onnx.load(DIGITS).graph.initializer}
    data = np.load(DIGITS.parent / "heldout.npz")
    x = (data["images"].reshape(-1, 784) / 255).astype("f4")

    def oracle(x):
        logits = np.maximum(x @ weights["hidden.weight"].T + weights["hidden.bias"], 0) @ weights["logits.weight"].T + weights["logits.bias"]
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    engine = str(tmp_path / "digits.engine")
    submission.probe("gpu_build", str(DIGITS), engine, {"pixels": [(1, 784), (8, 784), (32, 784)]})
    done = submission.probe("gpu_open", "digits", engine)
    if "error" in done:
        complain(done, "EngineLoop('digits.engine')")
    run(submission, "digits", oracle, [x[i:i + 32] for i in range(0, len(x), 32)])
    done = submission.probe("gpu_close", "digits")
    if "error" in done:
        complain(done, "loop.close()")


@gpu
@pytest.mark.parametrize("layout", ["columns first", "every second column"])
def test_gpu_layouts(submission, opened, layout):
    """On the GPU: batches that do not lie in memory row by row"""
    key, oracle, _ = opened()
    run(submission, key, oracle, [uniform(4, seed=i) for i in range(3)], "A batch that is not contiguous gives wrong numbers.", layout=layout)


@gpu
def test_gpu_steady_state(submission, opened):
    """On the GPU: a call of the same shape has no execute_async_v3 and no allocation, only the graph"""
    key, oracle, _ = opened()
    found = run(submission, key, oracle, [uniform(8, seed=i) for i in range(5)])
    for n, done in enumerate(found["calls"][1:], 2):
        for name in ("execute_async_v3", "execute_v2", "execute_async_v2"):
            if name in done["trace"]:
                raise Wrong(f"A call of the same shape as before calls {name}: the graph should do that.", call=f"call {n} of 5, 8 rows each",
                            got=f"seen: {done['trace']}", expected="no enqueue: one graph launch")
        seen = [t for t in done["trace"] if t in ("mem_alloc", "pagelocked_empty", "pagelocked_zeros", "register_host_memory", "create_execution_context")]
        if seen:
            raise Wrong("A call of the same shape as before allocates.", call=f"call {n} of 5, 8 rows each", got=f"seen: {done['trace']}", expected="no allocation")


@gpu
def test_gpu_caller_may_keep(submission, opened):
    """On the GPU: a result that was returned stays what it was"""
    key, oracle, _ = opened()
    found = run(submission, key, oracle, [uniform(n, seed=i) for i, n in enumerate((4, 4, 4, 9, 4))])
    if found["overwritten"]:
        raise Wrong("A later call changed a result that was returned before: it is the pinned memory itself. Return a copy.",
                    call=f"result of call {found['overwritten'][0] + 1} of 5, looked at again at the end")


@gpu
@pytest.mark.parametrize("shape, dtype, why", [((33, 48), "f4", "a batch above the profile's maximum"), ((4, 47), "f4", "the wrong width"),
                                               ((4, 48), "f8", "float64"), ((0, 48), "f4", "an empty batch")],
                         ids=["batch 33", "47 features", "float64", "batch 0"])
def test_gpu_bad_input(submission, opened, shape, dtype, why):
    """On the GPU: what the engine cannot take is refused with ValueError, and the loop goes on"""
    key, oracle, _ = opened()
    good = uniform(4, seed=1)
    run(submission, key, oracle, [good])
    done = submission.probe("gpu_calls", key, [np.zeros(shape, dtype)])["calls"][0]
    if "error" not in done or "ValueError" not in done["bases"]:
        raise Wrong(f"Given {why}, the loop has to raise ValueError.", call=f"loop(<array {shape} {np.dtype(dtype)}>)",
                    got=show(done["ok"]) if "ok" in done else f"{done['error']}: {done['text']}", expected="ValueError")
    run(submission, key, oracle, [uniform(4, seed=2), good], "After a batch that was refused the next results are wrong.")


@gpu
def test_gpu_damaged_engine(submission, opened, tmp_path):
    """On the GPU: a file that is no engine is refused with ValueError"""
    opened()
    path = tmp_path / "broken.engine"
    path.write_bytes(b"no engine at all" * 64)
    done = submission.probe("gpu_open", "broken", str(path))
    if "error" not in done or "ValueError" not in done["bases"]:
        raise Wrong("A damaged engine file has to raise ValueError.", call="EngineLoop('broken.engine')",
                    got=f"{done.get('error', 'a loop')}: {done.get('text', '')}", expected="ValueError")


def lost(submission, call, work):
    before = submission.probe("gpu_free_bytes")
    work()
    gone = before - submission.probe("gpu_free_bytes")
    if gone > 32 * 2**20:
        raise Wrong("Device memory is lost: free old graphs, contexts and buffers.", call=call, got=f"{gone / 2**20:.0f} MiB less", expected="nothing less")


@gpu
def test_gpu_no_leak(submission, opened):
    """On the GPU: nothing grows, neither in steady calls nor when shapes alternate nor when loops come and go"""
    key, _, path = opened()
    one, two = uniform(1), uniform(32)
    submission.drive("gpu_repeat", key, [one, two], 20)
    lost(submission, "3,000 calls of one shape", lambda: submission.drive("gpu_repeat", key, [one], 3000))
    lost(submission, "400 calls, 1 and 32 rows in turns", lambda: submission.drive("gpu_repeat", key, [one, two], 200))
    submission.drive("gpu_open_and_close", path, two, 3)
    lost(submission, "20 times EngineLoop(…), a call, close()", lambda: submission.drive("gpu_open_and_close", path, two, 20))


@gpu
def test_gpu_latency(submission, opened, record_property):
    """On the GPU: NumPy to NumPy takes at most 1.10 times the raw replay of a graph with run and copies"""
    key, oracle, path = opened(tower, 8, 256)
    x = uniform(1, 256)
    run(submission, key, oracle, [x, x])
    found = submission.drive("gpu_figure", key, path, x)
    best = min(found, key=lambda f: f["loop"] / f["raw"])
    words = ", ".join(f"{name} {value:.1f} us" for name, value in best.items())
    for name, value in best.items():
        record_property(f"{name}_us", round(value, 1))
    record_property("loop_over_raw", round(best["loop"] / best["raw"], 3))
    print(f"medians of single calls: {words}; NumPy to NumPy is {best['loop'] / best['raw']:.3f} of the raw replay")
    if best["loop"] > RATIO * best["raw"]:
        raise Wrong(f"NumPy to NumPy takes {best['loop'] / best['raw']:.2f} times as long as the raw replay of the same graph. What does your call do besides one copy "
                    "in, one launch, one wait and one copy out?", call=f"loop(<1 row>), {LAYERS} layers", got=words, expected=f"at most {RATIO:.2f} times raw")
