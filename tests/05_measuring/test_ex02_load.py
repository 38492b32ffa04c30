"""Grader of 05_measuring/ex02_load: what each request must see follows from a recursion over requests, with exact ticks."""
import heapq
import math
from bisect import bisect_right
from fractions import Fraction

import numpy as np
import pytest

from course.grading import Raised, Wrong, show

EXERCISE = "05_measuring/ex02_load"
PROBE = "probe_ex02.py"
LIMITS = {"call_seconds": 10.0, "memory_gib": 2.0}
KEYS = ("arrival", "sent", "done", "status")
REPORT = {"count", "ok", "errors", "rejected", "offered", "throughput", "percentiles", "inside", "little", "steady"}


# ---- the oracle: Lindley's recursion for several workers, freezes and a bounded queue -------------------------------

def taker(spec):
    """A function (k, tick of sending) -> (done, status), to be asked in the order of k; ticks count from the server's start."""
    free, starts = [0] * spec.get("workers", 1), []
    service, room, errors = spec["service"], spec.get("room"), set(spec.get("errors", ()))

    def take(k, tick):
        start = max(tick, free[0])
        for a, b in sorted(spec.get("freezes", ())):
            if a <= start < b:
                start = b
        if start > tick and room is not None and len(starts) - bisect_right(starts, tick) >= room:
            return tick, "rejected"
        starts.append(start)
        heapq.heapreplace(free, start + service[k % len(service)])
        return start + service[k % len(service)], "error" if k in errors else "ok"
    return take


def record(arrival, sent, done, status):
    return {"arrival": arrival, "sent": sent, "done": done, "status": status}


def open_oracle(spec, schedule, due=lambda planned, before, k: planned):
    """The records; `due` may spoil the plan, for guesses: it gets the planned tick, the record before, and k."""
    take, cost, records, free = taker(spec), dict(spec.get("cost", ())), [], 0
    for k, planned in enumerate(schedule):
        sent = max(due(planned, records[-1] if records else None, k), free)
        records.append(record(planned, sent, *take(k, sent)))
        free = sent + cost.get(k, 0)
    return records


def closed_oracle(spec, clients, requests, think, again=lambda r, think: r["done"] + think):
    """The records; `again` may spoil when a client is due, for guesses."""
    take, cost, records, free, due = taker(spec), dict(spec.get("cost", ())), [], 0, [0] * clients
    for k in range(requests):
        sent = max(heapq.heappop(due), free)
        records.append(record(sent, sent, *take(k, sent)))
        free = sent + cost.get(k, 0)
        heapq.heappush(due, again(records[-1], think))
    return records


def barrier_oracle(spec, clients, requests, think):
    """Clients that go in rounds: the next round begins when all answers of this one are there."""
    take, cost, records, free, tick = taker(spec), dict(spec.get("cost", ())), [], 0, 0
    for k in range(requests):
        if k and k % clients == 0:
            tick = max(r["done"] for r in records[-clients:]) + think
        sent = max(tick, free)
        records.append(record(sent, sent, *take(k, sent)))
        free = sent + cost.get(k, 0)
    return records


def nearest_rank(values, share):
    """By the definition, not by a rank: the smallest sample that at least share thousandths of all do not exceed."""
    ordered = sorted(values)
    return next((v for i, v in enumerate(ordered, 1) if 1000 * i >= share * len(ordered)), None)


def latency(r):
    return r["done"] - r["arrival"] if r["status"] == "ok" else math.inf


def report_oracle(records, start, end, shares):
    window = [r for r in records if r["arrival"] in range(start, end)]
    inside = sum(len(range(max(r["arrival"], start), min(r["done"], end))) for r in records)
    little, ticks = sum(r["done"] - r["arrival"] for r in window), end - start
    status = [r["status"] for r in window]
    return {"count": len(window), "ok": status.count("ok"), "errors": status.count("error"), "rejected": status.count("rejected"),
            "offered": len(window) / ticks, "throughput": sum(r["status"] == "ok" and r["done"] in range(start, end) for r in records) / ticks,
            "percentiles": {share: nearest_rank([latency(r) for r in window], share) for share in shares},
            "inside": inside / ticks, "little": little / ticks,
            "steady": 10 * abs(inside - little) <= max(inside, little),
            "clear": abs(10 * abs(inside - little) - max(inside, little)) > 1e-6 * ticks}


# ---- loads ----------------------------------------------------------------------------------------------------------

def exponential(seed, n):
    return np.random.default_rng(seed).exponential(1.0, n)


def poisson(seed, gap, n):
    return [int(t) for t in np.cumsum(gap * exponential(seed, n))]


def services(seed, low, high, n=200):
    return [int(t) for t in np.random.default_rng(seed).integers(low, high, n)]


def random_spec(seed):
    """A server from a seed: workers, room, freezes, errors, a generator with costs, a clock that does not start at 0."""
    rng = np.random.default_rng(seed)
    at = sorted(int(t) for t in rng.choice(np.arange(200, 3000, 10), 4, replace=False))
    return {"service": services(seed, 1, 40), "workers": int(rng.integers(1, 5)), "room": [None, 0, 3, 10][int(rng.integers(4))],
            "freezes": [(at[0], at[1]), (at[2], at[3])], "errors": [int(k) for k in rng.integers(0, 200, 8)],
            "cost": [(int(k), int(c)) for k, c in zip(rng.integers(0, 200, 30), rng.integers(1, 60, 30))], "clock": int(rng.integers(0, 10**6))}


def words(spec):
    """A server in words, for messages."""
    parts = [f"{spec.get('workers', 1)} worker" + "s" * (spec.get("workers", 1) > 1)]
    if spec.get("room") is not None:
        parts.append(f"room for {spec['room']}")
    for key, text in (("freezes", "freezes"), ("errors", "errors"), ("cost", "sends that take ticks"), ("clock", f"clock at {spec.get('clock')}")):
        if spec.get(key):
            parts.append(text)
    return ", ".join(parts)


# ---- what a submission's records may have wrong ---------------------------------------------------------------------

def is_int(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def form(got, call):
    """The records as plain dicts, or `Wrong`."""
    if not isinstance(got, (list, tuple)) or not all(isinstance(r, dict) for r in got):
        raise Wrong("A generator returns a list of records, and a record is a dict.", call, show(got), "a list of dicts")
    for k, r in enumerate(got):
        if r.get("done") is None and set(r) <= set(KEYS):
            raise Wrong("A request has no answer: the generator ended before its answer was there, or lost it.", call, f"record {k}: {show(r)}",
                        "'done' and 'status' of its answer")
        if set(r) != set(KEYS):
            raise Wrong("A record has the four keys arrival, sent, done and status.", call, f"record {k}: {sorted(map(str, r))}", sorted(KEYS))
        for key in KEYS[:3]:
            if not is_int(r[key]):
                raise Wrong("Ticks are ints.", call, f"record {k}: {key} {r[key]!r}", "an int")
    return [record(*(int(r[key]) for key in KEYS[:3]), str(r["status"])) for r in got]


def column(records, key):
    return [r[key] for r in records]


def driven(submission, call, name, *args):
    """What a function of the probe gives, or `Wrong` for what the submission raised."""
    try:
        answer = submission.drive(name, *args)
    except Wrong as error:      # it did not return: name the call as a learner knows it, not the probe's
        raise Wrong(str(error).partition("\n")[0], call) from None
    if "raised" in answer:
        kind, text, where = answer["raised"]
        if kind == "NotImplementedError":
            raise Wrong(f"{text or name.removeprefix('drive_') + ' is not written yet'}.", call)
        if kind == "Misuse":
            raise Wrong(f"{text} (your {where}).", call)
        hint = " Everything that your answer uses (imports, helper functions) belongs into the graded cells." if kind == "NameError" else ""
        raise Wrong(f"Your code raised {kind} (your {where}).{hint}", call, f"{kind}: {text}")
    return answer


def first(got, want, key):
    k = next(k for k, (a, b) in enumerate(zip(got, want)) if a[key] != b[key])
    return f"record {k}: {key} {got[k][key]}", f"{want[k][key]}", k


def compare(got, want, sends, call, guesses, late):
    """Raises `Wrong` for the first kind of difference. guesses(): pairs (what was done, records that this would give)."""
    if len(got) != len(want):
        refused = sum(r["status"] == "rejected" for r in want)
        failed = refused + sum(r["status"] == "error" for r in want)
        for n, text in ((refused, "Rejected requests have no record"), (failed, "Failed requests have no record")):
            if n and len(got) == len(want) - n:
                raise Wrong(f"{text}: whoever reads the list cannot count them any more.", call, f"{len(got)} records", f"{len(want)}")
        for text, other in guesses():
            if len(got) == len(other) != len(want):
                raise Wrong(text, call, f"{len(got)} records", f"{len(want)}")
        raise Wrong("There has to be one record for each request, whatever became of it.", call, f"{len(got)} records", f"{len(want)}")
    if got == want and column(got, "sent") == [tick for _, tick in sends]:
        return
    if got != want and sorted(map(str, got)) == sorted(map(str, want)):
        raise Wrong("The records are in another order than the requests, as if sorted by answer: record k belongs to index k.", call,
                    f"arrivals {column(got, 'arrival')[:8]}…", f"{column(want, 'arrival')[:8]}…")
    if column(got, "arrival") != column(want, "arrival"):
        came, expected, _ = first(got, want, "arrival")
        late(got, want, call, came, expected)
    true = [tick for _, tick in sends]
    if column(got, "sent") != true:
        k = next((k for k, (a, b) in enumerate(zip(column(got, "sent"), true)) if a != b), 0)
        raise Wrong("`sent` is not the tick at which send was called, counted from the call of the generator.", call,
                    f"record {k}: sent {got[k]['sent']}", f"{true[k] if k < len(true) else 'never sent'}")
    if true != column(want, "sent"):
        came, expected, k = first(got, want, "sent")
        for text, other in guesses():
            if true == column(other, "sent"):
                raise Wrong(text, call, came, expected)
        hint = " Does the think time count from `done`, and not from the tick at which the answer was taken?" if late is not_sent else ""
        raise Wrong(f"Request {k} was sent {'early' if true[k] < want[k]['sent'] else 'late'}.{hint}", call, came, expected)
    if column(got, "done") != column(want, "done"):
        came, expected, k = first(got, want, "done")
        if all(a >= b for a, b in zip(column(got, "done"), column(want, "done"))):
            raise Wrong("`done` is the tick at which you noticed the answer, not the one at which it was there: your own delay is charged to the server.",
                        call, came, expected)
        raise Wrong("`done` is not the tick of the answer, counted from the call of the generator.", call, came, expected)
    came, expected, _ = first(got, want, "status")
    raise Wrong("The status is not that of the answer.", call, came, expected)


def no_plan(got, want, call, came, expected):
    if column(got, "arrival") == column(got, "sent"):
        raise Wrong("Coordinated omission: `arrival` is the tick of sending, so a wait before it vanishes. It has to be the schedule's.", call, came, expected)
    raise Wrong("`arrival` is not the schedule's tick.", call, came, expected)


def not_sent(got, want, call, came, expected):
    if column(got, "arrival") != column(got, "sent"):
        raise Wrong("In a closed loop nobody planned anything: `arrival` is the tick of sending, `sent`.", call, came, expected)


def ask_open(submission, spec, schedule, what):
    call = f"open_loop(server, schedule)  ({what}; {words(spec)}; {len(schedule)} requests)"
    answer = driven(submission, call, "drive_open", spec, schedule)
    if answer["changed"]:
        raise Wrong("The schedule that was handed in is changed.", call, "another list", "the same")
    want, clock = open_oracle(spec, schedule), spec.get("clock", 0)

    drifts = "Delays add up: each gap is counted from the last send, not from the schedule, so the rate drifts."
    cost = dict(spec.get("cost", ()))
    compare(form(answer["got"], call), want, answer["sends"], call, lambda: [
        ("The generator waits for an answer before it sends the next request: that is a closed loop with a schedule.",
         open_oracle(spec, schedule, lambda p, r, k: p if r is None else max(p, r["done"]))),
        (drifts, open_oracle(spec, schedule, lambda p, r, k: p if r is None else r["sent"] + cost.get(k - 1, 0) + p - r["arrival"])),
        (drifts, open_oracle(spec, schedule, lambda p, r, k: p if r is None else r["sent"] + p - r["arrival"])),
        ("The schedule counts from the tick at which open_loop was called, not from tick 0 of the clock.",
         open_oracle(spec, schedule, lambda p, r, k: p - clock)),
        ("Everything is sent at once: the schedule has no effect.", open_oracle(spec, schedule, lambda p, r, k: 0))], no_plan)


def ask_closed(submission, spec, clients, requests, think, what):
    call = f"closed_loop(server, clients={clients}, requests={requests}, think_time={think})  ({what}; {words(spec)})"
    answer = driven(submission, call, "drive_closed", spec, clients, requests, think)
    compare(form(answer["got"], call), closed_oracle(spec, clients, requests, think), answer["sends"], call, lambda: [
        ("`requests` counts the requests of all clients together, not of each.", closed_oracle(spec, clients, clients * requests, think)),
        ("Only one client is at work: the next request waits for the answer to the last one.", closed_oracle(spec, 1, requests, think)),
        ("The clients wait for each other: each one goes on when its own answer is done.", barrier_oracle(spec, clients, requests, think)),
        ("The think time counts from the answer, not from the send: the client cannot think about what it has not.",
         closed_oracle(spec, clients, requests, think, lambda r, t: max(r["sent"] + t, r["done"]))),
        ("The clients do not wait for their answers.", closed_oracle(spec, clients, requests, think, lambda r, t: r["sent"] + t)),
        ("A rejected client thinks before it sends again, like any other.",
         closed_oracle(spec, clients, requests, think, lambda r, t: r["done"] + t * (r["status"] != "rejected"))),
        ("A client that got an error or a rejection thinks before it sends again, like any other.",
         closed_oracle(spec, clients, requests, think, lambda r, t: r["done"] + t * (r["status"] == "ok"))),
        ("The clients do not think.", closed_oracle(spec, clients, requests, 0))], not_sent)


# ---- what a submission's report may have wrong ----------------------------------------------------------------------

def number(value):
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def near(got, want):
    return number(got) and (got == want or abs(got - want) <= 1e-9 * max(abs(got), abs(want)))


def matching(guesses, fits, otherwise):
    """The texts of the guesses that fit, at most three, or `otherwise`."""
    found = list(dict.fromkeys(text for text, value in guesses if fits(value)))[:3]
    return " Or: ".join(found) or otherwise


def why_window(records, start, end, got):
    after = [r for r in records if r["arrival"] < end]
    last = max((r["arrival"] for r in records), default=0) + 1
    guesses = (
        ("The window cuts by `done`: the requests are chosen by their arrival, before anything happened to them.",
            sum(start <= r["done"] < end for r in records)),
        ("The window cuts by `sent`: a late generator moves requests out of the window.", sum(start <= r["sent"] < end for r in records)),
        ("The requests before `start` are counted: that is the warm-up.", len(after)),
        ("`end` is not part of the window.", sum(start <= r["arrival"] <= end for r in records)),
        ("`start` is part of the window, `end` is not.", sum(start < r["arrival"] <= end for r in records)),
        ("`start` is part of the window.", sum(start < r["arrival"] < end for r in records)),
        ("The requests after `end` are counted.", sum(start <= r["arrival"] for r in records)),
        ("The window has no effect.", len(records)),
        ("Only answered requests are counted: failed ones belong to the window as well.",
            sum(start <= r["arrival"] < end and r["status"] == "ok" for r in records)),
        ("Rejected requests are not counted: they belong to the window as well.",
            sum(start <= r["arrival"] < end and r["status"] != "rejected" for r in records)),
        ("The warm-up is cut by a number of requests, not by time of arrival.", len(records) * end // last - len(records) * start // last),
        ("The warm-up is cut by a number of requests, not by time of arrival.", len(records[start:end])))
    return matching(guesses, lambda n: n == got,
                    "The window is start <= arrival < end, by the tick of arrival.")


def why_percentile(records, start, end, got):
    """got: share to what came, all numbers. A guess has to explain every share."""
    window = [r for r in records if start <= r["arrival"] < end]
    n = len(window)
    if not n:
        return "With no request in the window there is no percentile: None."
    waits, middle, cut = sorted(map(latency, window)), (start + end) / 2, n - len(records) * (end - start) // max(end, 1)

    def waited(kinds, since="arrival"):
        return [r["done"] - r[since] if r["status"] in kinds else math.inf for r in window]

    def of(values):
        return lambda share: nearest_rank(values, share)

    def rank(function):
        return lambda share: waits[min(max(function(share), 1), n) - 1]

    def averaged(*parts):
        values = [list(map(latency, part)) for part in parts if part]
        return lambda share: sum(nearest_rank(v, share) for v in values) / len(values)

    def linear(share):
        return float(np.percentile(waits, share / 10)) if waits[-1] < math.inf else None

    guesses = [
        ("Failed requests are left out of the percentile: who gets no result waits for ever.", of([latency(r) for r in window if r["status"] == "ok"])),
        ("Rejected requests are left out of the percentile: the server that refuses most looks best.",
         of([latency(r) for r in window if r["status"] != "rejected"])),
        ("Failed requests count with the time of their answer: a fast refusal improves the percentile.", of(waited(("ok", "error", "rejected")))),
        ("Rejected requests count with the time of their answer: a fast refusal improves the percentile.", of(waited(("ok", "rejected")))),
        ("Errors count with the time of their answer: who gets no result waits for ever.", of(waited(("ok", "error")))),
        ("The latency counts from `sent`: the wait before sending vanishes (coordinated omission).", of(waited(("ok",), "sent"))),
        ("The percentile is interpolated between two samples: nearest rank always gives one of them.", linear),
        ("The rank is NumPy's method 'higher', ceil(share * (n - 1)) counted from 0: nearest rank is ceil(share * n), counted from 1.",
         rank(lambda share: -(-share * (n - 1) // 1000) + 1)),
        ("The rank is computed in floats and falls one beyond: 0.55 * 100 is 55.00000000000001.", rank(lambda share: math.ceil(share / 1000 * n))),
        ("The rank is rounded down.", rank(lambda share: n * share // 1000)),
        ("The rank is one too high: nearest rank is ceil(share * n), counted from 1.", rank(lambda share: n * share // 1000 + 1)),
        ("Percentiles of parts are averaged: merge the samples, then take the percentile.", averaged(window[:n // 2], window[n // 2:])),
        ("Percentiles of parts are averaged: merge the samples, then take the percentile.",
         averaged([r for r in window if r["arrival"] < middle], [r for r in window if r["arrival"] >= middle])),
        ("The percentile counts requests outside of the window.", of(list(map(latency, records)))),
        ("The warm-up is cut by a number of requests, not by time of arrival.", of(list(map(latency, window[max(cut, 0):]))))]

    def fits(value):
        mine = {share: value(share) for share in got}
        return all(v is not None and (v == got[share] or abs(v - got[share]) <= 1e-9 * abs(v)) for share, v in mine.items())
    return matching(guesses, fits, "The percentile is not the nearest rank over all requests of the window, with failed ones infinitely slow.")


def why_throughput(records, start, end, got):
    ticks = end - start
    ok = [r for r in records if r["status"] == "ok"]
    span = max((r["done"] for r in records), default=0)
    guesses = (
        ("`start` is part of the window, `end` is not.", sum(start <= r["done"] <= end for r in ok) / ticks),
        ("`start` is part of the window, `end` is not.", sum(start < r["done"] <= end for r in ok) / ticks),
        ("`start` is part of the window, `end` is not.", sum(start < r["done"] < end for r in ok) / ticks),
        ("The throughput counts the answers to the window's requests, also those that came after its end: in overload that is the offered rate again.",
         sum(start <= r["arrival"] < end for r in ok) / ticks),
        ("The throughput counts failed requests: a refusal is no work.", sum(start <= r["done"] < end for r in records) / ticks),
        ("The throughput is taken over the whole run, warm-up and end included, not over the window.", len(ok) / max(span, 1)),
        ("The throughput counts arrivals: what was offered is not what came out.", sum(start <= r["arrival"] < end for r in records) / ticks),
        ("The answers of the window are divided by the whole run's time.", sum(start <= r["done"] < end for r in ok) / max(span, 1)),
        ("All answers of the run are divided by the window's time.", len(ok) / ticks),
        ("The answers of the window are divided by its end, warm-up included.", sum(start <= r["done"] < end for r in ok) / max(end, 1)),
        ("The throughput leaves out answers to requests that arrived before the window.", sum(start <= r["arrival"] and r["done"] < end for r in ok) / ticks))
    return matching(guesses, lambda value: near(got, value), "The throughput is the 'ok' answers with start <= done < end, divided by end - start.")


def ask_report(submission, records, start, end, what, shares=None):
    call = f"report(records, {start}, {end}{f', {tuple(shares)}' if shares else ''})  ({what}; {len(records)} records)"
    answer = driven(submission, call, "drive_report", records, start, end, list(shares) if shares else None)
    got, want = answer["got"], report_oracle(records, start, end, shares or (500, 990, 999))
    if answer["changed"]:
        raise Wrong("The records that were handed in are changed.", call, "other records", "the same")
    if not isinstance(got, dict) or set(got) != REPORT:
        raise Wrong("report returns a dict with the ten keys of the contract.", call,
                    sorted(map(str, got)) if isinstance(got, dict) else got, sorted(REPORT))
    for key in ("count", "ok", "errors", "rejected"):
        if not is_int(got[key]):
            raise Wrong(f"{key!r} is an int.", call, show(got[key]), want[key])
        if got[key] != want[key]:
            mistake = why_window(records, start, end, got[key]) if key == "count" else f"{key!r} counts the requests of the window by status."
            raise Wrong(mistake, call, f"{key} {got[key]!r}", want[key])
    if not isinstance(got["percentiles"], dict) or set(got["percentiles"]) != set(want["percentiles"]):
        raise Wrong("'percentiles' has one entry for each share.", call, got["percentiles"], want["percentiles"])
    found, value = got["percentiles"], want["percentiles"]
    share = next((share for share in value if found[share] is not value[share] and not (
        number(found[share]) and number(value[share]) and found[share] == value[share])), None)
    if share is not None:
        mistake = "A percentile is a number, or None if nothing arrived."
        if all(number(v) for v in found.values()):
            mistake = why_percentile(records, start, end, found)
        raise Wrong(mistake, call, f"share {share}: {found[share]}", f"{value[share]}")
    if not near(got["offered"], want["offered"]):
        raise Wrong("'offered' is the window's requests, divided by end - start.", call, got["offered"], want["offered"])
    if not near(got["throughput"], want["throughput"]):
        raise Wrong(why_throughput(records, start, end, got["throughput"]), call, f"throughput {got['throughput']}", f"{want['throughput']:.6f}")
    if not near(got["inside"], want["inside"]):
        uncut = sum(r["done"] - r["arrival"] for r in records) / (end - start)
        cut = sum(max(0, min(r["done"], end) - r["arrival"]) for r in records if start <= r["arrival"] < end) / (end - start)
        mistake = "'inside' is the overlap of each record with the window, summed and divided by end - start."
        if near(got["inside"], want["little"]):
            mistake = "'inside' is rate times time again: the law is checked against itself, and it always holds."
        elif near(got["inside"], cut):
            mistake = "'inside' leaves out requests that arrived before the window and are still in the system."
        elif near(got["inside"], uncut):
            mistake = "'inside' counts whole records, not the part of each that lies in the window."
        raise Wrong(mistake, call, f"inside {got['inside']}", f"{want['inside']:.6f}")
    if not near(got["little"], want["little"]):
        raise Wrong("'little' is the sum of done - arrival over the window's requests, whatever their status, divided by end - start.", call,
                    f"little {got['little']}", f"{want['little']:.6f}")
    if not isinstance(got["steady"], (bool, np.bool_)):
        raise Wrong("'steady' is a bool.", call, got["steady"], want["steady"])
    if want["clear"] and bool(got["steady"]) != want["steady"]:
        raise Wrong("'steady' is wrong: inside and little may differ by a tenth of the larger one.", call,
                    f"steady {got['steady']}", f"{want['steady']}, with inside {want['inside']:.4f} and little {want['little']:.4f}")


# ---- open_loop ------------------------------------------------------------------------------------------------------

def test_open_even(submission):
    """open_loop sends by the schedule, also while answers are missing"""
    ask_open(submission, {"service": [4]}, list(range(0, 1000, 10)), "each answer is there before the next request")
    ask_open(submission, {"service": [25], "workers": 2}, list(range(5, 1005, 10)), "answers take longer than the gaps")
    ask_open(submission, {"service": [4], "clock": 5_000}, list(range(0, 500, 10)), "a clock that does not start at 0")


def test_open_empty_and_one(submission):
    """open_loop takes an empty schedule and a single request"""
    ask_open(submission, {"service": [4]}, [], "an empty schedule")
    ask_open(submission, {"service": [7], "clock": 30}, [0], "one request, at once")
    ask_open(submission, {"service": [7], "clock": 30}, [12], "one request, later")


def test_open_freeze(submission):
    """open_loop goes on sending while the server is frozen"""
    for clock in (0, 700):
        ask_open(submission, {"service": [2], "freezes": [(500, 900)], "clock": clock}, list(range(0, 2000, 10)), "a freeze in the middle")
    ask_open(submission, {"service": services(1, 1, 12), "workers": 3, "freezes": [(300, 500), (500, 650)]}, poisson(1, 6, 300), "two freezes, random arrivals")


def test_open_late_generator(submission):
    """open_loop counts from the schedule when the generator itself is late, and catches up"""
    ask_open(submission, {"service": [2], "workers": 50, "cost": [(20, 300)]}, list(range(0, 1000, 10)), "one send takes 300 ticks")
    ask_open(submission, {"service": [3], "workers": 4, "cost": [(k, 2) for k in range(100)], "clock": 9}, list(range(0, 1000, 10)), "each send takes 2 ticks")
    ask_open(submission, {"service": [3], "workers": 4, "cost": [(k, 12) for k in range(60)]}, list(range(0, 600, 10)), "a generator that is too slow")


def test_open_slow_answer(submission):
    """open_loop waits for the last answer, however long it takes"""
    ask_open(submission, {"service": [3] * 19 + [400_000], "workers": 3, "clock": 40}, list(range(0, 200, 10)), "the last request takes 400,000 ticks")


def test_open_bursts(submission):
    """open_loop sends bursts, several requests at one tick"""
    schedule = sorted([t for t in range(0, 2000, 200) for _ in range(15)] + list(range(50, 2000, 70)))
    ask_open(submission, {"service": services(2, 5, 30), "workers": 2}, schedule, "15 requests at one tick")
    ask_open(submission, {"service": services(2, 5, 30), "workers": 2, "clock": 77, "cost": [(15, 40)]}, [0] * 40, "everything at tick 0")


def test_open_failures(submission):
    """open_loop keeps a record of rejected requests and of errors"""
    ask_open(submission, {"service": [30], "workers": 2, "room": 3}, list(range(0, 1500, 10)), "overload with a bounded queue")
    ask_open(submission, {"service": [30], "room": 0, "clock": 11}, list(range(0, 900, 20)), "no queue at all")
    ask_open(submission, {"service": [5], "errors": list(range(0, 60, 7))}, list(range(0, 600, 10)), "errors")


@pytest.mark.parametrize("seed", range(101, 109))
def test_open_seeds(submission, seed):
    """open_loop with servers and schedules from seeds"""
    ask_open(submission, random_spec(seed), poisson(seed, 5 + 3 * (seed % 5), 250), f"seed {seed}")


def test_open_refuses(submission):
    """open_loop refuses a schedule that goes back in time, before anything is sent"""
    driven(submission, "open_loop(server, [0])", "drive_open", {"service": [1]}, [0])
    for schedule in ([0, 10, 9], [5, 4], [-1, 3], [0, 1, 2, 3, 2]):
        kind, bases, sent = submission.drive("refused", schedule)
        if "ValueError" not in bases:
            raise Wrong("A schedule that goes back in time, or starts below 0, has to be refused.", f"open_loop(server, {schedule})", kind or "records", "ValueError")
        if sent:
            raise Wrong("The schedule is refused too late.", f"open_loop(server, {schedule})", f"{sent} requests sent before", "none")


# ---- closed_loop ----------------------------------------------------------------------------------------------------

def test_closed_one_client(submission):
    """closed_loop with one client: send, wait, think, send"""
    ask_closed(submission, {"service": [4, 9, 2]}, 1, 40, 6, "one client")
    ask_closed(submission, {"service": [4, 9, 2], "clock": 500}, 1, 40, 0, "one client that does not think")
    ask_closed(submission, {"service": [2], "freezes": [(100, 400)]}, 1, 60, 8, "a freeze")
    ask_closed(submission, {"service": [400_000, 3]}, 1, 3, 8, "a first request that takes 400,000 ticks")


def test_closed_edges(submission):
    """closed_loop with no request, one request, and more clients than requests"""
    for clients, requests in ((1, 0), (3, 0), (1, 1), (5, 1), (8, 3), (4, 4)):
        ask_closed(submission, {"service": [5, 3], "clock": 12}, clients, requests, 4, "few requests")


def test_closed_clients(submission):
    """closed_loop with several clients, each of which waits for its own answer only"""
    ask_closed(submission, {"service": [10, 40, 15, 5], "workers": 4}, 4, 80, 7, "as many workers as clients")
    ask_closed(submission, {"service": services(3, 2, 50), "workers": 2}, 5, 150, 20, "more clients than workers")
    ask_closed(submission, {"service": services(4, 2, 50), "workers": 3, "cost": [(k, 3) for k in range(200)]}, 6, 150, 0, "each send takes 3 ticks")


def test_closed_failures(submission):
    """closed_loop treats rejected requests and errors as answers"""
    ask_closed(submission, {"service": [30, 20], "room": 1}, 4, 60, 9, "a bounded queue")
    ask_closed(submission, {"service": [30, 20], "room": 0}, 3, 60, 25, "no queue at all")
    ask_closed(submission, {"service": [8, 6], "errors": [1, 5, 6, 20]}, 2, 40, 9, "errors")


@pytest.mark.parametrize("seed", range(201, 207))
def test_closed_seeds(submission, seed):
    """closed_loop with servers from seeds"""
    ask_closed(submission, random_spec(seed), 1 + seed % 6, 220, (seed * 7) % 31, f"seed {seed}")


# ---- report ---------------------------------------------------------------------------------------------------------

def made(latencies, gap=10, status=None, late=0):
    """Records with these latencies, `gap` ticks apart, each sent `late` ticks after its arrival."""
    status = status or {}
    return [record(k * gap, k * gap + late, k * gap + wait, status.get(k, "ok")) for k, wait in enumerate(latencies)]


def shuffled(seed, n, scale=1000):
    return [int(v) for v in 5 + np.random.default_rng(seed).permutation(n) * scale // n]


def test_report_percentiles(submission):
    """report takes percentiles by nearest rank, over all samples at once"""
    for n in (100, 150, 200, 300):
        ask_report(submission, made(shuffled(n, n)), 0, 10 * n, f"{n} different latencies, many shares", (1, 70, 140, 290, 333, 550, 560, 570, 995, 999, 1000))
    for n in (1, 2, 3, 10, 99, 100, 101, 200, 1000):
        ask_report(submission, made(shuffled(n, n)), 0, 10 * n, f"{n} different latencies")
    two = made([10] * 300 + [90] * 6 + [10] * 300)
    ask_report(submission, two, 0, 10 * len(two), "slow requests together", (980, 990, 995))
    ramp = made(list(range(1, 401)))
    ask_report(submission, ramp, 0, 4000, "latencies that grow", (500, 900, 990))


def test_report_failed(submission):
    """report counts failed requests as infinitely slow, so refusing improves nothing"""
    for what, status in (("rejected and errors, each one in ten", dict.fromkeys(range(0, 400, 10), "rejected") | dict.fromkeys(range(5, 400, 10), "error")),
                         ("rejected, one in ten", dict.fromkeys(range(0, 400, 10), "rejected")), ("errors, one in ten", dict.fromkeys(range(5, 400, 10), "error")),
                         ("all rejected", dict.fromkeys(range(400), "rejected")), ("three rejected, under one percent", dict.fromkeys((7, 80, 300), "rejected"))):
        waits = [0 if status.get(k) == "rejected" else wait for k, wait in enumerate(shuffled(5, 400))]
        ask_report(submission, made(waits, status=status), 0, 4000, what, (100, 500, 890, 900, 950, 990, 999))


def test_report_window(submission):
    """report cuts the warm-up and the end by tick of arrival"""
    waits = [800 - 2 * k if k < 300 else 20 + k % 17 for k in range(1000)]
    for start, end in ((0, 10_000), (3000, 10_000), (3000, 8000), (2995, 7995), (3001, 8001), (9990, 9991), (0, 1)):
        ask_report(submission, made(waits, late=4), start, end, "a slow start")
    burst = made([300 - k for k in range(250)], gap=0) + [record(t, t, t + 30, "ok") for t in range(1000, 6000, 20)]
    ask_report(submission, burst, 1000, 6000, "250 requests at tick 0, then one every 20 ticks")
    ask_report(submission, burst, 0, 1000, "only the burst")


def test_report_from_the_plan(submission):
    """report counts the latency from arrival, not from sending"""
    late = [record(10 * k, 10 * k + (600 - k if k < 500 else 0), 10 * k + 600 - k + 3 if k < 500 else 10 * k + 3, "ok") for k in range(600)]
    ask_report(submission, late, 0, 6000, "a generator that is late")


def test_report_throughput(submission):
    """report counts as throughput what came out in the window"""
    for gap, room, what in ((10, None, "overload"), (10, 5, "overload, bounded queue"), (40, None, "half load")):
        records = open_oracle({"service": [20], "room": room}, list(range(0, 8000, gap)))
        for start, end in ((2000, 8000), (2000, 6000), (0, 8000), (0, 30_000)):
            ask_report(submission, records, start, end, what)


def test_report_little(submission):
    """report checks Little's law with two sums that can differ"""
    steady = open_oracle({"service": services(6, 5, 30), "workers": 2}, poisson(6, 12, 900))
    flooded = open_oracle({"service": [30]}, list(range(0, 9000, 10)))
    frozen = open_oracle({"service": [5], "freezes": [(900, 2500)]}, list(range(0, 9000, 10)))
    for what, records in (("steady", steady), ("overload", flooded), ("a freeze at the window's edge", frozen)):
        for start, end in ((1000, 9000), (1000, 2000), (2000, 2500), (0, 9000)):
            ask_report(submission, records, start, end, what)
    ten = [record(1000 + 100 * k, 1000 + 100 * k, 1100 + 100 * k, "ok") for k in range(10)]
    for extra in (80, 108, 115):
        ask_report(submission, [record(500, 500, 1000 + extra, "ok"), *ten], 1000, 2000, f"{extra} ticks of a request from before the window")
        ask_report(submission, [*ten[:9], record(1900, 1900, 2000 + extra, "ok")], 1000, 2000, f"{extra} ticks of a request beyond the window")


def test_report_nothing(submission):
    """report takes an empty window, no records, and a single one"""
    ask_report(submission, [], 0, 100, "no records")
    ask_report(submission, made([5] * 20), 5000, 6000, "a window after everything")
    ask_report(submission, made([3000] * 20), 1000, 2000, "no arrivals, but all are inside")
    ask_report(submission, made([30]), 0, 10, "one request, answered later")
    ask_report(submission, made([0], status={0: "rejected"}), 0, 10, "one request, rejected")


@pytest.mark.parametrize("seed", range(301, 307))
def test_report_seeds(submission, seed):
    """report on runs from seeds"""
    spec = random_spec(seed)
    records = open_oracle(spec, poisson(seed, 9, 300)) if seed % 2 else closed_oracle(spec, 4, 300, 15)
    end = max(r["arrival"] for r in records)
    for start, stop in ((0, end), (end // 4, end), (end // 5, 3 * end // 4), (end // 3, 2 * end)):
        ask_report(submission, records, start, stop, f"seed {seed}")


def test_report_refuses(submission):
    """report refuses a window that ends before it has begun"""
    submission.call("report", made([5] * 3), 0, 30)
    for start, end in ((10, 10), (10, 5)):
        try:
            got = submission.attempt("report", made([5] * 10), start, end)
        except Raised as error:
            if "ValueError" in error.bases:
                continue
            raise Wrong("A window without ticks has to be refused with a ValueError.", error.call, str(error), "ValueError") from None
        raise Wrong("A window without ticks has to be refused.", f"report(records, {start}, {end})", got, "ValueError")


# ---- max_rate -------------------------------------------------------------------------------------------------------

class Search:
    """One call of max_rate, and what each of its trials would show."""

    def __init__(self, spec, seed, length, n, bound, low, high, tolerance, start, end=None, share=990):
        self.spec, self.length, self.share = spec, length, share
        self.units = [float(u) for u in np.cumsum(exponential(seed, n))]
        self.search = {"bound": bound, "low": low, "high": high, "tolerance": tolerance, "start": start, "end": end or length, "share": share}
        self.known, self.values = {}, {}

    def schedule(self, rate):
        return [tick for tick in (int(unit * 1000 / rate) for unit in self.units) if tick < self.length]

    def records(self, rate):
        if rate not in self.known:
            self.known[rate] = open_oracle(self.spec, self.schedule(rate))
        return self.known[rate]

    def value(self, rate):
        if rate not in self.values:
            self.values[rate] = self.percentile(rate)
        return self.values[rate]

    def percentile(self, rate):
        return report_oracle(self.records(rate), self.search["start"], self.search["end"], (self.share,))["percentiles"][self.share]

    def holds(self, rate):
        value = self.value(rate)
        return value is not None and value <= self.search["bound"]

    def why_fails(self, rate):
        """The likely mistake of an answer that takes this rate for one that holds, or ''."""
        records, start, end = self.records(rate), self.search["start"], self.search["end"]
        window = [latency(r) for r in records if start <= r["arrival"] < end]
        answered = [wait for wait in window if wait < math.inf]
        if not window:
            return "A window with no requests holds nothing."
        if answered and len(answered) < len(window) and nearest_rank(answered, self.share) <= self.search["bound"]:
            return "The rate that is returned holds the bound for answered requests only: rejected ones count, as infinitely slow."
        if sum(window) / len(window) <= self.search["bound"]:
            return "The rate that is returned holds the bound on average, not at the percentile."
        return ""

    def why_holds(self, rate):
        """The likely mistake of an answer that takes this rate for one that fails, or ''."""
        records, start, end = self.records(rate), self.search["start"], self.search["end"]
        found = []
        for text, values in (("what comes after `end` is judged as well.", [latency(r) for r in records if start <= r["arrival"]]),
                             ("the warm-up before `start` is judged as well.", [latency(r) for r in records if r["arrival"] < end])):
            if values and nearest_rank(values, self.share) > self.search["bound"]:
                found.append(text)
        return f"'failed' holds the bound in the window: {' Or: '.join(found)}" if found else ""


def ask_max(submission, case, what):
    s = case.search
    low, high, tolerance = s["low"], s["high"], s["tolerance"]
    call = f"max_rate(…, bound={s['bound']}, low={low}, high={high}, tolerance={tolerance}, share={s['share']})  ({what}; {words(case.spec)})"
    answer = driven(submission, call, "drive_max_rate", case.spec, case.units, case.length, s)
    got, rates, servers = answer["got"], answer["rates"], answer["servers"]
    if not isinstance(got, dict) or set(got) != {"rate", "failed"} or not all(v is None or is_int(v) for v in got.values()):
        raise Wrong("max_rate returns a dict with 'rate' and 'failed', each an int or None.", call, got, "{'rate': …, 'failed': …}")
    rate, failed = got["rate"], got["failed"]
    if not rates:
        raise Wrong("No schedule was asked for: a rate is tried with an open loop. A closed loop slows down with the server, and its throughput promises nothing.",
                    call, got, "trials by open_loop(new_server(), new_schedule(rate))")
    for tried, sends in zip(rates, servers):
        if is_int(tried) and low <= tried <= high and [tick for _, tick in sends] != column(case.records(tried), "sent"):
            raise Wrong("A trial does not send by the schedule of its rate.", call, f"rate {tried}: sent at {[t for _, t in sends][:8]}…",
                        f"{column(case.records(tried), 'sent')[:8]}…")
    if len(servers) < len(rates):
        raise Wrong("Trials share a server: what one left behind is in the next one's way.", call, f"{len(servers)} servers for {len(rates)} schedules",
                    "a fresh server for each trial")
    outside = [r for r in rates if not is_int(r) or not low <= r <= high]
    if outside:
        raise Wrong("Rates are ints from low to high.", call, f"tried {outside[0]!r}", f"{low} … {high}")
    budget = 2 + math.ceil(math.log2(Fraction(high - low, tolerance))) if high - low > tolerance else 2
    if len(servers) > budget:
        raise Wrong("Too many trials: each one takes minutes on a real server.", call, f"{len(servers)} calls of new_server", f"at most {budget}")
    ends = f"low: {case.value(low)}, high: {case.value(high)}, bound {s['bound']}"
    right = []
    if case.holds(high):
        right.append({"rate": high, "failed": None})
    if not case.holds(low):
        right.append({"rate": None, "failed": low})
    if got in right:
        return
    for name, value in got.items():
        if value is not None and not low <= value <= high:
            raise Wrong(f"{name!r} is none of the rates from low to high. Where no rate held, or none failed, it is None.", call, got,
                        f"{right[0] if right else 'two rates'}  ({ends})")
    if rate is None and failed is None:
        raise Wrong("'rate' and 'failed' cannot both be None.", call, got, f"{right[0] if right else 'two rates'}  ({ends})")
    unchecked = ""
    if right:
        which = "high holds" if case.holds(high) else "low fails already"
        unchecked = f"The ends are not checked: {which}, and halving between them answers another question."
    if rate is not None and not case.holds(rate):
        raise Wrong(case.why_fails(rate) or unchecked or "The rate that is returned does not hold the bound.", call,
                    f"{got}, and the percentile of {rate} is {case.value(rate)}", f"a rate that holds {s['bound']}  ({ends})")
    if failed is not None and case.holds(failed):
        raise Wrong(case.why_holds(failed) or unchecked or "'failed' holds the bound.", call,
                    f"{got}, and the percentile of {failed} is {case.value(failed)}", f"a rate that fails {s['bound']}  ({ends})")
    if right:
        raise Wrong(unchecked, call, got, f"{right[0]}  ({ends})")
    if rate is None or failed is None:
        raise Wrong("low holds and high fails, so both 'rate' and 'failed' are numbers.", call, got, f"two rates  ({ends})")
    if not 0 < failed - rate <= tolerance:
        raise Wrong("The search stops too early, or its two rates are not neighbours: failed - rate has to be at most the tolerance.", call, got,
                    f"0 < failed - rate <= {tolerance}")
    for name, value in (("rate", rate), ("failed", failed)):
        if value not in rates:
            raise Wrong(f"'{name}' was never tried.", call, value, f"one of {sorted(set(rates))}")


TWO = {"service": services(8, 5, 35), "workers": 2}                       # about 100 per 1000 ticks at most


def test_max_rate(submission):
    """max_rate finds the highest rate that keeps the bound, within the tolerance"""
    for bound in (40, 90, 200):
        ask_max(submission, Search(TWO, 11, 12_000, 2000, bound, 5, 150, 1, 2000), "two workers")
    ask_max(submission, Search(TWO, 12, 12_000, 2000, 90, 5, 150, 7, 2000), "a coarse tolerance")
    ask_max(submission, Search(TWO, 13, 12_000, 2000, 60, 5, 150, 2, 2000, 9000, 900), "p90, an end before the last arrival")


def test_max_rate_ends(submission):
    """max_rate looks at both ends before it searches"""
    ask_max(submission, Search(TWO, 14, 12_000, 2000, 100_000, 5, 64, 1, 2000), "a bound that every rate keeps")
    ask_max(submission, Search(TWO, 14, 12_000, 2000, 10, 5, 64, 1, 2000), "a bound that none keeps")
    ask_max(submission, Search(TWO, 14, 12_000, 2000, 100_000, 5, 6, 1, 2000), "low and high are neighbours, both hold")
    ask_max(submission, Search(TWO, 15, 12_000, 2000, 90, 5, 150, 200, 2000), "a tolerance that is wider than the range")


def test_max_rate_failures(submission):
    """max_rate lets no rejected request pass for a fast one"""
    ask_max(submission, Search(TWO | {"room": 2}, 16, 12_000, 2000, 120, 5, 200, 1, 2000), "a bounded queue")
    ask_max(submission, Search(TWO | {"room": 0, "workers": 4}, 17, 12_000, 2000, 60, 2, 200, 2, 2000, None, 950), "no queue at all")
    ask_max(submission, Search(TWO | {"room": 3, "errors": list(range(0, 2000, 40))}, 18, 12_000, 2000, 120, 5, 200, 1, 2000), "errors: one in forty, at any rate")


def test_max_rate_window(submission):
    """max_rate judges the window only, and a window without requests holds nothing"""
    ask_max(submission, Search(TWO | {"freezes": [(100, 900)]}, 19, 12_000, 2000, 90, 5, 120, 1, 3000), "a freeze in the warm-up")
    ask_max(submission, Search(TWO, 20, 2000, 40, 90, 200, 900, 1, 1000), "arrivals that end before the window")


def test_keeps_nothing(submission):
    """Each call stands by itself"""
    case = Search(TWO, 21, 8000, 1500, 80, 5, 150, 4, 1000)
    for turn in range(2):
        ask_open(submission, TWO, poisson(5, 9, 100), f"turn {turn}")
        ask_closed(submission, TWO, 3, 60, 5, f"turn {turn}")
        ask_report(submission, made(shuffled(4, 100)), 0, 1000, f"turn {turn}")
        ask_max(submission, case, f"turn {turn}")
