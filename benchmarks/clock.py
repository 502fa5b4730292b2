"""The time of a call, and the most memory that this process has held."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """How long `call` takes in ms by a monotonic clock, and what it returns."""
    started = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - started), result


def peak_rss_mib() -> float:
    """The kernel's high-water mark of this process; `ru_maxrss` begins with that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10
