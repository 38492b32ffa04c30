# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: percentiles under load, with open and closed loops
#
# Level: mid to senior · 45 minutes · needs no GPU
#
# A server freezes for a moment. One load generator reports it, another one reports that all is well, and both measured the same
# server. You write both generators, the report, and the search for the highest rate that keeps a bound on the p99.
#
# Background: [open and closed loops](../../book/05_measuring/questions/14_open_closed_loops.md) and
# [percentiles](../../book/05_measuring/questions/13_percentiles_and_samples.md).
#
# ## The server and its clock
#
# Time is counted in ticks, which are integers. Your generators run in one thread, get a `server`, and use these three methods and no other clock:
#
# | call | what it does |
# | --- | --- |
# | `server.now()` | The tick it is. It need not start at 0. |
# | `server.send(k)` | Hands request `k` over at this tick. Number the requests 0, 1, 2 … in the order of sending. Some ticks may pass before it returns: that is the generator's own cost, and time that it has lost. |
# | `server.wait(until=None)` | Returns the next answer, or `None` at tick `until` if none is there by then. An answer that is there already is returned at once, the oldest first, each one once. With `None`, it waits as long as it takes. If `until` is past, it looks and does not wait. |
#
# An answer is `(k, status, done)`. `status` is `"ok"`, `"error"`, or `"rejected"` (the queue was full; that answer is there at once). `done` is the
# tick at which the answer was there, which may be before the tick at which you look. Each request gets exactly one answer. Ticks
# pass in `send` and in `wait`, nowhere else.
#
# ## The contract
#
# A *record* is a dict with four keys: `"arrival"`, `"sent"` and `"done"` (int), and `"status"`. `sent` is the tick at which `send(k)` was called.
# All ticks of a record count from the tick at which the generator was called. Both generators return a list: the record of request `k` at index `k`, one for
# each request, whatever its status.
#
# **`open_loop(server, schedule)`** sends request `k` at tick `schedule[k]`, counted from the call, whether or not others were answered. If the generator is
# late, because `send` took long, it sends at once. No request is skipped. `arrival` is `schedule[k]`. The schedule is a list of ints,
# equal ticks allowed, empty allowed. `ValueError`, before anything is sent, if it goes back in time or starts below 0.
#
# **`closed_loop(server, clients, requests, think_time)`** plays `clients` ≥ 1 clients that send `requests` ≥ 0 requests *in all*. Each client sends; when its
# answer is done, it thinks for `think_time` ≥ 0 ticks and is due again, whatever the status was. All are due at the call. A
# request is sent as soon as a client is due and `send` is free. `arrival` equals `sent`: nobody planned anything.
#
# **`report(records, start, end, shares=(500, 990, 999))`** speaks about the requests with `start` ≤ `arrival` < `end`, the *window*: what comes before is
# warm-up. A share is an int in 1 … 1000, in thousandths: 990 is the p99. `ValueError` if `end` ≤ `start`. It returns a dict:
#
# | key | value |
# | --- | --- |
# | `"count"`, `"ok"`, `"errors"`, `"rejected"` | int: requests of the window, and how many of them had each status |
# | `"offered"` | float: requests of the window per tick |
# | `"throughput"` | float: `"ok"` answers with `start` ≤ `done` < `end` per tick, whenever they arrived |
# | `"percentiles"` | dict from share to value. Nearest rank: the smallest latency that at least share / 1000 of the window's requests do not exceed. The latency is `done` − `arrival` for `"ok"`, and `math.inf` for every other status: who gets no result waits for ever |
# | `"inside"` | float: how many requests were in the system, averaged over the ticks of [`start`, `end`). Any record is inside from `arrival` to `done`, whatever its status |
# | `"little"` | float: the sum of `done` − `arrival` over the window's requests, whatever their status, per tick. It is rate × mean time |
# | `"steady"` | bool: `inside` and `little` differ by at most a tenth of the larger one. If not, Little's law does not hold here, and the window is no steady state |
#
# "Per tick" means divided by `end` − `start`. With no request in the window, each percentile is `None`.
#
# **`max_rate(new_server, new_schedule, bound, low, high, tolerance, start, end, share=990)`** searches the highest rate at which the `share` of
# `report` is at most `bound`. Rates are ints from `low` to `high`, `low` < `high`. One *trial* of a rate is `open_loop(new_server(), new_schedule(rate))`
# and its report for `start`, `end`. A window with no requests holds nothing. It returns `{"rate": …, "failed": …}`:
#
# - normally `rate` is one that was tried and held, `failed` one above it that was tried and failed, and `failed` − `rate` ≤ `tolerance` (an int ≥ 1);
# - `{"rate": high, "failed": None}` if `high` holds, and `{"rate": None, "failed": low}` if `low` fails. If both are true, either answer is accepted;
# - counted: calls of `new_server`, at most 2 + ⌈log₂((`high` − `low`) / `tolerance`)⌉. A trial of a real server takes minutes.
#
# Nothing that is handed in is changed, and no call depends on an earlier one. Ints are compared exactly, floats within 1e-9 relative; `steady` is not
# asked within 1e-6 of its limit.

# %% [markdown]
# ## A simulated server
#
# Nothing on this page times your machine, except where it says so: this server is a simulation, and its ticks are numbers.

# %%
import heapq
import math
from collections import deque

import numpy as np


class SimulatedServer:
    """Workers behind one first-come queue; the clock moves in `send` and `wait` only.

    service: request k needs service[k % len(service)] ticks. room: so many requests may wait (None: any number). freezes: pairs
    (a, b); no request is started from tick a to before tick b. errors: requests that fail, after their service. cost: {k: ticks
    that send(k) takes}.
    """

    def __init__(self, service, workers=1, room=None, freezes=(), errors=(), cost=None, clock=0):
        self.service, self.idle, self.room, self.clock = service, workers, room, clock
        self.freezes, self.errors, self.cost = freezes, set(errors), cost or {}
        self.queue, self.running, self.answers = deque(), [], deque()

    def now(self):
        return self.clock

    def send(self, k):
        self.queue.append(k)
        self._start()
        if self.room is not None and len(self.queue) > self.room:
            self.answers.append((self.queue.pop(), "rejected", self.clock))
        back = self.clock + self.cost.get(k, 0)
        while self._step(back):
            pass

    def wait(self, until=None):
        limit = math.inf if until is None else until
        while not self.answers and self._step(limit):
            pass
        return self.answers.popleft() if self.answers else None

    def _thaw(self):
        return next((b for a, b in self.freezes if a <= self.clock < b), None)

    def _start(self):
        while self.queue and self.idle and self._thaw() is None:
            k = self.queue.popleft()
            self.idle -= 1
            heapq.heappush(self.running, (self.clock + self.service[k % len(self.service)], k))

    def _step(self, limit):
        """Goes to the next event, or to the limit; False if it is there."""
        events = [self.running[0][0]] if self.running else []
        if self.queue and self._thaw() is not None:
            events.append(self._thaw())
        tick = min(events, default=math.inf)
        if tick > limit or tick == limit == math.inf:
            if limit == math.inf:
                raise RuntimeError("nothing is outstanding: this would wait for ever")
            self.clock = max(self.clock, limit)
            return False
        self.clock = tick
        while self.running and self.running[0][0] == tick:
            _, k = heapq.heappop(self.running)
            self.idle += 1
            self.answers.append((k, "error" if k in self.errors else "ok", tick))
        self._start()
        return True


def poisson(rate, ticks, seed=0):
    """Arrivals at random, `rate` per 1000 ticks, until `ticks`."""
    gaps = np.random.default_rng(seed).exponential(1000 / rate, int(2 * rate * ticks / 1000) + 100)
    return [int(tick) for tick in np.cumsum(gaps) if tick < ticks]


server = SimulatedServer(service=[5], workers=1, room=0, clock=100)
server.send(0)
server.send(1)
print(server.wait(), server.wait(103), server.now(), server.wait(), server.now())

# %% [markdown] tags=["hint"]
# **Hint 1.** An open loop is one loop with one decision: is the next request due? If so, send it and look again. If not, wait for an answer, *until* it
# is due. So a wait can never make you late, and no answer is lost. The loop ends when each request has its answer. Latency
# counts from the plan, so compute the due tick from the start and `schedule[k]`, never from the last send.

# %% [markdown] tags=["hint"]
# **Hint 2.** In the closed loop, the plan is a heap of ticks at which clients are due, with one zero for each client at first. The
# same decision: the smallest is not later than now, and requests are left? Take it out and send. Otherwise wait until then. Each answer
# puts its `done` plus the think time back. The clients need no names.

# %% [markdown] tags=["hint"]
# **Hint 3.** In ints, the rank is `-(-n * share // 1000)`, counted from 1, with no float on the way. The time that a record spends in the
# window is the overlap of two intervals, `min` of the ends minus `max` of the starts, at least 0. In `max_rate`, try both ends before you
# halve anything; then one variable always holds a rate that held, and the other one that failed.

# %% [markdown]
# ## Your answer
#
# An import or a helper function that you need belongs into a graded cell too.

# %%
# graded cell 1: keep this line
import heapq
import math


def open_loop(server, schedule):
    """Sends request k at tick schedule[k], answers or not: a list of records, see the contract."""
    # <answer>
    if any(later < earlier for earlier, later in zip([0, *schedule], schedule)):
        raise ValueError(f"the schedule goes back in time or starts below 0: {list(schedule)[:10]}")
    origin = server.now()
    records = [{"arrival": planned} for planned in schedule]
    following, missing = 0, len(records)
    while missing:
        planned = origin + schedule[following] if following < len(records) else None
        if planned is not None and server.now() >= planned:
            records[following]["sent"] = server.now() - origin
            server.send(following)
            following += 1
            continue
        answer = server.wait(planned)
        if answer is not None:
            k, status, done = answer
            records[k].update(done=done - origin, status=status)
            missing -= 1
    return records
    # </answer>
    # stub: raise NotImplementedError("open_loop is not written yet")


# %%
# graded cell 2: keep this line
def closed_loop(server, clients, requests, think_time):
    """Clients that wait for their answer, think, and send again: a list of records, see the contract."""
    # <answer>
    origin, due, records, answered = server.now(), [0] * clients, [], 0
    while answered < requests:
        idle = due and len(records) < requests
        if idle and origin + due[0] <= server.now():
            heapq.heappop(due)
            now = server.now() - origin
            records.append({"arrival": now, "sent": now})
            server.send(len(records) - 1)
            continue
        answer = server.wait(origin + due[0] if idle else None)
        if answer is not None:
            k, status, done = answer
            records[k].update(done=done - origin, status=status)
            answered += 1
            heapq.heappush(due, done - origin + think_time)
    return records
    # </answer>
    # stub: raise NotImplementedError("closed_loop is not written yet")


# %%
# graded cell 3: keep this line
def report(records, start, end, shares=(500, 990, 999)):
    """Counts, rates, percentiles and Little's law for the requests that arrive in [start, end): a dict, see the contract."""
    # <answer>
    if end <= start:
        raise ValueError(f"the window goes from {start} to {end}: it needs an end after its start")
    ticks = end - start
    window = [r for r in records if start <= r["arrival"] < end]
    counts = {name: sum(r["status"] == status for r in window)
              for name, status in (("ok", "ok"), ("errors", "error"), ("rejected", "rejected"))}
    waits = sorted(r["done"] - r["arrival"] if r["status"] == "ok" else math.inf for r in window)
    percentiles = {share: waits[-(-len(waits) * share // 1000) - 1] if waits else None for share in shares}
    answers = sum(r["status"] == "ok" and start <= r["done"] < end for r in records)
    inside = sum(max(0, min(r["done"], end) - max(r["arrival"], start)) for r in records) / ticks
    little = sum(r["done"] - r["arrival"] for r in window) / ticks
    return {"count": len(window), **counts, "offered": len(window) / ticks, "throughput": answers / ticks,
            "percentiles": percentiles, "inside": inside, "little": little,
            "steady": abs(inside - little) <= 0.1 * max(inside, little)}
    # </answer>
    # stub: raise NotImplementedError("report is not written yet")


# %%
# graded cell 4: keep this line
def max_rate(new_server, new_schedule, bound, low, high, tolerance, start, end, share=990):
    """The highest rate whose percentile keeps the bound: {"rate": …, "failed": …}, see the contract."""
    # <answer>
    def holds(rate):
        records = open_loop(new_server(), new_schedule(rate))
        reached = report(records, start, end, (share,))["percentiles"][share]
        return reached is not None and reached <= bound

    if not holds(low):
        return {"rate": None, "failed": low}
    if holds(high):
        return {"rate": high, "failed": None}
    good, bad = low, high
    while bad - good > tolerance:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return {"rate": good, "failed": bad}
    # </answer>
    # stub: raise NotImplementedError("max_rate is not written yet")


# %% [markdown]
# ## One freeze, two stories
#
# One worker needs 2 ticks a request and freezes once, for 2000 ticks. The plan is one request every 10 ticks. In the last two lines it is the
# *generator* that freezes, in front of a server with 200 workers: the same records, timed from `sent` and from the plan.

# %%
def line(name, r):
    shown = "  ".join(f"p{share / 10:g} {value}" for share, value in r["percentiles"].items())
    return f"{name:24} {r['count']:5} requests, {r['ok']:5} ok   {shown}   steady {r['steady']}"


END = 100_000
plan = list(range(0, END, 10))
freeze = {"service": [2], "freezes": [(50_000, 52_000)]}
late = open_loop(SimulatedServer(service=[2], workers=200, cost={5_000: 2_000}), plan)
print(line("closed loop", report(closed_loop(SimulatedServer(**freeze), clients=1, requests=9_800, think_time=8), 0, END)),
      line("open loop", report(open_loop(SimulatedServer(**freeze), plan), 0, END)),
      line("late, from the send", report([{**r, "arrival": r["sent"]} for r in late], 0, END)),
      line("late, from the plan", report(late, 0, END)), sep="\n")

# %% [markdown]
# ## A closed loop says what the server can do, not what it can promise
#
# Two workers, four clients that never think. The throughput is everything that the server has, and Little's law has to find the four
# clients again. Offer that rate in an open loop: the p99 is another one. Then a fifth more. Below: the highest rates that keep a bound.

# %%
service = [int(ticks) for ticks in np.random.default_rng(7).choice([8, 10, 12, 40], 1000, p=[0.3, 0.4, 0.2, 0.1])]
WARM, END = 20_000, 120_000
closed = report(closed_loop(SimulatedServer(service, workers=2), clients=4, requests=20_000, think_time=0), WARM, END)
full = round(1000 * closed["throughput"])
print(line("closed loop, 4 clients", closed),
      f"throughput {1000 * closed['throughput']:.1f} per 1000 ticks; clients found again by Little's law: {closed['little']:.3f}",
      *(line(f"open loop at {rate}", report(open_loop(SimulatedServer(service, workers=2), poisson(rate, END)), WARM, END))
        for rate in (full, round(1.2 * full))), sep="\n")

# %%
for bound in (100, 200, 400):
    found = max_rate(lambda: SimulatedServer(service, workers=2), lambda rate: poisson(rate, END), bound, 10, 2 * full, 2, WARM, END)
    print(f"p99 of at most {bound}: held at {found['rate']} per 1000 ticks, failed at {found['failed']}")

# %% [markdown]
# ## A server that gets better by refusing
#
# The same server at 1.2 times what it can do, with room for 4 waiting requests. Among the answers alone, the p99 looks fine.

# %%
busy = open_loop(SimulatedServer(service, workers=2, room=4), poisson(round(1.2 * full), END))
print(line("all requests", report(busy, WARM, END)),
      line("only those answered", report([r for r in busy if r["status"] == "ok"], WARM, END)),
      f"rejected: {report(busy, WARM, END)['rejected']}", sep="\n")

# %% [markdown]
# ## The real thing
#
# The same functions in front of an ONNX Runtime session on this machine's CPU, in a thread. One tick is a microsecond of the real clock. Request 100 sleeps
# on purpose, in the place of a freeze. What is printed are counts and comparisons: times would differ from machine to machine.

# %%
import queue
import time
from concurrent.futures import ThreadPoolExecutor

import onnxruntime as ort

from course import ROOT

with np.load(ROOT / "models/digits_mlp/heldout.npz") as data:
    pixels, labels = (data["images"].reshape(-1, 784) / 255).astype(np.float32), data["labels"]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(ROOT / "models/digits_mlp/digits_mlp.onnx", options, providers=["CPUExecutionProvider"])
SLEEP = 400_000


class RealServer:
    """now, send and wait in front of a session: `workers` threads behind a queue without limit; ticks are microseconds."""

    def __init__(self, workers):
        self.pool, self.answers, self.digits = ThreadPoolExecutor(workers), queue.SimpleQueue(), {}

    def now(self):
        return time.perf_counter_ns() // 1000

    def send(self, k):
        self.pool.submit(self._work, k)

    def wait(self, until=None):
        try:
            return self.answers.get(timeout=None if until is None else max(0, until - self.now()) / 1e6)
        except queue.Empty:
            return None

    def _work(self, k):
        try:
            if k == 100:
                time.sleep(SLEEP / 1e6)
            self.digits[k] = session.run(None, {"pixels": pixels[k:k + 1]})[0].argmax()
            status = "ok"
        except Exception:
            status = "error"
        self.answers.put((k, status, self.now()))


for name, run in (("closed loop", lambda server: closed_loop(server, 1, len(pixels), 2_000)),
                  ("open loop", lambda server: open_loop(server, [2_000 * k for k in range(len(pixels))]))):
    server = RealServer(workers=1)
    records = run(server)
    server.pool.shutdown()
    r = report(records, 0, max(record["arrival"] for record in records) + 1)
    right = sum(int(server.digits[k]) == label for k, label in enumerate(labels))
    print(f"{name}: {r['ok']} of {r['count']} answered, {right} digits right; maximum shows the sleep: {r['percentiles'][999] >= SLEEP}; "
          f"p99 over half of it: {r['percentiles'][990] > SLEEP / 2}")

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | :-- | :-- |
# | due tick = origin + plan | each request has its place in time | gaps counted from the last send add up every delay: the rate sinks unseen |
# | `arrival` from the plan | a late generator is charged to the request | the wait before sending vanishes: coordinated omission |
# | wait *until* the next is due | answers are taken in passing | waiting for an answer makes the open loop a closed one |
# | records by number | a request keeps its index | sorted by answer, a warm-up cut by place removes the wrong ones |
# | `done` from the answer | the server's time, not yours | a busy generator adds its own delay to the server |
# | window by `arrival` | the requests are chosen before anything happened to them | by `done`, the slow ones leave the window |
# | failed = infinite | refusing cannot improve a percentile | the server that rejects most has the best p99 |
# | nearest rank, in ints | always a sample; `0.55 * 100` is 55.00000000000001 | interpolation invents a latency between a hit and a timeout, and with infinity it can give NaN |
# | throughput by `done` | what came out in the window | counting arrivals, overload looks like capacity |
# | `inside` by overlap | a second way to the same number | from the same sum it would agree with itself always |
# | both ends first | `good` held and `bad` failed, both seen | halving ends beside an end that nobody tried |
# | `new_server()` each time | a trial starts empty | the backlog of a failed rate fails the next one |
#
# ## What it costs
#
# - One pass over the records and one sort. What is expensive is the trial: with a window of ten minutes, twelve trials are two hours. So the search
#   counts trials, and a tolerance below the noise between two runs of the same rate buys nothing.
# - A generator in one Python thread is busy while it sends. Look at `sent` − `arrival`: if that is not small against the latencies, the generator
#   is what you measure. Take several, or one in another language.
# - With no limit on what may be outstanding, an overloaded server fills memory. Real generators have a limit and count what passes it as failed.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **The p99 of the open loop at the closed loop's throughput depends on how long you measure. Why?** At full use, the queue has no typical length:
# it grows as long as the run lasts. Every percentile is then a statement about the length of the run.
#
# **`steady` is true. Is the window long enough for the p99?** That is another question. `steady` compares means. For the p99, count the samples above it, and
# repeat with other seeds: the spread is your answer. And at exactly the full rate `steady` is silent: in overload, `little` / `inside` tends to
# offered / served, so a limit of a tenth notices an overload of about a tenth and more.
#
# **Is "holds" monotone in the rate?** For this server, nearly: by chance, one rate may hold and a slightly lower one fail. A server that waits to fill a
# batch can be slow at a low rate and fast at a higher one, so `low` may fail while the middle holds. Plot a coarse grid before you trust halving.
#
# **Can the closed loop's numbers be corrected afterwards?** HdrHistogram can fill in the missing samples from an expected interval. It assumes that each long
# latency would have hit all requests planned during it. That is a model; sending them is a measurement.
#
# **Users do retry. What changes?** A rejected request comes back, so the arrivals depend on the answers: the loop is partly closed. Count attempts and users
# apart, and let a user's latency run from the first attempt.

# %% tags=["learner"]
from course.check import check

check("05_measuring/ex02_load")
