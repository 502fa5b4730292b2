"""The statistics that stand beside weights, in the configuration of their image processor."""

import json
from pathlib import Path
from typing import Any

from dinov2rt.bundle.normalization import Normalization
from dinov2rt.errors import WeightsError
from dinov2rt.files import read_regular

_CONFIG = "preprocessor_config.json"
_TO_ONE = 1 / 255
_MOST_BYTES = 2**20


def normalization_of(weights: Path) -> Normalization | None:
    """Mean and std in `preprocessor_config.json` of the folder `weights`; None without that file.

    Source: `BaseImageProcessor` of transformers: pixels times `rescale_factor` unless `do_rescale`
    is false, then less `image_mean` and over `image_std` unless `do_normalize` is false. Written
    for pixels scaled to 0..1, mean and std are divided by 255 times the factor.

    Raises:
        WeightsError: the file cannot be read, says what cannot be computed, or names no mean and
            std: their defaults differ between the image processors of transformers.
    """
    file = weights / _CONFIG
    if not file.is_file():
        return None
    config = _read(file)
    if config.get("do_normalize", True) and not {"image_mean", "image_std"} <= config.keys():
        raise WeightsError(
            f"{file} names no image_mean and image_std, whose defaults depend on the version and "
            "kind of image processor; add them to the file, or give --mean and --std"
        )
    try:
        is_rescaled = config.get("do_rescale", True)
        factor = float(config.get("rescale_factor", _TO_ONE)) if is_rescaled else 1.0
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if config.get("do_normalize", True):
            mean = _colour(config["image_mean"])
            std = _colour(config["image_std"])
        scale = 255 * factor
        if abs(scale - 1) < 1e-6:  # 0.00392156862745098 is 1/255 up to its last digits
            return Normalization(mean, std)
        return Normalization(*(_colour([each / scale for each in part]) for part in (mean, std)))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise WeightsError(
            f"{file} says what cannot be computed ({error}); correct it, or give --mean and --std"
        ) from error


def _colour(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(file, _MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} cannot be read ({error}); correct or remove it") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{file} is not a JSON object; correct or remove it")
    return config
