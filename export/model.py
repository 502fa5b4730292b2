"""The eager DINOv2 backbone: the reference for all accuracy checks.

It follows `dinov2/models/vision_transformer.py` and `dinov2/layers/` of facebookresearch/dinov2
literally, with the same state-dict keys; changes for export are in `graph.py`. Parts that are only
for training (masks, drop path, nested tensors) are left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.errors import InputError

LAYER_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] to patch tokens [B, h·w, D]; pixels beyond the last patch drop."""

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj: nn.Conv2d = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, h·w, D], row-major."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv projection, head-major inside q, k and v."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv: nn.Linear = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj: nn.Linear = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, head_dim]
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, dim))
        return out

    def cls_weights(self, tokens: Tensor) -> Tensor:
        """The attention weights [B, heads, N] of the first of the tokens [B, N, D].

        Source: `softmax(q kᵀ / √head_dim)`, as `Attention` in `dinov2/layers/attention.py`.
        """
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, dim // self.num_heads)
        query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scaled = query[:, :, :1] * (dim // self.num_heads) ** -0.5
        weights: Tensor = (scaled @ key.transpose(-2, -1)).float().softmax(dim=-1)[:, :, 0]
        return weights


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1: nn.Linear = nn.Linear(dim, hidden_dim)
        self.fc2: nn.Linear = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return out


class SwiGlu(nn.Module):
    """`w3(silu(a) * b)` with `a, b` the halves of `w12`, as ViT-g has it."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w12: nn.Linear = nn.Linear(dim, 2 * hidden_dim)
        self.w3: nn.Linear = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        gate, up = self.w12(tokens).chunk(2, dim=-1)
        out: Tensor = self.w3(functional.silu(gate) * up)
        return out


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma: nn.Parameter = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        return tokens * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block; LayerScale on both branches, where the architecture has it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.norm1: nn.LayerNorm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn: Attention = Attention(
            dim, architecture.num_heads, qkv_bias=architecture.qkv_bias
        )
        self.ls1: LayerScale | nn.Identity = (
            LayerScale(dim) if architecture.layer_scale else nn.Identity()
        )
        self.norm2: nn.LayerNorm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        feed_forward = SwiGlu if architecture.ffn == "swiglu" else Mlp
        self.mlp: Mlp | SwiGlu = feed_forward(dim, architecture.hidden_dim)
        self.ls2: LayerScale | nn.Identity = (
            LayerScale(dim) if architecture.layer_scale else nn.Identity()
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class Dinov2(nn.Module):
    """A DINOv2 backbone with the official state-dict keys.

    Input images are float32 [B, 3, H, W], RGB scaled to 0..1 and normalised with the architecture's
    mean and standard deviation. H and W need not be multiples of the patch: additional pixels at
    the bottom and at the right are dropped, as in the official model card (the official code
    asserts instead).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.task_heads: tuple[Any, ...] = ()  # of `heads/checkpoint.py`; no part of the state dict
        dim = architecture.embed_dim
        self.cls_token: nn.Parameter = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed: nn.Parameter = nn.Parameter(
            torch.zeros(1, 1 + architecture.native_grid.num_patches, dim)
        )
        self.mask_token: nn.Parameter = nn.Parameter(
            torch.zeros(1, dim)
        )  # a key of every checkpoint; unused
        if architecture.num_registers:
            self.register_tokens: nn.Parameter = nn.Parameter(
                torch.zeros(1, architecture.num_registers, dim)
            )
        self.patch_embed: PatchEmbed = PatchEmbed(dim, architecture.patch_size)
        self.blocks: nn.ModuleList = nn.ModuleList(
            Block(architecture) for _ in range(architecture.depth)
        )
        self.norm: nn.LayerNorm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    @property
    def normalization(self) -> Normalization:
        """The normalization of the input."""
        return self.architecture.normalization

    def interpolate_pos_encoding(self, rows: int, cols: int) -> Tensor:
        """The position table [1, 1 + rows·cols, D] for a grid, CLS first.

        Source: `interpolate_pos_encoding` in `vision_transformer.py`. With an offset, the scale
        `(grid + offset) / native` is given, without one the size. The native grid is returned as it
        is.
        """
        architecture, native = self.architecture, self.architecture.native_grid
        if Grid(rows, cols) == native:
            return self.pos_embed
        table = self.pos_embed.float()
        grid = table[:, 1:].reshape(1, native.rows, native.cols, -1).permute(0, 3, 1, 2)
        target: dict[str, Any] = {"size": (rows, cols)}
        if offset := architecture.offset:
            scale = ((rows + offset) / native.rows, (cols + offset) / native.cols)
            target = {"scale_factor": scale}
        resampled = functional.interpolate(
            grid, mode="bicubic", antialias=architecture.antialias, **target
        )
        patches = resampled.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat((table[:, :1], patches), dim=1)

    def prepare_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to tokens [B, 1 + R + h·w, D]: CLS, registers, patches row-major."""
        batch, _, height, width = images.shape
        patches = self.patch_embed(images)
        tokens = torch.cat((self.cls_token.expand(batch, -1, -1), patches), dim=1)
        grid = ImageSize(height, width).grid(self.architecture.patch_size)
        position = self.interpolate_pos_encoding(grid.rows, grid.cols)
        tokens = tokens + position.to(tokens.dtype)
        if self.architecture.num_registers:  # they come after the positions: they have none
            registers = self.register_tokens.expand(batch, -1, -1)
            tokens = torch.cat((tokens[:, :1], registers, tokens[:, 1:]), dim=1)
        return tokens

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """All tokens, under the official names.

        Returns:
            `x_norm_clstoken` [B, D], `x_norm_regtokens` [B, R, D], `x_norm_patchtokens`
            [B, h·w, D], and `x_prenorm` [B, 1 + R + h·w, D], the tokens before the final norm.
        """
        tokens = self.prepare_tokens(images)
        for block in self.blocks:
            tokens = block(tokens)
        normed = self.norm(tokens)
        prefix = self.architecture.num_prefix_tokens
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:prefix],
            "x_norm_patchtokens": normed[:, prefix:],
            "x_prenorm": tokens,
        }

    def block_tokens(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Tokens [B, 1 + R + h·w, D] behind each block of `layers`, before the final norm."""
        tokens, found = self.prepare_tokens(images), {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in layers:
                found[index] = tokens
        return found

    def cls_attention(self, images: Tensor) -> Tensor:
        """The CLS token's attention to each patch in the last block, [B, heads, h·w].

        Attention to the CLS token itself and to registers is left out, so that a row sums to less
        than 1.
        """
        tokens = self.prepare_tokens(images)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last: Any = self.blocks[-1]
        weights: Tensor = last.attn.cls_weights(last.norm1(tokens))
        return weights[:, :, self.architecture.num_prefix_tokens :]

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        *,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Tokens after some blocks, always in the order of the blocks.

        Args:
            images: [B, 3, H, W].
            n: the last `n` blocks, or block indices counted from 0.
            reshape: give patch tokens as [B, D, h, w] instead of [B, h·w, D].
            return_class_token: give pairs of patch tokens and CLS token [B, D].
            norm: apply the final norm to every layer.

        Raises:
            InputError: the model does not have a block of that index.
        """
        wanted = _block_indices(n, self.architecture.depth)
        tokens, outputs = self.prepare_tokens(images), []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in wanted:
                outputs.append(self.norm(tokens) if norm else tokens)
        patches = [output[:, self.architecture.num_prefix_tokens :] for output in outputs]
        if reshape:
            grid = ImageSize(*images.shape[2:]).grid(self.architecture.patch_size)
            sides = (grid.rows, grid.cols)
            patches = [patch.transpose(1, 2).unflatten(2, sides) for patch in patches]
        if return_class_token:
            return tuple(zip(patches, [output[:, 0] for output in outputs], strict=True))
        return tuple(patches)

    def forward(self, images: Tensor) -> Tensor:
        """The CLS token [B, D] after the final norm, as the official model's `forward`."""
        return self.forward_features(images)["x_norm_clstoken"]


def _block_indices(n: int | Sequence[int], depth: int) -> set[int]:
    wanted = set(range(depth - n, depth)) if isinstance(n, int) else set(n)
    if not wanted or not wanted <= set(range(depth)):
        raise InputError(f"layers {n!r} requested, but the model has blocks 0 to {depth - 1}")
    return wanted


def load_eager(architecture: Architecture, state_dict: dict[str, Tensor]) -> Dinov2:
    """The eager model in evaluation mode, holding `state_dict` itself rather than a copy."""
    with torch.device("meta"):
        model = Dinov2(architecture)
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.eval().requires_grad_(False)
