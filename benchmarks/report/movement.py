"""The change of a latency between two runs, and the size of changes without a cause."""

import math
from dataclasses import dataclass

from dinov2rt.benchmarks.results import BenchmarkRun, Cell, LatencyReport, Row
from dinov2rt.benchmarks.statistics import Interval
from dinov2rt.bundle.precision import Precision

_LEAST_NOISE = 1.03
"""A smaller factor always counts as noise: clocks and memory layout alone can cause it."""

_NOISE_WITHOUT_PEERS = 1.10
"""The assumed noise if no unchanged peer is in both runs, so that it cannot be measured."""


@dataclass(frozen=True, slots=True)
class Movement:
    """The new median latency over the old one.

    The interval of `ratio` leaves out 1 exactly where the intervals of the two medians do not
    overlap. `normalised` is the ratio of latency times matrix rate, which does not depend on the
    machine's clock; None where the runs share no rate at the cell.
    """

    ratio: Interval
    normalised: float | None

    @property
    def factor(self) -> float:
        """The size of the change, at least 1: the smaller of both measures, 1 if they disagree."""
        raw = math.log(self.ratio.median)
        scaled = raw if self.normalised is None else math.log(self.normalised)
        return math.exp(min(abs(raw), abs(scaled))) if raw * scaled > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Noise:
    """The factor by which latencies change between two runs without a cause, and its source."""

    factor: float
    source: str


def movement(before: Row, after: Row, rate: float | None) -> Movement | None:
    """The change of a candidate's latency at a cell; None unless it was timed in both runs.

    `rate` is the `rate_ratio` of the two runs there.
    """
    if before.latency is None or after.latency is None:
        return None
    ratio = _ratio(before.latency, after.latency)
    return Movement(ratio, None if rate is None else rate * ratio.median)


def rate_ratio(old: BenchmarkRun, new: BenchmarkRun, row: Row) -> float | None:
    """The new matrix rate at the cell of `row` over the old one; None if they have none in common.

    The rate is in the precision of `row` if possible, otherwise in float32 or any other: int8 has
    no rate of its own, and a change of the clock moves all rates alike.
    """
    before, after = _matrix_rates(old, row.cell), _matrix_rates(new, row.cell)
    for precision in (old.facts(row).precision, Precision.FP32, *before):
        if precision in before and precision in after:
            return after[precision] / before[precision]
    return None


def _matrix_rates(run: BenchmarkRun, cell: Cell) -> dict[str, float]:
    """The matrix rates that took turns with the rows of a cell, in GFLOP/s by precision."""
    return {
        run.facts(row).precision: row.roofline.matrix_gflops
        for row in run.rows
        if row.cell == cell and row.roofline
    }


def _ratio(before: LatencyReport, after: LatencyReport) -> Interval:
    return Interval(
        after.p50_ms / before.p50_ms,
        _quotient(after.p50_low_ms, before.p50_high_ms),
        _quotient(after.p50_high_ms, before.p50_low_ms),
    )


def _quotient(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator


def measure_noise(old: BenchmarkRun, new: BenchmarkRun) -> Noise:
    """The largest change of any peer with an unchanged version, but at least 3 %."""
    new_rows = {(row.cell, row.candidate): row for row in new.rows}
    factors = [
        moved.factor
        for before in old.rows
        if (after := new_rows.get((before.cell, before.candidate)))
        and _is_unchanged_peer(old, new, before)
        and (moved := movement(before, after, rate_ratio(old, new, before)))
    ]
    if not factors:
        return Noise(_NOISE_WITHOUT_PEERS, "assumed, as no peer ran unchanged in both")
    source = f"of {len(factors)} rows of unchanged peers, the farthest moved {max(factors):.3f}×"
    return Noise(max(_LEAST_NOISE, *factors), source)


def _is_unchanged_peer(old: BenchmarkRun, new: BenchmarkRun, row: Row) -> bool:
    before, after = old.facts(row), new.facts(row)
    return before.is_peer and (before.version, before.precision) == (after.version, after.precision)
