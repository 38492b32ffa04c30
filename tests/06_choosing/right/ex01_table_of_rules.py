"""Rules as a table of functions, lists in place of tuples, thresholds by asking a small model of the choice again at each crossing."""
import itertools

ENGINES = ["ort_cpu", "ort_windows_ml", "openvino", "ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt"]
RUNS_ON = {"nvidia_server": [3, 4, 5, 7], "rtx_pc": [3, 4, 5, 6, 7], "jetson": [3, 5, 7], "windows_pc": [1], "intel_npu": [2], "cpu": [0, 2]}
SINCE = {"fp32": (0, 0), "fp16": (7, 5), "bf16": (8, 0), "fp8": (8, 9)}


def version(text):
    return tuple(int(part) for part in text.split("."))


def cached(s):
    return s["team_owns_builds"] and not s["fleet_open"]


def target(e, c, s):
    return ["target", s["target"]] if ENGINES.index(e) not in RUNS_ON[s["target"]] else None


def precision(e, c, s):
    low = sorted(s["architectures"], key=version)[:1]
    return ["architectures", low[0]] if low and version(low[0]) < SINCE[c["precision"]] else None


def python(e, c, s):
    return ["python_in_process", False] if e == "torch_compile" and s["python_in_process"] is False else None


def operators(e, c, s):
    strict = e.startswith("tensorrt") or (e, s["target"]) == ("openvino", "intel_npu")
    return ["refused", c["refused"]] if strict and c["refused"] else None


def shapes(e, c, s):
    bad = {"ort_tensorrt": ["open"], "tensorrt": ["open"], "tensorrt_rtx": ["open"]}
    if s["target"] == "intel_npu":
        bad["openvino"] = ["open", "bounded"]
    return ["shapes", s["shapes"]] if s["shapes"] in bad.get(e, []) else None


def builds(e, c, s):
    return ["team_owns_builds", False] if e.startswith("tensorrt") and not s["team_owns_builds"] else None


def fleet(e, c, s):
    return ["fleet_open", True] if e == "tensorrt" and s["fleet_open"] else None


def not_measured(e, c, s):
    return ["p99_ms", None] if c["p99_ms"] is None else None


def cold_start(e, c, s):
    extra = c["build_s"] if e == "torch_compile" or (e == "ort_tensorrt" and not cached(s)) else 0
    if c["start_s"] + extra <= s["cold_start_limit_s"] + 1e-9:
        return None
    field = "build_s" if c["start_s"] <= s["cold_start_limit_s"] + 1e-9 else "start_s"
    return [field, c[field]]


def latency(e, c, s):
    if c["p99_ms"] + s["outside_ms"] - s["p99_limit_ms"] <= 1e-9:
        return None
    return ["outside_ms", s["outside_ms"]] if s["outside_ms"] - s["p99_limit_ms"] > 1e-9 else ["p99_ms", c["p99_ms"]]


RULES = [target, precision, python, operators, shapes, builds, fleet, not_measured, cold_start, latency]


def price(e, s, calls, updates):
    c, hour = s["candidates"][e], s["machine_price"]
    plans = {"tensorrt_rtx": 1, "tensorrt": len(s["architectures"])}.get(e, 0)
    if e == "ort_tensorrt" and cached(s):
        plans = len(s["architectures"])
    return calls * c["mean_ms"] / 1000 / 3600 * hour + updates * plans * (hour * c["build_s"] / 3600 + s["gate_price"])


def run(s):
    fallen, left = [], [e for e in ENGINES if e in s["candidates"]]
    for rule in RULES:
        for e in list(left):
            hit = rule(e, s["candidates"][e], s)
            if hit:
                fallen.append([e, rule.__name__, *hit])
                left.remove(e)
    costs = {e: price(e, s, s["calls_per_month"], s["updates_per_month"]) for e in left}
    return fallen, costs, min(costs, key=costs.get) if costs else None


def decide(situation):
    s = situation
    if s["target"] not in RUNS_ON:
        raise ValueError("no such target: " + s["target"])
    for e in s["candidates"]:
        if e not in ENGINES:
            raise ValueError("no such engine: " + e)
    fallen, costs, engine = run(s)

    def sides(field, points):
        found = {"below": None, "above": None}
        now = s[field]
        for side, near in (("below", sorted((p for p in points if 0 < p <= now), reverse=True)), ("above", sorted(p for p in points if p > now))):
            for point in near:
                other = run({**s, field: point * (1 - 3e-7 if side == "below" else 1 + 3e-7)})[2]
                if other != engine:
                    found[side] = [point, other]
                    break
        return found

    crossings = {"calls_per_month": [], "updates_per_month": []}
    for a, b in itertools.combinations(costs, 2):
        calls = [price(e, s, 1e6, 0) / 1e6 for e in (a, b)]
        updates = [price(e, s, 0, 1) for e in (a, b)]
        if calls[0] != calls[1] and updates[0] != updates[1]:
            ratio = -(updates[0] - updates[1]) / (calls[0] - calls[1])
            crossings["calls_per_month"].append(ratio * s["updates_per_month"])
            crossings["updates_per_month"].append(s["calls_per_month"] / ratio)
    needs = [c["p99_ms"] + s["outside_ms"] for c in s["candidates"].values() if c["p99_ms"] is not None]
    change = {field: sides(field, points) for field, points in crossings.items()}
    change["p99_limit_ms"] = sides("p99_limit_ms", needs)
    return {"engine": engine, "eliminated": fallen, "costs": costs, "change": change,
            "decided_by": ["nobody_left", "elimination", "cost"][min(len(costs), 2)]}
