"""The features of one image, as a row of a file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.errors import InputError

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """What one image gave; all arrays float32.

    `key` is the image's path, or that of its shard with "#" and its name or row in it. `size` is
    that of the image given to the model, before it was snapped to `grid`; `scaled_from` the one
    that it had before it was scaled to fit `max_pixels`, None where it fitted.
    `lost_transparency` says that transparency was dropped; it is not stored.
    Shapes: `cls_token` [D], `register_tokens` [R, D] (R is 0 for variants without registers),
    `patch_mean` [D], `patch_tokens` [P, D] row-major over the grid, or None to leave them out.
    """

    key: str
    size: ImageSize
    grid: Grid
    cls_token: Float32Array
    register_tokens: Float32Array
    patch_mean: Float32Array
    patch_tokens: Float32Array | None = None
    scaled_from: ImageSize | None = None
    lost_transparency: bool = False


@dataclass(frozen=True, slots=True)
class ScaledImages:
    """How many images were scaled to fit, and the sizes of the smallest and the largest before."""

    count: int = 0
    smallest: ImageSize | None = None
    largest: ImageSize | None = None

    @classmethod
    def of(cls, sizes: Sequence[ImageSize]) -> Self:
        """Images of these sizes before they were scaled."""
        if not sizes:
            return cls()
        by_pixels = sorted(sizes, key=lambda size: (size.pixels, size))
        return cls(len(sizes), by_pixels[0], by_pixels[-1])

    def __add__(self, other: Self) -> Self:
        ends = [self.smallest, self.largest, other.smallest, other.largest]
        both = self.of([size for size in ends if size is not None])
        return replace(both, count=self.count + other.count)


SIZE_COLUMNS = (
    "height",
    "width",
    "scaled_from_height",
    "scaled_from_width",
    "grid_rows",
    "grid_cols",
)
"""What sizes are called in every output, in the order of `sizes`."""


def sizes(row: ImageFeatures) -> tuple[int | None, ...]:
    """The values of `SIZE_COLUMNS`; None where the image was not scaled."""
    scaled_from = row.scaled_from
    before = (None, None) if scaled_from is None else (scaled_from.height, scaled_from.width)
    return (row.size.height, row.size.width, *before, row.grid.rows, row.grid.cols)


def as_unicode(key: str) -> str:
    """`key` without the lone surrogates that stand for undecodable bytes of a file name."""
    return key.encode("utf-8", "backslashreplace").decode("utf-8")


def alike(rows: Iterable[ImageFeatures]) -> Iterator[ImageFeatures]:
    """`rows` as they come, at least one, each of the first one's layout.

    Raises:
        InputError: there is none, or they are not of one model.
    """
    first = None
    for row in rows:
        first = first or row
        if _layout(row) != _layout(first):
            raise InputError(
                f"{row.key} has {_layout(row)}, but {first.key} has {_layout(first)}; "
                "write the features of one model to one file"
            )
        yield row
    if first is None:
        raise InputError("there are no features to write; give at least one image")


def _layout(row: ImageFeatures) -> str:
    patches = "no" if row.patch_tokens is None else "with"
    registers, width = len(row.register_tokens), row.cls_token.shape[-1]
    return f"{registers} registers, width {width}, {patches} patch tokens"
