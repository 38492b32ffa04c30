"""The rules of the house that a program can check. Each is a function from a tree to a list of errors.

    python -m course.house        print every error as path:line: what; what to do

STYLE.md and CONTRIBUTING.md say the rules in words. Here stands what makes them hold; tests/course/test_house.py plants a
violation of each. API names have their own check (`course.apinames`), proofs theirs (`course.proofs`).
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from course import ROOT, runs
from course.pages import PageError, fences, front_matter, name_of, prose, spans, without_code
from course.proofs import imports

PARTS = ("In 30 seconds", "In depth", "Prove it", "Follow-ups", "What a weak answer says", "Rubric", "Sources")
LEVELS = ("junior", "mid", "senior")
PROVENANCES = ("seed", "reported", "documented", "inferred")
SPOKEN_WORDS = 90
FOLLOW_UPS = (3, 5)
WEAK_ANSWERS = 2
RIGHT_ANSWERS, WRONG_ANSWERS = 2, 6


class Tree:
    """The repository, read once."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._read: dict[Path, str] = {}

    @functools.cached_property
    def book(self) -> dict[Path, str]:
        """Every page of the book."""
        return {path: self.read(path) for path in sorted((self.root / "book").rglob("*.md"))}

    @functools.cached_property
    def texts(self) -> dict[Path, str]:
        """Every page a reader reads as Markdown: the book, the files at the root, the text cells of the exercises."""
        found = {path: self.read(path) for path in sorted(self.root.glob("*.md"))} | self.book
        for path in sorted(self.root.glob("solutions/*/*.py")):
            found[path] = markdown_cells(self.read(path))
        return found

    @functools.cached_property
    def prose(self) -> dict[Path, list[str]]:
        return {path: prose(text) for path, text in self.texts.items()}

    @functools.cached_property
    def questions(self) -> dict[Path, str]:
        return {path: text for path, text in self.book.items() if path.parent.name == "questions"}

    @functools.cached_property
    def chapters(self) -> list[str]:
        return sorted(path.name for path in (self.root / "book").glob("[0-9]*") if path.is_dir())

    def read(self, path: Path) -> str:
        if path not in self._read:
            self._read[path] = path.read_text(encoding="utf-8")
        return self._read[path]

    def name(self, path: Path) -> str:
        return name_of(path, self.root)


def markdown_cells(source: str) -> str:
    """The text cells of a jupytext percent source, every other line blank, so that line n stays line n."""
    lines: list[str] = []
    inside = False
    for line in source.split("\n"):
        cell = line.startswith("# %%")
        if cell:
            inside = "[markdown]" in line
        lines.append(line[2:] if inside and not cell and line.startswith("# ") else "")
    return "\n".join(lines)


def _line_of(text: str, what: str, default: int = 1) -> int:
    at = text.find(what)
    return default if at < 0 else text.count("\n", 0, at) + 1


RULES: dict[str, Callable[[Tree], list[str]]] = {}


def rule(check: Callable[[Tree], Iterator[str]]) -> Callable[[Tree], list[str]]:
    @functools.wraps(check)
    def all_of(tree: Tree) -> list[str]:
        return list(check(tree))

    RULES[check.__name__] = all_of
    return all_of


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


def _parts(text: str) -> list[tuple[str, int, list[str], list[str]]]:
    """(title, line, lines, prose lines) of each part; ``lines`` hold the fences too."""
    lines, words = text.split("\n"), prose(text)
    starts = [n for n, line in enumerate(words) if line.startswith("## ")]
    return [
        (words[n][3:].strip(), n + 1, lines[n + 1 : end], words[n + 1 : end])
        for n, end in zip(starts, [*starts[1:], len(lines)], strict=True)
    ]


@rule
def question_metadata(tree: Tree) -> Iterator[str]:
    """Front matter: who asks what, at which level, and where it comes from."""
    for path, text in tree.questions.items():
        where = tree.name(path)
        try:
            data = front_matter(text).get("question")
        except PageError as problem:
            yield f"{where}:1: {problem}; correct it, see STYLE.md"
            continue
        if not isinstance(data, dict):
            yield f"{where}:1: no `question:` front matter; start the page with it, see STYLE.md"
            continue
        for key in data.keys() - {"asks", "level", "topics", "minutes", "provenance", "seed"}:
            yield f"{where}:{_line_of(text, key)}: unknown key {key!r} in the front matter; remove it"
        asks, topics, minutes = data.get("asks"), data.get("topics"), data.get("minutes")
        if not isinstance(asks, str) or not asks.strip():
            yield f"{where}:1: no `asks`; write the interviewer's words"
        heads = [line[2:].strip() for line in prose(text) if line.startswith("# ")]
        if heads != [asks]:
            yield f"{where}:{_line_of(text, '# ')}: the title {heads} is not what the page `asks`, {asks!r}; make them the same"
        if data.get("level") not in LEVELS:
            yield f"{where}:{_line_of(text, 'level')}: level {data.get('level')!r}; write one of {', '.join(LEVELS)}"
        if not (isinstance(topics, list) and topics and all(isinstance(topic, str) for topic in topics)):
            yield f"{where}:{_line_of(text, 'topics')}: topics {topics!r}; write a list of at least one word"
        if isinstance(minutes, bool) or not isinstance(minutes, int) or not 1 <= minutes <= 60:
            yield f"{where}:{_line_of(text, 'minutes')}: minutes {minutes!r}; write a whole number from 1 to 60"
        if data.get("provenance") not in PROVENANCES:
            yield f"{where}:{_line_of(text, 'provenance')}: provenance {data.get('provenance')!r}; write one of {', '.join(PROVENANCES)}"
        number = re.match(r"(\d\d)_[a-z0-9_]+\.md$", path.name)
        if not number:
            yield f"{where}:1: the file's name is not NN_slug.md in lower case; rename it"
        elif data.get("provenance") == "seed":
            if data.get("seed") != int(number[1]):
                yield f"{where}:{_line_of(text, 'seed')}: seed {data.get('seed')!r} in a file numbered {number[1]}; make them the same"
        elif "seed" in data:
            yield f"{where}:{_line_of(text, 'seed:')}: `seed` without provenance seed; remove it"
        elif int(number[1]) < 11:
            yield f"{where}:1: the numbers up to 10 are the seed's; number other questions of a chapter from 11 on"


@rule
def question_parts(tree: Tree) -> Iterator[str]:
    """The seven parts, in order, each with what it needs."""
    for path, text in tree.questions.items():
        where = tree.name(path)
        parts = _parts(text)
        titles = [title for title, *_ in parts]
        if titles != list(PARTS):
            line = next((line for (title, line, *_), part in zip(parts, PARTS, strict=False) if title != part), 1)
            yield f"{where}:{line}: the parts are {', '.join(titles) or 'none'}; they have to be {', '.join(PARTS)}"
        for title, line, lines, words in parts:
            if title in _PART_CHECKS:
                for offset, what in _PART_CHECKS[title](lines, words):
                    yield f"{where}:{line + offset}: {title}: {what}"


Found = Iterator[tuple[int, str]]


def _spoken(lines: list[str], words: list[str]) -> Found:
    said = " ".join(re.sub(r"\{[a-z:]+\}`[^`]*`", " ", line) if "{footcite" in line else line for line in words)
    count = len(re.findall(r"[^\W_][^\s]*", re.sub(r"\{[\w:]+\}`([^`<]*)(?:<[^`]*>)?`", r"\1", said)))
    if not count:
        yield 0, "it says nothing; write the answer as you would say it aloud"
    if count > SPOKEN_WORDS:
        yield 0, f"{count} words; say it in at most {SPOKEN_WORDS}"
    for n, (line, word) in enumerate(zip(lines, words, strict=True), 1):
        if line.strip() and not word.strip():
            yield n, "a code block or another directive; say it in words"
            break
        if any(span.role in ("", "code", "api") for span in spans(word)):
            yield n, "code; say it in words"
        if any(span.role in ("term", "ref", "doc", "any", "numref") for span in spans(word)) or "](" in word:
            yield n, "a link; say it without"
        if re.match(r"\s*([-*+]|\d+[.)])\s", word) or word.startswith("|"):
            yield n, "a list or a table; say it in sentences"


def _depth(lines: list[str], words: list[str]) -> Found:
    block = "\n".join(lines)
    table = re.search(r"^\s*\|.*\|\s*$", block, re.MULTILINE)
    drawing = re.search(r"^[ ]*(`{3,}|:{3,})(text|\{(figure|image|raw|list-table|table|csv-table)\})", block, re.MULTILINE)
    if not (table or drawing or "![" in block):
        yield 0, "no table and no drawing; add one"


def _proved(lines: list[str], words: list[str]) -> Found:
    if not any(fence.name in ("proof", "run") for fence in fences("\n".join(lines))):
        yield 0, "no {proof} and no {run}; show it with one"


_DROPDOWN = re.compile(r"^(?P<mark>:{3,}|`{3,})\{dropdown\}[ ]*(?P<title>.*?)[ ]*$")


def _follow_ups(lines: list[str], words: list[str]) -> Found:
    found = [(n, match) for n, line in enumerate(lines, 1) if (match := _DROPDOWN.match(line))]
    low, high = FOLLOW_UPS
    if not low <= len(found) <= high:
        yield 0, f"{len(found)} follow-ups; write {low} to {high}, each as :::{{dropdown}} The question?"
    for n, match in found:
        if not match["title"].endswith("?"):
            yield n, f"the title {match['title']!r} does not end with a question mark; ask it"
        body = lines[n : next((m for m in range(n, len(lines)) if lines[m].strip() == match["mark"]), n)]
        if not any(line.strip() and not re.match(r"^:[\w-]+:", line) for line in body):
            yield n, f"{match['title']!r} has no answer (or is not closed with {match['mark']}); answer it"


def _weak(lines: list[str], words: list[str]) -> Found:
    items = [(n, text) for n, text in _blocks(words) if text.lstrip().startswith("- ")]
    if len(items) < WEAK_ANSWERS:
        yield 0, f"{len(items)} weak answers; write at least {WEAK_ANSWERS} as list items"
    for n, text in items:
        if not re.match(r'\s*- \*["“].+?["”]\*\s+\S', text):
            yield n, 'write it as - *"What a candidate says."* Why it is wrong.'


def _rubric(lines: list[str], words: list[str]) -> Found:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|", 1)] for line in words if line.strip().startswith("|")]
    graded = [row for row in rows if row[0] in ("Fail", "Pass", "Strong")]
    if [row[0] for row in graded] != ["Fail", "Pass", "Strong"] or any(len(row) < 2 or not row[1] for row in graded):
        yield 0, "the table needs the rows Fail, Pass and Strong, in this order, each with its text"


def _sources(lines: list[str], words: list[str]) -> Found:
    if not any(fence.name == "footbibliography" for fence in fences("\n".join(lines))):
        yield 0, "no {footbibliography}; add it at the end"
    if not any(span.role.startswith("footcite") for line in words for span in spans(line)):
        yield 0, "no {footcite}; say in prose what each source was used for"


_PART_CHECKS: dict[str, Callable[[list[str], list[str]], Found]] = {
    "In 30 seconds": _spoken,
    "In depth": _depth,
    "Prove it": _proved,
    "Follow-ups": _follow_ups,
    "What a weak answer says": _weak,
    "Rubric": _rubric,
    "Sources": _sources,
}


# ---------------------------------------------------------------------------------------------------------------------
# Trees: the same stem names the same thing everywhere
# ---------------------------------------------------------------------------------------------------------------------


def _toc(tree: Tree) -> tuple[dict[str, int], str]:
    """The documents of _toc.yml, each with its line; and its text."""
    path = tree.root / "_toc.yml"
    if not path.exists():
        return {}, ""
    text = tree.read(path)
    files: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            files.extend(str(value) for key, value in node.items() if key in ("file", "root"))
            if "glob" in node:
                files.extend(
                    p.relative_to(tree.root).with_suffix("").as_posix()
                    for p in sorted(tree.root.glob(str(node["glob"])))
                    if p.suffix in (".md", ".ipynb")
                )
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(yaml.safe_load(text))
    return {file: _line_of(text, file) for file in files}, text


@rule
def exercises_are_complete(tree: Tree) -> Iterator[str]:
    """Every source has its notebooks, its grader, its right and wrong answers."""
    for source in sorted(tree.root.glob("solutions/*/ex*.py")):
        chapter, stem, where = source.parent.name, source.stem, tree.name(source)
        if not re.fullmatch(r"ex\d\d_[a-z0-9_]+", stem):
            yield f"{where}:1: the file's name is not exNN_slug.py in lower case; rename it"
        for folder, file, how in (
            ("notebooks", f"{stem}.ipynb", "run `make notebooks`"),
            ("solutions", f"{stem}.ipynb", "run `make notebooks`"),
            ("tests", f"test_{stem}.py", "write its grader"),
        ):
            if not (tree.root / folder / chapter / file).exists():
                yield f"{where}:1: {folder}/{chapter}/{file} is missing; {how}"
        for kind, least in (("right", RIGHT_ANSWERS), ("wrong", WRONG_ANSWERS)):
            count = len(list((tree.root / "tests" / chapter / kind).glob(f"{stem[:4]}_*.py")))
            if count < least:
                yield f"{where}:1: {count} answers in tests/{chapter}/{kind}/{stem[:4]}_*.py; write at least {least}"


@rule
def nothing_is_orphaned(tree: Tree) -> Iterator[str]:
    """Every generated or dependent file has what it belongs to."""
    for pattern, prefix in (
        ("notebooks/*/*.ipynb", ""),
        ("solutions/*/*.ipynb", ""),
        ("tests/[0-9]*/test_*.py", "test_"),
    ):
        for path in sorted(tree.root.glob(pattern)):
            if re.fullmatch(r"test_claims(_[a-z]+)?_gpu\.py", path.name):      # what a chapter's pages say and only a GPU can prove
                continue
            source = f"solutions/{path.parent.name}/{path.stem.removeprefix(prefix)}.py"
            if not (tree.root / source).exists():
                yield f"{tree.name(path)}:1: there is no {source} that it belongs to; write it, or remove this file"
    answers = [*tree.root.glob("tests/[0-9]*/right/*.py"), *tree.root.glob("tests/[0-9]*/wrong/*.py")]
    for path in sorted(answers):
        chapter, number = path.parent.parent.name, path.name.split("_")[0]
        if not list((tree.root / "solutions" / chapter).glob(f"{number}_*.py")):
            yield f"{tree.name(path)}:1: there is no solutions/{chapter}/{number}_*.py that it answers; rename or remove it"
    for folder in ("solutions", "notebooks", "tests"):
        for path in sorted((tree.root / folder).glob("[0-9]*")):
            if path.is_dir() and path.name not in tree.chapters and any(path.rglob("*.*")):
                yield f"{tree.name(path)}:1: there is no chapter book/{path.name}; name the folder after its chapter"
    for chapter in tree.chapters:
        if not (tree.root / "book" / chapter / "index.md").exists():
            yield f"book/{chapter}:1: the chapter has no index.md; write its lesson"
    used = "\n".join(tree.texts.values())
    for path in sorted((tree.root / "book").rglob("*")):
        if path.suffix in (".svg", ".png", ".jpg", ".jpeg") and path.name not in used:
            yield f"{tree.name(path)}:1: no page shows this file; show it or remove it"
    for path in sorted((tree.root / "models").glob("*/*.onnx")):
        if not list(path.parent.glob("*.py")):
            yield f"{tree.name(path)}:1: no script beside the model makes it; add the script"


@rule
def quizzes_have_a_chapter(tree: Tree) -> Iterator[str]:
    """Every quiz belongs to a chapter and is shown on one of its pages."""
    for path in sorted((tree.root / "quizzes").glob("*.y*ml")):
        where, text = tree.name(path), tree.read(path)
        if path.stem not in tree.chapters:
            yield f"{where}:1: there is no chapter book/{path.stem}; name the quiz after its chapter"
            continue
        try:
            said = (yaml.safe_load(text) or {}).get("chapter")
        except (yaml.YAMLError, AttributeError) as problem:
            yield f"{where}:1: not a YAML mapping: {str(problem).splitlines()[0]}; correct it"
            continue
        if said != path.stem:
            yield f"{where}:{_line_of(text, 'chapter:')}: chapter {said!r}; write {path.stem}, as the file is named"
        pages = [t for p, t in tree.book.items() if p.is_relative_to(tree.root / "book" / path.stem)]
        shown = any(f.name == "quiz" and path.stem in (f.argument.strip(), f.body.strip()) for t in pages for f in fences(t))
        if not shown:
            yield f"{where}:1: no page of book/{path.stem} shows it; add ```{{quiz}} {path.stem} to the lesson"


@rule
def contents_are_complete(tree: Tree) -> Iterator[str]:
    """_toc.yml names every page and every exercise, and nothing else."""
    listed, text = _toc(tree)
    if not text:
        yield "_toc.yml:1: there is none; write it"
        return
    for file, line in listed.items():
        if not any((tree.root / f"{file}{suffix}").exists() for suffix in ("", ".md", ".ipynb")):
            yield f"_toc.yml:{line}: there is no {file}.md or .ipynb; write it, or remove the entry"
    pages = [*tree.book, *tree.root.glob("notebooks/*/*.ipynb"), *tree.root.glob("solutions/*/*.ipynb")]
    for path in sorted(pages):
        if path.relative_to(tree.root).with_suffix("").as_posix() not in listed:
            yield f"{tree.name(path)}:1: not in _toc.yml; add it"


# ---------------------------------------------------------------------------------------------------------------------
# Sources, links, terms
# ---------------------------------------------------------------------------------------------------------------------

_ENTRY = re.compile(r"^\s*@(?P<kind>\w+)\s*\{\s*(?P<key>[^,\s]+)\s*,", re.MULTILINE)
_CITES = ("footcite", "cite")


def _fields(entry: str) -> dict[str, str]:
    """The fields of one BibTeX entry, written name={...} or name="..."."""
    fields: dict[str, str] = {}
    at = 0
    while found := re.compile(r"(\w+)\s*=\s*([{\"])").search(entry, at):
        depth, start = 1, found.end()
        end = start
        while end < len(entry) and depth:
            if found[2] == '"':
                depth -= entry[end] == '"'
            else:
                depth += (entry[end] == "{") - (entry[end] == "}")
            end += 1
        fields[found[1].lower()] = entry[start : end - 1].strip()
        at = end
    return fields


@rule
def citations_resolve(tree: Tree) -> Iterator[str]:
    """Every source that is cited is defined, is cited if it is defined, and says what it is and of which version."""
    config = tree.root / "_config.yml"
    settings = (yaml.safe_load(tree.read(config)) or {}) if config.exists() else {}
    listed = [tree.root / file for file in settings.get("bibtex_bibfiles") or []]
    for path in sorted((tree.root / "book").rglob("*.bib")):
        if path not in listed:
            yield f"{tree.name(path)}:1: not in bibtex_bibfiles of _config.yml, so no page sees it; list it, or remove it"
    defined: dict[str, str] = {}
    for path in listed:
        if not path.exists():
            yield f"_config.yml:{_line_of(tree.read(config), path.name)}: there is no {tree.name(path)}; write it"
            continue
        text, where = tree.read(path), tree.name(path)
        entries = list(_ENTRY.finditer(text))
        for entry, end in zip(entries, [*(e.start() for e in entries[1:]), len(text)], strict=True):
            key, line = entry["key"], text.count("\n", 0, entry.start("kind")) + 1
            if key in defined:
                yield f"{where}:{line}: {key} is defined at {defined[key]} too; keep one"
            defined.setdefault(key, f"{where}:{line}")
            fields = _fields(text[entry.end() : end])
            if not fields.get("title"):
                yield f"{where}:{line}: {key} has no title; add it"
            if not fields.get("url") and not fields.get("doi"):
                yield f"{where}:{line}: {key} has neither url nor doi; add one"
            if not fields.get("note"):
                yield f"{where}:{line}: {key} has no note; say there which version it is of"
            elif not re.search(r"\d", fields["note"]):
                yield f"{where}:{line}: the note of {key} names no version and no date; add what it is of, or when it was read"
    cited: set[str] = set()
    for path, lines in tree.prose.items():
        for n, line in enumerate(lines, 1):
            for span in spans(line, n):
                if span.role.split(":")[0] in _CITES:
                    for key in (part.strip() for part in re.sub(r"\{[^}]*\}", "", span.text).split(",")):
                        cited.add(key)
                        if key not in defined:
                            yield f"{tree.name(path)}:{n}: no source has the key {key!r}; define it in a .bib file, or correct it"
    for path in sorted((tree.root / "quizzes").glob("*.y*ml")):
        cited.update(key.strip() for found in re.findall(r"\{footcite[^}]*\}`([^`]+)`", tree.read(path)) for key in found.split(","))
    for key, where in defined.items():
        if key not in cited:
            yield f"{where}: nothing cites {key}; cite it or remove it"


_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target><[^>]*>|[^()\s]*(?:\([^()]*\)[^()\s]*)*)(?:\s+\"[^\"]*\")?\)")
_EXTERNAL = re.compile(r"https?://(?P<host>[\w.-]+)")
_ALLOWED_HOSTS = re.compile(r"(localhost|127\.0\.0\.1|([\w-]+\.)?example\.(org|com))$")


def _slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and myst_heading_anchors make it."""
    text = re.sub(r"\{[\w:]+\}`([^`<]*?)\s*(?:<[^`]*>)?`", r"\1", heading).replace("`", "")
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@functools.cache
def _anchors(text: str) -> frozenset[str]:
    found: set[str] = set()
    counts: dict[str, int] = {}
    for line in prose(text):
        if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            slug = _slug(heading[1])
            found.add(f"{slug}-{counts[slug]}" if slug in counts else slug)
            counts[slug] = counts.get(slug, 0) + 1
        if target := re.match(r"\s*\(([^()]+)\)=\s*$", line):
            found.add(target[1])
        found.update(re.findall(r"\bid=\"([^\"]+)\"", line))
    for fence in fences(text):
        if fence.name == "run":
            found.add(f"run-{fence.argument.strip()}")
        found.update(re.findall(r"^:name:\s*(\S+)", fence.body, re.MULTILINE))
    return frozenset(found)


def _page_text(tree: Tree, path: Path) -> str | None:
    """The Markdown of a page that may be linked into; None where anchors cannot be told."""
    if path.suffix == ".md":
        return tree.read(path)
    if path.suffix == ".ipynb":
        cells = json.loads(tree.read(path)).get("cells", [])
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return None


@rule
def links_resolve(tree: Tree) -> Iterator[str]:
    """Every relative link, anchor, image and included file exists; an image says what it shows."""
    labels = {anchor for text in tree.texts.values() for anchor in _anchors(text)}
    for path, lines in tree.prose.items():
        where = tree.name(path)
        for n, line in enumerate(lines, 1):
            if figure := _FIGURE.match(line):
                yield from _link(tree, path, n, figure["target"])
                options = "\n".join(lines[n : n + 8]).split("\n\n")[0]
                if not re.search(r"^\s*:alt:\s*\S", options, re.MULTILINE):
                    yield f"{where}:{n}: the figure has no :alt:; say what it shows"
            for link in _LINK.finditer(without_code(line)):
                target = link["target"].strip("<>")
                if re.match(r"[a-z][a-z0-9+.-]*:", target) or not target:
                    continue
                if link["image"] and not link["text"].strip():
                    yield f"{where}:{n}: the image {target} has no alt text; say what it shows"
                yield from _link(tree, path, n, target)
            for span in spans(line, n):
                target = re.sub(r"^.*<([^>]+)>$", r"\1", span.text)
                if span.role == "ref" and target not in labels:
                    yield f"{where}:{n}: no page has the label ({target})=; define it or correct the {{ref}}"
                elif span.role in ("doc", "download"):
                    base = tree.root / target.lstrip("/") if target.startswith("/") else path.parent / target
                    if not any(base.with_name(base.name + suffix).exists() for suffix in ("", ".md", ".ipynb")):
                        yield f"{where}:{n}: there is no {target}; correct the {{{span.role}}}"
        for fence in fences(tree.texts[path]):
            targets = re.findall(r"^:file:\s*(\S+)", fence.body, re.MULTILINE) if fence.name in ("raw", "csv-table") else []
            if fence.name in ("image", "include", "literalinclude"):
                targets.append(fence.argument.strip())
                if fence.name == "image" and not re.search(r"^:alt:\s*\S", fence.body, re.MULTILINE):
                    yield f"{where}:{fence.first}: the image has no :alt:; say what it shows"
            for target in targets:
                yield from _link(tree, path, fence.first, target)


_FIGURE = re.compile(r"^\s*[`:]{3,}\{figure\}[ ]*(?P<target>\S+)\s*$")


def _link(tree: Tree, path: Path, line: int, target: str) -> Iterator[str]:
    where = f"{tree.name(path)}:{line}"
    file, _, anchor = target.partition("#")
    there = path if not file else (tree.root / file[1:] if file.startswith("/") else path.parent / file)
    if not there.exists():
        yield f"{where}: the link {target} leads to no file; correct the path"
        return
    if anchor:
        text = tree.texts.get(path) if not file else _page_text(tree, there)
        if text is not None and anchor not in _anchors(text):
            yield f"{where}: {file or 'this page'} has no heading or label #{anchor}; correct it, or add ({anchor})= there"


@rule
def no_external_links(tree: Tree) -> Iterator[str]:
    """The prose leads to no other host: sources are in the .bib files, cited with {footcite}."""
    free = re.compile(r"(README|CONTRIBUTING|CHANGELOG|ERRATA|LICENSE)")
    shown = {path: lines for path, lines in tree.prose.items() if not (path.parent == tree.root and free.match(path.name))}
    shown |= {path: tree.read(path).split("\n") for path in sorted((tree.root / "quizzes").glob("*.y*ml"))}
    for path, lines in shown.items():
        for n, line in enumerate(lines, 1):
            for found in _EXTERNAL.finditer(without_code(line)):
                if not _ALLOWED_HOSTS.match(found["host"]):
                    yield f"{tree.name(path)}:{n}: a link to {found['host']}; put the source in a .bib file and cite it with {{footcite}}"


@rule
def terms_are_defined(tree: Tree) -> Iterator[str]:
    """Every {term} is in a glossary, once."""
    terms: dict[str, str] = {}
    for path, text in tree.book.items():
        inside = ""
        for n, line in enumerate(text.split("\n"), 1):
            opened = re.match(r"^(:{3,}|`{3,})\{glossary\}", line)
            if opened:
                inside = opened[1]
            elif inside and line.strip() == inside:
                inside = ""
            elif inside and line.strip() and not line[0].isspace() and not line.startswith(":"):
                key = line.strip().lower()
                if key in terms:
                    yield f"{tree.name(path)}:{n}: the term {line.strip()!r} is defined at {terms[key]} too; keep one"
                terms.setdefault(key, f"{tree.name(path)}:{n}")
    for path, lines in tree.prose.items():
        for n, line in enumerate(lines, 1):
            for span in spans(line, n):
                term = " ".join(re.sub(r"^.*<([^>]+)>$", r"\1", span.text).split())
                if span.role == "term" and term.lower() not in terms:
                    yield f"{tree.name(path)}:{n}: the glossary has no term {term!r}; define it there, or link another"


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and runs
# ---------------------------------------------------------------------------------------------------------------------

_NUMBER = r"(?<![\w.,/])(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_SPACE = r"[ \u00a0\u2009]?"
_TIME = r"(?:ms|µs|μs|us|ns|msec|usec|nsec|(?:milli|micro|nano)?seconds?|sec)\b"
_RATE = (
    r"(?:[KMGT]i?B(?:/s|ps)\b|[KMGTP]?bit/s\b|[KMGTP]?FLOPS?(?:/s)?\b|T?OPS\b|qps\b|rps\b|fps\b|QPS\b|RPS\b|FPS\b|"
    r"\w+/s(?:ec(?:ond)?)?\b|(?:images|tokens|queries|requests|samples|inferences|frames)\s(?:per|a)\ssecond\b)"
)
_COMPARED = r"(?:faster|slower|quicker|as fast|as slow|the speed|the throughput|the latency|speed-?up|lower latency|higher throughput|more throughput|less time)"
_MEASURED = re.compile(
    "|".join(
        (
            rf"{_NUMBER}{_SPACE}{_TIME}",
            rf"{_NUMBER}[ \u00a0\u2009]s\b(?!-)",
            r"(?<![\w.,/])\d+\.\d+s\b",
            rf"{_NUMBER}{_SPACE}{_RATE}",
            rf"{_NUMBER}{_SPACE}×(?!{_SPACE}\d)",
            rf"{_NUMBER}x\b(?!\s?\d)",
            rf"{_NUMBER}{_SPACE}(?:x|×|times|-?fold)\s+{_COMPARED}",
            rf"{_NUMBER}-fold\b",
            rf"{_NUMBER}{_SPACE}(?:%|percent)\s+(?:{_COMPARED}|of the (?:time|latency|throughput|peak))",
            rf"(?:faster|slower|speed-?up|speeds? up)[^.|]{{0,20}}{_NUMBER}{_SPACE}(?:%|percent\b)",
        )
    )
)
_QUOTED = re.compile(r"\*[\"“][^*]*[\"”]\*")  # what a candidate says


def _blocks(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(line, text) of each paragraph, table row and list item."""
    start, block = 0, ""
    for n, line in enumerate([*lines, ""], 1):
        alone = re.match(r"\s*(\||#|:{3,})", line)  # a table row, a heading, the mark of a container
        if block and (not line.strip() or alone or re.match(r"\s*([-*+]|\d+[.)])\s", line)):
            yield start, block
            block = ""
        if alone:
            yield n, line
        elif line.strip():
            start, block = (start, f"{block} {line.strip()}") if block else (n, line)


@rule
def numbers_have_a_source(tree: Tree) -> Iterator[str]:
    """No number with a unit of time, rate or speed-up without its run or its citation beside it."""
    for path, lines in tree.prose.items():
        if path.parent == tree.root and path.name != "README.md":
            continue
        for n, block in _blocks(lines):
            if block.startswith("#") or any(s.role.startswith(("measured", "footcite")) for s in spans(block)):
                continue
            text = _QUOTED.sub("", without_code(block)).replace("In 30 seconds", "")
            for found in _MEASURED.finditer(text):
                what = found[0].strip()
                yield f"{tree.name(path)}:{n}: {what!r} has no run and no source beside it; use {{measured}}, or cite it with {{footcite}}"


@rule
def outputs_hold_no_times(tree: Tree) -> Iterator[str]:
    """What a proof prints is the same on every machine."""
    for path, text in tree.book.items():
        for fence in fences(text):
            if fence.name != "output":
                continue
            for n, line in enumerate(fence.body.split("\n"), fence.first + 1):
                if found := re.search(rf"{_NUMBER}{_SPACE}(?:{_TIME}|{_RATE}|s\b)", line):
                    yield f"{tree.name(path)}:{n}: the output holds a time or a rate, {found[0]!r}; print what is the same on every machine"


@rule
def proofs_can_run(tree: Tree) -> Iterator[str]:
    """A proof that needs what a laptop cannot have would never be run."""
    for path, text in tree.book.items():
        for fence in fences(text):
            if fence.name == "proof" and "tensorrt" in imports(fence.body):
                yield f"{tree.name(path)}:{fence.first}: the proof imports tensorrt, which runs on no CPU; import tensorrt_rtx"
            if fence.name == "proof":
                try:
                    ast.parse(fence.body)
                except SyntaxError as problem:
                    line = fence.first + (problem.lineno or 1)
                    yield f"{tree.name(path)}:{line}: not Python: {problem.msg}; correct it"


@rule
def runs_are_whole(tree: Tree) -> Iterator[str]:
    """Every run and system has the form of course/run_schema.json, and every reference to one resolves."""
    import jsonschema

    schema = json.loads(Path(__file__).with_name("run_schema.json").read_text(encoding="utf-8"))
    systems_used: set[str] = set()
    for kind in ("run", "system"):
        check = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]})
        for path in sorted((tree.root / "measurements" / f"{kind}s").glob("*")):
            where = tree.name(path)
            if path.suffix != ".json":
                yield f"{where}:1: not a .json file; move it elsewhere"
                continue
            try:
                data = json.loads(tree.read(path))
            except ValueError as problem:
                yield f"{where}:1: not JSON: {problem}; record the run again"
                continue
            for problem in sorted(check.iter_errors(data), key=str):
                at = ".".join(map(str, problem.absolute_path)) or "the top"
                yield f"{where}:1: at {at}: {problem.message[:200]}; see course/run_schema.json"
            if isinstance(data, dict):
                if data.get("id") != path.stem:
                    yield f"{where}:1: its id is {data.get('id')!r}; make id and file name the same"
                if kind == "run":
                    systems_used.add(str(data.get("system")))
                    if str(data.get("date", ""))[:10] != path.name[:10]:
                        yield f"{where}:1: its date is {data.get('date')!r}; begin the file's name with the day it ran"
                    if not runs.system_path(tree.root, str(data.get("system"))).exists():
                        yield f"{where}:1: there is no measurements/systems/{data.get('system')}.json; record the system"
                elif path.stem not in systems_used:
                    yield f"{where}:1: no run was made on this system; remove it, or name it in its runs"
    for path, lines in tree.prose.items():
        for n, line in enumerate(lines, 1):
            for span in spans(line, n):
                if span.role == "measured":
                    try:
                        if not runs.measured(tree.root, span.text).valid:
                            yield f"{tree.name(path)}:{n}: {{measured}}`{span.text}`: the run is INVALID; use another run"
                    except runs.RunError as problem:
                        yield f"{tree.name(path)}:{n}: {{measured}}`{span.text}`: {problem}"
        for fence in fences(tree.texts[path]):
            if fence.name == "run" and not runs.run_path(tree.root, fence.argument.strip()).exists():
                yield f"{tree.name(path)}:{fence.first}: {{run}}: there is no measurements/runs/{fence.argument.strip()}.json; record it"


# ---------------------------------------------------------------------------------------------------------------------
# Sentences
# ---------------------------------------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\b(TODO|FIXME|TBD|XXX)\b|\b(lorem ipsum|coming soon|as an AI\b)", re.IGNORECASE)
_MACHINE = re.compile(r"(?<![\w.~)}\]*-])/(?:root|work|home|tmp|Users)/|(?<![\w.])/root\b|\b[A-Z]:\\\\?Users\\")


@rule
def no_placeholders_or_machine_paths(tree: Tree) -> Iterator[str]:
    """What a reader gets is finished, and speaks of no one's machine."""
    patterns = ("*.md", "book/**/*.md", "book/**/*.bib", "quizzes/*.y*ml", "solutions/*/*", "notebooks/*/*", "measurements/*/*.json")
    for path in sorted({path for pattern in patterns for path in tree.root.glob(pattern) if path.is_file()}):
        if path.suffix not in (".md", ".bib", ".yml", ".yaml", ".py", ".ipynb", ".json"):
            continue
        for n, line in enumerate(tree.read(path).split("\n"), 1):
            if len(line) > 20_000:  # an image in a notebook's output
                continue
            if found := _PLACEHOLDER.search(line):
                yield f"{tree.name(path)}:{n}: {found[0]!r} is a placeholder; finish it or leave it out"
            if found := _MACHINE.search(line):
                yield f"{tree.name(path)}:{n}: {found[0]!r} is a path of one machine; use a path relative to the repository"


@rule
def no_exclamations(tree: Tree) -> Iterator[str]:
    """No exclamation marks in the book's prose."""
    for path in tree.book:
        for n, line in enumerate(tree.prose[path], 1):
            if re.search(r"\w[)\"”*]*!(?:[\s\"”)*]|$)", without_code(line)):
                yield f"{tree.name(path)}:{n}: an exclamation mark; end the sentence with a full stop"


@rule
def cells_hold_no_pipe(tree: Tree) -> Iterator[str]:
    """A cell of a pipe table ends at the next pipe, inside a role too."""
    for path in tree.book:
        for n, line in enumerate(tree.prose[path], 1):
            if line.startswith("|") and (found := re.search(r"\{measured\}`[^`|]*\|[^`]*`", line)):
                yield f"{tree.name(path)}:{n}: {found[0]} has a pipe, where the table's cell would end; write a {{list-table}}"


@rule
def drawings_fit_both_themes(tree: Tree) -> Iterator[str]:
    """A drawing takes its colours from the page, describes itself, and asks no other host for anything."""
    for path in sorted((tree.root / "book").rglob("*.svg")):
        where, text = tree.name(path), tree.read(path)
        if "currentColor" not in text:
            yield f"{where}:1: no currentColor, so it is lost on one of the two themes; draw with it"
        if not (re.search(r"<title[ >]", text) and re.search(r"<desc[ >]", text)):
            yield f"{where}:1: no <title> and <desc>; say what it shows to who cannot see it"
        for found in re.finditer(r"(?:href|src)=\"(?:https?:)?//[^\"]*\"|url\(['\"]?(?:https?:)?//", text):
            yield f"{where}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]} asks another host; put it into the file"
    for path, text in tree.book.items():
        for fence in fences(text):
            if fence.name == "mermaid" or fence.argument.strip() == "mermaid":
                yield f"{tree.name(path)}:{fence.first}: Mermaid needs another host; draw it as text or SVG"


# ---------------------------------------------------------------------------------------------------------------------


def check(root: Path = ROOT) -> list[str]:
    tree = Tree(root)
    return [error for rule_ in RULES.values() for error in rule_(tree)]


def main() -> int:
    errors = check()
    for error in errors:
        print(error)
    print(f"{len(RULES)} rules, {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
