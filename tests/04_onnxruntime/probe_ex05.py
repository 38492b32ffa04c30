"""Runs in the submission's process before it: opens plans in its own words, counts threads by the operating system, and holds runs until enough are in flight."""
import gc
import os
import sys
import threading
import time
from pathlib import Path

import psutil
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession, Session

made, gate = [], [None]
patience = [4.0]    # seconds until runs that should be in flight are; after the first failure less, since it is a failure already
ort.set_default_logger_severity(4)


class Slow:
    """Holds the first run until all the others are through."""

    def __init__(self, others):
        self.others, self.entered, self.done, self.reached, self.change = others, 0, 0, False, threading.Condition()
        self.now, self.most = {}, 0

    def enter(self, session):
        with self.change:
            self.entered += 1
            self.now[session] = self.now.get(session, 0) + 1
            self.most = max(self.most, self.now[session])
            if self.entered == 1:
                self.reached = self.change.wait_for(lambda: self.done >= self.others, patience[0])
                patience[0] = 4.0 if self.reached else 0.5

    def leave(self, session):
        with self.change:
            self.done += 1
            self.now[session] -= 1
            self.change.notify_all()


class Gate:
    """Holds runs until `want` of them are in, then a little longer, so that one too many is seen; afterwards lets all pass."""

    def __init__(self, want):
        self.want, self.now, self.most, self.mosts, self.count = want, {}, 0, {}, {}
        self.reached, self.open, self.change = False, False, threading.Condition()

    def total(self):
        return sum(self.now.values())

    def enter(self, session):
        with self.change:
            self.now[session] = self.now.get(session, 0) + 1
            self.count[session] = self.count.get(session, 0) + 1
            self.most = max(self.most, self.total())
            self.mosts[session] = max(self.mosts.get(session, 0), self.now[session])
            self.reached |= self.total() >= self.want
            self.change.notify_all()
            if not self.open:
                if self.change.wait_for(lambda: self.reached or self.open, patience[0]):
                    self.change.wait_for(lambda: self.total() > self.want or self.open, 0.3)
                else:
                    patience[0] = 0.5
                self.open = True
                self.change.notify_all()

    def leave(self, session):
        with self.change:
            self.now[session] -= 1
            self.change.notify_all()


def held(method):
    original = getattr(Session, method)

    def run(self, *args, **kwargs):
        here = gate[0]
        if here is None:
            return original(self, *args, **kwargs)
        here.enter(id(self))
        try:
            return original(self, *args, **kwargs)
        finally:
            here.leave(id(self))

    run.__name__, run.__doc__ = original.__name__, original.__doc__
    setattr(Session, method, run)


for name in ("run", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector"):
    held(name)
plain_init = InferenceSession.__init__


def noted(self, *args, **kwargs):
    made.append(1)
    plain_init(self, *args, **kwargs)


InferenceSession.__init__ = noted


def threads():
    return psutil.Process().num_threads()


def settled(before):
    """Threads gained, after those that are ending have ended; two equal counts in a row, in at most a second."""
    found = threads() - before
    for _ in range(20):
        time.sleep(0.01)
        again = threads() - before
        if again == found:
            return found
        found = again
    return found


def masks():
    """Of each thread of this process its number and the processors that it may use; empty where the system does not say."""
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        try:
            found[int(task.name)] = sorted(os.sched_getaffinity(int(task.name)))
        except (OSError, AttributeError):
            continue
    return found


def processors():
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def failure(error):
    import traceback
    lines = [f"line {f.lineno}: {f.line}" for f in traceback.extract_tb(error.__traceback__) if f.filename == sys.modules["submission"].__file__]
    return type(error).__name__, str(error)[:600], [c.__name__ for c in type(error).__mro__], lines[-1] if lines else ""


# ---- what the grader calls ------------------------------------------------------------------------------------------

def truth(path, plan):
    """Threads that this process really gains by the plan, opened in the grader's own words."""
    gc.collect()
    before = threads()
    options = ort.SessionOptions()
    if plan["parallel"]:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    if plan["pool"] == "process":
        options.use_per_session_threads = False
        ort.set_global_thread_pool_sizes(plan["intra"], plan["inter"])
    else:
        options.intra_op_num_threads = plan["intra"]
        options.inter_op_num_threads = plan["inter"]
    kept = [ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for _ in range(plan["sessions"])]
    gained = settled(before)
    kept.clear()
    return gained


def opened(path, plan, allowed, feed, expected=None):
    """The submission's sessions: how it failed, or how many were made, what each has, the threads gained, their processors, and the result of a feed.

    A new thread gives itself its processors, and on a busy machine that takes a while: where `expected` is given, the processors are read until they are so, for two seconds.
    """
    gc.collect()
    original, told = repr(plan), repr(allowed)
    before, masked, made[:] = threads(), masks(), []
    try:
        sessions = sys.modules["submission"].open_sessions(path, plan, allowed)
    except Exception as error:
        return {"error": failure(error), "made": len(made), "gained": settled(before)}
    gained = settled(before)
    for _ in range(200):
        found_masks = sorted(m for n, m in masks().items() if n not in masked)
        if expected is None or found_masks == expected:
            break
        time.sleep(0.01)
    known = isinstance(sessions, list) and all(isinstance(s, InferenceSession) for s in sessions)
    found = {"error": None, "made": len(made), "gained": gained, "kind": type(sessions).__name__, "known": known, "has": [],
             "changed": repr(plan) != original or repr(allowed) != told, "masks": found_masks}
    for session in sessions if known else ():
        options = session.get_session_options()
        entries = {}
        for key in ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning", "session.force_spinning_stop", "session.intra_op.spin_duration_us"):
            try:
                entries[key] = options.get_session_config_entry(key)
            except RuntimeError:
                entries[key] = None
        found["has"].append({"intra": options.intra_op_num_threads, "inter": options.inter_op_num_threads, "mode": options.execution_mode.name,
                             "own": options.use_per_session_threads, "providers": session.get_providers(), "entries": entries, "result": session.run(None, feed)[0]})
    found["distinct"] = len({id(s) for s in sessions}) if known else 0
    return found


def plain(answers):
    """The answers as data: outputs, or the name of an exception or of another type."""
    found = []
    for answer in answers if isinstance(answers, (list, tuple)) else ():
        if isinstance(answer, BaseException):
            found.append({"raised": type(answer).__name__})
        elif isinstance(answer, (list, tuple)):
            found.append({"outputs": list(answer)})
        else:
            found.append({"other": type(answer).__name__})
    return found


def direct(path, feed):
    """The kind of error that a run of the feed raises."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)
    except Exception as error:
        return type(error).__name__


def one_is_slow(path, sessions, feeds, callers):
    """Whether all other feeds were answered while one run took its time, the most runs in a session, the answers; the failure, if it raised."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    kept = [ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for _ in range(sessions)]
    gate[0] = Slow(len(feeds) - 1)
    try:
        answers, error = sys.modules["submission"].serve(kept, feeds, callers), None
    except Exception as problem:
        answers, error = None, failure(problem)
    here, gate[0] = gate[0], None
    return {"error": error, "reached": here.reached, "in session": here.most, "answers": plain(answers)}


def served(path, sessions, feeds, callers):
    """The submission's serve on sessions of one thread: failure or results, runs of each session, the most in flight, threads left, sessions made."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    kept = [ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for _ in range(sessions)]
    given = list(kept)
    before, made[:] = threads(), []
    gate[0] = Gate(min(callers, len(feeds)))
    try:
        answers, error = sys.modules["submission"].serve(given, feeds, callers), None
    except Exception as problem:
        answers, error = None, failure(problem)
    here, gate[0] = gate[0], None
    found = {"error": error, "made": len(made), "left": settled(before), "kind": type(answers).__name__, "reached": here.reached or not feeds, "most": here.most,
             "in session": [here.mosts.get(id(s), 0) for s in kept], "runs": [here.count.get(id(s), 0) for s in kept],
             "elsewhere": sum(here.count.values()) - sum(here.count.get(id(s), 0) for s in kept), "answers": plain(answers), "changed": given != kept}
    return found


def environment_changes(base, threads):
    """What the submission's environment changes besides its result: base, os.environ, or nothing."""
    mine, process = dict(base), dict(os.environ)
    try:
        got, error = sys.modules["submission"].environment(mine, threads), None
    except Exception as problem:
        return {"error": failure(problem), "changed": ""}
    changed = "base" if mine != base or got is mine else "os.environ" if dict(os.environ) != process else ""
    return {"error": error, "changed": changed}
