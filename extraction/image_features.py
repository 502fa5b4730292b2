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
    """The features of one image; all arrays are float32.

    `key` is the image's path, or the path of its shard with "#" and its name or row there. `size`
    is the size of the model's input, before it was snapped to `grid`. `scaled_from` is its size
    before it was scaled to fit `max_pixels`, or None if it fitted. `lost_transparency` says that
    transparency was dropped; it is not stored.
    Shapes: `cls_token` [D], `register_tokens` [R, D] (R is 0 for variants without registers),
    `patch_mean` [D], `patch_tokens` [P, D] row-major over the grid, or None to leave them out, and
    `layer_cls_tokens` [L, D], the CLS tokens of intermediate blocks, or None to leave them out.
    """

    key: str
    size: ImageSize
    grid: Grid
    cls_token: Float32Array
    register_tokens: Float32Array
    patch_mean: Float32Array
    patch_tokens: Float32Array | None = None
    layer_cls_tokens: Float32Array | None = None
    scaled_from: ImageSize | None = None
    lost_transparency: bool = False


@dataclass(frozen=True, slots=True)
class ScaledImages:
    """The number of images that were scaled to fit, with the smallest and largest original size."""

    count: int = 0
    smallest: ImageSize | None = None
    largest: ImageSize | None = None

    @classmethod
    def of(cls, sizes: Sequence[ImageSize]) -> Self:
        """For images with these original sizes."""
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
"""The names of the size columns in every output, in the order of `sizes`."""


def sizes(row: ImageFeatures) -> tuple[int | None, ...]:
    """The values for `SIZE_COLUMNS`; the original size is None if the image was not scaled."""
    scaled_from = row.scaled_from
    before = (None, None) if scaled_from is None else (scaled_from.height, scaled_from.width)
    return (row.size.height, row.size.width, *before, row.grid.rows, row.grid.cols)


def as_unicode(key: str) -> str:
    """`key` with escapes instead of lone surrogates, which encode undecodable bytes of a name."""
    return key.encode("utf-8", "backslashreplace").decode("utf-8")


def alike(rows: Iterable[ImageFeatures]) -> Iterator[ImageFeatures]:
    """Yield `rows`, and check that there is at least one and that all have the same layout.

    Raises:
        InputError: there is no row, or the rows come from different models.
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
