"""Limits: the least agreement with the eager model that a graph must show."""

import math
from dataclasses import dataclass, replace

_MEANINGFUL_ERROR, _MEANINGFUL_COSINE = 0.05, 0.99

_POOLED_FROM = 4
"""The smallest number of images for which the limits over all cases apply as measured."""

_FEW_ALLOWANCE = 2.0
"""Those limits for fewer images, as a multiple, since the error of a few vectors varies more.

The limits of cosines allow as much: 1 - cos grows with the square of the error.
"""

POOLED = "all"
"""The case name of a comparison over all cases together; see `Limits.pooled_l2`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The least agreement that passes. A limit of None does not apply.

    If `cosine_p1` is set, it limits the first percentile of the cosines of outputs with many tokens
    per image, and `cosine_min` limits only the cosines of CLS tokens.

    If `pooled_l2` is set, it limits the relative error of outputs with one or a few vectors per
    image (CLS and register tokens) over all cases together. The error of a single vector varies by
    a factor of two between images and between libraries; the error over hundreds of patch tokens
    varies by a tenth.
    """

    cosine_min: float
    relative_l2: float | None = None
    cosine_p1: float | None = None
    pooled_l2: float | None = None

    @property
    def say_nothing(self) -> bool:
        """Whether the limits are so wide that another model would pass.

        Some weights amplify a rounding error, doubling it every few blocks, until no two correct
        implementations agree.
        """
        errors = (self.relative_l2, self.pooled_l2)
        is_wide = any(error is not None and not error <= _MEANINGFUL_ERROR for error in errors)
        return is_wide or not self.cosine_min >= _MEANINGFUL_COSINE

    def for_images(self, count: int) -> "Limits":
        """The limits for `count` images: with fewer than four, twice `pooled_l2` passes."""
        return replace(self, pooled_l2=_for_images(self.pooled_l2, count))

    def check(self) -> None:
        """Check that the limits are numbers that some output can miss.

        Raises:
            ValueError: a cosine is not in -1..1, an error is negative or not finite, or the cosine
                is -1 and there is no limit for the error.
        """
        cosines = [each for each in (self.cosine_min, self.cosine_p1) if each is not None]
        errors = [each for each in (self.relative_l2, self.pooled_l2) if each is not None]
        are_real = all(-1 <= each <= 1 for each in cosines)  # so that NaN is not
        if not are_real or not all(0 <= each < math.inf for each in errors):
            raise ValueError(f"limits {self}; allowed are cosines up to 1 and finite errors from 0")
        if max(cosines) == -1 and not errors:
            raise ValueError(f"limits {self}; every output passes them")

    def __str__(self) -> str:
        error = "" if self.relative_l2 is None else f"relative L2 {self.relative_l2:.3g}, "
        if self.pooled_l2 is not None:
            error += f"{self.pooled_l2:.3g} for CLS and register tokens over all cases, "
        if self.cosine_p1 is None:
            return f"{error}cosine {self.cosine_min:.7g}"
        return (
            f"{error}cosine {self.cosine_min:.7g} for CLS tokens, {self.cosine_p1:.7g} at the "
            "first percentile for others"
        )


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """The limits of an output other than tokens: attention, or the output of a head.

    `relative_l2` limits `|got - want| / |want|` of each case; `pooled_l2` limits it over all cases
    together, where an image has few vectors, see `Limits`. `most_off` limits the share of pixels
    (of images, for a classifier) that are off: by more than 1 % in depth, or with another class. If
    the reference's best two scores differ by more than `margin`, the class must be the same. A
    limit of None does not apply.
    """

    relative_l2: float | None = None
    most_off: float | None = None
    margin: float | None = None
    pooled_l2: float | None = None

    def for_images(self, count: int) -> "TaskLimits":
        """The limits for `count` images: with fewer than four, twice `pooled_l2` passes."""
        return replace(self, pooled_l2=_for_images(self.pooled_l2, count))

    def __str__(self) -> str:
        parts = {
            "relative L2 {:.3g}": self.relative_l2,
            "relative L2 {:.3g} over all cases": self.pooled_l2,
            "at most {:.3g} off": self.most_off,
            "none beyond a margin of {:.3g}": self.margin,
        }
        return ", ".join(text.format(value) for text, value in parts.items() if value is not None)


def _for_images(pooled_l2: float | None, count: int) -> float | None:
    if pooled_l2 is None or count >= _POOLED_FROM:
        return pooled_l2
    return _FEW_ALLOWANCE * pooled_l2


FLOAT32_ERROR = 1e-5

FLOAT32_LIMITS = Limits(cosine_min=0.999999, relative_l2=FLOAT32_ERROR)
"""The official model against itself, with other kernels or thread counts, is at about 1e-6."""

INT8_CLS_COSINE, INT8_TOKEN_COSINE_P1 = 0.999, 0.995

INT8_LIMITS = Limits(cosine_min=INT8_CLS_COSINE, cosine_p1=INT8_TOKEN_COSINE_P1)

INT8_KEPT_NEAREST = 0.99
"""The share of images that must keep their nearest neighbour by CLS token, up to a tie."""

NEAREST_TIE = 1e-3
"""Neighbours whose cosines differ by at most this much count as equally near.

The recall of ann-benchmarks has the same tolerance in distance. It equals the allowed error of a
CLS token; docs/adr/0009 shows the effect of int8, bfloat16 and float16 on nearer neighbours.
"""
