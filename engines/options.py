"""The options of `build`."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import InputError


class HardwareCompatibility(StrEnum):
    """The GPUs that may run a plan, besides the model that it was built on."""

    AMPERE_PLUS = "ampere-plus"
    """Any GPU of the Ampere generation or later; costs speed, see docs/adr/0006."""
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"
    """Any GPU of the same compute capability."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build a plan. An option that the flavour does not support is an error.

    `target` is a compute capability ("sm80", or another form that `canonical_target` reads),
    "current" (this machine's GPU) or "open" (any GPU that the flavour supports). `profiles` are
    presets or ranges, see `parse_profiles`; None means `default_profiles`. Presets end at
    `max_batch` images and `max_size` pixels a side. `memory_limit_mib` limits the scratch memory of
    each profile. `timing_cache` replaces the default file, see `timing_cache.default_file`.

    Raises:
        InputError: a number is out of range, or the precision is int8.
    """

    target: str = "sm80"
    flavour: str = "auto"
    precision: Precision = Precision.FP16
    profiles: str | None = None
    max_batch: int = 32
    max_size: int = 1036
    memory_limit_mib: int | None = None
    timing_cache: Path | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    hardware_compatible: HardwareCompatibility | None = None

    def __post_init__(self) -> None:
        if self.precision is Precision.INT8:
            raise InputError(
                "int8 graphs are for OpenVINO on the CPU; "
                "allowed for a plan are fp16, bf16 and fp32"
            )
        _check_least("max batch", self.max_batch, 1)
        _check_least("max size", self.max_size, 1)
        if self.memory_limit_mib is not None:
            _check_least("memory limit in MiB", self.memory_limit_mib, 1)
        if self.optimization_level not in (None, 0, 1, 2, 3, 4, 5):
            raise InputError(
                f"unknown optimization level {self.optimization_level}; allowed are 0 (shortest "
                "build) to 5 (longest search); TensorRT's own default is 3"
            )

    def recorded(self) -> dict[str, str]:
        """The options for the manifest: those that change the plan and differ from the default."""
        flags = ("version_compatible", "strip_weights", "weight_streaming")
        values = {name: "true" for name in flags if getattr(self, name)}
        for name in ("optimization_level", "hardware_compatible", "memory_limit_mib"):
            if (value := getattr(self, name)) is not None:
                values[name] = str(value)
        return values


_GPUS = {
    "a100": "sm80",
    "a30": "sm80",
    "a10": "sm86",
    "a40": "sm86",
    "l4": "sm89",
    "l40": "sm89",
    "l40s": "sm89",
    "h100": "sm90",
    "h200": "sm90",
    "b200": "sm100",
}
"""Compute capabilities of common data-centre GPUs, by NVIDIA's own list."""


def canonical_target(name: str) -> str:
    """The target that `name` means: "A100", "sm_80" and "8.0" are "sm80"; others are kept."""
    plain = name.strip().lower()
    if plain in _GPUS:
        return _GPUS[plain]
    capability = re.fullmatch(r"(?:sm_?|compute_)?(\d{1,2})\.?(\d)", plain)
    return f"sm{capability[1]}{capability[2]}" if capability else name


def _check_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{what} {value} is too small; it must be at least {least}")
