from typing import Any

import pytest

from dinov2rt.engines.options import BuildOptions, HardwareCompatibility, canonical_target
from dinov2rt.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max batch 0 is too small; it must be at least 1"),
        ({"max_size": 0}, "max size 0 is too small; it must be at least 1"),
        ({"memory_limit_mib": 0}, "memory limit in MiB 0 is too small"),
        ({"optimization_level": 6}, "unknown optimization level 6; allowed are 0"),
        ({"optimization_level": -1}, "unknown optimization level -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildOptions(**options)


def test_the_manifest_records_what_differs_from_the_defaults() -> None:
    assert BuildOptions().recorded() == {}
    options = BuildOptions(
        strip_weights=True,
        optimization_level=0,
        hardware_compatible=HardwareCompatibility.AMPERE_PLUS,
    )
    assert options.recorded() == {
        "strip_weights": "true",
        "optimization_level": "0",
        "hardware_compatible": "ampere-plus",
    }


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("sm80", "sm80"),
        ("sm_80", "sm80"),
        ("SM80", "sm80"),
        ("8.0", "sm80"),
        ("80", "sm80"),
        ("compute_80", "sm80"),
        ("A100", "sm80"),
        ("a100", "sm80"),
        ("8.9", "sm89"),
        ("12.0", "sm120"),
        ("sm120", "sm120"),
        ("H100", "sm90"),
        ("current", "current"),
        ("open", "open"),
        ("a1000", "a1000"),
        ("", ""),
    ],
)
def test_a_target_may_be_called_by_several_names(name: str, target: str) -> None:
    assert canonical_target(name) == target
