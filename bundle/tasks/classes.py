"""Names and colours of the official heads' classes, which ship with the project."""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted

_FOLDER = Path(__file__).parent / "class_tables"


@dataclass(frozen=True, slots=True, eq=False)
class ClassTable:
    """`names` by class index; `palette` is uint8 [K, 3], RGB, or None if the data has none."""

    names: tuple[str, ...]
    palette: NDArray[np.uint8] | None


@functools.cache
def class_table(data: str) -> ClassTable:
    """The classes of "imagenet1k", "ade20k" or "voc2012".

    Raises:
        InputError: another name.
    """
    known = {file.stem: file for file in _FOLDER.glob("*.json")}
    if data not in known:
        raise InputError(f"unknown classes {quoted(data)}; allowed are {', '.join(sorted(known))}")
    document = json.loads(known[data].read_text(encoding="utf-8"))
    palette = document.get("palette")
    colours = None if palette is None else np.array(palette, np.uint8)
    return ClassTable(tuple(document["names"]), colours)


def spread_colours(values: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
    """Colours (red, green, blue) of class indices, far apart for neighbours; 0 is black.

    Bit 3k of an index is bit 7 - k of its red, bit 3k + 1 of its green, bit 3k + 2 of its blue: the
    rule of VOC2012's own palette.
    """
    return tuple((_spread(value), _spread(value >> 1), _spread(value >> 2)) for value in values)


def _spread(value: int) -> int:
    return sum((value >> 3 * bit & 1) << 7 - bit for bit in range(8))
