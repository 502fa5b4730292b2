"""The precisions of a graph."""

from dinov2rt.named_enum import NamedEnum


class Precision(NamedEnum):
    """What the matrix products of a graph compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
