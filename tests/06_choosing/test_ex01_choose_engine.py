"""Grader of 06_choosing/ex01_choose_engine: the six situations of its page, each rule alone, and seeded situations.

Graded one by one, as in an interview: the choice, the reasons, the number, the condition. The oracle computes with fractions, and finds
thresholds by asking itself between all points where a line crosses another or a limit is met, not by the formulas of the solution.
"""
import copy
import itertools
import math
import random
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from course.exercises import Exercise
from course.grading import Raised, Wrong

EXERCISE = "06_choosing/ex01_choose_engine"
PROBE = "probe_ex01.py"
LIMITS = {"call_seconds": 20.0, "memory_gib": 2.0}

ENGINES = ["ort_cpu", "ort_windows_ml", "openvino", "ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt"]
TARGETS = {"nvidia_server": "ort_cuda torch_compile ort_tensorrt tensorrt", "rtx_pc": "ort_cuda torch_compile ort_tensorrt tensorrt_rtx tensorrt",
           "jetson": "ort_cuda ort_tensorrt tensorrt", "windows_pc": "ort_windows_ml", "intel_npu": "openvino", "cpu": "ort_cpu openvino"}
RULES = ["target", "precision", "python", "operators", "shapes", "builds", "fleet", "not_measured", "cold_start", "latency"]
FIELDS = ["calls_per_month", "updates_per_month", "p99_limit_ms"]
KEYS = {"engine", "eliminated", "costs", "decided_by", "change"}
EQUAL = Fraction(1, 10**9)


def six():
    """The situations of the exercise's page: the cell that makes them, run here."""
    source = Exercise(EXERCISE).source.read_text(encoding="utf-8")      # as text: reading notebook cells costs more than all checks
    cell = source.partition("# %%\n# the six situations\n")[2].partition("\n# %%")[0]
    space = {"print": lambda *args, **kwargs: None}
    exec(cell, space)
    return space["SITUATIONS"]


SIX = six()



@cache
def of_six(name):
    """The oracle's answer to one of the six."""
    return oracle(SIX[name])


# The reasons and choices of the six by hand, as a person reads the rules: they hold the oracle to the prompt.
BY_HAND = {
    "photo_labels": ("tensorrt", "openvino target, tensorrt_rtx target, torch_compile python, ort_tensorrt not_measured"),
    "query_encoder": ("ort_cuda", "ort_tensorrt not_measured, torch_compile cold_start"),
    "model_of_the_day": ("torch_compile", "tensorrt builds, ort_tensorrt not_measured"),
    "video_filter": ("tensorrt_rtx", "torch_compile precision, tensorrt fleet, ort_tensorrt cold_start, ort_cuda latency"),
    "inspection_camera": ("ort_tensorrt", "openvino target, tensorrt operators, ort_cuda latency"),
    "note_taker": ("ort_windows_ml", "openvino target, tensorrt_rtx target, tensorrt target"),
}


# ---- the oracle: fractions, and thresholds found by asking ----------------------------------------------------------

def ships(s):
    return s["team_owns_builds"] and not s["fleet_open"]


def fall(e, s, twist):
    """(rule, field, value) or None. twist: names of mistakes to make on purpose, for the words of a message."""
    c = s["candidates"][e]
    if e not in TARGETS[s["target"]].split():
        return "target", "target", s["target"]
    if s["architectures"]:
        pick = sorted(s["architectures"], key=str if "texts" in twist else Fraction)[-1 if "newest" in twist else 0]
        if float(pick) < {"fp32": 0, "fp16": 7.5, "bf16": 8.0, "fp8": 8.9}[c["precision"]]:
            return "precision", "architectures", pick
    whole_graph = {"tensorrt", "tensorrt_rtx"} | ({"openvino"} if s["target"] == "intel_npu" else set())
    ranges = {"fixed": set(), "bounded": {"openvino"}, "open": {"openvino", "tensorrt", "tensorrt_rtx", "ort_tensorrt"}}[s["shapes"]]
    for rule, field, value, applies in (
            ("python", "python_in_process", False, not s["python_in_process"] and e == "torch_compile"),
            ("operators", "refused", list(c["refused"]), len(c["refused"]) > 0 and e in whole_graph),
            ("shapes", "shapes", s["shapes"], e in ranges and (e != "openvino" or s["target"] == "intel_npu")),
            ("builds", "team_owns_builds", False, not s["team_owns_builds"] and e.startswith("tensorrt")),
            ("fleet", "fleet_open", True, s["fleet_open"] and e == "tensorrt"),
            ("not_measured", "p99_ms", None, c["p99_ms"] is None)):
        if applies:
            return rule, field, value
    start, build = Fraction(c["start_s"]), Fraction(c["build_s"])
    at_start = {"torch_compile"} | (set() if ships(s) else {"ort_tensorrt"})
    most = Fraction(s["cold_start_limit_s"]) + EQUAL
    if "no_build_at_start" not in twist and start + (build if e in at_start else 0) > most or start > most:
        return ("cold_start", "start_s", c["start_s"]) if start > most else ("cold_start", "build_s", c["build_s"])
    most = Fraction(s["p99_limit_ms"]) + EQUAL
    outside = 0 if "no_outside" in twist else Fraction(s["outside_ms"])
    if Fraction(c["p50_ms" if "p50_limit" in twist else "p99_ms"]) + outside > most:
        return ("latency", "outside_ms", s["outside_ms"]) if outside > most else ("latency", "p99_ms", c["p99_ms"])
    return None


def cost(e, s, twist=frozenset()):
    c = s["candidates"][e]
    ms = Fraction(c["p50_ms" if "p50_cost" in twist else "p99_ms" if "p99_cost" in twist else "mean_ms"])
    if "outside_cost" in twist:
        ms += Fraction(s["outside_ms"])
    n = 1 if "one_plan" in twist else len(s["architectures"])
    plans = {"tensorrt": n, "ort_tensorrt": n if ships(s) or "always_pays" in twist else 0,
             "tensorrt_rtx": len(s["architectures"]) if "rtx_each" in twist else 1}.get(e, 0)
    if "everybody_gates" in twist:
        plans = plans or 1
    build = Fraction(c["build_s"]) / 3600 * Fraction(s["machine_price"])
    each = (0 if "no_build_price" in twist else build) + (0 if "no_gate_price" in twist else Fraction(s["gate_price"]))
    if "build_in_seconds" in twist:
        each = Fraction(c["build_s"]) * Fraction(s["machine_price"]) + Fraction(s["gate_price"])
    run = Fraction(s["calls_per_month"]) * ms / 3_600_000 * Fraction(s["machine_price"])
    return run + (0 if "no_plans" in twist else Fraction(s["updates_per_month"]) * plans * each)


def verdict(s, twist=frozenset()):
    """(engine, {engine: reason of those that fell}, [left], {engine: cost})."""
    fell = {e: fall(e, s, twist) for e in s["candidates"]}
    left = [e for e in ENGINES if e in fell and fell[e] is None]
    costs = {e: cost(e, s, twist) for e in left}
    return min(left, key=lambda e: (costs[e], ENGINES.index(e)), default=None), {e: r for e, r in fell.items() if r}, left, costs


def between(ask, points, down):
    """The nearest of points past which another engine is chosen, as (point, engine), or None. ask: the engine for a value."""
    points = sorted({p for p in points if p > 0}, reverse=down)
    for i, point in enumerate(points):
        far = points[i + 1] if i + 1 < len(points) else (0 if down else 2 * point + 1)
        if (then := ask((point + far) / 2)) != ask(None):
            return point, then
    return None


def oracle(s, condition=True):
    """The right answer. condition: False leaves out what would change it, which costs the most."""
    engine, fell, left, costs = verdict(s)
    want = {"engine": engine, "costs": costs,
            "eliminated": [(e, *fell[e]) for rule in RULES for e in ENGINES if e in fell and fell[e][0] == rule],
            "decided_by": "cost" if len(left) > 1 else "elimination" if left else "nobody_left"}
    if not condition:
        return want
    change, points = {}, {}
    for field in FIELDS[:2]:
        lines = {e: [cost(e, s | {field: x}) for x in (0, 1)] for e in left}     # two points of each line give all others, and the crossings

        def ask(x, lines=lines):
            return min(lines, key=lambda e: (lines[e][0] + x * (lines[e][1] - lines[e][0]), ENGINES.index(e)), default=None) if x is not None else engine

        now, crossing = Fraction(s[field]), set()
        assert ask(now) == engine
        for a, b in itertools.combinations(left, 2):
            gap = [lines[a][x] - lines[b][x] for x in (0, 1)]
            if gap[0] != gap[1]:
                crossing.add(gap[0] / (gap[0] - gap[1]))
        change[field] = {"below": between(ask, {p for p in crossing if p < now}, True),
                         "above": between(ask, {p for p in crossing if p > now}, False)}
        points[field] = [p for p in crossing if p > 0] + [now]
    now = Fraction(s["p99_limit_ms"])
    meets = [Fraction(c["p99_ms"]) + Fraction(s["outside_ms"]) for c in s["candidates"].values() if c["p99_ms"] is not None]

    def ask(limit):
        return verdict(s | {"p99_limit_ms": limit})[0] if limit is not None else engine

    change["p99_limit_ms"] = {"below": between(ask, {p for p in meets if p <= now + EQUAL}, True),
                              "above": between(ask, {p for p in meets if p > now + EQUAL}, False)}
    points["p99_limit_ms"] = meets
    return want | {"change": change, "points": points}


def clear(s, want=None):
    """Whether nothing about s hangs on rounding: costs and thresholds of a situation lie apart."""
    want = want or oracle(s)
    for numbers in (want["costs"].values(), *want["points"].values()):
        ordered = sorted(numbers)
        if any(b - a <= Fraction(1, 10**5) * abs(b) for a, b in itertools.pairwise(ordered)):
            return False
    return all(p > Fraction(s[field]) / 10**5 for field in FIELDS[:2] for p in want["points"][field])


# ---- comparing: choice, reasons, number, condition ------------------------------------------------------------------

def text(s):
    """A situation for a call: its own facts in one line, then those of each candidate."""
    own = ", ".join(f"{k}={s[k]!r}" for k in KNOWN)
    return f"decide(situation), situation: {own}" + "".join(f"\n            {e}: {facts_text(c)}" for e, c in s["candidates"].items())


def facts_text(c):
    if c["p99_ms"] is None:
        return f"{c['precision']}, refused {c['refused']}, not measured (None)"
    return f"{c['precision']}, refused {c['refused']}, " + ", ".join(f"{k} {c[k]:.6g}" for k in ("p50_ms", "mean_ms", "p99_ms", "start_s", "build_s"))


KNOWN = ["target", "architectures", "fleet_open", "python_in_process", "team_owns_builds", "shapes", "calls_per_month", "updates_per_month",
         "p99_limit_ms", "outside_ms", "cold_start_limit_s", "machine_price", "gate_price"]


def answer(submission, s, what):
    """decide's answer, with its form checked."""
    call = f"{text(s)}  ({what})"
    try:
        got = submission.attempt("decide", s)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("decide is not written yet.", call, error.text) from None
        hint = ""
        if error.kind in ("TypeError", "ValueError") and any(c["p99_ms"] is None for c in s["candidates"].values()):
            hint = " A candidate that was not measured has None for its numbers: it falls before they are compared."
        at = f" (your {error.where})" if error.where else ""
        raise Wrong(f"decide raised {error.kind}{at} for a situation that the contract allows.{hint}", call, error.text) from None
    check_form(got, s, call)
    return got, call


def check_form(got, s, call):
    if not isinstance(got, dict) or set(map(str, got)) != KEYS:
        raise Wrong("decide returns a dict with the five keys of the contract.", call, sorted(map(str, got)) if isinstance(got, dict) else got, sorted(KEYS))
    fallen = got["eliminated"]
    if not isinstance(fallen, (list, tuple)) or not all(isinstance(f, (list, tuple)) and len(f) == 4 for f in fallen):
        raise Wrong("'eliminated' is a list of (engine, rule, field, value).", call, fallen)
    for f in fallen:
        if f[0] not in list(s["candidates"]) or f[1] not in RULES:
            raise Wrong("'eliminated' names a candidate of the situation and one of the ten rules.", call, f, ", ".join(RULES))
    if len({f[0] for f in fallen}) < len(fallen):
        raise Wrong("A candidate falls once, by the first rule that applies: one line for each in 'eliminated'.", call, [tuple(f[:2]) for f in fallen])
    if not isinstance(got["engine"], (str, type(None))):
        raise Wrong("'engine' is the name of an engine, or None.", call, got["engine"])
    if not isinstance(got["costs"], dict) or not all(number(v) for v in got["costs"].values()):
        raise Wrong("'costs' is a dict from engine to a number.", call, got["costs"])
    change = got["change"]
    if not isinstance(change, dict) or set(map(str, change)) != set(FIELDS) or not all(
            isinstance(v, dict) and set(map(str, v)) == {"below", "above"} for v in change.values()):
        raise Wrong("'change' has the three fields of the contract, each with 'below' and 'above'.", call, change)
    for field in FIELDS:
        for pair in change[field].values():
            if pair is not None and not (isinstance(pair, (list, tuple)) and len(pair) == 2 and number(pair[0]) and isinstance(pair[1], (str, type(None)))):
                raise Wrong("'below' and 'above' are (threshold, engine), or None in place of the pair: a finite number, and a name or None.", call, {field: change[field]})


def number(v):
    return isinstance(v, (int, float, np.integer, np.floating)) and not isinstance(v, bool) and math.isfinite(v)


def close(a, b, rtol=1e-6):
    return abs(float(a) - float(b)) <= rtol * max(abs(float(a)), abs(float(b))) + 1e-9


def check_choice(got, want, s, call):
    if got["engine"] == want["engine"]:
        return
    by = {"cost": f"of those left ({', '.join(want['costs'])}) it costs least", "elimination": "nobody else is left",
          "nobody_left": "each candidate falls"}[want["decided_by"]]
    mistake = why_choice(got["engine"], want, s)
    raise Wrong(f"Choice: another engine is right, since {by}.{mistake}", call, f"{got['engine']}", f"{want['engine']}")


def why_choice(engine, want, s):
    fell = {f[0]: f for f in want["eliminated"]}
    if engine in fell:
        rule, field, value = fell[engine][1:]
        return f" {engine} falls: rule {rule}, {field} is {value!r}."
    if engine is None:
        return ""
    if engine not in want["costs"]:
        return " That engine is no candidate here."
    if close(want["costs"][engine], want["costs"][want["engine"]]):
        return " The costs are equal: then the one that stands first in ENGINES, whatever the order of the candidates."
    fastest = min(want["costs"], key=lambda e: s["candidates"][e]["mean_ms"])
    twists = {"p50_cost": " By p50 it is: but a month of calls costs calls times mean.", "p99_cost": " By p99 it is: but a month costs calls times mean.",
              "no_plans": " Without the price of plans it is: each update builds and gates them.",
              "one_plan": " With one plan for the whole fleet it is: there is one for each architecture.",
              "everybody_gates": " It is if each engine has a plan: those that build none pay for none.",
              "always_pays": " It is if the provider always pays for plans: without a cache to ship it pays for none.",
              "rtx_each": " It is if TensorRT for RTX needs a plan for each architecture: one is enough."}
    for twist, words in twists.items():
        if min(want["costs"], key=lambda e: cost(e, s, frozenset([twist]))) == engine:
            return words
    return " It is the fastest, and not the cheapest." if engine == fastest else ""


HINTS = {"target": "it cannot run on this target, whatever its numbers", "precision": "the oldest GPU of the fleet has no fast units for this type",
         "python": "it needs Python in the process", "operators": "it takes the whole graph or nothing, and an operator is refused",
         "shapes": "the shapes do not stay in a known range", "builds": "nobody builds engines", "fleet": "GPUs come for which there is no plan",
         "not_measured": "nobody measured it there", "cold_start": "its first answer comes too late", "latency": "its p99 and the time outside do not fit into the limit"}


def check_reasons(got, want, s, call):
    mine, right = [tuple(f) for f in got["eliminated"]], want["eliminated"]
    a, b = {f[0]: f[1:] for f in mine}, {f[0]: f[1:] for f in right}
    head = "The engine is right, and a reason is not: " if got["engine"] == want["engine"] else "Reasons: "
    for e in ENGINES:
        if e in b and e not in a:
            raise Wrong(f"{head}{e} falls, {HINTS[b[e][0]]}, and it is not in 'eliminated'. {why_left(e, s, b[e])}".rstrip(), call, f"{e} is left", (e, *b[e]))
        if e in a and e not in b:
            raise Wrong(f"{head}{e} is said to fall by {a[e][0]!r}, and no rule applies to it. {why_fell(a[e][0], e, s)}".rstrip(), call, (e, *a[e]), f"{e} is left")
        if e in a and a[e][0] != b[e][0]:
            before = RULES.index(b[e][0]) < RULES.index(a[e][0])
            order = "comes before it" if before else f"does apply, and {a[e][0]!r} does not. {why_fell(a[e][0], e, s)}".rstrip(" .")
            raise Wrong(f"{head}{e} falls by {b[e][0]!r} ({HINTS[b[e][0]]}), which {order}.", call, (e, *a[e]), (e, *b[e]))
        if e in a and not same_fact(a[e][1:], b[e][1:]):
            raise Wrong(f"{head}{e} falls by {b[e][0]!r}, but another fact decides it. {why_fact(b[e][0], a[e], b[e])}".rstrip(), call, (e, *a[e]), (e, *b[e]))
    if [f[0] for f in mine] != [f[0] for f in right]:
        raise Wrong(f"{head}the order of 'eliminated' is that of the rules, and within a rule that of ENGINES.", call,
                    [f[:2] for f in mine], [f[:2] for f in right])
    if got["decided_by"] != want["decided_by"]:
        raise Wrong(f"{head}'decided_by' is wrong with {len(want['costs'])} left: 'cost' needs two or more to compare, equal or not.", call,
                    got["decided_by"], want["decided_by"])


def same_fact(a, b):
    if a[0] != b[0]:
        return False
    if isinstance(b[1], list):
        return isinstance(a[1], (list, tuple)) and list(a[1]) == b[1]
    if isinstance(b[1], bool) or b[1] is None or isinstance(b[1], str):
        return a[1] == b[1] and isinstance(a[1], bool) == isinstance(b[1], bool)
    return number(a[1]) and close(a[1], b[1])


def why_left(e, s, fact):
    rule = fact[0]
    if rule == "precision":
        twist = {"newest": "A fleet has the types that all its GPUs have: the lowest capability counts.",
                 "texts": "Compare capabilities as numbers: as text '12.0' is below '8.9'."}
        return " ".join(words for t, words in twist.items() if (fall(e, s, {t}) or [""])[0] != "precision")
    if rule == "cold_start" and fact[1] == "build_s":
        return "It builds while the process starts, so the build is part of the cold start."
    if rule == "latency":
        twist = {frozenset(["p50_limit"]): "The limit is one for p99, not for p50.",
                 frozenset(["no_outside"]): "What a request spends outside the engine counts too."}
        return " ".join(words for t, words in twist.items() if fall(e, s, t) is None)
    return ""


def why_fell(rule, e, s):
    c = s["candidates"][e]
    if rule == "operators":
        return "This engine has a fallback: a refused operator runs elsewhere."
    if rule == "precision":
        return "Compare capabilities as numbers: as text '12.0' is below '8.9'."
    if rule in ("cold_start", "latency"):
        limit = s["cold_start_limit_s"] if rule == "cold_start" else s["p99_limit_ms"]
        value = c["start_s"] if rule == "cold_start" else c["p99_ms"] + s["outside_ms"]
        if close(value, limit) or rule == "cold_start" and close(value + c["build_s"], limit):
            return "A value equal to its limit passes."
        if rule == "cold_start":
            return "Its build is not in the cold start: it was built before, and shipped."
    if rule == "builds":
        return "Without builds of the team it compiles where it runs, or nothing."
    if rule == "fleet":
        return "It does not need a plan for each architecture in advance."
    if rule == "shapes":
        return "A known range is enough for a profile." if s["shapes"] == "bounded" else "Varying shapes are no rule for this engine here."
    return ""


def why_fact(rule, got, want):
    if rule == "precision" and got[1] == "architectures":
        if not isinstance(got[2], str):
            return "The value is the lowest capability as it is written in the situation: a str."
        return "Name the lowest capability, found as a number."
    if rule == "operators" and got[1] == "refused":
        return "The value is the whole list, as it is given."
    if rule in ("cold_start", "latency") and got[1] == want[1]:
        return f"The value is that of {want[1]} alone, not a sum."
    if rule == "cold_start":
        return "It is start_s only if that alone is over the limit; else the build decides."
    if rule == "latency":
        return "It is outside_ms if that alone is over the limit: then no engine can help; else p99_ms."
    return "Field and value stand in the table of rules."


def check_number(got, want, s, call):
    head = "The engine is right, and the number is not: " if got["engine"] == want["engine"] else "Number: "
    if set(got["costs"]) != set(want["costs"]):
        raise Wrong(f"{head}'costs' has an entry for each engine that is left, and no other.", call, sorted(map(str, got["costs"])), sorted(want["costs"]))
    for e, right in want["costs"].items():
        if not close(got["costs"][e], right):
            raise Wrong(f"{head}the cost of {e} is wrong. {why_cost(e, s, got['costs'][e], right)}".rstrip(), call, f"{e}: {got['costs'][e]}", f"{e}: {float(right):.8g}")


def why_cost(e, s, got, right):
    words = {"p50_cost": "It is made from p50: calls times mean is the time of a month.", "p99_cost": "It is made from p99: not each call is the slowest.",
             "outside_cost": "The time outside the engine is the same for all, and not in this cost.",
             "one_plan": "It has one plan: there is one for each architecture.", "rtx_each": "TensorRT for RTX needs one plan, not one for each architecture.",
             "no_build_price": "The machine that builds costs its hours too.", "no_gate_price": "Each plan passes the gate, and that has a price.",
             "everybody_gates": "This engine builds no plan, and pays for none.", "always_pays": "Without a cache to ship the provider builds on the target: no plans.",
             "build_in_seconds": "build_s is in seconds, and the price is for an hour.", "no_plans": "The plans of the updates are missing."}
    for twist, text_ in words.items():
        if close(got, cost(e, s, frozenset([twist]))):
            return text_
    run = Fraction(s["calls_per_month"]) * Fraction(s["candidates"][e]["mean_ms"]) / 3_600_000 * Fraction(s["machine_price"])
    for factor in (1000, 60, 3600, Fraction(1, 1000)):
        if run and close(got, right + run * (factor - 1)):
            return "Milliseconds to hours: divide by 3,600,000."
    return ""


def check_condition(got, want, s, call):
    head = "The engine is right, and the condition is not: " if got["engine"] == want["engine"] else "Condition: "
    for field in FIELDS:
        for side in ("below", "above"):
            mine, right = got["change"][field][side], want["change"][field][side]
            words = f"'{field}', '{side}'"
            if right is None and mine is not None and 0 < mine[0] <= 1e-6 * s[field]:
                continue                        # 0, but for rounding
            if right is None and mine is not None:
                raise Wrong(f"{head}{words}: the choice does not change on this side. {why_extra(field, side, mine, want, s)}".rstrip(), call, tuple(mine), "None")
            if right is not None and mine is None:
                raise Wrong(f"{head}{words}: the choice changes on this side. {why_missing(field, side, right, got)}".rstrip(), call, "None", (float(right[0]), right[1]))
            if right is not None and not close(mine[0], right[0]):
                raise Wrong(f"{head}{words}: the threshold is wrong. {why_threshold(field, side, mine, right, want, s)}".rstrip(), call, tuple(mine),
                            (float(right[0]), right[1]))
            if right is not None and mine[1] != right[1]:
                raise Wrong(f"{head}{words}: past this threshold another engine is chosen. {why_next(field, right)}".rstrip(), call, tuple(mine),
                            (float(right[0]), right[1]))


def why_extra(field, side, mine, want, s):
    if mine[1] in {f[0] for f in want["eliminated"] if f[1] != "latency" or field != "p99_limit_ms"}:
        return f"{mine[1]} fell: no change of this number brings it back."
    if mine[0] <= 0:
        return "A threshold is above 0."
    if field == "p99_limit_ms" and side == "above":
        return f"{mine[1]} comes back there, and the chosen engine is still the cheaper one."
    other = want["change"][field]["above" if side == "below" else "below"]
    if other and close(mine[0], other[0]):
        return "The sides are exchanged."
    return ""


def why_missing(field, side, right, got):
    other = got["change"][field]["above" if side == "below" else "below"]
    if other and close(other[0], right[0]):
        return "The sides are exchanged."
    if field != "p99_limit_ms":
        return "Another line crosses that of the chosen engine there."
    if right[1] is None:
        return "Below it nobody is left: that is (threshold, None)."
    return "The chosen engine falls there." if side == "below" else "One that is cheaper, or as cheap and before it in ENGINES, fell by the limit alone, and comes back."


def why_threshold(field, side, mine, right, want, s):
    if field != "p99_limit_ms" and mine[1] in {f[0] for f in want["eliminated"]}:
        return f"{mine[1]} fell: no change of this number brings it back."
    if field == "p99_limit_ms":
        if close(mine[0] + s["outside_ms"], right[0]):
            return "The limit is one of the request: what is outside the engine is part of it."
        return "It is p99 and what is outside, of the one that falls or comes back."
    farther = mine[0] < right[0] if side == "below" else mine[0] > right[0]
    if farther and any(close(mine[0], p) for p in want["points"][field]):
        return "That is a crossing, and another engine takes over before it: take the nearest."
    return "It is where the costs of two engines are equal, with everything else as it is."


def why_next(field, right):
    if right[1] is None:
        return "Nobody is left there: None in the engine's place."
    return "Of those still within the limit, the cheapest." if field == "p99_limit_ms" else "It is the one whose line crosses."


def grade(submission, s, what, want=None):
    """All four parts."""
    want = want or oracle(s)
    got, call = answer(submission, s, what)
    for check in (check_choice, check_reasons, check_number, check_condition):
        check(got, want, s, call)
    return want


# ---- the six situations, a row of the rubric each -------------------------------------------------------------------

def test_oracle_reads_the_rules_as_a_person_does():
    """The six situations: the expected reasons, written by hand, are those that the grader computes"""
    for name, (engine, reasons) in BY_HAND.items():
        want = of_six(name)
        assert (want["engine"], ", ".join(f"{e} {rule}" for e, rule, *_ in want["eliminated"])) == (engine, reasons), name
        assert clear(SIX[name], want), name


@pytest.mark.parametrize("name", BY_HAND)
def test_six_choice(submission, name):
    """Choice: the engine for each of the six situations"""
    got, call = answer(submission, SIX[name], name)
    check_choice(got, of_six(name), SIX[name], call)


@pytest.mark.parametrize("name", BY_HAND)
def test_six_reasons(submission, name):
    """Reasons: who falls, by which rule and which fact"""
    got, call = answer(submission, SIX[name], name)
    check_reasons(got, of_six(name), SIX[name], call)


@pytest.mark.parametrize("name", BY_HAND)
def test_six_number(submission, name):
    """Number: the cost a month of those left"""
    got, call = answer(submission, SIX[name], name)
    check_number(got, of_six(name), SIX[name], call)


@pytest.mark.parametrize("name", BY_HAND)
def test_six_condition(submission, name):
    """Condition: what would have to change, by how much, and what is chosen then"""
    got, call = answer(submission, SIX[name], name)
    check_condition(got, of_six(name), SIX[name], call)


# ---- one fact -------------------------------------------------------------------------------------------------------

def with_facts(s, engine=None, **facts):
    """A copy of s with facts changed: of the situation, or of one candidate."""
    made = copy.deepcopy(s)
    (made["candidates"][engine] if engine else made).update(facts)
    return made


FLIPS = [
    ("photo_labels", "few calls", None, {"calls_per_month": 5e6}), ("photo_labels", "many updates", None, {"updates_per_month": 60.0}),
    ("photo_labels", "an operator is refused", "tensorrt", {"refused": ["NonMaxSuppression"]}),
    ("photo_labels", "shapes without a range", None, {"shapes": "open"}), ("photo_labels", "nobody builds", None, {"team_owns_builds": False}),
    ("photo_labels", "other GPUs may come", None, {"fleet_open": True}),
    ("photo_labels", "FP8 where the fleet has an Ampere card", "tensorrt", {"precision": "fp8"}),
    ("photo_labels", "a cold start that is short", None, {"cold_start_limit_s": 1.0}),
    ("model_of_the_day", "no Python in the process", None, {"python_in_process": False}),
    ("model_of_the_day", "a cold start without time to compile", None, {"cold_start_limit_s": 4.5}),
    ("video_filter", "the limit is relaxed", None, {"p99_limit_ms": 25.0}), ("video_filter", "nobody builds", None, {"team_owns_builds": False}),
    ("video_filter", "an operator is refused", "tensorrt_rtx", {"refused": ["Det"]}),
    ("inspection_camera", "nobody builds", None, {"team_owns_builds": False}), ("inspection_camera", "more time outside", None, {"outside_ms": 12.0}),
    ("inspection_camera", "the operator is repaired", "tensorrt", {"refused": []}),
    ("note_taker", "more time outside", None, {"outside_ms": 130.0}), ("note_taker", "nobody measured it", "ort_windows_ml",
     dict.fromkeys(("p50_ms", "mean_ms", "p99_ms", "start_s", "build_s"))),
]


def flipped(name, engine, facts):
    s = with_facts(SIX[name], engine, **facts)
    if facts.get("precision") == "fp8":
        s["architectures"] = ["9.0", "8.0"]
    return s


@pytest.mark.parametrize("name, what, engine, facts", FLIPS, ids=[f"{f[0]}: {f[1]}" for f in FLIPS])
def test_one_fact_changes_the_answer(submission, name, what, engine, facts):
    """One fact of the six is changed, and the answer follows it"""
    s = flipped(name, engine, facts)
    want = oracle(s)
    assert clear(s, want) and [want[k] for k in ("engine", "eliminated")] != [of_six(name)[k] for k in ("engine", "eliminated")], "the fact decides nothing"
    grade(submission, s, f"{name}, but: {what}", want)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_does_not_matter(submission, name):
    """Facts that no rule mentions change nothing: order, advertised speed-ups, p50, size of a plan, refused operators with a fallback"""
    s, rng = SIX[name], random.Random(name)
    want = of_six(name)
    before, _ = answer(submission, s, name)
    same = []
    for _ in range(3):
        order = rng.sample(list(s["candidates"]), len(s["candidates"]))
        same.append(("the candidates in another order", s | {"candidates": {e: s["candidates"][e] for e in order}}))
    same.append(("the architectures in another order", s | {"architectures": s["architectures"][::-1]}))
    loud = with_facts(s, name="urgent", gpu="the newest", team_size=40, favourite="tensorrt", advertised_speedup=36.0)
    for e, c in loud["candidates"].items():
        c.update(advertised_speedup=40.0 - 5 * ENGINES.index(e), plan_bytes=10**9, licence="closed", stars=99_999)
    same.append(("keys that no rule mentions", loud))
    quick = copy.deepcopy(s)
    for c in quick["candidates"].values():
        if c["p50_ms"] is not None:
            c["p50_ms"] = c["p50_ms"] * rng.choice([0.3, 0.6, 0.95])
    same.append(("other values of p50", quick))
    gaps = copy.deepcopy(s)
    for e in ("ort_cuda", "torch_compile", "ort_tensorrt", "ort_windows_ml"):
        if e in gaps["candidates"]:
            gaps["candidates"][e]["refused"] = ["Det", "NonZero"]
    same.append(("refused operators of engines with a fallback", gaps))
    for what, other in same:
        got, call = answer(submission, other, f"{name}, with {what}")
        if got["engine"] != before["engine"]:
            raise Wrong(f"The choice follows something that must not matter: {what}.", call, f"{got['engine']}", f"{before['engine']}, as before")
        for check in (check_reasons, check_number, check_condition):
            check(got, want, other, call)


# ---- each rule alone ------------------------------------------------------------------------------------------------

def facts(mean=4.0, p99=6.0, start=3.0, build=50.0, precision="fp16", refused=(), p50=None):
    return {"precision": precision, "refused": list(refused), "p50_ms": p50 or mean * 0.9, "mean_ms": mean, "p99_ms": p99, "start_s": start, "build_s": build}


def plain(target="nvidia_server", engines=("ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt"), **changes):
    """A situation in which nobody falls: each engine a little faster than the one before it."""
    candidates = {e: facts(4.0 - 0.3 * k, 6.0 - 0.2 * k, 3.0 + k, 50.0 + 7 * k) for k, e in enumerate(engines)}
    return {"target": target, "architectures": ["9.0"], "fleet_open": False, "python_in_process": True, "team_owns_builds": True, "shapes": "fixed",
            "calls_per_month": 40e6, "updates_per_month": 3.0, "p99_limit_ms": 20.0, "outside_ms": 5.0, "cold_start_limit_s": 400.0,
            "machine_price": 3.0, "gate_price": 20.0, "candidates": candidates} | changes


def rule_cases(rule):
    rtx = plain("rtx_pc", ("ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt"), architectures=["8.6", "12.0", "8.9"])
    npu, cpu = plain("intel_npu", ("openvino",), architectures=[]), plain("cpu", ("ort_cpu", "openvino"), architectures=[])
    if rule == "target":
        everything = {e: facts(4.0 + 0.1 * k, 6.0 + 0.1 * k) for k, e in enumerate(ENGINES)}
        for target in TARGETS:
            for shuffle in (1, 2):
                order = random.Random(shuffle).sample(ENGINES, len(ENGINES))
                yield f"all engines on {target}", plain(target, candidates={e: everything[e] for e in order},
                                                        architectures={"rtx_pc": ["8.6", "8.9"], "jetson": ["8.7"], "nvidia_server": ["9.0"]}.get(target, []))
    elif rule == "precision":
        for fleet in (["8.9", "12.0"], ["12.0", "8.9"], ["10.0"], ["8.0", "9.0"], ["9.0", "8.6", "12.0"], ["7.5", "9.0"], ["12.0", "7.5", "8.0"], ["8.0"], ["10.3", "9.0"]):
            for precision in ("fp32", "fp16", "bf16", "fp8"):
                s = plain(architectures=fleet)
                s["candidates"]["ort_tensorrt"]["precision"] = s["candidates"]["ort_cuda"]["precision"] = precision
                yield f"{precision} on {', '.join(fleet)}", s
    elif rule == "python":
        yield "no Python", plain(python_in_process=False)
        yield "no Python, on users' cards", rtx | {"python_in_process": False}
    elif rule == "operators":
        for base in (rtx, npu, cpu):
            for e in base["candidates"]:
                yield f"an operator refused by {e}", with_facts(base, e, refused=["GridSample", "Det", "Det_v2"])
    elif rule == "shapes":
        for base in (rtx, npu, cpu, plain()):
            for shapes in ("fixed", "bounded", "open"):
                yield f"{shapes} shapes on {base['target']}", base | {"shapes": shapes}
    elif rule == "builds":
        for base in (rtx, plain()):
            for limit in (400.0, 20.0):
                yield f"nobody builds, {base['target']}", base | {"team_owns_builds": False, "cold_start_limit_s": limit}
    elif rule == "fleet":
        for base in (rtx, plain()):
            for limit in (400.0, 20.0):
                yield f"an open fleet, {base['target']}", base | {"fleet_open": True, "cold_start_limit_s": limit}
    elif rule == "not_measured":
        for e in rtx["candidates"]:
            yield f"{e} was not measured", with_facts(rtx, e, **dict.fromkeys(("p50_ms", "mean_ms", "p99_ms", "start_s", "build_s")))
    elif rule == "cold_start":
        for owns, opened in itertools.product((True, False), (True, False)):
            for limit in (2.5, 3.0, 5.0, 60.0, 61.0, 62.0, 69.0, 70.5):
                yield "limits of the cold start", rtx | {"team_owns_builds": owns, "fleet_open": opened, "cold_start_limit_s": limit}
        yield "a sum that is equal but for rounding", with_facts(plain(cold_start_limit_s=3.3), "torch_compile", start_s=1.1, build_s=2.2)
    elif rule == "latency":
        for limit in (4.9, 5.0, 10.3, 10.4, 10.6, 10.8, 11.0, 10.999):
            yield "limits of the latency", plain(p99_limit_ms=limit)
        yield "a sum that is equal but for rounding", with_facts(plain(outside_ms=0.1, p99_limit_ms=0.3), "ort_cuda", p99_ms=0.2, p50_ms=0.1, mean_ms=0.15)
        slow = plain(p99_limit_ms=12.0)
        slow["candidates"]["tensorrt"] |= {"p50_ms": 2.0, "p99_ms": 7.5}
        yield "a good p50 with a bad p99", slow


@pytest.mark.parametrize("rule", RULES)
def test_each_rule(submission, rule):
    """Reasons: each rule alone, on and off, and at its limits"""
    applied = 0
    for what, s in rule_cases(rule):
        want = oracle(s, condition=False)
        applied += any(f[1] == rule for f in want["eliminated"])
        got, call = answer(submission, s, what)
        for check in (check_reasons, check_choice, check_number):
            check(got, want, s, call)
    assert applied, "the rule is never applied"


def test_first_rule_counts(submission):
    """Reasons: of several rules that apply, the first counts"""
    s = plain("rtx_pc", ("ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt"), architectures=["12.0", "8.6"], fleet_open=True,
              team_owns_builds=False, python_in_process=False, shapes="open", p99_limit_ms=1.0, cold_start_limit_s=0.5)
    for c in s["candidates"].values():
        c.update(precision="fp8", refused=["Det"])
    s["candidates"] |= {"openvino": facts(50.0, 90.0), "ort_cpu": facts(50.0, 90.0)}
    steps = [("everything is wrong", {}), ("FP16", {"precision": "fp16"}), ("nothing refused", {"refused": []})]
    for what, change in steps:
        for e in s["candidates"]:
            s["candidates"][e].update(change)
        grade(submission, s, what)
    for what, change in (("Python allowed", {"python_in_process": True}), ("a range is known", {"shapes": "bounded"}), ("somebody builds", {"team_owns_builds": True}),
                         ("a closed fleet", {"fleet_open": False}), ("time to start", {"cold_start_limit_s": 3600.0}), ("time to answer", {"p99_limit_ms": 100.0})):
        s = s | change
        grade(submission, s, f"{what}, after the others")


# ---- the number and the condition -----------------------------------------------------------------------------------

def test_equal_costs(submission):
    """Choice: of equal costs the less specialized engine, in any order of the candidates"""
    for target, pair in (("nvidia_server", ("ort_cuda", "torch_compile")), ("cpu", ("ort_cpu", "openvino")), ("rtx_pc", ("ort_cuda", "torch_compile"))):
        for order in (pair, pair[::-1]):
            s = plain(target, architectures=["8.9"] if target != "cpu" else [], candidates={e: facts(4.0, 6.0 + (e == pair[0])) for e in order})
            grade(submission, s, f"equal costs, {' before '.join(order)}")
    free = plain("jetson", ("ort_tensorrt", "ort_cuda"), architectures=["8.7"], machine_price=0.0, fleet_open=True)
    got, call = answer(submission, free, "machines that cost nothing")
    check_choice(got, oracle(free), free, call)


def test_mean_p50_and_p99_disagree(submission):
    """Number: the mean pays, p99 passes, p50 does neither"""
    s = plain(candidates={"ort_cuda": facts(5.0, 14.0, p50=2.0), "torch_compile": facts(4.0, 9.0, p50=3.8)})
    for what, limit in (("both pass", 30.0), ("one passes", 16.0)):
        grade(submission, s | {"p99_limit_ms": limit}, f"p50, mean and p99 rank differently, {what}")


def test_fleet_multiplies_plans(submission):
    """Number: each architecture is a plan more, for those that need one for each"""
    for fleet in (["9.0"], ["8.0", "9.0"], ["8.0", "8.9", "9.0", "10.0"]):
        for owns, opened in ((True, False), (False, False), (True, True)):
            grade(submission, plain(architectures=fleet, team_owns_builds=owns, fleet_open=opened), f"a fleet of {len(fleet)}")
    for fleet in (["8.6"], ["8.6", "8.9", "12.0"]):
        grade(submission, plain("rtx_pc", ("ort_cuda", "tensorrt_rtx", "tensorrt"), architectures=fleet), f"users' cards of {len(fleet)} kinds")


def test_nobody_left(submission):
    """Choice: None where nobody is left, with what would bring one back"""
    npu = plain("intel_npu", ("openvino",), architectures=[], shapes="bounded")
    grade(submission, npu, "an NPU that wants fixed shapes")
    grade(submission, plain(p99_limit_ms=4.0), "what is outside takes all the time")
    s = plain(p99_limit_ms=9.0)
    s["candidates"]["tensorrt"]["p99_ms"] = 7.3
    grade(submission, s, "a limit that nobody meets")
    grade(submission, plain(candidates={}), "no candidates")


def test_nearest_threshold(submission):
    """Condition: of several crossings the nearest, of those left only"""
    three = plain(candidates={"ort_cuda": facts(9.0, 9.5), "ort_tensorrt": facts(6.0, 7.0, build=10.0), "tensorrt": facts(3.0, 4.0, build=900.0)},
                  gate_price=0.0, machine_price=6.0, updates_per_month=400.0)
    for calls in (1e4, 1e5, 3e5, 1e6, 1e7, 1e8):
        s = three | {"calls_per_month": calls}
        assert clear(s)
        grade(submission, s, "three lines")
        grade(submission, with_facts(s, "ort_tensorrt", p99_ms=90.0), "three lines, one of an engine that fell")
    cheap = plain(candidates={"ort_cuda": facts(4.0, 16.0), "torch_compile": facts(5.0, 12.0), "tensorrt": facts(6.0, 9.0)})
    for limit in (14.5, 17.5, 19.0, 25.0):
        grade(submission, cheap | {"p99_limit_ms": limit}, "a limit between candidates")
    for limit in (14.0, 17.0, 21.0):
        grade(submission, cheap | {"p99_limit_ms": limit}, "a limit that a candidate just meets")
    level = plain(candidates={"ort_cuda": facts(4.0, 12.0), "torch_compile": facts(4.0, 9.0)})
    for limit in (15.0, 20.0):
        grade(submission, level | {"p99_limit_ms": limit}, "a limit between candidates of equal cost")


def test_thresholds_hold(submission):
    """Condition: just before a threshold your own answer is the old engine, just past it the one you named"""
    for seed in range(40, 52):
        s = seeded(seed, 0)
        got, call = answer(submission, s, f"seed {seed}")
        for field in FIELDS:
            for side, sign in (("below", -1), ("above", 1)):
                pair = got["change"][field][side]
                if pair is None or pair[0] <= 1e-6 * s[field]:
                    continue
                for step, expected in ((-sign * 2e-6, got["engine"]), (sign * 2e-6, pair[1])):
                    moved = s | {field: pair[0] * (1 + step)}
                    if sign * (moved[field] - s[field]) <= 0 and step * sign < 0:
                        continue
                    then, moved_call = answer(submission, moved, f"{field} a little {'before' if step * sign < 0 else 'past'} your threshold {pair[0]:.8g}")
                    if then["engine"] != expected:
                        raise Wrong(f"Your own answers disagree: 'change' says that {field} {side} {pair[0]:.8g} gives {pair[1]}, and decide does not.",
                                    moved_call, f"{then['engine']}", f"{expected}")


# ---- seeded situations ----------------------------------------------------------------------------------------------

def seeded(seed, index):
    """A situation in which nothing hangs on rounding."""
    return made(seed, index)[0]


@cache
def made(seed, index):
    """The situation and the oracle's answer to it."""
    rng = random.Random(1000 * seed + index)
    while True:
        target = rng.choice(["nvidia_server"] * 4 + ["rtx_pc"] * 3 + ["jetson", "jetson", "windows_pc", "intel_npu", "cpu"])
        pool = {"nvidia_server": ["8.0", "8.9", "9.0", "10.0", "7.5"], "rtx_pc": ["8.6", "8.9", "12.0"], "jetson": ["8.7"]}.get(target, [])
        fleet = rng.sample(pool, rng.randint(1, len(pool))) if pool else []
        here = TARGETS[target].split()
        engines = rng.sample(here, rng.randint(max(1, len(here) - 1), len(here))) + rng.sample([e for e in ENGINES if e not in here], rng.randint(0, 2))
        rng.shuffle(engines)
        candidates = {}
        for e in engines:
            mean = round(rng.uniform(1, 30), 3)
            candidates[e] = facts(mean, round(mean * rng.uniform(1.05, 2.0), 3), round(rng.uniform(0.1, 20), 3), round(rng.uniform(5, 600), 2),
                                  rng.choice(["fp16"] * 6 + ["bf16", "fp8", "fp32"]), ["Det"] if rng.random() < 0.12 else [], round(mean * rng.uniform(0.4, 1.0), 3))
            if rng.random() < 0.1:
                candidates[e] |= dict.fromkeys(("p50_ms", "mean_ms", "p99_ms", "start_s", "build_s"))
        s = {"target": target, "architectures": fleet, "fleet_open": rng.random() < 0.3, "python_in_process": rng.random() < 0.7,
             "team_owns_builds": rng.random() < 0.75, "shapes": rng.choice(["fixed", "fixed", "bounded", "bounded", "open"]),
             "calls_per_month": float(round(10 ** rng.uniform(5, 8.5))), "updates_per_month": round(rng.uniform(0.2, 40), 2),
             "p99_limit_ms": round(rng.uniform(8, 70), 2), "outside_ms": round(rng.choice([0.0, rng.uniform(0, 12)]), 2),
             "cold_start_limit_s": round(rng.choice([rng.uniform(5, 60), rng.uniform(60, 900)]), 1),
             "machine_price": rng.choice([0.0, 0.5, 2.0, 4.0, 11.0]), "gate_price": rng.choice([0.0, 5.0, 25.0, 140.0]), "candidates": candidates}
        want = oracle(s)
        costs = list(want["costs"].values())
        if clear(s, want) and len(set(costs)) == len(costs):
            return s, want


@pytest.mark.parametrize("seed", range(1, 7))
def test_seeded_situations(submission, seed):
    """All four parts on 25 seeded situations"""
    for index in range(25):
        grade(submission, seeded(seed, index), f"seed {seed}, situation {index}", made(seed, index)[1])


def test_seeds_cover_the_rules():
    """The seeded situations meet each rule, each way to decide, and thresholds on each side"""
    wants = [made(seed, index)[1] for seed in range(1, 7) for index in range(25)]
    assert {f[1] for w in wants for f in w["eliminated"]} == set(RULES)
    assert {w["decided_by"] for w in wants} == {"cost", "elimination", "nobody_left"}
    assert all(sum(w["change"][field][side] is not None for w in wants) >= 4 for field in FIELDS for side in ("below", "above"))
    assert len({w["engine"] for w in wants}) == len(ENGINES) + 1


# ---- manners --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("what, s, word", [
    ("an unknown target", plain(target="amd_server"), "amd_server"),
    ("an unknown engine", plain(candidates={"ort_cuda": facts(), "tensorflow_lite": facts()}), "tensorflow_lite")])
def test_refuses(submission, what, s, word):
    """A target or an engine that the catalogue does not know is refused by name"""
    try:
        got = submission.attempt("decide", s)
    except Raised as error:
        if error.kind == "NotImplementedError":
            raise Wrong("decide is not written yet.", error.call, error.text) from None
        if "ValueError" not in error.bases or word not in error.text:
            raise Wrong(f"The error for {what} is a ValueError that names it.", text(s), f"{error.kind}: {error.text}", f"a ValueError with {word!r}") from None
        return
    raise Wrong(f"{what.capitalize()} has to be refused, and decide gave an answer.", text(s), got, f"a ValueError with {word!r}")


def test_changes_and_keeps_nothing(submission):
    """The situation is not changed, and no call depends on an earlier one"""
    for name, s in SIX.items():
        untouched, repeated = submission.drive("call_and_compare", copy.deepcopy(s))
        if not untouched:
            raise Wrong("The caller's situation is changed: work on copies.", f"decide(SITUATIONS[{name!r}])")
        if not repeated:
            raise Wrong("The same situation gives another answer the second time.", f"decide(SITUATIONS[{name!r}]), twice")
    s = plain("rtx_pc", ("ort_cuda", "torch_compile", "ort_tensorrt", "tensorrt_rtx", "tensorrt"), architectures=["8.9"])
    quick = {e: facts(0.5 if e == "ort_cuda" else 9.0) for e in s["candidates"]}
    changes = [{"target": "jetson"}, {"architectures": ["8.9", "8.6", "12.0"]}, {"fleet_open": True}, {"python_in_process": False}, {"team_owns_builds": False},
               {"shapes": "open"}, {"calls_per_month": 1e5}, {"updates_per_month": 900.0}, {"p99_limit_ms": 10.5}, {"outside_ms": 15.0},
               {"cold_start_limit_s": 4.5}, {"machine_price": 0.02}, {"gate_price": 9e3}, {"candidates": quick}]
    steps, before = [step for change in changes for step in (change, {k: s[k] for k in change})], oracle(s, condition=False)
    for step, got in zip(steps, submission.drive("change_and_ask", copy.deepcopy(s), steps)):
        now, call = s | step, f"s.update({step!r}), decide(s)"
        want = oracle(now, condition=False)
        assert now == s or want != before, "a change that changes nothing"
        check_form(got, now, call)
        try:
            for check in (check_choice, check_reasons, check_number):
                check(got, want, now, call)
        except Wrong as error:
            raise Wrong("The same dict, changed between calls, gives an old answer: something is kept for it.\n" + str(error)) from None
