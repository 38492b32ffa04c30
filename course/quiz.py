"""Quizzes: the banks in quizzes/<chapter>.yml, shown in the book and in a notebook.

In a notebook:          from course.quiz import show; show("03_tensorrt")
In a page of the book:  ```{quiz} 03_tensorrt       with "course.quiz" among Sphinx's extensions
In a shell:             python -m course.quiz [BANK ...] [--preview PAGE.html]

A bank is YAML, checked against course/quiz_schema.json and against what a schema cannot say. A malformed item becomes a
box that says what is wrong; the other items, and the other pages, are not touched by it. Python writes all of the HTML;
course/quiz.js makes it answer.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import hashlib
import html
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ASSETS = ("quiz.css", "quiz.js")


# ---------------------------------------------------------------------------------------------------------------------
# Banks
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong in a bank, and where. `item` and `field` are empty where the file as a whole is meant."""

    file: str
    line: int
    item: str
    field: str
    message: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def what(self) -> str:
        return ": ".join(part for part in (self.item, self.field, self.message) if part)

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a bank. `data` follows the schema if there are no `problems`."""

    number: int  # from 1
    name: str
    line: int
    data: Any
    problems: tuple[Problem, ...]

    @property
    def hash(self) -> str:
        """Changes with every edit: an answer is saved under it, so an edited item forgets its old answer."""
        text = json.dumps(self.data, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def page(self, chapter: str) -> str:
        """The page that teaches it: its path in book/, without .md."""
        question = self.data["question"]
        return question if "/" in question else f"{chapter}/questions/{question}"


@dataclasses.dataclass(frozen=True)
class Bank:
    """A file of quizzes/. `problems` are those of the file as a whole; each item has its own."""

    file: str
    chapter: str
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]

    @property
    def all_problems(self) -> list[Problem]:
        return [*self.problems, *(problem for item in self.items for problem in item.problems)]


def shown_path(path: Path) -> str:
    """A file's name for a message: from the repository's root if it is in there, else from here, else in full."""
    for base in (ROOT, Path.cwd()):
        try:
            return path.resolve().relative_to(base).as_posix()
        except ValueError:
            pass
    return path.as_posix()


def load_bank(path: Path | str, book: Path | None = None) -> Bank:
    """Reads and checks a bank. With `book` (the folder book/) it also checks that the question pages exist.

    A file with errors is no exception: what is wrong is in the bank's and the items' `problems`.
    Raises FileNotFoundError if there is no such file.
    """
    path = Path(path)
    file, chapter = shown_path(path), path.stem

    def broken(line: int, message: str) -> Bank:
        return Bank(file, chapter, (), (Problem(file, line, "", "", message),))

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return broken(1, f"is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8")
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        why = ", ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None)))) or str(error)
        column = f", column {mark.column + 1}" if mark else ""
        return broken(mark.line + 1 if mark else 1, f"is not YAML{column}: {why}. Is a text with ':' or '#' in quotes?")
    except (ValueError, RecursionError) as error:  # a date such as 2026-13-45; an alias that contains itself
        return broken(1, f"is not YAML that can be read: {error}")
    if not isinstance(data, dict):
        return broken(1, "has to be a mapping with `chapter` and `items`")

    found: list[tuple[tuple, str]] = [*_schema_errors(data), *_repeated_keys(tree)]
    if isinstance(data.get("chapter"), str) and data["chapter"] != chapter:
        found.append((("chapter",), f"is {data['chapter']!r}, but the file's name says {chapter!r}"))
    entries = data["items"] if isinstance(data.get("items"), list) else []
    bad = {path[1] for path, _ in found if path[:1] == ("items",) and len(path) > 1}
    for index, entry in enumerate(entries):
        if index not in bad:
            found += [(("items", index, *where), message) for where, message in _item_errors(entry)]
            if book:
                found += [(("items", index, *where), message) for where, message in _page_errors(entry, chapter, book)]
    found += _repeated_ids(entries)

    def name(index: int) -> str:
        entry = entries[index]
        own = entry.get("id") if isinstance(entry, dict) else None
        return f"item '{own}' (no. {index + 1})" if isinstance(own, str) and own else f"item no. {index + 1}"

    problems: dict[int | None, dict[Problem, None]] = {}  # dicts keep order and drop doubles
    for where, message in found:
        of_item = len(where) > 1 and where[0] == "items" and isinstance(where[1], int) and where[1] < len(entries)
        index = where[1] if of_item else None
        field = where[2:] if of_item else where
        problem = Problem(file, _line(tree, where), name(index) if of_item else "", _dotted(field), message)
        problems.setdefault(index, {})[problem] = None

    return Bank(
        file,
        chapter,
        tuple(
            Item(i + 1, name(i), _line(tree, ("items", i)), entry, tuple(problems.get(i, ())))
            for i, entry in enumerate(entries)
        ),
        tuple(problems.get(None, ())),
    )


def _dotted(path: tuple) -> str:
    """('choices', 2, 'why') -> choices[2].why"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _line(node: Any, path: tuple) -> int:
    """The line of a field, or of the nearest thing around it that is there."""
    line = node.start_mark.line + 1
    for step in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in reversed(node.value) if k.value == step), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        else:
            break
    return line


def _repeated_keys(tree: Any) -> Iterator[tuple[tuple, str]]:
    """YAML would keep the last of two equal keys and drop the other without a word."""

    def walk(node: Any, path: tuple, above: frozenset) -> Iterator[tuple[tuple, str]]:
        if id(node) in above:
            return
        above = above | {id(node)}
        if isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                yield from walk(child, (*path, i), above)
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, child in node.value:
                if isinstance(key.value, str):
                    line = key.start_mark.line + 1
                    if key.value in seen:
                        yield (*path, key.value), f"is there twice, on the lines {seen[key.value]} and {line}"
                    seen[key.value] = line
                    yield from walk(child, (*path, key.value), above)

    return walk(tree, (), frozenset())


@functools.cache
def _validator() -> Any:
    import jsonschema

    schema = json.loads((HERE / "quiz_schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _schema_errors(data: dict) -> Iterator[tuple[tuple, str]]:
    """The schema's complaints as (path of the field, what to do)."""
    for error in sorted(_validator().iter_errors(data), key=lambda error: [str(step) for step in error.absolute_path]):
        path, value, limit = tuple(error.absolute_path), error.instance, error.validator_value
        got = _short(value)
        if error.validator == "required":
            for missing in limit:
                if missing not in value:
                    yield (*path, missing), "is missing"
        elif error.validator == "additionalProperties":
            known = list(error.schema["properties"])
            for extra in value:
                if extra not in known:
                    near = difflib.get_close_matches(str(extra), known, 1)
                    has = f"did you mean `{near[0]}`?" if near else "there are " + ", ".join(f"`{k}`" for k in known)
                    yield (*path, str(extra)), f"is no field of this: {has}"
        elif error.validator == "type":
            kind = {"string": "a text", "number": "a number", "boolean": "true or false", "array": "a list"}
            hint = ""
            if limit == "string" and not isinstance(value, (dict, list, type(None))):
                hint = ": put it in quotes"
            if limit == "string" and isinstance(value, dict):
                hint = ": a text with a colon in it has to be in quotes"
            if limit == "number" and isinstance(value, str):
                hint = ": write a plain number, 4096 or 4.1e+3, without quotes, commas or unit"
            yield path, f"has to be {kind.get(limit, 'a mapping of fields')}, not {got}{hint}"
        elif error.validator == "enum":
            yield path, f"has to be one of {', '.join(limit)}, not {got}"
        elif error.validator == "minItems":
            yield path, f"has {len(value)}, and has to have at least {limit}"
        elif error.validator == "minimum":
            yield path, f"is {got}, and cannot be below {limit}"
        elif error.validator in ("pattern", "minLength"):
            if not value.strip():
                yield path, "is empty"
                continue
            form = {
                "id": "lower case letters and digits with hyphens, like plan-portability",
                "chapter": "a folder of book/, like 03_tensorrt",
                "question": "a page's name without .md, like 01_what_is_tensorrt, or its path in book/ without .md, "
                "like 04_onnxruntime/questions/04_what_is_onnx_runtime",
                "unit": "a unit alone, without a number, like MiB",
            }.get(path[-1] if path else "", limit)
            yield path, f"is {got}, and has to be {form}"
        else:
            yield path, error.message


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _item_errors(item: dict) -> Iterator[tuple[tuple, str]]:
    """What the schema cannot say about an item that follows it."""
    if item["kind"] == "numeric":
        numbers = [(("answer",), item["answer"]), (("tolerance",), item.get("tolerance", 0))]
        for i, mistake in enumerate(item["mistakes"]):
            numbers += [(("mistakes", i, key), mistake[key]) for key in ("value", "tolerance") if key in mistake]
        infinite = [(where, "is not a finite number") for where, number in numbers if not math.isfinite(number)]
        if infinite:
            yield from infinite
            return
        own = item.get("tolerance", 0)
        taken = [("the answer", item["answer"], own)]
        for i, mistake in enumerate(item["mistakes"]):
            value, tolerance = mistake["value"], mistake.get("tolerance", own)
            for what, other, around in taken:
                if abs(value - other) <= tolerance + around:
                    this, that = f"{_number(value)} ± {_number(tolerance)}", f"{_number(other)} ± {_number(around)}"
                    yield ("mistakes", i, "value"), f"{this} meets {what}, {that}: a number would be both"
                    break
            taken.append((f"mistakes[{i}]", value, tolerance))
        return
    choices = item["choices"]
    right = [i for i, choice in enumerate(choices) if choice.get("correct", False)]
    if item["kind"] == "single" and len(right) != 1:
        which = "; correct are " + ", ".join(f"choices[{i}]" for i in right) if right else ""
        yield ("choices",), f"a single item has exactly one choice with `correct: true`, this has {len(right)}{which}"
    if item["kind"] == "multiple" and not right:
        yield ("choices",), "a multiple item has at least one choice with `correct: true`, this has none"
    if item["kind"] == "multiple" and len(right) == len(choices):
        yield ("choices",), "a multiple item has at least one choice that is not correct, this has none"
    seen: dict[str, int] = {}
    for i, choice in enumerate(choices):
        text = " ".join(choice["text"].split()).casefold()
        if text in seen:
            yield ("choices", i, "text"), f"is the same text as choices[{seen[text]}]"
        seen.setdefault(text, i)


def _page_errors(item: dict, chapter: str, book: Path) -> Iterator[tuple[tuple, str]]:
    page = Item(0, "", 0, item, ()).page(chapter)
    if not (book / f"{page}.md").is_file():
        there = [p.relative_to(book).with_suffix("").as_posix() for p in book.glob("*/questions/*.md")]
        near = difflib.get_close_matches(page, there, 1, 0.75)
        yield ("question",), f"there is no page book/{page}.md" + (f": did you mean {near[0]}?" if near else "")


def _repeated_ids(entries: list) -> Iterator[tuple[tuple, str]]:
    seen: dict[str, int] = {}
    for i, entry in enumerate(entries):
        own = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(own, str):
            if own in seen:
                yield ("items", i, "id"), f"'{own}' is the id of item no. {seen[own] + 1} already"
            seen.setdefault(own, i)


# ---------------------------------------------------------------------------------------------------------------------
# HTML
# ---------------------------------------------------------------------------------------------------------------------

# JupyterLab's command mode takes Enter, the arrows and single letters for itself in an output too, unless the very element
# that has the focus says no.
_OWN_KEYS = ' data-lm-suppress-shortcuts="true"'
_API = re.compile(r"\{api\}`([^`(]+?)\s*(?:\(([^`)]*)\))?`")


@functools.cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("zero", {"html": False}).enable(["escape", "backticks", "emphasis", "entity"])


def inline(text: str) -> str:
    """Inline Markdown as HTML: `code`, *emphasis*, **strong**, {api}`name (range)`; anything else is text."""
    plain = _API.sub(lambda m: f"`{m[1]}`" + (f" ({m[2]})" if m[2] else ""), " ".join(text.split()))
    return _markdown().renderInline(plain)


def _number(value: float, unit: str = "") -> str:
    whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    text = f"{int(value):,}" if whole else f"{value:,}"
    return f"{text}\u00a0{html.escape(unit)}" if unit else text


def error_html(problems: list[Problem] | tuple[Problem, ...], what: str) -> str:
    lines = "".join(f"<li><code>{html.escape(p.place)}</code>: {html.escape(p.what)}</li>" for p in problems)
    return f'<div class="icq-error"><p><strong>{html.escape(what)}</strong></p><ul>{lines}</ul></div>'


def _item_html(item: Item, prefix: str, position: int, total: int, link: str) -> str:
    """One item. `prefix` begins each id and is unique on the page; `link` is HTML, or empty."""
    data, own = item.data, f"{prefix}-{item.data['id']}"
    attributes = {"data-item": data["id"], "data-kind": data["kind"], "data-hash": item.hash}
    if data["kind"] == "numeric":
        body, key = _numeric_html(data, own)
        tolerance = data.get("tolerance", 0)
        mistakes = [{"value": m["value"], "tolerance": m.get("tolerance", tolerance)} for m in data["mistakes"]]
        attributes["data-key"] = json.dumps({"answer": data["answer"], "tolerance": tolerance, "mistakes": mistakes})
        attributes["data-unit"] = data.get("unit", "")
    else:
        body, key = _choices_html(data, own)
    attribute_text = " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())
    more = f'<p class="icq-more">Taught in {link}</p>' if link else ""
    return f"""<div class="icq-item" {attribute_text}>
<fieldset>
<legend><span class="icq-number">Question {position} of {total}</span> <span class="icq-stem">{inline(data["stem"])}</span></legend>
{body}
<div class="icq-buttons"><button type="button" class="icq-check"{_OWN_KEYS}>Check</button>\
<button type="button" class="icq-again"{_OWN_KEYS} hidden>Try again</button></div>
<div class="icq-result" id="{own}-result" role="status" aria-live="polite"></div>
<details class="icq-key"><summary{_OWN_KEYS}>Answer and reasons</summary>{key}</details>
{more}
</fieldset>
</div>"""


def _choices_html(data: dict, own: str) -> tuple[str, str]:
    single = data["kind"] == "single"
    rows, reasons = [], []
    for i, choice in enumerate(data["choices"]):
        correct, text = choice.get("correct", False), inline(choice["text"])
        rows.append(
            f'<li class="icq-choice"><label><input type="{"radio" if single else "checkbox"}" name="{own}" value="{i}" '
            f'id="{own}-{i}" autocomplete="off"{_OWN_KEYS}><span class="icq-text">{text}</span></label></li>'
        )
        reasons.append(
            f'<li data-choice="{i}" data-correct="{str(correct).lower()}"><strong>{"Right" if correct else "Wrong"}:</strong> '
            f'{text}. <span class="icq-reason">{inline(choice["why"])}</span></li>'
        )
    hint = "Choose one." if single else "Choose every right one."
    return (
        f'<p class="icq-hint">{hint}</p>\n<ul class="icq-choices" role="list">{"".join(rows)}</ul>',
        f"<ul>{''.join(reasons)}</ul>",
    )


def _numeric_html(data: dict, own: str) -> tuple[str, str]:
    unit = data.get("unit", "")
    hint = "Type a number" + (f", in {html.escape(unit)}" if unit else "") + "."
    body = (
        f'<p class="icq-hint" id="{own}-hint">{hint}</p>\n<div class="icq-entry"><label for="{own}-0">Your answer</label>'
        f'<input type="text" inputmode="decimal" id="{own}-0" name="{own}" autocomplete="off" autocapitalize="off" '
        f'spellcheck="false" aria-describedby="{own}-hint {own}-result"{_OWN_KEYS}>'
        + (f'<span class="icq-unit" aria-hidden="true">{html.escape(unit)}</span>' if unit else "")
        + "</div>"
    )
    tolerance = data.get("tolerance", 0)
    around = f", give or take {_number(tolerance, unit)}" if tolerance else ""
    mistakes = "".join(
        f'<li data-mistake="{i}"><strong>Not {_number(m["value"], unit)}:</strong> '
        f'<span class="icq-reason">{inline(m["why"])}</span></li>'
        for i, m in enumerate(data["mistakes"])
    )
    key = (
        f'<p data-answer><strong>Answer: {_number(data["answer"], unit)}</strong>{around}. '
        f'<span class="icq-reason">{inline(data["why"])}</span></p><ul>{mistakes}</ul>'
    )
    return body, key


def bank_html(bank: Bank, prefix: str, link: Callable[[Item], str]) -> str:
    """The quiz of a bank. `prefix` begins its ids, unique on its page; `link(item)` is the link to what teaches it."""
    good = [item for item in bank.items if not item.problems]
    parts = [error_html(bank.problems, f"The quiz {bank.chapter} has an error.")] if bank.problems else []
    position = 0
    for item in bank.items:
        if item.problems:
            parts.append(error_html(item.problems, "This quiz item has an error and is left out."))
        else:
            position += 1
            parts.append(_item_html(item, prefix, position, len(good), link(item)))
    return f"""<div class="icq" id="{prefix}" data-quiz="{html.escape(bank.chapter)}" role="group" \
aria-label="Quiz {html.escape(bank.chapter)}">
{"".join(parts)}
<div class="icq-footer" hidden><p class="icq-score"></p><p class="icq-note"></p>\
<div class="icq-buttons"><button type="button" class="icq-restart"{_OWN_KEYS}>Start over</button></div></div>
</div>"""


# ---------------------------------------------------------------------------------------------------------------------
# Notebook and preview
# ---------------------------------------------------------------------------------------------------------------------


class Quiz:
    """What `show` returns: a notebook displays it."""

    def __init__(self, bank: Bank, content: str):
        self.bank = bank
        self._content = content

    def _repr_html_(self) -> str:
        css, js = ((HERE / name).read_text(encoding="utf-8") for name in ASSETS)
        return f"<style>{css}</style>\n{self._content}\n<script>{js}</script>"

    def __repr__(self) -> str:
        return "\n".join([f"Quiz {self.bank.chapter}: {len(self.bank.items)} items", *map(str, self.bank.all_problems)])


def show(chapter: str, folder: Path | str | None = None) -> Quiz:
    """The quiz of a chapter, for a notebook: show("03_tensorrt"). It needs no network.

    chapter: a file's name in quizzes/, without .yml.
    folder: where the banks are; the repository's quizzes/ without it.
    Raises FileNotFoundError if there is no such quiz.
    """
    folder = Path(folder) if folder else ROOT / "quizzes"
    path = folder / f"{chapter}.yml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yml"))) or "none"
        raise FileNotFoundError(f"there is no quiz {chapter!r} in {shown_path(folder)}/; there are: {there}")
    bank = load_bank(path)
    # Random, since another kernel's output may be on the same page.
    prefix = f"quiz-{secrets.token_hex(4)}"
    return Quiz(bank, bank_html(bank, prefix, lambda item: _file_link(item.page(bank.chapter), Path.cwd())))


def _file_link(page: str, start: Path) -> str:
    """A link to a page's Markdown from a file in `start`; its name alone where the book is not there."""
    path = ROOT / "book" / f"{page}.md"
    try:
        title = re.search(r"^# +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        href = Path(os.path.relpath(path, start)).as_posix()
    except (OSError, ValueError):  # no such page; another drive
        return f"<code>book/{html.escape(page)}.md</code>"
    return f'<a href="{html.escape(href)}"{_OWN_KEYS}>{inline(title[1]) if title else html.escape(page)}</a>'


def preview_html(banks: list[Bank], start: Path) -> str:
    """A whole page with these quizzes, for a file in the folder `start`."""
    css, js = ((HERE / name).read_text(encoding="utf-8") for name in ASSETS)
    quizzes = "\n".join(
        f"<h1>{html.escape(bank.chapter)}</h1>\n"
        + bank_html(bank, f"quiz-{i}", lambda item, bank=bank: _file_link(item.page(bank.chapter), start))
        for i, bank in enumerate(banks)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Quiz</title><style>:root {{ color-scheme: light dark; }}
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font-family: sans-serif; }}
{css}</style></head><body><main>
{quizzes}
</main><script>{js}</script></body></html>
"""


# ---------------------------------------------------------------------------------------------------------------------
# Sphinx
# ---------------------------------------------------------------------------------------------------------------------


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls it. Nothing above needs Sphinx: a notebook shows a quiz without it.

    The directive puts an empty `raw` node that carries the bank into the page; its HTML is written when the titles and
    addresses of all pages are known.
    """
    from docutils import nodes
    from sphinx.util import logging
    from sphinx.util.docutils import SphinxDirective
    from sphinx.util.fileutil import copy_asset_file

    logger = logging.getLogger(__name__)

    class QuizDirective(SphinxDirective):
        required_arguments = 1
        has_content = False

        def run(self) -> list[nodes.Node]:
            chapter = self.arguments[0].strip()
            folder = Path(self.env.srcdir) / self.config.quiz_dir
            path = folder / f"{chapter}.yml"
            self.env.note_dependency(str(path))  # also one that is missing: its page is read again once it is there
            if path.is_file():
                bank = load_bank(path)
            else:
                there = ", ".join(sorted(p.stem for p in folder.glob("*.yml"))) or "none"
                source, line = self.get_source_info()
                page = shown_path(Path(source))
                bank = Bank(page, chapter, (), (
                    Problem(page, line, "", "quiz", f"there is no {shown_path(path)}; there are: {there}"),
                ))
            for problem in bank.all_problems:
                logger.warning("%s", problem.what, location=problem.place, type="quiz")
            for item in bank.items:
                if not item.problems:
                    page = Path(self.env.srcdir) / f"{self.config.quiz_book}/{item.page(bank.chapter)}.md"
                    if page.is_file():
                        self.env.note_dependency(str(page))  # its title is shown
            node = nodes.raw("", "", format="html")
            node["quiz_bank"] = bank
            node["quiz_prefix"] = f"quiz-{self.env.new_serialno('quiz')}"
            self.set_source_info(node)
            return [node]

    def quiz_nodes(doctree: nodes.document) -> list[nodes.raw]:
        return [node for node in doctree.findall(nodes.raw) if "quiz_bank" in node]

    def write(app: Any, doctree: nodes.document, docname: str) -> None:
        for node in quiz_nodes(doctree):
            bank = node["quiz_bank"]

            def link(item: Item, bank: Bank = bank) -> str:
                page = f"{app.config.quiz_book}/{item.page(bank.chapter)}".lstrip("/")
                if page not in app.env.found_docs:
                    logger.warning(
                        "%s: question: the page %s is not in the book", item.name, page,
                        location=f"{bank.file}:{item.line}", type="quiz",
                    )
                    return ""
                title = app.env.titles[page].astext() if page in app.env.titles else page
                uri = app.builder.get_relative_uri(docname, page) if app.builder.format == "html" else ""
                return f'<a class="reference internal" href="{html.escape(uri)}">{html.escape(title)}</a>'

            content = bank_html(bank, node["quiz_prefix"], link)
            node.rawsource = content
            node.children = []
            node += nodes.Text(content)

    def add_assets(app: Any, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
        if doctree is not None and quiz_nodes(doctree):
            app.add_css_file("quiz.css")
            app.add_js_file("quiz.js", loading_method="defer")

    def copy_assets(app: Any) -> None:
        if app.builder.format == "html":
            static = Path(app.outdir) / "_static"
            static.mkdir(parents=True, exist_ok=True)
            for name in ASSETS:
                copy_asset_file(HERE / name, static)

    app.add_config_value("quiz_dir", "quizzes", "env", [str])
    app.add_config_value("quiz_book", "book", "env", [str])
    app.add_directive("quiz", QuizDirective)
    app.connect("builder-inited", copy_assets)
    app.connect("doctree-resolved", write)
    app.connect("html-page-context", add_assets)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}


# ---------------------------------------------------------------------------------------------------------------------
# Shell
# ---------------------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.quiz", description="Check the quiz banks.")
    parser.add_argument("banks", nargs="*", type=Path, help="YAML files; every bank of quizzes/ without it")
    parser.add_argument("--preview", type=Path, metavar="PAGE.html", help="also write a page with these quizzes")
    options = parser.parse_args(arguments)
    paths = options.banks or sorted((ROOT / "quizzes").glob("*.yml"))
    if not paths:
        print("there are no banks in quizzes/", file=sys.stderr)
        return 1
    missing = [path for path in paths if not path.is_file()]
    for path in missing:
        print(f"{path}: there is no such file", file=sys.stderr)
    banks = [load_bank(path, ROOT / "book") for path in paths if path not in missing]
    for bank in banks:
        for problem in bank.all_problems:
            print(problem, file=sys.stderr)
        bad = sum(bool(item.problems) for item in bank.items)
        print(f"{bank.file}: {len(bank.items)} items" + (f", {bad} with errors" if bad else ""))
    if options.preview:
        options.preview.parent.mkdir(parents=True, exist_ok=True)
        options.preview.write_text(preview_html(banks, options.preview.parent), encoding="utf-8")
        print(f"wrote {options.preview}")
    return 1 if missing or any(bank.all_problems for bank in banks) else 0


if __name__ == "__main__":
    sys.exit(main())
