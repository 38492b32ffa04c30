"""Loops that take all answers before they send, and a report in NumPy."""
import numpy as np


def drain(server, until, origin, done, status):
    """Takes answers until tick `until` has come; the ticks and statuses by number."""
    finished = []
    while (answer := server.wait(until)) is not None:
        k, status[k], tick = answer
        done[k] = tick - origin
        finished.append(k)
        if until is None:
            break
    return finished


def as_records(arrival, sent, done, status):
    return [{"arrival": int(arrival[k]), "sent": int(sent[k]), "done": int(done[k]), "status": status[k]} for k in range(len(sent))]


def open_loop(server, schedule):
    if len(schedule) and (schedule[0] < 0 or (np.diff(schedule) < 0).any()):
        raise ValueError("not a schedule")
    origin, sent, done, status = server.now(), [], {}, {}
    for k, planned in enumerate(schedule):
        while server.now() < origin + planned:
            drain(server, origin + planned, origin, done, status)
        sent.append(server.now() - origin)
        server.send(k)
    while len(done) < len(schedule):
        drain(server, None, origin, done, status)
    return as_records(schedule, sent, done, status)


def closed_loop(server, clients, requests, think_time):
    origin, due, sent, done, status = server.now(), [0] * clients, [], {}, {}
    while len(done) < requests:
        due.sort()
        more = due and len(sent) < requests
        if more and server.now() - origin >= due[0]:
            del due[0]
            sent.append(server.now() - origin)
            server.send(len(sent) - 1)
        else:
            answer = server.wait(origin + due[0] if more else None)
            if answer is not None:
                k, status[k], tick = answer
                done[k] = tick - origin
                due.append(done[k] + think_time)
    return as_records(sent, sent, done, status)


def report(records, start, end, shares=(500, 990, 999)):
    if end <= start:
        raise ValueError(f"from {start} to {end}")
    arrival, done = (np.array([r[key] for r in records], dtype=np.int64) for key in ("arrival", "done"))
    status = np.array([r["status"] for r in records], dtype=object)
    mine, ticks = (arrival >= start) & (arrival < end), end - start
    waits = np.sort(np.where(status == "ok", (done - arrival).astype(float), np.inf)[mine])
    ranks = {share: (len(waits) * share + 999) // 1000 for share in shares}
    overlap = np.clip(np.minimum(done, end) - np.maximum(arrival, start), 0, None)
    inside, little = overlap.sum() / ticks, (done - arrival)[mine].sum() / ticks
    return {"count": int(mine.sum()), "ok": int((status[mine] == "ok").sum()), "errors": int((status[mine] == "error").sum()),
            "rejected": int((status[mine] == "rejected").sum()), "offered": float(mine.mean() * len(mine) / ticks) if len(mine) else 0.0,
            "throughput": float(((status == "ok") & (done >= start) & (done < end)).sum() / ticks),
            "percentiles": {share: float(waits[rank - 1]) if len(waits) else None for share, rank in ranks.items()},
            "inside": float(inside), "little": float(little), "steady": bool(abs(inside - little) <= 0.1 * max(inside, little))}


def max_rate(new_server, new_schedule, bound, low, high, tolerance, start, end, share=990):
    def reached(rate):
        value = report(open_loop(new_server(), new_schedule(rate)), start, end, (share,))["percentiles"][share]
        return np.inf if value is None else value

    rates = [low, high]
    if reached(low) > bound:
        return {"rate": None, "failed": low}
    if reached(high) <= bound:
        return {"rate": high, "failed": None}
    while rates[1] - rates[0] > tolerance:
        middle = sum(rates) // 2
        rates[int(reached(middle) > bound)] = middle
    return {"rate": rates[0], "failed": rates[1]}
