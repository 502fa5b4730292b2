"""Pixel sizes, patch grids, and the conversion from one to the other."""

import math
from dataclasses import dataclass
from typing import Literal, Self

from dinov2rt.errors import InputError
from dinov2rt.named_enum import NamedEnum

_SMALLER = 0.995
"""The next scale to try is smaller by this factor, if whole patches made a size too large."""


class Snap(NamedEnum):
    """How to change an image whose sides are not multiples of the patch size."""

    CROP = "crop"
    """Drop pixels at the bottom and the right, as the model card says."""
    CENTER_CROP = "center-crop"
    """Drop pixels on all sides, keeping the centre."""
    PAD = "pad"
    """Zeros after normalisation on all sides, centred: the `CenterPadding` of the depth heads."""
    RESIZE = "resize"
    """Resample (bicubic, antialiased) to the nearest multiple of each side."""
    ERROR = "error"
    """Refuse the image."""


SnapName = Literal["crop", "center-crop", "pad", "resize", "error"]
"""The names of `Snap`."""


@dataclass(frozen=True, slots=True, order=True)
class Grid:
    """Patch rows × columns."""

    rows: int
    cols: int

    @property
    def num_patches(self) -> int:
        """Rows times columns."""
        return self.rows * self.cols

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


@dataclass(frozen=True, slots=True)
class Padding:
    """Pixels to add on each side of an image."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True, order=True)
class ImageSize:
    """Height and width in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width

    def grid(self, patch_size: int) -> Grid:
        """The patches that fit, `(H // patch_size, W // patch_size)`."""
        return Grid(self.height // patch_size, self.width // patch_size)

    def is_snapped(self, patch_size: int) -> bool:
        """Whether both sides are multiples of the patch."""
        return self.height % patch_size == 0 and self.width % patch_size == 0

    def snapped(self, snap: Snap, patch_size: int) -> Self:
        """The size that a model with patches of `patch_size` sees.

        Raises:
            InputError: nothing is there or left, or `snap` is "error" and a side is no multiple.
        """
        if min(self.height, self.width) < 1:
            raise InputError(f"image of {self} pixels is empty; both sides must be at least 1")
        if snap is Snap.ERROR and not self.is_snapped(patch_size):
            raise InputError(_not_a_multiple(self, patch_size))
        side = {Snap.PAD: _ceil, Snap.RESIZE: _nearest}.get(snap, _floor)
        snapped = type(self)(side(self.height, patch_size), side(self.width, patch_size))
        if min(snapped.height, snapped.width) < patch_size:
            raise InputError(
                f"image of {self} pixels is smaller than one patch of {patch_size}x{patch_size}; "
                'enlarge it, or use snap="pad"'
            )
        return snapped

    def fitted(self, max_pixels: int, snap: Snap, patch_size: int) -> Self:
        """The largest size of the same aspect that the model sees as at most `max_pixels`.

        It is this size itself if that is small enough.

        Raises:
            InputError: see `snapped`; a very long and narrow image would be smaller than one patch.
        """
        fitted, scale = (
            self,
            min(1.0, math.sqrt(max_pixels / self.snapped(snap, patch_size).pixels)),
        )
        while fitted.snapped(snap, patch_size).pixels > max_pixels:
            fitted = self._scaled(scale, snap, patch_size)
            scale *= _SMALLER
        return fitted

    def _scaled(self, scale: float, snap: Snap, patch_size: int) -> Self:
        sides = (int(self.height * scale), int(self.width * scale))
        if snap is Snap.ERROR:  # this size is a multiple, so what it becomes has to be one
            sides = (_floor(sides[0], patch_size), _floor(sides[1], patch_size))
        return type(self)(*sides)

    def center_padding(self, patch_size: int) -> Padding:
        """Padding to the next multiples of the patch; an odd pixel goes to the bottom or right.

        Source: `CenterPadding` in `dinov2/hub/utils.py`.
        """
        target = self.snapped(Snap.PAD, patch_size)
        top = (target.height - self.height) // 2
        left = (target.width - self.width) // 2
        return Padding(
            top=top,
            left=left,
            bottom=target.height - self.height - top,
            right=target.width - self.width - left,
        )


def _floor(side: int, patch_size: int) -> int:
    return side // patch_size * patch_size


def _ceil(side: int, patch_size: int) -> int:
    return -(-side // patch_size) * patch_size


def _nearest(side: int, patch_size: int) -> int:
    return max(patch_size, (side + patch_size // 2) // patch_size * patch_size)


def _not_a_multiple(size: ImageSize, patch_size: int) -> str:
    side, value = ("height", size.height) if size.height % patch_size else ("width", size.width)
    multiples = (_floor(value, patch_size), _ceil(value, patch_size))
    nearest = [multiple for multiple in multiples if multiple >= patch_size]
    return (
        f"{side} {value} is not a multiple of {patch_size}; nearest: "
        f"{' and '.join(map(str, nearest))}, "
        f'or let snap="crop", "center-crop", "pad" or "resize" choose'
    )
