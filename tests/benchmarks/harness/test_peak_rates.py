from pathlib import Path

import pytest

from dinov2rt.benchmarks.harness.peak_rates import (
    _COPY_BYTES,
    _copy,
    best_of,
    matrix_gflops,
    matrix_product,
    measure_peak_rates,
)
from dinov2rt.benchmarks.harness.worker import CandidateError, Turn, Worker
from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.results import PeakRates
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends.openvino import cannot_run_bf16


def test_of_each_rate_the_best_library_counts() -> None:
    rates = {Precision.FP32: {"numpy": 90.0, "torch": 80.0}, Precision.FP16: {"torch": 500.0}}
    peak_rates = best_of(rates, copies=[11.0, 9.0], shape=(4, 5, 6))
    assert peak_rates.matrix_gflops == {"fp32": 90.0, "fp16": 500.0}
    assert peak_rates.matrix_library == {"fp32": "numpy", "fp16": "torch"}
    assert peak_rates.copy_gb_per_s == 11.0
    assert peak_rates.matrix_shape == (4, 5, 6)


def test_the_library_of_an_earlier_run_is_kept_where_it_is_there() -> None:
    rates = {Precision.FP32: {"numpy": 90.0, "torch": 80.0}}
    peak_rates = best_of(rates, [1.0], (4, 5, 6), chosen={"fp32": "torch"})
    assert (peak_rates.matrix_library, peak_rates.matrix_gflops) == (
        {"fp32": "torch"},
        {"fp32": 80.0},
    )
    peak_rates = best_of(rates, [1.0], (4, 5, 6), chosen={"fp32": "openvino", "fp16": "torch"})
    assert peak_rates.matrix_library == {"fp32": "numpy"}


def test_this_machine_has_a_roof(peak_rates: PeakRates) -> None:
    expected = {"fp32"} if cannot_run_bf16() else {"fp32", "bf16"}
    assert set(peak_rates.matrix_gflops) == expected
    assert peak_rates.matrix_library["fp32"] in ("numpy", "openvino", "torch")
    assert peak_rates.matrix_gflops["fp32"] > 1  # a plain loop in C reaches that
    assert peak_rates.copy_gb_per_s is not None
    assert peak_rates.copy_gb_per_s > 0.1


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_is_copied_lies_in_memory(library: str) -> None:
    """Zeros that nobody wrote are one page of the kernel's, and copy at the speed of a cache."""
    with Worker(_copy(library), Workload(Path(), "cpu", 1)) as worker:
        worker.load()
        worker.turn(0.0)
        held_mib = worker.memory().peak_rss_mib
    assert held_mib is not None
    assert held_mib > 2 * _COPY_BYTES["cpu"] / 2**20


def test_the_rate_is_the_work_over_the_median_call_of_a_turn() -> None:
    gflop = 2.048 * 3.072 * 0.768
    turns = [Turn((100.0, 90.0, 400.0), 0.0), Turn((50.0,), 0.0)]
    assert matrix_gflops(turns, "cpu") == pytest.approx([2 * gflop * 10, 2 * gflop * 20])


@pytest.mark.parametrize(
    ("library", "precision"),
    [
        ("numpy", Precision.FP32),
        ("openvino", Precision.FP32),
        ("torch", Precision.FP32),
        ("openvino", Precision.BF16),
        pytest.param(
            "torch",
            Precision.BF16,
            marks=pytest.mark.skipif(cannot_run_bf16() is not None, reason="emulated, slowly"),
        ),
    ],
)
def test_a_product_takes_turns_as_candidates_do(library: str, precision: Precision) -> None:
    with Worker(matrix_product(library, precision), Workload(Path(), "cpu", 1)) as worker:
        worker.load()
        turn = worker.turn(0.0)
    assert len(turn.samples_ms) == 1
    assert 1 < matrix_gflops([turn], "cpu")[0] < 1000  # of one core


def test_a_library_that_fails_is_named_with_its_reason() -> None:
    with pytest.raises(CandidateError, match=r"matrix product in fp32 by numpy: limits must"):
        measure_peak_rates("cpu", "many")  # type: ignore[arg-type]
