"""The images of a benchmark: crops of real photographs, the same in every run."""

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.export.crops import photo_crops

DESCRIPTION = "crops of the photographs that ship with dinov2rt, mirrored and shifted"


def photo_batch(batch: int, size: ImageSize) -> NDArray[np.uint8]:
    """`batch` different crops, uint8 [B, H, W, 3]; a larger batch begins with the smaller one."""
    return photo_crops(range(batch), size)
