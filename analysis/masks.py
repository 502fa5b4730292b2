"""Masks of a user's own photographs: a class index for every pixel, brought to the patch grid."""

import contextlib
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.analysis.keyed_images import split_key
from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.errors import InputError
from dinov2rt.extraction.image_features import ImageFeatures
from dinov2rt.foreign import quoted, shown
from dinov2rt.optional import require
from dinov2rt.runtime.preprocess import Preprocess

IGNORED = 255
"""Pixels with this value have no class."""

Mask = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """A folder of masks, PNG in grey or with a palette, each with the stem of its photograph.

    `preprocess` and `snap` are how the features were computed, so that a mask is scaled, cropped
    and padded as its photograph was. `patch_size` is the side of a patch in pixels.
    """

    folder: Path
    preprocess: Preprocess
    snap: Snap
    patch_size: int

    def file_of(self, key: str) -> Path:
        """The mask of the image `key`: below the same folders, or else in the folder itself.

        Raises:
            InputError: the image has no mask.
        """
        inside = PurePath(split_key(key)[1])
        if not inside.name:
            raise InputError(f"an image with the key {quoted(key)} has no mask; leave it out")
        below = self.folder / inside.with_suffix(".png")
        beside = self.folder / f"{inside.stem}.png"
        for file in (below, beside):
            with contextlib.suppress(OSError):  # a name that is too long
                if file.is_file():
                    return file
        places = " nor ".join(dict.fromkeys(map(shown, (below, beside))))
        raise InputError(f"{shown(key)} has no mask: {places} is there; add it, or leave it out")

    def target(self, row: ImageFeatures) -> Mask:
        """The mask [H, W] that a class map of the image `row` is compared with.

        It has the size that the model's input had, without what `crop` drops.

        Raises:
            InputError: the mask is missing or damaged, or is not of the photograph's size.
        """
        file = self.file_of(row.key)
        mask, _ = read_mask(file)
        original = row.scaled_from or row.size
        size = ImageSize(*mask.shape)
        if self.preprocess.scaled(size) != original:
            raise InputError(
                f"{file} is {size}, and does not fit {shown(row.key)} of {original}; a mask has "
                "the size of its photograph"
            )
        mask = _nearest(mask, row.size)
        if self.snap is Snap.CROP:
            return mask[: row.grid.rows * self.patch_size, : row.grid.cols * self.patch_size]
        return mask

    def patch_labels(self, row: ImageFeatures) -> NDArray[np.int64]:
        """The class that most pixels of each patch have, [P]; -1 if most of them have none.

        Raises:
            InputError: see `target`.
        """
        mask = self.target(row)
        if self.snap is Snap.PAD:
            pad = row.size.center_padding(self.patch_size)
            sides = ((pad.top, pad.bottom), (pad.left, pad.right))
            mask = np.pad(mask, sides, constant_values=IGNORED)
        return majority(mask, self.patch_size)


def majority(mask: Mask, patch_size: int) -> NDArray[np.int64]:
    """The most frequent class of each patch of `mask`, row-major; -1 if most pixels have none."""
    rows, cols = (side // patch_size for side in mask.shape)
    patches = mask.reshape(rows, patch_size, cols, patch_size).swapaxes(1, 2)
    values = np.arange(rows * cols)[:, None] * 256 + patches.reshape(rows * cols, -1)
    counts = np.bincount(values.ravel(), minlength=rows * cols * 256).reshape(-1, 256)
    known = counts[:, :IGNORED]
    return np.where(2 * known.sum(axis=1) > patch_size**2, known.argmax(axis=1), -1)


def read_mask(file: Path) -> tuple[Mask, tuple[tuple[int, ...], ...] | None]:
    """The class indices in a PNG file, uint8 [H, W], and the file's palette if it has one.

    Raises:
        InputError: it cannot be read, or holds colours and not indices.
        MissingDependencyError: Pillow is not installed.
    """
    pillow = require("PIL.Image", extra="image", purpose="reading masks")
    try:
        with pillow.open(file, formats=("PNG",)) as image:
            mode, palette = image.mode, _palette(image)
            values = np.array(image)
    except Exception as error:  # Pillow's decoders let through whatever a damaged file causes
        raise InputError(f"{file} cannot be read as PNG ({shown(error)}); save it again") from error
    if mode in ("1", "L", "P"):
        return values.astype(np.uint8), palette
    if mode.startswith("I") and values.min(initial=0) >= 0 and values.max(initial=0) < 256:
        return values.astype(np.uint8), None
    raise InputError(
        f"{file} holds {mode} and no class indices; save grey or palette PNG with a class from 0 "
        f"to 254 for each pixel, and {IGNORED} where it has none"
    )


def _palette(image: Any) -> tuple[tuple[int, ...], ...] | None:
    flat = image.getpalette() if image.mode == "P" else None
    return None if flat is None else tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def _nearest(mask: Mask, size: ImageSize) -> Mask:
    if mask.shape == (size.height, size.width):
        return mask
    rows, cols = (
        (2 * np.arange(target) + 1) * side // (2 * target)
        for side, target in zip(mask.shape, (size.height, size.width), strict=True)
    )
    scaled: Mask = mask[rows][:, cols]
    return scaled
