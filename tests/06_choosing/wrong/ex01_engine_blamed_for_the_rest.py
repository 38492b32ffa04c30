"""Names p99_ms where no engine could meet the limit.
fails: test_one_fact_changes_the_answer
says: It is outside_ms if that alone is over the limit
"""
ENGINES = ("ort_cpu", "ort_windows_ml", "openvino", "ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt")
RUNS_ON = {
    "nvidia_server": {"ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt"},
    "rtx_pc": {"ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt"},
    "jetson": {"ort_cuda", "ort_tensorrt", "tensorrt"},
    "windows_pc": {"ort_windows_ml"},
    "intel_npu": {"openvino"},
    "cpu": {"ort_cpu", "openvino"},
}
SINCE = {"fp32": 0.0, "fp16": 7.5, "bf16": 8.0, "fp8": 8.9}       # lowest compute capability; see question 20

RULES = ("target", "precision", "python", "operators", "shapes", "builds", "fleet", "not_measured", "cold_start", "latency")
EQUAL = 1e-9


def ships_cache(s):
    """Whether an engine cache of the TensorRT provider can be built before deployment and still fit on arrival."""
    return s["team_owns_builds"] and not s["fleet_open"]


def why_not(engine, s):
    """(rule, field, value) of the first rule by which the engine falls, or None."""
    c, target = s["candidates"][engine], s["target"]
    if engine not in RUNS_ON[target]:
        return "target", "target", target
    lowest = min(s["architectures"], key=float, default=None)      # as numbers: "12.0" is not below "8.9"
    if lowest is not None and float(lowest) < SINCE[c["precision"]]:
        return "precision", "architectures", lowest
    if engine == "torch_compile" and not s["python_in_process"]:
        return "python", "python_in_process", False
    on_npu = engine == "openvino" and target == "intel_npu"
    if c["refused"] and (engine in ("tensorrt", "tensorrt_rtx") or on_npu):
        return "operators", "refused", list(c["refused"])
    needs_range = engine in ("tensorrt", "tensorrt_rtx", "ort_tensorrt")
    if (s["shapes"] == "open" and needs_range) or (s["shapes"] != "fixed" and on_npu):
        return "shapes", "shapes", s["shapes"]
    if engine in ("tensorrt", "tensorrt_rtx") and not s["team_owns_builds"]:
        return "builds", "team_owns_builds", False
    if engine == "tensorrt" and s["fleet_open"]:
        return "fleet", "fleet_open", True
    if c["p99_ms"] is None:
        return "not_measured", "p99_ms", None
    builds_at_start = engine == "torch_compile" or (engine == "ort_tensorrt" and not ships_cache(s))
    limit = s["cold_start_limit_s"] + EQUAL
    if c["start_s"] + builds_at_start * c["build_s"] > limit:
        field = "start_s" if c["start_s"] > limit else "build_s"
        return "cold_start", field, c[field]
    limit = s["p99_limit_ms"] + EQUAL
    if c["p99_ms"] + s["outside_ms"] > limit:
        return "latency", "p99_ms", c["p99_ms"]
    return None


def prices(engine, s):
    """(price of one call, price of one model update) for a candidate that was measured."""
    c = s["candidates"][engine]
    plans = {"tensorrt": len(s["architectures"]), "ort_tensorrt": len(s["architectures"]) * ships_cache(s), "tensorrt_rtx": 1}
    build = c["build_s"] / 3600 * s["machine_price"] + s["gate_price"]
    return c["mean_ms"] / 3_600_000 * s["machine_price"], plans.get(engine, 0) * build


def crossings(chosen, slope, constant, now):
    """Where the line of another engine crosses that of the chosen one, next to `now` on either side."""
    found = [((constant[other] - constant[chosen]) / (slope[chosen] - slope[other]), other)
             for other in slope if slope[other] != slope[chosen]]
    return {"below": max((pair for pair in found if 0 < pair[0] < now), default=None),
            "above": min((pair for pair in found if pair[0] > now), default=None)}

def decide(situation):
    """The engine, who fell and why, the costs of those left, and when the choice would change: a dict, see the contract."""
    s = situation
    if s["target"] not in RUNS_ON:
        raise ValueError(f"target is {s['target']!r}: expected one of {', '.join(RUNS_ON)}")
    if unknown := [e for e in s["candidates"] if e not in ENGINES]:
        raise ValueError(f"unknown engine {unknown[0]!r}: expected one of {', '.join(ENGINES)}")

    asked = [e for e in ENGINES if e in s["candidates"]]
    fell = {e: reason for e in asked if (reason := why_not(e, s))}
    eliminated = [(e, *fell[e]) for rule in RULES for e in asked if e in fell and fell[e][0] == rule]

    left = [e for e in asked if e not in fell]
    late = [e for e in asked if e in fell and fell[e][0] == "latency"]
    parts = {e: prices(e, s) for e in left + late}
    calls, updates = s["calls_per_month"], s["updates_per_month"]
    cost = {e: calls * per_call + updates * per_update for e, (per_call, per_update) in parts.items()}

    def cheapest(engines):
        return min(sorted(engines, key=ENGINES.index), key=cost.get, default=None)

    engine = cheapest(left)
    change = {"calls_per_month": {"below": None, "above": None}, "updates_per_month": {"below": None, "above": None}}
    if engine is not None:
        for field, now, k in (("calls_per_month", calls, 0), ("updates_per_month", updates, 1)):
            other = updates if k == 0 else calls
            change[field] = crossings(engine, {e: parts[e][k] for e in left}, {e: parts[e][1 - k] * other for e in left}, now)

    needs = {e: s["candidates"][e]["p99_ms"] + s["outside_ms"] for e in left + late}
    down = (needs[engine], cheapest([e for e in left if needs[e] < needs[engine]])) if engine is not None else None
    returning = [e for e in late if engine is None or cheapest([e, engine]) == e]
    up = min(((needs[e], cost[e], ENGINES.index(e), e) for e in returning), default=None)
    change["p99_limit_ms"] = {"below": down, "above": up and (up[0], up[3])}
    return {"engine": engine, "eliminated": eliminated, "costs": {e: cost[e] for e in left},
            "decided_by": "cost" if len(left) > 1 else "elimination" if left else "nobody_left", "change": change}
