"""Grader of 03_tensorrt/ex06_two_contexts. The first half runs on the counted device, the second needs a GPU."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course.grading import Wrong, show

EXERCISE = "03_tensorrt/ex06_two_contexts"
PROBE = "probe_ex06.py"
LIMITS = {"call_seconds": 150.0, "memory_gib": 8.0}
EXACT = 1e-4          # absolute, half one
TOLERANCE = 2e-3      # absolute, half two, numbers near 1; the grader's engine computes in float32, without TF32
gpu = pytest.mark.gpu("tensorrt", "pycuda")
FEATURES, CLASSES, MOST = 6, 3, 8

# o: a new offset; s4: submit 4 rows; r0: the result of the first submit
SCHEDULES = {
    "one request": "o s3 r0",
    "two under way": "o s3 s5 r0 s2 r1 r2",
    "later one fetched first": "o s1 s8 r1 s4 r2 r0",
    "offset after a request": "o s3 o r0 s3 r1",
    "offset between two": "o s3 o s3 r0 r1",
    "offsets after two": "o s2 s2 o o r1 r0 s2 r2",
    "offsets in a row": "o o s4 o o r0 o s4 r1",
    "offset after a lane's second request": "o s1 r0 s1 s2 o r1 r2 s1 r3",
    "long": "o s1 s8 r0 o s2 r1 s3 o o r2 s4 r3 r4 s5 s6 o r6 s7 r5 o r7 s8 s8 r8 r9",
}


def steps_of(schedule, features=FEATURES, seed=0, scale=1.0):
    draw, steps = np.random.default_rng(seed), []
    for word in schedule.split():
        if word == "o":
            steps.append(["offset", (scale * draw.standard_normal(features)).astype(np.float32)])
        elif word[0] == "s":
            steps.append(["submit", draw.standard_normal((int(word[1:]), features)).astype(np.float32)])
        else:
            steps.append(["result", int(word[1:])])
    return steps


def said(schedule, n=None):
    """A schedule in words; with n, up to step n."""
    words, counted = [], 0
    for word in schedule.split():
        if word[0] == "s":
            words.append(f"t{counted} = submit(<{word[1:]} rows>)")
            counted += 1
        else:
            words.append("set_offset(…)" if word == "o" else f"result(t{word[1:]})")
    return "; ".join(words if n is None else [*(["…"] if n > 4 else []), *words[max(0, n - 4):n + 1]])


def complain(error, call):
    """An exception where none was expected."""
    if error["error"] == "NotImplementedError":
        raise Wrong(f"{call.partition('(')[0]} is not written yet.", call=call, got=error["text"])
    at = f" (your {error['where']})" if error["where"] else ""
    if error["error"] == "DeviceError":
        raise Wrong(f"The device refused{at}: {error['text']}", call=call)
    raise Wrong(f"Your code raised {error['error']}{at}.", call=call, got=error["text"])


def play(submission, schedule, seed=0, steps=None, features=FEATURES, classes=CLASSES, most=MOST, **more):
    if getattr(submission, "calls_stuck", 0) > 1:
        raise Wrong("Not tried: calls did not return in earlier checks.", call=said(schedule))
    steps = steps_of(schedule, features, seed) if steps is None else steps
    found = submission.probe("play", features, classes, most, seed, steps, **more)
    if "stuck" in found:
        submission.calls_stuck = getattr(submission, "calls_stuck", 0) + 1
        done = [kind for kind, _ in steps[:max(0, found["stuck"])]]
        third = found["stuck"] in range(len(steps)) and steps[found["stuck"]][0] == "submit" and done.count("submit") - done.count("result") == 2
        raise Wrong("A third request, while the results of two have not been fetched, waits for ever: it has to raise RuntimeError, since submit waits for nothing." if third
                    else "A call did not return within 6 s: what it waits for never comes.",
                    call="Pair(device, program)" if found["stuck"] < 0 else f"{said(schedule)}; close()" if found["stuck"] == len(steps) else said(schedule, found["stuck"]))
    if "missing" in found:
        raise Wrong(f"Your answer defines no class named {found['missing']}.")
    if "failed" in found:
        complain(found["failed"], found["during"])
    return found


def check_steps(found, schedule, on="", tolerance=EXACT):
    """No step raised, and each result is right."""
    for n, step in enumerate(found["steps"]):
        call = f"{on}{said(schedule, n)}"
        if "error" in step:
            complain(step, call)
        if "want" not in step:
            continue
        got, want = step["ok"], step["want"]
        if not isinstance(got, np.ndarray) or got.dtype != np.float32 or got.shape != want.shape:
            raise Wrong("result has to return a float32 array (rows, classes).", call=call, got=show(got), expected=f"shape {want.shape}, float32")
        if not np.isfinite(got).all() or np.abs(got - want).max() > tolerance:
            mistake = "The numbers are wrong."
            if np.isnan(got).any():
                mistake = "There is NaN where nothing was computed yet: was the result read before it was waited for?"
            raise Wrong(mistake, call=call, got=show(got), expected=f"{show(want.astype('f4'))} within {tolerance}")


@pytest.mark.parametrize("name", SCHEDULES)
def test_results(submission, name):
    """The right numbers on the late device, for every schedule"""
    found = play(submission, SCHEDULES[name])
    check_steps(found, SCHEDULES[name])
    if found["overwritten"]:
        raise Wrong("A later call changed a result that was returned before: return a copy.", call=said(SCHEDULES[name], found["overwritten"][0]))


def test_other_sizes(submission):
    """Another program: 40 features, 9 classes, at most 2 rows"""
    schedule = "o s1 s2 r0 o s2 r1 r2"
    check_steps(play(submission, schedule, 5, features=40, classes=9, most=2), schedule)


def race_mistake(race):
    first, second, role = race["first"], race["second"], race["role"]
    if role == "scratch":
        if race["labels"][0].partition(" of ")[2].partition(",")[0] == race["labels"][1].partition(" of ")[2].partition(",")[0]:
            return "Race: one instance has two runs under way. An instance has one state and one scratch memory: one for each lane."
        return "Race: two runs that may overlap work in the same scratch memory. Give each instance its own."
    if role == "offset":
        if {first, second} == {"copy_in"}:
            return "Race: two copies of the offset may run in either order."
        if second == "copy_in":
            return "Race: the new offset may reach a request that was submitted before it. The copy has to wait for the runs that read the old one."
        return "Race: a run may read the offset before it is copied. Its stream has to wait for the copy."
    if "host_write" in (first, second):
        return "Race: the host writes pinned memory that a queued copy may still read."
    if "host_read" in (first, second):
        return "Race: the host reads pinned memory before the copy out is known to be over."
    return f"Race: two requests that may overlap use the same memory ({role})."


def check_races(found, call):
    if found["races"]:
        race = found["races"][0]
        raise Wrong(race_mistake(race), call=call, got=race["text"], expected="a stream, an event or a wait that orders the two")


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_race(submission, name):
    """No two uses of one memory without an order, a write among them"""
    found = play(submission, SCHEDULES[name])
    for n, step in enumerate(found["steps"]):
        if "error" in step:
            complain(step, said(SCHEDULES[name], n))
    check_races(found, said(SCHEDULES[name]))


@pytest.mark.parametrize("name", ["two under way", "offset between two", "long"])
def test_moods(submission, name):
    """The same calls on ten devices that run ahead at random: the same numbers"""
    for mood in range(10):
        check_steps(play(submission, SCHEDULES[name], mood, mood=mood), SCHEDULES[name], f"device of mood {mood}: ")


@pytest.mark.parametrize("schedule, pairs", [("o s3 s5 r0 r1", [(0, 1)]), ("o s2 s2 r1 s4 r0 r2", [(0, 1), (0, 2)]), ("o o s1 r0 s1 s1 r2 r1", [(1, 2)])],
                         ids=["two requests", "three requests", "after an offset"])
def test_overlap(submission, schedule, pairs):
    """Two requests that are under way at once may overlap"""
    found = play(submission, schedule)
    check_steps(found, schedule)
    for a, b in pairs:
        if [b, a] in found["ordered"]:
            raise Wrong("The kernels of two requests cannot overlap: a stream, an event or a wait of the host puts them in order.",
                        call=said(schedule), got=f"requests {a} and {b} run one after the other", expected="nothing orders their kernels")
    if any(k != 2 for k in found["kernels"]):
        raise Wrong("Each submit runs the program once, at once.", call=said(schedule), got=f"kernels in each submit: {found['kernels']}", expected="2 in each")


def test_submit_waits_for_nothing(submission):
    """submit waits for nothing and allocates nothing"""
    for schedule in ("o s3 s5 r0 s2 r1 r2", "o s1 o s1 r1 o s8 r0 r2"):
        found = play(submission, schedule)
        check_steps(found, schedule)
        for n, (word, step) in enumerate(zip(schedule.split(), found["steps"])):
            c = step["counts"]
            if c["alloc"] or c["alloc_pinned"] or c["free"]:
                raise Wrong("Memory is allocated or freed in the middle of the work: keep it.", call=said(schedule, n), got="; ".join(step["lines"]), expected="0 allocations")
            if word[0] == "s" and (c["synchronize"] or c["pageable"]):
                raise Wrong("submit makes the host wait.", call=said(schedule, n), got="; ".join(step["lines"]), expected="no wait of the host")


def test_set_offset_waits_for_no_run(submission):
    """set_offset does not wait for the requests under way"""
    schedule = "o s3 s3 o r0 r1"
    found = play(submission, schedule)
    check_steps(found, schedule)
    first, second = found["steps"][0], found["steps"][3]
    if second["pending"] < 4 or second["counts"]["pageable"]:
        raise Wrong("set_offset makes the host wait for requests that are under way: let the device wait, by events.", call=said(schedule, 3),
                    got="; ".join(second["lines"]), expected="at most a wait for the copy of the offset before")
    if first["counts"]["synchronize"] > 1:
        raise Wrong("set_offset waits more than once.", call=said(schedule, 0), got="; ".join(first["lines"]), expected="at most 1 wait")


@pytest.mark.parametrize("schedule, asked", [("o s3 s5 r0 r1", 3), ("o s3 s5 r1 r0", 3)], ids=["first", "second"])
def test_result_waits_for_its_own(submission, schedule, asked):
    """result waits for its own request, and not for the other lane"""
    found = play(submission, schedule)
    check_steps(found, schedule)
    if found["steps"][asked]["pending"] < 2:
        raise Wrong("result waits for the other request too.", call=said(schedule, asked), got="; ".join(found["steps"][asked]["lines"]),
                    expected="the other request's kernels are still queued on a device that is as late as it may be")


def test_memory_and_bytes(submission):
    """Two lanes and one offset in memory; each batch and each offset is copied once, with its bytes"""
    schedule = "o s3 s8 r0 o s1 r1 r2"
    found = play(submission, schedule)
    check_steps(found, schedule)
    device = 4 * (2 * MOST * (FEATURES + CLASSES) + FEATURES) + 2 * 4 * MOST * 16
    pinned = 4 * (2 * MOST * (FEATURES + CLASSES) + 2 * FEATURES)
    for n, step in enumerate(found["steps"]):
        live = step["live"]
        if live["device"] + live["scratch"] > device or live["pinned"] > pinned:
            raise Wrong("There is more memory than two lanes and one offset need.", call=said(schedule, n),
                        got=f"{live['device'] + live['scratch']} bytes of device memory (scratch included), {live['pinned']} pinned",
                        expected=f"at most {device} and {pinned}")
    bytes_in = sum(step["counts"]["bytes_in"] for step in found["steps"])
    bytes_out = sum(step["counts"]["bytes_out"] for step in found["steps"])
    want_in, want_out = 4 * FEATURES * (3 + 8 + 1 + 2), 4 * CLASSES * (3 + 8 + 1)
    if (bytes_in, bytes_out) != (want_in, want_out):
        raise Wrong("Not exactly the batches, results and offsets are copied.", call=said(schedule), got=f"{bytes_in} bytes in, {bytes_out} bytes out",
                    expected=f"{want_in} bytes in (12 rows and 2 offsets), {want_out} bytes out (12 rows)")


def test_third_request(submission):
    """A third request while two are under way: RuntimeError, and the pair goes on"""
    schedule = "o s3 s5 s2 r0 s2 r1 r2"
    found = play(submission, schedule)
    step = found["steps"][3]
    if "error" not in step or "RuntimeError" not in step["bases"] or step["error"] == "DeviceError":
        raise Wrong("A third request, while the results of two have not been fetched, has to raise RuntimeError: its data would overwrite theirs.",
                    call=said(schedule, 3), got=f"{step['error']}: {step['text']}" if "error" in step else "a ticket", expected="RuntimeError")
    del found["steps"][3]
    rest = "o s3 s5 r0 s2 r1 r2"
    check_steps(found, rest, "after a third request was refused: ")
    check_races(found, said(schedule))


BAD = {"9 rows": (9, 6, "f4"), "no row": (0, 6, "f4"), "5 features": (3, 5, "f4"), "float64": (3, 6, "f8"), "int32": (3, 6, "i4"), "one dimension": (6, None, "f4")}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(submission, what):
    """What the program cannot take: ValueError, and no lane is lost"""
    rows, features, dtype = BAD[what]
    bad = ["submit", np.zeros(rows if features is None else (rows, features), dtype)]
    schedule = "o s3 s5 r0 r1"
    steps = steps_of(schedule)
    found = play(submission, schedule, steps=[steps[0], bad, bad, bad, *steps[1:]])
    for step in found["steps"][1:4]:
        if "error" not in step or "ValueError" not in step["bases"]:
            raise Wrong(f"Given {what}, submit has to raise ValueError.", call=f"submit(<array {bad[1].shape} {bad[1].dtype}>)",
                        got=f"{step['error']}: {step['text']}" if "error" in step else "a ticket", expected="ValueError")
    del found["steps"][1:4]
    check_steps(found, schedule, "after batches that were refused: ")


def test_close(submission):
    """After close nothing is left on the device, also with requests under way"""
    for schedule in ("o s3 s5 r0 r1", "o s2 s2", "o"):
        found = play(submission, schedule)
        check_steps(found, schedule)
        if "error" in found["closed"]:
            complain(found["closed"], f"{said(schedule)}; close()")
        left = {name: number for name, number in found["left"].items() if number}
        if left:
            raise Wrong("close() leaves memory behind.", call=f"{said(schedule)}; close()", got=f"{left} bytes", expected="nothing")


@pytest.mark.parametrize("seed, mood", [(0, None), (1, None), (2, 2), (3, 3)], ids=["late", "late again", "moody", "moody again"])
def test_threads(submission, seed, mood):
    """Three threads submit and fetch, a fourth sets the offset, and each rests between any two calls"""
    call = "three threads: result(submit(…)), four times each; a fourth: set_offset(…)"
    if getattr(submission, "stuck", False):
        raise Wrong("Not tried: the threads did not come to an end in an earlier check.", call=call)
    found = submission.probe("threads", FEATURES, CLASSES, MOST, seed, mood=mood)
    if "failed" in found:
        complain(found["failed"], found["during"])
    if "stuck" in found:
        submission.stuck = True
        raise Wrong("The threads wait for each other for ever.", call=call, got=f"still running after 8 s: {', '.join(found['stuck'])}")
    if found["problems"]:
        complain(found["problems"][0], call)
    check_races(found, call)
    if found["wrong"]:
        raise Wrong("A thread got wrong numbers: another one came in between.", call=call, got=f"{len(found['wrong'])} of 12 results are wrong", expected="all right")


# ---- half two: TensorRT -----------------------------------------------------------------------------------------------

WIDTH, LAYERS, ROWS = 512, 6, 64


@pytest.fixture(scope="module")
def opened(submission, tmp_path_factory):
    """opened(): (oracle(batch, offset), the engine's path); the submission's pair on it is under the key "pair"."""
    made = []

    def get():
        if not made:
            folder, draw = tmp_path_factory.mktemp("engine"), np.random.default_rng(9)
            weights = [draw.normal(0, (2 / WIDTH) ** 0.5, (WIDTH, WIDTH)).astype("f4") for _ in range(LAYERS)]
            nodes, last = [helper.make_node("Sub", ["rows", "offset"], ["x"])], "x"
            for n in range(LAYERS):
                nodes += [helper.make_node("MatMul", [last, f"w{n}"], [f"p{n}"]), helper.make_node("Relu", [f"p{n}"], [f"r{n}"])]
                last = f"r{n}"
            nodes[-1].output[0] = "scores"
            graph = helper.make_graph(nodes, "made_by_the_grader", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", WIDTH]),
                                                                    helper.make_tensor_value_info("offset", TensorProto.FLOAT, [WIDTH])],
                                      [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", WIDTH])],
                                      [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)])
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            onnx.checker.check_model(model)
            onnx.save(model, folder / "m.onnx")
            submission.probe("gpu_build", str(folder / "m.onnx"), str(folder / "m.engine"), {"rows": [(1, WIDTH), (16, WIDTH), (ROWS, WIDTH)]})
            done = submission.probe("gpu_open", "pair", str(folder / "m.engine"))
            if "error" in done:
                complain(done, "EnginePair('m.engine')")

            def oracle(batch, offset):
                x = batch.astype("f8") - offset
                for w in weights:
                    x = np.maximum(x @ w.astype("f8"), 0)
                return x
            made.append((oracle, str(folder / "m.engine"), done["trace"]))
        return made[0]
    return get


def gpu_play(submission, oracle, schedule, steps, tolerance=TOLERANCE):
    found = submission.probe("gpu_play", "pair", steps)
    wants, offset = [], None
    for (kind, given), step in zip(steps, found["steps"]):
        if kind == "offset":
            offset = given
        elif kind == "submit":
            wants.append([given, offset])
        else:
            step["want"] = oracle(*wants[given])
    check_steps(found, schedule, tolerance=tolerance)
    return found, wants


@gpu
@pytest.mark.parametrize("name", SCHEDULES)
def test_gpu_results(submission, opened, name):
    """On the GPU: the right numbers for every schedule"""
    oracle, _, _ = opened()
    found, _ = gpu_play(submission, oracle, SCHEDULES[name], steps_of(SCHEDULES[name], WIDTH))
    if found["overwritten"]:
        raise Wrong("A later call changed a result that was returned before: return a copy.", call=said(SCHEDULES[name], found["overwritten"][0]))


def long_schedule(requests, seed):
    """Two requests under way all the time, offsets at random moments, shapes that change."""
    draw, words, waiting = np.random.default_rng(seed), ["o"], []
    for n in range(requests):
        words.append(f"s{draw.integers(1, ROWS + 1)}")
        waiting.append(n)
        if draw.random() < 0.4:
            words.append("o")
        if len(waiting) == 2:
            words.append(f"r{waiting.pop(int(draw.integers(2)))}")
    return " ".join([*words, *(f"r{n}" for n in waiting)])


@gpu
@pytest.mark.parametrize("seed", range(4))
def test_gpu_many_rounds(submission, opened, seed):
    """On the GPU: 300 requests, two under way, agree with float64 and with one context on one stream"""
    oracle, path, _ = opened()
    schedule = long_schedule(300, seed)
    steps = steps_of(schedule, WIDTH, seed)
    found, requests = gpu_play(submission, oracle, schedule, steps)
    alone = submission.probe("gpu_single_stream", path, requests)
    for (kind, number), step in zip(steps, found["steps"]):
        if kind == "result" and np.abs(step["ok"] - alone[number]).max() > 1e-4:
            raise Wrong("A result differs from the same request through one context on one stream: something is shared that must not be.",
                        call=f"request {number} of 300, two under way", got=show(step["ok"]), expected=show(alone[number]))


@gpu
def test_gpu_two_contexts_two_streams(submission, opened):
    """On the GPU: two contexts on two streams, each with scratch memory of its own that you gave it"""
    oracle, _, construction = opened()
    schedule = "o s3 s5 r0 s2 r1 r2"
    found, _ = gpu_play(submission, oracle, schedule, steps_of(schedule, WIDTH))
    runs = [t for step in found["steps"] for t in step["trace"] if t[0] == "execute_async_v3"]
    if len(runs) != 3:
        raise Wrong("Each submit runs execute_async_v3 once.", call=said(schedule), got=f"{len(runs)} calls", expected="3 calls")
    if runs[0][1] == runs[1][1] or runs[0][2] == runs[1][2]:
        raise Wrong("Two requests under way use the same context or the same stream.", call=said(schedule, 2),
                    got=f"contexts {len({r[1] for r in runs})}, streams {len({r[2] for r in runs})}", expected="2 contexts, 2 streams")
    made = [t for t in construction if t[0] == "create_execution_context_without_device_memory" or (t[0] == "create_execution_context" and t[1])]
    given = [t for t in construction if t[0] in ("device_memory", "set_device_memory")]
    if len(made) < 2 or len({t[1] for t in given}) < 2:
        raise Wrong("The contexts have to be made without scratch memory and be given yours.", call="EnginePair('m.engine')",
                    got=f"{len(made)} such contexts, {len(given)} times scratch memory given", expected="2 and 2")
    if len({t[2] for t in given}) < 2:
        raise Wrong("Both contexts work in the same scratch memory: two runs at once overwrite each other's activations.", call="EnginePair('m.engine')",
                    got="one address for both", expected="two addresses")


@gpu
def test_gpu_submit_waits_for_nothing(submission, opened):
    """On the GPU: submit calls nothing that waits, and nothing that allocates"""
    oracle, _, _ = opened()
    schedule = "o s3 s5 r0 o s2 r1 r2"
    found, _ = gpu_play(submission, oracle, schedule, steps_of(schedule, WIDTH))
    for n, (word, step) in enumerate(zip(schedule.split(), found["steps"])):
        names = [t[0] for t in step["trace"]]
        bad = {"synchronize", "memcpy_htod", "memcpy_dtoh", "execute_v2"} if word[0] == "s" else set()
        for name in names:
            if name in bad:
                raise Wrong(f"submit calls {name}, which waits.", call=said(schedule, n), got=f"seen: {names}", expected="asynchronous calls only")
            if name in ("mem_alloc", "pagelocked_empty", "pagelocked_zeros", "create_execution_context"):
                raise Wrong("Memory is allocated in the middle of the work: keep it.", call=said(schedule, n), got=f"seen: {names}", expected="no allocation")


@gpu
@pytest.mark.parametrize("shape, dtype, why", [((65, WIDTH), "f4", "65 rows"), ((4, WIDTH - 1), "f4", "the wrong width"), ((4, WIDTH), "f8", "float64")],
                         ids=["65 rows", "511 features", "float64"])
def test_gpu_bad_input(submission, opened, shape, dtype, why):
    """On the GPU: what the engine cannot take is refused with ValueError, a third request with RuntimeError, and the pair goes on"""
    oracle, _, _ = opened()
    steps = steps_of("o s3 s5 r0 r1", WIDTH)
    bad = submission.probe("gpu_play", "pair", [steps[0], *[["submit", np.zeros(shape, dtype)]] * 3])["steps"][1]
    if "error" not in bad or "ValueError" not in bad["bases"]:
        raise Wrong(f"Given {why}, submit has to raise ValueError.", call=f"submit(<array {shape} {np.dtype(dtype)}>)", got=str(bad.get("error", "a ticket")), expected="ValueError")
    third = submission.probe("gpu_play", "pair", [steps[0], steps[1], steps[2], steps[1], ["result", 0], ["result", 1]])["steps"][3]
    if "error" not in third or "RuntimeError" not in third["bases"]:
        raise Wrong("A third request, while the results of two have not been fetched, has to raise RuntimeError.", call="submit(…), three times",
                    got=str(third.get("error", "a ticket")), expected="RuntimeError")
    gpu_play(submission, oracle, "o s3 s5 r0 r1", steps)


@gpu
def test_gpu_nothing_is_lost(submission, opened):
    """On the GPU: nothing grows in 500 rounds, and close gives everything back"""
    _, path, _ = opened()
    batch, offset = np.ones((ROWS, WIDTH), "f4"), np.zeros(WIDTH, "f4")
    for call, work in (("500 rounds of set_offset, two submits, two results", lambda n: submission.drive("gpu_repeat", "pair", batch, offset, n)),
                       ("20 times EnginePair(…), two requests, close()", lambda n: submission.drive("gpu_open_and_close", path, batch, offset, n // 25))):
        work(100)
        before = submission.probe("gpu_free_bytes")
        work(500)
        gone = before - submission.probe("gpu_free_bytes")
        if gone > 32 * 2**20:
            raise Wrong("Device memory is lost: free contexts, scratch and buffers.", call=call, got=f"{gone / 2**20:.0f} MiB less", expected="nothing less")
