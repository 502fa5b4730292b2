"""The DINOv2 of Hugging Face transformers, with given weights and without network access."""

from typing import Any

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from dinov2rt.bundle.variants import NATIVE_GRID, PATCH_SIZE, Variant
from dinov2rt.export.model import LAYER_NORM_EPS
from dinov2rt.export.weights.huggingface import from_official_names
from dinov2rt.export.weights.state_dict import StateDict


def huggingface_model(variant: Variant, weights: StateDict) -> Any:
    """`Dinov2Model` or `Dinov2WithRegistersModel` in evaluation mode, its attention by SDPA.

    Args:
        variant: which backbone.
        weights: its official state dict.
    """
    with torch.device("meta"):
        model = _empty_model(variant)
    model.load_state_dict(from_official_names(weights, model.state_dict()), assign=True)
    return model.eval().requires_grad_(False)


def _empty_model(variant: Variant) -> Any:
    facts: dict[str, Any] = {
        "hidden_size": variant.embed_dim,
        "num_hidden_layers": variant.depth,
        "num_attention_heads": variant.num_heads,
        "image_size": NATIVE_GRID * PATCH_SIZE,
        "patch_size": PATCH_SIZE,
        "use_swiglu_ffn": variant.ffn == "swiglu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "attn_implementation": "sdpa",
    }
    if variant.num_registers:
        registers = variant.num_registers
        config = Dinov2WithRegistersConfig(num_register_tokens=registers, **facts)
        return Dinov2WithRegistersModel(config)
    return Dinov2Model(Dinov2Config(**facts))
