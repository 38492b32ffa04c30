"""Prove every name of an API that the course writes.

Names of TensorRT (``trt.``, ``tensorrt.``, ``tensorrt_rtx.``) are held to ``inventories/``: every public Python name of
five releases. Names of ONNX Runtime (``ort.``, ``onnxruntime.``) and ONNX (``onnx.``) are looked up in the installed,
pinned packages. What is read: inline code, ``{api}`` roles and Python fences of book/, README.md and CONTRIBUTING.md; quizzes/
but the wrong choices; the sources in solutions/; the graders and right answers in tests/. STYLE.md, "API names", says how to write a name and its range.

    python -m course.apinames        print every name that does not hold, as path:line: name: claim, fact, what to do

What it cannot see: names inside strings (so `hasattr(trt.X, "y")` is a test of a feature, not a claim), and methods of a
variable whose class neither its name (`builder`, `network`, `config`, …) nor its assignment tells.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import yaml

from course import ROOT
from course.pages import fences, name_of, prose, spans, without_code

# ---------------------------------------------------------------------------------------------------------------------
# Releases of TensorRT
# ---------------------------------------------------------------------------------------------------------------------

RELEASES = ("8.6", "10.0", "10.16", "11.4")
RTX = "RTX"
_FILES = {
    "8.6": "tensorrt-8.6.0.json",
    "10.0": "tensorrt-10.0.1.json",
    "10.16": "tensorrt-10.16.1.11.json",
    "11.4": "tensorrt-11.4.0.106.json",
    RTX: "tensorrt_rtx-1.7.1.116.json",
}
_SPOKEN = {"8": ("8.6",), "10": ("10.0", "10.16"), "11": ("11.4",)} | {r: (r,) for r in (*RELEASES, RTX)}
_ENUM_INSTANCE = frozenset(("name", "value"))  # what a member of any pybind11 enum has


@functools.cache
def inventory(release: str) -> dict:
    return json.loads((ROOT / "inventories" / _FILES[release]).read_text(encoding="utf-8"))["names"]


@functools.cache
def has(release: str, name: str) -> bool:
    """Whether ``trt.<name>`` exists; below a class's member only the prefix can be checked."""
    parts = name.split(".")
    if parts[0] == "tensorrt" and len(parts) > 1:  # the bindings' own submodule: the same names again
        parts = parts[1:]
    if re.fullmatch(r"__\w+__", parts[0]):
        return True
    entry = inventory(release).get(parts[0])
    if entry is None or len(parts) == 1:
        return entry is not None
    members = entry.get("members", {})
    if re.fullmatch(r"__\w+__", parts[1]) or parts[1] in members:
        return True
    return entry["kind"] == "enum" and parts[1] in _ENUM_INSTANCE


def releases_with(name: str) -> tuple[str, ...]:
    return tuple(release for release in (*RELEASES, RTX) if has(release, name))


def _listed(releases: Iterable[str]) -> str:
    found = list(releases)
    return ", ".join(found) if found else "no release"


@dataclasses.dataclass(frozen=True)
class Range:
    """A claim such as 'until 10.16'."""

    text: str
    kind: str  # 'all', 'until', 'since', 'between', 'only' or 'never'
    first: str = ""
    last: str = ""
    rtx: bool = False  # the claim names TensorRT-RTX too

    def holds(self, present: Iterable[str]) -> bool:
        """Whether a name that exists in ``present`` (releases, RTX included) exists exactly where the claim says."""
        present = set(present)
        flags = [release in present for release in RELEASES]
        if self.kind == "never":
            return not present
        if self.rtx and RTX not in present:
            return False
        if self.kind == "all":
            return all(flags)
        first = RELEASES.index(self.first) if self.first else None
        last = RELEASES.index(self.last) if self.last else None
        if self.kind == "only" and first is None:
            return not any(flags)  # only RTX
        if self.kind == "until":  # says where it ends; it may begin anywhere, but without a gap
            return flags[last] and not any(flags[last + 1 :]) and flags[: last + 1] == sorted(flags[: last + 1])
        if self.kind == "since":
            last = len(RELEASES) - 1
        return flags == [first <= n <= last for n in range(len(RELEASES))]


ALL = Range("every release of TensorRT", "all")
_RANGE = re.compile(
    r"(?:(?P<never>never)|(?:since (?P<since>\S+?))?(?:,? ?until (?P<until>\S+?))?|only (?P<only>\S+?))"
    r"(?P<rtx>(?:,| and|, and) RTX)?"
)


def parse_range(text: str) -> Range | None:
    """'until 10.16', 'since 10.0', 'since 10.0 until 10.16', 'only 8.6', 'only RTX', 'never'; or None."""
    text = " ".join(text.split())
    found = _RANGE.fullmatch(text)
    if not found or not text:
        return None
    rtx = bool(found["rtx"])
    if found["never"]:
        return None if rtx else Range(text, "never")
    for word in ("since", "until", "only"):
        if found[word] and found[word] not in _SPOKEN:
            return None
    if found["only"]:
        if found["only"] == RTX:
            return Range(text, "only", rtx=True)
        return Range(text, "only", _SPOKEN[found["only"]][0], _SPOKEN[found["only"]][-1], rtx)
    if found["until"] in _SPOKEN and _SPOKEN[found["until"]][-1] == RELEASES[-1]:
        return None  # what ends with the last release known has not ended
    if RTX in (found["since"], found["until"]) or not (found["since"] or found["until"]):
        return None
    first = _SPOKEN[found["since"]][0] if found["since"] else ""
    last = _SPOKEN[found["until"]][-1] if found["until"] else ""
    return Range(text, "between" if first and last else "since" if first else "until", first, last, rtx)


def suggest(present: Iterable[str]) -> str:
    """The range that is true of a name that exists in ``present``, in the words of STYLE.md; '' where there is none."""
    present = set(present)
    if not present:
        return "never"
    if present == {RTX}:
        return "only RTX"
    candidates = [ALL.text]
    candidates += [f"{word} {r}" for word in ("only", "since") for r in RELEASES]
    candidates += [f"since {a} until {b}" for n, a in enumerate(RELEASES[1:], 1) for b in RELEASES[n:]]
    candidates += [f"until {r}" for r in RELEASES]
    for text in candidates:
        claim = ALL if text == ALL.text else parse_range(text)
        if claim and claim.holds(present):
            return "" if claim is ALL else text
    return ""


_COMMENT = re.compile(
    r"#\s*TensorRT\s+(?P<range>never|(?:since|until|only)\s+(?=\d|RTX)[\w.]*\w"
    r"(?:,?\s+until\s+[\w.]*\w)?(?:(?:,|,? and) RTX)?)\s*(?:$|[;:(,]|\.(?:\s|$))"
)


def comment_range(line: str) -> tuple[Range | None, str]:
    """The range that a line's comment claims, and the words that could not be read as one."""
    found = _COMMENT.search(line)
    if not found:
        return None, ""
    claim = parse_range(found["range"])
    return claim, "" if claim else found["range"]


# ---------------------------------------------------------------------------------------------------------------------
# ONNX Runtime and ONNX: the installed packages
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name == name.split(".")[0]:
            raise RuntimeError(f"{name} is not installed: install requirements.txt, names cannot be proved without") from None
        return None
    except ImportError:
        return None


@functools.cache
def installed(name: str) -> bool:
    """Whether the dotted name exists in the installed package: attributes, submodules, fields of protobuf messages."""
    parts = name.split(".")
    value: object = _module(parts[0])
    for n, part in enumerate(parts[1:], 1):
        if isinstance(value, ModuleType):
            if not hasattr(value, part):
                inner = _module(".".join(parts[: n + 1]))
                if inner is None:  # a submodule that is there, but wants a package that is not: it exists, and nothing inside it can be proven here
                    return n == len(parts) - 1 and hasattr(value, "__path__") and importlib.util.find_spec(".".join(parts)) is not None
                value = inner
                continue
        elif part in getattr(getattr(value, "DESCRIPTOR", None), "fields_by_name", ()):
            return True  # a protobuf message's field; below it only the prefix can be checked
        elif not hasattr(value, part):
            return False
        elif not isinstance(value, type):
            return True  # an attribute of an instance: below it only the prefix can be checked
        value = getattr(value, part)
    return True


def version_of(package: str) -> str:
    return str(getattr(_module(package), "__version__", "?"))


# ---------------------------------------------------------------------------------------------------------------------
# Names as they are written
# ---------------------------------------------------------------------------------------------------------------------

_ROOTS = {
    "trt": "trt",
    "tensorrt": "trt",
    "tensorrt_rtx": "rtx",
    "ort": "onnxruntime",
    "onnxruntime": "onnxruntime",
    "onnx": "onnx",
}
_WRITTEN = re.compile(
    r"(?<![\w./\\-])(?P<root>trt|tensorrt_rtx|tensorrt|ort|onnxruntime|onnx)\.(?P<rest>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?P<star>\.?\*)?"
)
_FILE_ENDINGS = frozenset(("proto", "proto3", "md", "py", "so", "dll", "whl", "data", "org", "json", "txt", "bin", "onnx", "plan", "engine", "yml", "yaml"))


@dataclasses.dataclass(frozen=True)
class Use:
    """A name, resolved to whose it is: family 'trt', 'rtx', 'both', 'onnxruntime' or 'onnx'."""

    family: str
    name: str  # below the module, dotted
    line: int
    written: str


def judge(where: str, use: Use, claim: Range | None) -> str | None:
    """The message about one name, or None where its claim holds. ``claim`` None is that of plain text."""
    full = f"{'trt' if use.family in ('trt', 'rtx', 'both') else use.family}.{use.name}"
    is_name = use.written.split("(")[0].split(".")[0] in _ROOTS
    say = f"{where}:{use.line}: {use.written}" + ("" if is_name else f" ({full})")
    if use.family in ("trt", "rtx", "both"):
        present = releases_with(use.name)
        if use.family == "rtx" and claim is None:
            if RTX in present:
                return None
            return f"{say}: used from TensorRT-RTX 1.7, which lacks it; it exists in {_listed(present)}"
        checked = claim or (Range("TensorRT and TensorRT-RTX", "all", rtx=True) if use.family == "both" else ALL)
        if checked.holds(present):
            return None
        true = suggest(present)
        name = full
        if not present:
            fix = "look its name up in inventories/" + ("" if claim else f"; if it is meant not to exist: {{api}}`{name} (never)`")
        elif not true:
            fix = f"write {name} without a range" if claim and ALL.holds(present) else "no range fits; say it in words and name both"
        elif use.family == "both" and not claim:
            fix = f"it is '{true}'; use what both modules have, or a line of its own with `# TensorRT {true}`"
        else:
            fix = f"write {{api}}`{name} ({true})`, in code `# TensorRT {true}`"
        return f"{say}: claims {checked.text}, but the inventories have it in {_listed(present)}; {fix}"
    exists = installed(full)
    version = f"{use.family} {version_of(use.family)}"
    gone = claim is not None and claim.text.startswith(("never", "until"))
    if gone and exists:
        return f"{say}: claims '{claim.text}', but {version} has it; write it as plain code"
    if not gone and not exists:
        return f"{say}: {version} has no such name; correct it, or if that is what is meant write {{api}}`{use.written if is_name else full} (never)`"
    return None


def _written(text: str, line: int) -> Iterator[tuple[Use, bool]]:
    for found in _WRITTEN.finditer(text):
        family = _ROOTS[found["root"]]
        rest = found["rest"]
        if family in ("onnxruntime", "onnx") and rest in _FILE_ENDINGS:
            continue
        yield Use(family, rest, line, f"{found['root']}.{rest}"), bool(found["star"])


@functools.cache
def _bare_classes() -> dict[str, frozenset[str]]:
    """The classes of TensorRT that no other library would call so, with the members of any release."""
    found: dict[str, set[str]] = {}
    for release in (*RELEASES, RTX):
        for name, entry in inventory(release).items():
            if entry["kind"] in ("class", "enum") and name[0].isupper():
                found.setdefault(name, set()).update(entry.get("members", {}))
    return {name: frozenset(members) for name, members in found.items()}


_BARE = re.compile(r"(?P<name>[A-Z]\w+)(?:\.(?P<member>\w+))?(?:\(.*\))?")


def _bare(text: str) -> str | None:
    """`IBuilderConfig.set_flag` without its `trt.`: then nothing proves it."""
    found = _BARE.fullmatch(text)
    members = _bare_classes().get(found["name"]) if found else None
    if members is None:
        return None
    if found["member"]:
        return text if found["member"] in members and not hasattr(_module("onnxruntime"), found["name"]) else None
    return text if re.match(r"I[A-Z][a-z]", found["name"]) else None


def check_prose(where: str, text: str) -> list[str]:
    """Names in the inline code and the roles of a Markdown page."""
    errors: list[str] = []
    for number, line in enumerate(prose(text), 1):
        for span in spans(line, number):
            if span.role == "api":
                errors += _check_api(where, span.text, number)
            elif span.role in ("", "code"):
                for use, star in _written(span.text, number):
                    if star:
                        errors.append(f"{where}:{number}: {use.written}*: a pattern proves nothing; write the names in full")
                    else:
                        errors.append(judge(where, use, None))
                errors += [judge(where, use, None) for use in _members(span.text, number)]
                bare = _bare(span.text)
                if bare:
                    errors.append(f"{where}:{number}: {bare}: write it as `trt.{bare}`, so that its releases are proved")
        for found in re.finditer(r"(?<![\w./-])(?:trt|ort)\.[A-Za-z_]\w*", without_code(line)):
            errors.append(f"{where}:{number}: {found[0]}: not written as code, so nothing proves it; put it in backticks")
    return [error for error in errors if error]


def _members(text: str, line: int) -> Iterator[Use]:
    """`engine.num_bindings`: a member of what such a variable holds everywhere in this course."""
    for found in re.finditer(r"(?<![\w.])(?P<variable>[a-z]+)\.(?P<member>[A-Za-z_]\w*)(?P<call>\()?", text):
        variable, member = found["variable"], found["member"]
        if variable in _TRT_VARIABLES and member not in _FILE_ENDINGS:
            yield Use("trt", f"{_TRT_VARIABLES[variable]}.{member}", line, f"{variable}.{member}")
        elif variable in ("session", "sess") and found["call"]:  # without a call it may be a configuration entry
            yield Use("onnxruntime", f"InferenceSession.{member}", line, f"{variable}.{member}")


_API = re.compile(r"(?P<name>\S+)\s+\((?P<range>[^()]+)\)")


def _check_api(where: str, text: str, line: int) -> list[str | None]:
    found = _API.fullmatch(text)
    form = "write {api}`trt.Name (until 10.16)`, with until, since, only or never"
    if not found:
        return [f"{where}:{line}: {{api}}`{text}` has no range; {form}"]
    written = _WRITTEN.fullmatch(found["name"].removesuffix("()"))
    if not written or written["star"]:
        return [f"{where}:{line}: {{api}}`{text}`: {found['name']} is not a name from trt., ort. or onnx.; {form}"]
    family = _ROOTS[written["root"]]
    use = Use("trt" if family == "rtx" else family, written["rest"], line, found["name"])
    if family in ("trt", "rtx"):
        claim = parse_range(found["range"])
        if not claim:
            known = ", ".join(_SPOKEN)
            return [f"{where}:{line}: {{api}}`{text}`: cannot read the range; the releases are {known}; {form}"]
    else:
        if not re.match(r"(never|until|since|only)\b", found["range"]):
            return [f"{where}:{line}: {{api}}`{text}`: cannot read the range; {form}"]
        claim = Range(found["range"], "until")
    return [judge(where, use, claim)]


# ---------------------------------------------------------------------------------------------------------------------
# Code
# ---------------------------------------------------------------------------------------------------------------------

_TRT_VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
    "refitter": "Refitter",
}
_ORT_VARIABLES = {
    "session": "InferenceSession",
    "sess": "InferenceSession",
    "options": "SessionOptions",
    "so": "SessionOptions",
    "session_options": "SessionOptions",
    "sess_options": "SessionOptions",
}
_DEFAULT_MODULES = {name: (family, "") for name, family in _ROOTS.items()}
_UNKNOWN = "?"


@functools.cache
def _returns(owner: str, method: str) -> str:
    """The class that a method returns, from the signature that the bindings state in any release; '' if they do not."""
    for release in reversed((*RELEASES, RTX)):
        signature = (inventory(release).get(owner, {}).get("members") or {}).get(method) or ""
        found = re.search(r"-> (?:[\w.]*\.)?(I?[A-Z]\w+)$", signature.strip())
        if found and found[1] in inventory(release):
            return found[1]
    return ""


@dataclasses.dataclass
class Names:
    """What the names of a piece of code stand for; the proofs of a page share one."""

    modules: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)  # name -> (family, dotted prefix)
    variables: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> 'trt.Class', 'onnxruntime.Class', '?'


class _Code(ast.NodeVisitor):
    def __init__(self, names: Names) -> None:
        self.names = names
        self.uses: list[Use] = []
        self.imported = set(names.modules)

    # What names stand for ---------------------------------------------------------------------------------------------

    def _bind(self, name: str, family: str, prefix: str, optional: bool) -> None:
        before = self.names.modules.get(name)
        if before and {before[0], family} == {"trt", "rtx"} and optional:
            family = "both"
        self.names.modules[name] = (family, prefix)

    def learn(self, tree: ast.AST, inside_try: bool = False) -> None:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root, _, rest = alias.name.partition(".")
                    name = alias.asname or root
                    if root in _ROOTS and root not in ("trt", "ort"):
                        self._bind(name, _ROOTS[root], rest if alias.asname else "", inside_try)
                        if rest:
                            self.uses.append(Use(_ROOTS[root], rest, node.lineno, alias.name))
                    else:
                        self.names.modules[name] = (_UNKNOWN, "")
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                root, _, rest = node.module.partition(".")
                for alias in node.names:
                    if root in _ROOTS and root not in ("trt", "ort"):
                        dotted = f"{rest}.{alias.name}".lstrip(".")
                        self._bind(alias.asname or alias.name, _ROOTS[root], dotted, inside_try)
                        if alias.name != "*":
                            self.uses.append(Use(_ROOTS[root], dotted, node.lineno, f"{node.module}.{alias.name}"))
                    else:
                        self.names.modules[alias.asname or alias.name] = (_UNKNOWN, "")
            self.learn(node, inside_try or isinstance(tree, ast.Try))

    def learn_variables(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            pairs: list[tuple[ast.expr, ast.expr]] = []
            if isinstance(node, ast.Assign):
                pairs = [(target, node.value) for target in node.targets]
            elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value:
                pairs = [(node.target, node.value)]
            elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
                names = [inner for inner in ast.walk(node.target) if isinstance(inner, ast.Name)]
                self.names.variables |= {name.id: self.names.variables.get(name.id, _UNKNOWN) for name in names}
            elif isinstance(node, (ast.With, ast.AsyncWith)):
                pairs = [(item.optional_vars, item.context_expr) for item in node.items if item.optional_vars]
            for target, value in pairs:
                if isinstance(target, ast.Name):
                    kind = self.class_of(value)
                    if kind:
                        before = self.names.variables.get(target.id)
                        self.names.variables[target.id] = kind if before in (None, kind) else _UNKNOWN

    def class_of(self, value: ast.expr) -> str:
        """'trt.Builder' for a call that makes one, '?' for one that makes something else, '' where nothing tells."""
        if not isinstance(value, ast.Call):
            return "" if isinstance(value, (ast.Name, ast.Attribute, ast.Subscript, ast.Await)) else _UNKNOWN
        chain = _chain(value.func)
        if not chain:
            if isinstance(value.func, ast.Attribute):
                owner = self.class_of(value.func.value)
                if owner.startswith("trt."):
                    made = _returns(owner[4:], value.func.attr)
                    return f"trt.{made}" if made else ""
            return ""
        root, rest = chain[0], chain[1:]
        module = self.module(root)
        if module:
            family, prefix = module
            dotted = ".".join([*([prefix] if prefix else []), *rest])
            last = dotted.split(".")[-1]
            if family == _UNKNOWN:
                return _UNKNOWN
            if family in ("trt", "rtx", "both"):
                return f"trt.{dotted}" if "." not in dotted and last[:1].isupper() else ""
            return f"{family}.{dotted}" if last[:1].isupper() else ""
        if len(rest) == 1:
            owner = self.variable(root)
            if owner.startswith("trt."):
                made = _returns(owner[4:], rest[0])
                return f"trt.{made}" if made else ""
            return ""
        return _UNKNOWN if not rest and root[:1].isupper() else ""

    def module(self, name: str) -> tuple[str, str] | None:
        if name in self.names.modules:
            return self.names.modules[name]
        return _DEFAULT_MODULES.get(name)

    def variable(self, name: str) -> str:
        known = self.names.variables.get(name)
        if known:
            return known
        if name in self.names.modules:
            return ""
        if name in _TRT_VARIABLES and self.speaks_trt:
            return f"trt.{_TRT_VARIABLES[name]}"
        if name in _ORT_VARIABLES and any(f == "onnxruntime" for f, _ in self.names.modules.values()):
            return f"onnxruntime.{_ORT_VARIABLES[name]}"
        return ""

    # Uses -------------------------------------------------------------------------------------------------------------

    speaks_trt = False

    def read(self, tree: ast.AST) -> list[Use]:
        self.learn(tree)
        self.speaks_trt = any(f in ("trt", "rtx", "both") for f, _ in self.names.modules.values()) or any(
            isinstance(node, ast.Name) and node.id in ("trt", "tensorrt", "tensorrt_rtx") for node in ast.walk(tree)
        )
        self.learn_variables(tree)
        self.visit(tree)
        return self.uses

    def family(self) -> str:
        """Which TensorRT the code's objects come from."""
        families = {f for f, _ in self.names.modules.values() if f in ("trt", "rtx", "both")}
        return families.pop() if len(families) == 1 else "both" if families else "trt"

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = _chain(node)
        if not chain:
            owner = self.class_of(node.value) if isinstance(node.value, ast.Call) else ""
            self._use_member(owner, [node.attr], node, f"{owner}(...).{node.attr}")
            self.generic_visit(node)
            return
        root, rest = chain[0], chain[1:]
        written = ".".join(chain)
        module = self.module(root)
        if root in self.names.variables or not module:
            self._use_member(self.variable(root), rest, node, written)
        elif module[0] != _UNKNOWN:
            dotted = ".".join([*([module[1]] if module[1] else []), *rest])
            self.uses.append(Use(module[0], dotted, node.end_lineno or node.lineno, written))

    def _use_member(self, owner: str, rest: list[str], node: ast.Attribute, written: str) -> None:
        if not owner or owner == _UNKNOWN:
            return
        line = node.end_lineno or node.lineno
        if owner.startswith("trt."):
            self.uses.append(Use(self.family(), f"{owner[4:]}.{rest[0]}", line, written))
        else:
            family, _, name = owner.partition(".")
            self.uses.append(Use(family, f"{name}.{rest[0]}", line, written))


def _chain(node: ast.expr) -> list[str]:
    """['trt', 'Logger', 'WARNING'] for trt.Logger.WARNING; [] where a name does not start it."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def check_code(where: str, code: str, first: int = 0, names: Names | None = None) -> list[str]:
    """Names in a piece of Python whose first line is line ``first`` + 1 of the file."""
    lines = code.split("\n")
    errors: list[str | None] = []
    header = 0
    block: Range | None = None
    while header < len(lines) and (not lines[header].strip() or lines[header].lstrip().startswith("#")):
        claim, unread = comment_range(lines[header])
        if unread:
            errors.append(_unread(where, first + header + 1, unread))
        block = block or claim
        header += 1
    try:
        tree = ast.parse(code)
    except SyntaxError as problem:
        if block and block.kind == "never":
            return [error for error in errors if error]
        line = first + (problem.lineno or 1)
        return [f"{where}:{line}: not Python ({problem.msg}), so no name in it is proved; mend it, or fence it as text"]
    uses = _Code(names if names is not None else Names()).read(tree)
    together: dict[tuple[int, Range], list[Use]] = {}  # the names under one comment: they hold where all of them exist
    for use in dict.fromkeys(uses):
        text = lines[use.line - 1]
        claim, unread = comment_range(text) if use.line > header else (None, "")
        if unread:
            errors.append(_unread(where, first + use.line, unread))
        placed = dataclasses.replace(use, line=use.line + first)
        if use.family in ("trt", "rtx", "both"):
            if claim:
                together.setdefault((placed.line, claim), []).append(placed)
                continue
            if block:
                together.setdefault((first + 1, block), []).append(placed)
                if use.family == "trt":
                    continue
                placed = dataclasses.replace(placed, family="rtx")
        elif block and block.kind == "never":
            continue
        errors.append(judge(where, placed, None))
    for (line, range_), under in together.items():
        present = set(RELEASES) | {RTX}
        for use in under:
            present &= set(releases_with(use.name))
        if not range_.holds(present):
            errors.append(_comment_error(where, line, range_, present, under))
    if block and block.kind != "never" and (first + 1, block) not in together:
        errors.append(f"{where}:{first + 1}: '# TensorRT {block.text}' stands over no name of trt.; remove it")
    return [error for error in errors if error]


def _comment_error(where: str, line: int, claim: Range, present: set[str], under: list[Use]) -> str:
    names = ", ".join(dict.fromkeys(use.written for use in under))
    exist = _listed(release for release in (*RELEASES, RTX) if release in present)
    true = suggest(present)
    fix = f"write '# TensorRT {true}'" if true else "remove it" if ALL.holds(present) else "correct it or the names"
    return f"{where}:{line}: '# TensorRT {claim.text}' stands over {names}: together they exist in {exist}; {fix}"


def _unread(where: str, line: int, words: str) -> str:
    return f"{where}:{line}: cannot read the range '{words}'; write # TensorRT until 10.16, with until, since, only or never"


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------

_PYTHON = frozenset(("python", "py", "python3", "{code-cell}", "ipython3"))


def check_page(where: str, text: str) -> list[str]:
    """A Markdown page: prose, and Python fences. The page's proofs share their names, as they do when they run."""
    errors = check_prose(where, text)
    shared = Names()
    for fence in fences(text):
        words = fence.argument.split()
        if fence.name == "proof":
            errors += check_code(where, fence.body, fence.first, shared)
        elif (not fence.name and words[:1] and words[0] in _PYTHON) or (
            fence.name in ("code-block", "code", "sourcecode", "code-cell") and words[:1] and words[0] in _PYTHON
        ):
            errors += check_code(where, fence.body, fence.first)
    return sorted(errors, key=_place)


def check_quiz(where: str, text: str) -> list[str]:
    """A quiz: everything but the text of wrong choices, which may name what does not exist."""
    lines = [""] * (text.count("\n") + 2)

    def take(node: yaml.Node) -> None:
        for line in range(node.start_mark.line, node.end_mark.line + 1):
            last = node.end_mark.column if line == node.end_mark.line else None
            first = node.start_mark.column if line == node.start_mark.line else None
            lines[line] += text_lines[line][first:last] + " "

    def walk(node: yaml.Node) -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item)
        elif isinstance(node, yaml.MappingNode):
            keys = {key.value: value for key, value in node.value}
            right = "correct" in keys and keys["correct"].value == "true"
            for key, value in node.value:
                if not (key.value == "text" and "why" in keys and not right):
                    walk(value)
        elif isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            take(node)

    text_lines = [*text.split("\n"), ""]
    top = yaml.compose(text)
    if top is not None:
        walk(top)
    return check_page(where, "\n".join(lines))


_CELL = re.compile(r"^# %%(?P<rest>.*)$")


def check_source(where: str, text: str) -> list[str]:
    """A Python file. The Markdown cells of a jupytext source are prose."""
    prose_lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        cell = _CELL.match(line)
        if cell:
            inside = "[markdown]" in cell["rest"]
        prose_lines.append(line[2:] if inside and not cell and line.startswith("# ") else "")
    code = "\n".join("" if shown else line for line, shown in zip(text.split("\n"), prose_lines, strict=True))
    page = "\n".join(prose_lines)
    return sorted(check_code(where, code) + check_page(where, page), key=_place)


def _place(error: str) -> tuple[int, str]:
    found = re.search(r":(\d+): ", error)
    return (int(found[1]) if found else 0, error)


def files(root: Path = ROOT) -> list[Path]:
    """What the check reads: pages, sources, graders. Wrong answers are wrong on purpose; notebooks are generated."""
    found = [path for path in (root / "README.md", root / "CONTRIBUTING.md") if path.exists()]
    found += sorted((root / "book").rglob("*.md"))
    found += sorted((root / "solutions").rglob("*.py"))
    found += sorted(path for path in (root / "tests").glob("[0-9]*/*.py"))
    found += sorted((root / "tests").glob("[0-9]*/right/*.py"))
    found += sorted((root / "quizzes").glob("*.yml"))
    return [path for path in found if "_build" not in path.parts]


_CHECKS = {".md": check_page, ".py": check_source, ".yml": check_quiz}


def check_file(path: Path, root: Path = ROOT) -> list[str]:
    return _CHECKS[path.suffix](name_of(path, root), path.read_text(encoding="utf-8"))


def check(root: Path = ROOT) -> list[str]:
    """Every name that does not hold."""
    return [error for path in files(root) for error in check_file(path, root)]


def main() -> int:
    errors = check()
    for error in errors:
        print(error)
    print(f"{len(files())} files, {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
