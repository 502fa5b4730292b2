import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2rt.benchmarks.statistics import median_interval, paired_ratio, percentile, summarise
from dinov2rt.errors import InputError

times = st.floats(min_value=1e-3, max_value=1e6)
samples = st.lists(times, min_size=1, max_size=120)


@given(samples)
def test_the_interval_holds_the_median_and_is_made_of_samples(values: list[float]) -> None:
    interval = median_interval(values)
    assert interval.median == np.median(values)
    if len(values) < 6:
        assert (interval.low, interval.high) == (None, None)
    else:
        assert interval.low in values
        assert interval.high in values
        assert interval.low <= interval.median <= interval.high


@pytest.mark.parametrize(
    ("count", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (15, 4, 12), (100, 40, 61)]
)
def test_ranks_equal_the_published_tables(count: int, low: int, high: int) -> None:
    interval = median_interval(list(range(1, count + 1)))
    assert (interval.low, interval.high) == (low, high)


@pytest.mark.parametrize("count", [6, 15, 40])
def test_the_interval_covers_the_true_median_at_least_95_times_in_100(count: int) -> None:
    draws = np.random.default_rng(0).exponential(size=(4000, count))
    intervals = [median_interval(draw.tolist()) for draw in draws]
    covered = np.mean([(each.low or 0) <= math.log(2) <= (each.high or 0) for each in intervals])
    assert 0.945 <= covered < 0.99


def test_many_samples_are_no_problem() -> None:
    interval = median_interval(np.arange(2000.0).tolist())
    assert interval.low == pytest.approx(1000 - 1.96 * math.sqrt(2000) / 2, abs=3)


@pytest.mark.parametrize(("percent", "least"), [(90, 10), (99, 100)])
def test_a_percentile_needs_a_sample_above_it(percent: int, least: int) -> None:
    values = list(np.linspace(1, 2, least))
    assert percentile(values, percent) == pytest.approx(1 + percent / 100)
    assert percentile(values[1:], percent) is None


@given(samples, st.floats(min_value=0.1, max_value=10))
def test_the_paired_ratio_does_not_depend_on_changes_of_the_machines_speed(
    speeds: list[float], ratio: float
) -> None:
    slow = summarise([1.0], [speed * ratio for speed in speeds], 1)
    interval = paired_ratio(slow, summarise([1.0], speeds, 1))
    assert interval.median == pytest.approx(ratio)
    if interval.low is not None:
        assert (interval.low, interval.high) == pytest.approx((ratio, ratio))


def test_unequal_numbers_of_turns_are_refused() -> None:
    with pytest.raises(InputError, match=r"^3 turns beside 2; .*; measure again$"):
        paired_ratio(summarise([1.0], [1.0, 2.0, 3.0], 1), summarise([1.0], [1.0, 2.0], 1))


def test_a_summary_has_only_percentiles_with_enough_samples() -> None:
    report = summarise([4.0] * 9 + [5.0] * 3, [4.0, 4.5, 5.0, 4.0, 4.0, 5.0], 8)
    assert (report.p50_ms, report.min_ms, report.samples) == (4.0, 4.0, 12)
    assert (report.p90_ms, report.p99_ms) == (5.0, None)
    assert (report.p50_low_ms, report.p50_high_ms) == (4.0, 5.0)
    assert report.images_per_s == 2000
    assert report.turns_ms == (4.0, 4.5, 5.0, 4.0, 4.0, 5.0)


@given(samples, samples)
def test_a_summary_s_interval_holds_its_median(calls: list[float], turns: list[float]) -> None:
    report = summarise(calls, turns, 1)
    if len(turns) >= 6:
        assert report.p50_low_ms is not None
        assert report.p50_high_ms is not None
        assert report.p50_low_ms <= report.p50_ms <= report.p50_high_ms


@pytest.mark.parametrize(("calls", "turns"), [([], [1.0]), ([1.0], [])])
def test_a_summary_needs_calls_and_turns(calls: list[float], turns: list[float]) -> None:
    with pytest.raises(InputError, match=rf"^{len(calls)} calls in {len(turns)} turns were timed"):
        summarise(calls, turns, 1)
