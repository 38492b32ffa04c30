"""Sphinx extension: what TensorRT's releases took out of their Python names and what they put in, read off ``inventories/``.

    ```{api-changes} 10.16 11.4
    ```

Two folded tables, what went and what came from one release to the next, a row for each class.

    ```{api-history} Builder IBuilderConfig
    ```

For each class a folded table of the members that not every release has, a column for each release.

A layer class has all members of ``ILayer``; what changes there is shown there, and not again for each of some fifty layers. Names
that Python itself gives (``__init__``) are left out. What a name means is not in an inventory: book/03_tensorrt/migration.md says it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from course import ROOT, apinames

logger = logging.getLogger(__name__)
RELEASES = (*apinames.RELEASES, apinames.RTX)
BASE = "ILayer"


@functools.cache
def members(release: str, name: str) -> frozenset[str] | None:
    """The members of a class or enum, those that Python gives left out; empty for a function or value, None where there is no such name."""
    entry = apinames.inventory(release).get(name)
    return None if entry is None else frozenset(m for m in entry.get("members", {}) if not m.startswith("__"))


@functools.cache
def layers(release: str) -> frozenset[str]:
    """The layer classes: those with all members of ``ILayer``, itself left out. The inventories do not say who inherits from whom."""
    base = members(release, BASE)
    return frozenset(name for name, entry in apinames.inventory(release).items() if name != BASE and entry["kind"] == "class" and base <= members(release, name))


def names(release: str) -> list[str]:
    return [name for name in apinames.inventory(release) if not name.startswith("__")]


@dataclasses.dataclass(frozen=True)
class Side:
    """What one of two releases has and the other lacks: whole names with their kind, and members of names that both have."""

    whole: dict[str, str]
    parts: dict[str, list[str]]
    inherited: int  # layer classes that share the change of ILayer, which stands in `parts` once

    @property
    def count(self) -> int:
        return sum(map(len, self.parts.values()))


def only_in(one: str, other: str) -> Side:
    """What release ``one`` has and ``other`` lacks."""
    whole = {name: apinames.inventory(one)[name]["kind"] for name in names(one) if members(other, name) is None}
    parts = {name: sorted(members(one, name) - members(other, name)) for name in names(one) if name not in whole}
    base = set(parts.get(BASE, ()))
    shared = layers(one) - whole.keys() if base else frozenset()
    parts = {name: [m for m in found if not (name in shared and m in base)] for name, found in parts.items()}
    return Side(whole, {name: found for name, found in sorted(parts.items()) if found}, len(shared))


def history(name: str) -> dict[str, tuple[bool | None, ...]]:
    """For each member that came or went while the class was there: whether each of :data:`RELEASES` has it, None where it lacks the class.

    Of a layer class its own members only.
    """
    everywhere = {release: members(release, name) for release in RELEASES}
    there = [release for release in RELEASES if everywhere[release] is not None]
    found = {}
    for member in sorted(set().union(*(everywhere[release] for release in there))):
        have = [release for release in there if member in everywhere[release]]
        inherited = all(name in layers(release) and member in members(release, BASE) for release in have)
        if len(have) < len(there) and not inherited:
            found[member] = tuple(None if everywhere[release] is None else release in have for release in RELEASES)
    return found


@functools.cache
def changed() -> tuple[str, ...]:
    """The classes and enums that changed a member while they were there."""
    everywhere = sorted(set().union(*(names(release) for release in RELEASES)))
    return tuple(name for name in everywhere if history(name))


_KINDS = {"class": "classes", "enum": "enums", "function": "functions", "value": "values"}


def _code(found: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in found)


def _many(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def _counted(side: Side) -> str:
    kinds = list(side.whole.values())
    whole = ", ".join(_many(kinds.count(kind), kind, word) for kind, word in _KINDS.items() if kind in kinds)
    parts = f"{_many(side.count, 'member')} of {_many(len(side.parts), 'other' if whole else 'class or enum', '' if whole else 'classes and enums')}"
    return "; ".join(part for part in (whole, parts if side.count else "") if part) or "nothing"


def changes_text(one: str, other: str) -> str:
    """The Markdown of ``{api-changes} one other``."""
    lines = []
    for verb, side in (("went", only_in(one, other)), ("came", only_in(other, one))):
        lines += [f"::::{{dropdown}} What {verb} from {one} to {other}: {_counted(side)}"]
        if side.whole or side.parts:
            lines += [f"| where | what {verb} |", "| --- | --- |"]
        for kind, word in _KINDS.items():
            found = [name for name, k in side.whole.items() if k == kind]
            if found:
                lines.append(f"| {word}, whole | {_code(found)} |")
        for name, found in side.parts.items():
            label = f"`{name}`" + (f" and {side.inherited} layer classes" if name == BASE and side.inherited else "")
            lines.append(f"| {label} | {_code(found)} |")
        lines += ["::::", ""]
    return "\n".join(lines)


def history_text(name: str) -> str:
    """The Markdown of ``{api-history} name``."""
    there = [release for release in RELEASES if members(release, name) is not None]
    rows = history(name)
    absent = f"; in {', '.join(there)} only" if len(there) < len(RELEASES) else ""
    lines = [f"::::{{dropdown}} {name}: {_many(len(rows), 'member')} came or went{absent}",
             f"| member | {' | '.join(RELEASES)} |", "| --- |" + " --- |" * len(RELEASES)]
    shown = {True: "yes", False: "–", None: ""}
    lines += [f"| `{member}` | {' | '.join(shown[here] for here in row)} |" for member, row in rows.items()]
    return "\n".join([*lines, "::::", ""])


class Generated(SphinxDirective):
    """Text of this module's, parsed as the page itself is."""

    option_spec: ClassVar[dict] = {}
    has_content = False

    def shown(self, text: str) -> list[nodes.Node]:
        for path in sorted((ROOT / "inventories").glob("*.json")):
            self.env.note_dependency(str(path))
        box = nodes.container(classes=["api-changes"])
        self.set_source_info(box)
        self.state.nested_parse(StringList(text.split("\n"), source=self.env.docname), self.content_offset, box)
        return box.children

    def fault(self, what: str) -> list[nodes.Node]:
        logger.warning("%s: {%s} %s", self.env.docname, self.name, what, location=self.get_location())
        return []


class ApiChanges(Generated):
    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        unknown = [release for release in self.arguments if release not in RELEASES]
        if unknown:
            return self.fault(f"{unknown[0]} has no inventory; the releases are {', '.join(RELEASES)}")
        return self.shown(changes_text(*self.arguments))


class ApiHistory(Generated):
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        wanted = self.arguments[0].split()
        unknown = [name for name in wanted if name not in changed()]
        if unknown:
            return self.fault(f"{unknown[0]} is no class that changed; those are {', '.join(changed())}")
        return self.shown("\n".join(history_text(name) for name in wanted))


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("api-changes", ApiChanges)
    app.add_directive("api-history", ApiHistory)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
