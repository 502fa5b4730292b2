"""The DINOv2 of Hugging Face transformers, with given weights and without network access."""

from typing import Any

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from dinov2rt.benchmarks.peers.requirements import mlp_ratio_of
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.export.model import LAYER_NORM_EPS
from dinov2rt.export.weights.huggingface import from_official_names
from dinov2rt.export.weights.state_dict import StateDict


def huggingface_model(architecture: Architecture, weights: StateDict) -> Any:
    """`Dinov2Model` or `Dinov2WithRegistersModel` in evaluation mode, its attention by SDPA.

    Args:
        architecture: the architecture of the weights; see `cannot_run_transformers`.
        weights: its official state dict.
    """
    with torch.device("meta"):
        model = _empty_model(architecture)
    model.load_state_dict(from_official_names(weights, model.state_dict()), assign=True)
    return model.eval().requires_grad_(False)


def _empty_model(architecture: Architecture) -> Any:
    facts = config_facts(architecture)
    if architecture.num_registers:
        registers = architecture.num_registers
        config = Dinov2WithRegistersConfig(num_register_tokens=registers, **facts)
        return Dinov2WithRegistersModel(config)
    return Dinov2Model(Dinov2Config(**facts))


def config_facts(architecture: Architecture) -> dict[str, Any]:
    """The arguments of a configuration of transformers, attention by SDPA among them."""
    size = architecture.native_size
    return {
        "hidden_size": architecture.embed_dim,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.num_heads,
        "image_size": [size.height, size.width],
        "patch_size": architecture.patch_size,
        "mlp_ratio": mlp_ratio_of(architecture),
        "qkv_bias": architecture.qkv_bias,
        "use_swiglu_ffn": architecture.ffn == "swiglu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "attn_implementation": "sdpa",
    }
