"""Names of a backbone's tensors in the official code, timm and transformers, made one.

Everything here works on names alone. Sources: `vision_transformer.py` of the official code, of
timm (also `_convert_dinov2`), and `modeling_dinov2.py` and its conversion script in transformers.
"""

import re
from enum import StrEnum

_WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "_fpw_module",
        "_ddp_module",
    }
)
"""Segments that wrap a module without naming it: DataParallel, torch.compile, fully sharded
training, activation checkpoints, Lightning Fabric, fairscale."""

_TIMM_SWIGLU = {"fc1_g": "w1", "fc1_x": "w2"}
"""The two halves of its gated layer; `backbone.py` renames its `fc2`, which an MLP has too."""

_TRANSFORMERS = (
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"layernorm\.", "norm."),
    (r"encoder\.layer\.", "blocks."),
)
"""Prefixes of names in transformers, and what replaces them."""

_TRANSFORMERS_BLOCK = (
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.up_proj\.", ".mlp.w2."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.w3."),
)
"""Inside a block of transformers. Version 5 has the `_proj` names."""

FUSED: dict[str, tuple[str, ...]] = {
    ".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."),
    ".mlp.w12.": (".mlp.w1.", ".mlp.w2."),
}
"""Projections that the official model computes as one, and their parts from the top row down."""

_CHUNKED = re.compile(r"^blocks\.\d+\.(?=\d+\.)")


class Naming(StrEnum):
    """The naming convention of a checkpoint; timm mostly uses the official names."""

    OFFICIAL = "official"
    TIMM = "timm"
    TRANSFORMERS = "transformers"


ANCHORS = {
    "patch_embed.proj.weight": Naming.OFFICIAL,
    "embeddings.patch_embeddings.projection.weight": Naming.TRANSFORMERS,
}
"""A name that every backbone has. Its place tells the prefix; its form tells the convention."""


def without_wrappers(name: str) -> str:
    """`name` without the segments that wrappers add, wherever they are."""
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


def official_name(name: str, naming: Naming) -> str:
    """The official name of the tensor `name`; an unknown name is returned as it is.

    `name` begins below the backbone's prefix. `blocks.CHUNK.INDEX.`, as fully sharded training
    names blocks, becomes `blocks.INDEX.`.
    """
    if naming is Naming.TRANSFORMERS:
        return from_transformers(name)
    if name == "reg_token":
        return "register_tokens"
    name = _CHUNKED.sub("blocks.", name)
    return re.sub(r"\.mlp\.(fc1_[gx])\.", lambda match: f".mlp.{_TIMM_SWIGLU[match[1]]}.", name)


def from_transformers(name: str) -> str:
    """The official name of a tensor of transformers, or of a part of one, see `FUSED`."""
    for pattern, replacement in _TRANSFORMERS:
        name = re.sub(f"^{pattern}", replacement, name)
    if name.startswith("blocks."):
        for pattern, replacement in _TRANSFORMERS_BLOCK:
            name = re.sub(pattern, replacement, name)
    return name
