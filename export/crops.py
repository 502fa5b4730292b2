"""Crops of photographs: from the middle, or any number of reproducible ones."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.runtime.image_search import find_images
from dinov2rt.runtime.images import load_image

PHOTOS = Path(__file__).parent / "photos"


def photo_crops(seeds: range, size: ImageSize, photos: Path = PHOTOS) -> NDArray[np.uint8]:
    """A crop for each seed, uint8 [B, H, W, 3]; photographs too small for `size` are enlarged.

    The seed decides on the place and on mirroring, and the photographs of the folder take turns.
    """
    paths = find_images([photos])

    def turn(seed: int) -> int:
        return seed % len(paths)

    crops = np.empty((len(seeds), size.height, size.width, 3), np.uint8)
    # A folder may hold more than fits into memory: each that is used is loaded once, by itself.
    for index, same_photo in groupby(sorted(seeds, key=turn), turn):
        photo = load_image(paths[index])
        for seed in same_photo:
            crops[seeds.index(seed)] = _crop(photo, size, seed)
    return crops


def crops_of(
    photos: Sequence[NDArray[np.uint8]], seeds: range, size: ImageSize
) -> NDArray[np.uint8]:
    """The same of `photos` in memory, uint8 [H, W, 3] each."""
    return np.stack([_crop(photos[seed % len(photos)], size, seed) for seed in seeds])


def _crop(photo: NDArray[np.uint8], size: ImageSize, seed: int) -> NDArray[np.uint8]:
    image = at_least(photo, size)
    random = np.random.default_rng(seed)
    top = random.integers(image.shape[0] - size.height + 1)
    left = random.integers(image.shape[1] - size.width + 1)
    crop = image[top : top + size.height, left : left + size.width]
    return crop[:, ::-1] if random.integers(2) else crop


def at_least(photo: np.ndarray, size: ImageSize) -> np.ndarray:
    """`photo` [H, W, 3], enlarged (bicubic) where it is smaller than `size`."""
    height, width = photo.shape[:2]
    scale = max(size.height / height, size.width / width, 1)
    if scale == 1:
        return photo
    enlarged = (int(np.ceil(width * scale)), int(np.ceil(height * scale)))
    return np.asarray(Image.fromarray(photo).resize(enlarged, Image.Resampling.BICUBIC))


def center_crop(image: NDArray[np.uint8], size: ImageSize) -> NDArray[np.uint8]:
    """The middle of `image` [H, W, 3]; half a pixel more is left at the bottom and the right."""
    top = (image.shape[0] - size.height) // 2
    left = (image.shape[1] - size.width) // 2
    return image[top : top + size.height, left : left + size.width]
