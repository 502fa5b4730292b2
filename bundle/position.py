"""The matrices that resample a position table to another grid.

They are inputs of the graph for ONNX Runtime's CUDA provider. Since they depend only on the grid,
they are computed once per shape, which saves about 60 small kernels per call. `export/position.py`
has the same arithmetic as part of the portable graph.
"""

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.variants import NATIVE_GRID, Variant

ROWS_INPUT, COLUMNS_INPUT = "position_rows", "position_columns"
"""Names of the graph's inputs: float32 [rows, taps] and [columns, taps]."""

_PAD = 2  # the table without antialiasing repeats its border this often
_ONE = np.float32(1)


def resampling_matrices(
    variant: Variant, grid: Grid
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [rows, taps] and [columns, taps] of the table's rows and columns for `grid`.

    Source: `interpolate_pos_encoding` of the official code and ATen's bicubic kernels, as
    `export/position.py` states them. Computed in float32, in the same order as in the graph.
    """
    native = (grid.rows, grid.cols) == (NATIVE_GRID, NATIVE_GRID)
    if variant.num_registers:
        return _antialiased(grid.rows), _antialiased(grid.cols)
    return _with_offset(grid.rows, native), _with_offset(grid.cols, native)


def _with_offset(count: int, native: bool) -> NDArray[np.float32]:
    """Bicubic, a = -0.75, at the scale `(count + 0.1) / 37`; the identity at the native grid."""
    taps = np.arange(-_PAD, NATIVE_GRID + _PAD, dtype=np.float32)
    index = np.arange(count, dtype=np.float32)
    # Scaled by 10, so that numerator and denominator are whole numbers, which float32 holds.
    denominator = np.float32(10 * count + (0 if native else 1))
    source = (np.float32(10 * NATIVE_GRID) * index + np.float32(5 * NATIVE_GRID)) / denominator
    return _cubic((source - np.float32(0.5))[:, None] - taps, a=-0.75)


def _antialiased(count: int) -> NDArray[np.float32]:
    """Bicubic, a = -0.5, antialiased, rows normalised, at the scale `count / 37`."""
    taps = np.arange(NATIVE_GRID, dtype=np.float32)
    index = np.arange(count, dtype=np.float32)
    center = (np.float32(NATIVE_GRID) * index + np.float32(NATIVE_GRID / 2)) / np.float32(count)
    shrink = np.minimum(np.float32(count) / np.float32(NATIVE_GRID), _ONE)
    weights = _cubic((taps + np.float32(0.5) - center[:, None]) * shrink, a=-0.5)
    normalized: NDArray[np.float32] = weights / weights.sum(axis=1, keepdims=True)
    return normalized


def _cubic(distance: NDArray[np.float32], a: float) -> NDArray[np.float32]:
    """Keys' cubic convolution kernel with parameter `a`, zero from a distance of 2 on."""
    size = np.abs(distance)
    outer = np.maximum(np.float32(2) - size, np.float32(0))
    inner = np.maximum(_ONE - size, np.float32(0))
    value: NDArray[np.float32] = np.float32(a) * outer * outer * (_ONE - outer) + inner * inner * (
        np.float32(4 * a + 3) - np.float32(2) * inner
    )
    return value
