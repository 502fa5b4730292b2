"""What a graph takes and returns: the format of its images, the names of its outputs."""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.variants import Variant

FloatArray = NDArray[np.floating[Any]]


def layer_output_names(layer: int) -> tuple[str, str]:
    """Names of the CLS and the patch tokens of an intermediate block, counted from 0."""
    return f"layer_{layer}_cls_token", f"layer_{layer}_patch_tokens"


def output_names(variant: Variant, layers: tuple[int, ...] = ()) -> tuple[str, ...]:
    """Names of a graph's outputs, in order."""
    registers = ("register_tokens",) if variant.num_registers else ()
    levels = (name for layer in layers for name in layer_output_names(layer))
    return ("cls_token", *registers, "patch_tokens", *levels)


class InputFormat(StrEnum):
    """What a graph takes; the value is its input's name."""

    PIXELS = "pixels"
    """uint8 [B, H, W, 3], RGB."""
    IMAGES = "images"
    """float32 [B, 3, H, W], scaled to 0..1 and normalised with the ImageNet statistics."""
