"""The precisions of a graph."""

from enum import StrEnum
from typing import Self

from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted


class Precision(StrEnum):
    """What the matrix products of a graph compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The member called `name`.

        Raises:
            InputError: there is none.
        """
        try:
            return cls(name)
        except ValueError:
            allowed = ", ".join(f'"{member}"' for member in cls)
            raise InputError(f"unknown precision {quoted(name)}; allowed are {allowed}") from None
