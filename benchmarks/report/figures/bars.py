"""Grouped bars, for figures with one or two settings, where a line would be meaningless."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from dinov2rt.benchmarks.report.figures.marks import Marks
from dinov2rt.benchmarks.report.formats import significant

MOST_SETTINGS = 2
"""Up to this number of settings a figure has bars instead of lines."""

_ROW_IN, _FRAME_IN = 0.21, 0.6


@dataclass(frozen=True, slots=True)
class Bar:
    """One candidate's figure, and its 95 % interval, if any."""

    candidate: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class BarGroup:
    """The bars of one setting, from top to bottom."""

    heading: str
    bars: tuple[Bar, ...]


def height_in(groups: Sequence[BarGroup]) -> float:
    """The height of the figure: a row for each heading and each bar."""
    return _FRAME_IN + _ROW_IN * sum(len(group.bars) + 1 for group in groups)


def paint_bars(axes: Axes, marks: Marks, groups: Sequence[BarGroup], unit: str) -> None:
    """Draw all groups below one another, each bar with its candidate and its figure."""
    y, labels = 0.0, dict[float, str]()
    for index, group in enumerate(groups):
        _heading(axes, y, group.heading)
        for bar in group.bars:
            y -= 1
            labels[y] = bar.candidate
            _paint_bar(axes, marks, bar, y, index)
        y -= 1
    most = max(bar.high or bar.value for group in groups for bar in group.bars)
    axes.set_xlim(0, 1.2 * most)
    axes.set_ylim(y + 0.4, 0.6)
    axes.set_yticks(list(labels), list(labels.values()), fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(unit)


def _heading(axes: Axes, y: float, text: str) -> None:
    across = axes.get_yaxis_transform()  # x in shares of the axes
    axes.text(0.01, y, text, transform=across, va="center", fontweight="bold", fontsize=9)


def _paint_bar(axes: Axes, marks: Marks, bar: Bar, y: float, group: int) -> None:
    marks.bar(axes, bar.candidate, y, bar.value, group)
    if bar.low is not None and bar.high is not None:
        axes.hlines(y, bar.low, bar.high, linewidth=1.5, color=axes.xaxis.label.get_color())
    end = bar.high or bar.value
    axes.annotate(
        significant(bar.value), (end, y), xytext=(4, 0), textcoords="offset points",
        va="center", fontsize=9,
    )  # fmt: skip
