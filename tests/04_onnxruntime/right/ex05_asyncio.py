"""An event loop with a semaphore for each session; a duration of 0 in the place of allow_spinning; OpenBLAS left to OMP_NUM_THREADS."""
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
        return math.ceil(rate / row["rate"])

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
        if not plan["spinning"]:
            options.add_session_config_entry("session.intra_op.spin_duration_us", "0")
            options.add_session_config_entry("session.inter_op.spin_duration_us", "0")
            options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if plan["affinity"]:
            groups = ";".join(",".join(str(n + 1) for n in processors) for processors in plan["affinity"])
            options.add_session_config_entry("session.intra_op_thread_affinities", groups)
    return [ort.InferenceSession(model_path, options, providers=["CPUExecutionProvider"]) for _ in range(plan["sessions"])]

# graded cell 3: keep this line
import asyncio
from concurrent.futures import ThreadPoolExecutor


def serve(sessions, feeds, callers):
    """The result of each feed, in order."""
    share = math.ceil(callers / len(sessions))

    async def main(pool):
        loop, everyone, busy = asyncio.get_running_loop(), asyncio.Semaphore(callers), [0] * len(sessions)

        async def one(feed):
            async with everyone:
                place = min(range(len(sessions)), key=busy.__getitem__)
                assert busy[place] < share
                busy[place] += 1
                try:
                    return await loop.run_in_executor(pool, sessions[place].run, None, feed)
                finally:
                    busy[place] -= 1

        return await asyncio.gather(*(one(feed) for feed in feeds), return_exceptions=True)

    with ThreadPoolExecutor(callers) as pool:
        return asyncio.run(main(pool))


def environment(base, threads):
    copy = dict(base)
    for name in ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS"):
        copy.pop(name, None)
    for name in ("ORT_INTRA_OP_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        copy[name] = str(threads)
    return copy
