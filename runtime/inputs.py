"""Checks a caller's images and groups them into batches for the graph."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Grid, ImageSize, Padding, Snap
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import InputError, first_line
from dinov2rt.runtime.images import resize

Images = NDArray[Any] | Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class ImageGroup:
    """Images that go through the model together.

    `images` are in the graph's format. `padding` is left to the graph. `grid` is the patch grid of
    the padded images. `positions` are the images' positions in the caller's list.
    """

    images: NDArray[Any]
    padding: Padding
    grid: Grid
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The axes of height, width and channels in a batch of one dtype."""

    dtype: str
    shape: str
    height: int
    width: int
    channel: int


@dataclass(frozen=True, slots=True)
class _Snapping:
    snap: Snap
    max_pixels: int
    patch_size: int
    graph_pads: bool

    def target(self, size: ImageSize) -> ImageSize:
        """The size of the model's input for an image of `size`."""
        return size.snapped(self.snap, self.patch_size)


_UINT8 = _Layout(dtype="uint8", shape="[B, H, W, 3] or [H, W, 3]", height=1, width=2, channel=3)
_FLOAT = _Layout(dtype="float32", shape="[B, 3, H, W] or [3, H, W]", height=2, width=3, channel=1)


def group_images(
    images: Images,
    input_format: InputFormat,
    snap: Snap,
    max_pixels: int,
    *,
    patch_size: int,
    normalization: Normalization = IMAGENET,
    graph_pads: bool = False,
) -> list[ImageGroup]:
    """Check `images` and group them by the shape of the model's input.

    Args:
        images: uint8 [B, H, W, 3] or [H, W, 3], or a sequence of [H, W, 3]; for a graph that takes
            normalized images, also float32 with channels first.
        input_format: the graph's input; uint8 is normalized here if the graph does not do it.
        snap: how sides become multiples of the patch.
        max_pixels: the most pixels that one image may have.
        patch_size: side of the model's patches, in pixels.
        normalization: applied to uint8 for a graph that does not normalize.
        graph_pads: the graph pads by itself and drops no pixels.

    Raises:
        InputError: the images have another shape, dtype or size.
    """
    snapping = _Snapping(snap, max_pixels, patch_size, graph_pads)
    if isinstance(images, list | tuple):
        return _group_sequence(images, input_format, snapping, normalization)
    batch = _checked(images, input_format)
    snapped, padding, grid = _snap(batch, snapping)
    formatted = _format(snapped, input_format, padding, normalization)
    return [ImageGroup(*formatted, grid, tuple(range(len(batch))))]


def _group_sequence(
    images: Sequence[Any],
    input_format: InputFormat,
    snapping: _Snapping,
    normalization: Normalization,
) -> list[ImageGroup]:
    if not images:
        raise InputError("got an empty list of images; pass at least one")
    alike: defaultdict[Any, list[tuple[int, NDArray[Any]]]] = defaultdict(list)
    for position, image in enumerate(images):
        try:
            snapped, padding, grid = _prepare_one(image, input_format, snapping)
        except InputError as error:
            raise InputError(f"image {position} of the list: {error}") from error
        alike[snapped.shape, snapped.dtype, padding, grid].append((position, snapped))
    groups = []
    for (_, _, padding, grid), members in alike.items():
        stacked = np.concatenate([member for _, member in members])
        positions = tuple(position for position, _ in members)
        formatted = _format(stacked, input_format, padding, normalization)
        groups.append(ImageGroup(*formatted, grid, positions))
    return groups


def _prepare_one(
    image: Any, input_format: InputFormat, snapping: _Snapping
) -> tuple[NDArray[Any], Padding, Grid]:
    """One image of a list, as a batch of one; see `_snap`."""
    batch = _checked(image, input_format)
    if np.ndim(image) != 3:
        raise InputError(f"got a batch of shape {list(batch.shape)}; a list holds single images")
    if snapping.snap in (Snap.CROP, Snap.ERROR):  # now, so that unequal images can share a batch
        batch = _crop(batch, snapping.target(ImageSize(*_size(batch))), centered=False)
    return _snap(batch, snapping)


def _checked(images: Any, input_format: InputFormat) -> NDArray[Any]:
    """`images` as a batch with four axes; an `InputError` says what is wrong."""
    allowed = _allowed(input_format)
    array = _as_array(images, allowed)
    layout = _layout_of(array, input_format)
    if layout is None:
        raise InputError(f"got dtype {array.dtype}, allowed is {allowed}")
    batch = array[None] if array.ndim == 3 else array
    if batch.ndim != 4 or batch.shape[layout.channel] != 3:
        raise InputError(f"got shape {list(array.shape)}, allowed is {allowed}")
    if not len(batch):
        raise InputError(f"got an empty batch {list(array.shape)}; pass at least one image")
    if layout is _FLOAT and not np.isfinite(batch).all():
        raise InputError("normalised input holds NaN or infinity; check its preparation")
    return batch


def _as_array(images: Any, allowed: str) -> NDArray[Any]:
    if not hasattr(images, "__array__"):
        raise InputError(
            f"got {type(images).__name__}, allowed is {allowed}; "
            'try dinov2rt.load_image(file), or numpy.asarray(image.convert("RGB")) with Pillow'
        )
    try:
        return np.asarray(images)
    except Exception as error:  # other libraries have their own, e.g. for a tensor on a GPU
        reason = first_line(error)
        raise InputError(
            f"got {type(images).__name__} that is no numpy array ({reason}); allowed is {allowed}"
        ) from error


def _layout_of(array: NDArray[Any], input_format: InputFormat) -> _Layout | None:
    if array.dtype == np.uint8:
        return _UINT8
    return _FLOAT if array.dtype == np.float32 and input_format is InputFormat.IMAGES else None


def _allowed(input_format: InputFormat) -> str:
    layouts = [_UINT8] + [_FLOAT] * (input_format is InputFormat.IMAGES)
    return " or normalised ".join(f"{layout.dtype} {layout.shape}" for layout in layouts) + ", RGB"


def _axes(batch: NDArray[Any]) -> tuple[int, int]:
    layout = _UINT8 if batch.dtype == np.uint8 else _FLOAT
    return layout.height, layout.width


def _size(batch: NDArray[Any]) -> tuple[int, int]:
    height, width = _axes(batch)
    return batch.shape[height], batch.shape[width]


def _snap(batch: NDArray[Any], snapping: _Snapping) -> tuple[NDArray[Any], Padding, Grid]:
    """The batch after cropping or resizing, and the padding and grid that are left to the graph."""
    size, snap, side = ImageSize(*_size(batch)), snapping.snap, snapping.patch_size
    target = snapping.target(size)
    grid = target.grid(side)
    if target.pixels > snapping.max_pixels:
        raise InputError(
            f"image of {size} has {target.pixels} pixels, more than "
            f"max_pixels={snapping.max_pixels}; make it smaller, or load the model with a larger "
            "max_pixels (memory grows with it)"
        )
    if snap is Snap.PAD:
        return batch, Padding() if snapping.graph_pads else size.center_padding(side), grid
    if snap is Snap.CENTER_CROP or (snapping.graph_pads and snap is Snap.CROP):
        batch = _crop(batch, target, centered=snap is Snap.CENTER_CROP)
    elif snap is Snap.RESIZE and target != size:
        batch = _resize(batch, target)
    return batch, Padding(), grid  # the graph itself drops what is left over by "crop"


def _crop(batch: NDArray[Any], target: ImageSize, *, centered: bool) -> NDArray[Any]:
    index = [slice(None)] * 4
    for axis, side in zip(_axes(batch), (target.height, target.width), strict=True):
        start = (batch.shape[axis] - side) // 2 if centered else 0
        index[axis] = slice(start, start + side)
    return batch[tuple(index)]


def _resize(batch: NDArray[Any], target: ImageSize) -> NDArray[Any]:
    if batch.dtype != np.uint8:
        raise InputError(
            'snap="resize" works on uint8 pixels; resample normalised images before, '
            "or pass uint8 [B, H, W, 3]"
        )
    return np.stack([resize(image, target) for image in batch])


def _format(
    batch: NDArray[Any],
    input_format: InputFormat,
    padding: Padding,
    normalization: Normalization,
) -> tuple[NDArray[Any], Padding]:
    """The batch in the graph's format, padded here if the graph has no padding input."""
    if input_format is InputFormat.PIXELS:
        return batch, padding
    images = normalization(batch) if batch.dtype == np.uint8 else batch
    if padding == Padding():
        return images, padding
    rows, cols = (padding.top, padding.bottom), (padding.left, padding.right)
    return np.pad(images, ((0, 0), (0, 0), rows, cols)), Padding()
