"""ImageNet statistics, with which DINOv2's input is normalised."""

import numpy as np
from numpy.typing import NDArray

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels uint8 [B, H, W, 3] to the official model's input, float32 [B, 3, H, W]."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    normed = (scaled - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(normed.transpose(0, 3, 1, 2))
