"""A kind of file that is changed at random, and the reader that must read or refuse it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: what it is called, a sound one, and what reads it.

    `read` returns the lines with which parts were refused.
    """

    file: str
    sound: Callable[[], bytes]
    read: Callable[[Path], list[str]]
    repaired: Callable[[bytearray, random.Random], None] | None = None
