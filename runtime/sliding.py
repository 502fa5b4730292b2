"""Segmentation as in the official evaluation: several scales, mirroring, and a sliding window.

Source: the configuration files of the heads, and mmsegmentation's `MultiScaleFlipAug` and
`slide_inference`. The backbone and the head run at the size of a window. The rest is numpy, on a
few rows of the image at a time, so that memory does not grow with classes times pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.tasks.bilinear import bilinear_matrix
from dinov2rt.errors import InputError

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]
ScoresOf = Callable[[Pixels], Scores]
"""Computes scores [B, K, rows, columns], of any smaller size, for windows [B, h, w, 3]."""

_BAND_BYTES = 2**26
_WINDOWS_AT_ONCE = 4
_TILE_COLUMNS = 256
_MAX_SCALED_PIXELS = 2**26
"""More would fill the memory. A thin image of 1 × 5000 would become 512 × 2,560,000."""


@dataclass(frozen=True, slots=True)
class SlidingRecipe:
    """How an image is scaled, mirrored and cut into windows; sides in pixels.

    The short side is scaled to `short_side` times each of `ratios`, rounded down. Windows have a
    side of `crop` and are `stride` apart.
    """

    short_side: int
    crop: int
    stride: int
    ratios: tuple[float, ...] = (1.0,)
    mirrors: bool = False


ONE_SCALE = SlidingRecipe(short_side=512, crop=512, stride=341)
"""The recipe of the linear heads."""

MULTI_SCALE = SlidingRecipe(640, 640, 320, ratios=(1.0, 1.32, 1.73), mirrors=True)
"""The recipe of the `ms` heads, with the official notebook's default of three of five scales."""


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """One scale of the image, mirrored or not, with its windows and the head's scores for them."""

    size: ImageSize
    is_mirrored: bool
    windows: tuple[tuple[slice, slice], ...]
    scores: tuple[Scores, ...]

    def logits(self, rows: range) -> Scores:
        """Mean scores [K, rows, W] over the windows at each pixel, for some rows of the view."""
        height, width = len(rows), self.size.width
        total = np.zeros((len(self.scores[0]), height, width), np.float32)
        count = np.zeros((height, width), np.float32)
        for (down, across), scores in zip(self.windows, self.scores, strict=True):
            start, stop = max(down.start, rows.start), min(down.stop, rows.stop)
            if start >= stop:
                continue
            of_window = slice(start - down.start, stop - down.start)
            of_band = slice(start - rows.start, stop - rows.start)
            vertical = bilinear_matrix(scores.shape[1], down.stop - down.start)[of_window]
            horizontal = bilinear_matrix(scores.shape[2], across.stop - across.start)
            total[:, of_band, across] += vertical @ scores @ horizontal.T
            count[of_band, across] += 1
        total /= count
        return total

    def row_bytes(self, size: ImageSize) -> int:
        """Bytes of the scores of one row of the image, at its own `size` or at the view's."""
        rows = -(-self.size.height // size.height)
        return 4 * len(self.scores[0]) * max(size.width, rows * self.size.width)

    def probabilities(self, size: ImageSize, band: slice) -> Scores:
        """Softmax [K, rows, W] of the logits at the image's own `size`, for some of its rows."""
        vertical = bilinear_matrix(self.size.height, size.height)[band]
        rows = _used(vertical)
        down = vertical[:, rows.start : rows.stop] @ self.logits(rows)
        values = _resampled_across(down, bilinear_matrix(self.size.width, size.width))
        values -= values.max(axis=0)
        np.exp(values, out=values)
        values /= values.sum(axis=0)
        return np.asarray(values[:, :, ::-1] if self.is_mirrored else values, np.float32)


def classify_pixels(image: Pixels, recipe: SlidingRecipe, scores_of: ScoresOf) -> Pixels:
    """The class of every pixel of `image` [H, W, 3], uint8 [H, W].

    Raises:
        InputError: the image is so thin that it would have too many pixels at the recipe's scales.
    """
    size = ImageSize(*image.shape[:2])
    sizes = scaled_sizes(size, recipe)
    _check_scaled(size, max(sizes, key=lambda scaled: scaled.pixels))
    views = [
        _view(resize_uint8(image, scaled), is_mirrored, recipe, scores_of)
        for scaled in sizes
        for is_mirrored in ((False, True) if recipe.mirrors else (False,))
    ]
    classes = np.empty((size.height, size.width), np.uint8)
    for band in _bands(size, max(view.row_bytes(size) for view in views)):
        total = views[0].probabilities(size, band)
        for view in views[1:]:
            total = total + view.probabilities(size, band)
        classes[band] = total.argmax(axis=0)
    return classes


def _check_scaled(size: ImageSize, largest: ImageSize) -> None:
    if largest.pixels > _MAX_SCALED_PIXELS:
        raise InputError(
            f"the official recipe scales {size} to {largest}, more than {_MAX_SCALED_PIXELS} "
            'pixels; crop the image, or use recipe="single"'
        )


def scaled_sizes(size: ImageSize, recipe: SlidingRecipe) -> list[ImageSize]:
    """The image's sizes at every scale; sides are rounded half up."""
    sizes = []
    for ratio in recipe.ratios:
        factor = int(recipe.short_side * ratio) / min(size.height, size.width)
        sizes.append(ImageSize(int(size.height * factor + 0.5), int(size.width * factor + 0.5)))
    return sizes


def windows_of(size: ImageSize, recipe: SlidingRecipe) -> list[tuple[slice, slice]]:
    """Rows and columns of every window; the last window of each axis ends at the image's edge."""
    rows, columns = (_starts(side, recipe) for side in (size.height, size.width))
    return [(down, across) for down in rows for across in columns]


def _starts(side: int, recipe: SlidingRecipe) -> list[slice]:
    count = max(side - recipe.crop + recipe.stride - 1, 0) // recipe.stride + 1
    stops = [min(index * recipe.stride + recipe.crop, side) for index in range(count)]
    return [slice(max(stop - recipe.crop, 0), stop) for stop in stops]


def _view(image: Pixels, is_mirrored: bool, recipe: SlidingRecipe, scores_of: ScoresOf) -> _View:
    if is_mirrored:
        image = image[:, ::-1]
    size = ImageSize(*image.shape[:2])
    windows = windows_of(size, recipe)
    scores: list[Scores] = []
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):  # windows of a view have equal sizes
        some = np.stack([image[place] for place in windows[start : start + _WINDOWS_AT_ONCE]])
        scores += list(scores_of(some))
    return _View(size, is_mirrored, tuple(windows), tuple(scores))


def _bands(size: ImageSize, row_bytes: int) -> Iterator[slice]:
    step = max(1, _BAND_BYTES // row_bytes)
    for start in range(0, size.height, step):
        yield slice(start, min(start + step, size.height))


def _resampled_across(values: Scores, matrix: NDArray[np.float32]) -> Scores:
    """`values` [K, rows, w] times `matrix` [W, w] transposed, without most of its zeros."""
    classes, rows, _ = values.shape
    out = np.empty((classes, rows, len(matrix)), np.float32)
    for start in range(0, len(matrix), _TILE_COLUMNS):
        tile = matrix[start : start + _TILE_COLUMNS]
        used = _used(tile)
        columns = slice(used.start, used.stop)
        out[:, :, start : start + len(tile)] = values[:, :, columns] @ tile[:, columns].T
    return out


def _used(matrix: NDArray[np.float32]) -> range:
    """The columns of `matrix` from the first to the last that holds more than zeros."""
    used = np.flatnonzero(matrix.any(axis=0))
    return range(int(used[0]), int(used[-1]) + 1)


def resize_uint8(image: Pixels, size: ImageSize) -> Pixels:
    """`image` [H, W, 3], bilinear with half-pixel centres, in OpenCV's fixed-point arithmetic.

    Weights have 11 bits, and sums are shifted right by 4 and by 16 bits, as in OpenCV's
    `VResizeLinear`. Single values may differ from OpenCV by one grey level.
    """
    if size == ImageSize(*image.shape[:2]):
        return image
    rows, columns = _taps(image.shape[0], size.height), _taps(image.shape[1], size.width)
    across = (  # int32 from here on: weights are
        image[:, columns.first] * columns.first_weight[:, None]
        + image[:, columns.second] * columns.second_weight[:, None]
    ) >> 4
    upper = (across[rows.first] * rows.first_weight[:, None, None]) >> 16
    lower = (across[rows.second] * rows.second_weight[:, None, None]) >> 16
    return np.asarray(np.clip((upper + lower + 2) >> 2, 0, 255), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class _Taps:
    """The two samples of each output along an axis, and their weights in units of 1/2048."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_weight: NDArray[np.int32]
    second_weight: NDArray[np.int32]


def _taps(inputs: int, outputs: int) -> _Taps:
    source = ((np.arange(outputs) + 0.5) * (inputs / outputs) - 0.5).astype(np.float32)
    first = np.floor(source).astype(np.int64)
    share = source - first.astype(np.float32)
    outside = (first < 0) | (first >= inputs - 1)
    first = np.clip(first, 0, inputs - 1)
    share[outside] = 0
    weights = [np.rint(each * 2048).astype(np.int32) for each in (np.float32(1) - share, share)]
    return _Taps(first, np.minimum(first + 1, inputs - 1), *weights)


def recipe_of(num_layers: int) -> SlidingRecipe:
    """The official recipe of a segmentation head that reads `num_layers` layers."""
    return MULTI_SCALE if num_layers > 1 else ONE_SCALE
