"""Files beside weights: `config.json` of transformers or timm, `preprocessor_config.json`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.bundle.variants import name_of, variants
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.architecture import NOTHING_STATED, Stated
from dinov2rt.export.weights.folders import read_json
from dinov2rt.export.weights.preprocessor import normalization_of
from dinov2rt.export.weights.state_dict import first_few

CONFIG = "config.json"
_WAY_OUT = "give a folder of transformers or timm"
_LIBRARIES = ("transformers", "timm")
_MODEL_TYPES = ("dinov2", "dinov2_with_registers")

_TIMM_SIZE = re.compile("vit_([a-z0-9]+)_")
_TIMM_WIDTHS = {"huge": 1280, "giant": 1408, "gigantic": 1664, "so400m": 1152}
_TIMM_HEADS = 16
"""The number of heads in timm's sizes whose heads are not 64 wide, if the width fits the name."""

Config = dict[str, Any]


def stated_beside(location: Path, given: Stated = NOTHING_STATED) -> Stated:
    """Read the facts that files beside the weights at `location`, a folder or a file, state.

    Mean and std are not read from these files if they are `given`.

    Raises:
        WeightsError: a file cannot be read, or says what cannot be computed.
    """
    folder = location if location.is_dir() else location.parent
    normalization = given.normalization or normalization_of(folder)
    if not (folder / CONFIG).is_file():
        return Stated(normalization=normalization)
    config = read_json(folder / CONFIG, otherwise=_WAY_OUT)
    own = _of_timm(config) if is_timm(config) else _of_transformers(config)
    return own if normalization is None else replace(own, normalization=normalization)


def library_of(location: Path, naming: str) -> str | None:
    """The library that the weights at `location` come from, transformers or timm, or None.

    timm names a plain model like the official code; then its `config.json` tells.
    """
    if naming in _LIBRARIES:
        return str(naming)
    file = (location if location.is_dir() else location.parent) / CONFIG
    is_of_timm = file.is_file() and is_timm(read_json(file, otherwise=_WAY_OUT))
    return "timm" if is_of_timm else None


def check_config(folder: Path, architecture: Architecture) -> None:
    """Refuse a `config.json` in `folder` that describes another DINOv2 than `architecture`.

    Raises:
        WeightsError: it does, or computes otherwise than the official code, or cannot be read.
    """
    if not (folder / CONFIG).is_file():
        return
    config = read_json(folder / CONFIG, otherwise=_WAY_OUT)
    if config.get("model_type") not in _MODEL_TYPES:
        return  # of another model that holds the backbone, or of timm: tensors tell
    differences = _differences(config, architecture)
    if differences:
        fitting = [other.name for other in variants() if not _differences(config, other)]
        way_out = (
            f"it fits {fitting[0]}, so ask for that variant"
            if fitting
            else "ask for auto, which takes the architecture from the weights"
        )
        raise WeightsError(
            f"{folder / CONFIG} does not describe {name_of(architecture)}: "
            f"{first_few(differences)}; {way_out}"
        )


def is_timm(config: Config) -> bool:
    """Whether this is a `config.json` of timm."""
    return "pretrained_cfg" in config or isinstance(config.get("architecture"), str)


def _of_transformers(config: Config) -> Stated:
    return Stated(
        num_heads=_whole(config.get("num_attention_heads")),
        image_size=_size(config.get("image_size")),
    )


def _of_timm(config: Config) -> Stated:
    arguments, pretrained = (
        part if isinstance(part := config.get(key), dict) else {}
        for key in ("model_args", "pretrained_cfg")
    )
    name = str(config.get("architecture", ""))
    heads = _whole(arguments.get("num_heads"))
    if heads is None and "dinov2" not in name and (size := _TIMM_SIZE.match(name)):
        width = _TIMM_WIDTHS.get(size[1])
        heads = _TIMM_HEADS if width and config.get("num_features", width) == width else None
    size_ = _size(arguments.get("img_size")) or _size(pretrained.get("input_size"))
    return Stated(num_heads=heads, image_size=size_, normalization=_statistics(pretrained))


def _statistics(pretrained: Config) -> Normalization | None:
    mean, std = pretrained.get("mean"), pretrained.get("std")
    if mean is None or std is None:
        return None
    try:
        return Normalization(tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"mean and std in {CONFIG} cannot be used ({error}); correct them, or give --mean and "
            "--std"
        ) from error


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _size(value: Any) -> ImageSize | None:
    """A side, or height and width behind whatever stands before them."""
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, list) or len(sides) < 2 or not all(map(_whole, sides[-2:])):
        return None
    return ImageSize(*sides[-2:])


def _differences(config: Config, architecture: Architecture) -> list[str]:
    return [
        f"{name} is {config.get(name)!r} instead of {value!r}"
        for name, value in _expected(architecture).items()
        if not _agrees(name, config.get(name), value)
    ]


def _agrees(name: str, found: Any, value: Any) -> bool:
    """An image size may be one side or two; `image_size` of a square is its side here."""
    if name == "image_size" and found is not None:
        return _size(found) == _size(value)
    return bool(found == value)


def _expected(architecture: Architecture) -> Config:
    registers = {"num_register_tokens": architecture.num_registers}
    size = architecture.native_size
    return {
        "model_type": "dinov2_with_registers" if architecture.num_registers else "dinov2",
        "patch_size": architecture.patch_size,
        "image_size": size.height if size.height == size.width else [size.height, size.width],
        "hidden_size": architecture.embed_dim,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.num_heads,
        "use_swiglu_ffn": architecture.ffn == "swiglu",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        **(registers if architecture.num_registers else {}),
    }
