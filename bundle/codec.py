"""Dataclasses as plain JSON values, and back: strict in types, tolerant of unknown keys."""

import dataclasses
import types
import typing
from enum import StrEnum
from typing import Any

from dinov2rt.foreign import quoted, shown

_MOST_ENTRIES = 1000
"""Limit on graphs, files, plans, and profiles of a plan. TensorRT builds far fewer profiles."""


def encode(value: Any) -> Any:
    """A dataclass as plain JSON values: enumerations as text, tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(kind: Any, value: Any, where: str) -> Any:
    """The reverse of `encode`, guided by the field types of the dataclass `kind`.

    Raises:
        TypeError: a value has another type, or a field is missing.
        ValueError: a value is not allowed.
    """
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, typed(dict, value, where), where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _decode_items(arguments[0], typed(list, value, where), where)
    if origin is dict:
        items = typed(dict, value, where).items()
        return {key: decode(arguments[1], item, f"{where}.{shown(key)}") for key, item in items}
    if origin is types.UnionType:
        return None if value is None else decode(arguments[0], value, where)
    if origin is typing.Literal:
        return typed(str, value, where)  # the dataclass checks it
    return _decode_plain(kind, value, where)


def _decode_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if not issubclass(kind, StrEnum):
        return kind(typed(kind, value, where))
    if typed(str, value, where) not in set(kind):
        raise ValueError(f"{quoted(value)} is not a valid {kind.__name__}")
    return kind(value)


def _decode_items(kind: Any, items: list[Any], where: str) -> tuple[Any, ...]:
    if dataclasses.is_dataclass(kind) and len(items) > _MOST_ENTRIES:
        raise ValueError(f"{where} has {len(items)} entries; allowed are {_MOST_ENTRIES}")
    return tuple(decode(kind, item, f"{where}[{index}]") for index, item in enumerate(items))


def _decode_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    """A dataclass; unknown keys come from a later version and are ignored."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.name in value]
    return kind(**{name: decode(hints[name], value[name], f"{where}.{name}") for name in known})


def typed(kind: type, value: Any, where: str) -> Any:
    """`value`, which must be exactly of `kind`.

    Raises:
        TypeError: it is not; the message starts with `where`.
    """
    if type(value) is not kind:  # exactly: in Python, True is also an int
        raise TypeError(f"{where} is {type(value).__name__}, must be {kind.__name__}")
    return value
