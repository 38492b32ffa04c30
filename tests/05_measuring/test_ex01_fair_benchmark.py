"""Grader of 05_measuring/ex01_fair_benchmark: a simulated machine writes down what happened; the oracle counts it again."""
import math
from bisect import bisect_left, bisect_right

import numpy as np
import pytest

from course.grading import Raised, Wrong, show, write_call

EXERCISE = "05_measuring/ex01_fair_benchmark"
PROBE = "probe_ex01.py"
LIMITS = {"call_seconds": 10.0, "memory_gib": 2.0}
KEYS = {"rounds", "n", "percentiles", "max", "spread", "throughput", "warm_up", "error", "mhz", "valid", "reasons"}
REASONS = {"wrong_result", "too_few", "rounds_apart", "clock_moved"}
PLAIN = {"tolerance": 1e-3, "warm_up_time": 200.0, "rounds": 4, "calls": 25, "warm_up_calls": 10, "percentiles": [50, 90], "beyond": 5}


# ---- what happened: the simulated machine's events, by call ---------------------------------------------------------

class Call:
    """One enqueue: times in ticks, the input's number (-1: not from make_input), and the first wait after it."""

    def __init__(self, event):
        _, self.start, self.returned, self.system, self.number, self.kind, self.shape, self.behind, self.done, self.error = event
        self.waited = None                             # the host's time at the end of the next wait, if no enqueue comes before


class Ran:
    """A call of benchmark on a simulated machine: report and events, with the calls of each system in groups."""

    def __init__(self, submission, what, systems=None, machine=None, **arguments):
        self.systems, self.machine = systems or {"A": {}}, machine or {}
        self.arguments, self.batch = PLAIN | arguments, self.machine.get("batch", 4)
        self.text = f"benchmark on a simulated machine: {what}; " + ", ".join(f"{k}={v}" for k, v in self.arguments.items())
        self.rounds, self.calls = self.arguments["rounds"], self.arguments["calls"]
        try:
            answer = submission.drive("run", self.machine, self.systems, self.arguments)
        except Wrong as error:      # it did not return: name the call as a learner knows it, not the probe's
            self.wrong(str(error).partition("\n")[0])
        if "raised" in answer:
            kind, text, where = answer["raised"]
            if kind == "NotImplementedError":
                self.wrong(f"{text or 'benchmark is not written yet'}.")
            hint = " Everything that your answer uses (imports, helper functions) belongs into the graded cells." if kind == "NameError" else ""
            self.wrong(f"benchmark raised {kind} (your {where}).{hint}", f"{kind}: {text}")
        self.report, self.events = answer["report"], answer["events"]
        self.form()
        self.of = {name: [] for name in self.systems}
        for e in self.events:
            if e[0] == "enqueue":
                self.of[e[3]].append(Call(e))
            elif e[0] == "wait" and self.of[e[3]] and self.of[e[3]][-1].waited is None:
                self.of[e[3]][-1].waited = e[2]

    def wrong(self, mistake, got=None, expected=None):
        raise Wrong(mistake, self.text, got, expected)

    def form(self):
        """The report has the form of the contract."""
        report = self.report
        if not isinstance(report, dict) or list(report) != list(self.systems):
            self.wrong("The report is a dict with one entry for each system, in their order.", show(report), list(self.systems))
        for name, r in report.items():
            if not isinstance(r, dict) or set(r) != KEYS:
                got = sorted(r) if isinstance(r, dict) else r
                self.wrong(f"The entry of system {name} has other keys than the contract.", got, sorted(KEYS))
            for key in ("max", "spread", "throughput", "error"):
                if not number(r[key]):
                    self.wrong(f"{key!r} of system {name} is not a number.", r[key], "a float")
            if not whole(r["n"]):
                self.wrong(f"'n' of system {name} is not an int.", r["n"], "an int")
            if not isinstance(r["valid"], (bool, np.bool_)):
                self.wrong(f"'valid' of system {name} is not a bool.", r["valid"], "True or False")
            w = r["warm_up"]
            if (not isinstance(w, dict) or set(w) != {"calls", "first", "time"} or not all(number(v) for v in w.values())
                    or not whole(w["calls"]) or w["calls"] < 0):
                self.wrong(f"'warm_up' of system {name} has another form than the contract.", w, "{'calls': int, 'first': float, 'time': float}")
            if not isinstance(r["reasons"], (list, tuple)) or not all(isinstance(v, str) and v in REASONS for v in r["reasons"]) or len(set(r["reasons"])) < len(r["reasons"]):
                self.wrong(f"'reasons' of system {name} is not a list of the contract's reasons, each at most once.", r["reasons"], sorted(REASONS))
            if not isinstance(r["rounds"], (list, tuple)) or not all(
                    (isinstance(x, (list, tuple)) or (isinstance(x, np.ndarray) and x.ndim == 1)) and all(number(v) for v in x) for x in r["rounds"]):
                self.wrong(f"'rounds' of system {name} is not a list of lists of floats.", r["rounds"])
            if not isinstance(r["percentiles"], dict) or set(r["percentiles"]) != set(self.arguments["percentiles"]):
                self.wrong(f"'percentiles' of system {name} is not a dict with one entry for each percentile asked for.", r["percentiles"],
                           self.arguments["percentiles"])

    def groups(self, name):
        """(warm-up calls, [single calls of each round], [calls of each round's block]); the count has to fit."""
        made, warm = self.of[name], int(self.report[name]["warm_up"]["calls"])
        if not made:
            self.wrong(f"No call of system {name} was enqueued.", "no call", f"a warm-up, and {2 * self.rounds * self.calls} timed calls")
        if warm == 0:
            self.wrong(f"System {name} has no warm-up: its first timed call took {made[0].done - made[0].start:g} ticks, its fastest one "
                       f"{min(c.done - c.start for c in made):g}.", 0, "the warm-up's calls, reported in 'warm_up'")
        timed, wanted = made[warm:], 2 * self.rounds * self.calls
        if len(timed) > wanted:
            self.wrong(f"More calls of system {name} were enqueued than the contract times. Is each sample the best of several? "
                       "Then luck is what is reported.", f"{len(timed)} calls after {warm} of warm-up", f"{wanted}: {self.rounds} rounds "
                       f"of {self.calls} single calls and a block of {self.calls}")
        if len(timed) < wanted:
            self.wrong(f"Fewer calls of system {name} were enqueued than the contract times.", f"{len(timed)} calls after {warm} of warm-up",
                       f"{wanted}: {self.rounds} rounds of {self.calls} single calls and a block of {self.calls}")
        cut = [timed[i:i + self.calls] for i in range(0, wanted, self.calls)]
        return made[:warm], cut[::2], cut[1::2]

    # ---- each returns if it is right -------------------------------------------------------------------------------

    def latency(self, name):
        """The samples are those of the single calls, each until its result was there."""
        _, singles, _ = self.groups(name)
        got = [[float(v) for v in r] for r in self.report[name]["rounds"]]
        flat, calls = [v for r in got for v in r], [c for r in singles for c in r]
        if len(got) != self.rounds or any(len(r) != self.calls for r in got):
            lost = "Outliers are part of what users wait for, and so are slow rounds: report them. " if len(flat) < len(calls) else ""
            self.wrong(f"'rounds' of system {name} does not hold each timed single call. {lost}".strip(), f"{len(got)} rounds, {len(flat)} samples",
                       f"{self.rounds} rounds of {self.calls} samples")
        if near(flat, [c.returned - c.start for c in calls]):
            self.wrong("The clock stops before the device has finished: enqueue returns at once, so this is the time to queue work.", flat[0],
                       f"{calls[0].done - calls[0].start:g} for the first call, until its result is there")
        if any(c.waited is None for c in calls):
            self.wrong(f"Single calls of system {name} do not each wait: the synchronization stands at the end of a loop. Divided by the calls "
                       "that is an average with no tail, and no caller's latency.", f"{sum(c.waited is None for c in calls)} calls that no wait follows",
                       "enqueue, synchronize, then the clock, for each sample")
        if any(c.behind for c in calls):
            self.wrong(f"A single call of system {name} was enqueued behind unfinished work, and its time holds that work too.",
                       f"{max(c.behind for c in calls)} calls in the queue", "an empty queue")
        want = [c.waited - c.start for c in calls]
        if near(flat, want):
            return want
        if near(flat, [v / self.batch for v in want]):
            self.wrong("The time of a batch is divided by its items. No item is ready before its batch: latency is the time of the call; "
                       "items in a unit of time are the throughput.", flat[0], want[0])
        if max(flat) < 0.5 * min(want):
            self.wrong("The samples are not in the time of the injected clock: use `clock()`, for the device's time passes there.", flat[0], want[0])
        for kind, what in (("make", "making the input"), ("check", "the reference's work"), ("mhz", "reading the device's clock")):
            cost = {e[2] - e[1] for e in self.events if e[0] == kind}
            if any(near(flat, [v + k * c for v in want]) for c in cost for k in (1, 2)) or any(
                    abs(a - b - k * c) < 1e-6 for a, b in zip(flat, want) for c in cost for k in (1, 2)):
                self.wrong(f"A sample holds {what}: only enqueue and synchronize belong between the two looks at the clock.", flat[0], want[0])
        if all(max(r) - min(r) <= 1e-6 * max(r) for r in got) and max(want) - min(want) > 1e-3:
            self.wrong("All samples of a round are the same: an average of the round was written down in place of its samples.", flat[0], want[0])
        if sorted(flat) == sorted(want):
            self.wrong("The samples are not in the order in which they were taken: a drift can no longer be seen.", flat[:4], want[:4])
        worst = int(np.argmax(np.abs(np.array(flat) - want)))
        self.wrong(f"A sample of system {name} is not the time from before enqueue until the result was there.", flat[worst], want[worst])

    def statistics(self, name):
        """The entry's statistics are those of the samples, counted from the events."""
        self.latency(name)
        _, singles, _ = self.groups(name)
        r, want = self.report[name], count([[c.waited - c.start for c in calls] for calls in singles],
                                           self.arguments["percentiles"], self.arguments["beyond"])
        for key in ("n", "max", "spread"):
            if not near([r[key]], [want[key]]):
                self.wrong(f"{key!r} of system {name} does not belong to its samples.", r[key], want[key])
        for p, v in want["percentiles"].items():
            mine = r["percentiles"].get(p, "nothing")
            if not (mine is None if v is None else number(mine) and near([mine], [v])):
                self.wrong(f"p{p} of system {name} does not belong to its samples.", show(mine), show(v))

    def turns_readings(self, name):
        """The readings of the device's clock around the turns of a system: the last before and the first after each, with no call between."""
        _, singles, blocks = self.groups(name)
        read, found, starts = [e for e in self.events if e[0] == "mhz"], [], sorted(c.start for calls in self.of.values() for c in calls)
        for s, b in zip(singles, blocks):
            earlier, later = bisect_left(starts, s[0].start) - 1, bisect_right(starts, b[-1].start)
            before = [e for e in read if e[2] <= s[0].start and (earlier < 0 or e[1] >= starts[earlier])]
            after = [e for e in read if b[-1].waited is not None and e[1] >= b[-1].waited and (later == len(starts) or e[2] <= starts[later])]
            found += before[-1:] + after[:1]
        return found

    def verdict(self, name, reasons, why):
        """The reasons are those given, and valid says so."""
        r = self.report[name]
        for missing in sorted(reasons - set(r["reasons"])):
            self.wrong(f"{missing!r} is missing from the reasons of system {name}: {why[missing]}", sorted(r["reasons"]), sorted(reasons))
        for extra in sorted(set(r["reasons"]) - reasons):
            self.wrong(f"System {name} is INVALID for {extra!r}, and nothing of that kind happened: {why.get(extra, 'see the contract')}",
                       sorted(r["reasons"]), sorted(reasons))
        if bool(r["valid"]) is not (not reasons):
            self.wrong(f"'valid' of system {name} does not say whether there are reasons.", r["valid"], not reasons)


def number(value):
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def whole(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def near(got, want, share=1e-6):
    return len(got) == len(want) and all(abs(a - b) <= share * max(1.0, abs(b)) for a, b in zip(got, want))


def rank(samples, p):
    """The smallest sample that at least p of 100 samples do not exceed."""
    ordered = sorted(samples)
    return next(v for v in ordered if 100 * bisect_right(ordered, v) >= p * len(ordered))


def count(rounds, percentiles, beyond):
    """What summary has to say, by counting."""
    samples = [float(v) for r in rounds for v in r]
    medians = [rank([float(v) for v in r], 50) for r in rounds]
    places = {p: math.ceil(p * len(samples) / 100 - 1e-9) for p in percentiles}
    return {"n": len(samples), "max": max(samples), "spread": (max(medians) - min(medians)) / rank(medians, 50),
            "percentiles": {p: rank(samples, p) if len(samples) - places[p] >= beyond else None for p in percentiles}}


# ---- summary --------------------------------------------------------------------------------------------------------

def ask_summary(submission, rounds, percentiles, beyond, what):
    call = f"summary({what}, {percentiles}, beyond={beyond})"
    got, want = submission.call("summary", rounds, percentiles, beyond), count(rounds, percentiles, beyond)
    if not isinstance(got, dict) or set(got) != set(want):
        raise Wrong("summary returns a dict with the contract's keys.", call, got, sorted(want))
    if got["n"] != want["n"]:
        raise Wrong("'n' is not the count of all samples.", call, got["n"], want["n"])
    said, samples = got["percentiles"], [v for r in rounds for v in r]
    if not isinstance(said, dict) or set(said) != set(percentiles):
        raise Wrong("'percentiles' has to have one entry for each percentile asked for.", call, said, percentiles)
    for p, value in want["percentiles"].items():
        mine = said[p]
        if value is None and mine is not None:
            raise Wrong(f"p{p} of {want['n']} samples is reported, and fewer than {beyond} samples lie beyond it: one event would decide it.",
                        call, mine, "None")
        if value is not None and (not number(mine) or abs(mine - value) > 1e-9):
            raise Wrong(guess(mine, p, rounds, samples, beyond), call, show(mine), value)
    if not number(got["max"]) or abs(got["max"] - want["max"]) > 1e-9:
        raise Wrong("'max' is not the largest sample: outliers are part of the answer.", call, got["max"], want["max"])
    if not number(got["spread"]) or abs(got["spread"] - want["spread"]) > 1e-9:
        by_mean = [float(np.mean(r)) for r in rounds]
        if number(got["spread"]) and abs(got["spread"] - (max(by_mean) - min(by_mean)) / float(np.median(by_mean))) < 1e-3:
            raise Wrong("'spread' compares the rounds' means: one outlier in one round moves it.", call, got["spread"], want["spread"])
        raise Wrong("'spread' is not how far the rounds' p50 lie apart, as a share of the middle one.", call, got["spread"], want["spread"])


def guess(mine, p, rounds, samples, beyond):
    """The likely mistake behind a wrong percentile."""
    if mine is None:
        return f"p{p} is None although {beyond} or more samples come after it in ascending order."
    if not number(mine):
        return f"p{p} is not a number."
    if abs(mine - np.mean(samples)) < 1e-9:
        return f"p{p} is the mean of the samples: a mean is no percentile."
    if abs(mine - min(samples)) < 1e-9:
        return f"p{p} is the fastest sample: the best of all runs is not what a caller sees."
    if abs(mine - np.mean([rank(r, p) for r in rounds])) < 1e-9 or abs(mine - np.median([rank(r, p) for r in rounds])) < 1e-9:
        return f"p{p} was taken in each round and then averaged: percentiles do not average. Merge the samples first."
    if abs(mine - np.percentile(samples, p)) < 1e-9:
        return f"p{p} is interpolated between two samples: the contract asks for the nearest rank, which is always a sample that occurred."
    kept = sorted(samples)
    if any(abs(mine - rank(kept[:k], p)) < 1e-9 for k in range(max(1, int(0.85 * len(kept))), len(kept))):
        return f"p{p} is that of fewer samples: outliers were dropped, and they are what a tail is made of."
    return f"p{p} is not the nearest rank: sample number ceil({p}·n/100), counted from 1 in ascending order."


def tail(seed, sizes):
    """Rounds of samples with a long tail, unsorted, of unlike sizes and levels."""
    rng = np.random.default_rng(seed)
    return [np.round(9 + rng.random() * 2 + rng.exponential(1.0, n) + 40 * (rng.random(n) < 0.03), 3).tolist() for n in sizes]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_summary_percentiles(submission, seed):
    """summary takes the nearest rank of all samples"""
    for sizes in ([100] * 6, [50, 80, 70], [20] * 10, [7, 64], [101]):
        ask_summary(submission, tail(seed, sizes), [50, 90, 95], 1, f"{len(sizes)} rounds of {sizes} samples, seed {seed}")
    for n in (10, 20, 100, 200):                   # p·n/100 is whole: a rounding error takes the next rank
        ask_summary(submission, [[float(v) for v in range(n, 0, -1)]], [10, 30, 50, 70, 90], 1, f"the numbers {n} to 1")


@pytest.mark.parametrize("seed", [4, 5])
def test_summary_merges_rounds(submission, seed):
    """summary merges the rounds before it takes a percentile"""
    fast, slow = tail(seed, [150, 150])
    ask_summary(submission, [fast, slow, [3 * v for v in slow]], [50, 90, 95], 5, "two rounds like each other and one that takes thrice as long")
    ask_summary(submission, [fast, [2 * v for v in fast[:40]]], [50, 90], 5, "a round of 150 and one of 40 that takes twice as long")


def test_summary_keeps_outliers(submission):
    """summary keeps every sample, slow ones too"""
    rng = np.random.default_rng(6)
    for share in (0.01, 0.04, 0.12):
        rounds = [(10 + rng.random(100) + 500 * (np.arange(100) < 100 * share)).tolist() for _ in range(6)]
        ask_summary(submission, rounds, [50, 90, 97, 99], 5, f"600 samples, {share:.0%} of them fifty times the others")


def test_summary_too_few(submission):
    """summary gives None for a percentile that too few samples lie beyond"""
    for n in (1, 9, 10, 11, 49, 50, 51, 100, 499, 500, 501):
        ask_summary(submission, tail(n, [n]), [50, 90, 99], 5, f"{n} samples")
    ask_summary(submission, tail(7, [50, 50]), [99], 1, "100 samples")
    ask_summary(submission, tail(7, [49, 50]), [99], 1, "99 samples")
    ask_summary(submission, tail(7, [40, 40]), [99, 50], 0, "80 samples, none beyond asked for")
    for rounds in ([[10.0] * 60] * 2, [[10.0] * 55 + [30.0] * 5] * 2):
        ask_summary(submission, rounds, [50, 90], 5, "120 samples, many of them equal: what counts is how many come after that one in ascending order")


def test_summary_spread(submission):
    """summary says how far the rounds lie apart, by their p50"""
    for what, rounds in (("equal rounds", [[10.0, 11.0, 12.0]] * 3), ("one round slower by a half", [[10.0, 11.0, 12.0]] * 4 + [[15.0, 16.0, 18.0]]),
                         ("one outlier in one round", [[10.0] * 20, [10.0] * 19 + [900.0], [10.5] * 20]), ("rounds of even size", tail(8, [10, 12, 14, 16])),
                         ("two rounds", tail(9, [30, 31]))):
        ask_summary(submission, rounds, [50], 1, what)


# ---- where the clock stands -----------------------------------------------------------------------------------------

def test_latency_waits_for_the_device(submission):
    """A sample ends when the result is there, on a device that returns at once"""
    for what, system in (("launch 1 tick, work 9 ticks", {}), ("launch 0.2, work 60", {"launch": 0.2, "ticks": 60.0}),
                         ("launch 3, work 2, with noise", {"launch": 3.0, "ticks": 2.0, "noise": 0.2})):
        Ran(submission, what, {"A": system}).latency("A")


def test_latency_is_each_calls_own(submission):
    """Each single call is a sample of its own, of the whole batch, with its outliers"""
    for batch in (1, 8):
        ran = Ran(submission, f"noise and outliers, batch {batch}", {"A": {"noise": 0.1, "outliers": 0.05}}, {"batch": batch, "seed": 11 + batch})
        ran.latency("A")


def test_host_work_is_not_timed(submission):
    """Making inputs, checking results and reading the device's clock stay outside the samples"""
    ran = Ran(submission, "two systems; inputs, checks and readings that take longer than a call", {"A": {}, "B": {"ticks": 4.0}},
              {"make": 80.0, "check": 130.0, "mhz_cost": 57.0})
    for name in ("A", "B"):
        ran.latency(name)
    first = next(i for i, e in enumerate(ran.events) if e[0] == "enqueue")
    late = [e for e in ran.events[first:] if e[0] == "make"]
    if late or sum(e[0] == "make" for e in ran.events) != ran.calls:
        ran.wrong("Inputs are made after the first call, while the device idles, or not `calls` of them.",
                  f"{sum(e[0] == 'make' for e in ran.events)} made, {len(late)} of them after the first call", f"{ran.calls}, all before the first call")


def test_throughput_of_a_full_queue(submission):
    """Throughput is counted in items, over blocks with one wait at their end"""
    for batch, system in ((4, {}), (16, {"launch": 4.0, "ticks": 5.0}), (2, {"noise": 0.3, "outliers": 0.1})):
        ran = Ran(submission, f"batch {batch}", {"A": system}, {"batch": batch, "seed": 20 + batch})
        _, _, blocks = ran.groups("A")
        got, spent = ran.report["A"]["throughput"], [(b[-1].waited or math.inf) - b[0].start for b in blocks]
        items = ran.rounds * ran.calls * batch
        if any(c.waited is not None for b in blocks for c in b[:-1]):
            ran.wrong("A block waits after its calls one by one: the queue is never full, and this is latency under another name.",
                      f"{sum(c.waited is not None for b in blocks for c in b)} waits in {ran.rounds} blocks", f"{ran.rounds}, one at the end of each")
        returned = items / sum(b[-1].returned - b[0].start for b in blocks)
        if any(b[-1].waited is None for b in blocks) or near([got], [returned]):
            ran.wrong("The clock of a block stops with work still in the queue: the throughput is that of enqueueing.", got, items / sum(spent))
        if near([got], [items / sum(spent)]):
            continue
        if near([got], [items / sum(spent) / batch]):
            ran.wrong("Throughput counts calls: the contract asks for items, a call has a batch of them.", got, items / sum(spent))
        p50 = rank([v for r in ran.report["A"]["rounds"] for v in r], 50)
        if near([got], [batch / p50]) or near([got], [1 / p50]):
            ran.wrong("Throughput is computed from the latency: with a full queue the next call is queued while the device works.", got, items / sum(spent))
        if near([got], [float(np.mean([ran.calls * batch / s for s in spent]))]):
            ran.wrong("The rates of the blocks are averaged: a slow block lasts longer and weighs more. All items by all time.", got, items / sum(spent))
        ran.wrong("The throughput is not all items of the blocks by the time of all blocks.", got, items / sum(spent))


# ---- warm-up --------------------------------------------------------------------------------------------------------

def test_warm_up(submission):
    """The warm-up lasts long enough, waits for each call, and is reported apart"""
    cold = {"compile": 3000.0, "tune": 8}
    for what, systems, machine, arguments in (
            ("a first call that compiles, then tunes", {"A": cold}, {}, {}),
            ("a device whose clock rises with its work", {"A": cold | {"ticks": 7.0}}, {"ramp": 2500.0}, {"warm_up_time": 4000.0}),
            ("two systems that compile", {"A": cold, "B": cold | {"ticks": 4.0}}, {"ramp": 900.0}, {"warm_up_time": 1500.0}),
            ("nothing to wait for but 30 calls", {"A": {"ticks": 2.0}}, {}, {"warm_up_time": 0.0, "warm_up_calls": 30}),
            ("short calls, and a long time to warm up", {"A": {"ticks": 1.0}}, {}, {"warm_up_time": 5000.0, "rounds": 2, "calls": 10,
                                                                                    "percentiles": [50]})):
        ran = Ran(submission, what, systems, machine, **arguments)
        calls, length = ran.arguments["warm_up_calls"], ran.arguments["warm_up_time"]
        for name in systems:
            warm, lost = ran.groups(name)[0], sum(c.waited is None for c in ran.groups(name)[0])
            if lost:
                ran.wrong("A call of the warm-up is not waited for: the loop fills the queue, and the first samples pay for it.",
                          f"{lost} of {len(warm)} calls of system {name} without a wait", "a wait after each")
        for name in systems:
            warm, singles, _ = ran.groups(name)
            said = ran.report[name]["warm_up"]
            if any(c.shape != singles[0][0].shape for c in warm):
                ran.wrong("The warm-up runs on another shape: what is compiled and tuned for that shape is not what is timed.",
                          warm[0].shape, singles[0][0].shape)
            if near([said["first"]], [warm[0].returned - warm[0].start]) and warm[0].waited - warm[0].returned > 1e-6:
                ran.wrong("The clock of the cold start stops before the device has finished.", said["first"], warm[0].waited - warm[0].start)
            if not near([said["first"]], [warm[0].waited - warm[0].start]):
                ran.wrong("'first' is not the cold start: the time of the very first call, until its result is there.", said["first"],
                          warm[0].waited - warm[0].start)
            since = warm[-1].waited - warm[0].waited
            if len(warm) - 1 < calls:
                ran.wrong("The warm-up has too few calls after the first.", len(warm) - 1, f"at least {calls}")
            if since < length - 1e-6:
                if warm[-1].waited - warm[0].start >= length - 1e-6:
                    ran.wrong("The warm-up's time counts the first call: it compiled on the host while the device idled at a low clock.",
                              f"{since:g} ticks after the first call", f"at least {length:g}")
                ran.wrong("The warm-up counts calls only: with short calls it is over before the device's clock has risen.",
                          f"{since:g} ticks after the first call", f"at least {length:g}")
            if abs(said["time"] - (warm[-1].waited - warm[0].start)) > 1.0:
                ran.wrong("'time' of the warm-up is not the time from before its first call to after its last.", said["time"],
                          warm[-1].waited - warm[0].start)
            if singles[0][0].start < max(ran.groups(n)[0][-1].waited for n in systems):
                ran.wrong("A system is timed before all are warm: all warm-ups come before the first round.",
                          f"system {name} is timed", "after the last call of every warm-up")
            ran.latency(name)


# ---- what is fed ----------------------------------------------------------------------------------------------------

def test_inputs(submission):
    """Every call gets the inputs of make_input, the same for all systems, in turn"""
    for what, machine in (("zeros take half the time, a repeated input two thirds", {}), ("the same with batch 7", {"batch": 7, "seed": 31})):
        ran = Ran(submission, what, {"A": {"data": 0.5, "repeat": 0.67}, "B": {"data": 0.5}}, machine, warm_up_calls=60)
        for name in ran.systems:
            warm, singles, blocks = ran.groups(name)
            for part, calls in [("warm-up", warm), *(("round", r) for r in singles), *(("block", b) for b in blocks)]:
                if any(c.kind == "zeros" for c in calls):
                    ran.wrong(f"A {part} is fed with zeros: switching no bits draws less power and may take less time; here it takes half.",
                              "zeros", "the inputs of make_input")
                if part == "warm-up" and any(c.shape != singles[0][0].shape for c in calls):
                    ran.wrong("The warm-up runs on another shape.", calls[0].shape, singles[0][0].shape)
                if any(c.number < 0 for c in calls):
                    ran.wrong(f"A {part} is fed with data that make_input did not make.", f"{sum(c.number < 0 for c in calls)} of {len(calls)} calls")
                numbers = [c.number for c in calls]
                if len(calls) > 1 and len(set(numbers)) == 1:
                    ran.wrong(f"A {part} is fed with the same input in every call: it stays in caches, and easy data stays easy.",
                              f"input {numbers[0]} in {len(calls)} calls", f"inputs 0 to {ran.calls - 1} in turn")
                if numbers != [j % ran.calls for j in range(len(calls))]:
                    ran.wrong(f"The calls of a {part} do not take inputs 0 to {ran.calls - 1} in turn.", numbers[:8], "[0, 1, 2, …]")


# ---- several systems ------------------------------------------------------------------------------------------------

def test_systems_take_turns(submission):
    """Systems take turns, in an order that reverses from round to round"""
    for names, rounds in (("AB", 4), ("ABC", 5), ("BA", 3)):
        ran = Ran(submission, f"{len(names)} equal systems on a machine that gets slower", {n: {} for n in names}, {"drift": 3e-5}, rounds=rounds)
        turns, seen = [], {}
        for n in names:
            _, singles, blocks = ran.groups(n)
            seen |= {c.start: n for r in singles for c in r} | {c.start: n for b in blocks for c in b}
        for start in sorted(seen):
            turns += [seen[start]]
        got = "".join(turns[i] for i in range(0, len(turns), 2 * ran.calls))
        want = "".join(names if r % 2 == 0 else names[::-1] for r in range(rounds))
        lows = {n: rank([v for r in ran.report[n]["rounds"] for v in r], 50) for n in names}
        shown = f"{got}; p50 " + ", ".join(f"{n} {v:.3f}" for n, v in lows.items())
        if len(turns) != 2 * ran.calls * rounds * len(names) or turns != [n for n in want for _ in range(2 * ran.calls)]:
            if got == "".join(n * rounds for n in names):
                ran.wrong("One system after the other: the machine got slower meanwhile, and the systems, which are equal, differ by it.", shown, want)
            if got == names * rounds:
                ran.wrong(f"The order is the same in each round: with a drift, {names[-1]} always runs on the later, slower machine.", shown, want)
            ran.wrong("The systems do not take turns in the contract's order: as given in rounds 0, 2, …, reversed in rounds 1, 3, …", shown, want)


# ---- the verdict ----------------------------------------------------------------------------------------------------

WHY = {"wrong_result": "an output of a timed call lies farther than the tolerance from the reference.",
       "too_few": "a percentile that was asked for cannot be told from so few samples.",
       "rounds_apart": "the rounds' p50 lie farther apart than max_spread.",
       "clock_moved": "the device's clock changed by more than max_clock_change while samples were taken."}


def test_result_is_checked(submission):
    """A fast wrong answer is INVALID: every output of a timed call is compared"""
    for what, wrong, tolerance, fails, why in (
            ("right results", None, 1e-3, False, "the results are right."),
            ("each result 2 % too large", "scale", 1e-3, True, "no result was compared."),
            ("each result 2 % too small", "small", 1e-3, True, "too small is as wrong as too large: the difference has to lose its sign."),
            ("each result 2 % too large, and a tolerance that allows it", "scale", 0.7, False, "within the tolerance that was handed over."),
            ("results off by 0.0003, tolerance 0.001", "rounding", 1e-3, False, "within the tolerance."),
            ("results off by 0.0003, tolerance 0.0001", "rounding", 1e-4, True, "more than the tolerance that was handed over."),
            ("one input of 25 with a wrong result", "one input", 1e-3, True, "one input's results are wrong. Is only the first output compared?"),
            ("a result with NaN", "nan", 1e-3, True, "NaN is no result. It compares false with everything, and max() may pass it by."),
            ("wrong after 150 calls", "late", 1e-3, True, "results got wrong later. Is only the first round compared?"),
            ("wrong where calls overlap in the queue", "overlap", 1e-3, True, "only the outputs of blocks are wrong, where calls overlap: compare them too."),
            ("wrong in the first 5 calls only, which are warm-up", "early", 1e-3, False, "only calls of the warm-up were wrong, and they are not timed."),
            ("outputs of one row in place of the batch", "shape", 1e-3, True, "an output of shape (1, 2) was compared with (4, 2): NumPy stretches it."),
            ("outputs of one column in place of two", "columns", 1e-3, True, "an output of shape (4, 1) was compared with (4, 2): NumPy stretches it."),
            ("outputs with rows and columns exchanged", "turned", 1e-3, True, "an output of shape (2, 4) was compared with (4, 2).")):
        ran = Ran(submission, what, {"A": {"wrong": wrong}, "B": {}}, tolerance=tolerance)
        _, singles, blocks = ran.groups("A")
        error, reasons = ran.report["A"]["error"], set(ran.report["A"]["reasons"])
        largest = max(c.error for calls in singles + blocks for c in calls)
        if fails and not error > tolerance:
            ran.wrong(f"'error' of system A does not show that its results are wrong: {why}", error, "more than the tolerance")
        if math.isinf(largest) and not (error > 0 and math.isinf(error)):
            ran.wrong("'error' of system A: an output with NaN, infinity or another shape than the reference has the error infinity.", error, math.inf)
        if wrong == "early" and not error <= tolerance:
            ran.wrong("'error' of system A holds outputs of the warm-up: only the outputs of timed calls count.", error, largest)
        if not math.isinf(largest) and not abs(error - largest) <= 1e-6 * largest + 1e-9:
            hint = " Was an output read before the wait?" if math.isinf(error) or not largest else " One wrong value among many right ones counts in full: no mean."
            ran.wrong(f"'error' of system A is not the largest absolute difference from the reference.{hint}", error, largest)
        if ("wrong_result" in reasons) != fails:
            ran.wrong(f"The verdict on system A is wrong about its results: {why}", sorted(reasons), ["wrong_result"] if fails else [])
        if "wrong_result" in ran.report["B"]["reasons"] or ran.report["B"]["error"] > 1e-9:
            ran.wrong("System B pays for the errors of system A: each has its own verdict.", ran.report["B"]["reasons"], [])


def test_device_clock(submission):
    """A device's clock that moves during the rounds makes the result INVALID; in the warm-up it may move"""
    once = {"warm_up_time": 0.0, "warm_up_calls": 9, "rounds": 5, "calls": 20}           # 40 calls a turn; `dip` counts from the first reading
    plain, limit = {"compute_bound": False, "ticks": 12.0}, "max_clock_change"
    for what, names, machine, arguments, fails in (
            ("a clock that stays", "A", {}, {}, ""),
            ("a clock that rises in the warm-up only", "A", {"ramp": 60.0}, {}, ""),
            ("a clock that falls to 0.905 for good", "A", {"dip": [90, 10**9, 0.905]}, {}, ""),
            ("a clock that falls to 0.8 for good", "A", {"dip": [90, 10**9, 0.8]}, {}, "A"),
            ("a clock that falls to 0.8 for good, and 30 % allowed", "A", {"dip": [90, 10**9, 0.8]}, {limit: 0.3}, ""),
            ("a clock that falls to 0.95 for good, and 3 % allowed", "A", {"dip": [90, 10**9, 0.95]}, {limit: 0.03}, "A"),
            ("a clock that falls to 0.8 in rounds 1 to 3 and recovers", "A", {"dip": [50, 130, 0.8]}, {}, "A"),
            ("a clock that falls to 0.8 within the last round", "A", {"dip": [180, 10**9, 0.8]}, {}, "A"),
            ("a clock that falls to 0.8 in the first two turns of B and recovers", "AB", {"dip": [50, 110, 0.8]}, {}, "B")):
        ran = Ran(submission, what, dict.fromkeys(names, plain), machine, **once | arguments)
        for name in names:
            _, singles, blocks = ran.groups(name)
            found, got, reasons = [e[3] for e in ran.turns_readings(name)], ran.report[name]["mhz"], set(ran.report[name]["reasons"])
            if len(found) < 2 * ran.rounds:
                ran.wrong("The device's clock is not read directly before and directly after each turn.",
                        f"{len(found)} readings around {ran.rounds} turns of system {name}, with no call between", f"{2 * ran.rounds}")
            if any(s[0].start <= e[1] and e[2] <= b[-1].start for e in ran.events if e[0] == "mhz" for s, b in zip(singles, blocks)):
                ran.wrong(f"The device's clock is read within a turn of system {name}: the device idles meanwhile. Read it before and after.")
            read = (min(found), max(found))
            pair = tuple(float(v) for v in got) if isinstance(got, (list, tuple, np.ndarray)) and len(got) == 2 and all(map(number, got)) else got
            if not (isinstance(pair, tuple) and near(pair, read)):
                hint = "Read it before and after each turn of a system, so that a fall that recovers, or one in the last round, is seen."
                if len(names) > 1:
                    hint = "Each system has the readings around its own turns, and no others."
                elif isinstance(pair, tuple) and pair[0] < read[0]:
                    hint = "It holds the warm-up, in which a clock has to rise."
                ran.wrong(f"'mhz' of system {name} is not the lowest and highest clock around its turns. {hint}", got, read)
            if ("clock_moved" in reasons) != (name in fails):
                ran.wrong(f"The verdict on the device's clock is wrong for system {name}: {WHY['clock_moved']} The change is (highest − lowest) / highest.",
                          sorted(reasons), ["clock_moved"] if name in fails else [])
    ran = Ran(submission, "a machine that cannot be asked for its clock", None, {"mhz_known": False}, **once)
    if ran.report["A"]["mhz"] is not None or "clock_moved" in ran.report["A"]["reasons"]:
        ran.wrong("Without `mhz` nothing is known of the device's clock, and nothing is said.", ran.report["A"]["mhz"], "None")


def test_verdict(submission):
    """The verdict has each reason that holds, for the system it holds for, and no other"""
    slow = [20 * 2 * 3, 10**9, 1.5]      # from the fourth of five rounds on a neighbour takes a third of the device
    once = {"warm_up_time": 0.0, "warm_up_calls": 9, "rounds": 5, "calls": 20}
    for what, systems, machine, arguments, reasons in (
            ("nothing wrong", None, {}, {}, set()),
            ("noise and outliers, rounds alike", {"A": {"noise": 0.05, "outliers": 0.04}}, {}, {}, set()),
            ("slower from round 3 on, same clock", None, {"neighbour": slow}, {}, {"rounds_apart"}),
            ("slower from round 3 on, and 60 % allowed", None, {"neighbour": slow}, {"max_spread": 0.6}, set()),
            ("100 samples, p99 asked for", None, {}, {"percentiles": [50, 99]}, {"too_few"}),
            ("100 samples, p99 asked for before p50", None, {}, {"percentiles": [99, 50]}, {"too_few"}),
            ("100 samples, p95 asked for", None, {}, {"percentiles": [50, 95]}, set()),
            ("100 samples, p99 asked for with 1 beyond", None, {}, {"percentiles": [99], "beyond": 1}, set()),
            ("40 samples, p90 asked for", None, {}, {"rounds": 2, "calls": 20, "percentiles": [90]}, {"too_few"}),
            ("a clock that falls under a compute-bound system", None, {"dip": [90, 10**9, 0.8]}, {}, {"rounds_apart", "clock_moved"}),
            ("everything at once", {"A": {"wrong": "scale"}}, {"dip": [90, 10**9, 0.8]}, {"percentiles": [99]},
             {"rounds_apart", "clock_moved", "wrong_result", "too_few"})):
        ran = Ran(submission, what, systems, machine, **once | arguments)
        ran.statistics("A")
        ran.verdict("A", reasons, WHY)
    ran = Ran(submission, "system B is wrong, A and C are right", {"A": {}, "B": {"wrong": "scale"}, "C": {"ticks": 3.0}}, **once)
    for name in "ABC":
        ran.verdict(name, {"wrong_result"} if name == "B" else set(), WHY | {"wrong_result": "each system has its own verdict."})


# ---- manners --------------------------------------------------------------------------------------------------------

def test_refuses(submission):
    """What cannot be measured is refused with a ValueError"""
    for what, rounds in (("no round", []), ("an empty round", [[1.0, 2.0], []]), ("an empty round", [[], [1.0, 2.0]])):
        try:
            raise Wrong(f"{what} has to be refused, and an answer came back.", write_call("summary", (rounds,), {}), submission.attempt("summary", rounds))
        except Raised as error:
            refused(what, error.bases, error.text, error.call)
    for what, systems, arguments in (("no system", {}, {}), ("one round, which has no spread", {"A": {}}, {"rounds": 1}),
                                     ("no call", {"A": {}}, {"calls": 0}), ("-1 rounds", {"A": {}}, {"rounds": -1}),
                                     ("-1 calls", {"A": {}}, {"calls": -1})):
        bases, text = submission.probe("refusal", systems, PLAIN | arguments)
        refused(what, bases, text, f"benchmark with {what}")


def refused(what, bases, text, call):
    if "NotImplementedError" in bases:
        raise Wrong(f"{text}.", call)
    if "ValueError" not in bases:
        raise Wrong(f"{what} has to be refused with a ValueError.", call, text or "an answer", "ValueError")


def test_same_machine_same_answer(submission):
    """benchmark keeps nothing from call to call, and finds the same on the same machine"""
    reports = []
    for ticks, seed in ((9.0, 41), (30.0, 43), (9.0, 41)):
        ran = Ran(submission, "after other machines, with other inputs", {"A": {"noise": 0.2, "ticks": ticks}}, {"seed": seed})
        if ran.report["A"]["error"] > 1e-9:
            ran.wrong("'error' is not 0 although all results are right. Is an input or a reference kept from an earlier call, or an output read too early?",
                      ran.report["A"]["error"], 0.0)
        reports.append(ran.report["A"])
    if plain(reports[0]) != plain(reports[2]):
        raise Wrong("The same simulated machine gave two answers: something is kept from call to call, or another clock is used.",
                    "benchmark, the same call twice", reports[2]["percentiles"], reports[0]["percentiles"])


def plain(value):
    """The value as text, arrays as lists: to compare what may hold arrays or NaN."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    return repr(float(value)) if number(value) else str(value)
