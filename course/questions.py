"""Sphinx extension: what the pages of the book are written with, beyond plain MyST.

- the ``question:`` front matter of a question becomes a line under its title; under it stands on which releases and machines the page was seen,
  from its runs and its proofs
- ``{proof}`` and ``{output}``: code that proves something, and what it prints (``course.proofs`` runs them)
- ``{api}`NAME (until 10.16)` ``: a name that not every release has (``course.apinames`` proves the range)
- ``{measured}`runid:results.p50|.2f` ``: a number of a recorded run; ``{run} <id>``: the box of that run
- ``{question-list} <chapter>``: the questions of a chapter, from their front matter
- ``bibtex_default_style: as_written`` for titles as the source writes them

Pages are rebuilt when a file that they show changes; the extension reads and writes in parallel.
"""

from __future__ import annotations

import functools
import json
import posixpath
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.fileutil import copy_asset_file

from course import runs
from course.pages import PageError, front_matter

logger = logging.getLogger(__name__)

LEVELS = ("junior", "mid", "senior")
_PROVENANCE = {
    "reported": "Reported by a candidate",
    "documented": "From vendors' documentation",
    "inferred": "Inferred from documentation and issues",
}
_API = re.compile(r"(?P<name>\S+)\s+\((?P<range>[^()]+)\)", re.DOTALL)


def _question(data: Any) -> dict[str, Any]:
    """The ``question`` mapping of front matter, which MyST hands on as JSON text."""
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except ValueError:
            return {}
    return data if isinstance(data, dict) else {}


def provenance(question: dict[str, Any]) -> str:
    """Where a question comes from, in words."""
    if question.get("provenance") == "seed":
        return f"Seed question {question.get('seed', '')}".strip()
    return _PROVENANCE.get(question.get("provenance", ""), "")


def _span(text: str, *classes: str) -> nodes.inline:
    return nodes.inline(text, text, classes=list(classes))


def _dotted(parts: list[nodes.Node]) -> list[nodes.Node]:
    joined: list[nodes.Node] = []
    for part in parts:
        if joined:
            joined.append(_span(" · ", "question-dot"))
        joined.append(part)
    return joined


# ---------------------------------------------------------------------------------------------------------------------
# Proofs
# ---------------------------------------------------------------------------------------------------------------------


class Labelled(SphinxDirective):
    """A literal block under a small label. No options: a first line that starts with a colon is code."""

    has_content = True
    option_spec: ClassVar[dict] = {}
    label = language = kind = ""

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        block = nodes.literal_block(text, text, language=self.language)
        self.set_source_info(block)
        label = nodes.paragraph(self.label, self.label, classes=["proof-label"])
        box = nodes.container("", label, block, classes=["proof", self.kind])
        self.set_source_info(box)
        return [box]


class Proof(Labelled):
    label, language, kind = "Proof", "python", "proof-code"


class Output(Labelled):
    label, language, kind = "prints", "text", "proof-output"


# ---------------------------------------------------------------------------------------------------------------------
# Names of an API
# ---------------------------------------------------------------------------------------------------------------------


class Api(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        found = _API.fullmatch(self.text.strip())
        if not found:
            logger.warning(
                "{api}`%s` has no range; write {api}`trt.Name (until 10.16)`, or plain code for a name of every release",
                self.text,
                location=self.get_location(),
            )
            return [nodes.literal(self.rawtext, self.text)], []
        name, span = found["name"], " ".join(found["range"].split())
        return [
            nodes.literal(self.rawtext, name, classes=["api-name"]),
            nodes.Text(" "),
            _span(f"({span})", "api-range"),
        ], []


# ---------------------------------------------------------------------------------------------------------------------
# Recorded runs
# ---------------------------------------------------------------------------------------------------------------------


class run_link(addnodes.download_reference):
    """A link to a run's file, which a browser opens; ``note`` says what stands behind the link."""


def _visit_run_link(self: Any, node: run_link) -> None:
    href = posixpath.join(self.builder.dlpath, node["filename"]) if "filename" in node else None
    self.body.append(self.starttag(node, "a" if href else "span", "", title=node["note"], **({"href": href} if href else {})))
    self.context.append("</a>" if href else "</span>")


def _depart_run_link(self: Any, node: run_link) -> None:
    self.body.append(self.context.pop())


def link_to_run(env: BuildEnvironment, text: str, target: str, note: str, classes: list[str], run: str = "") -> run_link:
    """``text`` as a link to ``target``, a file under measurements/."""
    return run_link(text, "", nodes.Text(text), reftarget=f"/measurements/{target}", refdoc=env.docname, note=note, classes=classes, run=run)


def _pass(self: Any, node: nodes.Node) -> None:
    pass


def _depend_on_run(env: BuildEnvironment, run: str, system: str = "") -> None:
    env.note_dependency(str(runs.run_path(Path(env.srcdir), run)))
    if system:
        env.note_dependency(str(runs.system_path(Path(env.srcdir), system)))


def _gpu(root: Path, run: dict[str, Any]) -> str:
    try:
        system = runs.load_system(root, str(run.get("system", "")))
    except runs.RunError:
        return str(run.get("system", ""))
    return str(system.get("gpu") or system.get("cpu") or run.get("system", ""))


class Measured(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        root = Path(self.env.srcdir)
        try:
            run, path, _ = runs.reference(self.text)
            _depend_on_run(self.env, run)
            number = runs.measured(root, self.text)
            record = runs.load_run(root, run)
            _depend_on_run(self.env, run, str(record.get("system", "")))
        except runs.RunError as problem:
            logger.warning(
                "%s: {measured}`%s`: %s", self.env.docname, self.text, problem, location=self.get_location()
            )
            return [nodes.problematic(self.rawtext, f"[no measurement: {self.text}]")], []
        if not number.valid:
            logger.warning(
                "%s: {measured}`%s`: the run is INVALID, its numbers are not shown; cite another run",
                self.env.docname,
                self.text,
                location=self.get_location(),
            )
        note = f"{path} of the run {run}, {str(record.get('date', ''))[:10]}, {_gpu(root, record)}"
        classes = ["measured"] if number.valid else ["measured", "run-invalid"]
        return [link_to_run(self.env, number.text, f"runs/{run}.json", note, classes, run)], []


def _link_numbers(app: Sphinx, doctree: nodes.document) -> None:
    """A number whose run has its box on the same page links to the box; any other to the run's file."""
    boxes = {box["run"] for box in doctree.findall(nodes.container) if "run-box" in box["classes"]}
    for number in list(doctree.findall(run_link)):
        if number["run"] in boxes:
            link = nodes.reference(
                "", "", *number.children, refid=f"run-{number['run']}", reftitle=number["note"], internal=True
            )
            link["classes"] = number["classes"]
            number.replace_self(link)


class RunBox(SphinxDirective):
    required_arguments = 1
    option_spec: ClassVar[dict] = {}

    def run(self) -> list[nodes.Node]:
        root, run = Path(self.env.srcdir), self.arguments[0].strip()
        _depend_on_run(self.env, run)
        try:
            record = runs.load_run(root, run)
            name = str(record.get("system", ""))
            _depend_on_run(self.env, run, name)
            system = runs.load_system(root, name)
        except runs.RunError as problem:
            logger.warning("%s: {run} %s: %s", self.env.docname, run, problem, location=self.get_location())
            text = f"[no run: {run}]"
            return [nodes.paragraph(text, text)]
        valid = record.get("status") == "ok"
        box = nodes.container(classes=["run-box"] if valid else ["run-box", "run-invalid"], ids=[f"run-{run}"], run=run)
        self.set_source_info(box)
        label = nodes.paragraph("", "", nodes.Text("Recorded run"), classes=["run-label"])
        if not valid:
            label += [nodes.Text(" "), nodes.strong("INVALID", "INVALID", classes=["run-verdict"])]
        box += label
        fields = nodes.field_list(classes=["run-fields"])
        box += fields

        def field(name: str, *content: nodes.Node | str) -> None:
            body = nodes.paragraph("", "", *(nodes.Text(c) if isinstance(c, str) else c for c in content))
            fields.append(nodes.field("", nodes.field_name("", name), nodes.field_body("", body)))

        field("What", str(record.get("what", "")))
        if not valid:
            field("Status", "INVALID: " + "; ".join(record.get("reasons") or ["no reason recorded"]))
        gpu = system.get("gpu")
        capability = system.get("compute_capability")
        field(
            "Machine",
            ", ".join(
                part
                for part in (
                    gpu and (f"{gpu} (compute capability {capability})" if capability else str(gpu)),
                    system.get("driver") and f"driver {system['driver']}",
                    system.get("cuda") and f"CUDA {system['cuda']}",
                    system.get("cpu"),
                    system.get("os"),
                )
                if part
            ),
        )
        versions = {"Python": system.get("python"), **(system.get("packages") or {})}
        field("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version))
        if system.get("clocks"):
            field("Clocks", ", ".join(f"{k} {v}" for k, v in system["clocks"].items()))
        field("Date", str(record.get("date", "")).replace("T", " ")[:16] + " UTC")
        command, commit = str(record.get("command", "")), str(record.get("commit", ""))[:12]
        field("Command", nodes.literal(command, command))
        field("Commit", nodes.literal(commit, commit))
        if valid:
            field("Status", "ok")
        target = f"/measurements/runs/{run}.json"
        field(
            "Record",
            addnodes.download_reference("", "", nodes.literal("", f"{run}.json"), reftarget=target, refdoc=self.env.docname),
        )
        return [box]


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


def banner(question: dict[str, Any]) -> nodes.paragraph:
    """The line under a question's title: level, minutes, topics, where it comes from."""
    parts: list[nodes.Node] = []
    level = str(question.get("level", ""))
    if level:
        parts.append(_span(level, "question-level", f"question-{level}"))
    minutes = question.get("minutes")
    if minutes:
        parts.append(_span(f"{minutes} minute{'' if minutes == 1 else 's'}", "question-minutes"))
    if question.get("topics"):
        parts.append(_span(", ".join(map(str, question["topics"])), "question-topics"))
    if provenance(question):
        parts.append(_span(provenance(question), "question-provenance"))
    return nodes.paragraph("", "", *_dotted(parts), classes=["question-banner"])


_PACKAGES = {"tensorrt_rtx": "TensorRT for RTX", "onnxruntime": "ONNX Runtime", "onnx": "onnx"}
_ENGINES = {"tensorrt": "TensorRT", "onnxruntime-gpu": "ONNX Runtime (GPU)", "onnxruntime": "ONNX Runtime", "torch": "PyTorch", "openvino": "OpenVINO", "numpy": "NumPy"}
_WAYS = {"trt": "tensorrt", "ort": "onnxruntime-gpu", "torch": "torch", "torchgraph": "torch", "compile": "torch", "autotune": "torch", "numpy": "numpy"}
_IMPORTS = re.compile(rf"^\s*(?:import|from)\s+({'|'.join(_PACKAGES)})\b", re.MULTILINE)


@functools.cache
def pinned(root: Path) -> dict[str, str]:
    """Versions that requirements.txt pins, of the packages that proofs import."""
    file = root / "requirements.txt"
    found = dict(re.findall(r"^([\w-]+)==([\w.]+)", file.read_text(encoding="utf-8"), re.MULTILINE)) if file.exists() else {}
    return {name: found.get(name.replace("_", "-"), "") for name in _PACKAGES}


def engine_of(run: dict[str, Any], system: dict[str, Any]) -> str:
    """The engine that a run is about, with its version, by what the run says of itself and what its system has; '' for none."""
    packages = system.get("packages") or {}
    name = _WAYS.get(str((run.get("configuration") or {}).get("way")), "")
    if name not in packages:
        about = str(run.get("id", "")).partition("_")[2].partition("_")[2]
        if about.startswith("book."):
            return ""
        order = ["torch"] if about.startswith("micro.") else list(_ENGINES)
        name = next((engine for engine in order if engine in packages), "")
    return f"{_ENGINES[name]} {packages[name]}" if name else ""


def seen(root: Path, page_runs: list[str], code: str) -> list[str]:
    """What a page was seen on, from its runs and from the imports of its proofs, which the book's tests run on a CPU."""
    found: dict[str, dict[str, int]] = {}
    for name in page_runs:
        try:
            run = runs.load_run(root, name)
            system = runs.load_system(root, str(run.get("system", "")))
        except runs.RunError:  # reported where the page asks for it
            continue
        engine, board = engine_of(run, system), re.search(r"NVIDIA ([\w-]+)", str(system.get("gpu")))
        if engine and run.get("status") == "ok":
            place = f"recorded on an {board[1]}" if board else f"recorded on a {'GPU' if system.get('gpu') else 'CPU'}"
            found.setdefault(place, {}).setdefault(engine, 0)
            found[place][engine] += 1
    parts = []
    imported = set(_IMPORTS.findall(code))
    if imported:
        names = [f"{label} {pinned(root)[name]}".strip() + (" (builds only)" if name == "tensorrt_rtx" else "") for name, label in _PACKAGES.items() if name in imported]
        parts.append(f"run by the tests on a CPU: {', '.join(names)}")
    for place, engines in sorted(found.items()):
        counted = [f"{engine} ({n} run{'' if n == 1 else 's'})" for engine, n in sorted(engines.items())]
        parts.append(f"{place}: {', '.join(counted)}")
    return parts


def _insert_banner(app: Sphinx, doctree: nodes.document) -> None:
    question = _question(app.env.metadata.get(app.env.docname, {}).get("question"))
    section = next(iter(doctree.findall(nodes.section)), None)
    if not question or section is None:
        return
    section.insert(1, banner(question))
    numbers = [Path(link["reftarget"]).stem for link in doctree.findall(run_link)]
    boxes = [box["run"] for box in doctree.findall(nodes.container) if "run-box" in box["classes"]]
    code = "\n".join(block.astext() for box in doctree.findall(nodes.container) if "proof-code" in box["classes"] for block in box.findall(nodes.literal_block))
    parts = seen(Path(app.srcdir), sorted({*numbers, *boxes}), code)
    if parts:
        app.env.note_dependency(str(Path(app.srcdir) / "requirements.txt"))
        line = nodes.paragraph("", "", nodes.Text("Seen: "), *_dotted([_span(part, "question-seen-part") for part in parts]), classes=["question-seen"])
        section.insert(2, line)


def chapter_questions(root: Path, chapter: str) -> list[Path]:
    return sorted((root / "book" / chapter / "questions").glob("*.md"))


class QuestionList(SphinxDirective):
    required_arguments = 1
    option_spec: ClassVar[dict] = {}

    def run(self) -> list[nodes.Node]:
        root, chapter = Path(self.env.srcdir), self.arguments[0].strip()
        files = chapter_questions(root, chapter)
        _lists(self.env).setdefault(self.env.docname, {})[chapter] = [file.name for file in files]
        if not files:
            logger.warning("{question-list} %s: no file book/%s/questions/*.md", chapter, chapter, location=self.get_location())
            return []
        items = nodes.bullet_list(classes=["question-list"])
        for file in files:
            self.env.note_dependency(str(file))
            try:
                question = _question(front_matter(file.read_text(encoding="utf-8")).get("question"))
            except PageError as problem:
                logger.warning("{question-list}: %s: %s", file.name, problem, location=self.get_location())
                continue
            asks = str(question.get("asks") or file.stem)
            link = addnodes.pending_xref(
                "",
                nodes.inline("", asks),
                refdoc=self.env.docname,
                refdomain="std",
                reftype="doc",
                refexplicit=True,
                refwarn=True,
                reftarget="/" + file.relative_to(root).with_suffix("").as_posix(),
            )
            self.set_source_info(link)
            level, minutes = str(question.get("level", "")), question.get("minutes")
            facts = [
                *([_span(level, "question-level", f"question-{level}")] if level else []),
                *([_span(f"{minutes} min", "question-minutes")] if minutes else []),
            ]
            note = nodes.inline("", "", *_dotted(facts), classes=["question-note"])
            items += nodes.list_item("", nodes.paragraph("", "", link, nodes.Text(" "), note))
        return [items]


def _lists(env: BuildEnvironment) -> dict[str, dict[str, list[str]]]:
    """For each page with lists: chapter -> files it listed, to see when a question comes or goes."""
    if not hasattr(env, "course_question_lists"):
        env.course_question_lists = {}
    return env.course_question_lists


def _outdated(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> list[str]:
    root = Path(env.srcdir)
    return [
        page
        for page, chapters in _lists(env).items()
        if page not in removed
        and any([file.name for file in chapter_questions(root, c)] != files for c, files in chapters.items())
    ]


def _purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    _lists(env).pop(docname, None)


def _merge(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    _lists(env).update({name: value for name, value in _lists(other).items() if name in docnames})


def _settle_footnotes(app: Sphinx, config: Config) -> None:
    """``{footcite}`` makes footnotes that MyST did not write: it warns that it does not know them, and draws a rule for
    them at the end of the page. docutils still reports a footnote that nobody wrote."""
    config.suppress_warnings = [*config.suppress_warnings, "myst.footnote"]
    config.myst_footnote_transition = False


def _register_reference_style() -> None:
    """``bibtex_default_style: as_written``: like plain, which would write "TensorRT" in a title as "tensorrt"."""
    from pybtex import plugin
    from pybtex.style.formatting.plain import Style
    from pybtex.style.template import field, sentence

    class AsWritten(Style):
        def format_title(self, e: Any, which_field: str, as_sentence: bool = True) -> Any:
            title = field(which_field)
            return sentence[title] if as_sentence else title

    plugin.register_plugin("pybtex.style.formatting", "as_written", AsWritten, force=True)
    # pybtex reads the metadata of all installed packages for each citation: a third of a cold build, and always the same answer.
    if not hasattr(plugin._load_entry_point, "cache_info"):
        plugin._load_entry_point = functools.cache(plugin._load_entry_point)


def _copy_style(app: Sphinx) -> None:
    if app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        copy_asset_file(str(Path(__file__).with_name("questions.css")), str(static))


def setup(app: Sphinx) -> dict[str, Any]:
    _register_reference_style()
    app.add_directive("proof", Proof)
    app.add_directive("output", Output)
    app.add_directive("run", RunBox)
    app.add_directive("question-list", QuestionList)
    app.add_role("api", Api())
    app.add_role("measured", Measured())
    passes = (_pass, _pass)
    app.add_node(run_link, html=(_visit_run_link, _depart_run_link), latex=passes, text=passes, man=passes, texinfo=passes)
    app.connect("config-inited", _settle_footnotes)
    app.connect("builder-inited", _copy_style)
    app.connect("doctree-read", _insert_banner)
    app.connect("doctree-read", _link_numbers)
    app.connect("env-get-outdated", _outdated)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)
    app.add_css_file("questions.css")
    return {"version": "2", "env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
