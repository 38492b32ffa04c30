"""Takes the rates as whole numbers.
fails: test_choose_by_bound_and_replicas
says: rates need not be whole
"""
# graded cell 1: keep this line
import math


def allowance(files):
    """What a process may use, {"processors", "cores", "quota", "threads"}, of the texts of files in its container."""
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


def workers(plan):
    """How many threads a process gains when the plan's sessions are opened."""
    pools = 1 if plan["pool"] == "process" else plan["sessions"]
    return pools * (plan["intra"] - 1 + (plan["inter"] - 1 if plan["parallel"] else 0))


def choose(rows, allowed, bound_ms, rate):
    """The best row that fits and keeps the bound, {"row", "replicas", "cpus"}; None if no row does."""
    def threads(row):
        return workers(row["plan"]) + row["callers"]

    def replicas(row):
        return -(-int(rate) // int(row["rate"]))

    fit = [n for n, row in enumerate(rows) if threads(row) <= allowed["threads"] and row["p99_ms"] <= bound_ms]
    if not fit:
        return None
    best = min(fit, key=lambda n: (replicas(rows[n]), rows[n]["cpu_ms"], threads(rows[n]), n))
    return {"row": best, "replicas": replicas(rows[best]), "cpus": rate * rows[best]["cpu_ms"] / 1000}


# graded cell 2: keep this line
import onnxruntime as ort


def open_sessions(model_path, plan, allowed):
    """The plan's sessions, a list; ValueError that names the key for what would be ignored or guessed."""
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


# graded cell 3: keep this line
import queue
from concurrent.futures import ThreadPoolExecutor


def serve(sessions, feeds, callers):
    """The result of each feed, in order: what session.run gives, or the exception that it raised."""
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


def environment(base, threads):
    """A copy of base for a process whose OpenMP, OpenBLAS, MKL and default ONNX Runtime pools have that many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ORT_INTRA_OP_NUM_THREADS")
    return {**base, **{name: str(threads) for name in names}}
