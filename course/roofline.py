"""Sphinx extension: `{roofline} FILE.yml`, a roofline that the reader can move.

The file beside the page names machines, types and layers (book/01_foundations/roofline.yml says what each field means).
Python checks it and writes all of the HTML, with a table that is there without a script; course/roofline.js makes it move.
Nothing is asked of another host.
"""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ASSETS = ("roofline.css", "roofline.js")


class RooflineError(ValueError):
    """A data file that cannot be drawn."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one product of (m, k) with (k, n); seconds, bytes, operations."""

    operations: int
    bytes: int
    memory_time: float
    arithmetic_time: float

    @property
    def intensity(self) -> float:
        return self.operations / self.bytes

    @property
    def bound(self) -> str:
        return "compute-bound" if self.arithmetic_time > self.memory_time else "memory-bound"

    @property
    def time(self) -> float:
        return max(self.memory_time, self.arithmetic_time)


def predict(bandwidth: float, rate: float, size: int, m: int, n: int, k: int) -> Prediction:
    """The roofline of one matrix product.

    bandwidth: bytes a second. rate: operations a second. size: bytes of an element of all three matrices.
    m, n, k: the product is (m, k) times (k, n). Each matrix crosses the memory bus once.
    """
    operations, moved = 2 * m * n * k, size * (m * k + k * n + m * n)
    return Prediction(operations, moved, moved / bandwidth, operations / rate)


def load(path: Path) -> dict[str, Any]:
    """The checked data file. Raises RooflineError, with the place, where a field is missing or is no positive number."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as problem:
        raise RooflineError(f"{path.name}: {problem}") from problem

    def need(good: bool, where: str, what: str) -> None:
        if not good:
            raise RooflineError(f"{path.name}: {where}: {what}")

    def positive(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")

    need(isinstance(data, dict), "the file", "is no mapping with types, hardware and layers")
    for part, kind in (("types", dict), ("hardware", list), ("layers", list)):
        need(isinstance(data.get(part), kind) and data[part], part, "is missing or empty")
    for name, entry in data["types"].items():
        need(isinstance(entry, dict) and positive(entry.get("bytes")) and "name" in entry, f"types.{name}", "needs a name and bytes")
    for i, entry in enumerate(data["hardware"]):
        where = f"hardware[{i}]"
        need(isinstance(entry, dict) and {"id", "name", "bandwidth", "rates", "source"} <= entry.keys(), where,
             "needs id, name, bandwidth, rates and source")
        need(positive(entry["bandwidth"]), where, "bandwidth is no positive number of GB/s")
        need(isinstance(entry["rates"], dict) and entry["rates"], where, "rates is empty")
        for name, rate in entry["rates"].items():
            need(name in data["types"] and positive(rate), where, f"rates.{name} is no type of this file, or no positive number")
    need(len({e["id"] for e in data["hardware"]}) == len(data["hardware"]), "hardware", "an id stands there twice")
    for i, entry in enumerate(data["layers"]):
        need(isinstance(entry, dict) and "name" in entry and all(isinstance(entry.get(x), int) and entry[x] > 0 for x in "mnk"),
             f"layers[{i}]", "needs a name and whole numbers m, n, k")
    return data


def _number(value: float, digits: int = 3) -> str:
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def seconds(value: float) -> str:
    """A time as a reader wants it: 6.99 µs."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if float(f"{value:.3g}") >= scale:
            return f"{_number(value / scale)} {unit}"
    return f"{_number(value / 1e-9)} ns"


def table_html(data: dict[str, Any]) -> str:
    """The figures, and each layer of the file worked out in 16 bits: what a reader has without a script."""
    types, rows = data["types"], []
    for machine in data["hardware"]:
        sparse, derived = machine.get("printed_with_sparsity", ()), machine.get("derived", {})
        for i, (name, rate) in enumerate(machine["rates"].items()):
            head = f'<th scope="rowgroup" rowspan="{len(machine["rates"])}">{html.escape(machine["name"])}<br>{machine["bandwidth"]:,} GB/s</th>'
            note = "; ".join(filter(None, (
                "half of the printed figure, which assumes 2:4 sparsity" if name in sparse else "",
                f"not printed: {derived[name]}" if name in derived else "",
            )))
            rows.append(
                f'<tr>{head if not i else ""}<td>{html.escape(types[name]["name"])}</td><td>{rate:,}</td>'
                f"<td>{_number(1000 * rate / machine['bandwidth'])}</td><td>{html.escape(note) or 'as printed'}</td></tr>"
            )
    figures = (
        '<table class="icr-table"><caption>The figures: dense rates of the data sheets</caption><thead><tr>'
        '<th scope="col">Machine</th><th scope="col">Type</th><th scope="col">10<sup>12</sup> operations a second</th>'
        '<th scope="col">Ridge, operations a byte</th><th scope="col">Note</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    head = "".join(f'<th scope="col">{html.escape(layer["name"])}</th>' for layer in data["layers"])
    body = []
    kind = "fp16" if all("fp16" in machine["rates"] for machine in data["hardware"]) else next(iter(types))
    for machine in data["hardware"]:
        if kind not in machine["rates"]:
            continue
        cells = []
        for layer in data["layers"]:
            p = predict(machine["bandwidth"] * 1e9, machine["rates"][kind] * 1e12, types[kind]["bytes"], layer["m"], layer["n"], layer["k"])
            cells.append(f"<td>{p.bound}, at least {seconds(p.time)}</td>")
        body.append(f'<tr><th scope="row">{html.escape(machine["name"])}</th>{"".join(cells)}</tr>')
    worked = (
        f'<table class="icr-table"><caption>Predicted, not measured: {html.escape(types[kind]["name"])}, without launch cost</caption>'
        f'<thead><tr><th scope="col">Machine</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    )
    scroll = '<div class="icr-scroll" tabindex="0" role="region" aria-label="{}">{}</div>'
    return scroll.format("Figures of the data sheets", figures) + scroll.format("Layers worked out", worked)


def _select(own: str, key: str, label: str, options: list[tuple[str, str]], chosen: str) -> str:
    entries = "".join(
        f'<option value="{html.escape(value)}"{" selected" if value == chosen else ""}>{html.escape(text)}</option>' for value, text in options
    )
    return (f'<div class="icr-field"><label for="{own}-{key}">{label}</label>'
            f'<select id="{own}-{key}" data-key="{key}" autocomplete="off">{entries}</select></div>')


def _slider(own: str, key: str, label: str, low: int, high: int, value: int) -> str:
    """A slider over powers of two, and a field for any whole number beside it."""
    return (
        f'<div class="icr-field"><label for="{own}-{key}">{label}</label><div class="icr-pair">'
        f'<input type="range" id="{own}-{key}-slider" data-slider="{key}" min="{low}" max="{high}" step="1" '
        f'value="{max(low, min(high, value.bit_length() - 1))}" aria-label="{label}, in powers of two" autocomplete="off">'
        f'<input type="number" id="{own}-{key}" data-key="{key}" min="1" max="{2**20}" step="1" value="{value}" '
        f'inputmode="numeric" autocomplete="off"></div></div>'
    )


def roofline_html(data: dict[str, Any], own: str) -> str:
    """The widget. `own` begins each id and is unique on the page."""
    first = data["layers"][0]
    machines = [(machine["id"], machine["name"]) for machine in data["hardware"]]
    payload = json.dumps({key: data[key] for key in ("types", "hardware", "layers")}, ensure_ascii=True).replace("<", "\\u003c")
    controls = "".join((
        _select(own, "machine", "Machine", machines, "h100" if ("h100" in dict(machines)) else machines[0][0]),
        _select(own, "type", "Type of all three matrices", [(key, entry["name"]) for key, entry in data["types"].items()], "fp16"),
        _select(own, "layer", "Start from", [(str(i), layer["name"]) for i, layer in enumerate(data["layers"])] + [("", "your own sizes")], "0"),
        _slider(own, "m", "M: rows, that is batch or tokens", 0, 14, first["m"]),
        _slider(own, "n", "N: outputs", 4, 14, first["n"]),
        _slider(own, "k", "K: inputs", 4, 14, first["k"]),
        f'<div class="icr-field"><label for="{own}-launch">Launch cost you assume, in µs</label><div class="icr-pair">'
        f'<input type="range" data-slider="launch" min="0" max="20" step="0.5" value="0" '
        f'aria-label="Launch cost you assume, in microseconds" autocomplete="off">'
        f'<input type="number" id="{own}-launch" data-key="launch" min="0" max="1000" step="0.5" value="0" inputmode="decimal" '
        f'autocomplete="off"></div></div>',
    ))
    return f"""<div class="icr" id="{own}" role="group" aria-label="Roofline to move">
<div class="icr-live" hidden>
<div class="icr-controls">{controls}</div>
<div class="icr-chart"></div>
<p class="icr-verdict" role="status" aria-live="polite"></p>
<dl class="icr-facts"></dl>
<div class="icr-scroll" tabindex="0" role="region" aria-label="The same layer on every machine"><table class="icr-table icr-all">
<caption>The same layer on every machine, predicted</caption>
<thead><tr><th scope="col">Machine</th><th scope="col">Ridge</th><th scope="col">Bound</th><th scope="col">Time, at least</th></tr></thead>
<tbody></tbody></table></div>
</div>
<details class="icr-figures" open><summary>The figures behind it, and five layers worked out</summary>
{table_html(data)}</details>
<script type="application/json" class="icr-data">{payload}</script>
</div>"""


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls it."""
    from docutils import nodes
    from sphinx.util import logging
    from sphinx.util.docutils import SphinxDirective
    from sphinx.util.fileutil import copy_asset_file

    logger = logging.getLogger(__name__)

    class RooflineDirective(SphinxDirective):
        required_arguments = 1
        has_content = False

        def run(self) -> list[nodes.Node]:
            relative, absolute = self.env.relfn2path(self.arguments[0].strip())
            self.env.note_dependency(relative)
            try:
                data = load(Path(absolute))
            except RooflineError as problem:
                logger.warning("{roofline}: %s", problem, location=self.get_location(), type="roofline")
                text = f"[no roofline: {problem}]"
                return [nodes.paragraph(text, text)]
            own = f"roofline-{self.env.new_serialno('roofline')}"
            node = nodes.raw("", roofline_html(data, own), format="html")
            node["roofline"] = True
            self.set_source_info(node)
            return [node]

    def add_assets(app: Any, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
        if doctree is not None and any("roofline" in node for node in doctree.findall(nodes.raw)):
            app.add_css_file("roofline.css")
            app.add_js_file("roofline.js", loading_method="defer")

    def copy_assets(app: Any) -> None:
        if app.builder.format == "html":
            static = Path(app.outdir) / "_static"
            static.mkdir(parents=True, exist_ok=True)
            for name in ASSETS:
                copy_asset_file(HERE / name, static)

    app.add_directive("roofline", RooflineDirective)
    app.connect("builder-inited", copy_assets)
    app.connect("html-page-context", add_assets)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
