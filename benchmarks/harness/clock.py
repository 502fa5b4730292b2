"""The time of a call, the time that others took, and the memory that this process holds."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL = 1, 2, 3, 6, 7, 8
"""Of the line "cpu" of /proc/stat, as in proc_stat(5)."""


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """How long `call` takes in ms by a monotonic clock, and what it returns."""
    started = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - started), result


def stolen_s() -> float:
    """CPU time, over all cores and since it started, that a virtual machine did not get.

    Its host gave it to others; 0 where the system does not say.
    """
    return _cpu_s(_STEAL)


def busy_s() -> float:
    """CPU time, over all cores and since it started, that the processes of this system had.

    0 where the system does not say.
    """
    return _cpu_s(_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ)


def _cpu_s(*columns: int) -> float:
    try:
        total = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()
    except OSError:
        return 0.0
    return sum(int(total[column]) for column in columns) / os.sysconf("SC_CLK_TCK")


def peak_rss_mib() -> float:
    """The kernel's high-water mark of this process.

    Where it is not told, as in some containers, `ru_maxrss`, which begins with that of the parent.
    """
    try:
        return _status_mib("VmHWM")
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def rss_mib() -> float:
    """What this process holds in memory now."""
    return _status_mib("VmRSS")


def _status_mib(name: str) -> float:
    """A line of /proc/self/status, as in proc_pid_status(5), which has it in KiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**10
