"""Pixel sizes, patch grids, and the way from one to the other."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from dinov2rt.bundle.variants import PATCH_SIZE
from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted

_SMALLER = 0.995
"""Factor for the next scale to try, if rounding to whole patches made a size too large."""


class Snap(StrEnum):
    """How an image whose sides are not multiples of 14 gets a whole number of patches."""

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

    @classmethod
    def parse(cls, name: str) -> Self:
        """The member called `name`.

        Raises:
            InputError: there is none.
        """
        try:
            return cls(name)
        except ValueError:
            allowed = ", ".join(f'"{member}"' for member in cls)
            raise InputError(f"unknown snap {quoted(name)}; allowed are {allowed}") from None


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
    def grid(self) -> Grid:
        """The patches that fit, `(H // 14, W // 14)`."""
        return Grid(self.height // PATCH_SIZE, self.width // PATCH_SIZE)

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width

    @property
    def is_snapped(self) -> bool:
        """Whether both sides are multiples of 14."""
        return self.height % PATCH_SIZE == 0 and self.width % PATCH_SIZE == 0

    def snapped(self, snap: Snap) -> Self:
        """The size that the model sees.

        Raises:
            InputError: nothing is there or left, or `snap` is "error" and a side is no multiple.
        """
        if min(self.height, self.width) < 1:
            raise InputError(f"image of {self} pixels is empty; both sides must be at least 1")
        if snap is Snap.ERROR and not self.is_snapped:
            raise InputError(_not_a_multiple(self))
        side = {Snap.PAD: _ceil, Snap.RESIZE: _nearest}.get(snap, _floor)
        snapped = type(self)(side(self.height), side(self.width))
        if min(snapped.height, snapped.width) < PATCH_SIZE:
            raise InputError(
                f"image of {self} pixels is smaller than one patch of {PATCH_SIZE}x{PATCH_SIZE}; "
                'enlarge it, or use snap="pad"'
            )
        return snapped

    def fitted(self, max_pixels: int, snap: Snap) -> Self:
        """The largest size of the same aspect that the model sees as at most `max_pixels`.

        It is this size itself if that is small enough.

        Raises:
            InputError: see `snapped`; a very long and narrow image would be smaller than one patch.
        """
        fitted, scale = self, min(1.0, math.sqrt(max_pixels / self.snapped(snap).pixels))
        while fitted.snapped(snap).pixels > max_pixels:
            fitted = self._scaled(scale, snap)
            scale *= _SMALLER
        return fitted

    def _scaled(self, scale: float, snap: Snap) -> Self:
        sides = (int(self.height * scale), int(self.width * scale))
        if snap is Snap.ERROR:  # this size is a multiple, so what it becomes has to be one
            sides = (_floor(sides[0]), _floor(sides[1]))
        return type(self)(*sides)

    def center_padding(self) -> Padding:
        """Padding to the next multiples of 14; an odd pixel goes to the bottom or right.

        Source: `CenterPadding` in `dinov2/hub/utils.py`.
        """
        target = self.snapped(Snap.PAD)
        top = (target.height - self.height) // 2
        left = (target.width - self.width) // 2
        return Padding(
            top=top,
            left=left,
            bottom=target.height - self.height - top,
            right=target.width - self.width - left,
        )


def _floor(side: int) -> int:
    return side // PATCH_SIZE * PATCH_SIZE


def _ceil(side: int) -> int:
    return -(-side // PATCH_SIZE) * PATCH_SIZE


def _nearest(side: int) -> int:
    return max(PATCH_SIZE, (side + PATCH_SIZE // 2) // PATCH_SIZE * PATCH_SIZE)


def _not_a_multiple(size: ImageSize) -> str:
    side, value = ("height", size.height) if size.height % PATCH_SIZE else ("width", size.width)
    nearest = [multiple for multiple in (_floor(value), _ceil(value)) if multiple >= PATCH_SIZE]
    return (
        f"{side} {value} is not a multiple of {PATCH_SIZE}; nearest: "
        f"{' and '.join(map(str, nearest))}, "
        f'or let snap="crop", "center-crop", "pad" or "resize" choose'
    )
