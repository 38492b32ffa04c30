"""NumPy for the statistics, one record for each turn, errors computed on stacked outputs."""
import math
from collections import defaultdict

import numpy as np


def summary(rounds, percentiles=(50, 90, 99), beyond=5):
    if len(rounds) == 0 or min(map(len, rounds)) == 0:
        raise ValueError(f"rounds of {[len(r) for r in rounds]} samples: expected at least one round, and a sample in each")
    everything = np.sort(np.concatenate([np.asarray(r, float) for r in rounds]))
    n, told = everything.size, {}
    for p in percentiles:
        place = math.ceil(p * n / 100 - 1e-9)
        told[p] = float(everything[place - 1]) if n - place >= beyond else None
    middle = np.sort([np.percentile(r, 50, method="inverted_cdf") for r in rounds])
    return dict(n=n, percentiles=told, max=float(everything[-1]),
                spread=float(np.ptp(middle) / np.percentile(middle, 50, method="inverted_cdf")))


def benchmark(systems, clock, make_input, reference, tolerance, warm_up_time, mhz=None, rounds=6, calls=100, warm_up_calls=20,
              percentiles=(50, 90, 99), beyond=5, max_spread=0.1, max_clock_change=0.1):
    if len(systems) == 0:
        raise ValueError("no system to measure")
    if rounds < 2:
        raise ValueError(f"rounds={rounds}: a spread needs two")
    if calls < 1:
        raise ValueError(f"calls={calls}: at least one")
    data = list(map(make_input, range(calls)))
    marks = {}
    for name in systems:                                     # a cold start, then a loop that looks at both limits
        marks[name] = [clock()]
        for j in range(10**9):
            systems[name].enqueue(data[j % calls])
            systems[name].synchronize()
            marks[name].append(clock())
            if j >= warm_up_calls and marks[name][-1] - marks[name][1] >= warm_up_time:
                break

    turns = defaultdict(list)
    for r in range(rounds):
        for name in sorted(systems, key=list(systems).index, reverse=bool(r % 2)):
            s, turn = systems[name], {"outputs": []}
            turn["mhz"] = [mhz()] if mhz else []
            times = np.empty((calls, 2))
            for j in range(calls):
                times[j, 0] = clock()
                turn["outputs"].append(s.enqueue(data[j]))
                s.synchronize()
                times[j, 1] = clock()
            begun = clock()
            turn["outputs"].extend([s.enqueue(x) for x in data])
            s.synchronize()
            turn["block"] = clock() - begun
            turn["mhz"] += [mhz()] if mhz else []
            turn["single"] = np.diff(times, axis=1)[:, 0].tolist()
            turns[name].append(turn)

    right, out = [np.asarray(reference(x)) for x in data], {}
    for name in systems:
        stats = summary([t["single"] for t in turns[name]], percentiles, beyond)
        pairs = [(np.asarray(y), right[j % calls]) for t in turns[name] for j, y in enumerate(t["outputs"])]
        if all(y.shape == z.shape for y, z in pairs):
            gap = np.abs(np.stack([y for y, _ in pairs]).astype(float) - np.stack([z for _, z in pairs]))
            error = float(gap.max()) if np.isfinite(gap).all() else math.inf
        else:
            error = math.inf
        seen = np.array([t["mhz"] for t in turns[name]])
        reasons = []
        if not error <= tolerance:
            reasons.append("wrong_result")
        if any(v is None for v in stats["percentiles"].values()):
            reasons.append("too_few")
        if stats["spread"] > max_spread:
            reasons.append("rounds_apart")
        if seen.size and np.ptp(seen) > max_clock_change * seen.max():
            reasons.append("clock_moved")
        first = marks[name][1] - marks[name][0]
        out[name] = {**stats, "rounds": [t["single"] for t in turns[name]], "error": error, "valid": len(reasons) == 0, "reasons": reasons,
                     "throughput": rounds * sum(map(len, data)) / sum(t["block"] for t in turns[name]),
                     "warm_up": {"first": first, "calls": len(marks[name]) - 1, "time": marks[name][-1] - marks[name][0]},
                     "mhz": (float(seen.min()), float(seen.max())) if seen.size else None}
    return out
