"""What the book itself costs: builds of growing size, cold and after one change, and the weight of its pages.

The grown books are this book plus copies of its own questions under other titles, up to 1,000 questions in all.
Each build runs in a copy of the tree, in a folder of its own; nothing here is changed.
"""

from __future__ import annotations

import gzip
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from course import ROOT
from course.bench import core

SIZES = {150: 2, 250: 1, 500: 1, 1000: 1}  # questions: how often each is built cold and again warm; the largest takes minutes
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "node_modules", "_build", "work", ".gpu", "__pycache__", ".pytest_cache", ".ruff_cache")


def copy_tree(target: Path) -> Path:
    """The working tree without what is built or installed; node_modules as a link."""
    shutil.copytree(ROOT, target, ignore=_LEFT_OUT)
    os.symlink(ROOT / "node_modules", target / "node_modules")
    return target


def questions(root: Path) -> list[Path]:
    return sorted((root / "book").glob("*/questions/*.md"))


def grow(root: Path, size: int) -> int:
    """Adds generated questions to chapters of their own until the book has ``size``; returns how many were added.

    A generated question is a copy of one of the book's, numbered in its title, with its citations, roles and links taken out,
    which would point to a page's neighbours. The words stay, so the search index meets more pages and no more words.
    """
    sources = questions(root)
    wanted = size - len(sources)
    if wanted < 0:
        raise ValueError(f"the book has {len(sources)} questions already; a size of at least that is wanted, not {size}")
    lines = []
    for number in range(wanted):
        source = sources[number % len(sources)]
        text = source.read_text(encoding="utf-8")
        text = re.sub(r"\{footcite\}`[^`]*`|```\{footbibliography\}\s*```|```\{run\}[^`]*```", "", text)
        text = re.sub(r"\{[a-z:]+\}`([^`<|]*)[^`]*`", r"`\1`", text)
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        text = re.sub(r"^```\{(raw|include|bench-table|peer-table|cost-table|error-table|share-table|bench-plot|growth-plot|image|figure|roofline)\}.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"^(# .*)$", rf"\1 ({number})", text, count=1, flags=re.MULTILINE)
        chapter = root / "book" / f"grown_{number // 100:02}"
        chapter.mkdir(exist_ok=True)
        (chapter / f"{number:04}.md").write_text(text, encoding="utf-8")
        if number % 100 == 0:
            (chapter / "index.md").write_text(f"# Grown chapter {number // 100}\n\nGenerated questions.\n", encoding="utf-8")
            lines += [f"      - file: book/grown_{number // 100:02}/index\n", "        sections:\n"]
        lines.append(f"          - file: book/grown_{number // 100:02}/{number:04}\n")
    if lines:
        contents = root / "_toc.yml"
        contents.write_text(contents.read_text(encoding="utf-8").rstrip() + "\n  - caption: Grown\n    chapters:\n" + "".join(lines), encoding="utf-8")
    return wanted


def timed(arguments: list[str], folder: Path, environment: dict[str, str] | None = None) -> tuple[subprocess.CompletedProcess[str], float, float]:
    """Runs this Python with ``arguments`` in ``folder``: (what came of it, seconds by the clock, seconds of processor time)."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=environment)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def build(root: Path) -> tuple[float, float]:
    """Seconds of one `python -m course.build --no-serve` in the tree, `make book` without its setup: by the clock, and of processor time.

    Raises RuntimeError with the build's last lines where it fails or warns: a page that was left out would cost nothing.
    """
    done, took, spent = timed(["-m", "course.build", "--no-serve"], root, {**os.environ, "PYTHONPATH": str(root)})
    if done.returncode or " 0 warnings" not in done.stdout:
        raise RuntimeError(f"the build ended with {done.returncode}: {(done.stderr + done.stdout)[-800:]}")
    return took, spent


def built(size: int) -> core.Result:
    """Cold and warm builds of a book of ``size`` questions; a warm one follows a change to one question's text."""
    cold, warm = [], []
    pages = 0
    with tempfile.TemporaryDirectory() as folder:
        root = copy_tree(Path(folder) / "book")
        added = grow(root, size)
        page = questions(root)[0]
        for repeat in range(SIZES[size]):
            shutil.rmtree(root / "_build", ignore_errors=True)
            cold.append(build(root))
            page.write_text(page.read_text(encoding="utf-8") + f"\nChanged {repeat} times.\n", encoding="utf-8")
            warm.append(build(root))
        html = root / "_build/html"
        pages = sum(1 for _ in html.rglob("*.html"))
        index = (html / "searchindex.js").stat().st_size
    series = {f"{name}{kind}": ("s", [[took[n] for took in found]]) for n, kind in enumerate(("", "_cpu")) for name, found in
              (("cold_build", cold), ("warm_build", warm))}
    return core.Result(series, {"pages": pages, "search_index_bytes": index},
                       configuration={"questions": size, "generated": added, "cores": os.cpu_count()}, enough=SIZES[size])


def tests() -> core.Result:
    """One run of what `make test` runs, here: graders, wrong answers, notebooks, proofs, pages. Raises RuntimeError where a test fails."""
    done, took, spent = timed(["-m", "pytest", "tests", "solutions", "--nbval", "-n", "2", "--dist", "loadscope", "-q"], ROOT)
    if done.returncode:
        raise RuntimeError(f"the tests ended with {done.returncode}: {done.stdout[-800:]}")
    counts = {name: int(found[1]) for name in ("passed", "skipped") if (found := re.search(rf"(\d+) {name}", done.stdout))}
    return core.Result({"tests": ("s", [[took]]), "tests_cpu": ("s", [[spent]])}, counts, configuration={"cores": os.cpu_count(), "workers": 2}, enough=1)


def weight() -> core.Result:
    """Bytes of each page of the book as a browser asks for it: its HTML, gzipped as a server sends it."""
    with tempfile.TemporaryDirectory() as folder:
        root = copy_tree(Path(folder) / "book")
        build(root)
        html = root / "_build/html"
        sizes, packed = [], []
        for path in sorted(html.rglob("*.html")):
            if "_static" in path.parts:
                continue
            data = path.read_bytes()
            sizes.append(float(len(data)))
            packed.append(float(len(gzip.compress(data, 6))))
        shared = sum(path.stat().st_size for path in (html / "_static").rglob("*") if path.is_file())
        index = (html / "searchindex.js").stat().st_size
    return core.Result({"page": ("byte", [sizes]), "page_gzipped": ("byte", [packed])},
                       {"pages": len(sizes), "static_bytes": shared, "search_index_bytes": index}, enough=10)


def cases() -> list[core.Case]:
    found = [core.Case(f"build-{size:04}", f"The book with {size} questions: cold build, and again after one changed", {"questions": size},
                       lambda s=size: built(s), ("jupyter_book",)) for size in SIZES]
    found.append(core.Case("tests", "All tests of the book, once", {}, tests, ("pytest",)))
    return [core.Case("weight", "Weight of the book's pages", {}, weight, ("jupyter_book",)), *found]
