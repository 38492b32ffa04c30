"""Grades an answer: from a notebook, `check("04_onnxruntime/ex01_first_session")`; from a shell, `make grade EX=…`.

Both run the same pytest grader, tests/<chapter>/test_<exercise>.py, in a child process with a time and memory limit.
The grader runs the answer in a further process of its own (see `course.grading`), so nothing that an answer does
reaches the notebook's kernel, the grader or the verdict.
"""
import argparse
import contextlib
import html
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from course import ROOT
from course.exercises import Exercise, graded_cells, join_graded
from course.grading import Wrong, check_is_python, clean_environment, family, kill_tree, memory_of

SECONDS = 300           # a whole grading
GRADER_GIB = 12         # grader and submission together; the submission's own limit is lower


@dataclass
class Test:
    """One check of a grader. outcome: passed, failed, skipped, or error (the grader's own fault)."""
    name: str
    title: str
    outcome: str
    message: str = ""
    seconds: float = 0.0


@dataclass
class Result:
    """What a grading found. `passed` is true only if every check that can run here ran and passed."""
    exercise: str
    tests: list[Test] = field(default_factory=list)
    problem: str = ""         # why there is no complete list of checks

    @property
    def passed(self) -> bool:
        return not self.problem and any(t.outcome == "passed" for t in self.tests) and not self.failures

    @property
    def failures(self):
        return [t for t in self.tests if t.outcome in ("failed", "error")]

    @property
    def headline(self) -> str:
        done = sum(t.outcome == "passed" for t in self.tests)
        skipped = sum(t.outcome == "skipped" for t in self.tests)
        run = len(self.tests) - skipped
        if self.problem:
            return f"Not passed: {self.exercise}"
        if not self.passed:
            return f"Not passed yet: {self.exercise}, {done} of {run} checks pass"
        rest = f"; {skipped} could not run on this machine" if skipped else ""
        return f"Passed: {self.exercise}, {done} of {run} checks{rest}"

    def groups(self):
        """The checks for display: (outcome, title, message), the same kind of check and outcome as one, skipped ones last."""
        merged: dict[tuple, list] = {}
        for t in sorted(self.tests, key=lambda t: t.outcome == "skipped"):
            message = t.message if t.outcome != "passed" else ""
            first_line = message.partition("\n")[0]
            merged.setdefault((t.outcome, t.title.partition(" [")[0], first_line), []).append(t)
        seen, groups = {}, []
        for (outcome, title, first_line), tests in merged.items():
            message = tests[0].message
            if outcome in ("failed", "error"):
                if first_line in seen:
                    message = f"As above: {first_line}"
                seen[first_line] = title
                if len(tests) == 1:
                    title = tests[0].title
            groups.append((outcome, title + (f" ({len(tests)} cases)" if len(tests) > 1 else ""), message))
        return groups

    def __str__(self):
        marks = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip", "error": "BUG "}
        lines = [self.headline, ""]
        if self.problem:
            lines += [self.problem, ""]
        last = ""
        for outcome, title, message in self.groups():
            lines.append(f"  {marks[outcome]}  {title}")
            if message and outcome != "passed" and not (outcome == "skipped" and message == last):
                lines += [f"        {line}" for line in message.splitlines()]
            last = message
        return "\n".join(lines).rstrip()

    __repr__ = __str__

    def _repr_html_(self):
        words = {"passed": "passed", "failed": "failed", "skipped": "not run", "error": "grader's fault"}
        colors = {"passed": "#1a7f37", "failed": "#c0182b", "skipped": "#6a6a6a", "error": "#8a4b00"}
        rows = "".join(
            f"<tr><td style='vertical-align:top;white-space:nowrap;text-align:left'><b style='color:{colors[outcome]};"
            f"background:#fff;padding:0 .3em'>{words[outcome]}</b></td><td style='text-align:left'>{html.escape(title)}"
            + (f"<pre style='margin:.3em 0;white-space:pre-wrap'>{html.escape(message)}</pre>"
               if message and outcome != "passed" else "") + "</td></tr>" for outcome, title, message in self.groups())
        problem = f"<pre style='white-space:pre-wrap'>{html.escape(self.problem)}</pre>" if self.problem else ""
        return f"<p><b>{html.escape(self.headline)}</b></p>{problem}<table>{rows}</table>"


def grade(exercise: str, source: str, seconds: float = SECONDS, only: str = "", start=None) -> Result:
    """Grades the text of an answer. source: Python. seconds: limit for the whole grading. only: one test of the grader, by name.

    start: how the grader's process is started, a fresh interpreter by default; `Zygote.start` is for many gradings in a row.
    """
    ex = Exercise(exercise)
    result = Result(ex.name)
    with tempfile.TemporaryDirectory(prefix="grade-") as folder:
        path = Path(folder) / "submission.py"
        path.write_text(source, encoding="utf-8", errors="surrogatepass")
        try:
            check_is_python(path)
        except Wrong as error:
            result.problem = str(error)
            return result
        report, problem = _run_grader(ex, path, seconds, only, start or fresh)
    if report is None:
        result.problem = problem
        return result
    result.tests = [Test(**t) for t in report["tests"]]
    if problem or not report["finished"] or not result.tests:
        result.problem = problem or "The grader ended before its last check."
    return result


def fresh(arguments, out, err):
    """A new interpreter that grades: its process. arguments: the grader's test file, and the answer's path. out, err: paths for what it prints."""
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        return subprocess.Popen([sys.executable, "-c", "from course.check import _grader_main; _grader_main()", *arguments], cwd=ROOT, env=clean_environment(),
                                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=os.name == "posix")


def _run_grader(ex, path, seconds, only, start):
    with tempfile.TemporaryDirectory(prefix="verdict-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start([f"{ex.grader}::{only}" if only else str(ex.grader), str(path)], out, err)
        deadline, problem = time.monotonic() + seconds, ""
        try:
            while not problem:
                try:
                    process.wait(0.1)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        problem = f"Grading took longer than {seconds:g} s and was stopped."
                    elif sum(memory_of(p) for p in family(process.pid)) > GRADER_GIB * 2**30:
                        problem = f"Grading used more than {GRADER_GIB} GiB of memory and was stopped."
        except BaseException:      # Ctrl-C, or a signal: nothing of the grading lives on
            kill_tree(process.pid)
            raise
        if problem:
            kill_tree(process.pid)
            process.wait(5)
            return None, problem
        try:
            return json.loads(out.read_bytes().decode().splitlines()[-1]), ""
        except (ValueError, IndexError):
            tail = err.read_bytes().decode(errors="replace").strip()[-1500:]
            return None, f"The grader ended without a verdict (exit code {process.returncode}).\n{tail}".rstrip()


class Zygote:
    """A process that has imported what graders import, and makes a copy of itself for each grading: for many gradings in a row, on POSIX.

    The answer's own process is started anew by the grader as ever; only the start of pytest and the imports are saved.
    """

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", "from course.check import _zygote_main; _zygote_main()"], cwd=ROOT, env=clean_environment(),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def start(self, arguments, out, err):
        """As `fresh`; one grading at a time."""
        return _Copy(self, [*arguments, str(out), str(err)])

    def close(self):
        """Ends the process, and a grading that is under way."""
        kill_tree(self.process.pid)
        self.process.wait(5)
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


class _Copy:
    """What of `subprocess.Popen` a grading needs, for a copy that a zygote made of itself."""

    def __init__(self, zygote, request):
        self.pipe, self.returncode = zygote.process.stdout, None
        zygote.process.stdin.write(json.dumps(request).encode() + b"\n")
        zygote.process.stdin.flush()
        self.pid = int(self.pipe.readline() or b"0")
        if not self.pid:
            raise RuntimeError(f"the process that copies itself for each grading has ended (exit code {zygote.process.poll()})")

    def wait(self, timeout):
        if self.returncode is None:
            if not select.select([self.pipe], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a grading", timeout)
            self.returncode = int(self.pipe.readline())
        return self.returncode


def _zygote_main():
    """The child of `Zygote`: reads a line [test file, answer, out, err], writes the copy's process id, then its exit code."""
    import importlib
    import traceback

    for name in ("pytest", "numpy", "onnx.reference", "onnxruntime"):  # what most graders import; not every machine has all
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        *arguments, out, err = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for number, (path, mode) in enumerate(((os.devnull, os.O_RDONLY), (out, os.O_WRONLY | os.O_CREAT), (err, os.O_WRONLY | os.O_CREAT))):
                os.dup2(os.open(path, mode), number)
            sys.argv[1:], code = arguments, 0
            try:
                _grader_main()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _report_plugin():
    import pytest

    class Report:
        """A pytest plugin that collects what `Result` needs."""

        def __init__(self):
            self.tests, self.titles, self.finished = [], {}, False

        def pytest_collection_modifyitems(self, items):
            for item in items:
                doc = (item.function.__doc__ or item.name).strip().splitlines()[0].rstrip(".")
                case = f" [{item.callspec.id}]" if hasattr(item, "callspec") else ""
                self.titles[item.nodeid] = (item.name, doc + case)

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(self, item, call):
            report = yield
            if call.excinfo is not None:
                report.course_message, report.course_wrong = str(call.excinfo.value), isinstance(call.excinfo.value, Wrong)
            return report

        def pytest_runtest_logreport(self, report):
            name, title = self.titles[report.nodeid]
            if report.when == "call" and report.passed:
                self.tests.append(Test(name, title, "passed", seconds=report.duration))
            elif report.skipped:
                self.tests.append(Test(name, title, "skipped", str(report.longrepr[2]).removeprefix("Skipped: ")))
            elif report.failed:
                if getattr(report, "course_wrong", False):
                    self.tests.append(Test(name, title, "failed", report.course_message, report.duration))
                else:
                    self.tests.append(Test(name, title, "error", f"The grader itself failed; please report this.\n{report.longreprtext}"))

        def pytest_sessionfinish(self, session):
            self.finished = len(self.tests) >= session.testscollected > 0

    return Report()


def _grader_main():
    """The child: runs one grader on one file and prints the report as the last line of its standard output."""
    import pytest
    grader, path = sys.argv[1:]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"      # no grader needs nbval, and its import takes longer than most graders
    report = _report_plugin()
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main([grader, "--submission", path, "-q", "-p", "no:cacheprovider",
                            "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "--tb=short"], plugins=[report])
    if not report.finished:
        print(f"pytest ended with {code}", file=sys.stderr)
        sys.exit(3)
    print(json.dumps({"finished": report.finished, "tests": [vars(t) for t in report.tests]}))


# ---- where an answer comes from -----------------------------------------------------------------------------------

def check(exercise: str, file: str | None = None) -> Result:
    """Grades your answer from inside its notebook: the graded cells as you last ran them. `file` grades a file instead."""
    ex = Exercise(exercise)
    if file is not None:
        return grade(exercise, read_answer(Path(file), ex))
    try:
        history = get_ipython().user_ns["In"]          # noqa: F821  IPython puts it there
    except (NameError, KeyError):
        raise RuntimeError(f"check({exercise!r}) reads the cells of a running notebook, and this is none. "
                           f"Here, name the file: check({exercise!r}, file='my_answer.py').") from None
    found = graded_cells(history)
    wanted = ex._graded()
    missing = sorted(set(wanted) - set(found))
    if missing:
        return Result(ex.name, problem=(
            f"Graded cell {' and '.join(map(str, missing))} has not been run in this session. Run every cell whose first line "
            f"is '# graded cell …: keep this line', then this one again."))
    return grade(exercise, join_graded({n: found[n] for n in wanted}))


def read_answer(path: Path, ex: Exercise) -> str:
    """The answer in a .py file or in the graded cells of a notebook. ValueError says what is wrong with the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}. Give FILE= an existing .py or .ipynb file.") from None
    if path.suffix != ".ipynb":
        return data.decode("utf-8", errors="surrogateescape")
    try:
        cells = json.loads(data)["cells"]
        sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no readable notebook ({type(error).__name__}: {error}). Save it again in JupyterLab, "
                         f"or move it away and run `make lab` for a fresh copy.") from None
    found = graded_cells(sources)
    missing = sorted(set(ex._graded()) - set(found))
    if missing:
        raise ValueError(f"{path} has no graded cell {' and '.join(map(str, missing))}: the first line of such a cell reads "
                         f"'# graded cell {missing[0]}: keep this line'. Put the line back, or give FILE= another file.")
    return join_graded(found)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="make grade EX=", description="Grades an answer to an exercise.")
    parser.add_argument("exercise", nargs="?", default="", help="for example 04_onnxruntime/ex01_first_session")
    parser.add_argument("--file", help="the .py or .ipynb to grade (default: your notebook under work/, else notebooks/)")
    options = parser.parse_args(argv)
    try:
        ex = Exercise(options.exercise)
        path = Path(options.file) if options.file else ex.work_notebook if ex.work_notebook.exists() else ex.learner_notebook
        source = read_answer(path, ex)
    except ValueError as error:
        sys.exit(str(error))
    print(f"Grading {os.path.relpath(path)}", flush=True)
    if path == ex.learner_notebook:
        print("There is no answer of yours in work/ yet: `make lab` lays the exercises out there. This is the empty one.")
    print(flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    result = grade(ex.name, source)
    print(result)
    sys.exit(0 if result.passed else 1)


if __name__ == "__main__":
    main()
