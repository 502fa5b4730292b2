"""The features of one image, as a row of a file."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Grid, ImageSize

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """What one image gave; all arrays float32.

    `key` is the image's path, or that of its shard with "#" and its name or row in it. `size` is
    that of the image given to the model, before it was snapped to `grid`.
    Shapes: `cls_token` [D], `register_tokens` [R, D] (R is 0 for variants without registers),
    `patch_mean` [D], `patch_tokens` [P, D] row-major over the grid, or None to leave them out.
    """

    key: str
    size: ImageSize
    grid: Grid
    cls_token: Float32Array
    register_tokens: Float32Array
    patch_mean: Float32Array
    patch_tokens: Float32Array | None = None


def as_unicode(key: str) -> str:
    """`key` without the lone surrogates that stand for undecodable bytes of a file name."""
    return key.encode("utf-8", "backslashreplace").decode("utf-8")
