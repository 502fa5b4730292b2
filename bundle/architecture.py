"""The architecture of a backbone: a property of its weights, stored in the manifest."""

import hashlib
from dataclasses import dataclass, fields
from typing import Literal

from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.normalization import Normalization


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A vision transformer as `DinoVisionTransformer` of the official code defines it.

    `hidden_dim` is the width inside a block's MLP (for SwiGLU: of one half, after the gate).
    `native_grid` is the grid of the position table. For other grids, the table is resampled
    bicubically, with or without `antialias`, at the scale `(grid + offset) / native grid`.
    `normalization` has the mean and standard deviation of the input. `layer_scale` says whether
    each branch has a factor per channel, `qkv_bias` whether query, key and value have a bias.

    Source: `dinov2/models/vision_transformer.py`, whose arguments have the same names, except for
    `img_size / patch_size` (the grid), `interpolate_antialias` and `interpolate_offset`.

    Raises:
        ValueError: no model can have these values.
    """

    embed_dim: int
    depth: int
    num_heads: int
    ffn: Literal["mlp", "swiglu"]
    hidden_dim: int
    patch_size: int
    num_registers: int
    native_grid: Grid
    antialias: bool
    offset: float
    normalization: Normalization
    layer_scale: bool
    qkv_bias: bool

    def __post_init__(self) -> None:
        sizes = (self.embed_dim, self.depth, self.num_heads, self.hidden_dim, self.patch_size)
        if min(*sizes, self.native_grid.rows, self.native_grid.cols) < 1 or self.num_registers < 0:
            raise ValueError(f"sizes below 1, or registers below 0, in {self!r}")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by {self.num_heads} heads"
            )
        if self.ffn not in ("mlp", "swiglu"):
            raise ValueError(f"ffn {self.ffn!r} is neither mlp nor swiglu")
        if not 0 <= self.offset < 1:  # from 1 on, a grid would be resampled to another
            raise ValueError(f"offset {self.offset} of the interpolation; allowed are 0 to below 1")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: CLS and the registers."""
        return 1 + self.num_registers

    @property
    def native_size(self) -> ImageSize:
        """The image size, in pixels, whose grid is the native grid."""
        rows, cols = self.native_grid.rows, self.native_grid.cols
        return ImageSize(rows * self.patch_size, cols * self.patch_size)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ between architectures.

        Features of one file of weights differ if, for example, the statistics of the input do.
        """
        values = [getattr(self, field.name) for field in fields(Architecture)]
        return hashlib.sha256(repr(values).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """A name for an architecture that is no variant, e.g. `dinov2_384x12_patch16_reg8`."""
        registers = f"_reg{self.num_registers}" if self.num_registers else ""
        return f"dinov2_{self.embed_dim}x{self.depth}_patch{self.patch_size}{registers}"
