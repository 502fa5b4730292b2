"""Times calls that take turns in one process, relative to the first of them."""

import re
from collections.abc import Callable, Mapping, Sequence

from dinov2rt.benchmarks.harness.clock import timed
from dinov2rt.benchmarks.statistics import Interval, median_interval
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError

Cell = tuple[int, ImageSize]
"""A batch and its size."""

_WARM_UP = 2


def ratios(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, Interval]:
    """The time of each of `calls` over the first one's, paired by turns, after a warm-up."""
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    times = [{name: timed(call)[0] for name, call in calls.items()} for _ in range(turns)]
    first = next(iter(calls))
    return {name: median_interval([turn[name] / turn[first] for turn in times]) for name in calls}


def shown(interval: Interval) -> str:
    """Such as 0.53 (0.52–0.55)."""
    if interval.low is None or interval.high is None:
        return f"{interval.median:.2f}"
    return f"{interval.median:.2f} ({interval.low:.2f}–{interval.high:.2f})"


def parse_sizes(text: str) -> list[ImageSize]:
    """Sizes from "224,231x345": squares, or height first.

    Raises:
        InputError: anything else.
    """
    found = [re.fullmatch(r"([1-9]\d{1,3})(?:x([1-9]\d{1,3}))?", each) for each in text.split(",")]
    sizes = [ImageSize(int(size[1]), int(size[2] or size[1])) for size in found if size]
    if len(sizes) < len(found):
        raise InputError(f"sizes {text!r}; allowed are SIDE or HEIGHTxWIDTH, such as 224,231x345")
    return sizes


def parse_cells(text: str) -> list[Cell]:
    """Batches and square sizes from "1x224,8x518".

    Raises:
        InputError: anything else.
    """
    found = [re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{1,3})", cell) for cell in text.split(",")]
    cells = [(int(cell[1]), ImageSize(int(cell[2]), int(cell[2]))) for cell in found if cell]
    if len(cells) < len(found):
        raise InputError(f"cells {text!r}; allowed is BATCHxSIDE, such as 1x224,8x518")
    return cells


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
