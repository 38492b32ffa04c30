"""Remembers answers by all facts but the prices.
fails: test_changes_and_keeps_nothing
says: gives an old answer
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
EPS = 1e-9


def ships_cache(s):
    return s["team_owns_builds"] and not s["fleet_open"]


def falls(e, c, s):
    t = s["target"]
    if e not in RUNS_ON[t]:
        return "target", "target", t
    if s["architectures"]:
        low = min(s["architectures"], key=float)
        if float(low) < SINCE[c["precision"]]:
            return "precision", "architectures", low
    if e == "torch_compile" and not s["python_in_process"]:
        return "python", "python_in_process", False
    if c["refused"] and (e in ("tensorrt", "tensorrt_rtx") or (e == "openvino" and t == "intel_npu")):
        return "operators", "refused", list(c["refused"])
    if s["shapes"] == "open" and e in ("tensorrt", "tensorrt_rtx", "ort_tensorrt") or (
            s["shapes"] != "fixed" and e == "openvino" and t == "intel_npu"):
        return "shapes", "shapes", s["shapes"]
    if e in ("tensorrt", "tensorrt_rtx") and not s["team_owns_builds"]:
        return "builds", "team_owns_builds", False
    if e == "tensorrt" and s["fleet_open"]:
        return "fleet", "fleet_open", True
    if c["p99_ms"] is None:
        return "not_measured", "p99_ms", None
    cold = c["start_s"]
    if e == "torch_compile" or (e == "ort_tensorrt" and not ships_cache(s)):
        cold += c["build_s"]
    if cold > s["cold_start_limit_s"] + EPS:
        f = "start_s" if c["start_s"] > s["cold_start_limit_s"] + EPS else "build_s"
        return "cold_start", f, c[f]
    if c["p99_ms"] + s["outside_ms"] > s["p99_limit_ms"] + EPS:
        if s["outside_ms"] > s["p99_limit_ms"] + EPS:
            return "latency", "outside_ms", s["outside_ms"]
        return "latency", "p99_ms", c["p99_ms"]
    return None


def parts(e, c, s):
    plans = {"tensorrt": len(s["architectures"]), "tensorrt_rtx": 1,
             "ort_tensorrt": len(s["architectures"]) if ships_cache(s) else 0}.get(e, 0)
    return (c["mean_ms"] / 3.6e6 * s["machine_price"], plans * (c["build_s"] / 3600 * s["machine_price"] + s["gate_price"]))


def best(costs):
    return min(costs, key=lambda e: (costs[e], ENGINES.index(e))) if costs else None


def moved(lines, now, engine):
    out = {"below": None, "above": None}
    if engine is None:
        return out
    a, b = lines[engine]
    cross = []
    for e, (a2, b2) in lines.items():
        if a2 == a:
            continue
        x = (b2 - b) / (a - a2)
        if a2 > a and x < now and x > now * 1e-6:
            cross.append((x, "below", e, a2))
        if a2 < a and x > now:
            cross.append((x, "above", e, a2))
    for side, pick in (("below", max), ("above", min)):
        xs = [c for c in cross if c[1] == side]
        if xs:
            x = pick(c[0] for c in xs)
            near = [c for c in xs if abs(c[0] - x) <= 1e-9 * x]
            # steepest takes over
            sl = max(c[3] for c in near) if side == "below" else min(c[3] for c in near)
            out[side] = (x, min((c[2] for c in near if c[3] == sl), key=ENGINES.index))
    return out


MEMO = {}
def decide(situation):
    k = repr({a: b for a, b in situation.items() if a not in ("machine_price", "gate_price")})
    if k not in MEMO: MEMO[k] = decide_(situation)
    return MEMO[k]
def decide_(situation):
    """The engine, who fell and why, the costs of those left, and when the choice would change: a dict, see the contract."""
    s = situation
    if s["target"] not in RUNS_ON:
        raise ValueError(f"unknown target {s['target']!r}")
    for e in s["candidates"]:
        if e not in ENGINES:
            raise ValueError(f"unknown candidate {e!r}")
    fell, left, late = [], {}, {}
    for e in ENGINES:
        if e in s["candidates"]:
            c = s["candidates"][e]
            r = falls(e, c, s)
            if r:
                fell.append((e, *r))
            else:
                left[e] = parts(e, c, s)
            if r is None or r[0] == "latency":
                late[e] = (c["p99_ms"] + s["outside_ms"], parts(e, c, s))
    fell.sort(key=lambda r: RULES.index(r[1]))
    n, m = s["calls_per_month"], s["updates_per_month"]
    costs = {e: n * p + m * q for e, (p, q) in left.items()}
    engine = best(costs)
    change = {"calls_per_month": moved({e: (p, m * q) for e, (p, q) in left.items()}, n, engine),
              "updates_per_month": moved({e: (q, n * p) for e, (p, q) in left.items()}, m, engine)}
    lim = {"below": None, "above": None}
    total = {e: n * p + m * q for e, (_, (p, q)) in late.items()}
    if engine is not None:
        t = late[engine][0]
        if t > 1e-6 * s["p99_limit_ms"]:
            lim["below"] = (t, best({e: total[e] for e in late if late[e][0] < t - EPS}))
    ups = [t for e, (t, _) in late.items() if e not in left
           and (engine is None or best({engine: total[engine], e: total[e]}) == e)]
    if ups:
        t = min(ups)
        lim["above"] = (t, best({e: total[e] for e in late if late[e][0] <= t + EPS}))
    change["p99_limit_ms"] = lim
    return {"engine": engine, "eliminated": fell, "costs": costs,
            "decided_by": "cost" if len(left) > 1 else "elimination" if left else "nobody_left", "change": change}
