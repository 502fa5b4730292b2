"""The matrices that resample a position table to another grid.

They are inputs of the graph for ONNX Runtime's CUDA provider. Since they depend only on the grid,
they are computed once per shape, which saves about 60 small kernels per call. `export/position.py`
has the same arithmetic as part of the portable graph.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid

ROWS_INPUT, COLUMNS_INPUT = "position_rows", "position_columns"
"""Names of the graph's inputs: float32 [rows, taps] and [columns, taps]."""

EDGE_TAPS = 2
"""Rows and columns by which a table without antialiasing repeats its border, on each side."""

CUBIC, ANTIALIASED_CUBIC = -0.75, -0.5
"""Parameter of the cubic kernel, without and with antialiasing, as ATen has it."""

_MOST_DENOMINATOR = 100
_ONE = np.float32(1)


def resampling_matrices(
    architecture: Architecture, grid: Grid
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [rows, taps] and [columns, taps] of the table's rows and columns for `grid`.

    Source: `interpolate_pos_encoding` of the official code and ATen's bicubic kernels, as
    `export/position.py` states them. Computed in float32, in the same order as in the graph.
    """
    native = architecture.native_grid
    sides = ((grid.rows, native.rows), (grid.cols, native.cols))
    rows, cols = (_matrix(architecture, *pair, is_native=grid == native) for pair in sides)
    return rows, cols


def table_taps(architecture: Architecture) -> Grid:
    """Rows and columns of the table as it is resampled, with the repeated border if it has one."""
    native = architecture.native_grid
    edges = 0 if architecture.antialias else 2 * EDGE_TAPS
    return Grid(native.rows + edges, native.cols + edges)


def whole_numbers(offset: float) -> tuple[int, float]:
    """A factor for both sides of a fraction, and the `offset` times it.

    With an offset of 1/10, `side · (i + 0.5) / (count + 0.1)` is a fraction of whole numbers if
    both sides are taken ten times; those float32 holds exactly.
    """
    factor = Fraction(offset).limit_denominator(_MOST_DENOMINATOR).denominator
    return factor, offset * factor


def _matrix(
    architecture: Architecture, count: int, side: int, *, is_native: bool
) -> NDArray[np.float32]:
    if architecture.antialias:  # an axis that keeps its length is copied, whatever the other one
        return _antialiased(count, side, 0.0 if count == side else architecture.offset)
    return _bicubic(count, side, 0.0 if is_native else architecture.offset)


def _bicubic(count: int, side: int, offset: float) -> NDArray[np.float32]:
    """At the scale `(count + offset) / side`; the border is repeated."""
    taps = np.arange(-EDGE_TAPS, side + EDGE_TAPS, dtype=np.float32)
    source = _centers(count, side, offset) - np.float32(0.5)
    return _cubic(source[:, None] - taps, a=CUBIC)


def _antialiased(count: int, side: int, offset: float) -> NDArray[np.float32]:
    """At the scale `(count + offset) / side`; rows are normalised."""
    taps = np.arange(side, dtype=np.float32)
    factor, added = whole_numbers(offset)
    scale = np.float32(factor * count + added) / np.float32(factor * side)
    distance = taps + np.float32(0.5) - _centers(count, side, offset)[:, None]
    weights = _cubic(distance * np.minimum(scale, _ONE), a=ANTIALIASED_CUBIC)
    normalized: NDArray[np.float32] = weights / weights.sum(axis=1, keepdims=True)
    return normalized


def _centers(count: int, side: int, offset: float) -> NDArray[np.float32]:
    """`(i + 0.5) · side / (count + offset)` for each i below `count`."""
    factor, added = whole_numbers(offset)
    index = np.arange(count, dtype=np.float32)
    numerator = np.float32(factor * side) * index + np.float32(factor * side / 2)
    centers: NDArray[np.float32] = numerator / np.float32(factor * count + added)
    return centers


def _cubic(distance: NDArray[np.float32], a: float) -> NDArray[np.float32]:
    """Keys' cubic convolution kernel with parameter `a`, zero from a distance of 2 on."""
    size = np.abs(distance)
    outer = np.maximum(np.float32(2) - size, np.float32(0))
    inner = np.maximum(_ONE - size, np.float32(0))
    value: NDArray[np.float32] = np.float32(a) * outer * outer * (_ONE - outer) + inner * inner * (
        np.float32(4 * a + 3) - np.float32(2) * inner
    )
    return value
