# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: threads for the cores that you have
#
# Level: mid to senior · 45 minutes · needs no GPU
#
# A service runs one model in a container. It was tuned on a large machine, and in the container its p99 is terrible. You find out how many cores the container really has, choose a configuration from a
# table of measurements, open sessions that have exactly those threads, and share them between request threads. No time is measured in the grading: counted are threads, settings that the sessions really have, and runs in flight.
#
# Background: [threads](../../book/04_onnxruntime/questions/15_threads.md) and [sessions and threads](../../book/04_onnxruntime/questions/17_sessions_and_threads.md).
#
# ## The contract
#
# A *plan* is a dict with these seven keys:
#
# | key | value |
# | --- | --- |
# | `"sessions"` | how many sessions of the same model are opened |
# | `"intra"`, `"inter"` | threads that work inside a node; nodes that run at once. In ONNX Runtime's numbers: the calling thread is one of them |
# | `"parallel"` | `True`: independent nodes may run at once (`ORT_PARALLEL`) |
# | `"spinning"` | `False`: idle workers sleep at once |
# | `"affinity"` | `None`, or for each intra-op worker of a session a list of the processors that it may use, in Linux's numbers, from 0 |
# | `"pool"` | `"session"`: each session has pools of its own. `"process"`: all sessions share the pools of the process |
#
# **`allowance(files)`** returns what a process may use: `{"processors": [...], "cores": n, "quota": q, "threads": t}`. `files` maps a path to the text that was read there, in the container, with cgroup v2.
#
# - `"processors"`: the sorted numbers of `Cpus_allowed_list` in `/proc/self/status`. The kernel has already put the cpuset into that list.
# - `"cores"`: how many physical cores these processors are. Processors of one core stand in the same `/sys/devices/system/cpu/cpu<n>/topology/thread_siblings_list`. A processor without that file is a core of its own.
# - `"quota"`: how many CPUs' worth of time the process's cgroup has, a `float`, or `None` if nothing limits it. The cgroup's path is in the line `0::<path>` of `/proc/self/cgroup`; its limit in `/sys/fs/cgroup<path>/cpu.max`, as quota and period.
#   A limit of a group above holds as well, up to `/sys/fs/cgroup/cpu.max`. A file that is absent limits nothing, and neither does the word `max`.
# - `"threads"`: the most that may run at once without two on a core and without being throttled: the cores, at most the quota, rounded down, and at least 1.
#
# **`workers(plan)`** returns the number of threads that a process gains when the plan's sessions are opened.
#
# **`choose(rows, allowed, bound_ms, rate)`** returns `{"row": index, "replicas": n, "cpus": c}` for the best row of a table, or `None`.
#
# - A row is a dict: `"plan"`; `"callers"`, the request threads; `"rate"`, the requests a second that one replica was offered in an open loop; `"p99_ms"` at that rate; `"cpu_ms"`, the processor time that a request took, spinning included.
# - A row counts if its threads that can want a processor at one moment, workers and callers together, are no more than `allowed["threads"]`, and if its p99 is at most `bound_ms`. `allowed` is what `allowance` returns, for one replica.
# - `replicas`: how many replicas serve `rate` requests a second if none gets more than it was measured with. `cpus`: the processor time a second of all of them together, in CPUs.
# - Best: fewest replicas; then least processor time; then fewest threads; then the first in the table.
#
# **`open_sessions(model_path, plan, allowed)`** returns the list of `ort.InferenceSession` of the plan, on the CPU provider. Counted: sessions, threads gained, and the options that each session has.
#
# - `ValueError`, naming the key, before anything is opened, for what would be ignored or guessed: `"sessions"`, `"intra"` or `"inter"` below 1; `"parallel"` with `"inter"` 1, or `"inter"` above 1 without `"parallel"`;
#   `"affinity"` with another number of lists than there are workers, with an empty list, or with a processor that is not in `allowed["processors"]`; with the pool `"process"`, `"affinity"` or `"spinning"` `False`, for which Python has no switch;
#   a `"pool"` of another name.
# - The grader asks for the pool `"process"` once in a process.
#
# **`serve(sessions, feeds, callers)`** runs each feed once, through any of the sessions, and returns a list with the result of each feed, in order: the list that `session.run(None, feed)` gives, or the exception that it raised.
#
# - As many as `callers` runs are in flight at a time, while enough feeds wait, and never more. In one session, never more than its share: `callers` divided by the number of sessions, rounded up.
# - No session is opened, and no thread is left when `serve` returns.
#
# **`environment(base, threads)`** returns a copy of the dict `base` of environment variables for a process that is started with it: there, OpenMP (which PyTorch uses), NumPy's OpenBLAS, MKL, and ONNX Runtime where no number is set in the options take `threads` threads each.
# Whatever `base` says about those numbers does not count any more. Everything else stays.

# %% [markdown]
# ## Before you write
#
# Which of these settings does the session really have? Read what it says, not what you set.

# %%
import onnxruntime as ort

from course import ROOT

MODEL = ROOT / "models/digits_mlp/digits_mlp.onnx"
asked = ort.SessionOptions()
asked.intra_op_num_threads, asked.inter_op_num_threads = 2, 1
asked.execution_mode = ort.ExecutionMode.ORT_PARALLEL
has = ort.InferenceSession(MODEL, asked, providers=["CPUExecutionProvider"]).get_session_options()
print("asked for:", asked.execution_mode.name, "with inter-op 1")
print("has:      ", has.execution_mode.name)

# %% [markdown] tags=["hint"]
# **Hint 1.** A list such as `0-3,8` is split at `,`, and each part at `-`. For the quota, walk from the cgroup's path upwards: `/a/b`, `/a`, and the root. Compare quotas *divided by their periods*: `50000 10000` is five CPUs. A pool of n threads
# starts n − 1, since the thread that calls `run` is the n-th. And a pool belongs to a session, so several sessions have several.

# %% [markdown] tags=["hint"]
# **Hint 2.** `choose` is one `min` over the rows that count, with a tuple as the key. The settings of a session: `intra_op_num_threads`, `inter_op_num_threads`, `execution_mode` and `use_per_session_threads` of `ort.SessionOptions`; the rest are entries by
# `add_session_config_entry`, and their values are texts: `"0"` and `"1"`. The keys are in [threads](../../book/04_onnxruntime/questions/15_threads.md). Affinities count processors from 1, and separate workers by `;`. The pools of the process:
# `ort.set_global_thread_pool_sizes(intra, inter)`, before the first session.

# %% [markdown] tags=["hint"]
# **Hint 3.** For `serve`, a `ThreadPoolExecutor(callers)` bounds the runs in all. A queue bounds them for each session: put each session into it as often as its share, and let a request take one out and put it back. Catch the exception inside of what the pool runs, since `map` raises
# the first one and loses the rest. For `environment`: `MKL_NUM_THREADS` and `OPENBLAS_NUM_THREADS` win over `OMP_NUM_THREADS`, and ONNX Runtime looks at none of the three, but at `ORT_INTRA_OP_NUM_THREADS`.

# %% [markdown]
# ## Your answer
#
# An import or a helper function that you need belongs into a graded cell too.

# %%
# graded cell 1: keep this line
import math


def allowance(files):
    """What a process may use, {"processors", "cores", "quota", "threads"}, of the texts of files in its container."""
    # <answer>
    def numbers(text):
        found = []
        for part in text.strip().split(","):
            first, _, last = part.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
        return sorted(found)

    def line(path, start):
        return next((row.removeprefix(start) for row in files.get(path, "").splitlines() if row.startswith(start)), None)

    processors = numbers(line("/proc/self/status", "Cpus_allowed_list:"))
    siblings = [files.get(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list", str(n)) for n in processors]
    cores = len({tuple(numbers(text)) for text in siblings})

    limits, path = [], (line("/proc/self/cgroup", "0::") or "").strip().rstrip("/")
    while True:
        quota, _, period = files.get(f"/sys/fs/cgroup{path}/cpu.max", "max 100000").strip().partition(" ")
        if quota != "max":
            limits.append(int(quota) / int(period))
        if not path:
            break
        path = path.rpartition("/")[0]
    quota = min(limits, default=None)
    threads = cores if quota is None else min(cores, math.floor(quota))
    return {"processors": processors, "cores": cores, "quota": quota, "threads": max(1, threads)}
    # </answer>
    # stub: raise NotImplementedError("allowance is not written yet")


def workers(plan):
    """How many threads a process gains when the plan's sessions are opened."""
    # <answer>
    pools = 1 if plan["pool"] == "process" else plan["sessions"]
    return pools * (plan["intra"] - 1 + (plan["inter"] - 1 if plan["parallel"] else 0))
    # </answer>
    # stub: raise NotImplementedError("workers is not written yet")


def choose(rows, allowed, bound_ms, rate):
    """The best row that fits and keeps the bound, {"row", "replicas", "cpus"}; None if no row does."""
    # <answer>
    def threads(row):
        return workers(row["plan"]) + row["callers"]

    def replicas(row):
        return math.ceil(rate / row["rate"])

    fit = [n for n, row in enumerate(rows) if threads(row) <= allowed["threads"] and row["p99_ms"] <= bound_ms]
    if not fit:
        return None
    best = min(fit, key=lambda n: (replicas(rows[n]), rows[n]["cpu_ms"], threads(rows[n]), n))
    return {"row": best, "replicas": replicas(rows[best]), "cpus": rate * rows[best]["cpu_ms"] / 1000}
    # </answer>
    # stub: raise NotImplementedError("choose is not written yet")


# %%
# graded cell 2: keep this line
import onnxruntime as ort


def open_sessions(model_path, plan, allowed):
    """The plan's sessions, a list; ValueError that names the key for what would be ignored or guessed."""
    # <answer>
    for key in ("sessions", "intra", "inter"):
        if plan[key] < 1:
            raise ValueError(f"{key} is {plan[key]}: a plan says a number of 1 or more, since 0 lets ONNX Runtime guess")
    if plan["parallel"] != (plan["inter"] > 1):
        raise ValueError(f"inter is {plan['inter']} and parallel is {plan['parallel']}: one without the other is ignored")
    if plan["pool"] not in ("session", "process"):
        raise ValueError(f"pool is {plan['pool']!r}: expected 'session' or 'process'")
    if plan["affinity"] is not None:
        if len(plan["affinity"]) != plan["intra"] - 1:
            raise ValueError(f"affinity has {len(plan['affinity'])} lists for {plan['intra'] - 1} workers")
        for processors in plan["affinity"]:
            if not processors or not set(processors) <= set(allowed["processors"]):
                raise ValueError(f"affinity names processors {processors}, and only {allowed['processors']} may be used")
    if plan["pool"] == "process" and (plan["affinity"] is not None or not plan["spinning"]):
        key = "spinning" if plan["affinity"] is None else "affinity"
        raise ValueError(f"{key} cannot be set for the pool of the process")

    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if plan["parallel"] else ort.ExecutionMode.ORT_SEQUENTIAL
    if plan["pool"] == "process":
        ort.set_global_thread_pool_sizes(plan["intra"], plan["inter"])
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads, options.inter_op_num_threads = plan["intra"], plan["inter"]
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if plan["spinning"] else "0")
        if plan["affinity"]:
            groups = ";".join(",".join(str(n + 1) for n in processors) for processors in plan["affinity"])
            options.add_session_config_entry("session.intra_op_thread_affinities", groups)
    return [ort.InferenceSession(model_path, options, providers=["CPUExecutionProvider"]) for _ in range(plan["sessions"])]
    # </answer>
    # stub: raise NotImplementedError("open_sessions is not written yet")


# %%
# graded cell 3: keep this line
import queue
from concurrent.futures import ThreadPoolExecutor


def serve(sessions, feeds, callers):
    """The result of each feed, in order: what session.run gives, or the exception that it raised."""
    # <answer>
    free = queue.SimpleQueue()
    for _ in range(-(-callers // len(sessions))):
        for session in sessions:
            free.put(session)

    def request(feed):
        session = free.get()
        try:
            return session.run(None, feed)
        except Exception as error:
            return error
        finally:
            free.put(session)

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(request, feeds))
    # </answer>
    # stub: raise NotImplementedError("serve is not written yet")


def environment(base, threads):
    """A copy of base for a process whose OpenMP, OpenBLAS, MKL and default ONNX Runtime pools have that many threads."""
    # <answer>
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ORT_INTRA_OP_NUM_THREADS")
    return {**base, **{name: str(threads) for name in names}}
    # </answer>
    # stub: raise NotImplementedError("environment is not written yet")


# %% [markdown]
# ## A container, as its files tell
#
# Eight processors of four cores, of which the cpuset leaves six. The pod may use 2.5 CPUs, and the container says nothing about itself.

# %%
container = {
    "/proc/self/status": "Name:\tpython\nCpus_allowed:\t7e\nCpus_allowed_list:\t1-6\n",
    "/proc/self/cgroup": "0::/pods/pod7/app\n",
    "/sys/fs/cgroup/pods/pod7/app/cpu.max": "max 100000\n",
    "/sys/fs/cgroup/pods/pod7/cpu.max": "125000 50000\n",
    "/sys/fs/cgroup/pods/cpu.max": "1600000 100000\n",
    **{f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)},
}
allowed = allowance(container)
print(allowed)

# %% [markdown]
# ## A table of measurements
#
# These numbers are made up for the exercise, so that you can follow each of them by hand. One session with four threads has the best p99, six callers have the best rate; which rows fit this container?

# %%
def row(callers, sessions, intra, rate, p99_ms, cpu_ms, spinning=True):
    plan = {"sessions": sessions, "intra": intra, "inter": 1, "parallel": False, "spinning": spinning, "affinity": None, "pool": "session"}
    return {"plan": plan, "callers": callers, "rate": rate, "p99_ms": p99_ms, "cpu_ms": cpu_ms}


rows = [row(1, 1, 4, 55, 14.0, 41.0), row(6, 1, 1, 160, 52.0, 30.0), row(1, 1, 2, 40, 21.0, 38.0), row(1, 1, 2, 40, 22.0, 31.0, spinning=False),
        row(2, 1, 1, 60, 38.0, 30.0), row(2, 2, 1, 58, 39.0, 30.0), row(2, 2, 2, 75, 30.0, 44.0)]
for index, one in enumerate(rows):
    threads = workers(one["plan"]) + one["callers"]
    print(f"row {index}: {threads} threads can run at once; p99 {one['p99_ms']} ms at {one['rate']} a second; fits: {threads <= allowed['threads']}")
for bound in (50, 25, 20):
    print(f"p99 of at most {bound} ms at 200 a second:", choose(rows, allowed, bound, 200))

# %% [markdown]
# ## Real threads
#
# What the plan says, and what the operating system counts:

# %%
import psutil

base = {"sessions": 1, "intra": 1, "inter": 1, "parallel": False, "spinning": True, "affinity": None, "pool": "session"}
here = {"processors": list(range(psutil.cpu_count())), "cores": psutil.cpu_count(), "quota": None, "threads": psutil.cpu_count()}
for change in ({}, {"intra": 4}, {"intra": 4, "sessions": 3}, {"intra": 2, "inter": 3, "parallel": True}, {"intra": 3, "spinning": False}):
    plan = base | change
    before = psutil.Process().num_threads()
    opened = open_sessions(MODEL, plan, here)
    print(f"{change}: {workers(plan)} workers by the plan, {psutil.Process().num_threads() - before} gained")
    del opened
for change in ({"intra": 0}, {"inter": 4}, {"affinity": [[0]]}, {"pool": "process", "spinning": False}):
    try:
        open_sessions(MODEL, base | change, here)
    except ValueError as error:
        print(f"{change}: {error}")

# %% [markdown]
# Five request threads share one session with one thread. One request is broken, and the others do not notice.

# %%
import numpy as np

with np.load(ROOT / "models/digits_mlp/heldout.npz") as data:
    pixels, labels = (data["images"].reshape(-1, 1, 784) / 255).astype(np.float32), data["labels"]
feeds = [{"pixels": image} for image in pixels]
feeds[100] = {"pixels": pixels[100].astype(np.float64)}
answers = serve(open_sessions(MODEL, base, here), feeds, callers=5)
print("right:", sum(int(answer[0].argmax()) == label for answer, label in zip(answers, labels) if isinstance(answer, list)), "of", len(answers) - 1)
print("request 100:", type(answers[100]).__name__)

# %% tags=["learner"]
# Now on your machine: how long a request takes alone, and how many a second several callers get. The times are yours; compare the rows with each other, several times.
import time

large = {"pixels": np.repeat(pixels[:1, 0], 4096, axis=0)}
for sessions, intra, callers in ((1, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 2), (2, 2, 2), (1, 8, 8)):
    opened = open_sessions(MODEL, base | {"sessions": sessions, "intra": intra}, here)
    serve(opened, [large] * 20, callers)
    start, used = time.perf_counter(), time.process_time()
    serve(opened, [large] * 100, callers)
    took, used = time.perf_counter() - start, time.process_time() - used
    print(f"{sessions} sessions, intra-op {intra}, {callers} callers: {100 / took:6.0f} a second, {1e3 * took * callers / 100:6.2f} ms a request, {10 * used:6.2f} ms of processor time each")

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | --- | --- |
# | `Cpus_allowed_list` | mask and cpuset in one list | `os.cpu_count()` counts the machine: 64 threads for two processors |
# | sets of siblings | two processors of one core are one core | two threads of the same product share one core's units, and each node waits for both |
# | walk up the groups | the pod's limit holds for the container | the container's own file says `max`, and the threads are throttled all the same |
# | quota divided by period | `50000 10000` is more than `100000 100000` | the smaller first number wins |
# | round down | three busy threads use 2.5 CPUs up before the period ends | all of them stand still for the rest of it: a good median and a bad p99 |
# | workers + callers | what can want a processor at one moment | `sessions × intra` misses the callers that share a session: 8 callers of a pool of 4 are 11 threads |
# | plan without 0 | the number stands in the plan | 0 is the number of cores of the machine that happens to run it |
# | parallel if and only if inter > 1 | both or none | inter-op alone is a number in a struct; parallel with 1 becomes sequential, as you saw |
# | `"0"` and `"1"` | entries are texts | `str(True)` is not `"1"`, and so it turns spinning off |
# | `n + 1` in affinities | ONNX Runtime counts processors from 1 | each worker is one processor off; the last one is skipped with a line in the log |
# | processors of the allowance only | a processor that is not there is skipped | the worker runs anywhere, and nobody says so |
# | `use_per_session_threads = False` | the session takes the pool of the process | once that pool exists, a session that wants its own raises |
# | a queue of sessions | a share for each session | a busy session gets a third caller while another is idle |
# | `except` inside of the request | an error is the answer of that request | the first error ends the loop, and answers that exist are lost |
# | four variables | each library reads its own | `OMP_NUM_THREADS` alone leaves ONNX Runtime's default as it was |
#
# Linux calls the name `thread_siblings_list` deprecated and has the same list as `core_cpus_list`. Older kernels have only the first.
#
# ## What it costs
#
# - More threads for one request cost throughput: parts are cut, and at each node the fastest waits for the slowest. In the invented table, a request on two threads takes a quarter more processor time. Take as many as the latency bound needs, and no more.
# - One shared session with one intra-op thread is the throughput configuration: weights once, no pool, no barrier, as many requests at once as callers. Several sessions of one model repeat packed weights and pools. They pay where settings differ or a
#   provider allows one run at a time.
# - Spinning costs processor time between the nodes and after the run. With cores of your own it buys latency; with a quota or neighbours it is taken from somebody, most likely from your own next request.
# - A pool of the process bounds the workers, whatever the number of sessions. In 1.31.1 it is for all sessions or none, its size is final, and Python sets nothing else of it.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **Why is the rule "workers and callers", where a caller waits while its workers work?** It does not wait: it computes one part of each node itself, and spins or sleeps only when its part is done. All of them can be busy at the same moment.
#
# **The quota is 2.5. Is half a CPU lost?** For this replica, yes, or nearly: Python's own work, the allocator and the network use it. Three threads that are not always busy may fit on average, and still meet the end of a period together. Look at `nr_throttled` in `cpu.stat`
# before and after, and decide by the p99.
#
# **Do the two processors of a core never help?** For two *different* requests that wait for memory they may, by some percent. For parts of one matrix product they rarely do: both need the same units. It is one more row in the table, measured on that machine.
#
# **The same process runs PyTorch for the pre-processing. What now?** Its OpenMP threads and ONNX Runtime's workers want the same cores, and each of them may spin while the other works. PyTorch operations right after a run have been reported many times slower; the answer was
# that more threads than cores cost that, and to try other numbers for both (issue 13808 of microsoft/onnxruntime). Give each a part of the cores, or one of them a single thread: `environment`, or `torch.set_num_threads` before the first operation. OpenBLAS has read its variable when
# NumPy was imported, so `os.environ` comes too late for it. ONNX Runtime 1.31.1 reads its own at every creation of a session: there, a change in `os.environ` reaches the next session, and whoever opens it.
#
# **When do affinities pay?** When two pools on one machine must not meet, or on two sockets: workers of one session stay on one memory node. The calling thread is not among the lists: it is yours, and keeps the mask that you give it.
#
# **How do you prove in production that the plan holds?** Export the number of threads of the process, `cpu.stat`, and the processor time of a request beside its latency. A deployment that gains threads by a library's update then shows before its p99 does.

# %% tags=["learner"]
from course.check import check

check("04_onnxruntime/ex05_threads")
