"""Matplotlib's SVG for a page: the same bytes every time, colours left to the page's style."""

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = (
    ("#162bf6", "#42abff"),
    ("#e47500", "#f29d00"),
    ("#0d6d31", "#00ffab"),
    ("#aa00a1", "#c527ac"),
    ("#191d00", "#ffff7e"),
    ("#0797ff", "#c7ffff"),
    ("#550146", "#f25346"),
    ("#9f8b92", "#a1838c"),
)
"""On a light page and on a dark one.

Found by a search for the largest smallest distance between any two, for every kind of colour
vision, at a contrast of 3 or more to the page.
"""

WIDTH_IN, HEIGHT_IN = 4.5, 3.3
GROUND = "#abcdef"
"""The placeholder for the background of a figure."""

_TEXT, _GRID = "#123456", "#654321"  # stand in for the page's colours
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "lines.color": _TEXT,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "patch.edgecolor": _GRID,
}


def draw(
    paint: Callable[[Axes], object],
    identifier: str,
    *,
    title: str,
    description: str = "",
    size_in: tuple[float, float] = (WIDTH_IN, HEIGHT_IN),
) -> str:
    """An `<svg>` element with a title and a description, whose ids start with `identifier`.

    It has a `viewBox` and no size, so that the page decides how large it is.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": identifier}):
        figure = Figure(figsize=size_in, layout="constrained")
        paint(figure.add_subplot())
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    return _for_page(stream.getvalue(), identifier, title, description)


def _for_page(document: str, identifier: str, title: str, description: str) -> str:
    start = document.index(">", document.index("<svg")) + 1
    box = re.search(r'viewBox="[^"]*"', document)
    labels = f'<title id="{identifier}-title">{escape(title)}</title>'
    named = f'aria-labelledby="{identifier}-title"'
    if description:
        labels += f'<desc id="{identifier}-desc">{escape(description)}</desc>'
        named += f' aria-describedby="{identifier}-desc"'
    head = f'<svg {box[0] if box else ""} role="img" id="{identifier}" {named}>'
    return head + labels + _in_page_colors(_with_own_ids(document[start:], identifier))


def _with_own_ids(svg: str, identifier: str) -> str:
    svg = re.sub(r'\bid="', f'id="{identifier}-', svg)
    svg = svg.replace("url(#", f"url(#{identifier}-")
    return svg.replace('xlink:href="#', f'href="#{identifier}-')


def _in_page_colors(svg: str) -> str:
    svg = svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--line)")
    svg = svg.replace(GROUND, "var(--card)")
    for index, (light, _) in enumerate(PALETTE):
        svg = svg.replace(light, f"var(--candidate-{index})")
    svg = re.sub(r"<style.*?</style>", "", svg)  # it would hold for the whole page
    return re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
