"""Reads JSON of unknown origin: no duplicate keys, bounded depth and size, numbers that fit.

Python's own reader lets the last of several equal keys win, and takes NaN, infinity and text that
no encoding can write.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from dinov2rt.foreign import quoted, shown

MOST_NESTED = 64
MOST_VALUES = 400_000
"""The limit for all objects and lists of a document together."""

_MOST_INTEGER = 2**63 - 1


def parse(content: bytes) -> Any:
    """The value of a JSON document in UTF-8.

    Raises:
        ValueError: it is not JSON; a key stands twice in an object; a number is not finite or has
            more than 64 bits; text holds a lone surrogate; it is nested too deeply or holds too
            many values.
    """
    try:
        document = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_not_a_number,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise ValueError(f"nested more than {MOST_NESTED} deep") from error
    _check_extent(document)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {quoted(key)} stands twice in one object")
        made[key] = value
    return made


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(digits, 40)} is too large")
    return value


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else math.inf
    if abs(value) > _MOST_INTEGER:
        raise ValueError(f"the number {shown(digits, 40)} is too large")
    return int(value)


def _check_extent(document: Any) -> None:
    level, values = [document], 0
    for _ in range(MOST_NESTED + 1):
        values += len(level)
        if values > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise ValueError(f"nested more than {MOST_NESTED} deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        for key in value:
            _check_text(key)
        return value.values()
    if isinstance(value, str):
        _check_text(value)
    return value if isinstance(value, list) else ()


def _check_text(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"the text {quoted(text)} holds a lone surrogate")
