"""Each generator is a list of things to do at their ticks, kept in one heap; one loop serves both."""
import heapq
import math
from collections import Counter


def play(server, actors):
    """actors: a heap of (tick, number, planned). Yields (arrival, sent, done, status) with the number it was sent under."""
    origin, sent, out = server.now(), {}, {}

    def run(planned_of, after, total):
        while len(out) < total:
            if actors and len(sent) < total:
                tick = actors[0]
                if origin + tick <= server.now():
                    heapq.heappop(actors)
                    k = len(sent)
                    sent[k] = server.now() - origin
                    server.send(k)
                    continue
                answer = server.wait(origin + tick)
            else:
                answer = server.wait()
            if answer:
                k, status, done = answer
                out[k] = (planned_of(k), sent[k], done - origin, status)
                after(done - origin)
        return [dict(zip(("arrival", "sent", "done", "status"), out[k])) for k in range(total)]
    return run, sent


def open_loop(server, schedule):
    last = 0
    for tick in schedule:
        if tick < last:
            raise ValueError(f"{tick} comes after {last}")
        last = tick
    run, _ = play(server, list(schedule))
    return run(lambda k: schedule[k], lambda done: None, len(schedule))


def closed_loop(server, clients, requests, think_time):
    due = [0 for _ in range(clients)]
    run, sent = play(server, due)
    return run(lambda k: sent[k], lambda done: heapq.heappush(due, done + think_time), requests)


def report(records, start, end, shares=(500, 990, 999)):
    if not start < end:
        raise ValueError("empty window")
    n, by_wait, status, little, inside, out = 0, Counter(), Counter(), 0, 0, 0
    for r in records:
        arrival, done = r["arrival"], r["done"]
        if arrival < end and done > start:
            inside += min(done, end) - max(arrival, start)
        out += r["status"] == "ok" and start <= done < end
        if start <= arrival < end:
            n += 1
            status[r["status"]] += 1
            little += done - arrival
            by_wait[done - arrival if r["status"] == "ok" else math.inf] += 1
    percentiles = {}
    for share in shares:
        seen, percentiles[share] = 0, None
        for wait in sorted(by_wait):
            seen += by_wait[wait]
            if 1000 * seen >= share * n:
                percentiles[share] = wait
                break
    t = end - start
    return dict(count=n, ok=status["ok"], errors=status["error"], rejected=status["rejected"], offered=n / t, throughput=out / t,
                percentiles=percentiles, inside=inside / t, little=little / t,
                steady=10 * abs(inside - little) <= max(inside, little))


def max_rate(new_server, new_schedule, bound, low, high, tolerance, start, end, share=990):
    known = {}

    def holds(rate):
        if rate not in known:
            p = report(open_loop(new_server(), new_schedule(rate)), start, end, [share])["percentiles"][share]
            known[rate] = p is not None and p <= bound
        return known[rate]

    if holds(high):                                    # from above
        return {"rate": high, "failed": None}
    if not holds(low):
        return {"rate": None, "failed": low}

    def search(a, b):
        if b - a <= tolerance:
            return {"rate": a, "failed": b}
        m = a + -(-(b - a) // 2)
        return search(m, b) if holds(m) else search(a, m)
    return search(low, high)
