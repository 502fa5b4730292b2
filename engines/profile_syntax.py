"""Parses the optimization profiles that a user requests: presets and ranges."""

import re

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.bundle.profiles import BatchShape, ShapeRange
from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted

WIDE = "wide"

_COMMON_SIZE = ImageSize(224, 224)
_WIDE_OPT_BATCH = 8
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_SHAPE = re.compile(r"(\d{1,5})x(\d{1,5})x(\d{1,5})")
_ALLOWED = (
    'allowed are the side of a square ("224"), HEIGHTxWIDTH, "wide", and MIN..OPT..MAX, each as '
    'BATCHxHEIGHTxWIDTH ("1x112x112..8x448x448..32x896x896"), separated by commas'
)


def default_profiles(architecture: Architecture) -> str:
    """224 pixels a side, the position table's size, and `wide`: "224,518,wide" for variants."""
    native = architecture.native_size
    sizes = [_COMMON_SIZE] if _COMMON_SIZE.is_snapped(architecture.patch_size) else []
    names = [
        str(size.height) if size.height == size.width else str(size)
        for size in dict.fromkeys([*sizes, native])
    ]
    return ",".join([*names, WIDE])


def parse_profiles(
    text: str, architecture: Architecture, *, max_batch: int, max_size: int
) -> dict[str, ShapeRange]:
    """Profiles by name, in the order of `text`.

    "224" allows only images of 224×224 pixels, and "224x448" only that size, in batches of up to
    `max_batch`. "wide" allows any H×W from one patch to `max_size`, and is tuned for the size of
    the position table. MIN..OPT..MAX is an explicit range.

    Raises:
        InputError: a profile is malformed, a size does not consist of whole patches of
            `architecture`, a range is empty, or a profile is given twice.
    """
    profiles: dict[str, ShapeRange] = {}
    for name in (item.strip() for item in text.split(",")):
        if name in profiles:
            raise InputError(f"profile {quoted(name)} was given twice; leave one of them out")
        profiles[name] = _parse(name, architecture, max_batch, max_size)
    return profiles


def tensor_shape(shape: BatchShape, input_name: str) -> tuple[int, int, int, int]:
    """The input's shape for `shape`: `pixels` [B, H, W, 3] or `images` [B, 3, H, W]."""
    if input_name == "pixels":
        return shape.batch, shape.height, shape.width, 3
    return shape.batch, 3, shape.height, shape.width


def _parse(name: str, architecture: Architecture, max_batch: int, max_size: int) -> ShapeRange:
    if name == WIDE:
        return _wide(architecture, max_batch, max_size)
    if sides := _SIZE.fullmatch(name):
        size = ImageSize(int(sides[1]), int(sides[2] or sides[1]))
        size.snapped(Snap.ERROR, architecture.patch_size)  # the runtime only passes such sizes
        return ShapeRange.pinned(size, max_batch)
    return _parse_range(name, architecture.patch_size)


def _wide(architecture: Architecture, max_batch: int, max_size: int) -> ShapeRange:
    side, native = architecture.patch_size, architecture.native_size
    if max_size < side:
        raise InputError(f"max size {max_size} is smaller than one patch of {side}x{side}")
    opt = (min(max_size, native.height), min(max_size, native.width))
    return ShapeRange(
        BatchShape(1, side, side),
        BatchShape(min(_WIDE_OPT_BATCH, max_batch), *opt),
        BatchShape(max_batch, max_size, max_size),
    )


def _parse_range(name: str, patch_size: int) -> ShapeRange:
    matches = [_SHAPE.fullmatch(part) for part in name.split("..")]
    shapes = [BatchShape(*map(int, match.groups())) for match in matches if match]
    if len(matches) != 3 or len(shapes) != 3:
        raise InputError(f"profile {quoted(name)} is not valid; {_ALLOWED}")
    profile = ShapeRange(*shapes)
    if profile.opt not in profile or profile.max not in profile:
        raise InputError(
            f"profile {quoted(name)} must not shrink from MIN to OPT to MAX; each axis needs "
            "MIN <= OPT <= MAX"
        )
    if profile.min.batch < 1 or min(profile.min.height, profile.min.width) < patch_size:
        raise InputError(
            f"profile {quoted(name)} starts too small; the least is one patch, "
            f"1x{patch_size}x{patch_size}"
        )
    return profile
