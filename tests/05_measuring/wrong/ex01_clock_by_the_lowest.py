"""Divides the change of the clock by the lowest reading.
fails: test_device_clock
says: (highest − lowest) / highest
"""
import numpy as np


def summary(rounds, percentiles=(50, 90, 99), beyond=5):
    """n, percentiles, max and spread of rounds of samples: a dict, see the contract."""
    if not rounds or any(len(r) == 0 for r in rounds):
        raise ValueError("there is no round, or a round without samples: expected at least one sample in each")

    def nearest_rank(values, p):
        place = -(-p * len(values) // 100)                     # ceiling, in integers
        return sorted(values)[place - 1], len(values) - place

    samples, medians = [s for r in rounds for s in r], [nearest_rank(r, 50)[0] for r in rounds]
    ranks = {p: nearest_rank(samples, p) for p in percentiles}
    return {"n": len(samples), "percentiles": {p: value if above >= beyond else None for p, (value, above) in ranks.items()},
            "max": max(samples), "spread": (max(medians) - min(medians)) / nearest_rank(medians, 50)[0]}

def benchmark(systems, clock, make_input, reference, tolerance, warm_up_time, mhz=None, rounds=6, calls=100, warm_up_calls=20,
              percentiles=(50, 90, 99), beyond=5, max_spread=0.1, max_clock_change=0.1):
    """Times systems side by side and says whether the numbers count: a dict of dicts, see the contract."""
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
                  "clock_moved": clocks is not None and (clocks[1] - clocks[0]) / clocks[0] > max_clock_change}
        reasons = [reason for reason, holds in checks.items() if holds]
        report[name] = {"rounds": samples[name], **found, "throughput": rounds * sum(len(x) for x in inputs) / sum(blocks[name]),
                        "warm_up": warm_up[name], "error": error, "mhz": clocks, "valid": not reasons, "reasons": reasons}
    return report
