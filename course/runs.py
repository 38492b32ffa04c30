"""Recorded runs: ``measurements/runs/<id>.json`` and the systems they ran on, ``measurements/systems/<id>.json``.

The form of both is ``course/run_schema.json``. Every measured number of the book is read from here by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_STEP = re.compile(r"\.?([^.\[\]\"]+)|\[(-?\d+)\]|\[\"([^\"]+)\"\]")


class RunError(ValueError):
    """What is wrong with a reference to a run: it says what was asked for and what there is."""


def run_path(root: Path, run: str) -> Path:
    return root / "measurements" / "runs" / f"{run}.json"


def system_path(root: Path, system: str) -> Path:
    return root / "measurements" / "systems" / f"{system}.json"


def _load(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"there is no {what} {path.stem!r}; expected the file measurements/{path.parent.name}/{path.name}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise RunError(f"measurements/{path.parent.name}/{path.name} is not JSON: {problem}") from problem
    if not isinstance(data, dict):
        raise RunError(f"measurements/{path.parent.name}/{path.name} does not hold a JSON object")
    return data


def load_run(root: Path, run: str) -> dict[str, Any]:
    if not _ID.fullmatch(run):
        raise RunError(f"{run!r} is not the id of a run; an id is the name of its file without .json")
    return _load(run_path(root, run), "run")


def load_system(root: Path, system: str) -> dict[str, Any]:
    if not _ID.fullmatch(system):
        raise RunError(f"{system!r} is not the id of a system; an id is the name of its file without .json")
    return _load(system_path(root, system), "system")


def look_up(run: dict[str, Any], path: str) -> Any:
    """The value at ``path``: keys joined by dots, list positions in brackets, odd keys as ``["key.with.dots"]``."""
    value: Any = run
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if not step:
            raise RunError(f"cannot read the path {path!r} from {path[at:]!r} on")
        key = step[1] if step[1] is not None else step[3]
        if key is not None:
            if not isinstance(value, dict) or key not in value:
                there = f"its keys are {', '.join(map(str, value))}" if isinstance(value, dict) else f"it is {value!r:.60}"
                raise RunError(f"no {key!r} at {path[:at] or 'the top'!r}; {there}")
            value = value[key]
        else:
            if not isinstance(value, list) or not -len(value) <= int(step[2]) < len(value):
                size = f"it has {len(value)} entries" if isinstance(value, list) else "it is not a list"
                raise RunError(f"no entry {step[2]} at {path[:at]!r}; {size}")
            value = value[int(step[2])]
        at = step.end()
    return value


@dataclasses.dataclass(frozen=True)
class Measured:
    run: str
    path: str
    text: str  # the value as the page shows it; 'INVALID' for a run that does not count
    valid: bool


def reference(text: str) -> tuple[str, str, str]:
    """``runid:path|format`` as (run, path, format)."""
    run, colon, rest = text.partition(":")
    path, _, form = rest.partition("|")
    if not colon or not run.strip() or not path.strip():
        raise RunError(f"{text!r} is not of the form runid:path.in.json or runid:path.in.json|.2f")
    return run.strip(), path.strip(), form.strip()


def measured(root: Path, text: str) -> Measured:
    """What the role ``{measured}`` shows for ``text``; raises RunError that names what is missing."""
    name, path, form = reference(text)
    run = load_run(root, name)
    value = look_up(run, path)
    if run.get("status") != "ok":
        return Measured(name, path, "INVALID", False)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise RunError(f"{path!r} of run {name!r} is {type(value).__name__}, not a number; go on down to a number")
    try:
        return Measured(name, path, format(value, form), True)
    except ValueError as problem:
        raise RunError(f"format {form!r} does not fit {value!r}: {problem}") from problem
