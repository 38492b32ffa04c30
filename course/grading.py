"""What graders use: a submission that runs in its own process, and failures that say what to look at.

A grader is a pytest file that takes the fixture `submission` and calls the learner's functions through it:

    got = submission.call("classify", session, images)

The submission's process is not the grader's: what it patches, prints, exits or breaks stays with it. It has a time
limit for each call and a memory limit for its whole process tree; past either it is ended and the test fails with
the reason. The next call starts a fresh process.
"""
import ast
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Listener
from pathlib import Path

import numpy as np
import psutil

from course import ROOT
from course.codec import Opaque, decode, encode

OUTPUT_KEPT = 20_000      # characters of what a submission prints that are kept
POLL_SECONDS = 0.02       # how often its memory is read
SOURCE_LIMIT = 1_000_000  # bytes of an answer
ANSWER_LIMIT = 2**30      # bytes that a call may return
HANGS_ALLOWED = 2         # calls that do not return, after which no more are made


class Wrong(AssertionError):
    """A submission's fault, in words for the learner: the likely mistake, the call, what came, what was expected."""

    def __init__(self, mistake, call=None, got=None, expected=None):
        lines = [mistake]
        for label, value in (("call", call), ("came", got), ("expected", expected)):
            if value is not None:
                lines.append(f"  {label + ':':<10}{value if isinstance(value, str) else show(value)}")
        super().__init__("\n".join(lines))


class Raised(Exception):
    """An exception that the submission raised: `kind` is its class's name, `bases` those of its base classes."""

    def __init__(self, kind, text, where, bases, call):
        super().__init__(f"{kind}: {text}")
        self.kind, self.text, self.where, self.bases, self.call = kind, text, where, bases, call


def show(value, limit=160):
    """A short text for a value: arrays by shape, dtype and their first numbers."""
    if isinstance(value, np.ndarray):
        flat = ", ".join(f"{v:.6g}" if value.dtype.kind == "f" else str(v) for v in value.reshape(-1)[:6].tolist())
        more = ", …" if value.size > 6 else ""
        return f"array of shape {value.shape}, {value.dtype}: [{flat}{more}]"
    if isinstance(value, Opaque):
        return repr(value)
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        inside = ", ".join(show(v) for v in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def write_call(name, args, kwargs):
    parts = [short(a) for a in args] + [f"{k}={short(v)}" for k, v in kwargs.items()]
    return f"{name}({', '.join(parts)})"


def short(value):
    if isinstance(value, np.ndarray):
        return f"<array {value.shape} {value.dtype}>"
    if isinstance(value, str) and os.sep in value:
        return repr(os.path.basename(value))
    return show(value, 60)


class Submission:
    """A learner's file, running in a process of its own.

    path: the Python file. probe: a Python file that runs in the same process first. call_seconds: limit for a call.
    memory_gib: limit in GiB for the resident memory of the process and all that it starts.
    """

    def __init__(self, path, probe=None, call_seconds=20.0, memory_gib=3.0):
        self.path, self.probe_path = Path(path).resolve(), probe and Path(probe).resolve()
        self.call_seconds, self.memory_gib = call_seconds, memory_gib
        self.process = self.connection = None
        self.printed, self.hangs, self.started = "", 0, 0

    # ---- what graders call -------------------------------------------------------------------------------------

    def call(self, name, *args, **kwargs):
        """The result of the submission's function. Raises `Wrong` if it raises, dies, hangs or is not there."""
        try:
            return self.attempt(name, *args, **kwargs)
        except Raised as error:
            if error.kind == "NotImplementedError":
                raise Wrong(f"{name} is not written yet.", call=error.call, got=f"{error}") from None
            hint = ""
            if error.kind == "NameError":
                hint = " Everything that your answer uses (imports, helper functions) belongs into the graded cells."
            at = f" (your {error.where})" if error.where else ""
            raise Wrong(f"{name} raised {error.kind}{at}.{hint}", call=error.call, got=str(error)) from None

    def attempt(self, name, *args, **kwargs):
        """As `call`, but what the submission raises comes out as `Raised`: for tests that expect an error."""
        call = write_call(name, args, kwargs)
        return self._ask("submission", name, args, kwargs, call)["ok"]

    def probe(self, name, *args, **kwargs):
        """Calls a function of the grader's probe in the submission's process."""
        try:
            return self._ask("probe", name, args, kwargs, f"probe {name}")["ok"]
        except Raised as error:
            raise RuntimeError(f"the grader's probe {name} failed: {error} {error.where}") from None

    def drive(self, name, *args, **kwargs):
        """As `probe`, for a function of the probe that calls the submission: an error is the submission's."""
        try:
            return self._ask("probe", name, args, kwargs, f"{name}")["ok"]
        except Raised as error:
            raise Wrong(f"Your code raised {error.kind}.", call=error.call, got=str(error)) from None

    # ---- the process -------------------------------------------------------------------------------------------

    def _ask(self, space, name, args, kwargs, call):
        if self.hangs >= HANGS_ALLOWED:
            raise Wrong(f"Not tried: your code did not return from {self.hangs} earlier calls.", call=call)
        if self.process is None:
            self._start()
        answer = self._exchange({"space": space, "name": name, "args": args, "kwargs": kwargs}, call)
        if "lost" in answer:
            raise Wrong("Not tried: what an earlier call of yours returned was lost when your code's process ended.", call=call)
        if "missing" in answer:
            raise Wrong(f"Your answer defines no function named {name}.", call=call)
        if "error" in answer:
            if answer["error"] in ("SystemExit", "KeyboardInterrupt"):
                self.close()
                at = f" (your {answer['where']})" if answer["where"] else ""
                raise Wrong(f"Your code called sys.exit() or raised {answer['error']}{at}: return a value instead.", call=call)
            raise Raised(answer["error"], answer["text"], answer["where"], answer["bases"], call)
        return answer

    def _start(self):
        check_is_python(self.path)
        key = secrets.token_bytes(16)
        self.mark = secrets.token_hex(8)
        self.scratch = tempfile.mkdtemp(prefix="submission-")
        env = clean_environment()
        env["COURSE_SUBMISSION_MARK"] = self.mark
        with Listener(None, authkey=key) as listener:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from course.worker import main; main()"], cwd=self.scratch, env=env,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=os.name == "posix")
            start = {"address": listener.address, "key": key.hex(), "submission": str(self.path),
                     "probe": self.probe_path and str(self.probe_path)}
            self.process.stdin.write(json.dumps(start).encode() + b"\n")
            self.process.stdin.flush()
            self.connection = listener.accept()
        self.killed_for, self.started = None, self.started + 1
        threading.Thread(target=self._drain, args=(self.process,), daemon=True).start()
        threading.Thread(target=self._watch_memory, args=(self.process,), daemon=True).start()
        if self.probe_path:
            self.probe(None)
        answer = self._exchange({"space": "submission", "name": None, "args": (), "kwargs": {}}, "import of your answer")
        if "error" in answer:
            self.close()
            hint = ""
            if answer["imports"] and "an answer cannot import" not in answer["text"]:
                hint = " Is the package installed here, and spelled like this?"
            elif answer["error"] == "NameError":
                hint = " Everything that your answer uses belongs into the graded cells."
            at = f" at your {answer['where']}" if answer["where"] else ""
            raise Wrong(f"Your answer stops with {answer['error']}{at} before any function is called.{hint}",
                        got=f"{answer['error']}: {answer['text']}")

    def _exchange(self, request, call):
        try:
            self.connection.send_bytes(encode(request))
            deadline = time.monotonic() + self.call_seconds
            while not self.connection.poll(min(0.2, max(0.0, deadline - time.monotonic()))):
                if self.killed_for:
                    raise EOFError
                if time.monotonic() > deadline:
                    self.hangs += 1
                    self.close()
                    raise Wrong(f"Your code did not return within {self.call_seconds:g} s and was stopped.", call=call)
            return decode(self._receive(deadline, call))
        except (EOFError, OSError):
            reason = self.killed_for or self._death()
            self.close()
            raise Wrong(reason, call=call) from None
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            self.close()
            raise Wrong(f"What came back from your code's process is no answer ({type(error).__name__}).", call=call) from None

    def _receive(self, deadline, call):
        """One message. Bytes that a submission wrote into the connection may promise one that never comes: that counts as a hang."""
        box = []

        def read():
            try:
                box.append(self_connection.recv_bytes(ANSWER_LIMIT))
            except Exception as error:     # handed on below
                box.append(error)

        self_connection = self.connection
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(max(1.0, deadline - time.monotonic()))
        if not box:
            self.hangs += 1
            self.close()
            raise Wrong(f"Your code did not return within {self.call_seconds:g} s and was stopped.", call=call)
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]

    def _death(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        code = self.process.returncode
        if code is None:
            return "Your code's process closed its connection to the grader."
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            return f"Your code crashed the Python interpreter ({name})."
        return f"Your code ended the Python interpreter (exit code {code}): a function has to return."

    def _drain(self, process):
        kept = b""
        with contextlib.suppress(OSError, ValueError):
            while piece := process.stdout.read1(65536):
                if len(kept) < OUTPUT_KEPT:
                    kept += piece[:OUTPUT_KEPT - len(kept)]
                    self.printed = kept.decode(errors="replace")

    def _watch_memory(self, process):
        limit = self.memory_gib * 2**30
        while process.poll() is None:
            used = sum(memory_of(p) for p in family(process.pid))
            if used > limit:
                self.killed_for = (f"Your code used more than {self.memory_gib:g} GiB of memory and was stopped.")
                kill_tree(process.pid, self.mark)
                return
            time.sleep(POLL_SECONDS)

    def close(self):
        """Ends the process and all that it started."""
        if self.process is None:
            return
        kill_tree(self.process.pid, self.mark)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for stream in (self.connection, self.process.stdin):
            with contextlib.suppress(OSError):
                stream.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.process = self.connection = None


def check_is_python(path):
    """Raises `Wrong` if the file cannot be read as Python."""
    size = Path(path).stat().st_size
    if size > SOURCE_LIMIT:
        raise Wrong(f"Your answer is {size / 1e6:.0f} MB of text; an answer has at most {SOURCE_LIMIT / 1e6:g} MB. "
                    "Data belongs into files that the answer reads.")
    try:
        ast.parse(Path(path).read_text(encoding="utf-8"))
    except SyntaxError as error:
        text = (error.text or "").strip()
        hint = " Lines that start with % or ! are for the notebook, not for an answer." if text[:1] in ("%", "!") else ""
        raise Wrong(f"Your answer is not valid Python: {error.msg}, line {error.lineno}.{hint}", got=text or None) from None
    except (UnicodeDecodeError, ValueError) as error:
        raise Wrong(f"Your answer is not Python source text: {error}.") from None
    except (RecursionError, MemoryError) as error:
        raise Wrong(f"Your answer is nested too deep for Python to read ({type(error).__name__}).") from None


def clean_environment():
    """The environment for grader and submission: without what a notebook's cell may have set to sway them."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON", "COURSE_", "JPY_", "MPL"))}
    return env | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8",
                  "MPLBACKEND": "agg", "ORT_DISABLE_TELEMETRY": "1"}


def family(pid):
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def memory_of(process):
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def kill_tree(pid, mark=None):
    """Ends a process, its descendants, its session, and whatever carries its mark in the environment."""
    for process in family(pid):
        with contextlib.suppress(psutil.Error):
            process.kill()
    if os.name == "posix":
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    if mark:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("COURSE_SUBMISSION_MARK") == mark:
                    process.kill()
