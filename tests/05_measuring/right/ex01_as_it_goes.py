"""Compares after each turn in place of at the end, computes references before anything runs, and warms up longer than asked."""
import statistics

import numpy as np


def ranked(values, p):
    values = sorted(values)
    place = (p * len(values) + 99) // 100
    return values[place - 1], len(values) - place


def summary(rounds, percentiles=(50, 90, 99), beyond=5):
    if not len(rounds):
        raise ValueError("no rounds")
    for number, r in enumerate(rounds):
        if not len(r):
            raise ValueError(f"round {number} has no samples")
    pool = []
    for r in rounds:
        pool.extend(r)
    result = {"n": len(pool), "percentiles": {}, "max": max(pool)}
    for p in percentiles:
        value, above = ranked(pool, p)
        result["percentiles"][p] = None if above < beyond else value
    halves = [statistics.median_low(r) for r in rounds]
    result["spread"] = (max(halves) - min(halves)) / statistics.median_low(halves)
    return result


class Runner:
    """What is found of one system, turn by turn."""

    def __init__(self, system, clock, inputs, truths, mhz):
        self.system, self.clock, self.inputs, self.truths, self.mhz = system, clock, inputs, truths, mhz
        self.rounds, self.blocks, self.seen, self.error = [], [], [], 0.0

    def one(self, k):
        before = self.clock()
        output = self.system.enqueue(self.inputs[k % len(self.inputs)])
        self.system.synchronize()
        return self.clock() - before, output

    def warm(self, calls, time):
        start = self.clock()
        first, _ = self.one(0)
        end, count = self.clock(), 1
        while count < calls + 5 or self.clock() < end + 1.1 * time:
            self.one(count)
            count += 1
        self.warm_up = {"first": first, "calls": count, "time": self.clock() - start}

    def read(self):
        if self.mhz is not None:
            self.seen.append(float(self.mhz()))

    def turn(self):
        self.read()
        taken, outputs = [], []
        for k in range(len(self.inputs)):
            time, output = self.one(k)
            taken.append(time)
            outputs.append((k, output))
        start = self.clock()
        for k, x in enumerate(self.inputs):
            outputs.append((k, self.system.enqueue(x)))
        self.system.synchronize()
        self.blocks.append(self.clock() - start)
        self.read()
        self.rounds.append(taken)
        for k, output in outputs:
            self.compare(np.asarray(output), self.truths[k])

    def compare(self, output, truth):
        if output.shape != truth.shape or not np.all(np.isfinite(output)):
            self.error = float("inf")
        elif self.error != float("inf"):
            self.error = max(self.error, float(np.max(np.abs(output.astype(np.float64) - truth))))


def benchmark(systems, clock, make_input, reference, tolerance, warm_up_time, mhz=None, rounds=6, calls=100, warm_up_calls=20,
              percentiles=(50, 90, 99), beyond=5, max_spread=0.1, max_clock_change=0.1):
    if not systems or rounds < 2 or calls < 1:
        raise ValueError("at least one system, two rounds and one call are needed")
    inputs = [make_input(k) for k in range(calls)]
    truths = [np.asarray(reference(x), np.float64) for x in inputs]
    runners = {name: Runner(system, clock, inputs, truths, mhz) for name, system in systems.items()}
    for runner in runners.values():
        runner.warm(warm_up_calls, warm_up_time)
    order = list(runners.values())
    for _ in range(rounds):
        for runner in order:
            runner.turn()
        order.reverse()

    report, items = {}, sum(x.shape[0] for x in inputs)
    for name, runner in runners.items():
        entry = summary(runner.rounds, percentiles, beyond)
        entry.update(rounds=runner.rounds, throughput=rounds * items / sum(runner.blocks), warm_up=runner.warm_up, error=runner.error,
                     mhz=(min(runner.seen), max(runner.seen)) if runner.seen else None)
        reasons = ["wrong_result"] * (runner.error > tolerance) + ["too_few"] * (None in entry["percentiles"].values())
        reasons += ["rounds_apart"] * (entry["spread"] > max_spread)
        if entry["mhz"] and 1 - entry["mhz"][0] / entry["mhz"][1] > max_clock_change:
            reasons.append("clock_moved")
        report[name] = entry | {"reasons": reasons, "valid": reasons == []}
    return report
