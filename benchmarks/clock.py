"""The time of a call, the time that others took, and the most memory that this process has held."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_STEAL = 8
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
    try:
        total = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()
    except OSError:
        return 0.0
    return int(total[_STEAL]) / os.sysconf("SC_CLK_TCK")


def peak_rss_mib() -> float:
    """The kernel's high-water mark of this process; `ru_maxrss` begins with that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10
