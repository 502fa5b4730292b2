"""The position table at any grid, as two small dense products.

Bicubic resampling is linear in the table and separable, so the table at a grid of h × w patches is
`A_h · P · A_wᵀ`. The matrices hold the cubic kernel at the distances between output and table rows,
computed from the grid's size with a handful of elementwise operations. No Resize node is needed:
TensorRT has none that is bicubic, and ONNX none with the 0.1 offset. See docs/adr/0001.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinov2rt.bundle.variants import NATIVE_GRID, Variant

CONSTANT_PARAMETERS = ("taps",)
"""Parameters of `PositionTable` that no checkpoint decides."""

_PAD = 2  # taps reach two rows over the border; repeating the edge stands for clamping the index


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
    """Resamples the patch positions [37·37, D] to any grid, as the official code does.

    Source: `interpolate_pos_encoding` in `dinov2/models/vision_transformer.py` and ATen's bicubic
    kernels: a = -0.75, border repeated, scale `(grid + 0.1) / 37` for variants without registers;
    a = -0.5, antialiased, rows normalised, scale `grid / 37` for those with registers.
    """

    def __init__(self, variant: Variant, patch_positions: Tensor) -> None:
        super().__init__()
        self.antialias = variant.num_registers > 0
        table = patch_positions.reshape(NATIVE_GRID, NATIVE_GRID, -1)  # rows, columns, D
        if not self.antialias:
            planes = functional.pad(table.permute(2, 0, 1)[None], (_PAD,) * 4, mode="replicate")
            table = planes[0].permute(1, 2, 0).contiguous()
        self.dim = table.shape[-1]
        self.table = nn.Parameter(table.flatten(1), requires_grad=False)  # [taps, taps·D]
        taps = torch.arange(table.shape[0], dtype=torch.float32)
        self.taps = nn.Parameter(taps if self.antialias else taps - _PAD, requires_grad=False)

    def forward(self, rows: int, cols: int) -> Tensor:
        """The positions [1, rows·cols, D] of a grid, row-major."""
        index_rows, index_cols = _index(rows), _index(cols)
        if self.antialias:
            mix_rows = self._antialiased(index_rows, rows)
            mix_cols = self._antialiased(index_cols, cols)
        else:
            off_native = magnitude(_float(rows) - 37) + magnitude(_float(cols) - 37)
            native = functional.relu(1 - off_native)
            mix_rows = self._offset(index_rows, rows, native)
            mix_cols = self._offset(index_cols, cols, native)
        # Both operands of one rank: OpenVINO's CPU plugin refuses others where a side is dynamic.
        down = (mix_rows @ self.table).reshape(-1, len(self.taps), self.dim)  # [rows, taps, D]
        return (mix_cols[None] @ down).reshape(1, -1, self.dim)  # [rows, cols, D], then flat

    def _offset(self, index: Tensor, side: int, native: Tensor) -> Tensor:
        # (i + 0.5) · 37 / (n + 0.1) - 0.5, scaled by 10 so that both terms are exact integers.
        # `native` is 1 at 37 × 37 alone and takes the offset away there: the table as it is.
        source = (370 * index + 185) / (10 * _float(side) + (1 - native)) - 0.5
        return cubic_kernel(source[:, None] - self.taps, a=-0.75)

    def _antialiased(self, index: Tensor, side: int) -> Tensor:
        center = (37 * index + 18.5) / _float(side)
        shrink = functional.relu(1 - functional.relu(1 - _float(side) / 37))  # min(n / 37, 1)
        weights = cubic_kernel((self.taps + 0.5 - center[:, None]) * shrink, a=-0.5)
        return weights / weights.sum(dim=1, keepdim=True)


def _index(count: int) -> Tensor:
    # An integer Range, cast: TensorRT knows no float Range with a dynamic limit.
    return torch.arange(count).to(torch.float32)


def _float(count: int) -> Tensor:
    # `float(count)` would bake the example's size into the graph.
    return torch.full((1,), 1.0) * count
