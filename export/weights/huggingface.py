"""DINOv2 of transformers: what its configuration says, and official weights under its names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dinov2rt.bundle.variants import NATIVE_GRID, PATCH_SIZE, Variant, variants
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.backbone.names import FUSED, from_transformers
from dinov2rt.export.weights.folders import read_json
from dinov2rt.export.weights.state_dict import StateDict, first_few

_CONFIG = "config.json"
_MODEL_TYPES = ("dinov2", "dinov2_with_registers")


def from_official_names(state: StateDict, names: Iterable[str]) -> StateDict:
    """An official `state` under `names` of transformers, all or some of theirs.

    Raises:
        KeyError: a name that no tensor of `state` goes by.
    """
    parts = dict(state)
    for fused, pieces in FUSED.items():
        for name in [name for name in state if fused in name]:
            rows = state[name].chunk(len(pieces))
            parts |= {
                name.replace(fused, piece): row for piece, row in zip(pieces, rows, strict=True)
            }
    return {name: parts[from_transformers(name)] for name in names}


def check_config(folder: Path, variant: Variant) -> None:
    """Refuse a `config.json` in `folder` that describes another DINOv2 than `variant`.

    Raises:
        WeightsError: it does, or cannot be read.
    """
    path = folder / _CONFIG
    if not path.is_file():
        return
    config = read_json(path, otherwise="give a Hugging Face folder of DINOv2")
    if config.get("model_type") not in _MODEL_TYPES:
        return  # of another model that holds the backbone, or of timm: tensors tell
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
