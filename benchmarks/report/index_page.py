"""Renders the index page of all committed runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.benchmarks.report.figures.svg import PALETTE
from dinov2rt.benchmarks.report.formats import (
    NOTHING,
    median_text,
    precision_name,
    shape,
    significant,
)
from dinov2rt.benchmarks.report.pages import template
from dinov2rt.benchmarks.report.ratios import cells, fastest
from dinov2rt.benchmarks.report.tiles import own_precisions, speed_over_eager
from dinov2rt.benchmarks.report.titles import title
from dinov2rt.benchmarks.results import BenchmarkRun


@dataclass(frozen=True, slots=True)
class Line:
    """One precision of a run: dinov2rt's result in the first setting that was timed."""

    precision: str
    setting: str
    median_ms: str
    over_eager: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One run: the address of its page, relative to the index, and its headline figures."""

    address: str
    title: str
    settings: int
    lines: tuple[Line, ...]


def to_index(runs: Mapping[Path, BenchmarkRun], folder: Path) -> str:
    """The index of `runs`, whose results are below `folder`, as one HTML page."""
    entries = [_entry(file.relative_to(folder), run) for file, run in runs.items()]
    return template("index.html").render(entries=entries, palette=PALETTE)


def _entry(file: Path, run: BenchmarkRun) -> Entry:
    lines = [_line(run, precision) for precision in own_precisions(run)]
    return Entry(
        address=file.with_suffix(".html").as_posix(),
        title=title(run),
        settings=len(cells(run)),
        lines=tuple(line for line in lines if line),
    )


def _line(run: BenchmarkRun, precision: str) -> Line | None:
    speed = speed_over_eager(run, precision)
    for cell in cells(run):
        row = fastest(run, cell, precision, peer=False)
        if row and row.latency:
            return Line(
                precision_name(precision),
                shape(cell),
                median_text(row.latency),
                f"{significant(speed)}×" if speed else NOTHING,
            )
    return None
