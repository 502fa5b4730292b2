"""Matplotlib's SVG for a page: the same bytes every time, colours left to the page's style."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Self

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dinov2rt.benchmarks.results import BenchmarkRun

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

_MARKERS = "os^Dv<>Ph"  # nine, so that with eight colours no pair returns before the 73rd candidate
WIDTH_IN, HEIGHT_IN = 4.5, 3.3
_TEXT, _GRID, _GROUND = "#123456", "#654321", "#abcdef"  # stand in for the page's colours
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


@dataclass(frozen=True, slots=True)
class Marks:
    """One colour and marker for each candidate, the same in every figure of a run."""

    candidates: tuple[str, ...]
    own: frozenset[str]

    @classmethod
    def of(cls, run: BenchmarkRun) -> Self:
        """dinov2rt's own candidates come first, then the peers, each in the order of the run."""
        facts = sorted(run.candidates, key=lambda facts: facts.is_peer)
        return cls(
            tuple(dict.fromkeys(each.candidate for each in facts)),
            frozenset(each.candidate for each in facts if not each.is_peer),
        )

    def index(self, candidate: str) -> int:
        """Of the colour in `PALETTE`."""
        return self.candidates.index(candidate) % len(PALETTE)

    def color(self, candidate: str) -> str:
        """The colour on a light page."""
        return PALETTE[self.index(candidate)][0]

    def line(self, axes: Axes, candidate: str, points: Sequence[tuple[float, float]]) -> None:
        """A line with a mark at each point."""
        axes.plot(*zip(*points, strict=True), **self._look(candidate))

    def dots(self, axes: Axes, candidate: str, points: Sequence[tuple[float, float]]) -> None:
        """Marks alone."""
        axes.plot(*zip(*points, strict=True), **self._look(candidate), linestyle="none")

    def _look(self, candidate: str) -> dict[str, Any]:
        position = self.candidates.index(candidate)
        return {
            "color": self.color(candidate),
            "marker": _MARKERS[position % len(_MARKERS)],
            "markersize": 7,
            "markeredgecolor": _GROUND,
            "markeredgewidth": 0.8,
            "linewidth": 2.4 if candidate in self.own else 1.3,
            "zorder": 3 - position / 100,  # dinov2rt's own on top
            "gid": f"candidate-{position}",
        }

    def key(self, candidate: str) -> str:
        """The candidate's line and mark, as a small figure for a legend."""

        def paint(axes: Axes) -> None:
            axes.plot([0, 1, 2], [0, 0, 0], **self._look(candidate), markevery=[1])
            axes.set_axis_off()

        position = self.candidates.index(candidate)
        return draw(paint, f"key-{position}", title=candidate, size_in=(0.4, 0.2))


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
    svg = svg.replace(_GROUND, "var(--card)")
    for index, (light, _) in enumerate(PALETTE):
        svg = svg.replace(light, f"var(--candidate-{index})")
    svg = re.sub(r"<style.*?</style>", "", svg)  # it would hold for the whole page
    return re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
