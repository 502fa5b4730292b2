"""Times a call, and reads CPU time and memory from /proc."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL = 1, 2, 3, 6, 7, 8
"""Columns of the line "cpu" in /proc/stat, see proc_stat(5)."""


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """The duration of `call` in ms, by a monotonic clock, and its result."""
    started = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - started), result


def stolen_s() -> float:
    """CPU time that a virtual machine's host gave to others, over all cores since boot.

    0 if the system does not report it.
    """
    return _cpu_s(_STEAL)


def busy_s() -> float:
    """CPU time of all processes of this system, over all cores since boot.

    0 if the system does not report it.
    """
    return _cpu_s(_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ)


def _cpu_s(*columns: int) -> float:
    try:
        total = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()
    except OSError:
        return 0.0
    return sum(int(total[column]) for column in columns) / os.sysconf("SC_CLK_TCK")


def disk_reads() -> int:
    """How often this process had to wait until memory was read from disk: its major page faults.

    It grows during a call if memory is short, and the system drops pages of mapped weights.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def peak_rss_mib() -> float:
    """The peak resident memory of this process.

    Some containers do not report it; then it is `ru_maxrss`, which starts at the parent's value.
    """
    try:
        return _status_mib("VmHWM")
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def rss_mib() -> float:
    """The resident memory of this process now."""
    return _status_mib("VmRSS")


def _status_mib(name: str) -> float:
    """A value of /proc/self/status, which is in KiB there; see proc_pid_status(5)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**10
