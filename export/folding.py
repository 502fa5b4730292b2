"""Exact algebra that moves constants out of the graph, one named step each.

Every step takes a state dict and returns another one of the same function; the tensors that a step
does not touch are shared, not copied.
"""

import torch

from dinov2rt.export.state_dict import StateDict
from dinov2rt.runtime.variants import Variant


def fold_layer_scale(state: StateDict, variant: Variant) -> StateDict:
    """`γ · (W x + b)` is `(γ W) x + γ b`: LayerScale goes into the projection before it."""
    folded = dict(state)
    down = "mlp.w3" if variant.ffn == "swiglu" else "mlp.fc2"
    for index in range(variant.depth):
        for scale, projection in (("ls1", "attn.proj"), ("ls2", down)):
            gamma = folded[f"blocks.{index}.{scale}.gamma"]
            name = f"blocks.{index}.{projection}"
            folded[f"{name}.weight"] = folded[f"{name}.weight"] * gamma[:, None]
            folded[f"{name}.bias"] = folded[f"{name}.bias"] * gamma
            folded[f"blocks.{index}.{scale}.gamma"] = torch.ones_like(gamma)
    return folded


def fold_attention_scale(state: StateDict, variant: Variant) -> StateDict:
    """`softmax((s q) kᵀ)`: the scale `s = head_dim^-0.5` goes into the query's weight and bias."""
    folded = dict(state)
    dim = variant.embed_dim
    for index in range(variant.depth):
        for kind in ("weight", "bias"):
            name = f"blocks.{index}.attn.qkv.{kind}"
            query, rest = folded[name][:dim], folded[name][dim:]
            folded[name] = torch.cat((query * variant.head_dim**-0.5, rest))
    return folded


def fold_prefix(state: StateDict, variant: Variant) -> StateDict:
    """CLS plus its position, and the registers, are constants: one `prefix` [1, 1 + R, D].

    What remains of `pos_embed` is `patch_positions` [37·37, D].
    """
    folded = dict(state)
    position = folded.pop("pos_embed")
    parts = [folded.pop("cls_token") + position[:, :1]]
    if variant.num_registers:
        parts.append(folded.pop("register_tokens"))
    folded["prefix"] = torch.cat(parts, dim=1)
    folded["patch_positions"] = position[0, 1:]
    return folded


def fold(state: StateDict, variant: Variant) -> StateDict:
    """All steps, in the order in which `ExportGraph` expects them."""
    for step in (fold_layer_scale, fold_attention_scale, fold_prefix):
        state = step(state, variant)
    return state
