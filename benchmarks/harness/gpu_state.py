"""Reads clocks, power limit, throttling and memory of the NVIDIA GPU from nvidia-smi."""

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
# Queried one by one: the field was renamed, and an unknown field fails the whole command.
_THROTTLE_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")

# Source: nvmlClocksEventReasons in nvml.h. Idle, application clocks and display are not throttling.
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
"""A sample counts as under load from this GPU utilization on."""


@dataclass(slots=True)
class GpuState:
    """GPU settings by name, and warnings for the reader; both are empty without a GPU."""

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
    """Sample the GPU once a second; the yielded state is filled in at the end.

    Only samples under load count: clocks and throttling of an idle GPU are meaningless.
    """
    watch = GpuState()
    name = next((name for name in _THROTTLE_FIELDS if _query(name)), None)
    if name is None:
        yield watch
        return
    command = _command(f"--query-gpu=clocks.sm,utilization.gpu,{name}", "--loop=1")
    # Into a file: a pipe that is not read is full after half an hour.
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
    """GPU memory of a process; None if it has none, or if the driver does not report it."""
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
    """The values of `fields` for the GPU; empty if nvidia-smi does not report them."""
    rows = [
        [cell.strip() for cell in line.split(",")]
        for line in _lines(f"--query-gpu={','.join(fields)}")
    ]
    return next((row for row in rows if len(row) == len(fields)), [])


def _lines(query: str) -> Sequence[str]:
    """The output of nvidia-smi; empty if it is not installed or fails."""
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        answer = subprocess.run(  # noqa: S603 (no shell, and nothing in it comes from outside)
            _command(query), capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):  # it fails if no driver is loaded
        return ()
    return answer.stdout.splitlines()


def _command(query: str, *options: str) -> list[str]:
    """nvidia-smi for the GPU that CUDA uses; nvidia-smi itself ignores CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    chosen = [f"--id={visible}"] if visible else []
    return ["nvidia-smi", query, "--format=csv,noheader", *chosen, *options]
