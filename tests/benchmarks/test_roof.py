import pytest

from dinov2rt.benchmarks.roof import Rates, best_of, measure_roof
from dinov2rt.runtime.errors import BackendError


def test_of_each_rate_the_best_library_counts() -> None:
    roof = best_of(
        [
            Rates("numpy 2", {"fp32": 90.0}, copy_gb_per_s=11.0),
            Rates("torch 2", {"fp32": 80.0, "fp16": 500.0}, copy_gb_per_s=9.0),
        ]
    )
    assert roof.matrix_gflops == {"fp32": 90.0, "fp16": 500.0}
    assert roof.matrix_library == {"fp32": "numpy 2", "fp16": "torch 2"}
    assert roof.copy_gb_per_s == 11.0


def test_this_machine_has_a_roof() -> None:
    roof = measure_roof("cpu", 1)
    assert set(roof.matrix_gflops) == {"fp32"}
    assert roof.matrix_library["fp32"].partition(" ")[0] in ("numpy", "torch")
    assert roof.matrix_gflops["fp32"] > 1  # a plain loop in C reaches that
    assert roof.copy_gb_per_s > 0.1


def test_a_library_that_fails_is_named_with_its_reason() -> None:
    with pytest.raises(BackendError, match=r"matrix rate of numpy could not be measured: .*many"):
        measure_roof("cpu", "many")  # type: ignore[arg-type]
