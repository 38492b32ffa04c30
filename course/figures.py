"""Sphinx extension: tables of recorded runs, each cell a link to the run it is read from.

    ```{bench-table} resnet50 fp16
    :systems: h200x2-trt86, h200x2-ort131
    ```

Rows are the ways a model was run, columns the batch sizes; a cell is the median time a batch, back to back, in milliseconds.
A configuration without a valid run shows a dash: nothing is filled in. Under the table stands on which boards and when.
``:suite: cpu`` shows runs of the suite cpu.

    ```{peer-table} cnn fp32
    :systems: epyc-2core-peers
    ```

Runs of the suite cpupeers: the first row is ONNX Runtime's time, the others are ratios to it, with the least and the largest of the rounds.
``:of: cpu`` shows the runs that are judged by their processor time, and that time, in place of those by the clock.

    ```{cost-table} resnet50 fp16
    :systems: h200x2-trt86, h200x2-ort131
    :price: 3.50
    ```

The same runs as money: US dollars for a million inferences on a GPU that costs ``price`` US dollars an hour and is never idle.

    ```{share-table} resnet50 fp16
    :systems: h200x2-trt86, h200x2-ort131
    :limits: h200x2-ort131
    ```

The same runs as a share of the speed of light: the least time that the machine ``limits`` was measured to allow, over the time taken.

    ```{error-table} resnet50 fp16
    :systems: h200x2-trt86, h200x2-ort131
    ```

The error of the same runs' own outputs, as models.accuracy measures it; the corner says how much is tolerated.

    ```{bench-plot} resnet50 fp16
    :systems: h200x2-trt86, h200x2-ort131
    :limits: h200x2-ort131
    ```

The same runs as inferences a second by batch, with that least time as a dashed line. ``{growth-plot} epyc-2core`` draws what building the book costs.
``{graded-table} 03_tensorrt`` lists the newest run of each exercise's grader on a GPU.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from course import plots, questions, runs

logger = logging.getLogger(__name__)
TITLES = {
    "trt": "TensorRT, CUDA graph", "ort": "ONNX Runtime CUDA, IOBinding, CUDA graph", "compile": "torch.compile, reduce-overhead",
    "autotune": "torch.compile, max-autotune", "torchgraph": "torch eager in a CUDA graph", "torch": "torch eager",
}


CPU_TITLES = {"ort": "ONNX Runtime, one thread", "numpy": "NumPy, the threads of its BLAS", "torch": "torch eager, one thread"}


def valid_runs(root: Path, pattern: str) -> list[dict[str, Any]]:
    """The valid runs whose id matches the pattern, oldest first."""
    found = (runs.load_run(root, path.stem) for path in sorted((root / "measurements/runs").glob(f"{pattern}.json")))
    return [run for run in found if run.get("status") == "ok"]


def newest(root: Path, model: str, precision: str, systems: list[str], suite: str = "gpu") -> dict[tuple[str, int], dict[str, Any]]:
    """The newest valid run of each (way, batch) of the model in that precision on one of ``systems``, in the suite gpu or cpu."""
    return {(run["configuration"]["way"], run["configuration"]["batch"]): run for run in valid_runs(root, f"*_{suite}.{model}-{precision}-b*")
            if run.get("system") in systems}


def cost_per_million(run: dict[str, Any], price: float) -> float:
    """US dollars for a million inferences at ``price`` US dollars a GPU hour, when batches follow each other without a gap.

    The run gives the milliseconds of a batch, so ``ms / batch`` is the GPU time of one inference. A million of them take a million
    times that, and an hour has 3.6 million milliseconds: the price of the hour times ``ms / batch / 3.6``.
    """
    return price * run["results"]["back_to_back"]["p50"] / run["configuration"]["batch"] / 3.6


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one machine was measured to do: bytes a second of a copy, operations a second of a large matrix product, and those runs."""

    bandwidth: float
    rate: float
    runs: tuple[dict[str, Any], ...]

    def least_ms(self, counts: dict[str, Any]) -> float:
        """The roofline's time: the longer of moving ``counts["bytes"]`` and doing ``counts["operations"]``."""
        return max(counts["bytes"] / self.bandwidth, counts["operations"] / self.rate) * 1e3


def limits(root: Path, system: str, precision: str) -> Limits:
    """The newest valid micro runs of ``system``: the copy, and the matrix product in ``precision``. Raises RunError where one is missing."""
    found = []
    for case in ("copy", f"matmul-{precision}"):
        valid = valid_runs(root, f"*_{system}_micro.{case}")
        if not valid:
            raise runs.RunError(f"no valid run micro.{case} on {system}: the speed of light of that machine is not known")
        found.append(valid[-1])
    return Limits(found[0]["results"]["bytes_per_s"], found[1]["results"]["operations_per_s"], tuple(found))


def counts_of(root: Path, model: str, precision: str, batch: int) -> dict[str, Any]:
    """Operations and least bytes of one batch, from measurements/counts.json; FP32 and TF32 are stored in 32 bits.

    Raises RunError for INT8, whose bytes depend on which tensors an engine keeps in 8 bits, and for a model that was not counted.
    """
    storage = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16"}.get(precision)
    kept = json.loads((root / "measurements/counts.json").read_text(encoding="utf-8"))
    try:
        return kept[model][storage][str(batch)]
    except KeyError:
        raise runs.RunError(f"measurements/counts.json has no counts of {model} in {precision} at batch {batch}; run python -m course.bench.count") from None


def _price(argument: str | None) -> float:
    price = float(directives.unchanged_required(argument))
    if not 0 < price < float("inf"):
        raise ValueError(f"{argument!r} is not a price; give the US dollars of one GPU hour, for example 3.50")
    return price


def _suite(argument: str | None) -> str:
    return directives.choice(argument, ("gpu", "cpu"))


def tabulated(kind: str, widths: tuple[int, ...], head: list[nodes.Node | str], rows: list[list[nodes.Node | str]]) -> nodes.table:
    """A table with one head row. kind: its class. widths: of the columns, in shares. A cell is a text or an inline node."""
    table, group = nodes.table(classes=[kind]), nodes.tgroup(cols=len(widths))
    table += group
    for width in widths:
        group += nodes.colspec(colwidth=width)
    parts = nodes.thead(), nodes.tbody()
    group += parts
    for part, cells in ((parts[0], head), *((parts[1], row) for row in rows)):
        part += nodes.row("", *(nodes.entry("", nodes.paragraph("", "", nodes.Text(cell) if isinstance(cell, str) else cell)) for cell in cells))
    return table


class BenchTable(SphinxDirective):
    required_arguments = 2
    option_spec: ClassVar[dict] = {"systems": directives.unchanged_required, "suite": _suite}

    @property
    def titles(self) -> dict[str, str]:
        return CPU_TITLES if self.options.get("suite") == "cpu" else TITLES

    def corner(self) -> str:
        return "ms a batch, median"

    def shown(self, run: dict[str, Any]) -> str:
        return f"{run['results']['back_to_back']['p50']:.3g}"

    def found(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The runs of the table, after noting that the page depends on them; empty, with a warning, where there is none."""
        root = Path(self.env.srcdir)
        model, precision = self.arguments
        systems = [name.strip() for name in self.options.get("systems", "").split(",") if name.strip()]
        found = newest(root, model, precision, systems, self.options.get("suite", "gpu"))
        if not found:
            raise runs.RunError(f"{model} {precision}: no valid run on {', '.join(systems)}")
        for run in found.values():
            self.env.note_dependency(str(runs.run_path(root, run["id"])))
        return found

    def run(self) -> list[nodes.Node]:
        try:
            return self.drawn(self.found())
        except runs.RunError as problem:
            logger.warning("{%s}: %s", self.name, problem, location=self.get_location())
            return []

    def drawn(self, found: dict[tuple[str, int], dict[str, Any]]) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        batches = sorted({batch for _, batch in found})
        ways = [way for way in self.titles if any(way == w for w, _ in found)]
        rows = []
        for way in ways:
            cells: list[nodes.Node] = [nodes.Text(self.titles[way])]
            for batch in batches:
                run = found.get((way, batch))
                if not run:
                    cells.append(nodes.Text("–"))
                    continue
                note = f"{run['id']}, spread {run['results']['back_to_back']['spread']:.1%}"
                cells.append(questions.link_to_run(self.env, self.shown(run), f"runs/{run['id']}.json", note, ["measured"]))
            rows.append(cells)
        table = tabulated("bench-table", (40, *[12] * len(batches)), [self.corner(), *(f"batch {batch}" for batch in batches)], rows)
        self.set_source_info(table)
        return [table, self.note(root, found)]

    def note(self, root: Path, found: dict) -> nodes.Node:
        shown = list(found.values())
        spread = max(run["results"]["back_to_back"]["spread"] for run in shown)
        dates = sorted({run["date"][:10] for run in shown})
        boards = sorted({board for run in shown if (board := run["configuration"].get("gpu_board"))})
        parts = []
        for name in sorted({run["system"] for run in shown}):
            self.env.note_dependency(str(runs.system_path(root, name)))
            system = runs.load_system(root, name)
            versions = ", ".join(f"{package} {version}" for package, version in system["packages"].items() if package not in ("onnx", "numpy" if system["gpu"] else "tensorrt-rtx"))
            machine = f"{system['gpu']}, driver {system['driver']}" if system["gpu"] else f"{system['cpu']}, Python {system['python']}"
            parts.append(f"{machine}, {versions}")
        where = f" Boards: {', '.join(boards)}." if boards else ""
        text = (f"{'; '.join(parts)}. {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.{where} Widest spread between the rounds "
                f"of a run: {spread:.1%}. Each number leads to its run, with the samples, the command, the clocks and the error of the same outputs.")
        return nodes.paragraph(text, text, classes=["bench-note"])


class PeerTable(BenchTable):
    """The peers of one run in turns: columns are batch and threads, a cell is a ratio to ONNX Runtime in the same rounds."""

    option_spec: ClassVar[dict] = {"systems": directives.unchanged_required, "of": lambda argument: directives.choice(argument, ("clock", "cpu"))}

    def found(self) -> dict[tuple[int, int], dict[str, Any]]:
        root = Path(self.env.srcdir)
        model, precision = self.arguments
        systems = [name.strip() for name in self.options.get("systems", "").split(",") if name.strip()]
        judged = self.options.get("of", "clock")
        found = {(run["configuration"]["batch"], run["configuration"]["threads"]): run for run in valid_runs(root, f"*_cpupeers.{model}-{precision}-b*-t*")
                 if run.get("system") in systems and run["configuration"]["judged"] == judged}
        if not found:
            raise runs.RunError(f"{model} {precision}: no valid run of cpupeers on {', '.join(systems)}, judged by {judged}")
        for run in found.values():
            self.env.note_dependency(str(runs.run_path(root, run["id"])))
        return found

    def cell(self, run: dict[str, Any], way: str) -> str:
        kind = run["configuration"]["judged"]
        if way == "ort":
            return f"{run['results'][f'ort_{kind}_back_to_back']['p50']:.3g} ms"
        ratio = run["results"]["ratio"][kind][way]
        return f"{ratio['p50']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"

    def drawn(self, found: dict[tuple[int, int], dict[str, Any]]) -> list[nodes.Node]:
        columns = sorted(found)
        titles = found[columns[-1]]["configuration"]["ways"]
        heads = [f"batch {batch}, {threads} thread{'s' * (threads > 1)}" for batch, threads in columns]
        rows = [[titles[way], *(self.linked(found[column], way) for column in columns)] for way in titles]
        corner = "processor time" if self.options.get("of") == "cpu" else "time by the clock"
        table = tabulated("bench-table", (40, *[20] * len(columns)), [corner, *heads], rows)
        self.set_source_info(table)
        return [table, self.note(Path(self.env.srcdir), found)]

    def linked(self, run: dict[str, Any], way: str) -> nodes.Node | str:
        if way not in run["results"]["ratio"]["clock"]:
            return "–"
        return questions.link_to_run(self.env, self.cell(run, way), f"runs/{run['id']}.json", run["id"], ["measured"])

    def note(self, root: Path, found: dict) -> nodes.Node:
        shown = list(found.values())
        dates = sorted({run["date"][:10] for run in shown})
        parts = []
        for name in sorted({run["system"] for run in shown}):
            self.env.note_dependency(str(runs.system_path(root, name)))
            system = runs.load_system(root, name)
            versions = ", ".join(f"{package} {system['packages'][package]}" for package in ("onnxruntime", "numpy", "torch", "openvino") if package in system["packages"])
            parts.append(f"{system['cpu']}, Python {system['python']}, {versions}")
        worst = max(run["accuracy"]["error"] for run in shown)
        text = (f"{'; '.join(parts)}. {' to '.join(dict.fromkeys((dates[0], dates[-1])))}. First row: the median time of a batch. Below it: time over the first row's in the same round, the median of "
                f"{' or '.join(str(n) for n in sorted({run['configuration']['rounds'] for run in shown}))} rounds, and the least and the largest. Largest error of all outputs: {worst:.1e} of their spread, "
                f"where {shown[0]['accuracy']['tolerance']:g} is tolerated. Each number leads to its run, with the samples of every peer.")
        return nodes.paragraph(text, text, classes=["bench-note"])


class CostTable(BenchTable):
    option_spec: ClassVar[dict] = {**BenchTable.option_spec, "price": _price}

    def run(self) -> list[nodes.Node]:
        if "price" not in self.options:
            logger.warning("{cost-table} %s: no price; add ':price:' with the US dollars of one GPU hour", " ".join(self.arguments), location=self.get_location())
            return []
        return super().run()

    def corner(self) -> str:
        return f"USD a million, GPU at {self.options['price']:.2f} USD an hour"

    def shown(self, run: dict[str, Any]) -> str:
        return f"{cost_per_million(run, self.options['price']):#.3g}".rstrip(".")  # zeros kept: the cells of a row have the same digits


class ErrorTable(BenchTable):
    """How far each run's outputs were from float64, over the outputs' own spread: the accuracy of the work that was timed."""

    def corner(self) -> str:
        return "error, share of the outputs' spread"

    def shown(self, run: dict[str, Any]) -> str:
        return f"{run['accuracy']['error']:.1e}"

    def note(self, root: Path, found: dict) -> nodes.Node:
        allowed = sorted({run["accuracy"]["tolerance"] for run in found.values()})
        text = (f"Root mean square distance of the timed outputs from float64, over how much the float64 outputs differ from input to input; "
                f"up to {' or '.join(f'{value:g}' for value in allowed)} is tolerated, and a run above it is INVALID.")
        return nodes.paragraph(text, text, classes=["bench-note"])


class ShareTable(BenchTable):
    option_spec: ClassVar[dict] = {**BenchTable.option_spec, "limits": directives.unchanged_required}

    def corner(self) -> str:
        return "% of the speed of light"

    def found(self) -> dict[tuple[str, int], dict[str, Any]]:
        found = super().found()
        root = Path(self.env.srcdir)
        self.limits = limits(root, self.options.get("limits", ""), self.arguments[1])
        for run in self.limits.runs:
            self.env.note_dependency(str(runs.run_path(root, run["id"])))
        self.env.note_dependency(str(root / "measurements/counts.json"))
        return found

    def shown(self, run: dict[str, Any]) -> str:
        counts = counts_of(Path(self.env.srcdir), *self.arguments, run["configuration"]["batch"])
        return f"{100 * self.limits.least_ms(counts) / run['results']['back_to_back']['p50']:.2g}"

    def note(self, root: Path, found: dict) -> nodes.Node:
        def link(text: str, target: str) -> nodes.Node:
            return questions.link_to_run(self.env, text, target, target, ["measured"])

        copy, product = self.limits.runs
        return nodes.paragraph("", "", nodes.Text("The limit: "), link("operations and bytes counted from the ONNX graph", "counts.json"), nodes.Text(", "),
                               link("the copy", f"runs/{copy['id']}.json"), nodes.Text(" and "), link("the matrix product", f"runs/{product['id']}.json"),
                               nodes.Text(" measured on the machine. The time: the run behind each number."), classes=["bench-note"])


class BenchPlot(ShareTable):
    """Inferences a second by batch, and the limit; the table beside it has the numbers."""

    NAMES: ClassVar[dict] = {"mlp": "MLP 784-128-10", "resnet50": "ResNet-50", "bert": "BERT-base, 128 tokens"}

    def drawn(self, found: dict[tuple[str, int], dict[str, Any]]) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        model, precision = self.arguments
        lines = []
        for slot, (way, title) in enumerate(TITLES.items()):
            points = sorted((batch, batch / run["results"]["back_to_back"]["p50"] * 1e3) for (w, batch), run in found.items() if w == way)
            if points:
                lines.append(plots.Line(title, *zip(*points, strict=True), slot=slot))
        batches = sorted({batch for _, batch in found})
        least = [batch / self.limits.least_ms(counts_of(root, model, precision, batch)) * 1e3 for batch in batches]
        lines.append(plots.Line("speed of light of this machine", batches, least, limit=True))
        title = f"{self.NAMES[model]}, {precision.upper()}: inferences a second by batch, the table's numbers drawn"
        drawing = plots.chart(lines, title, "batch", "inferences a second", ticks=batches)
        return [framed(drawing, title)]


def framed(drawing: str, title: str) -> nodes.Node:
    """The drawing in a box that scrolls on a phone, by keyboard too."""
    return nodes.raw("", f'<div class="drawing" role="region" aria-label="{html.escape(title)}" tabindex="0">{drawing}</div>', format="html")


class GrowthPlot(SphinxDirective):
    """Processor seconds of a build by the number of questions, from the newest valid runs of ``course.bench book`` on a system."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        root, system = Path(self.env.srcdir), self.arguments[0]
        try:
            newest = {run["configuration"]["questions"]: run for run in valid_runs(root, f"*_{system}_book.build-*")}
            if len(newest) < 2:
                raise runs.RunError(f"{len(newest)} valid runs book.build-* on {system}: growth needs two sizes or more")
        except runs.RunError as problem:
            logger.warning("{growth-plot}: %s", problem, location=self.get_location())
            return []
        sizes = sorted(newest)
        for run in newest.values():
            self.env.note_dependency(str(runs.run_path(root, run["id"])))
        cold, warm = ([newest[size]["results"][name]["p50"] for size in sizes] for name in ("cold_build_cpu", "warm_build_cpu"))
        lines = [plots.Line("cold build", sizes, cold), plots.Line("after one changed question", sizes, warm),
                 plots.Line(f"proportional to the {sizes[0]}-question cold build", [0, sizes[-1]], [0, cold[0] * sizes[-1] / sizes[0]], limit=True)]
        title = "Processor seconds to build the book, by its number of questions"
        return [framed(plots.chart(lines, title, "questions", "processor seconds", log=False, ticks=sizes), title)]


class GradedTable(SphinxDirective):
    """The newest run of each exercise's grader on a GPU machine: ``{graded-table} 03_tensorrt``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        root, chapter = Path(self.env.srcdir), self.arguments[0]
        newest: dict[str, dict[str, Any]] = {}
        for run in valid_runs(root, f"*_{chapter[:2]}-*grader"):
            tests = run["configuration"].get("tests") or f"tests/{chapter}/test_ex01"  # the first runs graded the only exercise that there was
            newest[re.search(r"ex\d\d", tests)[0]] = run
        if not newest:
            logger.warning("{graded-table} %s: no valid run of a grader", chapter, location=self.get_location())
            return []
        rows = []
        for name, run in sorted(newest.items()):
            self.env.note_dependency(str(runs.run_path(root, run["id"])))
            self.env.note_dependency(str(runs.system_path(root, run["system"])))
            system, results = runs.load_system(root, run["system"]), run["results"]
            passed = f"{results['passed']} of {results['passed'] + results['failed']}"
            link = questions.link_to_run(self.env, passed, f"runs/{run['id']}.json", run["command"], ["measured"])
            rows.append([str(int(name[2:])), link, str(results["skipped"]), f"{questions.engine_of(run, system)}, {system['gpu'].partition(',')[0]}, {run['date'][:10]}"])
        table = tabulated("graded-table", (20, 20, 20, 60), ["exercise", "checks passed", "not run there", "on"], rows)
        self.set_source_info(table)
        return [table]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("graded-table", GradedTable)
    app.add_directive("bench-table", BenchTable)
    app.add_directive("peer-table", PeerTable)
    app.add_directive("cost-table", CostTable)
    app.add_directive("error-table", ErrorTable)
    app.add_directive("share-table", ShareTable)
    app.add_directive("bench-plot", BenchPlot)
    app.add_directive("growth-plot", GrowthPlot)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
