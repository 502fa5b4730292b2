"""Renders a run as one self-contained HTML page, without network access or scripts."""

from markupsafe import Markup

from dinov2rt.benchmarks.report.figures.marks import Marks
from dinov2rt.benchmarks.report.figures.plots import plot_groups
from dinov2rt.benchmarks.report.figures.svg import PALETTE
from dinov2rt.benchmarks.report.method import WORDS, cold_start_reading, method, reading
from dinov2rt.benchmarks.report.pages import template
from dinov2rt.benchmarks.report.precision_table import precision_table
from dinov2rt.benchmarks.report.ratios import cells
from dinov2rt.benchmarks.report.summary import sentences
from dinov2rt.benchmarks.report.tables import (
    cold_start_table,
    environment_table,
    latency_table,
    missing_table,
    peak_rates_table,
    phase_table,
    weights_table,
)
from dinov2rt.benchmarks.report.tiles import CLS_COSINE, tiles
from dinov2rt.benchmarks.report.titles import measured_chip, title
from dinov2rt.benchmarks.results import BenchmarkRun


def to_html(run: BenchmarkRun, cls_cosine: float = CLS_COSINE) -> str:
    """The report of `run`, the same bytes for the same run and the same Matplotlib.

    Args:
        run: What was measured.
        cls_cosine: The accuracy that the reader needs, see `tiles.tiles`.
    """
    variants = tuple(dict.fromkeys(facts.variant for facts in run.candidates))
    return template("report.html").render(
        run=run,
        chip=measured_chip(run),
        palette=PALETTE,
        sentences=sentences(run),
        tiles=tiles(run, cls_cosine),
        title=title(run),
        words=WORDS,
        legend=_legend(run),
        # The figures escape what they hold themselves.
        groups=[
            (group, [(plot.title, Markup(plot.svg)) for plot in group.plots])  # noqa: S704
            for group in plot_groups(run)
        ],
        latency=[
            (variant, [latency_table(run, cell) for cell in cells(run) if cell.variant == variant])
            for variant in variants
        ],
        precisions=precision_table(run),
        phases=phase_table(run),
        missing=missing_table(run),
        cold_start_reading=cold_start_reading(run.settings),
        cold_start=[cold_start_table(run, variant) for variant in variants],
        method=method(run.settings),
        reading=reading(run.settings),
        facts=(environment_table(run), peak_rates_table(run), weights_table(run)),
    )


def _legend(run: BenchmarkRun) -> tuple[tuple[str, str, Markup], ...]:
    marks, titles = Marks.of(run), {facts.candidate: facts.title for facts in run.candidates}
    return tuple(
        (name, titles[name], Markup(marks.key(name)))  # noqa: S704
        for name in marks.candidates
    )
