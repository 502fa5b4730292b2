"""The eager model's tokens under the names of the graph's outputs."""

from typing import Any

import numpy as np
import torch

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.signature import NO_EXTRAS
from dinov2rt.export.golden import eager_outputs
from dinov2rt.export.model import load_eager


def eager_tokens(
    architecture: Architecture, state: Any, pixels: np.ndarray
) -> dict[str, np.ndarray]:
    """Of `pixels`, uint8 [B, H, W, 3]."""
    images = torch.from_numpy(architecture.normalization(pixels))
    return eager_outputs(load_eager(architecture, state), images, NO_EXTRAS)
