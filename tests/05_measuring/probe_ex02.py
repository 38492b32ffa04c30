"""Runs in the submission's process: a simulated server with guards, and calls of the submission that keep a log of what the server saw."""
import heapq
import sys
import traceback

IDLE_CALLS = 20_000     # calls of now and wait in a row that let no time pass
TRIALS = 210            # servers that one search may ask for before it counts as one without an end


class Misuse(RuntimeError):
    """What the contract of the server rules out."""


class Server:
    """The server of the exercise, as a list of events; freezes count from `clock`, at which it starts."""

    def __init__(self, service, workers=1, room=None, freezes=(), errors=(), cost=(), clock=0):
        self.service, self.workers, self.room, self.errors = service, workers, room, set(errors)
        self.cost, self.tick, self.freezes = dict(cost), clock, [(a + clock, b + clock) for a, b in freezes]
        self.waiting, self.busy, self.events, self.ready = [], 0, [], []
        for _, b in self.freezes:
            heapq.heappush(self.events, (b, -1))
        self.sends, self.outstanding, self.idle_calls, self.began = [], 0, 0, clock

    def _idle(self):
        self.idle_calls += 1
        if self.idle_calls > IDLE_CALLS:
            raise Misuse("The clock stands still: ticks pass in send and wait only, so wait until the tick that you need")

    def now(self):
        self._idle()
        return self.tick

    def send(self, k):
        if k == 0 and self.sends:
            raise Misuse("Request 0 is sent again to a server that has served already: every run needs a fresh server")
        if k != len(self.sends):
            raise Misuse(f"send({k!r}) is request number {len(self.sends)} that is sent: they are numbered in the order of sending")
        self.idle_calls = 0
        self.sends.append((k, self.tick - self.began))
        self.outstanding += 1
        self.waiting.append(k)
        self._begin()
        if self.room is not None and len(self.waiting) > self.room:
            self.waiting.pop()
            self._answer(k, "rejected")
        self._go(self.tick + self.cost.get(k, 0), False)

    def wait(self, until=None):
        self._idle()
        before = self.tick
        if not self.ready and until is None and not self.outstanding:
            raise Misuse("Nothing is outstanding: every answer has been handed out, and this would wait for ever")
        if not self.ready and (until is None or until > self.tick):
            self._go(until, True)
        if self.tick > before or self.ready:
            self.idle_calls = 0
        return self.ready.pop(0) if self.ready else None

    def _answer(self, k, status):
        self.ready.append((k, status, self.tick))
        self.outstanding -= 1

    def _begin(self):
        while self.waiting and self.busy < self.workers and not any(a <= self.tick < b for a, b in self.freezes):
            k = self.waiting.pop(0)
            self.busy += 1
            heapq.heappush(self.events, (self.tick + self.service[k % len(self.service)], k))

    def _go(self, until, stop_at_answer):
        while self.events and (until is None or self.events[0][0] <= until):
            self.tick = max(self.tick, self.events[0][0])
            while self.events and self.events[0][0] <= self.tick:
                _, k = heapq.heappop(self.events)
                if k >= 0:
                    self.busy -= 1
                    self._answer(k, "error" if k in self.errors else "ok")
            self._begin()
            if stop_at_answer and self.ready:
                return
        if until is not None:
            self.tick = max(self.tick, until)


def call(name, *args, **kwargs):
    """{"got": …}, or {"raised": (class, text, the submission's own line)}."""
    submission = sys.modules["submission"]
    try:
        return {"got": getattr(submission, name)(*args, **kwargs)}
    except (Exception, SystemExit) as error:
        lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == submission.__file__]
        return {"raised": (type(error).__name__, str(error)[:500], f"line {lines[-1].lineno}: {lines[-1].line}" if lines else "")}


def drive_open(spec, schedule):
    """What open_loop returns, what the server saw, and whether the schedule was changed."""
    server, given = Server(**spec), list(schedule)
    return {**call("open_loop", server, given), "sends": server.sends, "changed": given != schedule}


def drive_closed(spec, clients, requests, think_time):
    server = Server(**spec)
    return {**call("closed_loop", server, clients, requests, think_time), "sends": server.sends}


def drive_report(records, start, end, shares):
    """What report returns, and whether the records were changed."""
    given = [dict(r) for r in records]
    return {**call("report", given, start, end, *([tuple(shares)] if shares else [])), "changed": given != records}


def drive_max_rate(spec, units, length, search):
    """What max_rate returns, the rates that it asked a schedule for, and what each of its servers saw."""
    servers, rates = [], []

    def new_server():
        if len(servers) == TRIALS:
            raise Misuse(f"The search does not end: {TRIALS} trials so far, and more are asked for")
        servers.append(Server(**spec))
        return servers[-1]

    def new_schedule(rate):
        rates.append(rate)
        return [tick for tick in (int(unit * 1000 / rate) for unit in units) if tick < length]

    return {**call("max_rate", new_server, new_schedule, **search), "rates": rates, "servers": [server.sends for server in servers]}


def refused(schedule):
    """The class of what open_loop raises for a schedule, its bases, and how many requests were sent before."""
    server = Server([3])
    try:
        sys.modules["submission"].open_loop(server, list(schedule))
    except Exception as error:
        return type(error).__name__, [c.__name__ for c in type(error).__mro__], len(server.sends)
    return "", [], len(server.sends)
