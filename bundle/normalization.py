"""The mean and standard deviation that the model's input is normalized with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NUM_CHANNELS = 3
_Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Normalization:
    """Mean and standard deviation of red, green and blue, for pixels scaled to 0..1.

    They belong to the weights. The default is the official model's: ImageNet's statistics.

    Raises:
        ValueError: a value is not finite, or a standard deviation is zero or less.
    """

    mean: _Colour = (0.485, 0.456, 0.406)
    std: _Colour = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        values = (*self.mean, *self.std)
        is_whole = [len(self.mean), len(self.std)] == [_NUM_CHANNELS] * 2  # JSON holds any number
        if not is_whole or not np.isfinite(values).all() or min(self.std) <= 0:
            raise ValueError(
                f"mean {list(self.mean)} and std {list(self.std)}; allowed are three finite "
                "numbers each, and a std above 0"
            )

    def __str__(self) -> str:
        mean, std = (", ".join(f"{each:g}" for each in values) for values in (self.mean, self.std))
        return f"mean {mean} and std {std}"

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Convert pixels, uint8 [B, H, W, 3], to the model's input, float32 [B, 3, H, W]."""
        scaled = pixels.astype(np.float32) / np.float32(255)
        normed = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normed.transpose(0, 3, 1, 2))


IMAGENET = Normalization()

normalize = IMAGENET
"""The official model's normalization."""
