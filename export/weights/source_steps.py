"""How the source of the weights scales and crops images: what `run --preprocess source` follows."""

import math
from pathlib import Path
from typing import Any

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.folders import read_json

_OTHERWISE = "correct or remove it"
_CROP_PCT = 0.875
"""`DEFAULT_CROP_PCT` of timm."""
_BICUBIC = 3
"""The value of `PIL.Image.Resampling.BICUBIC`, which `resample` may hold."""


def source_steps(location: Path) -> str | None:
    """The steps as `Preprocess.parse` takes them, from the files beside the weights.

    None where nothing stands there, or steps that are not bicubic, crop to no square, or bound
    the long side as well.

    Source: `PilBackend` of transformers, whose crop rounds down; `transforms_imagenet_eval` in
    timm, whose short side is `floor(size / crop_pct)`, where `crop_pct` is 0.875 unless stated.

    Raises:
        WeightsError: a file cannot be read, or says what cannot be computed.
    """
    folder = location if location.is_dir() else location.parent
    try:
        if (file := folder / "preprocessor_config.json").is_file():
            return _of_transformers(read_json(file, otherwise=_OTHERWISE))
        if (file := folder / "config.json").is_file():
            pretrained = read_json(file, otherwise=_OTHERWISE).get("pretrained_cfg")
            return _of_timm(pretrained) if isinstance(pretrained, dict) else None
    except (TypeError, ValueError, KeyError, ZeroDivisionError, OverflowError) as error:
        raise WeightsError(
            f"{file} says what cannot be computed ({error}); {_OTHERWISE}"
        ) from error
    return None


def _of_transformers(config: dict[str, Any]) -> str | None:
    steps = []
    if config.get("do_resize", "size" in config):
        is_bicubic = config.get("resample", _BICUBIC) == _BICUBIC
        scaling = _scaling(config) if is_bicubic else None
        if scaling is None:
            return None
        steps.append(scaling)
    if config.get("do_center_crop", "crop_size" in config):
        crop = config["crop_size"]
        height, width = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        if height != width:
            return None
        steps.append(f"floor-crop:{int(height)}")
    return ",".join(steps) or "native"


def _scaling(config: dict[str, Any]) -> str | None:
    """The first step; a size of one number is a square for the processors of ViT alone."""
    size = config["size"]
    if isinstance(size, int):
        kind = config.get("image_processor_type") or config.get("feature_extractor_type")
        return f"resize:{size}x{size}" if str(kind).startswith("ViT") else f"short-side:{size}"
    if "shortest_edge" in size:
        return None if "longest_edge" in size else f"short-side:{int(size['shortest_edge'])}"
    return f"resize:{int(size['height'])}x{int(size['width'])}"


def _of_timm(pretrained: dict[str, Any]) -> str | None:
    if "input_size" not in pretrained or pretrained.get("interpolation", "bicubic") != "bicubic":
        return None
    _, height, width = pretrained["input_size"]
    scaled = math.floor(height / float(pretrained.get("crop_pct") or _CROP_PCT))
    mode = pretrained.get("crop_mode") or "center"
    if height != width or mode not in ("center", "squash"):
        return None
    first = f"resize:{scaled}x{scaled}" if mode == "squash" else f"short-side:{scaled}"
    return f"{first},crop:{int(height)}"
