"""Optimization profiles: the ranges of shapes that a plan was built for."""

from dataclasses import dataclass
from typing import Self

from dinov2rt.bundle.geometry import ImageSize


@dataclass(frozen=True, slots=True, order=True)
class BatchShape:
    """Images × height × width, in pixels."""

    batch: int
    height: int
    width: int

    @property
    def size(self) -> ImageSize:
        """Height and width."""
        return ImageSize(self.height, self.width)

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The shapes that a profile allows, axis by axis from min to max; it is tuned for opt."""

    min: BatchShape
    opt: BatchShape
    max: BatchShape

    def __contains__(self, shape: object) -> bool:
        if not isinstance(shape, BatchShape):
            return False
        return (
            self.min.batch <= shape.batch <= self.max.batch
            and self.min.height <= shape.height <= self.max.height
            and self.min.width <= shape.width <= self.max.width
        )

    def __str__(self) -> str:
        return f"{self.min}..{self.max}"

    def nearest(self, shape: BatchShape) -> BatchShape:
        """The allowed shape closest to `shape`, axis by axis."""
        return BatchShape(
            _clamp(shape.batch, self.min.batch, self.max.batch),
            _clamp(shape.height, self.min.height, self.max.height),
            _clamp(shape.width, self.min.width, self.max.width),
        )

    @classmethod
    def pinned(cls, size: ImageSize, max_batch: int) -> Self:
        """Any batch of images of one size, tuned for the largest."""
        sides = (size.height, size.width)
        largest = BatchShape(max_batch, *sides)
        return cls(BatchShape(1, *sides), largest, largest)


@dataclass(frozen=True, slots=True)
class ProfileEntry:
    """One profile of a plan, and the scratch memory that its execution needs."""

    name: str
    shapes: ShapeRange
    scratch_bytes: int


def _clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)
