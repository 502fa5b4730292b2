"""Medians with their intervals, and percentiles that the samples can tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from dinov2rt.benchmarks.results import LatencyReport
from dinov2rt.errors import InputError

_ONE_IN = 40
"""What a 95 % interval leaves out on each side is one case in 40."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its 95 % interval; the bounds are None where there are too few samples."""

    median: float
    low: float | None
    high: float | None


def median_interval(samples: Sequence[float]) -> Interval:
    """The median of at least one sample, and its 95 % interval by order statistics.

    Each of n independent samples lies below the true median with probability 1/2, whatever their
    distribution, so the k-th smallest and the k-th largest enclose it unless fewer than k of
    Binomial(n, 1/2) do; k is the largest for which either side fails at most 2.5 % of the time
    (H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., section 7.1). With fewer than six
    samples there is no such k.
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
    """The percentile, linearly interpolated, or None where no sample is expected to lie above it.

    The 90th needs 10 samples, the 99th 100.
    """
    if len(samples) * (100 - percent) < 100:
        return None
    return float(np.percentile(samples, percent))


def paired_ratio(report: LatencyReport, reference: LatencyReport) -> Interval:
    """`report` over `reference` at one cell: the median of the ratios of the turns.

    Below 1 is faster than the reference.

    Raises:
        InputError: they have not as many turns, so that these did not run side by side.
    """
    if len(report.turns_ms) != len(reference.turns_ms):
        raise InputError(
            f"{len(report.turns_ms)} turns beside {len(reference.turns_ms)}; the turns of two "
            "candidates of a cell come in pairs; measure again"
        )
    pairs = zip(report.turns_ms, reference.turns_ms, strict=True)
    return median_interval([turn / other for turn, other in pairs])


def summarise(samples_ms: Sequence[float], turns_ms: Sequence[float], batch: int) -> LatencyReport:
    """What single calls of `batch` images say, with the medians of their turns.

    The interval of the median is taken from the turns: the calls of one turn are alike, as the
    machine is the same, and would make it too narrow. It is widened where the median of all calls
    lies outside.

    Raises:
        InputError: there is no sample or turn.
    """
    if not samples_ms or not turns_ms:
        raise InputError(
            f"{len(samples_ms)} calls in {len(turns_ms)} turns were timed; allowed are from 1 on"
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
