"""Line charts as SVG that follow the page's light and dark theme: drawn by matplotlib, coloured by the style sheet.

The same data gives the same bytes: ids come from a fixed salt, and no date is written.
"""

from __future__ import annotations

import dataclasses
import html
import io
import re
from collections.abc import Sequence

# Stand-ins that matplotlib draws with; each becomes a variable of the page, so that one drawing serves both themes.
INK = "#010203"
_LINES = ["#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006", "#0a0007"]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


@dataclasses.dataclass(frozen=True)
class Line:
    """One series: points (x, y) in x order; ``limit`` draws it dashed, without points. ``slot`` is its colour and mark, from 0 on, where charts
    should agree on them; otherwise its place among the lines."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    limit: bool = False
    slot: int | None = None


def chart(lines: Sequence[Line], title: str, x_label: str, y_label: str, *, log: bool = True, ticks: Sequence[float] = ()) -> str:
    """An SVG element with ``role="img"`` and ``title`` as its name. Both axes logarithmic where ``log``.

    Raises ValueError for no lines, more lines than there are colours, or a line without points.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not lines or len(lines) > len(_LINES) or any(not len(line.x) or len(line.x) != len(line.y) for line in lines):
        raise ValueError(f"a chart takes 1 to {len(_LINES)} lines, each with as many x as y and at least one; given {[(line.label, len(line.x), len(line.y)) for line in lines]}")
    settings = {"svg.hashsalt": title, "svg.fonttype": "none", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
                "ytick.color": INK, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for place, line in enumerate(lines):
            slot = place if line.slot is None else line.slot
            colour, marker = _LINES[slot], _MARKERS[slot]
            axes.plot(line.x, line.y, color=INK if line.limit else colour, marker="" if line.limit else marker, markersize=6, linewidth=1.6 if line.limit else 2,
                      linestyle="--" if line.limit else "-", label=line.label)
        if log:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
        if ticks:
            axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True, color=INK, alpha=0.15, linewidth=0.8)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(file.getvalue(), title)


def themed(svg: str, title: str) -> str:
    """matplotlib's SVG file as an element for a page: the page's colours and font, a name, no metadata, ids of its own."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # its style rule would reach the whole page
    own = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    svg = re.sub(r"<svg [^>]*viewBox=\"([^\"]*)\"[^>]*>",
                 lambda found: f'<svg class="icr-plot" viewBox="{found[1]}" role="img" aria-labelledby="{own}-name">', svg, count=1)
    svg = svg.replace(INK, "currentColor")
    for number, colour in enumerate(_LINES, 1):
        svg = svg.replace(colour, f"var(--icr-line-{number})")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{own}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", svg)
    svg = svg.replace(f'aria-labelledby="{own}-name">', f'aria-labelledby="{own}-name"><title id="{own}-name">{html.escape(title)}</title>')
    return re.sub(r">\s+<", "><", svg).strip()
