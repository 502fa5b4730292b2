"""Enumerations whose members are called by a name that a user gives."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Self

from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted


class NamedEnum(StrEnum):
    """Members by their names, as arguments and options give them."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """The member called `name`.

        Raises:
            InputError: no member has that name.
        """
        try:
            return cls(name)
        except ValueError:
            raise unknown_name(cls.kind(), name, tuple(cls)) from None

    @classmethod
    def kind(cls) -> str:
        """The noun for a member in messages."""
        return cls.__name__.lower()


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> InputError:
    """The error for a `name` that is not an allowed `kind`."""
    choices = ", ".join(f'"{choice}"' for choice in allowed)
    return InputError(f"unknown {kind} {quoted(name)}; allowed are {choices}")
