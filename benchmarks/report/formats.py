"""Formats the figures of reports."""

import math

from dinov2rt.benchmarks.results import Cell, LatencyReport
from dinov2rt.benchmarks.statistics import Interval

NOTHING = "–"
"""Replaces a missing figure."""

_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def precision_name(precision: str) -> str:
    """`fp32` as "float32"."""
    return _PRECISIONS.get(precision, precision)


def shape(cell: Cell) -> str:
    """Batch and size, without the variant: "8 × 224×224"."""
    return f"{cell.batch} × {cell.height}×{cell.width}"


def significant(value: float | None, digits: int = 3) -> str:
    """`value` to at least `digits` significant digits, never in exponents: "0.0123", "12,345"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def with_bounds(value: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """A figure and its interval: "12.3 (12.1–12.6)"."""
    if low is None or high is None:
        return f"{significant(value, digits)} (too few turns)"
    bounds = f"{significant(low, digits)}–{significant(high, digits)}"
    return f"{significant(value, digits)} ({bounds})"


def median_text(latency: LatencyReport) -> str:
    """The median latency in ms, and its interval."""
    return with_bounds(latency.p50_ms, latency.p50_low_ms, latency.p50_high_ms)


def ratio_text(ratio: Interval | None) -> str:
    """A ratio and its interval."""
    return NOTHING if ratio is None else with_bounds(ratio.median, ratio.low, ratio.high)


def span(low: float, high: float) -> str:
    """Two figures as a range, "0.985 to 1.38", or one if both have the same text."""
    first, last = significant(low), significant(high)
    return first if first == last else f"{first} to {last}"


def percent(fraction: float | None) -> str:
    """0.62 as "62 %"."""
    return NOTHING if fraction is None else f"{100 * fraction:.0f} %"


def error(relative_l2: float | None) -> str:
    """A relative error: "1.2e-06"."""
    if relative_l2 is None or not math.isfinite(relative_l2):
        return "not finite"
    return "0" if relative_l2 == 0 else f"{relative_l2:.1e}"


def cosine(value: float | None) -> str:
    """A cosine, with enough digits to show its difference from 1."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.7f}"


def mib(size: float | None) -> str:
    """A size in MiB."""
    return NOTHING if size is None else f"{size:,.0f}"


def one_line(text: str) -> str:
    """Text for Markdown: without line breaks, and no HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """A number and its noun: "1 cell", "2 cells"."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
