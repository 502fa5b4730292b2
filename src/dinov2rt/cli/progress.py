"""Shows the progress of a long job, on one line of a terminal."""

import math
import sys
import time
from types import TracebackType
from typing import Self

from dinov2rt.cli.output import complain, progress

_CLEAR_LINE = "\r\x1b[K"
_REFRESH_S = 0.1


class Progress:
    """Images done, images per second and the time left; in a log, a line a minute.

    `done` is the number of images of earlier runs: they count as progress, but not for the speed.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._before, self._done = total, done, 0
        self._started = time.perf_counter()
        self._drawn = -math.inf
        self._is_shown = sys.stderr.isatty()

    def step(self) -> None:
        """Count one more as done."""
        self._done += 1
        now = time.perf_counter()
        if now - self._drawn < _REFRESH_S:
            return
        self._drawn = now
        if self._is_shown:
            sys.stderr.write(f"{_CLEAR_LINE}{self._line(now)}")
            sys.stderr.flush()
        else:
            progress(self._line(now))

    def complain(self, message: str) -> None:
        """Write a message to standard error, on a line of its own."""
        self._clear()
        complain(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clear()

    def _line(self, now: float) -> str:
        done = self._before + self._done
        rate = self._done / (now - self._started)
        left = duration((self._total - done) / rate)
        return f"{done}/{self._total} images, {rate:.1f} images/s, {left} left"

    def _clear(self) -> None:
        if self._is_shown:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()


def duration(seconds: float) -> str:
    """`seconds` in the two units that say most: "3 d 4 h", "2 h 05 min", "1 min 30 s", "12 s"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{hours} h {m:02} min"
    return f"{m} min {s:02} s" if m else f"{s} s"
