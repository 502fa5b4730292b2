"""Bilinear resampling as two small dense products, with weights computed in integers.

A coordinate in float32 is rounded at its own size, which costs digits in every library's Resize.
Here the difference between a coordinate and a sample is taken in integers, and is exact.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BAND_BYTES = 2**26


@lru_cache(maxsize=64)
def bilinear_matrix(inputs: int, outputs: int) -> NDArray[np.float32]:
    """Weights [outputs, inputs] with half-pixel centres, clamped to the border.

    Source: the coordinate `(i + ½) · inputs / outputs - ½` of torch's `interpolate` with
    `align_corners=False`, times `2 · outputs`.
    """
    index = np.arange(outputs, dtype=np.int64)[:, None]
    samples = np.arange(inputs, dtype=np.int64)
    unit = 2 * outputs
    source = np.clip((2 * index + 1) * inputs - outputs, 0, unit * (inputs - 1))
    distance = np.abs(source - unit * samples).astype(np.float32) / np.float32(unit)
    matrix: NDArray[np.float32] = np.maximum(1 - distance, np.float32(0), dtype=np.float32)
    matrix.setflags(write=False)
    return matrix


def resize_bilinear(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """`values` [..., h, w] resampled to [..., H, W]."""
    rows, columns = (
        bilinear_matrix(side, target) for side, target in zip(values.shape[-2:], size, strict=True)
    )
    return (rows @ values @ columns.T).astype(np.float32, copy=False)


def resized_bands(
    values: NDArray[np.float32], size: tuple[int, int]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The rows of `resize_bilinear(values, size)`, a few at a time, to bound memory.

    Yields:
        Which rows of the output, and their values [..., rows, W].
    """
    height, width = size
    rows = bilinear_matrix(values.shape[-2], height)
    columns = bilinear_matrix(values.shape[-1], width).T
    leading = int(np.prod(values.shape[:-2]))
    step = max(1, _BAND_BYTES // (4 * width * max(1, leading)))
    for start in range(0, height, step):
        band = slice(start, min(start + step, height))
        yield band, (rows[band] @ values @ columns).astype(np.float32, copy=False)
