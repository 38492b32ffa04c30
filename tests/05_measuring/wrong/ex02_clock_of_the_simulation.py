"""Reads the time from inside of the notebook's simulation.
fails: test_open_even
says: Your code raised AttributeError
"""
import heapq
import math


def open_loop(server, schedule):
    """Sends request k at tick schedule[k], answers or not: a list of records, see the contract."""
    if any(later < earlier for earlier, later in zip([0, *schedule], schedule)):
        raise ValueError(f"the schedule goes back in time or starts below 0: {list(schedule)[:10]}")
    origin = server.clock
    records = [{"arrival": planned} for planned in schedule]
    following, missing = 0, len(records)
    while missing:
        planned = origin + schedule[following] if following < len(records) else None
        if planned is not None and server.clock >= planned:
            records[following]["sent"] = server.clock - origin
            server.send(following)
            following += 1
            continue
        answer = server.wait(planned)
        if answer is not None:
            k, status, done = answer
            records[k].update(done=done - origin, status=status)
            missing -= 1
    return records

def closed_loop(server, clients, requests, think_time):
    """Clients that wait for their answer, think, and send again: a list of records, see the contract."""
    origin, due, records, answered = server.clock, [0] * clients, [], 0
    while answered < requests:
        idle = due and len(records) < requests
        if idle and origin + due[0] <= server.clock:
            heapq.heappop(due)
            now = server.clock - origin
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

def report(records, start, end, shares=(500, 990, 999)):
    """Counts, rates, percentiles and Little's law for the requests that arrive in [start, end): a dict, see the contract."""
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

def max_rate(new_server, new_schedule, bound, low, high, tolerance, start, end, share=990):
    """The highest rate whose percentile keeps the bound: {"rate": …, "failed": …}, see the contract."""
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
