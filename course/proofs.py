"""Run the proofs of the book's pages and hold what they print to what the pages say.

A page proves its claims in ``{proof}`` fences: Python that runs as it stands. What a cell prints stands in the
``{output}`` fence that follows it. All cells of a page run in order, in one namespace, in one fresh process, in an empty
folder, on the CPU, with ``MODELS`` (a ``pathlib.Path``, the repository's ``models/`` folder) already defined.

    python -m course.proofs [PATH ...]            check (the default is every page of book/)
    python -m course.proofs --write [PATH ...]    write what the cells print into the pages
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import dataclasses
import difflib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from course import ROOT
from course.pages import Fence, fences, name_of

SECONDS_A_PAGE = 120
PAGES_AT_ONCE = 2
# Not to be had everywhere (no wheel for macOS): a page that needs one of them is skipped there, and says so.
MAY_BE_MISSING = ("tensorrt_rtx", "tensorrt")

# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cell:
    code: str
    fence: Fence
    output: Fence | None

    @property
    def expected(self) -> str:
        return _tidy(self.output.body) if self.output else ""


def _tidy(printed: str) -> str:
    """Spaces at the end of a line and newlines at the end of all cannot be seen on a page: they do not count."""
    return "\n".join(line.rstrip() for line in printed.split("\n")).rstrip("\n")


def cells(text: str) -> tuple[list[Cell], list[tuple[int, str]]]:
    """The cells of a page, and what is wrong with its form as (line, what)."""
    found: list[Cell] = []
    wrong: list[tuple[int, str]] = []
    waiting: Fence | None = None
    for fence in fences(text):
        if fence.name not in ("proof", "output"):
            continue
        if not fence.closed:
            wrong.append((fence.first, f"the {{{fence.name}}} fence is never closed; end it with {fence.mark}"))
        if fence.argument:
            wrong.append((fence.first, f"text after {{{fence.name}}}: put {fence.argument!r} on a line of its own"))
        if fence.name == "proof":
            if waiting:
                found.append(Cell(waiting.body, waiting, None))
            waiting = fence
        elif waiting:
            found.append(Cell(waiting.body, waiting, fence))
            waiting = None
        else:
            wrong.append((fence.first, "an {output} with no {proof} before it; remove it, or write its {proof}"))
    if waiting:
        found.append(Cell(waiting.body, waiting, None))
    return found, wrong


def imports(code: str) -> set[str]:
    """Top-level names of the modules that ``code`` imports and cannot do without (not those inside ``try``)."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return set()
    names: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
        for child in ast.iter_child_nodes(node):
            if not isinstance(node, ast.Try) or child not in node.body:
                walk(child)

    walk(tree)
    return names


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------

# Runs in the child. It writes one line of JSON for each cell that ends, so that a crash names the cell it happened in.
_RUNNER = r"""
import ctypes, json, linecache, os, pathlib, sys, traceback
def main():
    control = sys.argv[1]
    with open(os.path.join(control, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    name = job["page"]
    linecache.cache[name] = (len(job["text"]), None, job["text"].splitlines(True), name)
    space = {"__name__": "__main__", "MODELS": pathlib.Path(job["models"])}
    try:
        flush = ctypes.CDLL(None).fflush
    except Exception:
        flush = lambda _: None
    results = open(os.path.join(control, "results.jsonl"), "w", encoding="utf-8")
    for number, (line, code) in enumerate(job["cells"]):
        files = []
        for descriptor, what in ((1, "stdout"), (2, "stderr")):
            path = os.path.join(control, f"{number}.{what}")
            files.append(path)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
            os.close(file)
        error = None
        try:
            exec(compile("\n" * line + code + "\n", name, "exec"), space)
        except BaseException as problem:
            trace = problem.__traceback__.tb_next if problem.__traceback__ else None
            error = "".join(traceback.format_exception(type(problem), problem, trace))
        sys.stdout.flush(); sys.stderr.flush(); flush(None)
        stdout, stderr = (open(path, encoding="utf-8", errors="replace").read() for path in files)
        results.write(json.dumps({"stdout": stdout, "stderr": stderr, "error": error}) + "\n")
        results.flush()
        if error:
            break
    results.close()
    os._exit(0)
main()
"""


@dataclasses.dataclass
class Result:
    page: Path
    cells: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""  # why the page was not run; a skipped page has not passed
    written: bool = False


def _environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "PYTHONHASHSEED")}
    return env | {"PYTHONUTF8": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}


def run(page_name: str, text: str, found: list[Cell], seconds: float = SECONDS_A_PAGE) -> tuple[list[dict], str]:
    """What each cell did, in order, up to the first that failed; and why the process itself failed, if it did."""
    with tempfile.TemporaryDirectory() as control, tempfile.TemporaryDirectory() as empty:
        job = {
            "page": page_name,
            "text": text,
            "models": str(ROOT / "models"),
            "cells": [(cell.fence.first, cell.code) for cell in found],
        }
        Path(control, "job.json").write_text(json.dumps(job), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", _RUNNER, control],
            cwd=empty,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        died = ""
        try:
            code = process.wait(seconds)
            if code:
                died = f"the process ended with status {code}"
        except subprocess.TimeoutExpired:
            died = f"the page was still running after {seconds:g} s; make the cell smaller"
        finally:
            if hasattr(os, "killpg"):  # whatever the cells started goes too
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
            else:
                process.kill()
            process.wait()
        results_file = Path(control, "results.jsonl")
        rows = results_file.read_text(encoding="utf-8").splitlines() if results_file.exists() else []
        results = [json.loads(row) for row in rows]
        if not died and len(results) < len(found) and not (results and results[-1]["error"]):
            died = "the process ended before the cell did"
        if died and len(results) < len(found):
            stderr = Path(control, f"{len(results)}.stderr")
            if stderr.exists():
                died += "\n" + _tail(stderr.read_text(encoding="utf-8", errors="replace"))
        return results, died


def _tail(stderr: str) -> str:
    lines = stderr.rstrip().splitlines()[-15:]
    return "\n".join(["  stderr:", *("    " + line for line in lines)]) if lines else ""


def _fenced(printed: str, indent: int) -> list[str]:
    longest = max((len(run) for run in re.findall(r"`+", printed)), default=0)
    mark = "`" * max(3, longest + 1)
    rows = [mark + "{output}", *printed.split("\n"), mark]
    return [" " * indent + row if row else row for row in rows]


def _rewrite(text: str, found: list[Cell], printed: list[str]) -> str:
    lines = text.split("\n")
    for cell, new in reversed(list(zip(found, printed, strict=True))):
        if new == cell.expected and bool(new) == bool(cell.output):
            continue
        block = _fenced(new, cell.fence.indent) if new else []
        if cell.output:
            lines[cell.output.first - 1 : cell.output.last] = block
        else:
            lines[cell.fence.last : cell.fence.last] = block
    return "\n".join(lines)


def check(page: Path, write: bool = False, seconds: float = SECONDS_A_PAGE) -> Result:
    """Run one page's cells; compare what they print with the page, or with ``write`` write it into the page."""
    result = Result(page)
    text = page.read_text(encoding="utf-8")
    name = name_of(page)
    found, wrong = cells(text)
    result.cells = len(found)
    result.errors = [f"{name}:{line}: {what}" for line, what in wrong]
    if not found or result.errors:
        return result
    needed = set().union(*(imports(cell.code) for cell in found))
    missing = [module for module in MAY_BE_MISSING if module in needed and not importlib.util.find_spec(module)]
    if missing:
        result.skipped = f"{name}: not run, this machine has no {' and no '.join(missing)}"
        return result
    results, died = run(name, text, found, seconds)
    printed: list[str] = []
    for cell, got in zip(found, results, strict=False):
        where = f"{name}:{cell.fence.first}"
        actual = _tidy(got["stdout"])
        printed.append(actual)
        if got["error"]:
            report = [f"{where}: the proof raises; catch the error if it is what the cell shows", got["error"].rstrip()]
            if actual:
                report += ["  stdout before it:", *("    " + line for line in actual.split("\n"))]
            result.errors.append("\n".join([*report, _tail(got["stderr"])]).rstrip())
        elif not write and actual != cell.expected:
            result.errors.append(_difference(where, cell, actual))
    if died and len(results) < len(found):
        result.errors.append(f"{name}:{found[len(results)].fence.first}: {died}".rstrip())
    if write and not result.errors:
        new = _rewrite(text, found, printed)
        if new != text:
            page.write_text(new, encoding="utf-8")
            result.written = True
    return result


def _difference(where: str, cell: Cell, actual: str) -> str:
    if not cell.output:
        shown = "\n".join("    " + line for line in actual.split("\n"))
        return f"{where}: the proof prints, but no {{output}} follows it; run `python -m course.proofs --write`\n{shown}"
    if not actual:
        return f"{where}: the proof prints nothing, but an {{output}} follows it; remove it, or print what it says"
    rows = difflib.unified_diff(
        cell.expected.split("\n"), actual.split("\n"), "what the page says", "what the cell prints", lineterm="", n=2
    )
    return f"{where}: the output of this proof differs; if the page is out of date, `python -m course.proofs --write`\n" + (
        "\n".join("    " + row for row in rows)
    )


# ---------------------------------------------------------------------------------------------------------------------


def pages(paths: list[Path] | None = None, with_proofs: bool = True) -> list[Path]:
    """The Markdown pages under ``paths`` (default: book/), by default only those that hold a proof or an output."""
    found: set[Path] = set()
    for path in paths or [ROOT / "book"]:
        found.update(path.rglob("*.md") if path.is_dir() else [path])
    return sorted(p for p in found if not with_proofs or re.search(r"\{(proof|output)\}", p.read_text(encoding="utf-8")))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.proofs", description="Run the proofs of the book's pages.")
    parser.add_argument("--write", action="store_true", help="write what the cells print into the pages")
    parser.add_argument("paths", nargs="*", type=Path, help="pages or folders; the default is book/")
    options = parser.parse_args(arguments)
    for path in options.paths:
        if not path.exists():
            parser.error(f"{path} does not exist")
    failed = skipped = proofs = 0
    todo = pages(options.paths)
    with concurrent.futures.ThreadPoolExecutor(PAGES_AT_ONCE) as pool:
        for result in pool.map(lambda page: check(page, options.write), todo):
            proofs += 0 if result.skipped else result.cells
            if result.skipped:
                skipped += 1
                print(f"skipped  {result.skipped}")
            for error in result.errors:
                print(error + "\n")
            failed += bool(result.errors)
            if result.written:
                print(f"written  {name_of(result.page)}")
    tail = f"; {skipped} pages skipped" if skipped else ""
    print(f"{len(todo)} pages, {proofs} proofs run, {failed} pages with errors{tail}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
