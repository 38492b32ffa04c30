"""What the tools of the house understand of a Markdown page: its front matter, its fences, and its prose."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from course import ROOT


class PageError(ValueError):
    """A page that cannot be read as what it should be."""


_OPEN = re.compile(r"^(?P<indent>[ ]*)(?P<mark>`{3,}|~{3,}|:{3,})[ ]*(?P<info>[^`]*?)[ ]*$")
_DIRECTIVE = re.compile(r"^\{(?P<name>[^}]+)\}[ ]*(?P<argument>.*)$")
# The bodies of these directives are Markdown again. The body of every other fence is text.
_CONTAINERS = frozenset(
    (
        "dropdown", "note", "tip", "hint", "warning", "caution", "attention", "danger", "error", "important",
        "seealso", "admonition", "card", "grid", "grid-item", "grid-item-card", "tab-set", "tab-item", "details",
        "figure", "table", "margin", "sidebar", "glossary", "versionadded", "versionchanged", "deprecated",
        "epigraph", "topic", "aside",
    )
)


@dataclasses.dataclass(frozen=True)
class Fence:
    """One fenced block of a Markdown page that holds text, not Markdown; lines count from 1."""

    name: str  # the directive's name, or '' for plain code
    argument: str  # the directive's argument, or the language of plain code
    first: int  # line of the opening mark
    last: int  # line of the closing mark (or of the last line, where it was never closed)
    indent: int
    body: str  # its indent taken off; no newline at the end
    mark: str
    closed: bool


def fences(text: str) -> Iterator[Fence]:
    """All text-holding fences of ``text`` in order, those inside dropdowns and other containers included."""
    lines = text.split("\n")
    containers: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        stripped = line.strip()
        if containers and stripped and set(stripped) == {containers[-1][0]} and len(stripped) >= len(containers[-1]):
            containers.pop()
            at += 1
            continue
        found = _OPEN.match(line)
        # A row of colons without a directive's name is text (or a close mark that closes nothing).
        if not found or (found["mark"][0] == ":" and not found["info"].startswith("{")):
            at += 1
            continue
        directive = _DIRECTIVE.match(found["info"])
        name = directive["name"].strip() if directive else ""
        mark, indent = found["mark"], len(found["indent"])
        if name in _CONTAINERS:
            containers.append(mark)
            at += 1
            continue
        close = re.compile(r"^[ ]*" + re.escape(mark[0]) + "{" + str(len(mark)) + r",}[ ]*$")
        end = next((n for n in range(at + 1, len(lines)) if close.match(lines[n])), None)
        last = len(lines) - 1 if end is None else end
        body = [row[indent:] if not row[:indent].strip() else row.lstrip() for row in lines[at + 1 : last]]
        argument = directive["argument"] if directive else found["info"]
        yield Fence(name, argument, at + 1, last + 1, indent, "\n".join(body), mark, end is not None)
        at = last + 1


def name_of(page: Path, root: Path = ROOT) -> str:
    """The page's path as messages write it: from the root of the repository where it lies inside it."""
    page = page.resolve()
    return page.relative_to(root.resolve()).as_posix() if page.is_relative_to(root.resolve()) else str(page)


_FRONT = re.compile(r"\A---[ ]*\n(?P<yaml>.*?)\n---[ ]*(?:\n|\Z)", re.DOTALL)


def front_matter(text: str) -> dict:
    """The YAML between the two ``---`` lines that start a page, or {}; raises PageError where it is not a mapping."""
    found = _FRONT.match(text)
    if not found:
        return {}
    try:
        data = yaml.safe_load(found["yaml"])
    except yaml.YAMLError as problem:
        raise PageError(f"the front matter is not YAML: {problem}") from problem
    if not isinstance(data, dict):
        raise PageError("the front matter is not a YAML mapping")
    return data


def prose(text: str) -> list[str]:
    """The page's lines with front matter, text-holding fences and comments blanked, so that line n stays line n."""
    lines = text.split("\n")
    found = _FRONT.match(text)
    if found:
        for n in range(found.group().rstrip("\n").count("\n") + 1):
            lines[n] = ""
    for fence in fences(text):
        for n in range(fence.first - 1, fence.last):
            lines[n] = ""
    return [re.sub(r"^\s*%.*$", "", line) for line in lines]


_SPAN = re.compile(r"(?<!`)(?P<mark>`+)(?!`)(?P<text>.+?)(?<!`)(?P=mark)(?!`)")
_ROLE = re.compile(r"\{(?P<role>[A-Za-z][\w:.+-]*)\}$")


@dataclasses.dataclass(frozen=True)
class Span:
    """Inline code, or a role with its text."""

    role: str  # '' for plain code
    text: str
    line: int  # from 1
    start: int  # where it begins in the line, its role included
    end: int


def spans(line: str, number: int = 0) -> Iterator[Span]:
    """The inline code and the roles of one line of prose."""
    for found in _SPAN.finditer(line):
        role = _ROLE.search(line[: found.start()])
        start = role.start() if role else found.start()
        yield Span(role["role"] if role else "", found["text"].strip(), number, start, found.end())


def without_code(line: str) -> str:
    """A line of prose with its inline code and roles blanked, every other column where it was."""
    for span in reversed(list(spans(line))):
        line = line[: span.start] + " " * (span.end - span.start) + line[span.end :]
    return line
