"""Exercises: from one source to the learner's notebook, the solution and what a grader reads.

`solutions/<chapter>/exNN_<name>.py` is the source, in jupytext's percent format. What it may contain:

    # %% [markdown]                       a text cell of both notebooks
    # %% [markdown] tags=["hint"]         a hint: folded in the learner's notebook, not in the solution
    # %% [markdown] tags=["answer"]       only in the solution: why the answer is what it is, follow-ups
    # %% tags=["learner"]                 only in the learner's notebook (text or code)
    # %% tags=["answer"]                  code only in the solution
    # %% tags=["gpu"]                     code that needs a GPU: recorded there, skipped elsewhere

A code cell whose first line is `# graded cell N: keep this line` is part of the submission. In it, at any indent,

    # <answer>                            these lines are the reference,
    ...
    # </answer>
    # stub: raise NotImplementedError()   and this one stands in their place in the learner's notebook.
"""
import ctypes
import hashlib
import importlib.util
import re
import sys
from functools import cached_property, lru_cache
from pathlib import Path

from course import ROOT

GRADED = re.compile(r"^\s*#\s*graded cell (\d+)\b", re.IGNORECASE)
OPEN, CLOSE, STUB = (re.compile(rf"^(\s*)# {text}") for text in (r"<answer>\s*$", r"</answer>\s*$", r"stub: ?(.*)$"))


class SourceError(ValueError):
    """An exercise's source breaks a rule; the message names file, line and rule."""


class Exercise:
    """One exercise, named '<chapter>/<stem>', as in '04_onnxruntime/ex01_first_session'."""

    def __init__(self, name: str):
        name = str(name).strip().strip("/").removesuffix(".ipynb").removesuffix(".py")
        known = names()
        if name not in known:
            raise ValueError(f"There is no exercise {name!r}. These exist: {', '.join(known)}.")
        self.name = name
        self.chapter, self.stem = name.split("/")
        self.source = ROOT / "solutions" / f"{name}.py"
        self.solution_notebook = ROOT / "solutions" / f"{name}.ipynb"
        self.learner_notebook = ROOT / "notebooks" / f"{name}.ipynb"
        self.work_notebook = ROOT / "work" / f"{name}.ipynb"
        self.grader = ROOT / "tests" / self.chapter / f"test_{self.stem}.py"

    def answers(self, kind: str) -> list[Path]:
        """The files of tests/<chapter>/right or wrong that belong to this exercise."""
        return sorted((ROOT / "tests" / self.chapter / kind).glob(f"{self.stem[:4]}_*.py"))

    @cached_property
    def cells(self):
        """The source's cells: nbformat cells with tags."""
        import jupytext
        return jupytext.read(self.source).cells

    def reference(self) -> str:
        """The reference submission: its graded cells, with their answers."""
        return join_graded({n: solution_code(text, self.source) for n, text in self._graded().items()})

    def stub(self) -> str:
        """The submission of a learner who has written nothing."""
        return join_graded({n: learner_code(text, self.source) for n, text in self._graded().items()})

    def _graded(self):
        return graded_cells([c.source for c in self.cells if c.cell_type == "code"])


@lru_cache
def names() -> tuple[str, ...]:
    """The names of all exercises, in order."""
    return tuple(sorted(str(p.relative_to(ROOT / "solutions").with_suffix("")) for p in ROOT.glob("solutions/*/ex*.py")))


def graded_cells(sources) -> dict[int, str]:
    """The graded cells among code cells: number to text; the last text of a number counts."""
    found = {}
    for text in sources:
        lines = text.lstrip().splitlines()
        match = lines and GRADED.match(lines[0])
        if match:
            found[int(match[1])] = text
    return found


def join_graded(cells: dict[int, str]) -> str:
    return "\n\n".join(cells[n].strip("\n") for n in sorted(cells)) + "\n"


def solution_code(text: str, path="source") -> str:
    """A code cell as the solution shows it: without marks and stubs."""
    return _split(text, path)[0]


def learner_code(text: str, path="source") -> str:
    """A code cell as the learner gets it: a stub in the place of each answer."""
    return _split(text, path)[1]


def _split(text, path):
    solution, learner, inside = [], [], False
    for number, line in enumerate(text.splitlines(), 1):
        def wrong(what):
            return SourceError(f"{path}: {what}, line {number} of the cell that starts {text.splitlines()[0]!r}")
        if OPEN.match(line):
            if inside:
                raise wrong("'# <answer>' inside an answer")
            inside = True
        elif CLOSE.match(line):
            if not inside:
                raise wrong("'# </answer>' with no '# <answer>' before it")
            inside = False
        elif stub := STUB.match(line):
            if inside:
                raise wrong("'# stub:' inside an answer: put it after '# </answer>'")
            learner.append(stub[1] + stub[2])
        elif re.search(r"</?answer>|#\s*stub", line):
            raise wrong("a mark that is not written '# <answer>', '# </answer>' or '# stub: …'")
        else:
            solution.append(line)
            if not inside:
                learner.append(line)
    if inside:
        raise SourceError(f"{path}: '# <answer>' is never closed in the cell that starts {text.splitlines()[0]!r}")
    return "\n".join(solution), "\n".join(learner)


def code_digest(text: str) -> str:
    """SHA-256 of a code cell's text, by which recorded outputs are matched to the cell that made them."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


@lru_cache
def gpu_problem(*modules) -> str | None:
    """Why code that needs an NVIDIA GPU and these Python modules cannot run here; None if it can."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return "no NVIDIA GPU answers"
    except OSError:
        return "no NVIDIA GPU and driver"
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        return f"Python packages missing: {', '.join(missing)} (make gpu-test installs them)"
    return None
