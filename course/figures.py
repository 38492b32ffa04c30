"""Sphinx extension: tables of recorded runs, each cell a link to the run it is read from.

    ```{bench-table} resnet50 fp16
    :systems: h200x2-trt86, h200x2-ort131
    ```

Rows are the ways a model was run, columns the batch sizes; a cell is the median time a batch, back to back, in milliseconds.
A configuration without a valid run shows a dash: nothing is filled in. Under the table stands on which boards and when.

    ```{cost-table} resnet50 fp16
    :systems: h200x2-trt86, h200x2-ort131
    :price: 3.50
    ```

The same runs as money: US dollars for a million inferences on a GPU that costs ``price`` US dollars an hour and is never idle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from course import runs

logger = logging.getLogger(__name__)
TITLES = {
    "trt": "TensorRT, CUDA graph", "ort": "ONNX Runtime CUDA, IOBinding, CUDA graph", "compile": "torch.compile, reduce-overhead",
    "autotune": "torch.compile, max-autotune", "torchgraph": "torch eager in a CUDA graph", "torch": "torch eager",
}


def newest(root: Path, model: str, precision: str, systems: list[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """The newest valid run of each (way, batch) of the model in that precision on one of ``systems``."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted((root / "measurements/runs").glob(f"*_gpu.{model}-{precision}-b*.json")):
        run = runs.load_run(root, path.stem)
        setting = run.get("configuration", {})
        if run.get("status") == "ok" and run.get("system") in systems:
            found[setting["way"], setting["batch"]] = run
    return found


def cost_per_million(run: dict[str, Any], price: float) -> float:
    """US dollars for a million inferences at ``price`` US dollars a GPU hour, when batches follow each other without a gap.

    The run gives the milliseconds of a batch, so ``ms / batch`` is the GPU time of one inference. A million of them take a million
    times that, and an hour has 3.6 million milliseconds: the price of the hour times ``ms / batch / 3.6``.
    """
    return price * run["results"]["back_to_back"]["p50"] / run["configuration"]["batch"] / 3.6


def _price(argument: str | None) -> float:
    price = float(directives.unchanged_required(argument))
    if not 0 < price < float("inf"):
        raise ValueError(f"{argument!r} is not a price; give the US dollars of one GPU hour, for example 3.50")
    return price


class BenchTable(SphinxDirective):
    required_arguments = 2
    option_spec: ClassVar[dict] = {"systems": directives.unchanged_required}

    def corner(self) -> str:
        return "ms a batch, median"

    def shown(self, run: dict[str, Any]) -> str:
        return f"{run['results']['back_to_back']['p50']:.3g}"

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        model, precision = self.arguments
        systems = [name.strip() for name in self.options.get("systems", "").split(",") if name.strip()]
        try:
            found = newest(root, model, precision, systems)
        except runs.RunError as problem:
            logger.warning("{%s}: %s", self.name, problem, location=self.get_location())
            return []
        if not found:
            logger.warning("{%s} %s %s: no valid run on %s", self.name, model, precision, ", ".join(systems), location=self.get_location())
            return []
        for run in found.values():
            self.env.note_dependency(str(runs.run_path(root, run["id"])))
        batches = sorted({batch for _, batch in found})
        ways = [way for way in TITLES if any(way == w for w, _ in found)]
        table, group = nodes.table(classes=["bench-table"]), nodes.tgroup(cols=len(batches) + 1)
        table += group
        for width in (40, *[12] * len(batches)):
            group += nodes.colspec(colwidth=width)
        head, body = nodes.thead(), nodes.tbody()
        group += [head, body]

        def row(*cells: nodes.Node) -> nodes.row:
            return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))

        head += row(nodes.Text(self.corner()), *(nodes.Text(f"batch {batch}") for batch in batches))
        for way in ways:
            cells: list[nodes.Node] = [nodes.Text(TITLES[way])]
            for batch in batches:
                run = found.get((way, batch))
                if not run:
                    cells.append(nodes.Text("–"))
                    continue
                cells.append(addnodes.download_reference("", "", nodes.Text(self.shown(run)), reftarget=f"/measurements/runs/{run['id']}.json",
                                                         refdoc=self.env.docname, reftitle=f"{run['id']}, spread {run['results']['back_to_back']['spread']:.1%}"))
            body += row(*cells)
        self.set_source_info(table)
        return [table, self.note(root, found)]

    def note(self, root: Path, found: dict) -> nodes.Node:
        shown = list(found.values())
        spread = max(run["results"]["back_to_back"]["spread"] for run in shown)
        dates = sorted({run["date"][:10] for run in shown})
        boards = sorted({str(run["configuration"].get("gpu_board")) for run in shown})
        parts = []
        for name in sorted({run["system"] for run in shown}):
            self.env.note_dependency(str(runs.system_path(root, name)))
            system = runs.load_system(root, name)
            versions = ", ".join(f"{package} {version}" for package, version in system["packages"].items() if package not in ("onnx", "numpy"))
            parts.append(f"{system['gpu']}, driver {system['driver']}, {versions}")
        text = (f"{'; '.join(parts)}. {' to '.join(dict.fromkeys((dates[0], dates[-1])))}. Boards: {', '.join(boards)}. Widest spread between the rounds "
                f"of a run: {spread:.1%}. Each number leads to its run, with the samples, the command, the clocks and the error of the same outputs.")
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
        return f"{cost_per_million(run, self.options['price']):.3g}"


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("bench-table", BenchTable)
    app.add_directive("cost-table", CostTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
