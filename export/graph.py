"""The backbone in the form that is traced: the same function as the eager model, for export.

Differences to `model.py`: the position table is resampled by two matrix products, CLS and registers
are one constant prefix, and matrices are stored as [in, out], as in ONNX. Folding into the weights
is left to `folding.py`, because it depends on the precision.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.signature import NO_EXTRAS, Extras
from dinov2rt.export.model import LAYER_NORM_EPS
from dinov2rt.export.position import PositionTable
from dinov2rt.export.weights.state_dict import StateDict


class Affine(nn.Module):
    """`x @ weight + bias`, with weight [in, out]. A missing bias is zero."""

    def __init__(self, state: StateDict, name: str) -> None:
        super().__init__()
        weight = state[f"{name}.weight"]
        self.weight: nn.Parameter = _parameter(weight.T)
        self.bias: nn.Parameter = _parameter(state.get(f"{name}.bias", torch.zeros(len(weight))))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, in] to [B, N, out]."""
        return tokens @ self.weight + self.bias


class Norm(nn.Module):
    """LayerNorm over the last axis."""

    def __init__(self, state: StateDict, name: str) -> None:
        super().__init__()
        self.weight: nn.Parameter = _parameter(state[f"{name}.weight"])
        self.bias: nn.Parameter = _parameter(state[f"{name}.bias"])

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        return functional.layer_norm(
            tokens, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS
        )


class LayerScale(nn.Module):
    """A factor per channel."""

    def __init__(self, state: StateDict, name: str) -> None:
        super().__init__()
        self.gamma: nn.Parameter = _parameter(state[f"{name}.gamma"])

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        return tokens * self.gamma


class GraphBlock(nn.Module):
    """A transformer block; both MLP and SwiGLU are called `up` and `down`."""

    def __init__(self, architecture: Architecture, state: StateDict, name: str) -> None:
        super().__init__()
        self.num_heads: int = architecture.num_heads
        self.head_dim: int = architecture.head_dim
        self.gated: bool = architecture.ffn == "swiglu"
        up, down = ("w12", "w3") if self.gated else ("fc1", "fc2")
        self.norm1: Norm = Norm(state, f"{name}.norm1")
        self.qkv: Affine = Affine(state, f"{name}.attn.qkv")
        self.proj: Affine = Affine(state, f"{name}.attn.proj")
        self.ls1: LayerScale | nn.Identity
        self.ls2: LayerScale | nn.Identity
        self.ls1, self.ls2 = (
            LayerScale(state, f"{name}.{leaf}") if architecture.layer_scale else nn.Identity()
            for leaf in ("ls1", "ls2")
        )
        self.norm2: Norm = Norm(state, f"{name}.norm2")
        self.up: Affine = Affine(state, f"{name}.mlp.{up}")
        self.down: Affine = Affine(state, f"{name}.mlp.{down}")

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        tokens = tokens + self.ls1(self.proj(self._attend(self.norm1(tokens))))
        out: Tensor = tokens + self.ls2(self.down(self._activate(self.up(self.norm2(tokens)))))
        return out

    def _attend(self, tokens: Tensor) -> Tensor:
        query, key, value = (self._heads(part) for part in self.qkv(tokens).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, tokens: Tensor) -> Tensor:  # [B, N, D] to [B, heads, N, head_dim]
        batch, count, _ = tokens.shape
        return tokens.reshape(batch, count, self.num_heads, self.head_dim).transpose(1, 2)

    def _activate(self, hidden: Tensor) -> Tensor:
        if not self.gated:
            return functional.gelu(hidden)
        gate, up = hidden.chunk(2, dim=-1)
        return functional.silu(gate) * up


class Embedding(nn.Module):
    """Normalised images to the tokens that enter the first block."""

    def __init__(self, architecture: Architecture, state: StateDict) -> None:
        super().__init__()
        self.prefix: nn.Parameter = _parameter(constant_prefix(architecture, state))
        self.position: PositionTable = PositionTable(architecture, state["pos_embed"][0, 1:])
        self.patch_weight: nn.Parameter = _parameter(state["patch_embed.proj.weight"])
        self.patch_bias: nn.Parameter = _parameter(state["patch_embed.proj.bias"])
        self.patch_size: int = architecture.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 1 + R + h·w, D]."""
        batch, _, height, width = images.shape
        side = self.patch_size
        patches = functional.conv2d(images, self.patch_weight, self.patch_bias, stride=side)
        positions = self.position(height // side, width // side)
        patch_tokens = patches.flatten(2).transpose(1, 2) + positions
        return torch.cat((self.prefix.expand(batch, -1, -1), patch_tokens), dim=1)


class Head(nn.Module):
    """The final norm, and the tokens by kind."""

    def __init__(self, architecture: Architecture, state: StateDict) -> None:
        super().__init__()
        self.first_patch: int = architecture.num_prefix_tokens
        self.norm: Norm = Norm(state, "norm")

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """[B, N, D] to CLS [B, D], registers [B, R, D] where there are any, patches [B, h·w, D]."""
        normed = self.norm(tokens)
        cls_token, patches = normed[:, 0], normed[:, self.first_patch :]
        if self.first_patch == 1:
            return cls_token, patches
        return cls_token, normed[:, 1 : self.first_patch], patches


class ExportGraph(nn.Module):
    """The whole backbone as three kinds of modules, which `trace.py` exports and joins."""

    def __init__(
        self, architecture: Architecture, state: StateDict, extras: Extras = NO_EXTRAS
    ) -> None:
        super().__init__()
        self.architecture: Architecture = architecture
        self.extras: Extras = extras
        self.embedding: Embedding = Embedding(architecture, state)
        self.blocks: nn.ModuleList = nn.ModuleList(
            GraphBlock(architecture, state, f"blocks.{index}")
            for index in range(architecture.depth)
        )
        self.head: Head = Head(architecture, state)


def constant_prefix(architecture: Architecture, state: StateDict) -> Tensor:
    """CLS plus its position, then the registers, which have none: constants, [1, 1 + R, D]."""
    cls_token = state["cls_token"] + state["pos_embed"][:, :1]
    if not architecture.num_registers:
        return cls_token
    return torch.cat((cls_token, state["register_tokens"]), dim=1)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)
