# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercise: a benchmark that is not fooled
#
# Level: mid · 45 minutes · needs no GPU
#
# A benchmark is easily fooled: no warm-up, a clock that stops before the device, the best of several, zeros as input, a wrong result that
# was fast. You write the harness that none of these fools. It measures whatever you hand it: here first a simulated device with a queue, as a
# GPU has, then real ONNX Runtime sessions on your CPU.
#
# Background: [a fair benchmark](../../book/05_measuring/questions/12_fair_benchmark.md),
# [percentiles and samples](../../book/05_measuring/questions/13_percentiles_and_samples.md),
# [how to evaluate](../../book/05_measuring/questions/07_how_to_evaluate.md) and
# [is A really faster than B](../../book/05_measuring/questions/23_is_a_faster_than_b.md).
#
# ## The contract
#
# All times have the unit of the clock that is handed over: seconds for `time.perf_counter`, ticks for the simulated machine.
#
# **`summary(rounds, percentiles=(50, 90, 99), beyond=5)`** takes a list of rounds, each a list of samples (floats above 0), in any order and of
# any lengths. It returns a dict:
#
# | key | value |
# | --- | --- |
# | `"n"` | int: samples in all rounds |
# | `"percentiles"` | dict, one entry for each `p` of `percentiles` (integers 1 to 99): the nearest rank over all samples, that is number ⌈p·n/100⌉ in ascending order, counted from 1. `None` where fewer than `beyond` samples come after that one |
# | `"max"` | float: the largest sample |
# | `"spread"` | float: take the p50 of each round (nearest rank); largest minus smallest of them, divided by their p50 (nearest rank) |
#
# `ValueError` if there is no round, or a round without samples.
#
# **`benchmark(systems, clock, make_input, reference, tolerance, warm_up_time, mhz=None, rounds=6, calls=100, warm_up_calls=20,
# percentiles=(50, 90, 99), beyond=5, max_spread=0.1, max_clock_change=0.1)`** is handed
#
# - `systems`: dict from name to system. `system.enqueue(x)` may return before the work is done; it returns an output array of its
#   own, which is filled in later. `system.synchronize()` returns when all that was enqueued is done. Before that, outputs hold nothing of use.
# - `clock()`: the time on the host, a float. No other clock counts.
# - `make_input(k)`: input number k, an array of shape `(batch, …)`; takes time on the host.
# - `reference(x)`: the right output, an array; takes time on the host.
# - `mhz()`: the device's clock in MHz; takes time on the host. `None` where nobody can ask.
#
# What has to happen, in this order:
#
# 1. Make inputs 0 to `calls − 1`, once, for all systems.
# 2. Warm up every system, each call on its own: enqueue, synchronize. After the very first call at least `warm_up_calls` more, and go on
#    until at least `warm_up_time` has passed since that first call ended. Call j of the warm-up gets input j modulo `calls`.
# 3. `rounds` rounds. In each, every system has a *turn*: in the order of the dict in rounds 0, 2, 4, …, in reverse order in rounds 1, 3, 5, …
#    A turn is `calls` *single calls* (enqueue, synchronize: each one sample), then one *block* (enqueue `calls` calls, then synchronize
#    once). Single calls and block get inputs 0 to `calls − 1`, in this order.
# 4. Read `mhz` directly before and directly after each turn, and not within it. Nothing else is enqueued, and only enqueue and synchronize are timed.
#
# It returns a dict from each name, in the order of `systems`, to a dict:
#
# | key | value |
# | --- | --- |
# | `"rounds"` | list of lists of float: the time of each single call, from before enqueue until after synchronize, in the order taken, none dropped |
# | `"n"`, `"percentiles"`, `"max"`, `"spread"` | `summary` of these |
# | `"throughput"` | float: items (rows of the inputs) of all blocks, divided by the time of all blocks, each from before its first enqueue until after its synchronize |
# | `"warm_up"` | dict: `"first"` time of the very first call, the cold start; `"calls"` int, all calls of the warm-up with the first; `"time"` from before the first to after the last |
# | `"error"` | float: largest \|output − reference\| over all timed calls, blocks too; infinity if an output holds NaN or infinity, or has another shape than the reference |
# | `"mhz"` | (lowest, highest) of the readings around this system's turns, or `None` |
# | `"valid"` | bool: there are no reasons |
# | `"reasons"` | list of str, each at most once, in any order, from the four below |
#
# | reason | when |
# | --- | --- |
# | `"wrong_result"` | `error` is more than `tolerance` |
# | `"too_few"` | one of `percentiles` is `None` |
# | `"rounds_apart"` | `spread` is more than `max_spread` |
# | `"clock_moved"` | (highest − lowest) / highest of `mhz` is more than `max_clock_change` |
#
# `ValueError` if there is no system, fewer than 2 rounds, or fewer than 1 call. Counted: the calls above, no more and no fewer; a longer
# warm-up is allowed. Times are compared within a millionth.

# %% [markdown]
# ## The system under test: a simulated machine
#
# It counts in ticks, and nothing that it prints was measured. It exaggerates on purpose what real systems do: its first call compiles, the
# next ones are slow, its clock rises with work, it has a queue, it takes less time for zeros, some calls take long. The grader uses another one.

# %%
import numpy as np


class Machine:
    """A host and one device, in ticks. neighbour: from this call on, another process takes a third of the device."""

    def __init__(self, neighbour=10**9):
        self.now, self.free_at, self.busy, self.calls, self.neighbour = 1000.0, 0.0, 0.0, 0, neighbour

    def clock(self):
        return self.now

    def frequency(self):
        return 600 + 1200 * min(1.0, self.busy / 2500)

    def mhz(self):
        self.now += 15
        return self.frequency()

    def make_input(self, k):
        self.now += 25
        return np.random.default_rng(k).random((8, 16), np.float32) + np.float32(0.5)

    def reference(self, x):
        self.now += 40
        return np.asarray(x, np.float64).sum(axis=1)


class Simulated:
    """A system on a machine. scale: what it multiplies its results with, 1 if they are right."""

    def __init__(self, machine, ticks=9.0, scale=1.0):
        self.machine, self.ticks, self.scale, self.seen, self.queue = machine, ticks, scale, {}, []
        self.rng = np.random.default_rng(0)

    def enqueue(self, x):
        m = self.machine
        m.now += 1 if x.shape in self.seen else 3000               # a shape that is new is compiled on the host
        self.seen[x.shape] = self.seen.get(x.shape, 0) + 1
        slow = 3 if self.seen[x.shape] <= 8 else 1                 # then variants are tried
        slow *= 1800 / m.frequency() * (1.5 if m.calls >= m.neighbour else 1)
        slow *= (0.6 if not x.any() else 1) * (5 if self.rng.random() < 0.02 else 1)
        work = self.ticks * slow * len(x) / 8 * (1 + 0.04 * self.rng.standard_normal())
        m.free_at, m.busy, m.calls = max(m.now, m.free_at) + work, m.busy + work, m.calls + 1
        output = np.full(len(x), np.nan)
        self.queue.append((output, np.asarray(x, np.float64).sum(axis=1) * self.scale))
        return output

    def synchronize(self):
        self.machine.now = max(self.machine.now, self.machine.free_at)
        for output, result in self.queue:
            output[:] = result
        self.queue = []


# %% [markdown]
# Seven stopwatches on the same system. Each has an answer, and no two agree.

# %%
def stopwatch(warm=0, wait=True, zeros=False, best_of=1, rows=8):
    """Ticks of one call, as seven people take them."""
    machine = Machine()
    engine, found = Simulated(machine), []
    data = np.zeros((8, 16), np.float32) if zeros else machine.make_input(0)
    for attempt in range(warm + best_of):
        before = machine.clock()
        engine.enqueue(data if attempt >= warm else data[:rows])
        if wait or attempt < warm:
            engine.synchronize()
        found.append(machine.clock() - before)
    return min(found[warm:])


for what, options in (("no warm-up", {}), ("three calls of warm-up", {"warm": 3}), ("300 calls of warm-up, another shape", {"warm": 300, "rows": 1}),
                      ("300 calls of warm-up", {"warm": 300}), ("the same, no synchronization", {"warm": 300, "wait": False}),
                      ("the same, best of 100", {"warm": 300, "best_of": 100}), ("the same, zeros as input", {"warm": 300, "zeros": True})):
    print(f"{what:36} {stopwatch(**options):7.1f} ticks (simulated)")

# %% [markdown] tags=["hint"]
# **Hint 1.** One helper does all the timing: it takes a system and a list of inputs, looks at the clock, enqueues them all, synchronizes once,
# looks at the clock again, and returns the time and the outputs. A single call is a list of one input, a block is a list of all of them.
# The warm-up uses the same helper, and throws the outputs away.

# %% [markdown] tags=["hint"]
# **Hint 2.** Keep what you find and judge it at the end. In the rounds only append: samples, times of blocks, outputs with the number of their
# input, clock readings. The reference is computed once for each input, after the last round. For the rank use integers, `-(-p * n // 100)`: in
# floats 0.07 · 100 is more than 7. And `max(0.1, float("nan"))` is 0.1.

# %% [markdown] tags=["hint"]
# **Hint 3.** The warm-up's loop: note the time when the first call has ended; then repeat while fewer than `warm_up_calls + 1` calls were made, *or*
# less than `warm_up_time` has passed since that note. All systems are warmed up in a loop of its own before the loop over rounds.
# In a round, `names if r % 2 == 0 else names[::-1]` is the order.

# %% [markdown]
# ## Your answer
#
# An import or a helper function that you need belongs into a graded cell too.

# %%
# graded cell 1: keep this line
import numpy as np


def summary(rounds, percentiles=(50, 90, 99), beyond=5):
    """n, percentiles, max and spread of rounds of samples: a dict, see the contract."""
    # <answer>
    if not rounds or any(len(r) == 0 for r in rounds):
        raise ValueError("there is no round, or a round without samples: expected at least one sample in each")

    def nearest_rank(values, p):
        place = -(-p * len(values) // 100)                     # ceiling, in integers
        return sorted(values)[place - 1], len(values) - place

    samples, medians = [s for r in rounds for s in r], [nearest_rank(r, 50)[0] for r in rounds]
    ranks = {p: nearest_rank(samples, p) for p in percentiles}
    return {"n": len(samples), "percentiles": {p: value if above >= beyond else None for p, (value, above) in ranks.items()},
            "max": max(samples), "spread": (max(medians) - min(medians)) / nearest_rank(medians, 50)[0]}
    # </answer>
    # stub: raise NotImplementedError("summary is not written yet")


# %%
# graded cell 2: keep this line
def benchmark(systems, clock, make_input, reference, tolerance, warm_up_time, mhz=None, rounds=6, calls=100, warm_up_calls=20,
              percentiles=(50, 90, 99), beyond=5, max_spread=0.1, max_clock_change=0.1):
    """Times systems side by side and says whether the numbers count: a dict of dicts, see the contract."""
    # <answer>
    if not systems or rounds < 2 or calls < 1:
        raise ValueError(f"{len(systems)} systems, {rounds} rounds, {calls} calls: expected at least 1, 2 and 1")
    inputs = [make_input(k) for k in range(calls)]

    def timed(system, batches):
        start = clock()
        outputs = [system.enqueue(x) for x in batches]
        system.synchronize()
        return clock() - start, outputs

    warm_up = {}
    for name, system in systems.items():
        begun = clock()
        first, _ = timed(system, inputs[:1])
        cold_over, done = clock(), 1
        while done <= warm_up_calls or clock() - cold_over < warm_up_time:
            timed(system, [inputs[done % calls]])
            done += 1
        warm_up[name] = {"first": first, "calls": done, "time": clock() - begun}

    samples, blocks, outputs, readings = ({name: [] for name in systems} for _ in range(4))
    names = list(systems)
    for r in range(rounds):
        for name in names if r % 2 == 0 else names[::-1]:
            if mhz is not None:
                readings[name].append(mhz())
            singles = [timed(systems[name], [x]) for x in inputs]
            block_time, block_outputs = timed(systems[name], inputs)
            if mhz is not None:
                readings[name].append(mhz())
            samples[name].append([time for time, _ in singles])
            blocks[name].append(block_time)
            outputs[name] += [one for _, (one,) in singles] + block_outputs

    expected = [np.asarray(reference(x), np.float64) for x in inputs]
    report = {}
    for name in names:
        error = 0.0
        for i, output in enumerate(outputs[name]):
            right, output = expected[i % calls], np.asarray(output, np.float64)
            usable = output.shape == right.shape and np.isfinite(output).all()
            error = max(error, float(np.abs(output - right).max()) if usable else float("inf"))
        found = summary(samples[name], percentiles, beyond)
        clocks = (min(readings[name]), max(readings[name])) if readings[name] else None
        checks = {"wrong_result": error > tolerance, "too_few": None in found["percentiles"].values(),
                  "rounds_apart": found["spread"] > max_spread,
                  "clock_moved": clocks is not None and (clocks[1] - clocks[0]) / clocks[1] > max_clock_change}
        reasons = [reason for reason, holds in checks.items() if holds]
        report[name] = {"rounds": samples[name], **found, "throughput": rounds * sum(len(x) for x in inputs) / sum(blocks[name]),
                        "warm_up": warm_up[name], "error": error, "mhz": clocks, "valid": not reasons, "reasons": reasons}
    return report
    # </answer>
    # stub: raise NotImplementedError("benchmark is not written yet")


# %% [markdown]
# ## Try it on the simulated machine
#
# Two engines do the same work. The second one is faster, and wrong by two parts in a hundred. Then a neighbour comes in the middle of the run.

# %%
def show(title, report):
    print(title)
    for name, r in report.items():
        p = ", ".join(f"p{p} {'not told' if v is None else f'{v:.1f}'}" for p, v in r["percentiles"].items())
        print(f"  {name:7} {p}, max {r['max']:.1f}, n {r['n']}; items a tick {r['throughput']:.3f}; first {r['warm_up']['first']:.0f}, "
              f"clock {r['mhz'][0]:.0f} to {r['mhz'][1]:.0f}; valid: {r['valid']} {r['reasons']}")


for title, machine, options in (("right and wrong, ticks (simulated)", Machine(), {}),
                                ("a neighbour comes", Machine(neighbour=2400), {}),
                                ("too short for its p99", Machine(), {"rounds": 2, "calls": 30})):
    engines = {"exact": Simulated(machine), "hasty": Simulated(machine, ticks=7.0, scale=1.02)}
    show(title, benchmark(engines, machine.clock, machine.make_input, machine.reference, tolerance=1e-3, warm_up_time=4000,
                          mhz=machine.mhz, **options))

# %% [markdown]
# ## Try it on something real
#
# The digits model in ONNX Runtime, on your CPU, through three adapters. `ort.InferenceSession.run` returns when the result is there, so
# `synchronize` has nothing to do. `ort.InferenceSession.run_async` returns at once, as a CUDA launch does; its adapter has to wait. The third model has
# one bias nudged. Your function is the same for all. No time is printed: yours are yours, and a page that shows one has to say of which machine.

# %%
import threading
import time

import onnx
import onnxruntime as ort
from onnx import numpy_helper

from course import ROOT

model = onnx.load(ROOT / "models/digits_mlp/digits_mlp.onnx")
weights = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}
with np.load(ROOT / "models/digits_mlp/heldout.npz") as data:
    digits = (data["images"].reshape(-1, 784) / 255).astype(np.float32)


class Blocking:
    """run: the call itself waits."""

    def __init__(self, file):
        self.session = ort.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])

    def enqueue(self, x):
        return self.session.run(None, {"pixels": x})[0]

    def synchronize(self):
        pass


class Asynchronous:
    """run_async: a thread of the session's pool does the work and calls back; needs two threads."""

    def __init__(self, file):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.pending = []

    def enqueue(self, x):
        output, finished = np.full((len(x), 10), np.nan, np.float32), threading.Event()

        def deliver(results, _, problem):
            if not problem:
                output[:] = results[0]
            finished.set()

        self.session.run_async(None, {"pixels": x}, deliver, None)
        self.pending.append(finished)
        return output

    def synchronize(self):
        while self.pending:
            self.pending.pop().wait()


def forward(x):
    """The network in float64 NumPy, from the file's own weights: the reference."""
    hidden = np.maximum(x.astype(np.float64) @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
    logits = hidden @ weights["logits.weight"].T + weights["logits.bias"]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


nudged = onnx.ModelProto()
nudged.CopyFrom(model)
for tensor in nudged.graph.initializer:
    if tensor.name == "logits.bias":
        tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) + 0.3 * np.eye(10)[8]).astype(np.float32), tensor.name))

found = benchmark({"run": Blocking(model), "run_async": Asynchronous(model), "nudged": Blocking(nudged)}, time.perf_counter,
                  lambda k: digits[3 * k:][:32], forward, tolerance=1e-4, warm_up_time=0.2)
for name, r in found.items():
    p50, p90, p99 = r["percentiles"].values()
    print(f"{name:9} n {r['n']}; 0 < p50 <= p90 <= p99 <= max: {0 < p50 <= p90 <= p99 <= r['max']}; warm-up of at least 21 calls: "
          f"{r['warm_up']['calls'] >= 21}; clock: {r['mhz']}; wrong result: {'wrong_result' in r['reasons']}")

# %% [markdown]
# Now look at yours: `found["run"]["percentiles"]`, `found["run"]["reasons"]`. On a busy laptop `"rounds_apart"` is common, and right.

# %% [markdown] tags=["answer"]
# ## Why each step is there
#
# | step | what it does | what happens without it |
# | --- | :-- | :-- |
# | inputs before all | the host's work is no part of a call | the generator is timed, or the device idles and its clock falls |
# | inputs of the real kind, many of them | bits switch, caches miss, data-dependent work occurs | zeros draw less power, so the clock stays higher: [measured](../../book/05_measuring/questions/12_fair_benchmark.md); one input stays in a cache |
# | first call apart | compile, load and tuning are the cold start | it ends up in the maximum, or is dropped in silence |
# | warm-up by calls *and* by time since the first call | calls for tuning, time for clocks | with short calls, twenty are over before the clock has risen; the compile's time warms nothing |
# | the same shape in the warm-up | what was compiled is what is timed | the first sample compiles again |
# | synchronize in each sample | the result is there | the time to queue work, whatever the model |
# | samples and a block, both | one caller's wait, and a full queue | an average of a block is sold as a latency, or 1 / latency as a throughput |
# | all samples kept, merged, nearest rank | the tail is a thing that happened | a mean of percentiles is the percentile of nothing |
# | `None` with few beyond | a p99 of 100 samples is one event | the maximum under another name |
# | turns in A B, B A order | a linear drift adds the same to both | the second system pays for the heat of the first |
# | `spread` by the rounds' p50 | the rounds agree, or the machine changed | one bad minute disappears in the pool |
# | the device's clock around each turn | throttling has a witness | a fall that recovers is charged to the system |
# | every output compared, also of blocks | a race shows only where calls overlap | a wrong answer wins by speed |
# | infinity for NaN and for shapes | `nan > tolerance` is false, `(1, 10)` broadcasts | what cannot be compared passes |
#
# ## What it costs
#
# - 2 · `rounds` · `calls` calls a system beyond the warm-up: here 1,200. For a p99 with 5 samples beyond it, 500 single calls are the least.
# - All outputs are kept until the end, so memory grows with the calls. For large outputs compare after each turn; the idle gap then lets the
#   clock fall, so warm up again for a few calls.
# - The comparison needs a reference that is slow and right. It runs once for each input, outside the clock.
# - A synchronized single call leaves the device idle while the host prepares the next one. That is what one lonely caller sees. Under load the
#   block's figure, or an open loop, is the right one.

# %% [markdown] tags=["answer"]
# ## Follow-ups
#
# **This harness stops the host's clock after a synchronization. When are CUDA events better?** When the question is what the device does: two events in the
# stream take the GPU's time, without launch and wake-up of the host. For what a caller waits, the host's clock after synchronization is right. Report
# which one it is.
#
# **A turn starts after another system's turn. What is not warm any more?** Caches of the device and of the host hold the other system's data, and
# memory pools may have been trimmed. Add a few calls that are not timed to each turn, and say how many. Both systems pay alike here, so
# the comparison holds for that schedule; the absolute figure is that of a shared device.
#
# **All four checks pass, and the number still does not predict production. Why?** It is a closed loop with one client: the next call waits for the last.
# Users do not. Queueing, other batch sizes, copies and serialization are missing. The verdict says that the number is a number, not that it answers the
# question.
#
# **Is "INVALID" not a way to throw away results one does not like?** It would be if the limits were chosen afterwards. They are arguments, fixed before
# the run, and the report with its raw samples is kept whichever way it goes.
#
# **How many rounds and calls for a difference of 3 %?** This report cannot say: `spread` is a range, and it grows with the rounds. Take the ratio of the two systems in
# each round and bootstrap the rounds; see the last question that is linked above.

# %% tags=["learner"]
from course.check import check

check("05_measuring/ex01_fair_benchmark")
