"""A class for a candidate, NumPy for the lines, NumPy scalars in the answer."""
import numpy as np

ORDER = {e: k for k, e in enumerate(
    ("ort_cpu", "ort_windows_ml", "openvino", "ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt"))}
NVIDIA = {"ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt"}
PLACES = {"nvidia_server": NVIDIA, "rtx_pc": NVIDIA | {"tensorrt_rtx"}, "jetson": NVIDIA - {"torch_compile"}, "windows_pc": {"ort_windows_ml"},
          "intel_npu": {"openvino"}, "cpu": {"ort_cpu", "openvino"}}
LOWEST = dict(fp32=0, fp16=75, bf16=80, fp8=89)
NAMES = "target precision python operators shapes builds fleet not_measured cold_start latency".split()


class Candidate:
    def __init__(self, name, s):
        self.name, self.s, self.f = name, s, s["candidates"][name]
        self.own_plan = name in ("tensorrt", "tensorrt_rtx")
        self.shipped = s["team_owns_builds"] and not s["fleet_open"]
        self.npu = name == "openvino" and s["target"] == "intel_npu"
        self.verdict = next(((rule, *fact) for rule in NAMES if (fact := getattr(self, rule)()) is not None), None)

    def target(self):
        if self.name not in PLACES[self.s["target"]]:
            return "target", self.s["target"]

    def precision(self):
        cards = {round(float(a) * 10): a for a in self.s["architectures"]}
        if cards and min(cards) < LOWEST[self.f["precision"]]:
            return "architectures", cards[min(cards)]

    def python(self):
        if self.name == "torch_compile" and not self.s["python_in_process"]:
            return "python_in_process", False

    def operators(self):
        if (self.own_plan or self.npu) and len(self.f["refused"]):
            return "refused", tuple(self.f["refused"])

    def shapes(self):
        profile = self.own_plan or self.name == "ort_tensorrt"
        if (profile and self.s["shapes"] == "open") or (self.npu and self.s["shapes"] in ("open", "bounded")):
            return "shapes", self.s["shapes"]

    def builds(self):
        if self.own_plan and not self.s["team_owns_builds"]:
            return "team_owns_builds", False

    def fleet(self):
        if self.name == "tensorrt" and self.s["fleet_open"]:
            return "fleet_open", True

    def not_measured(self):
        if self.f["p99_ms"] is None:
            return "p99_ms", None

    def cold_start(self):
        on_arrival = {"torch_compile": True, "ort_tensorrt": not self.shipped}.get(self.name, False)
        limit = self.s["cold_start_limit_s"] + 1e-9
        if self.f["start_s"] > limit:
            return "start_s", self.f["start_s"]
        if on_arrival and self.f["start_s"] + self.f["build_s"] > limit:
            return "build_s", self.f["build_s"]

    def latency(self):
        if self.s["outside_ms"] > self.s["p99_limit_ms"] + 1e-9:
            return "outside_ms", self.s["outside_ms"]
        if self.needs > self.s["p99_limit_ms"] + 1e-9:
            return "p99_ms", self.f["p99_ms"]

    @property
    def needs(self):
        return self.f["p99_ms"] + self.s["outside_ms"]

    @property
    def line(self):
        plans = {"tensorrt": len(self.s["architectures"]), "tensorrt_rtx": 1, "ort_tensorrt": len(self.s["architectures"]) if self.shipped else 0}
        each = self.f["build_s"] * self.s["machine_price"] / 3600 + self.s["gate_price"]
        return np.array([self.f["mean_ms"] * self.s["machine_price"] / 3.6e6, plans.get(self.name, 0) * each])

    @property
    def cost(self):
        return self.line @ np.array([self.s["calls_per_month"], self.s["updates_per_month"]])

    @property
    def rank(self):
        return self.cost, ORDER[self.name]


def decide(situation):
    if situation["target"] not in PLACES:
        raise ValueError(f"target {situation['target']}")
    strangers = set(situation["candidates"]) - set(ORDER)
    if strangers:
        raise ValueError(f"engines {strangers}")
    all_ = [Candidate(name, situation) for name in sorted(situation["candidates"], key=ORDER.get)]
    left = sorted((c for c in all_ if not c.verdict), key=lambda c: c.rank)
    late = [c for c in all_ if c.verdict and c.verdict[0] == "latency"]
    fell = sorted((c for c in all_ if c.verdict), key=lambda c: NAMES.index(c.verdict[0]))
    best = left[0] if left else None
    change = {}
    for k, field in enumerate(("calls_per_month", "updates_per_month")):
        now, best_down, best_up = situation[field], None, None
        for other in left[1:]:
            slope, gap = best.line[k] - other.line[k], other.cost - best.cost
            if slope == 0:
                continue
            at = now + gap / slope
            if slope < 0 and at > 0 and (best_down is None or at > best_down[0]):
                best_down = (at, other.name)
            if slope > 0 and (best_up is None or at < best_up[0]):
                best_up = (at, other.name)
        change[field] = {"below": best_down, "above": best_up}
    down = up = None
    if best:
        quicker = [c for c in left if c.needs < best.needs]
        down = (best.needs, quicker[0].name if quicker else None)
    back = sorted((c for c in late if best is None or c.rank < best.rank), key=lambda c: (c.needs, c.rank))
    if back:
        up = (back[0].needs, back[0].name)
    change["p99_limit_ms"] = {"below": down, "above": up}
    return {"engine": best and best.name, "eliminated": [(c.name, *c.verdict) for c in fell], "costs": {c.name: c.cost for c in left},
            "decided_by": "nobody_left" if not left else "elimination" if len(left) == 1 else "cost", "change": change}
