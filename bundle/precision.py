"""The precisions of a graph."""

from typing import Literal

from dinov2rt.named_enum import NamedEnum


class Precision(NamedEnum):
    """The number format in which a graph computes its matrix products."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


PrecisionName = Literal["fp32", "fp16", "bf16", "int8"]
"""The names of `Precision`."""
