"""Images as callers have them: arrays, paths, bytes and Pillow images, in any mixture."""

import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.runtime.images import LoadedImage, as_pillow, load_fitted
from dinov2rt.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    ImageLike = NDArray[Any] | str | Path | bytes | Image
    """One image: an array [H, W, 3], a path, an encoded image, or one of Pillow's."""


class ScaledWarning(UserWarning):
    """Images had more than `max_pixels` and were scaled to fit."""


@dataclass(slots=True)
class Loader:
    """Turns paths, bytes and Pillow images into arrays, and applies `preprocess` to arrays.

    `fit` is the size that an image of a file may have. `scaled_from` collects the sizes of those
    that were larger.
    """

    preprocess: Preprocess
    fit: Callable[[ImageSize], ImageSize]
    scaled_from: list[ImageSize] = field(default_factory=list)

    def load(self, image: Any) -> Any:
        """Load an image as an array [H, W, 3]; other values are returned as they are.

        Raises:
            InputError: it cannot be read, or `preprocess` cannot be applied to this array.
        """
        if not is_encoded(image):
            return image if self.preprocess == Preprocess() else self._preprocessed(image)
        return self._kept(load_fitted(image, self.preprocess, self.fit))

    def load_all(self, images: Any) -> Any:
        """Load each image of a list, or of a batch to be preprocessed; otherwise one image."""
        if isinstance(images, list | tuple):
            return [self._named(position, image) for position, image in enumerate(images)]
        if self.preprocess != Preprocess() and getattr(images, "ndim", None) == 4:
            return [self.load(image) for image in images]
        return self.load(images)

    def warn(self) -> None:
        """Say once how many images were scaled, and what they were."""
        if self.scaled_from:
            largest = max(self.scaled_from, key=lambda size: size.pixels)
            warnings.warn(
                f"{len(self.scaled_from)} images of up to {largest} were scaled to fit "
                "max_pixels; load the model with more to keep them as they are",
                ScaledWarning,
                stacklevel=3,
            )

    def _preprocessed(self, image: Any) -> Any:
        if getattr(image, "dtype", None) != np.uint8 or np.ndim(image) != 3:
            raise InputError(
                f"preprocess is for image files and uint8 [H, W, 3], and this is "
                f"{type(image).__name__}; leave preprocess out"
            )
        return self._kept(load_fitted(as_pillow(image), self.preprocess, self.fit))

    def _kept(self, loaded: LoadedImage) -> Any:
        if loaded.scaled_from is not None:
            self.scaled_from.append(loaded.scaled_from)
        return loaded.pixels

    def _named(self, position: int, image: Any) -> Any:
        try:
            return self.load(image)
        except InputError as error:
            raise InputError(f"image {position} of the list: {error}") from error


def is_encoded(image: Any) -> bool:
    """Whether `image` is a path, the bytes of a file, or a Pillow image, rather than an array."""
    return isinstance(image, str | Path | bytes) or is_pillow(image)


def is_pillow(image: Any) -> bool:
    """Whether `image` is one of Pillow's, without importing Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def one_by_one(images: Any) -> Iterable[Any]:
    """The images of an iterable or a batch; a single one is the only one."""
    if is_encoded(images) or getattr(images, "ndim", None) == 3:
        return [images]
    if not isinstance(images, Iterable):
        raise InputError(
            f"got {type(images).__name__}; allowed are paths, bytes, Pillow images and arrays, "
            "one or an iterable of them"
        )
    return images
