"""Checks images that are on the GPU, without reading their elements."""

from typing import Any

from dinov2rt.bundle.geometry import ImageSize, Padding, Snap
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import InputError
from dinov2rt.runtime.inputs import ImageGroup

_DTYPES = {InputFormat.PIXELS: "uint8", InputFormat.IMAGES: "float32"}
_SHAPES = {InputFormat.PIXELS: "[B, H, W, 3]", InputFormat.IMAGES: "[B, 3, H, W]"}


def device_group(
    images: Any,
    input_format: InputFormat,
    snap: Snap,
    max_pixels: int,
    *,
    patch_size: int,
    graph_pads: bool = False,
) -> ImageGroup:
    """Check a batch of images, or a single image, of any library; see `inputs.group_images`.

    The images go to the graph unchanged. Therefore `snap` must be "error", or the mode that the
    graph does itself ("crop", or "pad" if `graph_pads`), or a mode that would not change them.

    Raises:
        InputError: shape, dtype or size is not allowed, or `snap` would change the images.
    """
    batch = images[None] if len(images.shape) == 3 else images
    size = _size(batch, input_format)
    target = size.snapped(snap, patch_size)
    own = Snap.PAD if graph_pads else Snap.CROP
    if snap not in (own, Snap.ERROR) and target != size:
        raise InputError(
            f'snap="{snap}" runs on the host, but the images of {size} are on the GPU; '
            f'resize them to {target} there, or use snap="{own}"'
        )
    if target.pixels > max_pixels:
        raise InputError(
            f"image of {size} has {target.pixels} pixels, more than max_pixels={max_pixels}; "
            "make it smaller, or load the model with a larger max_pixels (memory grows with it)"
        )
    return ImageGroup(batch, Padding(), target.grid(patch_size), tuple(range(len(batch))))


def _size(batch: Any, input_format: InputFormat) -> ImageSize:
    shape, dtype = tuple(batch.shape), str(batch.dtype).removeprefix("torch.")
    allowed = f"{_DTYPES[input_format]} {_SHAPES[input_format]} on the GPU"
    channel, rows, cols = (3, 1, 2) if input_format is InputFormat.PIXELS else (1, 2, 3)
    if dtype != _DTYPES[input_format]:
        raise InputError(f"got dtype {dtype}, allowed is {allowed}")
    if len(shape) != 4 or shape[channel] != 3 or not shape[0]:
        raise InputError(f"got shape {list(shape)}, allowed is {allowed}")
    return ImageSize(shape[rows], shape[cols])
