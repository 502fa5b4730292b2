"""Renders a run as Markdown."""

from collections.abc import Iterable

from dinov2rt.benchmarks.report.formats import one_line
from dinov2rt.benchmarks.report.method import cold_start_reading, method, reading
from dinov2rt.benchmarks.report.precision_table import precision_table
from dinov2rt.benchmarks.report.ratios import cells
from dinov2rt.benchmarks.report.summary import sentences
from dinov2rt.benchmarks.report.tables import (
    Table,
    cold_start_table,
    environment_table,
    latency_table,
    missing_table,
    peak_rates_table,
    phase_table,
    weights_table,
)
from dinov2rt.benchmarks.report.titles import title
from dinov2rt.benchmarks.results import BenchmarkRun


def to_markdown(run: BenchmarkRun) -> str:
    """The report of `run`: a summary in words first, then every figure."""
    return "\n\n".join(_blocks(run)) + "\n"


def _blocks(run: BenchmarkRun) -> Iterable[str]:
    yield f"# dinov2rt benchmark: {one_line(title(run))}"
    machine = run.environment.machine
    yield f"Machine {machine}, {run.created}, dinov2rt {run.version}, `{run.command}`"
    yield "## Summary"
    yield _bullets(sentences(run))
    yield from _environment(run)
    yield from _latencies(run)
    yield from _rest(run)


def _environment(run: BenchmarkRun) -> Iterable[str]:
    yield "## Environment"
    if run.environment.warnings:
        yield _bullets(f"**Warning:** {warning}" for warning in run.environment.warnings)
    yield str(environment_table(run))
    yield "## What was measured and how"
    yield method(run.settings)
    yield _bullets(reading(run.settings))
    yield str(peak_rates_table(run))
    yield str(weights_table(run))


def _latencies(run: BenchmarkRun) -> Iterable[str]:
    yield "## Latency, throughput and accuracy"
    for cell in cells(run):
        table = latency_table(run, cell)
        yield f"### {table.title}"
        yield str(table)
        if table.notes:
            yield _bullets(table.notes)


def _rest(run: BenchmarkRun) -> Iterable[str]:
    for table in (precision_table(run), phase_table(run), missing_table(run)):
        if table:
            yield from _titled(table)
    yield "## Cold start and memory"
    yield _bullets(cold_start_reading(run.settings))
    for variant in dict.fromkeys(facts.variant for facts in run.candidates):
        yield from _titled(cold_start_table(run, variant), level=3)


def _titled(table: Table, level: int = 2) -> tuple[str, str]:
    return f"{'#' * level} {table.title}", str(table)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {one_line(line)}" for line in lines)
