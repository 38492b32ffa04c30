"""Thresholds by asking: the situation is decided again between all points where anything can change."""
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
ORDER = ["target", "precision", "python", "operators", "shapes", "builds", "fleet", "not_measured", "cold_start", "latency"]
PLAIN_TRT = {"tensorrt", "tensorrt_rtx"}


def over(value, limit):
    return value - limit > 1e-9


def rules(engine, s, facts):
    """Yields each rule that applies, lazily: nobody adds None to a number after 'not_measured'."""
    shippable = s["team_owns_builds"] and not s["fleet_open"]
    npu = (engine, s["target"]) == ("openvino", "intel_npu")
    if engine not in RUNS_ON[s["target"]]:
        yield "target", "target", s["target"]
    fleet = sorted(s["architectures"], key=lambda a: tuple(map(int, a.split("."))))
    if fleet and float(fleet[0]) < SINCE[facts["precision"]]:
        yield "precision", "architectures", fleet[0]
    if engine == "torch_compile" and not s["python_in_process"]:
        yield "python", "python_in_process", s["python_in_process"]
    if facts["refused"] and (engine in PLAIN_TRT or npu):
        yield "operators", "refused", tuple(facts["refused"])
    if (s["shapes"] == "open" and (engine in PLAIN_TRT or engine == "ort_tensorrt")) or (npu and s["shapes"] != "fixed"):
        yield "shapes", "shapes", s["shapes"]
    if engine in PLAIN_TRT and not s["team_owns_builds"]:
        yield "builds", "team_owns_builds", s["team_owns_builds"]
    if engine == "tensorrt" and s["fleet_open"]:
        yield "fleet", "fleet_open", s["fleet_open"]
    if facts["p99_ms"] is None:
        yield "not_measured", "p99_ms", None
    cold = [facts["start_s"]]
    if engine == "torch_compile" or engine == "ort_tensorrt" and not shippable:
        cold.append(facts["build_s"])
    if over(sum(cold), s["cold_start_limit_s"]):
        yield ("cold_start", "start_s", cold[0]) if over(cold[0], s["cold_start_limit_s"]) else ("cold_start", "build_s", cold[1])
    if over(facts["p99_ms"] + s["outside_ms"], s["p99_limit_ms"]):
        alone = over(s["outside_ms"], s["p99_limit_ms"])
        yield ("latency", "outside_ms", s["outside_ms"]) if alone else ("latency", "p99_ms", facts["p99_ms"])


def bill(engine, s, facts):
    each = {"tensorrt": len(s["architectures"]), "tensorrt_rtx": 1}
    if s["team_owns_builds"] and not s["fleet_open"]:
        each["ort_tensorrt"] = len(s["architectures"])
    hours = s["calls_per_month"] * facts["mean_ms"] / 3.6e6
    return hours * s["machine_price"] + s["updates_per_month"] * each.get(engine, 0) * (facts["build_s"] / 3600 * s["machine_price"] + s["gate_price"])


def verdict(s):
    out = {e: next(rules(e, s, f), None) for e, f in s["candidates"].items()}
    costs = {e: bill(e, s, s["candidates"][e]) for e in ENGINES if e in out and out[e] is None}
    best = min(costs.values(), default=None)
    return next((e for e in ENGINES if e in costs and costs[e] == best), None), out, costs


def decide(situation):
    if situation["target"] not in RUNS_ON:
        raise ValueError("no such target: " + str(situation["target"]))
    for name in situation["candidates"]:
        if name not in ENGINES:
            raise ValueError("no such engine: " + str(name))
    engine, out, costs = verdict(situation)

    def look(field, points):
        now, found = situation[field], {}
        for side in ("below", "above"):
            mine = sorted({p for p in points if 1e-6 * now < p and (p <= now + 1e-9 if side == "below" else p > now + 1e-9)}, reverse=side == "below")
            ends = mine[1:] + [0.0 if side == "below" else 4 * (mine[-1] if mine else 1)]
            found[side] = None
            for point, end in zip(mine, ends):
                other = verdict({**situation, field: (point + end) / 2})[0]
                if other != engine:
                    found[side] = [point, other]
                    break
        return found

    def lines(field):
        at = []
        for x in (0.0, 1e6):
            s = {**situation, field: x}
            at.append({e: bill(e, s, s["candidates"][e]) for e in costs})
        meets = []
        for a in costs:
            for b in costs:
                gaps = [at[0][a] - at[0][b], at[1][a] - at[1][b]]
                if a < b and gaps[0] != gaps[1]:
                    meets.append(1e6 * gaps[0] / (gaps[0] - gaps[1]))
        return meets

    limits = [f["p99_ms"] + situation["outside_ms"] for f in situation["candidates"].values() if f["p99_ms"] is not None]
    fallen = [[e, *out[e]] for e in ENGINES if out.get(e)]
    return {"decided_by": ["nobody_left", "elimination", "cost"][min(2, len(costs))], "engine": engine, "costs": costs,
            "eliminated": sorted(fallen, key=lambda line: ORDER.index(line[1])),
            "change": {"p99_limit_ms": look("p99_limit_ms", limits),
                       **{field: look(field, lines(field)) for field in ("calls_per_month", "updates_per_month")}}}
