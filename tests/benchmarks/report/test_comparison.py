from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from dinov2rt.benchmarks.report.comparison import (
    Change,
    Comparison,
    Verdict,
    compare_runs,
    refuse_unlike,
)
from dinov2rt.benchmarks.results import BenchmarkRun, Missing, Row
from dinov2rt.errors import InputError

Timed = Callable[[Row, float], Row]
Factors = Mapping[str, float]

OWN, INT8 = "dinov2rt-ort", "dinov2rt-int8"


@pytest.fixture
def again(benchmark_run: BenchmarkRun, timed: Timed) -> Callable[..., BenchmarkRun]:
    """The run once more, with the times of some candidates multiplied."""

    def measured(row: Row, factor: float, rate: float) -> Row:
        row = timed(row, factor)
        if row.roofline is None:
            return row
        return replace(
            row, roofline=replace(row.roofline, matrix_gflops=rate * row.roofline.matrix_gflops)
        )

    def run(factors: Factors, *, rate: float = 1.0) -> BenchmarkRun:
        return replace(
            benchmark_run,
            rows=tuple(
                measured(row, factors.get(row.candidate, 1), rate) for row in benchmark_run.rows
            ),
        )

    return run


def verdicts(comparison: Comparison, candidate: str = OWN) -> set[Verdict]:
    return {each.verdict for each in comparison.changes if each.candidate == candidate}


def change(comparison: Comparison, candidate: str = OWN) -> Change:
    return next(each for each in comparison.changes if each.candidate == candidate)


def test_a_run_is_no_regression_of_itself(benchmark_run: BenchmarkRun) -> None:
    comparison = compare_runs(benchmark_run, benchmark_run)
    assert comparison
    assert verdicts(comparison) == {Verdict.WITHIN_NOISE}
    assert comparison.noise.factor == 1.03
    assert (comparison.only_old, comparison.only_new) == ((), ())
    assert str(comparison).endswith("no regression")


def test_a_slower_dinov2rt_is_a_regression(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    comparison = compare_runs(benchmark_run, again({OWN: 1.1}))
    assert not comparison
    assert verdicts(comparison) == {Verdict.SLOWER}
    moved = change(comparison).movement
    assert moved is not None
    assert moved.ratio.median == pytest.approx(1.1)
    assert moved.ratio.low is not None
    assert 1.09 < moved.ratio.low < 1.1
    assert str(comparison).endswith("REGRESSION in 8 rows of dinov2rt")
    assert " 1.10 (1.09–1.1" in str(comparison)


def test_a_faster_one_and_a_slower_peer_are_none(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    comparison = compare_runs(benchmark_run, again({OWN: 0.9}))
    assert comparison
    assert verdicts(comparison) == {Verdict.FASTER}
    newer = again({"torch-eager": 1.5})
    facts = [
        replace(each, version="9") if each.candidate == "torch-eager" else each
        for each in newer.candidates
    ]
    comparison = compare_runs(benchmark_run, replace(newer, candidates=tuple(facts)))
    assert comparison
    assert verdicts(comparison, "torch-eager") == {Verdict.SLOWER}


def test_what_an_unchanged_peer_moves_is_noise(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    comparison = compare_runs(benchmark_run, again({OWN: 1.1, "torch-eager": 1.2}))
    assert comparison
    assert comparison.noise.factor == pytest.approx(1.2)
    assert "the farthest moved 1.200×" in str(comparison)


def test_a_slower_machine_is_no_regression(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    everything = dict.fromkeys((each.candidate for each in benchmark_run.candidates), 1.5)
    comparison = compare_runs(benchmark_run, again(everything, rate=1 / 1.5))
    assert comparison
    assert comparison.noise.factor == 1.03
    moved = change(comparison).movement
    assert moved is not None
    assert moved.normalised == pytest.approx(1)


def with_int8(run: BenchmarkRun) -> BenchmarkRun:
    """The run with another candidate of dinov2rt's, which has no matrix rate of its own."""
    own = [row for row in run.rows if row.candidate == OWN]
    facts = [each for each in run.candidates if each.candidate == OWN]
    return replace(
        run,
        rows=(*(replace(row, candidate=INT8, roofline=None) for row in own), *run.rows),
        candidates=(
            *run.candidates,
            *(replace(each, candidate=INT8, precision="int8") for each in facts),
        ),
    )


def test_a_row_without_a_matrix_rate_takes_that_of_its_cell(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    everything = dict.fromkeys((each.candidate for each in benchmark_run.candidates), 1.15)
    old, slower = with_int8(benchmark_run), with_int8(again(everything, rate=1 / 1.15))
    comparison = compare_runs(old, slower)
    assert comparison
    assert verdicts(comparison, INT8) == {Verdict.WITHIN_NOISE}
    moved = change(comparison, INT8).movement
    assert moved is not None
    assert moved.normalised == pytest.approx(1)
    comparison = compare_runs(old, with_int8(again({OWN: 1.15})))
    assert verdicts(comparison, INT8) == {Verdict.SLOWER}


def test_without_any_rate_at_the_cell_the_times_alone_count(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    def without_rates(run: BenchmarkRun) -> BenchmarkRun:
        return replace(run, rows=tuple(replace(row, roofline=None) for row in run.rows))

    comparison = compare_runs(without_rates(benchmark_run), without_rates(again({OWN: 1.1})))
    assert verdicts(comparison) == {Verdict.SLOWER}
    moved = change(comparison).movement
    assert moved is not None
    assert moved.normalised is None


def test_a_matrix_rate_that_alone_moved_proves_nothing(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    assert verdicts(compare_runs(benchmark_run, again({}, rate=1.5))) == {Verdict.WITHIN_NOISE}


def test_without_peers_the_noise_is_assumed(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    def alone(run: BenchmarkRun) -> BenchmarkRun:
        return replace(run, rows=tuple(row for row in run.rows if row.candidate == OWN))

    assert compare_runs(alone(benchmark_run), alone(again({OWN: 1.08})))
    comparison = compare_runs(alone(benchmark_run), alone(again({OWN: 1.12})))
    assert not comparison
    assert "noise 1.100× (assumed, as no peer ran unchanged in both)" in str(comparison)


def test_medians_whose_intervals_overlap_are_not_told_apart(benchmark_run: BenchmarkRun) -> None:
    def wide(row: Row) -> Row:
        if row.candidate != OWN or row.latency is None:
            return row
        p50 = row.latency.p50_ms
        latency = replace(
            row.latency, p50_ms=1.2 * p50, p50_low_ms=0.9 * p50, p50_high_ms=1.4 * p50
        )
        return replace(row, latency=latency)

    new = replace(benchmark_run, rows=tuple(map(wide, benchmark_run.rows)))
    assert verdicts(compare_runs(benchmark_run, new)) == {Verdict.WITHIN_NOISE}


def test_a_candidate_that_lost_its_time_is_a_regression(benchmark_run: BenchmarkRun) -> None:
    broken = replace(benchmark_run.rows[0], latency=None, roofline=None, failure="crashed")
    comparison = compare_runs(
        benchmark_run, replace(benchmark_run, rows=(broken, *benchmark_run.rows[1:]))
    )
    assert not comparison
    assert f"not timed any more: dinov2_vits14_reg 1x224x224 {OWN}: crashed" in str(comparison)


def test_a_candidate_that_no_longer_loads_is_a_regression(benchmark_run: BenchmarkRun) -> None:
    rows = [row for row in benchmark_run.rows if row.candidate != OWN]
    facts = [each for each in benchmark_run.candidates if each.candidate != OWN]
    missing = tuple(
        Missing(variant, OWN, "does not load") for variant in ("dinov2_vits14_reg", "dinov2_vitb14")
    )
    new = replace(benchmark_run, rows=tuple(rows), candidates=tuple(facts), missing=missing)
    comparison = compare_runs(benchmark_run, new)
    assert not comparison
    assert verdicts(comparison) == {Verdict.LOST}


def test_rows_in_one_run_only_are_named(benchmark_run: BenchmarkRun) -> None:
    smaller = replace(benchmark_run, rows=benchmark_run.rows[1:])
    name = f"dinov2_vits14_reg 1x224x224 {OWN}"
    old, new = compare_runs(benchmark_run, smaller), compare_runs(smaller, benchmark_run)
    assert (old.only_old, old.only_new) == ((name,), ())
    assert (new.only_old, new.only_new) == ((), (name,))
    assert f"only in the old run: {name}" in str(old)


def unlike(run: BenchmarkRun, part: str, field: str, value: object) -> BenchmarkRun:
    changed = replace(getattr(run, part), **{field: value})
    return replace(run, **{part: changed})


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("environment", "machine", "other"),
        ("environment", "cpu", "other"),
        ("environment", "gpu", "H100"),
        ("environment", "cores", 64),
        ("environment", "affinity", (1,)),
        ("peak_rates", "matrix_shape", (1, 1, 1)),
        ("settings", "threads", 1),
        ("settings", "device", "cuda"),
        ("settings", "images", "noise"),
        ("settings", "seconds_per_candidate", 1.0),
        ("settings", "min_turns", 3),
    ],
)
def test_unlike_runs_are_refused(
    part: str, field: str, value: object, benchmark_run: BenchmarkRun
) -> None:
    had = getattr(getattr(benchmark_run, part), field)
    with pytest.raises(InputError) as refused:
        compare_runs(benchmark_run, unlike(benchmark_run, part, field, value))
    assert str(refused.value) == (
        f"the runs differ in {part}.{field}: {had!r} in the old one, {value!r} in the new one; "
        "compare runs of one machine, with equal settings and weights"
    )


@pytest.mark.parametrize(
    "name",
    [
        "governor",
        "turbo off",
        "boost",
        "cgroup cpu.max",
        "cgroup cpu quota in us",
        "cgroup cpu period in us",
        "GPU driver",
        "GPU power limit",
    ],
)
def test_other_settings_of_the_machine_are_refused(name: str, benchmark_run: BenchmarkRun) -> None:
    details = benchmark_run.environment.details
    new = unlike(benchmark_run, "environment", "details", {**details, name: "other"})
    had = details.get(name)
    with pytest.raises(
        InputError, match=rf"in environment.details.{name}: {had!r} in the old one, 'other' in"
    ):
        compare_runs(benchmark_run, new)


@pytest.mark.parametrize(
    "name", ["GPU SM clock", "GPU memory clock", "GPU temperature in C", "GPU throttled by"]
)
def test_what_comes_and_goes_is_not_refused(name: str, benchmark_run: BenchmarkRun) -> None:
    details = {**benchmark_run.environment.details, name: "other"}
    assert compare_runs(benchmark_run, unlike(benchmark_run, "environment", "details", details))


def test_a_matrix_rate_by_another_library_is_refused(benchmark_run: BenchmarkRun) -> None:
    libraries = {"fp32": "openvino", "bf16": "torch"}
    new = unlike(benchmark_run, "peak_rates", "matrix_library", libraries)
    with pytest.raises(
        InputError,
        match=r"in peak_rates.matrix_library.fp32: 'numpy' in the old one, 'openvino' in",
    ):
        compare_runs(benchmark_run, new)


def test_a_precision_that_one_run_has_no_rate_for_is_not_refused(
    benchmark_run: BenchmarkRun,
) -> None:
    libraries = {"fp32": "numpy", "fp16": "torch"}
    assert compare_runs(
        benchmark_run, unlike(benchmark_run, "peak_rates", "matrix_library", libraries)
    )


def test_a_run_is_refused_before_it_has_rows(benchmark_run: BenchmarkRun) -> None:
    begun = replace(benchmark_run, rows=(), candidates=(), missing=())
    refuse_unlike(benchmark_run, begun)
    with pytest.raises(InputError, match=r"^the runs differ in settings.threads: 2 in"):
        refuse_unlike(benchmark_run, unlike(begun, "settings", "threads", 1))


@pytest.mark.parametrize(
    ("field", "value"), [("weights_source", "official"), ("weights_sha256", "ef" * 32)]
)
def test_other_weights_are_refused(field: str, value: str, benchmark_run: BenchmarkRun) -> None:
    bundle = replace(benchmark_run.bundles[1], **{field: value})
    new = replace(benchmark_run, bundles=(benchmark_run.bundles[0], bundle))
    with pytest.raises(InputError, match=r"^the runs differ in weights of dinov2_vitb14: .*synth"):
        compare_runs(benchmark_run, new)


def test_runs_without_a_common_row_are_refused(benchmark_run: BenchmarkRun) -> None:
    half = len(benchmark_run.rows) // 2
    old = replace(benchmark_run, rows=benchmark_run.rows[:half])
    new = replace(benchmark_run, rows=benchmark_run.rows[half:])
    with pytest.raises(
        InputError, match=r"no cell and candidate in common; measure the same ones$"
    ):
        compare_runs(old, new)


def test_a_slower_machine_is_seen_without_peers_too(
    benchmark_run: BenchmarkRun, again: Callable[..., BenchmarkRun]
) -> None:
    own = tuple(row for row in benchmark_run.rows if row.candidate == OWN)
    slower = again({OWN: 1.5}, rate=1 / 1.5)
    new = replace(slower, rows=tuple(row for row in slower.rows if row.candidate == OWN))
    assert verdicts(compare_runs(replace(benchmark_run, rows=own), new)) == {Verdict.WITHIN_NOISE}
