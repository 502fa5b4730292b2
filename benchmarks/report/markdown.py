"""A run as Markdown."""

from collections.abc import Iterable

from dinov2rt.benchmarks.report.formats import one_line
from dinov2rt.benchmarks.report.summary import cells, sentences
from dinov2rt.benchmarks.report.tables import (
    COLD_START,
    Table,
    cold_start_table,
    environment_table,
    latency_table,
    missing_table,
    phase_table,
    roof_table,
    weights_table,
)
from dinov2rt.benchmarks.results import BenchmarkRun, Settings

READING = (
    "A call goes from images in host memory to outputs in host memory; the median is over single "
    "calls.",
    "The interval of a median holds the true one in 95 of 100 cases, by order statistics of the "
    "turns.",
    "The ratio to the fastest peer compares turns that ran side by side, and is to the fastest "
    "peer of the same precision; below 1 is faster than it.",
    "The limit is the least time for the cell's arithmetic at the rate of a large matrix product, "
    "which takes turns with the candidates, or for its bytes at the copy bandwidth, whichever is "
    "longer; the share of it is the median over turns.",
    "Accuracy is that of the very candidate at the cell, against eager float32 on the same images; "
    "a candidate that fails it gets no time.",
)
"""What the columns mean."""


def to_markdown(run: BenchmarkRun) -> str:
    """The report of `run`: a summary in words first, then every figure."""
    return "\n\n".join(_blocks(run)) + "\n"


def method(settings: Settings) -> str:
    """How it was measured, in a sentence."""
    return (
        f"Measured on {settings.device} with {settings.threads} threads, on {settings.images}: "
        f"all candidates of a cell take turns in changing order, at least {settings.min_turns} "
        f"each, until one of them has had {settings.seconds_per_candidate:g} seconds in its turns."
    )


def _blocks(run: BenchmarkRun) -> Iterable[str]:
    yield f"# dinov2rt benchmark: {run.environment.machine}"
    yield f"{run.created}, dinov2rt {run.version}, `{run.command}`"
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
    yield _bullets(READING)
    yield str(roof_table(run))
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
    for table in (phase_table(run), missing_table(run)):
        if table:
            yield from _titled(table)
    yield "## Cold start and memory"
    yield _bullets(COLD_START)
    for variant in dict.fromkeys(facts.variant for facts in run.candidates):
        yield from _titled(cold_start_table(run, variant), level=3)


def _titled(table: Table, level: int = 2) -> tuple[str, str]:
    return f"{'#' * level} {table.title}", str(table)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {one_line(line)}" for line in lines)
