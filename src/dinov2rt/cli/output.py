"""Everything that the command line prints."""

import contextlib
import dataclasses
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from dinov2rt.foreign import one_line, several_lines, shown

_MOST_IN_CELL = 500


def write_result(text: str) -> None:
    """Write `text` to standard output; a closed pipe is no error.

    Control characters other than line ends are escaped, since the text may hold foreign names.

    Raises:
        OSError: the system refuses it, as on a full disk.
    """
    try:
        if text:
            sys.stdout.write(f"{several_lines(text)}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # as with `| head`
        _discard(sys.stdout)
    except OSError:
        _discard(sys.stdout)
        raise


def complain(message: str) -> None:
    """Write a message to standard error, as one line."""
    try:
        sys.stderr.write(f"dinov2rt: {one_line(message)}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        _discard(sys.stderr)


def progress(message: str) -> None:
    """Report the current step: at once on a terminal, else once a minute (`a_line_a_minute`)."""
    if sys.stderr.isatty():
        complain(message)
    else:
        _now[0] = message


@contextlib.contextmanager
def a_line_a_minute(period_s: float = 60.0) -> Iterator[None]:
    """Report the current step once a minute within the block, unless a terminal shows it."""
    ended, started = threading.Event(), time.monotonic()
    _now[0] = ""

    def tell() -> None:
        while not ended.wait(period_s):
            if _now[0]:
                complain(f"{(time.monotonic() - started) / 60:.0f} min: {_now[0]}")

    teller = threading.Thread(target=tell, daemon=True)
    if not sys.stderr.isatty():
        teller.start()
    try:
        yield
    finally:
        ended.set()
        if teller.is_alive():
            teller.join()


_now = [""]
"""The current step, as `progress` was told last."""


def to_json(document: Mapping[str, Any]) -> str:
    """`document` as JSON; dataclasses become objects, NaN and infinity become null."""
    return json.dumps(_plain(document), indent=2, allow_nan=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart; every cell is one line."""
    lines = [header, *([shown(cell, _MOST_IN_CELL) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def mib(size_bytes: int) -> str:
    """A size in MiB, with a tenth if it is small."""
    size = size_bytes / 2**20
    return f"{size:.1f} MiB" if size < 10 else f"{size:.0f} MiB"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _discard(stream: TextIO) -> None:
    """Discard the buffer of a closed `stream`; otherwise the interpreter fails at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
