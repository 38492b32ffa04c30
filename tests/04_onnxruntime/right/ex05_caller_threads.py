"""Caller threads that keep their session and take the next number; sets for cores and limits; the variables that win are removed."""
# graded cell 1: keep this line
import re
from fractions import Fraction


def _range(text):
    return [n for a, b in re.findall(r"(\d+)(?:-(\d+))?", text) for n in range(int(a), int(b or a) + 1)]


def allowance(files):
    status = re.search(r"^Cpus_allowed_list:\s*(\S+)", files["/proc/self/status"], re.MULTILINE)
    processors = sorted(_range(status[1]))
    left, cores = set(processors), 0
    while left:
        one = min(left)
        left -= {one, *_range(files.get(f"/sys/devices/system/cpu/cpu{one}/topology/thread_siblings_list", ""))}
        cores += 1
    group = re.search(r"^0::(/\S*)$", files.get("/proc/self/cgroup", ""), re.MULTILINE)
    parts = [p for p in (group[1] if group else "/").split("/") if p]
    limits = set()
    for depth in range(len(parts) + 1):
        text = files.get("/".join(["/sys/fs/cgroup", *parts[:depth], "cpu.max"]), "max 1")
        quota, period = text.split()
        if quota.isdigit():
            limits.add(Fraction(int(quota), int(period)))
    least = min(limits) if limits else None
    return {"threads": max(1, cores if least is None else min(cores, least.numerator // least.denominator)), "quota": least if least is None else float(least),
            "cores": cores, "processors": processors}


def workers(plan):
    each = (plan["intra"] - 1) + (plan["inter"] - 1) * bool(plan["parallel"])
    return each if plan["pool"] == "process" else sum(each for _ in range(plan["sessions"]))


def choose(rows, allowed, bound_ms, rate):
    best = None
    for index, row in enumerate(rows):
        threads = row["callers"] + workers(row["plan"])
        if threads > allowed["threads"] or row["p99_ms"] > bound_ms:
            continue
        replicas = -(-rate // row["rate"])
        found = (replicas, row["cpu_ms"], threads)
        if best is None or found < best[0]:
            best = found, {"row": index, "replicas": replicas, "cpus": row["cpu_ms"] / 1000 * rate}
    return best and best[1]

# graded cell 2: keep this line
import onnxruntime as ort


def open_sessions(model_path, plan, allowed):
    def refuse(key, why):
        raise ValueError(f"plan[{key!r}] = {plan[key]!r} {why}")

    if plan["pool"] not in ("session", "process"):
        refuse("pool", "is neither session nor process")
    for key in ("sessions", "intra", "inter"):
        if plan[key] <= 0:
            refuse(key, "is below 1")
    if plan["parallel"] and plan["inter"] == 1:
        refuse("parallel", f"has no effect with inter {plan['inter']}")
    if plan["inter"] > 1 and not plan["parallel"]:
        refuse("inter", "has no effect without parallel")
    if plan["pool"] == "process":
        if plan["affinity"] is not None:
            refuse("affinity", "has no switch in the pool of the process")
        if not plan["spinning"]:
            refuse("spinning", "has no switch in the pool of the process")
    elif plan["affinity"] is not None:
        if len(plan["affinity"]) + 1 != plan["intra"] or not all(plan["affinity"]):
            refuse("affinity", "needs a list with a processor for each worker")
        if any(n not in allowed["processors"] for group in plan["affinity"] for n in group):
            refuse("affinity", f"has processors outside of {allowed['processors']}")
    if plan["pool"] == "process":
        ort.set_global_thread_pool_sizes(plan["intra"], plan["inter"])
    opened = []
    for _ in range(plan["sessions"]):
        settings = ort.SessionOptions()
        settings.use_per_session_threads = plan["pool"] == "session"
        if plan["parallel"]:
            settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        if plan["pool"] == "session":
            settings.intra_op_num_threads = plan["intra"]
            settings.inter_op_num_threads = plan["inter"]
            if not plan["spinning"]:
                settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
                settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
            if plan["affinity"]:
                settings.add_session_config_entry("session.intra_op_thread_affinities", ";".join(",".join(f"{n + 1}" for n in sorted(group)) for group in plan["affinity"]))
        opened.append(ort.InferenceSession(model_path, settings, providers=["CPUExecutionProvider"]))
    return opened

# graded cell 3: keep this line
import itertools
import threading


def serve(sessions, feeds, callers):
    answers, numbers = [None] * len(feeds), itertools.count()

    def caller(session):
        while (number := next(numbers)) < len(feeds):
            try:
                answers[number] = session.run(None, feeds[number])
            except Exception as error:
                answers[number] = error

    threads = [threading.Thread(target=caller, args=(sessions[n % len(sessions)],)) for n in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def environment(base, threads):
    kept = {name: value for name, value in base.items() if name not in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS")}
    kept.update(OMP_NUM_THREADS=f"{threads}", ORT_INTRA_OP_NUM_THREADS=f"{threads}")
    return kept
