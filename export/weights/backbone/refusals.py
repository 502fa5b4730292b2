"""Checkpoints that hold no plain weights: which kind it is, and what to do first."""

import re
from collections.abc import Iterable

_CAUSES = (
    (
        r"(^|[._])(lora_[A-Za-z]|base_layer\.|linear_[ab]_[qkv]|hada_w|lokr_w|ia3_l|oft_r|vera_|dora_)",
        "weights with an adapter (LoRA) beside them; merge it first, in PEFT with "
        "merge_and_unload(), and save the result",
    ),
    (
        r"(^|\.)(qweight|qzeros|SCB|weight_format|_packed_params|scale_weight|zero_point)($|\.)"
        r"|\.weight\.(absmax|quant_map|quant_state|nested_absmax|_data|_scale)($|\.)"
        r"|\.weight_(packed|scale|zero_point|qdata)|\._weight_qdata|_quantizer\._",
        "quantised weights; dequantise them first, or give the checkpoint that they were made of",
    ),
    (
        r"(^|\.)_?flat_param",
        "flattened shards of fully sharded training; save a full state dict first "
        "(StateDictType.FULL_STATE_DICT)",
    ),
    (
        r"(^|\.)rope_embed\.",
        "a model with rotary positions, as DINOv3 has; give a checkpoint of DINOv2",
    ),
)


def refusal_of(names: Iterable[str]) -> str | None:
    """Why tensors of these `names` are not plain weights, and the way out; None if they are."""
    everything = tuple(names)
    for pattern, cause in _CAUSES:
        if any(re.search(pattern, name) for name in everything):
            return cause
    return None
