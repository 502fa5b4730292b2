"""The precisions of a graph, and how an int8 graph was measured."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class CalibrationEntry:
    """The photographs that int8 weights were rounded on, and that the search measured.

    `paths` are the values of `--calibration`; empty for the photographs that ship with the project.
    `images` is the number of photographs that were used, `names_sha256` the SHA-256 of their file
    names, each followed by a line feed. `rounded_on`, `searched_on` and `checked_on` are numbers of
    crops: those that weights were rounded on, that the search for the products used, and the others
    that its result was checked on, besides the golden cases. `drawings` is the number of images
    unlike photographs that static activations were ranged on as well; 0 in older bundles.
    """

    paths: tuple[str, ...]
    images: int
    names_sha256: str
    rounded_on: int
    searched_on: int
    checked_on: int
    drawings: int = 0


@dataclass(frozen=True, slots=True)
class QuantizationEntry:
    """The products of an int8 graph that are not int8, and the graph's agreement with eager.

    `float32` names them, e.g. `blocks.3.qkv`; they compute in `rest`. The figures are measured at
    export, on crops of photographs that the search does not use. `cls_cosine_min` is the smallest
    cosine of a CLS token, `token_cosine_p1` the smallest first percentile of the cosines of a
    crop's other tokens. `same_nearest` is the share of crops with the same nearest neighbour,
    `kept_nearest` the share with an equally near one up to a tie (`limits.NEAREST_TIE`), or None in
    older bundles. `calibration` says which photographs these are; None in older bundles. `rest` is
    the precision of everything else when this was measured: bf16 where the CPU of the export has
    it. `static` names the int8 products that round activations with scales and zero points fixed at
    export; others have scales for each token, computed at every call. `drawn_cls_cosine_min` and
    `drawn_token_cosine_p1` are like the figures without `drawn`, measured on drawings, which do not
    have to be within the limits; None in older bundles.
    """

    float32: tuple[str, ...]
    cls_cosine_min: float
    token_cosine_p1: float
    same_nearest: float
    kept_nearest: float | None = None
    calibration: CalibrationEntry | None = None
    rest: Precision = Precision.FP32
    static: tuple[str, ...] = ()
    drawn_cls_cosine_min: float | None = None
    drawn_token_cosine_p1: float | None = None
