"""The photographs that int8 weights are rounded on, and that the search measures."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.export.crops import PHOTOS, crops_of
from dinov2rt.runtime.image_search import find_images
from dinov2rt.runtime.images import load_fitted, load_image
from dinov2rt.runtime.preprocess import Preprocess

LEAST_PHOTOS = 4
"""The number of photographs that ship with the project."""

_MOST_PHOTOS = 300
"""The search draws no more crops than this: see `search.py`."""

_SHORT_SIDE = 512
"""Larger photographs are scaled down: 224 pixels of a camera's image show next to nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Photographs, uint8 [H, W, 3] each, with their file names.

    `paths` are those that the user gave; empty for the photographs that ship with the project.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    photos: tuple[NDArray[np.uint8], ...]

    @classmethod
    def load(cls, paths: Sequence[Path] = ()) -> Self:
        """The photographs that `paths` name: files, and folders with all that is below them.

        If there are more than 300, 300 are taken, evenly spaced in the order in which they are
        found. Photographs with a longer short side than 512 pixels are scaled to it. Without
        `paths`, the photographs that ship with the project are loaded.

        Raises:
            InputError: a path or a photograph cannot be read, a folder holds none, or there are
                fewer than four.
        """
        if not paths:
            files = find_images([PHOTOS])
            return cls((), tuple(file.name for file in files), tuple(map(load_image, files)))
        found = find_images(paths)
        if len(found) < LEAST_PHOTOS:
            raise InputError(
                f"--calibration names {len(found)} photographs; the least is {LEAST_PHOTOS}, of "
                "what the model is for; give more, or leave it out to use the photographs that "
                "ship with dinov2rt"
            )
        count = min(len(found), _MOST_PHOTOS)
        used = [found[index * len(found) // count] for index in range(count)]
        return cls(
            tuple(map(_printable, paths)),
            tuple(file.name for file in used),
            tuple(load_fitted(file, Preprocess(), _scaled).pixels for file in used),
        )

    def crops(self, seeds: range, size: ImageSize) -> NDArray[np.uint8]:
        """A crop for each seed, uint8 [B, H, W, 3]; the photographs take turns."""
        return crops_of(self.photos, seeds, size)

    @property
    def names_sha256(self) -> str:
        """SHA-256 of the file names, each followed by a line feed, in hexadecimal."""
        return hashlib.sha256(b"".join(os.fsencode(f"{name}\n") for name in self.names)).hexdigest()


def _printable(path: Path) -> str:
    """`path` as text for the manifest, with escapes for bytes that are no text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _scaled(size: ImageSize) -> ImageSize:
    """`size` with a short side of at most `_SHORT_SIDE`, in the same proportion."""
    short = min(size.height, size.width)
    if short <= _SHORT_SIDE:
        return size
    height, width = (round(side * _SHORT_SIDE / short) for side in (size.height, size.width))
    return ImageSize(height, width)
