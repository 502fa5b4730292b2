"""The position table at any grid, as two small dense products.

Bicubic resampling is linear in the table and separable, so the table at a grid of h × w patches is
`A_h · P · A_wᵀ`. The matrices hold the cubic kernel at the distances between output and table rows,
computed from the grid's size with a handful of elementwise operations. No Resize node is needed:
TensorRT has none that is bicubic, and ONNX none with the 0.1 offset. See docs/adr/0001.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.position import ANTIALIASED_CUBIC, CUBIC, EDGE_TAPS, whole_numbers

CONSTANT_PARAMETERS = ("row_taps", "col_taps")
"""Parameters of `PositionTable` that no checkpoint decides."""


def magnitude(value: Tensor) -> Tensor:
    """`|value|`, exactly, without the operator Abs.

    In OpenVINO 2026.4's CPU plugin, a fused Abs returns negative values unchanged, so that the
    table would be silently wrong. See docs/adr/0008.
    """
    return torch.maximum(value, -value)


def cubic_kernel(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel with parameter `a`, zero from a distance of 2 on.

    Source: R. Keys, 1981, with both pieces written as polynomials of `relu(2 - |x|)` and
    `relu(1 - |x|)`, so that the graph needs no Where.
    """
    size = magnitude(distance)
    outer, inner = functional.relu(2 - size), functional.relu(1 - size)
    return a * outer * outer * (1 - outer) + inner * inner * ((4 * a + 3) - 2 * inner)


class PositionTable(nn.Module):
    """Resamples the patch positions [R·C, D] of a native grid R × C to any grid.

    Source: `interpolate_pos_encoding` in `dinov2/models/vision_transformer.py` and ATen's bicubic
    kernels, at the scale `(grid + offset) / native` of each axis. Not antialiased: a = -0.75, the
    border repeated; the native grid is the table as it is. Antialiased: a = -0.5, rows normalised;
    an axis that keeps its length is not resampled.
    """

    def __init__(self, architecture: Architecture, patch_positions: Tensor) -> None:
        super().__init__()
        self.native: Grid = architecture.native_grid
        self.antialias: bool = architecture.antialias
        self.factor: int
        self.added: float
        self.factor, self.added = whole_numbers(architecture.offset)
        table = patch_positions.reshape(self.native.rows, self.native.cols, -1)
        edge = 0 if self.antialias else EDGE_TAPS  # repeating it stands for clamping the index
        planes = functional.pad(table.permute(2, 0, 1)[None], (edge,) * 4, mode="replicate")
        table = planes[0].permute(1, 2, 0).contiguous()  # rows, columns, D
        self.dim: int = table.shape[-1]
        # [taps, taps·D]
        self.table: nn.Parameter = nn.Parameter(table.flatten(1), requires_grad=False)
        self.row_taps: nn.Parameter
        self.col_taps: nn.Parameter
        self.row_taps, self.col_taps = (
            nn.Parameter(torch.arange(count, dtype=torch.float32) - edge, requires_grad=False)
            for count in table.shape[:2]
        )

    def forward(self, rows: int, cols: int) -> Tensor:
        """The positions [1, rows·cols, D] of a grid, row-major."""
        index_rows, index_cols = _index(rows), _index(cols)
        native_rows, native_cols = _is(rows, self.native.rows), _is(cols, self.native.cols)
        if self.antialias:
            mix_rows = self._antialiased(index_rows, rows, self.row_taps, native_rows)
            mix_cols = self._antialiased(index_cols, cols, self.col_taps, native_cols)
        else:
            native = native_rows * native_cols
            mix_rows = self._bicubic(index_rows, rows, self.row_taps, native)
            mix_cols = self._bicubic(index_cols, cols, self.col_taps, native)
        # Both operands of one rank: OpenVINO's CPU plugin refuses others where a side is dynamic.
        down = (mix_rows @ self.table).reshape(-1, len(self.col_taps), self.dim)
        return (mix_cols[None] @ down).reshape(1, -1, self.dim)  # [rows, cols, D], then flat

    def _bicubic(self, index: Tensor, count: int, taps: Tensor, native: Tensor) -> Tensor:
        side = len(taps) - 2 * EDGE_TAPS
        source = self._centers(index, side, self._length(count, native)) - 0.5
        return cubic_kernel(source[:, None] - taps, CUBIC)

    def _antialiased(self, index: Tensor, count: int, taps: Tensor, native: Tensor) -> Tensor:
        side, length = len(taps), self._length(count, native)
        center = self._centers(index, side, length)
        shrink = functional.relu(
            1 - functional.relu(1 - length / (self.factor * side))
        )  # min(…, 1)
        weights = cubic_kernel((taps + 0.5 - center[:, None]) * shrink, ANTIALIASED_CUBIC)
        return weights / weights.sum(dim=1, keepdim=True)

    def _length(self, count: int, native: Tensor) -> Tensor:
        """`factor · (count + offset)`, a whole number; without the offset where `native` is 1."""
        length = self.factor * _float(count)
        return length + self.added * (1 - native) if self.added else length

    def _centers(self, index: Tensor, side: int, length: Tensor) -> Tensor:
        """`(i + 0.5) · side / (count + offset)`, from two exact terms."""
        return (self.factor * side * index + self.factor * side / 2) / length


def _is(count: int, native: int) -> Tensor:
    """1 where `count` is `native`, else 0, without an operator that compares."""
    return functional.relu(1 - magnitude(_float(count) - native))


def _index(count: int) -> Tensor:
    # An integer Range, cast: TensorRT knows no float Range with a dynamic limit.
    return torch.arange(count).to(torch.float32)


def _float(count: int) -> Tensor:
    # `float(count)` would bake the example's size into the graph.
    return torch.full((1,), 1.0) * count
