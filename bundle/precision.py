"""The precisions of a graph."""

from dinov2rt.named_enum import NamedEnum


class Precision(NamedEnum):
    """The number format in which a graph computes its matrix products."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
