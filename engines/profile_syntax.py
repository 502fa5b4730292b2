"""Parses the optimization profiles that a user requests: presets and ranges."""

import re

from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.bundle.profiles import BatchShape, ShapeRange
from dinov2rt.bundle.variants import PATCH_SIZE
from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted

WIDE = "wide"

_WIDE_OPT_BATCH = 8
_WIDE_OPT_SIDE = 518
_SHAPE = re.compile(r"(\d{1,5})x(\d{1,5})x(\d{1,5})")
_ALLOWED = (
    'allowed are the side of a square ("224"), "wide", and MIN..OPT..MAX, each as '
    'BATCHxHEIGHTxWIDTH ("1x14x14..8x518x518..32x1036x1036"), separated by commas'
)


def parse_profiles(text: str, *, max_batch: int, max_size: int) -> dict[str, ShapeRange]:
    """Profiles by name, in the order of `text`.

    "224" is pinned to images of 224×224 pixels, any batch up to `max_batch`. "wide" takes any H×W
    from one patch to `max_size`. A range, MIN..OPT..MAX, stands for itself.

    Raises:
        InputError: none of these, an empty range, or the same one twice.
    """
    profiles: dict[str, ShapeRange] = {}
    for name in (item.strip() for item in text.split(",")):
        if name in profiles:
            raise InputError(f"profile {quoted(name)} was given twice; leave one of them out")
        profiles[name] = _parse(name, max_batch, max_size)
    return profiles


def tensor_shape(shape: BatchShape, input_name: str) -> tuple[int, int, int, int]:
    """The input's shape for `shape`: `pixels` [B, H, W, 3] or `images` [B, 3, H, W]."""
    if input_name == "pixels":
        return shape.batch, shape.height, shape.width, 3
    return shape.batch, 3, shape.height, shape.width


def _parse(name: str, max_batch: int, max_size: int) -> ShapeRange:
    if name == WIDE:
        return _wide(max_batch, max_size)
    if re.fullmatch(r"\d{1,5}", name):
        side = int(name)
        ImageSize(side, side).snapped(Snap.ERROR)  # no image that the runtime hands in would fit
        return ShapeRange.pinned(side, max_batch)
    return _parse_range(name)


def _wide(max_batch: int, max_size: int) -> ShapeRange:
    batch, side = min(_WIDE_OPT_BATCH, max_batch), min(_WIDE_OPT_SIDE, max_size)
    return ShapeRange(
        BatchShape(1, PATCH_SIZE, PATCH_SIZE),
        BatchShape(batch, side, side),
        BatchShape(max_batch, max_size, max_size),
    )


def _parse_range(name: str) -> ShapeRange:
    matches = [_SHAPE.fullmatch(part) for part in name.split("..")]
    shapes = [BatchShape(*map(int, match.groups())) for match in matches if match]
    if len(matches) != 3 or len(shapes) != 3:
        raise InputError(f"profile {quoted(name)} is none; {_ALLOWED}")
    profile = ShapeRange(*shapes)
    if profile.opt not in profile or profile.max not in profile:
        raise InputError(
            f"profile {quoted(name)} must not shrink from MIN to OPT to MAX; each axis of OPT must "
            "be at least that of MIN, and each axis of MAX at least that of OPT"
        )
    if profile.min.batch < 1 or min(profile.min.height, profile.min.width) < PATCH_SIZE:
        raise InputError(
            f"profile {quoted(name)} starts too small; the least is one patch, "
            f"1x{PATCH_SIZE}x{PATCH_SIZE}"
        )
    return profile
