"""Clocks, power limit, throttling and memory of the NVIDIA GPU, as nvidia-smi tells of them."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from statistics import median

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
_SAMPLE = r"(?P<mhz>\d+) MHz, *(?P<use>\d+) %, *(?P<reasons>0x[0-9a-fA-F]+)"
_LOADED_PERCENT = 50
"""Use from which on a sample counts as one under load."""


@dataclass(slots=True)
class GpuState:
    """Settings by name, and lines for the reader; both empty where there is no GPU."""

    details: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def gpu_state() -> GpuState:
    """The state of the GPU at this moment."""
    values = _query(*_FIELDS.values())
    if not values:
        return GpuState()
    details = dict(zip(_FIELDS, values, strict=True))
    reasons = _throttling()
    details["GPU throttled by"] = ", ".join(reasons) or "nothing"
    warnings = (f"the GPU is throttled by: {', '.join(reasons)}",) if reasons else ()
    return GpuState(details, warnings)


@contextmanager
def watched() -> Iterator[GpuState]:
    """Look at the GPU once a second; the result is filled in at the end.

    A clock or a reason for throttling that was read while nothing runs says nothing of the load.
    """
    watch = GpuState()
    name = next((name for name in _THROTTLE_FIELDS if _query(name)), None)
    if name is None:
        yield watch
        return
    command = _command(f"--query-gpu=clocks.sm,utilization.gpu,{name}", "--loop=1")
    # Into a file: a pipe that nobody reads is full after half an hour.
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=said) as process,  # noqa: S603 (as below)
    ):
        try:
            yield watch
        finally:
            process.terminate()
            process.wait()
            said.seek(0)
            _fill_in(watch, said)


def _fill_in(watch: GpuState, said: Iterable[str]) -> None:
    samples = [sample for line in said if (sample := re.match(_SAMPLE, line))]
    loaded = [sample for sample in samples if int(sample["use"]) >= _LOADED_PERCENT]
    if not loaded:
        return
    clocks = [int(sample["mhz"]) for sample in loaded]
    active = reduce(or_, (int(sample["reasons"], 16) for sample in loaded))
    reasons = ", ".join(_reasons(active))
    watch.details["GPU SM clock under load"] = (
        f"{median(clocks):.0f} MHz in the median, {min(clocks)} at least, {len(clocks)} samples"
    )
    watch.details["GPU throttled under load by"] = reasons or "nothing"
    if reasons:
        watch.warnings = (f"under load the GPU was throttled by: {reasons}",)


def memory_held_mib(pid: int) -> float | None:
    """What a process holds of the GPU; None where it holds none, or the driver does not tell."""
    for answer in _lines("--query-compute-apps=pid,used_memory"):
        if held := re.match(rf"{pid}, *(\d+) MiB", answer.strip()):
            return float(held[1])
    return None


def _throttling() -> list[str]:
    for name in _THROTTLE_FIELDS:
        for answer in _query(name):
            if answer.startswith("0x"):
                return _reasons(int(answer, 16))
    return ["unknown, nvidia-smi does not tell"]


def _reasons(active: int) -> list[str]:
    return [reason for bit, reason in _THROTTLING.items() if active & bit]


def _query(*fields: str) -> list[str]:
    """The values of `fields` for the GPU; nothing where they cannot be had."""
    rows = [
        [cell.strip() for cell in line.split(",")]
        for line in _lines(f"--query-gpu={','.join(fields)}")
    ]
    return next((row for row in rows if len(row) == len(fields)), [])


def _lines(query: str) -> Sequence[str]:
    """What nvidia-smi answers; nothing where there is none, or it fails."""
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        answer = subprocess.run(  # noqa: S603 (no shell, and nothing in it comes from outside)
            _command(query), capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):  # it fails where no driver is loaded
        return ()
    return answer.stdout.splitlines()


def _command(query: str, *options: str) -> list[str]:
    """Of the GPU that CUDA takes first; nvidia-smi itself sees all, whatever is visible to CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    chosen = [f"--id={visible}"] if visible else []
    return ["nvidia-smi", query, "--format=csv,noheader", *chosen, *options]
