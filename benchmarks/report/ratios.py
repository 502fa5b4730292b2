"""Compares the times of two candidates at one cell of a run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from dinov2rt.benchmarks.results import BenchmarkRun, Cell, Row
from dinov2rt.benchmarks.statistics import Interval, paired_ratio
from dinov2rt.bundle.precision import Precision

LEVEL = 1.03
"""Up to this ratio to the fastest peer, dinov2rt counts as equally fast."""


class Standing(StrEnum):
    """dinov2rt compared with another candidate, by the whole interval of the ratio."""

    FASTEST = "fastest"
    LEVEL = "within 3 % of the fastest peer"
    SLOWER = "slower"
    OPEN = "not decided by the measurement"


@dataclass(frozen=True, slots=True)
class TimeRatio:
    """The time of dinov2rt's fastest candidate of a precision over the time of another candidate.

    `own` and `other` are their results at the same cell, paired by turns.
    """

    precision: str
    own: Row
    other: Row
    ratio: Interval

    @property
    def cell(self) -> Cell:
        """The cell of both results."""
        return self.own.cell

    @property
    def standing(self) -> Standing:
        """The standing on which the whole interval of the ratio agrees; otherwise OPEN."""
        low, high = self.ratio.low, self.ratio.high
        if low is None or high is None:
            return Standing.OPEN
        if high < 1:
            return Standing.FASTEST
        if high <= LEVEL:
            return Standing.LEVEL
        return Standing.SLOWER if low > LEVEL else Standing.OPEN


def cells(run: BenchmarkRun) -> tuple[Cell, ...]:
    """Every cell once, in the order of the run."""
    return tuple(dict.fromkeys(row.cell for row in run.rows))


def precisions(run: BenchmarkRun) -> tuple[str, ...]:
    """Every precision once, in the order of the run."""
    return tuple(dict.fromkeys(facts.precision for facts in run.candidates))


def rows_at(run: BenchmarkRun, cell: Cell) -> tuple[Row, ...]:
    """The rows of a cell: the timed ones first, the fastest of them first."""
    rows = (row for row in run.rows if row.cell == cell)
    return tuple(sorted(rows, key=lambda row: row.latency.p50_ms if row.latency else math.inf))


def fastest(
    run: BenchmarkRun, cell: Cell, precision: str, *, peer: bool | None = None
) -> Row | None:
    """The fastest timed row of a precision: of peers, of dinov2rt's own candidates, or of all."""
    for row in rows_at(run, cell):
        facts = run.facts(row)
        if row.latency and facts.precision == precision and peer in (None, facts.is_peer):
            return row
    return None


def time_ratio(row: Row, other: Row | None) -> Interval | None:
    """The time of `row` over the time of `other`, if both were timed."""
    if other is None or row.latency is None or other.latency is None:
        return None
    return paired_ratio(row.latency, other.latency)


def ratio_to_fastest_peer(run: BenchmarkRun, row: Row) -> Interval | None:
    """The time of `row` over the time of the fastest peer in its precision, if both were timed."""
    return time_ratio(row, fastest(run, row.cell, run.facts(row).precision, peer=True))


def beside_peers(run: BenchmarkRun) -> tuple[TimeRatio, ...]:
    """dinov2rt over the fastest peer of the same precision, by cell and precision."""
    return _ratios(
        (
            precision,
            fastest(run, cell, precision, peer=False),
            fastest(run, cell, precision, peer=True),
        )
        for cell in cells(run)
        for precision in precisions(run)
    )


def beside_float32(run: BenchmarkRun) -> tuple[TimeRatio, ...]:
    """dinov2rt in lower precisions over the fastest float32 candidate, dinov2rt's own included."""
    return _ratios(
        (precision, fastest(run, cell, precision, peer=False), fastest(run, cell, Precision.FP32))
        for cell in cells(run)
        for precision in precisions(run)
        if precision != Precision.FP32
    )


def int8_beside_bfloat16(run: BenchmarkRun) -> tuple[TimeRatio, ...]:
    """dinov2rt in int8 over dinov2rt in bfloat16."""
    return _ratios(
        (
            Precision.INT8,
            fastest(run, cell, Precision.INT8, peer=False),
            fastest(run, cell, Precision.BF16, peer=False),
        )
        for cell in cells(run)
    )


def without_peer(run: BenchmarkRun) -> tuple[TimeRatio, ...]:
    """`beside_float32`, in the precisions that no peer has."""
    of_peers = {facts.precision for facts in run.candidates if facts.is_peer}
    return tuple(each for each in beside_float32(run) if each.precision not in of_peers)


def _ratios(pairs: Iterable[tuple[str, Row | None, Row | None]]) -> tuple[TimeRatio, ...]:
    found = []
    for precision, own, other in pairs:
        ratio = time_ratio(own, other) if own else None
        if own and other and ratio:
            found.append(TimeRatio(precision, own, other, ratio))
    return tuple(found)
