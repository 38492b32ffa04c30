"""Exact: every number becomes a fraction of its decimal text; answers go out as floats."""
import functools
from fractions import Fraction as F

ENGINES = ("ort_cpu", "ort_windows_ml", "openvino", "ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt")
RUNS_ON = {
    "nvidia_server": {"ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt"},
    "rtx_pc": {"ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt"},
    "jetson": {"ort_cuda", "ort_tensorrt", "tensorrt"},
    "windows_pc": {"ort_windows_ml"},
    "intel_npu": {"openvino"},
    "cpu": {"ort_cpu", "openvino"},
}
SINCE = {"fp32": 0.0, "fp16": 7.5, "bf16": 8.0, "fp8": 8.9}
TABLE = []


def q(x):
    return F(repr(float(x)))


def rule(function):
    TABLE.append((function.__name__, function))
    return function


@rule
def target(e, s, c):
    return e not in RUNS_ON[s["target"]] and ("target", s["target"])


@rule
def precision(e, s, c):
    if not s["architectures"]:
        return False
    oldest = functools.reduce(lambda a, b: a if F(a) <= F(b) else b, s["architectures"])
    return F(oldest) < q(SINCE[c["precision"]]) and ("architectures", oldest)


@rule
def python(e, s, c):
    return e == "torch_compile" and s["python_in_process"] is False and ("python_in_process", False)


@rule
def operators(e, s, c):
    whole = e.startswith("tensorrt") or (e == "openvino" and s["target"] == "intel_npu")
    return bool(c["refused"]) and whole and ("refused", c["refused"][:])


@rule
def shapes(e, s, c):
    strict = {"fixed": (), "bounded": ("npu",), "open": ("npu", "tensorrt", "tensorrt_rtx", "ort_tensorrt")}[s["shapes"]]
    return ("npu" if (e, s["target"]) == ("openvino", "intel_npu") else e) in strict and ("shapes", s["shapes"])


@rule
def builds(e, s, c):
    return e.startswith("tensorrt") and not s["team_owns_builds"] and ("team_owns_builds", False)


@rule
def fleet(e, s, c):
    return e == "tensorrt" and s["fleet_open"] and ("fleet_open", True)


@rule
def not_measured(e, s, c):
    return c["p99_ms"] is None and ("p99_ms", None)


@rule
def cold_start(e, s, c):
    carried = s["team_owns_builds"] and not s["fleet_open"]
    total = q(c["start_s"]) + {"torch_compile": q(c["build_s"]), "ort_tensorrt": 0 if carried else q(c["build_s"])}.get(e, 0)
    limit = q(s["cold_start_limit_s"])
    return total > limit and (("start_s", c["start_s"]) if q(c["start_s"]) > limit else ("build_s", c["build_s"]))


@rule
def latency(e, s, c):
    limit, outside = q(s["p99_limit_ms"]), q(s["outside_ms"])
    return q(c["p99_ms"]) + outside > limit and (("outside_ms", s["outside_ms"]) if outside > limit else ("p99_ms", c["p99_ms"]))


def decide(situation):
    s = situation
    if s["target"] not in RUNS_ON:
        raise ValueError(s["target"])
    strangers = set(s["candidates"]) - set(ENGINES)
    if strangers:
        raise ValueError(f"{strangers}")
    fell = {}
    for e in sorted(s["candidates"], key=ENGINES.index):
        for place, (name, applies) in enumerate(TABLE):
            fact = applies(e, s, s["candidates"][e])
            if fact:
                fell[e] = (place, name, *fact)
                break
    eliminated = [(e, *fell[e][1:]) for e in sorted(fell, key=lambda e: (fell[e][0], ENGINES.index(e)))]
    call, update, need = {}, {}, {}
    for e, c in s["candidates"].items():
        if e in fell and fell[e][1] != "latency":
            continue
        shared = s["team_owns_builds"] and not s["fleet_open"]
        n = len(s["architectures"]) if e == "tensorrt" or e == "ort_tensorrt" and shared else int(e == "tensorrt_rtx")
        call[e] = q(c["mean_ms"]) * q(s["machine_price"]) / 3_600_000
        update[e] = n * (q(c["build_s"]) * q(s["machine_price"]) / 3600 + q(s["gate_price"]))
        need[e] = q(c["p99_ms"]) + q(s["outside_ms"])
    calls, updates = q(s["calls_per_month"]), q(s["updates_per_month"])

    def first(engines, calls=calls, updates=updates):
        ranked = sorted((calls * call[e] + updates * update[e], ENGINES.index(e)) for e in engines)
        return ENGINES[ranked[0][1]] if ranked else None

    left = [e for e in call if e not in fell]
    engine = first(left)
    change = {f: {"below": None, "above": None} for f in ("calls_per_month", "updates_per_month", "p99_limit_ms")}
    for field, slope, rest, now in (("calls_per_month", call, {e: updates * update[e] for e in update}, calls),
                                    ("updates_per_month", update, {e: calls * call[e] for e in call}, updates)):
        for e in left:
            if slope[e] == slope[engine]:
                continue
            x = (rest[e] - rest[engine]) / (slope[engine] - slope[e])
            side = "below" if x < now else "above"
            if x > now / 1_000_000:
                old = change[field][side]
                if old is None or abs(x - now) < abs(old[0] - now):
                    change[field][side] = (x, e)
    if engine:
        change["p99_limit_ms"]["below"] = (need[engine], first(e for e in left if need[e] < need[engine]))
    for e in sorted((e for e in call if e in fell), key=lambda e: (need[e], calls * call[e] + updates * update[e])):
        if engine is None or first([e, engine]) == e:
            change["p99_limit_ms"]["above"] = (need[e], e)
            break
    for sides in change.values():
        for side, pair in sides.items():
            sides[side] = pair and (float(pair[0]), pair[1])
    return dict(engine=engine, eliminated=eliminated, costs={e: float(calls * call[e] + updates * update[e]) for e in left},
                decided_by="nobody_left" if engine is None else "elimination" if len(left) == 1 else "cost", change=change)
