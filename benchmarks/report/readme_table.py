"""Writes the tables of docs/performance.md, between two comments, from the committed runs."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from dinov2rt.benchmarks.report.formats import (
    error,
    median_text,
    precision_name,
    ratio_text,
    shape,
    significant,
)
from dinov2rt.benchmarks.report.ratio_grid import best_of, ratio_grid
from dinov2rt.benchmarks.report.ratios import TimeRatio, beside_peers, without_peer
from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.benchmarks.report.titles import measured_chip
from dinov2rt.benchmarks.results import BenchmarkRun, Row
from dinov2rt.bundle.variants import variants
from dinov2rt.errors import InputError
from dinov2rt.files import replacing

BEGIN, END = "<!-- latency: begin -->", "<!-- latency: end -->"
NO_RESULTS = (
    "No results are committed yet: `dinov2rt bench` measures, `dinov2rt report` fills this in."
)

_HEADER = (
    "variant",
    "images",
    "precision",
    "dinov2rt ms (95 %)",
    "images/s",
    "fastest other",
    "its ms (95 %)",
    "dinov2rt ÷ other (95 %)",
    "relative L2",
)


def write(readme: Path, results: Path) -> None:
    """Write the tables of all runs below the folder `results` into the page `readme`.

    Raises:
        InputError: `readme` cannot be read or written or lacks the two comments, or a result
            cannot be read.
    """
    text = _updated(readme, results)
    with replacing(readme) as partial:
        partial.write_text(text, encoding="utf-8")


def is_stale(readme: Path, results: Path) -> bool:
    """Whether `write` would change `readme`.

    Raises:
        InputError: as `write`.
    """
    return _updated(readme, results) != _read(readme)


def result_files(results: Path) -> tuple[Path, ...]:
    """The runs below the folder `results`, which has a folder per machine, sorted by name."""
    return tuple(sorted(results.glob("*/*.json")))


def _updated(readme: Path, results: Path) -> str:
    text = _read(readme)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(
            f"{readme} must hold {BEGIN} and {END} once each and in this order; "
            "put them where the table belongs"
        )
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    runs = [BenchmarkRun.read(file) for file in result_files(results)]
    alike = [list(group) for _, group in groupby(sorted(runs, key=_conditions), key=_conditions)]
    blocks = [block for group in alike for block in _blocks(group)] or [NO_RESULTS]
    return "\n\n".join((f"{head}{BEGIN}", *blocks, f"{END}{tail}"))


def _read(readme: Path) -> str:
    try:
        return readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error_:
        raise InputError(f"{readme} cannot be read ({error_}); run this beside it") from error_


def _conditions(run: BenchmarkRun) -> str:
    """The machine and software of a run; runs with the same conditions share a table."""
    return (
        f"**{run.environment.machine}**: {measured_chip(run)}, {run.settings.threads} threads, "
        f"device {run.settings.device}, {run.created[:10]}, dinov2rt {run.version}, "
        f"weights {', '.join(dict.fromkeys(bundle.weights_source for bundle in run.bundles))}"
    )


def _blocks(runs: Sequence[BenchmarkRun]) -> Iterable[str]:
    yield _conditions(runs[0])
    yield from _warnings(runs)
    rows = tuple(map(_row, _of_smallest_batch(runs)))
    if not rows:
        yield "No latency beside a peer's was taken."
        return
    yield str(Table("", _HEADER, rows, labels=3))
    yield "Time of dinov2rt ÷ time of another candidate (95 %), in all cells:"
    yield str(ratio_grid(runs))


def _warnings(runs: Sequence[BenchmarkRun]) -> Iterable[str]:
    """One line for all runs; each run's report has its warnings in full."""
    warned = {bundle.variant for run in runs if run.environment.warnings for bundle in run.bundles}
    if warned:
        names = ", ".join(variant.name for variant in variants() if variant.name in warned)
        yield (
            f"Warning: runs of {names} carry warnings about the state of the machine; "
            "their reports hold the details"
        )


def _of_smallest_batch(runs: Sequence[BenchmarkRun]) -> list[TimeRatio]:
    """One comparison for each precision and cell of the smallest batch, small models first."""
    found = best_of(runs, lambda run: (*beside_peers(run), *without_peer(run)))
    smallest = min((each.cell.batch for each in found), default=1)
    order = [variant.name for variant in variants()]
    return sorted(
        (each for each in found if each.cell.batch == smallest),
        key=lambda each: (order.index(each.cell.variant), each.cell, each.precision),
    )


def _named(peer: Row) -> str:
    inaccurate = peer.accuracy is not None and not peer.accuracy.passed
    return f"{peer.candidate} (fails accuracy)" if inaccurate else peer.candidate


def _row(each: TimeRatio) -> tuple[str, ...]:
    own, other, accuracy = each.own.latency, each.other.latency, each.own.accuracy
    if own is None or other is None:
        raise AssertionError("a ratio has two times")
    return (
        each.cell.variant,
        shape(each.cell),
        precision_name(each.precision),
        median_text(own),
        significant(own.images_per_s),
        _named(each.other),
        median_text(other),
        ratio_text(each.ratio),
        error(accuracy.relative_l2) if accuracy else "",
    )
