"""Medians with confidence intervals, and percentiles if there are enough samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from dinov2rt.benchmarks.results import LatencyReport
from dinov2rt.errors import InputError

STOLEN_AT_MOST = 0.03
"""A turn is repeated if the host gave more than this share of all cores' time to others."""

LOADS = 5
"""How often a candidate of dinov2rt is loaded, in fresh processes; the median time counts. A peer
is loaded once, because it may export or compile for minutes."""

_ONE_IN = 40
"""A 95 % interval leaves out one case in 40 on each side."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its 95 % interval; the bounds are None if there are too few samples."""

    median: float
    low: float | None
    high: float | None


def median_interval(samples: Sequence[float]) -> Interval:
    """The median of at least one sample, and its 95 % interval by order statistics.

    For any distribution, a sample is below the true median with probability 1/2, so the number of n
    independent samples below it is Binomial(n, 1/2). The k-th smallest and the k-th largest sample
    enclose the median unless fewer than k samples are on one side of it. k is the largest number
    for which that happens at most 2.5 % of the time on either side (H. A. David and H. N. Nagaraja,
    Order Statistics, 3rd ed., section 7.1). With fewer than six samples there is no such k.
    """
    ordered, rank = sorted(samples), _rank(len(samples))
    if rank == 0:
        return Interval(median(ordered), None, None)
    return Interval(median(ordered), ordered[rank - 1], ordered[-rank])


def _rank(count: int) -> int:
    rank, outcomes = 0, 0
    while (outcomes := outcomes + math.comb(count, rank)) * _ONE_IN <= 2**count:
        rank += 1
    return rank


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """The percentile, linearly interpolated, or None if no sample is expected above it.

    The 90th needs 10 samples, the 99th 100.
    """
    if len(samples) * (100 - percent) < 100:
        return None
    return float(np.percentile(samples, percent))


def paired_ratio(report: LatencyReport, reference: LatencyReport) -> Interval:
    """The time of `report` divided by the time of `reference` at one cell, paired by turns.

    It is the median of the turns' ratios; below 1, `report` is faster.

    Raises:
        InputError: they have different numbers of turns, so the turns do not pair up.
    """
    if len(report.turns_ms) != len(reference.turns_ms):
        raise InputError(
            f"{len(report.turns_ms)} turns beside {len(reference.turns_ms)}; two candidates of a "
            "cell must have the same number of turns; measure again"
        )
    pairs = zip(report.turns_ms, reference.turns_ms, strict=True)
    return median_interval([turn / other for turn, other in pairs])


def summarise(samples_ms: Sequence[float], turns_ms: Sequence[float], batch: int) -> LatencyReport:
    """The latency report of single calls of `batch` images, given the medians of their turns.

    The interval of the median comes from the turns: calls within a turn are correlated, and would
    make it too narrow. The interval is widened if the median of all calls is outside.

    Raises:
        InputError: there is no sample or turn.
    """
    if not samples_ms or not turns_ms:
        raise InputError(
            f"{len(samples_ms)} calls in {len(turns_ms)} turns were timed; at least 1 of each is "
            "needed"
        )
    p50_ms, turns = median(samples_ms), median_interval(turns_ms)
    return LatencyReport(
        p50_ms=p50_ms,
        p90_ms=percentile(samples_ms, 90),
        p99_ms=percentile(samples_ms, 99),
        min_ms=min(samples_ms),
        p50_low_ms=None if turns.low is None else min(turns.low, p50_ms),
        p50_high_ms=None if turns.high is None else max(turns.high, p50_ms),
        samples=len(samples_ms),
        images_per_s=1e3 * batch / p50_ms,
        turns_ms=tuple(turns_ms),
    )
