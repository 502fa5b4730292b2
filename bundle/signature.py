"""The input format of a graph, and the names of its outputs."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture

OPSET = 23
"""The default opset, the first with the operator `Attention`: see docs/adr/0004."""

FloatArray = NDArray[np.floating[Any]]


def layer_output_names(layer: int) -> tuple[str, str]:
    """Names of the CLS and the patch tokens of an intermediate block, counted from 0."""
    return f"layer_{layer}_cls_token", f"layer_{layer}_patch_tokens"


X_PRENORM, ATTENTION = "x_prenorm", "attention"


@dataclass(frozen=True, slots=True)
class Extras:
    """The outputs of a graph in addition to its final tokens.

    `layers` are indices of intermediate blocks, counted from 0, ascending; `unnormed` returns their
    tokens without the final norm. `x_prenorm` [B, 1 + R + h·w, D] are the last block's tokens
    before the final norm, as in the official `forward_features`. `attention` [B, heads, h·w] is the
    CLS token's attention to each patch in the last block.
    """

    layers: tuple[int, ...] = ()
    unnormed: bool = False
    x_prenorm: bool = False
    attention: bool = False


NO_EXTRAS = Extras()


def output_names(architecture: Architecture, extras: Extras = NO_EXTRAS) -> tuple[str, ...]:
    """Names of a graph's outputs, in order, without the outputs of heads."""
    registers = ("register_tokens",) if architecture.num_registers else ()
    levels = (name for layer in extras.layers for name in layer_output_names(layer))
    others = (X_PRENORM,) * extras.x_prenorm + (ATTENTION,) * extras.attention
    return ("cls_token", *registers, "patch_tokens", *levels, *others)


def scores_name(classes: str) -> str:
    """The output that holds the scores [B, K, h, w] of the class map `classes`."""
    return f"{classes}_scores"


def is_class_map(name: str) -> bool:
    """Whether the output `name` holds classes of pixels, uint8, where others are float."""
    return name.startswith("segmentation") and not name.endswith(scores_name(""))


def is_task_output(name: str) -> bool:
    """Whether a head returns the output `name`."""
    return name.startswith(("logits", "depth", "segmentation"))


def is_token_output(name: str) -> bool:
    """Whether the output `name` holds tokens: vectors [..., D] that are compared by cosine."""
    return name == X_PRENORM or name.endswith(("cls_token", "register_tokens", "patch_tokens"))


class InputFormat(StrEnum):
    """The input format of a graph; the value is the name of its input."""

    PIXELS = "pixels"
    """uint8 [B, H, W, 3], RGB."""
    IMAGES = "images"
    """float32 [B, 3, H, W], scaled to 0..1 and normalised with the ImageNet statistics."""
