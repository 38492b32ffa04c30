"""Grader of 04_onnxruntime/ex05_threads: containers and tables from seeds, threads counted by the operating system, runs in flight held and counted by the probe."""
import itertools
import json
import numbers
import subprocess
import sys
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from course.grading import Raised, Wrong, clean_environment, show

EXERCISE = "04_onnxruntime/ex05_threads"
PROBE = "probe_ex05.py"
LIMITS = {"call_seconds": 15.0, "memory_gib": 2.0}
TOLERANCE = 1e-4
PLAN = {"sessions": 1, "intra": 1, "inter": 1, "parallel": False, "spinning": True, "affinity": None, "pool": "session"}
ALLOWED = {"processors": [0, 1], "cores": 2, "quota": None, "threads": 2}


# ---- containers -----------------------------------------------------------------------------------------------------

def listed(numbers):
    """Processors as the kernel writes them: 0-3,8."""
    parts, numbers = [], sorted(numbers)
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [n for _, n in run]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def container(processors, siblings=(), path="/", limits=None, others=""):
    """Files of a container: its processors, groups of siblings of all cores of the machine, its cgroup, {cgroup: text of its cpu.max}."""
    files = {"/proc/self/status": f"Name:\tserver\nThreads:\t9\nCpus_allowed:\tff\nCpus_allowed_list:\t{listed(processors)}\nMems_allowed_list:\t0-1\n",
             "/proc/self/cgroup": f"{others}0::{path}\n"}
    for core in siblings:
        for n in core:
            files[f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list"] = listed(core) + "\n"
    for group, text in (limits or {}).items():
        files[f"/sys/fs/cgroup{group}/cpu.max" if group != "/" else "/sys/fs/cgroup/cpu.max"] = text + "\n"
    return files


def ask_allowance(submission, files, processors, cores, quota, what):
    """Compares one answer; quota is a Fraction or None."""
    call = f"allowance of a container: {what}"
    try:
        got = submission.attempt("allowance", files)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("allowance is not written yet.", call, error.text) from None
        raise Wrong(f"allowance raised {error.kind}{f' (your {error.where})' if error.where else ''}.", call, error.text) from None
    threads = max(1, cores if quota is None else min(cores, quota.numerator // quota.denominator))
    want = {"processors": sorted(processors), "cores": cores, "quota": None if quota is None else float(quota), "threads": threads}
    if not isinstance(got, dict) or set(got) != set(want):
        raise Wrong("allowance returns a dict with the keys processors, cores, quota and threads.", call, got, want)
    found = [got[key] for key in ("cores", "threads")] + ([] if got["quota"] is None else [got["quota"]])
    if not isinstance(got["processors"], (list, tuple)) or not all(isinstance(n, numbers.Real) for n in found):
        raise Wrong("allowance returns a list of processors, numbers, and None where nothing limits.", call, got, want)
    if list(got["processors"]) != want["processors"]:
        raise Wrong("The processors are not those of Cpus_allowed_list.", call, got["processors"], want["processors"])
    if got["cores"] != cores:
        raise Wrong("These are not the physical cores of the processors that the process may use.", call, got["cores"], cores)
    same = got["quota"] is None if quota is None else got["quota"] is not None and abs(got["quota"] - quota) < 1e-9
    if not same:
        raise Wrong("The quota is not the smallest limit of the group and the groups above it, quota divided by period.", call, got["quota"], want["quota"])
    if got["threads"] != threads:
        mistake = "That many threads use the quota up before the period ends, and stand still." if quota is not None and got["threads"] > quota and got["threads"] > 1 else "The number of threads is wrong."
        raise Wrong(mistake, call, got["threads"], f"{threads}: {cores} cores, quota {want['quota']}")


def test_allowance_processors(submission):
    """allowance reads which processors the process may use"""
    for processors in ([0], [0, 1], [3], [0, 1, 2, 3, 8], [5, 7, 9], list(range(10, 14)), [0, 2, 3, 4, 63, 64, 65, 100], list(range(128))):
        ask_allowance(submission, container(processors), processors, len(processors), None, f"processors {listed(processors)}, no sibling lists, no limits")


def test_allowance_cores(submission):
    """allowance counts physical cores among the processors that are allowed"""
    apart = [(n, n + 8) for n in range(8)]
    beside = [(2 * n, 2 * n + 1) for n in range(8)]
    alone = [(n,) for n in range(16)]
    four = [(4 * n, 4 * n + 1, 4 * n + 2, 4 * n + 3) for n in range(4)]
    mixed = [(0, 1), (2, 3), (4,), (5,), (6,), (7,)]
    for name, cores, processors in (("siblings n and n + 8", apart, range(16)), ("siblings n and n + 8", apart, range(8)), ("siblings n and n + 8", apart, [0, 8]), ("siblings n and n + 8", apart, [0, 1, 8, 11]),
                                    ("siblings 2n and 2n + 1", beside, range(16)), ("siblings 2n and 2n + 1", beside, [1, 2]), ("siblings 2n and 2n + 1", beside, [0, 1, 4, 5]), ("siblings 2n and 2n + 1", beside, [15]),
                                    ("one processor a core", alone, range(3, 9)), ("four processors a core", four, range(2, 10)), ("two cores of two, four of one", mixed, range(8))):
        processors = list(processors)
        want = sum(bool(set(core) & set(processors)) for core in cores)
        ask_allowance(submission, container(processors, cores), processors, want, None, f"{name}, processors {listed(processors)}")


GROUPS = [("/", {"/": "200000 100000"}, Fraction(2)), ("/", {"/": "max 100000"}, None), ("/", {}, None),
          ("/app", {"/app": "150000 100000"}, Fraction(3, 2)), ("/app", {"/app": "max 100000", "/": "300000 100000"}, Fraction(3)),
          ("/pods/p1/app", {"/pods/p1/app": "max 100000", "/pods/p1": "250000 100000", "/pods": "max 100000"}, Fraction(5, 2)),
          ("/pods/p1/app", {"/pods/p1/app": "400000 100000", "/pods/p1": "200000 100000", "/pods": "800000 100000"}, Fraction(2)),
          ("/pods/p1/app", {"/pods/p1/app": "100000 100000", "/pods/p1": "200000 100000"}, Fraction(1)),
          ("/pods/p1/app", {"/pods": "350000 100000"}, Fraction(7, 2)), ("/pods/p1/app", {"/pods/p1": "50000 10000", "/pods": "300000 100000"}, Fraction(3)),
          ("/a/b", {"/a/b": "50000 10000", "/a": "400000 50000"}, Fraction(5)), ("/a", {"/a": "60000 100000"}, Fraction(3, 5)),
          ("/a/b", {"/a/b": "600000 100000", "/b": "100000 100000", "/c": "100000 100000"}, Fraction(6)), ("/a-b/c.scope", {"/a": "100000 100000", "/a-b": "200000 100000"}, Fraction(2)),
          ("/x.slice:cri:abc", {"/x.slice:cri:abc": "150000 100000", "/x.slice": "100000 100000"}, Fraction(3, 2))]


@pytest.mark.parametrize("path, limits, quota", GROUPS)
def test_allowance_quota(submission, path, limits, quota):
    """allowance finds the smallest limit of the group and all above it"""
    processors, cores = list(range(8)), [(n, n + 4) for n in range(4)]
    what = f"4 cores, 8 processors, group {path}, " + (", ".join(f"{group} has {text!r}" for group, text in limits.items()) or "no cpu.max")
    ask_allowance(submission, container(processors, cores, path, limits), processors, 4, quota, what)
    others = "12:memory:/old\n3:cpu,cpuacct:/elsewhere\n1:name=systemd:/x\n"
    ask_allowance(submission, container(processors, cores, path, {**limits, "/elsewhere": "100000 100000"}, others), processors, 4, quota, what + "; and lines of version 1 in /proc/self/cgroup")


def test_allowance_threads(submission):
    """allowance rounds the quota down, and gives at least one thread"""
    for count, text, quota in ((8, "250000 100000", Fraction(5, 2)), (8, "299999 100000", Fraction(299999, 100000)), (2, "800000 100000", Fraction(8)), (8, "20000 100000", Fraction(1, 5)), (1, "max 100000", None),
                               (64, "1000 1000", Fraction(1)), (3, "30000 10000", Fraction(3)), (64, "6400000 100000", Fraction(64)), (64, "5999999 1000000", Fraction(5999999, 1000000))):
        ask_allowance(submission, container(range(count), (), "/", {"/": text}), range(count), count, quota, f"{count} cores, cpu.max {text!r}")
    files = container(range(4), [(0, 2), (1, 3)], "/", {})
    del files["/proc/self/cgroup"]
    ask_allowance(submission, files, range(4), 2, None, "2 cores of 2 processors, no /proc/self/cgroup")


# ---- models and plans -------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(path, a function that makes a feed of a seed, the answer in float64 to a feed)."""
    weights = np.random.default_rng(3).normal(0, 0.2, (24, 5)).astype(np.float32)
    graph = helper.make_graph([helper.make_node("MatMul", ["given", "_w"], ["_m"]), helper.make_node("Tanh", ["_m"], ["found"])], "grader",
                              [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["n", 24])], [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["n", 5])],
                              [numpy_helper.from_array(weights, "_w")])
    path = tmp_path_factory.mktemp("models") / "tanh.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return (str(path), lambda seed: {"given": np.random.default_rng(seed).standard_normal((2, 24)).astype(np.float32)},
            lambda feed: np.tanh(feed["given"].astype(np.float64) @ weights.astype(np.float64)))


def told(plan):
    return ", ".join(f"{key} {plan[key]!r}" for key in PLAN if plan[key] != PLAN[key]) or "one session, one thread"


def ask(submission, function, *args, call):
    try:
        return submission._ask("probe", function, args, {}, call)["ok"]
    except Raised as error:
        raise RuntimeError(f"the grader's probe failed: {error}") from None


def check_error(error, call):
    if error:
        kind, text, _, line = error
        if kind == "NotImplementedError":
            raise Wrong(f"{call.partition(' ')[0].partition('(')[0]} is not written yet.", call, text)
        raise Wrong(f"It raised {kind}{f' (your {line})' if line else ''}.", call, text)


OWN = [{}, {"intra": 2}, {"intra": 4}, {"sessions": 3}, {"sessions": 3, "intra": 3}, {"inter": 3, "parallel": True}, {"intra": 3, "inter": 2, "parallel": True}, {"sessions": 2, "intra": 2, "inter": 4, "parallel": True},
       {"intra": 5, "spinning": False}]
SHARED = [{"pool": "process", "sessions": 3, "intra": 4}, {"pool": "process", "sessions": 2, "intra": 2, "inter": 3, "parallel": True}]


def ask_workers(submission, model, change):
    plan = PLAN | change
    got, call = submission.call("workers", plan), f"workers of a plan with {told(plan)}"
    real = ask(submission, "truth", model[0], plan, call=call)
    if got != real or isinstance(got, bool):
        raise Wrong("That is not what the operating system counts when these sessions are opened.", call, got, f"{real} threads gained")


def test_workers(submission, model):
    """workers predicts the threads that a process really gains"""
    for change in OWN:
        ask_workers(submission, model, change)


def test_workers_of_the_process(submission, model):
    """workers knows that sessions share the pool of the process"""
    try:
        for change in SHARED:
            submission.close()      # the pool of a process is made once
            ask_workers(submission, model, change)
    finally:
        submission.close()


# ---- choose -----------------------------------------------------------------------------------------------------------

def row(callers, sessions, intra, rate, p99_ms, cpu_ms, **change):
    return {"plan": PLAN | {"sessions": sessions, "intra": intra} | change, "callers": callers, "rate": rate, "p99_ms": p99_ms, "cpu_ms": cpu_ms}


def threads_of(one):
    plan = one["plan"]
    each = plan["intra"] - 1 + (plan["inter"] - 1) * plan["parallel"]
    return one["callers"] + (each if plan["pool"] == "process" else each * plan["sessions"])


def best(rows, allowed, bound, rate):
    """Brute force, in fractions: the index that no other row beats."""
    def cost(n):
        need = 0
        while need * rows[n]["rate"] < rate:
            need += 1
        return need, Fraction(rows[n]["cpu_ms"]), threads_of(rows[n]), n

    fit = [n for n, one in enumerate(rows) if threads_of(one) <= allowed["threads"] and one["p99_ms"] <= bound]
    if not fit:
        return None
    need, cpu, _, n = min(map(cost, fit))
    return {"row": n, "replicas": need, "cpus": float(rate * cpu / 1000)}


def ask_choice(submission, rows, threads, bound, rate, mistake):
    allowed = {"processors": list(range(16)), "cores": 8, "quota": float(threads), "threads": threads}
    got, want = submission.call("choose", rows, allowed, bound, rate), best(rows, allowed, bound, rate)
    table = "; ".join(f"row {n}: {told(one['plan'])}, {one['callers']} callers, {one['rate']} a second, p99 {one['p99_ms']} ms, {one['cpu_ms']} ms of processor time" for n, one in enumerate(rows))
    call = f"choose for {threads} threads (of 8 cores), p99 of at most {bound} ms, {rate} a second. {table}"
    if want is None or got is None or not isinstance(got, dict):
        if got != want:
            raise Wrong("No row fits." if want is None else mistake, call, got, want)
        return
    if set(got) != set(want) or got["row"] != want["row"]:
        raise Wrong(mistake, call, got, want)
    if got["replicas"] != want["replicas"]:
        raise Wrong("That many replicas get more requests than they were measured with, or there are more than needed.", call, got, want)
    if not isinstance(got["cpus"], numbers.Real) or abs(got["cpus"] - want["cpus"]) > 1e-9 * max(1, want["cpus"]):
        raise Wrong("The processor time is that of all requests of a second, whichever replica answers them.", call, got, want)


def test_choose_what_fits(submission):
    """choose counts the threads that can want a processor: workers and callers"""
    for rows, threads, mistake in (
            ([row(4, 1, 1, 90, 20, 10), row(2, 1, 1, 50, 20, 10)], 2, "Four callers are four threads: they do not fit."),
            ([row(2, 1, 4, 90, 20, 10), row(2, 1, 1, 50, 20, 10)], 4, "Two callers and the three workers of the session that they share are five threads."),
            ([row(2, 1, 3, 90, 20, 10), row(2, 1, 1, 50, 20, 10)], 4, "Two callers share a session of three: four threads, which fit."),
            ([row(2, 2, 2, 90, 20, 10), row(2, 1, 1, 50, 20, 10)], 3, "Two sessions have a worker each: with their callers four threads."),
            ([row(1, 1, 4, 90, 20, 10), row(1, 1, 1, 50, 20, 10)], 4, "One caller and three workers are four threads, which fit: the caller is one of the four."),
            ([row(1, 1, 2, 90, 20, 10, inter=3, parallel=True), row(1, 1, 1, 50, 20, 10)], 3, "The inter-op workers want processors too."),
            ([row(2, 4, 3, 90, 20, 10, pool="process"), row(2, 1, 1, 50, 20, 10)], 4, "Sessions on the pool of the process share its workers: four threads, which fit."),
            ([row(8, 1, 1, 90, 20, 10), row(2, 1, 1, 50, 20, 10)], 2, "There are eight cores, and a quota of two.")):
        ask_choice(submission, rows, threads, 30, 100, mistake)


def test_choose_by_bound_and_replicas(submission):
    """choose keeps the bound, then takes the fewest replicas"""
    rows = [row(2, 1, 1, 80, 45, 20), row(1, 1, 2, 55, 24, 26), row(1, 1, 4, 30, 12, 40), row(4, 1, 1, 150, 90, 20)]
    for bound, rate in ((100, 300), (50, 300), (45, 160), (44, 300), (24, 110), (23, 60), (12, 31), (11, 10), (90, 1)):
        ask_choice(submission, rows, 4, bound, rate, "This row is over the bound, or another one that keeps it needs fewer replicas.")
    ask_choice(submission, [], 4, 50, 100, "")
    ask_choice(submission, [row(2, 1, 1, 62.5, 20, 20), row(1, 1, 1, 50, 20, 10)], 4, 30, 125, "Two replicas of 62.5 requests a second serve 125: rates need not be whole.")


def test_choose_ties(submission):
    """choose breaks ties by processor time, then by threads, then by order"""
    for rows, rate, mistake in (
            ([row(2, 1, 1, 60, 20, 44), row(2, 1, 1, 50, 25, 30)], 100, "Two replicas either way: the row with less processor time is better, whatever its rate and p99."),
            ([row(1, 1, 2, 50, 20, 44), row(1, 1, 2, 50, 21, 33, spinning=False)], 100, "The same replicas: without spinning they take less processor time."),
            ([row(3, 1, 1, 50, 20, 30), row(2, 1, 1, 50, 20, 30)], 100, "The same replicas and processor time: fewer threads are better."),
            ([row(1, 1, 2, 50, 29, 30), row(2, 1, 1, 60, 20, 30)], 100, "All else is the same: the first row of the table."),
            ([row(2, 1, 1, 40, 20, 10), row(2, 1, 1, 50, 20, 90)], 100, "Two replicas are fewer than three: processor time decides only where they are the same.")):
        ask_choice(submission, rows, 4, 30, rate, mistake)


@pytest.mark.parametrize("seed", range(3))
def test_choose_tables(submission, seed):
    """choose finds the best row of random tables"""
    rng = np.random.default_rng(seed)
    for _ in range(12):
        rows = []
        for _ in range(int(rng.integers(2, 9))):
            inter = int(rng.integers(1, 4))
            rows.append(row(int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.choice([20, 30, 40, 60])), int(rng.integers(10, 60)), int(rng.choice([20, 25, 30])),
                            inter=inter, parallel=inter > 1, pool=str(rng.choice(["session", "process"]))))
        ask_choice(submission, rows, int(rng.integers(2, 9)), int(rng.integers(15, 60)), int(rng.choice([50, 60, 120, 200, 240])), "Another row is better.")


# ---- open_sessions ------------------------------------------------------------------------------------------------------

def ask_open(submission, model, change, allowed=ALLOWED, masks=None):
    """Opens a plan, checks what every plan promises, and returns (call, what the probe found)."""
    path, feed, right = model
    plan = PLAN | change
    given, call = feed(5), f"open_sessions of a plan with {told(plan)}"
    found = ask(submission, "opened", path, plan, allowed, given, masks, call=call)
    check_error(found["error"], call)
    if found["kind"] != "list" or not found["known"]:
        raise Wrong("open_sessions returns a list of InferenceSession.", call, found["kind"], "list")
    if len(found["has"]) != plan["sessions"] or found["distinct"] != plan["sessions"]:
        raise Wrong("These are not as many sessions as the plan says.", call, f"{len(found['has'])} entries, {found['distinct']} different sessions", f"{plan['sessions']}")
    if found["made"] != plan["sessions"]:
        raise Wrong("More sessions are opened than the plan says.", call, f"{found['made']} opened", f"{plan['sessions']}")
    if found["changed"]:
        raise Wrong("The caller's plan or allowance is changed.", call)
    for has in found["has"]:
        if has["providers"][0] != "CPUExecutionProvider":
            raise Wrong("The session is not on the CPU provider.", call, has["providers"])
        if np.abs(has["result"] - right(given)).max() > TOLERANCE:
            raise Wrong("The session computes something else.", call, show(has["result"]), show(right(given)))
        mode = "ORT_PARALLEL" if plan["parallel"] else "ORT_SEQUENTIAL"
        if has["mode"] != mode:
            raise Wrong("The session does not have the plan's execution mode.", call, has["mode"], mode)
        if plan["pool"] == "session":
            entries = has["entries"]
            for pool in ("intra_op", "inter_op")[:1 + plan["parallel"]]:
                off = entries[f"session.{pool}.allow_spinning"] not in (None, "1") or pool == "intra_op" and entries["session.intra_op.spin_duration_us"] == "0"
                sure = entries[f"session.{pool}.allow_spinning"] in (None, "0", "1")
                if off == plan["spinning"] or not sure:
                    raise Wrong(f"The {pool.replace('_', '-')} workers {'do not spin' if off else 'spin'}, and the plan says otherwise; the value of that entry is '0' or '1'.", call,
                                f"session.{pool}.allow_spinning is {entries[f'session.{pool}.allow_spinning']!r}", f"spinning {plan['spinning']}")
    want = ask_gain(plan)
    if found["gained"] != want:
        raise Wrong("The process does not gain the threads of the plan: a setting did not reach the sessions.", call, f"{found['gained']} threads gained", f"{want}")
    return call, found


def ask_gain(plan):
    each = plan["intra"] - 1 + (plan["inter"] - 1) * plan["parallel"]
    return each if plan["pool"] == "process" else each * plan["sessions"]


def test_open_threads(submission, model):
    """open_sessions opens the plan's sessions with the plan's threads"""
    for change in OWN:
        ask_open(submission, model, change)


def test_open_spinning(submission, model):
    """open_sessions turns spinning off where the plan says so, for each pool, and leaves it on elsewhere"""
    for spinning in (False, True):
        ask_open(submission, model, {"intra": 2, "spinning": spinning})
        ask_open(submission, model, {"intra": 2, "inter": 2, "parallel": True, "spinning": spinning})


def test_open_affinity(submission, model):
    """open_sessions gives each worker the processors of the plan"""
    have = ask(submission, "processors", call="probe")
    if not have:
        pytest.skip("not run here: this system does not tell which processors a thread may use")
    allowed = {"processors": have, "cores": len(have), "quota": None, "threads": len(have)}
    first, last, both = [have[0]], [have[-1]], sorted({have[0], have[-1]})
    for affinity in ([first], [last], [last, first], [both, last], [first, first, last]):
        call, found = ask_open(submission, model, {"intra": len(affinity) + 1, "affinity": affinity}, allowed, sorted(affinity))
        if found["masks"] != sorted(affinity):
            raise Wrong("The workers may not use the processors of the plan. ONNX Runtime counts processors from 1, the plan from 0.", call, f"processors of the new threads: {found['masks']}", f"{sorted(affinity)}")
    call, found = ask_open(submission, model, {"sessions": 2, "intra": 2, "affinity": [last], "spinning": False}, allowed, [last, last])
    if found["masks"] != [last, last]:
        raise Wrong("The worker of each session has the processors of the plan.", call, found["masks"], [last, last])
    call, found = ask_open(submission, model, {"intra": 3}, allowed, [have, have])
    if found["masks"] != [have, have]:
        raise Wrong("The plan has no affinity, and workers are held on some processors.", call, found["masks"], [have, have])
    ask_open(submission, model, {"intra": 1, "affinity": []}, allowed)


def test_open_pool_of_the_process(submission, model):
    """open_sessions puts all sessions on the pool of the process"""
    try:
        for change in SHARED:
            submission.close()
            call, found = ask_open(submission, model, change)
            if any(has["own"] for has in found["has"]):
                raise Wrong("A session has pools of its own.", call)
    finally:
        submission.close()


REFUSED = [({"sessions": 0}, "sessions", "A plan of no sessions is a mistake."), ({"intra": 0}, "intra", "0 lets ONNX Runtime count the machine's cores."), ({"inter": 0}, "inter", "0 lets ONNX Runtime guess."),
           ({"intra": -1}, "intra", "There is no such number of threads."), ({"inter": 4}, "inter", "Without parallel, inter is ignored."), ({"parallel": True}, "parallel", "With inter 1, ONNX Runtime falls back to the sequential mode without a word."),
           ({"intra": 3, "affinity": [[0]]}, "affinity", "Three threads have two workers."), ({"intra": 2, "affinity": [[0], [1]]}, "affinity", "Two threads have one worker: the caller is not among them."),
           ({"affinity": [[0]]}, "affinity", "One thread has no worker."), ({"intra": 2, "affinity": [[]]}, "affinity", "A worker has to run somewhere."),
           ({"intra": 2, "affinity": [[2]]}, "affinity", "Processor 2 is not allowed: ONNX Runtime would skip it with a line in the log."), ({"intra": 3, "affinity": [[0], [1, 7]]}, "affinity", "Processor 7 is not allowed: it would be skipped."),
           ({"pool": "process", "intra": 2, "affinity": [[0]]}, "affinity", "Python cannot set affinities of the process's pool: the entry would be ignored."),
           ({"pool": "process", "intra": 2, "spinning": False}, "spinning", "Python cannot turn off spinning in the process's pool: the entry would be ignored."),
           ({"pool": "global"}, "pool", "There is no such pool."), ({"pool": "process", "intra": 0}, "intra", "0 lets ONNX Runtime count the machine's cores."), ({"pool": "process", "inter": 3}, "inter", "Without parallel, inter is ignored.")]


def refuses(submission, model, change, key, mistake, allowed=ALLOWED):
    """Asks for a plan that has to be refused with a ValueError that names the key, before anything is opened."""
    path, feed, _ = model
    plan = PLAN | change
    call = f"open_sessions of a plan with {told(plan)}, processors {allowed['processors']} allowed"
    found = ask(submission, "opened", path, plan, allowed, feed(5), call=call)
    expected = f"ValueError that names {key}"
    if found["error"] is None:
        raise Wrong(mistake, call, "no error", expected)
    kind, text, bases, line = found["error"]
    if kind == "NotImplementedError":
        raise Wrong("open_sessions is not written yet.", call, text)
    if "ValueError" not in bases:
        raise Wrong(f"{mistake} It raised {kind}{f' (your {line})' if line else ''}, which is no ValueError.", call, text, expected)
    if key not in text and not (key in ("inter", "parallel") and ("inter" in text or "parallel" in text)):      # these two are wrong together: either will do
        raise Wrong("The ValueError does not name the key.", call, text, expected)
    if found["made"] or found["gained"]:
        raise Wrong("It was refused after something had been opened.", call, f"{found['made']} sessions, {found['gained']} threads", "nothing")


@pytest.mark.parametrize("change, key, mistake", REFUSED, ids=[", ".join(f"{k} {v}" for k, v in c.items()) for c, _, _ in REFUSED])
def test_open_refuses(submission, model, change, key, mistake):
    """open_sessions refuses what would be ignored or guessed, before it opens anything"""
    refuses(submission, model, change, key, mistake)


def test_open_refuses_a_gap(submission, model):
    """open_sessions refuses a processor between two that are allowed"""
    refuses(submission, model, {"intra": 2, "affinity": [[1]]}, "affinity", "Processor 1 is not among those that are allowed: its worker would run anywhere.",
            {"processors": [0, 2], "cores": 2, "quota": None, "threads": 2})


# ---- serve --------------------------------------------------------------------------------------------------------------

SERVED = [(1, 12, 3), (1, 6, 1), (1, 2, 5), (2, 12, 4), (2, 9, 3), (3, 9, 3), (4, 8, 2), (1, 0, 2)]


@pytest.mark.parametrize("sessions, count, callers", SERVED)
def test_serve_in_flight(submission, model, sessions, count, callers):
    """serve keeps as many runs in flight as there are callers, and each session gets its share"""
    path, feed, right = model
    feeds = [feed(100 + n) for n in range(count)]
    call = f"serve with {sessions} session{'s' * (sessions > 1)}, {count} feeds, {callers} callers"
    found = ask(submission, "served", path, sessions, feeds, callers, call=call)
    check_error(found["error"], call)
    if found["made"]:
        raise Wrong("serve opens a session: each one reads, optimizes and packs the model again.", call, f"{found['made']} opened")
    if found["elsewhere"] or sum(found["runs"]) != count:
        raise Wrong("Each feed runs once, in one of the sessions.", call, f"runs of each session: {found['runs']}, in other sessions: {found['elsewhere']}", f"{count} in all")
    if not found["reached"]:
        raise Wrong("Runs that could overlap wait for each other.", call, f"at most {found['most']} in flight", f"{min(callers, count)}")
    if found["most"] > callers:
        raise Wrong("More runs are in flight than there are callers.", call, f"{found['most']} in flight", f"{callers}")
    share = -(-callers // sessions)
    if max(found["in session"]) > share:
        raise Wrong("A session has more than its share of the runs in flight while another is idle.", call, f"most at once in each session: {found['in session']}", f"at most {share}")
    if found["left"] > 0:
        raise Wrong("Threads are left when serve has returned.", call, f"{found['left']} more than before", "none")
    if found["changed"]:
        raise Wrong("The caller's list of sessions is changed.", call)
    if found["kind"] != "list" or len(found["answers"]) != count:
        raise Wrong("serve returns a list with a result for each feed.", call, f"{found['kind']} of {len(found['answers'])}", f"list of {count}")
    check_answers(found["answers"], feeds, right, {}, call)


def check_answers(answers, feeds, right, errors, call):
    wanted = [right(feed) if n not in errors else None for n, feed in enumerate(feeds)]
    for n, (answer, want) in enumerate(zip(answers, wanted)):
        if n in errors:
            if answer.get("raised") != errors[n]:
                raise Wrong("The answer of a feed that fails is the exception that its run raised.", f"{call}, feed {n}", answer, errors[n])
            continue
        outputs = answer.get("outputs")
        if outputs is None or len(outputs) != 1 or not isinstance(outputs[0], np.ndarray):
            raise Wrong("An answer is the list that session.run gives.", f"{call}, feed {n}", answer, "a list of one array")
        if outputs[0].shape != want.shape or np.abs(outputs[0] - want).max() > TOLERANCE:
            others = [k for k, other in enumerate(wanted) if other is not None and other.shape == outputs[0].shape and np.abs(outputs[0] - other).max() <= TOLERANCE]
            raise Wrong(f"That is the answer of feed {others[0]}: results are in the order of the feeds." if others else "The answer is wrong.", f"{call}, feed {n}", show(outputs[0]), show(want))


def test_serve_one_is_slow(submission, model):
    """serve goes on with the other feeds while one run is slow"""
    path, feed, right = model
    for sessions, count, callers in ((1, 9, 3), (3, 10, 3), (1, 5, 2)):
        feeds = [feed(200 + n) for n in range(count)]
        call = f"serve with {sessions} session{'s' * (sessions > 1)}, {count} feeds, {callers} callers, the first run is slow"
        found = ask(submission, "one_is_slow", path, sessions, feeds, callers, call=call)
        check_error(found["error"], call)
        if not found["reached"]:
            raise Wrong("Feeds wait behind the slow one although a caller is free.", call, "feeds that nobody ran", f"{count - 1} of {count} answered meanwhile")
        if found["in session"] > -(-callers // sessions):
            raise Wrong("A session has more than its share of the runs in flight while another is idle.", call, f"{found['in session']} at once in one session", f"at most {-(-callers // sessions)}")
        check_answers(found["answers"], feeds, right, {}, call)


def test_serve_errors(submission, model):
    """serve answers a feed that fails with its exception, and all the others"""
    path, feed, right = model
    for sessions, bad in ((1, [0]), (2, [3, 4]), (1, [7]), (1, list(range(8)))):
        feeds = [feed(300 + n) for n in range(8)]
        for n in bad:
            feeds[n] = {"given": feeds[n]["given"].astype(np.float64)} if n % 2 else {"other": feeds[n]["given"]}
        call = f"serve with {sessions} session{'s' * (sessions > 1)}, 8 feeds of which {bad} fail, 2 callers"
        errors = {n: ask(submission, "direct", path, feeds[n], call=call) for n in bad}
        found = ask(submission, "served", path, sessions, feeds, 2, call=call)
        if found["error"] and found["error"][0] in errors.values():
            raise Wrong("One feed that fails takes the others with it.", call, f"{found['error'][0]}: {found['error'][1]}", "its exception in its place, and all other answers")
        check_error(found["error"], call)
        if len(found["answers"]) != 8:
            raise Wrong("serve returns a list with a result for each feed.", call, f"{len(found['answers'])} results", "8")
        check_answers(found["answers"], feeds, right, errors, call)


# ---- environment --------------------------------------------------------------------------------------------------------

def ask_environment(submission, base, threads):
    shown = {k: v for k, v in base.items() if k.endswith("_THREADS") or k in ("HOME", "LANG")}
    got, call = submission.call("environment", base, threads), f"environment({shown}, {threads})"
    if not isinstance(got, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in got.items()):
        raise Wrong("environment returns a dict of texts: os.environ and subprocess take nothing else.", call, got)
    return got, call


THEIRS = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "ORT_INTRA_OP_NUM_THREADS"}  # what the four libraries read, of the variables below


def test_environment(submission):
    """environment sets what each library reads, and keeps the rest"""
    for base, threads in (({"HOME": "/x", "LANG": "C"}, 1), ({"HOME": "/x", "OMP_NUM_THREADS": "8", "OPENBLAS_NUM_THREADS": "8", "MKL_NUM_THREADS": "8", "ORT_INTRA_OP_NUM_THREADS": "8"}, 3), ({"MKL_NUM_THREADS": "16"}, 2),
                          ({"OPENBLAS_NUM_THREADS": "16", "LANG": "C"}, 2), ({"NUMEXPR_NUM_THREADS": "4", "RAYON_NUM_THREADS": "2"}, 3), ({"GOTO_NUM_THREADS": "7"}, 1)):
        got, call = ask_environment(submission, dict(base), threads)
        for library, name, fallback in (("OpenMP", "OMP_NUM_THREADS", False), ("OpenBLAS", "OPENBLAS_NUM_THREADS", True), ("MKL", "MKL_NUM_THREADS", True), ("ONNX Runtime's default", "ORT_INTRA_OP_NUM_THREADS", False)):
            if got.get(name) != str(threads) and not (fallback and name not in got):
                raise Wrong(f"{library} takes another number: {name} {'wins over OMP_NUM_THREADS' if fallback else 'is what it reads'}.", call, got.get(name), str(threads))
        if "OPENBLAS_NUM_THREADS" not in got and "GOTO_NUM_THREADS" in got and got["GOTO_NUM_THREADS"] != str(threads):
            raise Wrong("OpenBLAS takes another number: without OPENBLAS_NUM_THREADS, GOTO_NUM_THREADS wins over OMP_NUM_THREADS.", call, got["GOTO_NUM_THREADS"], str(threads))
        lost = {k for k in base if k not in THEIRS and got.get(k) != base[k]}
        if lost:
            raise Wrong("Variables that have nothing to do with these four libraries are lost or changed.", call, f"not as in base: {', '.join(sorted(lost))}", "a copy of base")


CHILD = """
import json, psutil
def threads(): return psutil.Process().num_threads()
before = threads()
import numpy as np
a = np.ones((600, 600), np.float32); a @ a
blas = threads() - before
import onnxruntime as ort
ort.set_default_logger_severity(4)
before = threads()
session = ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
print(json.dumps([blas, threads() - before]))
"""


def test_environment_in_a_process(submission, model):
    """In a process with that environment, NumPy and a default session really have these threads"""
    for threads in (1, 3):
        base = {**clean_environment(), "OPENBLAS_NUM_THREADS": "7", "OMP_NUM_THREADS": "7", "ORT_INTRA_OP_NUM_THREADS": "7"}
        got, call = ask_environment(submission, base, threads)
        done = subprocess.run([sys.executable, "-c", f"MODEL = {model[0]!r}\n{CHILD}"], env=got, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Wrong("Python does not start in that environment.", call, done.stderr[-300:])
        blas, pool = json.loads(done.stdout.splitlines()[-1])
        if pool != threads - 1:
            raise Wrong("A session with default options has another pool in that process.", call, f"{pool} threads gained", f"{threads - 1}")
        if blas > threads - 1:
            raise Wrong("NumPy's BLAS has another pool in that process.", call, f"{blas} threads gained", f"at most {threads - 1}")


def test_environment_changes_nothing(submission):
    """environment returns a copy, and does not touch the process that it runs in"""
    changed = ask(submission, "environment_changes", {"HOME": "/x", "OMP_NUM_THREADS": "8"}, 2, call="environment")
    check_error(changed["error"], "environment(base, 2)")
    if changed["changed"]:
        raise Wrong(f"{changed['changed']} is changed: this is for another process, and the running one has its pools already.", "environment(base, 2)", "changed", "a copy")
