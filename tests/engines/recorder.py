"""A proxy for TensorRT's module that records each name that is used, and the file that uses it."""

import sys
from pathlib import Path
from typing import Any

Touched = dict[str, set[str]]
"""Names such as "IBuilderConfig.set_flag", each with the files that used it."""


class Recorded:
    """A proxy for `target` that records every access; returned objects are wrapped as well."""

    def __init__(self, target: Any, touched: Touched) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_touched", touched)

    def __getattr__(self, name: str) -> Any:
        self._note(name)
        return _wrap(getattr(self._target, name), self._touched)

    def __setattr__(self, name: str, value: Any) -> None:
        self._note(name)
        setattr(self._target, name, _unwrap(value))

    def __call__(self, *arguments: Any) -> Any:
        return _wrap(self._target(*map(_unwrap, arguments)), self._touched)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._target,)

    def _note(self, name: str) -> None:
        if not name.startswith("__"):
            file = Path(sys._getframe(2).f_code.co_filename)
            owner = _name_of(self._target)
            key = f"{owner}.{name}" if owner else name
            self._touched.setdefault(key, set()).add(f"{file.parent.name}/{file.name}")


def _name_of(target: Any) -> str:
    """The class that an attribute belongs to; empty for the module's own attributes."""
    if isinstance(target, type(sys)):
        return ""
    return target.__name__ if isinstance(target, type) else type(target).__name__


def _wrap(value: Any, touched: Touched) -> Any:
    kind = value if isinstance(value, type) else type(value)
    is_member = hasattr(kind, "__members__") and not isinstance(value, type)
    # Plans are passed as buffers, which a proxy cannot wrap.
    if is_member or kind.__name__ == "IHostMemory":
        return value
    is_theirs = kind.__module__.startswith("tensorrt_rtx") or type(value).__name__ in (
        "method",
        "instancemethod",
        "builtin_function_or_method",
    )
    return Recorded(value, touched) if is_theirs else value


def _unwrap(value: Any) -> Any:
    return value._target if isinstance(value, Recorded) else value
