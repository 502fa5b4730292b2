"""Hugging Face folders of DINOv2: their files, and their names turned into the official ones."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dinov2rt.bundle.variants import NATIVE_GRID, PATCH_SIZE, Variant, variants
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.readers import read_safetensors
from dinov2rt.export.weights.state_dict import StateDict, entries_below, first_few
from dinov2rt.files import read_regular

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_MOST_BYTES = 2**26
_INDEX = "model.safetensors.index.json"

_RENAMES = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
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
"""Applied one after the other. The `_proj` names are those of transformers 5."""

_FUSED = {".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."), ".mlp.w12.": (".mlp.w1.", ".mlp.w2.")}
"""Projections that the official model computes as one, and their parts from the top row down."""


def read_huggingface(folder: Path, variant: Variant) -> StateDict:
    """The weights in `folder`, under official names.

    Raises:
        WeightsError: a file is missing or damaged, or `config.json` describes another model.
    """
    _check_config(folder, variant)
    state: StateDict = {}
    for file in weight_files(folder):
        state |= read_safetensors(file)
    return to_official_names(state)


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors files that make up the checkpoint in `folder`.

    Raises:
        WeightsError: there are none, or the index of the shards cannot be read.
    """
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = _read_json(folder / _INDEX, otherwise=f"give a folder with {_WEIGHTS} or {_INDEX}")
    shards = index.get("weight_map")
    if not (isinstance(shards, dict) and all(isinstance(name, str) for name in shards.values())):
        raise WeightsError(f"{folder / _INDEX} has no weight_map; download the folder again")
    outside = [name for name in shards.values() if Path(name).name != name]
    if outside:
        raise WeightsError(
            f"{folder / _INDEX} points to {outside[0]!r}, which is not in the folder; download the "
            "folder again"
        )
    return [folder / name for name in sorted(set(shards.values()))]


def to_official_names(state: StateDict) -> StateDict:
    """The backbone's tensors under the names, and in the grouping, of the official state dict.

    Query, key and value become one `attn.qkv`. Of a model with a head, only what lies below
    `dinov2.` or `dinov2_with_registers.` is kept. Names unknown here pass through unchanged.

    Source: `modeling_dinov2.py` and `convert_dinov2_to_hf.py` in transformers.
    """
    for prefix in ("dinov2.", "dinov2_with_registers."):
        state = entries_below(state, prefix)
    renamed = {_rename(name): tensor for name, tensor in state.items()}
    for fused, parts in _FUSED.items():
        _fuse(renamed, fused, parts)
    return renamed


def from_official_names(state: StateDict, names: Iterable[str]) -> StateDict:
    """The inverse of `to_official_names`: an official `state` under `names`, all or some of theirs.

    Raises:
        KeyError: a name that no tensor of `state` goes by.
    """
    parts = dict(state)
    for fused, pieces in _FUSED.items():
        for name in [name for name in state if fused in name]:
            rows = state[name].chunk(len(pieces))
            parts |= {
                name.replace(fused, piece): row for piece, row in zip(pieces, rows, strict=True)
            }
    return {name: parts[_rename(name)] for name in names}


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _fuse(state: StateDict, fused: str, parts: tuple[str, ...]) -> None:
    """Concatenate rows in place. Parts that don't belong together stay, to be refused by name."""
    for first in [name for name in state if parts[0] in name]:
        names = [first.replace(parts[0], part) for part in parts]
        shapes = {state[name].shape if name in state else None for name in names}
        if len(shapes) == 1 and state[first].ndim:
            tensors = [state.pop(name) for name in names]
            state[first.replace(parts[0], fused)] = torch.cat(tensors)


def _check_config(folder: Path, variant: Variant) -> None:
    path = folder / _CONFIG
    config = _read_json(path, otherwise="give a Hugging Face folder of DINOv2")
    differences = _differences(config, variant)
    if differences:
        fitting = [other.name for other in variants() if not _differences(config, other)]
        way_out = (
            f"it fits {fitting[0]}, so ask for that variant"
            if fitting
            else "give a folder of facebook/dinov2-*"
        )
        raise WeightsError(
            f"{path} does not describe {variant.name}: {first_few(differences)}; {way_out}"
        )


def _differences(config: dict[str, Any], variant: Variant) -> list[str]:
    return [
        f"{name} is {config.get(name)!r} instead of {value!r}"
        for name, value in _expected_config(variant).items()
        if config.get(name) != value
    ]


def _expected_config(variant: Variant) -> dict[str, Any]:
    registers = {"num_register_tokens": variant.num_registers} if variant.num_registers else {}
    return {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "patch_size": PATCH_SIZE,
        "image_size": NATIVE_GRID * PATCH_SIZE,
        "hidden_size": variant.embed_dim,
        "num_hidden_layers": variant.depth,
        "num_attention_heads": variant.num_heads,
        "use_swiglu_ffn": variant.ffn == "swiglu",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        **registers,
    }


def _read_json(path: Path, *, otherwise: str) -> dict[str, Any]:
    try:
        document = json.loads(read_regular(path, _MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); {otherwise}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); {otherwise}") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{path} is not a JSON object; {otherwise}")
    return document
