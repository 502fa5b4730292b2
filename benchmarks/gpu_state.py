"""Clocks, power limit and throttling of the first NVIDIA GPU, as nvidia-smi tells of them."""

import shutil
import subprocess
from dataclasses import dataclass, field

_FIELDS = {
    "GPU driver": "driver_version",
    "GPU SM clock": "clocks.sm",
    "GPU SM clock at most": "clocks.max.sm",
    "GPU memory clock": "clocks.mem",
    "GPU power limit": "power.limit",
    "GPU temperature in C": "temperature.gpu",
    "GPU persistence mode": "persistence_mode",
}
# Asked for one by one: the query was renamed, and one unknown name fails the whole command.
_THROTTLE_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")

# Source: nvmlClocksEventReasons in nvml.h. Idle, chosen clocks and display are no throttling.
_THROTTLING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat, by software",
    0x40: "heat, by hardware",
    0x80: "power brake",
}
_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class GpuState:
    """Settings by name, and lines for the reader; both empty where there is no GPU."""

    details: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def gpu_state() -> GpuState:
    """The state of the first GPU at this moment."""
    values = _query(*_FIELDS.values())
    if not values:
        return GpuState()
    details = dict(zip(_FIELDS, values, strict=True))
    reasons = _throttling()
    details["GPU throttled by"] = ", ".join(reasons) or "nothing"
    warnings = (f"the GPU is throttled by: {', '.join(reasons)}",) if reasons else ()
    return GpuState(details, warnings)


def _throttling() -> list[str]:
    for name in _THROTTLE_FIELDS:
        for answer in _query(name):
            if answer.startswith("0x"):
                active = int(answer, 16)
                return [reason for bit, reason in _THROTTLING.items() if active & bit]
    return ["unknown, nvidia-smi does not tell"]


def _query(*fields: str) -> list[str]:
    """The values of `fields` for the first GPU; nothing where they cannot be had."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(  # noqa: S603 (no shell, and nothing in it comes from outside)
            command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):  # it fails where no driver is loaded
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    return next((row for row in rows if len(row) == len(fields)), [])
