"""The pages' own directives and roles, in a small book built by Sphinx."""

from __future__ import annotations

import io
import json
import re
from html import unescape
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the book's tools are not installed here")

CONF = """
extensions = ["myst_nb", "sphinx_design", "sphinxcontrib.bibtex", "course.questions"]
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "as_written"
html_theme = "basic"
root_doc = "index"
exclude_patterns = ["out", "measurements"]
"""
FRONT = """---
question:
  asks: "What is it?"
  level: senior
  topics: [one, two]
  minutes: 7
  provenance: seed
  seed: 3
---
# What is it?
"""
RUN = {
    "id": "2026-11-22_box_one",
    "date": "2026-11-22T10:00:00Z",
    "system": "box",
    "command": "python -m bench --one",
    "commit": "0123abcd",
    "what": "One latency",
    "status": "ok",
    "reasons": [],
    "results": {"p50": [1.2345]},
}
SYSTEM = {"id": "box", "gpu": "A GPU", "driver": "580", "cuda": "13.0", "python": "3.11", "packages": {"numpy": "2"}}
NUMBER = "{measured}`2026-11-22_box_one:results.p50[0]|.2f`"


class Book:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("conf.py", CONF)
        self.write("references.bib", "@misc{guide, title={How TensorRT Works}, url={https://n.com}, note={1}}\n")
        self.write("index.md", "# Book\n")
        self.write("measurements/systems/box.json", json.dumps(SYSTEM))
        self.run()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def run(self, **changed: object) -> None:
        self.write("measurements/runs/2026-11-22_box_one.json", json.dumps(RUN | changed))

    def build(self, parallel: int = 0) -> tuple[str, list[str]]:
        """The warnings, and the pages that were read."""
        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace

        status, warning = io.StringIO(), io.StringIO()
        out = self.root / "out"
        with docutils_namespace():
            app = Sphinx(self.root, self.root, out, out / "doctrees", "html", status=status, warning=warning, parallel=parallel)
            app.build()
        read = re.findall(r"reading sources\.\.\. .*?\[\s*\d+%\] (?:\x1b\S*?m)?([\w/.]+)", status.getvalue())
        return re.sub(r"\x1b\[[\d;]*m", "", warning.getvalue()), read

    def html(self, page: str = "index") -> str:
        return (self.root / f"out/{page}.html").read_text(encoding="utf-8")

    def text(self, page: str = "index") -> str:
        return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", self.html(page))))


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def test_a_question_says_what_it_is_under_its_title(book: Book) -> None:
    book.write("index.md", FRONT + "\nText.\n")
    assert not book.build()[0]
    assert re.search(r"</h1>\s*<p class=\"question-banner\">", book.html())
    assert "senior · 7 minutes · one, two · Seed question 3" in book.text()


def test_a_question_says_what_it_was_seen_on(book: Book) -> None:
    system = {**SYSTEM, "id": "gpu", "gpu": "NVIDIA H100 80GB HBM3", "packages": {"tensorrt": "8.6.0", "numpy": "2"}}
    book.write("measurements/systems/gpu.json", json.dumps(system))
    for n, status in (("1", "ok"), ("2", "ok"), ("3", "INVALID")):
        run = {**RUN, "id": f"2026-11-2{n}_gpu_trt.one", "system": "gpu", "status": status, "reasons": [] if status == "ok" else ["spread"]}
        book.write(f"measurements/runs/2026-11-2{n}_gpu_trt.one.json", json.dumps(run))
    book.write("requirements.txt", "onnxruntime==1.31.1 \\\n    --hash=x\ntensorrt-rtx==1.7.1\n")
    numbers = "".join(f"{{measured}}`2026-11-2{n}_gpu_trt.one:results.p50[0]|.2f` " for n in "11")
    proof = "```{proof}\nimport onnxruntime as ort\nimport tensorrt_rtx as trt\n```\n```python\nimport onnx\n```\n"
    book.write("index.md", FRONT + numbers + "\n\n```{run} 2026-11-22_gpu_trt.one\n```\n```{run} 2026-11-23_gpu_trt.one\n```\n" + proof)
    book.build()
    assert ("Seen: run by the tests on a CPU: TensorRT for RTX 1.7.1 (builds only), ONNX Runtime 1.31.1 · "
            "recorded on an H100: TensorRT 8.6.0 (2 runs)") in book.text()
    assert "INVALID" in book.text()  # its box is shown; it is nothing that was seen to work


def test_a_question_without_runs_and_engines_claims_nothing(book: Book) -> None:
    book.write("index.md", FRONT + "\nText.\n")
    book.build()
    assert "Seen:" not in book.text()


@pytest.mark.parametrize("about, way, packages, want", [
    ("gpu.bert-b1-trt", "trt", {"tensorrt": "8.6.0", "onnx": "1"}, "TensorRT 8.6.0"),
    ("gpu.bert-b1-compile", "compile", {"onnxruntime-gpu": "1.31.1", "torch": "2.11.0"}, "PyTorch 2.11.0"),
    ("gpu.bert-b1-ort", "ort", {"onnxruntime-gpu": "1.31.1", "torch": "2.11.0"}, "ONNX Runtime (GPU) 1.31.1"),
    ("micro.copy", None, {"onnxruntime-gpu": "1.31.1", "torch": "2.11.0"}, "PyTorch 2.11.0"),
    ("04-ex07-grader", None, {"onnxruntime-gpu": "1.31.1", "torch": "2.11.0"}, "ONNX Runtime (GPU) 1.31.1"),
    ("book.build-0150", None, {"onnxruntime": "1.31.1"}, ""),
])
def test_a_run_is_about_one_engine(about, way, packages, want) -> None:
    from course.questions import engine_of
    assert engine_of({"id": f"2026-11-22_box_{about}", "configuration": {"way": way}}, {"packages": packages}) == want


def test_the_newest_run_of_each_grader_is_listed(book: Book) -> None:
    book.write("conf.py", CONF.replace('"course.questions"', '"course.questions", "course.figures"'))
    book.write("measurements/systems/gpu.json", json.dumps({**SYSTEM, "id": "gpu", "gpu": "NVIDIA H100 80GB HBM3, 81559 MiB", "packages": {"tensorrt": "8.6.0"}}))

    def put(day: str, exercise: str, passed: int, status: str = "ok", tests: str | None = None) -> None:
        run = {**RUN, "id": f"{day}_gpu_03-{exercise}grader", "date": f"{day}T10:00:00Z", "system": "gpu", "status": status, "reasons": [] if status == "ok" else ["it ended early"],
               "configuration": {"tests": tests} if tests else {}, "results": {"passed": passed, "failed": 1, "skipped": 2}}
        book.write(f"measurements/runs/{run['id']}.json", json.dumps(run))

    put("2026-11-20", "", 9)  # the first run names no tests: there was one exercise
    for day, passed in (("2026-11-21", 5), ("2026-11-22", 6)):
        put(day, "ex02-", passed, tests="tests/03_tensorrt/test_ex02_dynamic_shapes.py")
    put("2026-11-23", "ex02-", 7, "INVALID", "tests/03_tensorrt/test_ex02_dynamic_shapes.py")
    book.write("index.md", "# Book\n\n```{graded-table} 03_tensorrt\n```\n")
    assert not book.build()[0]
    assert ("exercise checks passed not run there on 1 9 of 10 2 TensorRT 8.6.0, NVIDIA H100 80GB HBM3, 2026-11-20 "
            "2 6 of 7 2 TensorRT 8.6.0, NVIDIA H100 80GB HBM3, 2026-11-22") in book.text()


def test_a_page_that_is_no_question_has_no_such_line(book: Book) -> None:
    book.build()
    assert "question-banner" not in book.html()


def test_proof_and_output_show_their_text_as_it_is(book: Book) -> None:
    proof = "```{proof}\n:x = 1\nprint('<b>')\n```\n```{output}\n---\n<b> *not* `markdown`\n```\n"
    book.write("index.md", f"# Book\n\n{proof}\n:::{{dropdown}} Why?\n{proof}:::\n")
    assert not book.build()[0]
    assert book.html().count("highlight-python") == 2
    assert book.text().count("Proof :x = 1 print('<b>') prints --- <b> *not* `markdown`") == 2


def test_api_shows_name_and_range(book: Book) -> None:
    book.write("index.md", "# Book\n\n{api}`trt.BuilderFlag.FP16 (until 10.16)`\n")
    assert not book.build()[0]
    assert "trt.BuilderFlag.FP16 (until 10.16)" in book.text()
    assert re.search(r"<code[^>]*><span class=\"pre\">trt\.BuilderFlag\.FP16</span></code>", book.html())


def test_api_without_range_is_a_warning(book: Book) -> None:
    book.write("index.md", "# Book\n\n{api}`trt.Builder`\n")
    assert "index.md:3: WARNING: {api}`trt.Builder` has no range" in book.build()[0]


def test_a_number_says_where_it_is_from_and_links_to_its_box(book: Book) -> None:
    book.write("index.md", f"# Book\n\nTook {NUMBER} ms.\n")
    assert not book.build()[0]
    found = re.search(r'<a class="measured" href="(_downloads/[^"]*/2026-11-22_box_one.json)" title="results.p50\[0\] of the run [^"]*A GPU">1.23</a> ms', book.html())
    assert json.loads((book.root / "out" / found[1]).read_text())["results"]["p50"][0] == pytest.approx(1.23, abs=0.005)
    book.write("index.md", f"# Book\n\nTook {NUMBER} ms.\n\n```{{run}} 2026-11-22_box_one\n```\n")
    assert not book.build()[0]
    assert re.search(r'<a class="measured[^>]* href="#run-2026-11-22_box_one"[^>]*>1.23</a> ms', book.html())
    assert 'id="run-2026-11-22_box_one"' in book.html()


def test_the_box_of_a_run_names_machine_versions_date_command(book: Book) -> None:
    book.write("index.md", "# Book\n\n```{run} 2026-11-22_box_one\n```\n")
    assert not book.build()[0]
    for part in ("A GPU", "driver 580", "CUDA 13.0", "Python 3.11, numpy 2", "2026-11-22 10:00 UTC", "python -m bench --one", "0123abcd", "ok"):
        assert part in book.text(), part
    assert list((book.root / "out/_downloads").glob("*/2026-11-22_box_one.json"))


def test_an_invalid_run_shows_no_number(book: Book) -> None:
    book.run(status="INVALID", reasons=["clocks moved"])
    book.write("index.md", f"# Book\n\nTook {NUMBER} ms.\n\n```{{run}} 2026-11-22_box_one\n```\n")
    assert "the run is INVALID" in book.build()[0]
    assert "Recorded run INVALID" in book.text() and "clocks moved" in book.text() and "Took INVALID ms" in book.text()
    assert "1.23" not in book.text()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{measured}`none:results.p50`", "there is no run 'none'"),
        ("{measured}`2026-11-22_box_one:results.p99`", "no 'p99' at 'results'; its keys are p50"),
        ("{measured}`2026-11-22_box_one:results.p50[3]`", "it has 1 entries"),
        ("{measured}`2026-11-22_box_one:results.p50`", "not a number"),
        ("{measured}`2026-11-22_box_one:results.p50[0]|.q`", "format '.q' does not fit"),
        ("{measured}`2026-11-22_box_one`", "not of the form"),
        ("```{run} none\n```", "there is no run 'none'"),
    ],
)
def test_what_is_not_there_is_a_warning_with_the_page(book: Book, written: str, said: str) -> None:
    book.write("index.md", f"# Book\n\n{written}\n")
    warnings = book.build()[0]
    assert "index.md:3: WARNING: index: {" in warnings and said in warnings


def test_pages_follow_the_files_they_show(book: Book) -> None:
    book.write("book/01_one/questions/11_what.md", FRONT)
    book.write("list.md", "# List\n\n```{question-list} 01_one\n```\n")
    book.write("number.md", f"# Number\n\n{NUMBER}\n")
    book.write("index.md", "# Book\n\n```{toctree}\nlist\nnumber\nbook/01_one/questions/11_what\n```\n")
    assert not book.build()[0]
    assert 'href="book/01_one/questions/11_what.html"' in book.html("list")
    assert "What is it? senior · 7 min" in book.text("list") and "1.23" in book.text("number")
    assert book.build()[1] == []

    book.run(results={"p50": [4.5678]})
    assert book.build()[1] == ["number"]
    assert "4.57" in book.text("number")

    book.write("book/01_one/questions/11_what.md", FRONT.replace("minutes: 7", "minutes: 9"))
    assert sorted(book.build()[1]) == ["book/01_one/questions/11_what", "list"]
    assert "senior · 9 min" in book.text("list")

    book.write("book/01_one/questions/12_more.md", FRONT.replace("What is it?", "What more?"))
    assert sorted(book.build()[1]) == ["book/01_one/questions/12_more", "list"]
    assert "What more?" in book.text("list")


def test_parallel_reading_gives_the_same_pages(book: Book) -> None:
    names = [f"page{n}" for n in range(8)]
    for name in names:
        book.write(f"{name}.md", FRONT + f"\n{NUMBER}\n\n```{{question-list}} 01_one\n```\n")
    book.write("book/01_one/questions/11_what.md", FRONT)
    book.write("index.md", "# Book\n\n```{toctree}\n" + "\n".join([*names, "book/01_one/questions/11_what"]) + "\n```\n")
    assert not book.build(parallel=2)[0]
    assert all("1.23" in book.text(name) and "Seed question 3" in book.text(name) for name in names)
    book.write("book/01_one/questions/12_more.md", FRONT)
    book.build(parallel=2)
    assert all("12_more.html" in book.html(name) for name in names)


def test_citations_keep_their_titles_and_warn_of_nothing(book: Book) -> None:
    book.write("index.md", "# Book\n\nSo {footcite}`guide`.\n\n```{footbibliography}\n```\n")
    assert not book.build()[0]
    assert "How TensorRT Works" in book.text() and "footnotes" not in book.html()
    book.write("index.md", "# Book\n\nSo {footcite}`gide`.\n\n```{footbibliography}\n```\n")
    assert "gide" in book.build()[0]
