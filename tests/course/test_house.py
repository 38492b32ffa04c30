"""The real tree keeps every rule of the house; and each rule catches what it is there to catch."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from course import house

QUESTION = """\
---
question:
  asks: "What is an engine?"
  level: junior
  topics: [engine]
  minutes: 5
  provenance: seed
  seed: 1
---
# What is an engine?

## In 30 seconds
A file that holds kernels chosen for one GPU.

## In depth
An {term}`engine` is built once. It took {measured}`2026-11-22_box_one:results.p50|.1f` ms.

| part | what |
| --- | --- |
| plan | ![The plan](plan.svg) |

## Prove it
```{proof}
print(1)
```
```{output}
1
```

```{run} 2026-11-22_box_one
```

## Follow-ups
:::{dropdown} Why one?
Because.
:::
:::{dropdown} Why two?
Because.
:::
:::{dropdown} Why three?
Because.
:::

## What a weak answer says
- *"It is 10x faster."* Than what?
- *"It runs anywhere."* It runs on one
  kind of GPU.

## Rubric
| | |
| --- | --- |
| Fail | a |
| Pass | b |
| Strong | c |

## Sources
The guide {footcite}`03-guide` says so.
```{footbibliography}
```
"""

RUN = {
    "id": "2026-11-22_box_one",
    "date": "2026-11-22T10:00:00Z",
    "system": "box",
    "command": "python -m course.bench one",
    "commit": "0123abc",
    "what": "One latency",
    "status": "ok",
    "reasons": [],
    "configuration": {"batch": 1},
    "results": {"p50": 1.25},
    "accuracy": {},
    "samples": {"latency": {"unit": "ms", "values": [1.25]}},
}
SYSTEM = {
    "id": "box",
    "gpu": None,
    "driver": None,
    "cuda": None,
    "compute_capability": "9.0",
    "cpu": "a CPU",
    "os": "Linux",
    "python": "3.11",
    "packages": {"numpy": "2"},
    "clocks": {},
}
Q = "book/03_trt/questions/01_engine.md"
TREE = {
    "_config.yml": "bibtex_bibfiles:\n  - book/references.bib\n",
    "_toc.yml": """format: jb-book
root: book/index
chapters:
  - file: book/03_trt/index
    sections:
      - file: book/03_trt/questions/01_engine
      - file: notebooks/03_trt/ex01_build
      - file: solutions/03_trt/ex01_build
  - file: book/glossary
""",
    "README.md": "# Course\n\nSee [the book](book/index.md) and https://example.org and https://python.org.\n",
    "book/index.md": "# Book\n\n[Chapter](03_trt/index.md#why), [question](/book/03_trt/questions/01_engine.md#prove-it).\n",
    "book/glossary.md": "# Glossary\n\n:::{glossary}\nengine\n  What runs.\n\nplan\n  A file.\n:::\n",
    "book/03_trt/index.md": "# Chapter\n\n## Why\nRead [below](#why). It takes 5 minutes.\n\n```{quiz} 03_trt\n```\n",
    Q: QUESTION,
    "book/03_trt/questions/plan.svg": '<svg><title>t</title><desc>d</desc><path stroke="currentColor"/></svg>',
    "book/references.bib": "@misc{03-guide, title={Guide}, author={{N}}, url={https://n.com}, note={TensorRT 11.4}}\n",
    "quizzes/03_trt.yml": "chapter: 03_trt\nitems: []\n",
    "solutions/03_trt/ex01_build.py": "# %% [markdown]\n# # Build\n# See [the question](../../book/03_trt/index.md).\n\n# %%\nx = 1\n",
    "solutions/03_trt/ex01_build.ipynb": '{"cells": []}',
    "notebooks/03_trt/ex01_build.ipynb": '{"cells": []}',
    "tests/03_trt/test_ex01_build.py": "",
    **{f"tests/03_trt/right/ex01_{n}.py": "" for n in range(2)},
    **{f"tests/03_trt/wrong/ex01_{n}.py": "" for n in range(6)},
    "models/one/one.onnx": "",
    "models/one/make.py": "",
    "measurements/runs/2026-11-22_box_one.json": json.dumps(RUN),
    "measurements/systems/box.json": json.dumps(SYSTEM),
}

Break = Callable[[Path], None]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def change(file: str, old: str, new: str) -> Break:
    def apply(root: Path) -> None:
        text = (root / file).read_text(encoding="utf-8")
        assert old in text, f"{file} has no {old!r}: the test plants nothing"
        (root / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    return apply


def add(file: str, text: str = "") -> Break:
    def apply(root: Path) -> None:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        before = (root / file).read_text(encoding="utf-8") if (root / file).exists() else ""
        (root / file).write_text(before + text, encoding="utf-8")

    return apply


def remove(file: str) -> Break:
    return lambda root: (root / file).unlink()


def run_with(**changed: object) -> Break:
    return lambda root: (root / "measurements/runs/2026-11-22_box_one.json").write_text(json.dumps(RUN | changed))


def prose(text: str) -> Break:
    return add("book/03_trt/index.md", f"\n{text}\n")


# rule, what is broken, and what the message has to name: the file, and what to do
VIOLATIONS: list[tuple[str, Break, str, str]] = [
    ("question_metadata", change(Q, "---\nquestion", "--\nquestion"), Q, "start the page with it"),
    ("question_metadata", change(Q, "level: junior", "level: guru"), Q, "one of junior, mid, senior"),
    ("question_metadata", change(Q, "  level: junior\n", ""), Q, "one of junior, mid, senior"),
    ("question_metadata", change(Q, "topics: [engine]", "topics: []"), Q, "at least one word"),
    ("question_metadata", change(Q, "minutes: 5", "minutes: five"), Q, "whole number"),
    ("question_metadata", change(Q, "provenance: seed", "provenance: rumour"), Q, "one of seed"),
    ("question_metadata", change(Q, "seed: 1", "seed: 2"), Q, "make them the same"),
    ("question_metadata", change(Q, "  seed: 1", "  seed: 1\n  author: me"), Q, "unknown key 'author'"),
    ("question_metadata", change(Q, "# What is an engine?", "# What is a plan?"), Q, "make them the same"),
    ("question_metadata", change(Q, "minutes: 5", "minutes: [5"), Q, "not YAML"),
    ("question_metadata", add("book/03_trt/questions/09_x.md", QUESTION.replace("seed\n  seed: 1", "inferred")), "09_x.md", "from 11 on"),
    ("question_metadata", add("book/03_trt/questions/11_x.md", QUESTION.replace("provenance: seed", "provenance: inferred")), "11_x.md", "remove it"),
    ("question_metadata", add("book/03_trt/questions/Engine.md", QUESTION), "Engine.md", "rename it"),
    ("question_parts", change(Q, "## Rubric", "## Marks"), Q, "have to be In 30 seconds"),
    ("question_parts", change(Q, "## Prove it", "## Proofs\n\n## Prove it"), Q, "have to be In 30 seconds"),
    ("question_parts", change(Q, "A file that", "word " * 91 + "A file that"), Q, "at most 90"),
    ("question_parts", change(Q, "A file that holds kernels chosen for one GPU.", ""), Q, "says nothing"),
    ("question_parts", change(Q, "A file that", "`trt.Runtime` reads a file that"), Q, "code; say it in words"),
    ("question_parts", change(Q, "A file that", "A {term}`plan` that"), Q, "a link; say it without"),
    ("question_parts", change(Q, "A file that", "A [file](x.md) that"), Q, "a link; say it without"),
    ("question_parts", change(Q, "A file that", "- A file that"), Q, "say it in sentences"),
    ("question_parts", change(Q, "one GPU.\n", "one GPU.\n```text\nx\n```\n"), Q, "a code block"),
    ("question_parts", change(Q, "| part | what |\n| --- | --- |\n| plan | ![The plan](plan.svg) |\n", ""), Q, "no table and no drawing"),
    (
        "question_parts",
        change(Q, QUESTION[QUESTION.index("```{proof}") : QUESTION.index("## Follow-ups")], "Believe me.\n\n"),
        Q,
        "no {proof} and no {run}",
    ),
    ("question_parts", change(Q, ":::{dropdown} Why three?\nBecause.\n:::\n", ""), Q, "write 3 to 5"),
    ("question_parts", change(Q, ":::\n\n## What", ":::\n" + ":::{dropdown} Why?\nSo.\n:::\n" * 3 + "\n## What"), Q, "write 3 to 5"),
    ("question_parts", change(Q, "Why three?", "Three reasons."), Q, "question mark"),
    ("question_parts", change(Q, "Why three?\nBecause.", "Why three?\n"), Q, "has no answer"),
    ("question_parts", change(Q, '- *"It is 10x faster."* Than what?\n', ""), Q, "at least 2"),
    ("question_parts", change(Q, '*"It is 10x faster."* Than what?', '*"It is 10x faster."*'), Q, "Why it is wrong"),
    ("question_parts", change(Q, "| Strong | c |\n", ""), Q, "Fail, Pass and Strong"),
    ("question_parts", change(Q, "| Pass | b |", "| Pass | |"), Q, "Fail, Pass and Strong"),
    ("question_parts", change(Q, "```{footbibliography}\n```\n", ""), Q, "no {footbibliography}"),
    ("question_parts", change(Q, "{footcite}`03-guide` says", "says"), Q, "no {footcite}"),
    ("exercises_are_complete", remove("notebooks/03_trt/ex01_build.ipynb"), "solutions/03_trt/ex01_build.py", "make notebooks"),
    ("exercises_are_complete", remove("solutions/03_trt/ex01_build.ipynb"), "solutions/03_trt/ex01_build.py", "make notebooks"),
    ("exercises_are_complete", remove("tests/03_trt/test_ex01_build.py"), "solutions/03_trt/ex01_build.py", "write its grader"),
    ("exercises_are_complete", remove("tests/03_trt/wrong/ex01_5.py"), "solutions/03_trt/ex01_build.py", "at least 6"),
    ("exercises_are_complete", remove("tests/03_trt/right/ex01_1.py"), "solutions/03_trt/ex01_build.py", "at least 2"),
    ("exercises_are_complete", add("solutions/03_trt/ex1.py"), "solutions/03_trt/ex1.py", "rename it"),
    ("nothing_is_orphaned", add("notebooks/03_trt/ex02_x.ipynb", '{"cells": []}'), "notebooks/03_trt/ex02_x.ipynb", "write it, or remove"),
    ("nothing_is_orphaned", add("solutions/03_trt/ex02_x.ipynb", '{"cells": []}'), "solutions/03_trt/ex02_x.ipynb", "write it, or remove"),
    ("nothing_is_orphaned", add("tests/03_trt/test_ex02_x.py"), "tests/03_trt/test_ex02_x.py", "write it, or remove"),
    ("nothing_is_orphaned", add("tests/03_trt/wrong/ex02_x.py"), "tests/03_trt/wrong/ex02_x.py", "rename or remove"),
    ("nothing_is_orphaned", add("tests/03_trt/right/ex02_x.py"), "tests/03_trt/right/ex02_x.py", "rename or remove"),
    ("nothing_is_orphaned", add("solutions/04_ort/ex01_x.py"), "solutions/04_ort", "name the folder after its chapter"),
    ("nothing_is_orphaned", remove("book/03_trt/index.md"), "book/03_trt", "write its lesson"),
    ("nothing_is_orphaned", add("book/03_trt/old.svg", "<svg/>"), "book/03_trt/old.svg", "show it or remove it"),
    ("nothing_is_orphaned", remove("models/one/make.py"), "models/one/one.onnx", "add the script"),
    ("quizzes_have_a_chapter", add("quizzes/04_ort.yml", "chapter: 04_ort\n"), "quizzes/04_ort.yml", "name the quiz after its chapter"),
    ("quizzes_have_a_chapter", change("quizzes/03_trt.yml", "03_trt", "04_ort"), "quizzes/03_trt.yml", "write 03_trt"),
    ("quizzes_have_a_chapter", add("quizzes/03_trt.yml", "  - [\n"), "quizzes/03_trt.yml", "not a YAML mapping"),
    ("quizzes_have_a_chapter", change("book/03_trt/index.md", "{quiz}", "{note}"), "quizzes/03_trt.yml", "add ```{quiz} 03_trt"),
    ("contents_are_complete", change("_toc.yml", "      - file: book/03_trt/questions/01_engine\n", ""), Q, "add it"),
    ("contents_are_complete", change("_toc.yml", "      - file: solutions/03_trt/ex01_build\n", ""), "solutions/03_trt/ex01_build.ipynb", "add it"),
    ("contents_are_complete", change("_toc.yml", "      - file: notebooks/03_trt/ex01_build\n", ""), "notebooks/03_trt/ex01_build.ipynb", "add it"),
    ("contents_are_complete", add("_toc.yml", "  - file: book/none\n"), "_toc.yml:10", "remove the entry"),
    ("contents_are_complete", remove("_toc.yml"), "_toc.yml", "write it"),
    ("citations_resolve", change(Q, "`03-guide`", "`03-gide`"), Q, "'03-gide'"),
    ("citations_resolve", change(Q, "`03-guide`", "`03-guide,03-more`"), Q, "'03-more'"),
    ("citations_resolve", change(Q, "{footcite}`03-guide`", ""), "book/references.bib:1", "cite it or remove it"),
    ("citations_resolve", change("book/references.bib", "title={Guide}, ", ""), "book/references.bib:1", "no title"),
    ("citations_resolve", change("book/references.bib", "url={https://n.com}, ", ""), "book/references.bib:1", "url nor doi"),
    ("citations_resolve", change("book/references.bib", ", note={TensorRT 11.4}", ""), "book/references.bib:1", "no note"),
    ("citations_resolve", change("book/references.bib", "TensorRT 11.4", "TensorRT"), "book/references.bib:1", "no version"),
    ("citations_resolve", add("book/references.bib", TREE["book/references.bib"]), "book/references.bib:2", "keep one"),
    ("citations_resolve", add("book/more.bib"), "book/more.bib", "bibtex_bibfiles"),
    ("citations_resolve", remove("book/references.bib"), "_config.yml:2", "book/references.bib"),
    ("links_resolve", prose("[x](nowhere.md)"), "book/03_trt/index.md", "correct the path"),
    ("links_resolve", prose("[x](questions/01_engine.md#nothing)"), "book/03_trt/index.md", "#nothing"),
    ("links_resolve", prose("[x](#nothing)"), "book/03_trt/index.md", "#nothing"),
    ("links_resolve", prose("[x](/book/none.md)"), "book/03_trt/index.md", "correct the path"),
    ("links_resolve", prose("![A drawing](none.svg)"), "book/03_trt/index.md", "correct the path"),
    ("links_resolve", change(Q, "![The plan]", "![]"), Q, "no alt text"),
    ("links_resolve", prose("```{figure} questions/plan.svg\n```"), "book/03_trt/index.md", "no :alt:"),
    ("links_resolve", prose(":::{figure} none.svg\n:alt: A plan\n:::"), "book/03_trt/index.md", "correct the path"),
    ("links_resolve", prose("```{image} questions/plan.svg\n```"), "book/03_trt/index.md", "no :alt:"),
    ("links_resolve", prose("```{raw} html\n:file: none.svg\n```"), "book/03_trt/index.md", "correct the path"),
    ("links_resolve", prose("{ref}`words <nowhere>`"), "book/03_trt/index.md", "(nowhere)="),
    ("links_resolve", prose("{doc}`nowhere`"), "book/03_trt/index.md", "{doc}"),
    ("links_resolve", change("README.md", "book/index.md", "book/indx.md"), "README.md:3", "correct the path"),
    ("links_resolve", change("solutions/03_trt/ex01_build.py", "index.md", "indx.md"), "solutions/03_trt/ex01_build.py:3", "correct the path"),
    ("no_external_links", prose("See https://docs.nvidia.com/x."), "book/03_trt/index.md", "cite it with {footcite}"),
    ("no_external_links", prose("[docs](http://docs.nvidia.com)"), "book/03_trt/index.md", "cite it with {footcite}"),
    ("no_external_links", add("quizzes/03_trt.yml", "why: https://n.com\n"), "quizzes/03_trt.yml:3", "cite it"),
    ("terms_are_defined", prose("{term}`tactic`"), "book/03_trt/index.md", "'tactic'"),
    ("terms_are_defined", prose("{term}`tactics <tactic>`"), "book/03_trt/index.md", "'tactic'"),
    ("terms_are_defined", change("book/glossary.md", "plan\n", "Engine\n"), "book/glossary.md:7", "keep one"),
    *[
        ("numbers_have_a_source", prose(f"Then {text}."), "book/03_trt/index.md:" + ("11" if text.startswith("here") else "9"), "{footcite}")
        for text in (
            "it took 12 ms",
            "it took 0.5 µs",
            "it took 3 seconds",
            "it ran 1-3 us",
            "it took 20 s",
            "it is 3x faster",
            "it is 3.5× faster",
            "it is 10 times faster",
            "it is 30 % slower",
            "it is faster by 30%",
            "it moves 900 GB/s",
            "it does 5 TFLOP/s",
            "it serves 6,000 QPS",
            "it serves 100 images/s",
            "it makes 40 tokens per second",
            "a\nsecond line took 2 ms",
            "here\n\n| a | 2 ms |\n| --- | --- |\n| b | {footcite}`03-guide` |",
            "here\n\n- a takes 2 ms\n- b {footcite}`03-guide`",
        )
    ],
    ("numbers_have_a_source", change("README.md", "# Course\n", "# Course\n\nIt takes 2 ms.\n"), "README.md:3", "{measured}"),
    ("numbers_have_a_source", change("solutions/03_trt/ex01_build.py", "# See", "# In 2 ms, see"), "ex01_build.py:3", "{measured}"),
    ("numbers_have_a_source", change("book/glossary.md", "  A file.", "  A file read in 2 ms."), "book/glossary.md", "{measured}"),
    ("outputs_hold_no_times", change(Q, "```{output}\n1", "```{output}\nmedian 1.25 ms"), Q + ":27", "every machine"),
    ("outputs_hold_no_times", change(Q, "```{output}\n1", "```{output}\ntook 3.2 s"), Q + ":27", "every machine"),
    ("outputs_hold_no_times", change(Q, "```{output}\n1", "```{output}\n90 images/s"), Q + ":27", "every machine"),
    ("proofs_can_run", change(Q, "print(1)", "import tensorrt as trt"), Q, "import tensorrt_rtx"),
    ("proofs_can_run", change(Q, "print(1)", "print(1"), Q + ":24", "not Python"),
    ("runs_are_whole", run_with(extra=1), "measurements/runs/2026-11-22_box_one.json", "run_schema.json"),
    ("runs_are_whole", run_with(command=""), "measurements/runs/2026-11-22_box_one.json", "run_schema.json"),
    ("runs_are_whole", run_with(status="INVALID"), "measurements/runs/2026-11-22_box_one.json", "reasons"),
    ("runs_are_whole", run_with(status="INVALID", reasons=["hot"]), Q, "use another run"),
    ("runs_are_whole", run_with(reasons=["hot"]), "measurements/runs/2026-11-22_box_one.json", "reasons"),
    ("runs_are_whole", run_with(id="other"), "measurements/runs/2026-11-22_box_one.json", "make id and file name the same"),
    ("runs_are_whole", run_with(date="2026-11-23T10:00:00Z"), "measurements/runs/2026-11-22_box_one.json", "the day it ran"),
    ("runs_are_whole", run_with(date="yesterday"), "measurements/runs/2026-11-22_box_one.json", "run_schema.json"),
    ("runs_are_whole", run_with(system="none"), "measurements/runs/2026-11-22_box_one.json", "record the system"),
    ("runs_are_whole", run_with(results={}), Q, "no 'p50'"),
    ("runs_are_whole", run_with(results={"p50": [1]}), Q, "go on down to a number"),
    ("runs_are_whole", add("measurements/runs/x.txt"), "measurements/runs/x.txt", "move it elsewhere"),
    ("runs_are_whole", add("measurements/runs/2026-11-22_box_two.json", "{"), "2026-11-22_box_two.json", "not JSON"),
    ("runs_are_whole", add("measurements/systems/idle.json", json.dumps(SYSTEM | {"id": "idle"})), "idle.json", "remove it"),
    ("runs_are_whole", change("measurements/systems/box.json", '"packages"', '"package"'), "box.json", "run_schema.json"),
    ("runs_are_whole", change(Q, "{measured}`2026-11-22_box_one:", "{measured}`2026-11-22_box_two:"), Q + ":16", "no run"),
    ("runs_are_whole", change(Q, "|.1f`", "|.1q`"), Q + ":16", "format '.1q'"),
    ("runs_are_whole", change(Q, "{run} 2026-11-22_box_one", "{run} 2026-11-22_box_two"), Q, "record it"),
    ("no_placeholders_or_machine_paths", prose("TODO: write."), "book/03_trt/index.md:9", "finish it"),
    ("no_placeholders_or_machine_paths", prose("More coming soon."), "book/03_trt/index.md:9", "finish it"),
    ("no_placeholders_or_machine_paths", prose("In `/home/me/x.onnx`."), "book/03_trt/index.md:9", "relative to the repository"),
    ("no_placeholders_or_machine_paths", change(Q, "```{output}\n1", "```{output}\n/tmp/x"), Q, "relative to the repository"),
    ("no_placeholders_or_machine_paths", add("solutions/03_trt/ex01_build.ipynb", "/root/x"), "ex01_build.ipynb", "relative"),
    ("no_placeholders_or_machine_paths", run_with(command="python /work/x.py"), "2026-11-22_box_one.json", "relative"),
    ("no_placeholders_or_machine_paths", add("quizzes/03_trt.yml", "# FIXME\n"), "quizzes/03_trt.yml:3", "finish it"),
    ("no_exclamations", prose("It works!"), "book/03_trt/index.md:9", "full stop"),
    ("cells_hold_no_pipe", prose("| a | {measured}`2026-11-22_box_one:results.p50|.1f` |"), "book/03_trt/index.md:9", "list-table"),
    ("drawings_fit_both_themes", change("book/03_trt/questions/plan.svg", "currentColor", "black"), "plan.svg", "draw with it"),
    ("drawings_fit_both_themes", change("book/03_trt/questions/plan.svg", "<desc>d</desc>", ""), "plan.svg", "say what it shows"),
    ("drawings_fit_both_themes", change("book/03_trt/questions/plan.svg", "<path", '<image href="https://n.com/x"/><path'), "plan.svg", "another host"),
    ("drawings_fit_both_themes", prose("```{mermaid}\ngraph\n```"), "book/03_trt/index.md:9", "text or SVG"),
]


def test_the_small_tree_keeps_every_rule(tree: Path) -> None:
    assert house.check(tree) == []


@pytest.mark.parametrize(
    ("rule", "plant", "file", "fix"), VIOLATIONS, ids=[f"{r}-{n}" for n, (r, *_) in enumerate(VIOLATIONS)]
)
def test_a_planted_violation_is_caught(tree: Path, rule: str, plant: Break, file: str, fix: str) -> None:
    plant(tree)
    said = house.RULES[rule](house.Tree(tree))
    assert any(file in error.split(": ")[0] + ":" and fix in error for error in said), said
    assert all(re.match(r"\S+?(:\d+)+: \S|[^:]+:\d+: ", error) for error in said), said


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, *_ in VIOLATIONS} == set(house.RULES)


@pytest.mark.parametrize(
    "text",
    [
        "Read for 5 minutes, in 90 words, at batch 32, from 8.6 until 10.x, with 784 × 10 weights and 224×224 pixels.",
        "It took 12 ms {footcite}`03-guide`.",
        "It took\n12 ms, as the guide\nsays {footcite}`03-guide`.",
        "Write `time 12 ms` in code.",
        "A plan of 16 GB and 400 kB, opset 18, INT8, SM 9.0, H200 x2, 10 times, 30 % of nodes.",
        "See [it](questions/01_engine.md#in-30-seconds) under In 30 seconds.",
        "{term}`Engine` and {term}`engines <engine>`; `[x](nowhere.md)`; `https://n.com`; `x != y`.",
        "Look in work/ and in `solutions/work/x`.",
    ],
)
def test_what_is_right_stays_allowed(tree: Path, text: str) -> None:
    prose(text)(tree)
    assert house.check(tree) == []


@pytest.fixture(scope="module")
def real() -> house.Tree:
    return house.Tree()


@pytest.mark.parametrize("rule", house.RULES)
def test_the_course(real: house.Tree, rule: str) -> None:
    errors = house.RULES[rule](real)
    assert not errors, "\n".join(errors)


def test_the_check_is_quick() -> None:
    start = time.process_time()
    house.check()
    assert time.process_time() - start < 5
