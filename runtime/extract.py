"""Many image files through a model, a window of them at a time, so that memory stays bounded."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dinov2rt.runtime.errors import InputError
from dinov2rt.runtime.feature_files import ImageFeatures
from dinov2rt.runtime.features import Features, output_names
from dinov2rt.runtime.geometry import ImageSize, Snap
from dinov2rt.runtime.images import Preprocess, load_image
from dinov2rt.runtime.inputs import InputFormat, group_images
from dinov2rt.runtime.model import Model

WINDOW_BATCHES = 4
"""Images are grouped by size within a window of this many batches; one more window is decoded
ahead while the model computes."""

Failed = Callable[[Path, InputError], None]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How image files become batches.

    `batch` is the most images of one forward pass. `patch_tokens` keeps each image's patch tokens
    in its row; without them a row is a few kilobytes.

    Raises:
        InputError: `batch` is less than 1.
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    snap: Snap = Snap.CROP
    batch: int = 8
    patch_tokens: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch={self.batch}; allowed is a whole number from 1")


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    path: Path
    pixels: NDArray[np.uint8]

    @property
    def size(self) -> ImageSize:
        return ImageSize(*self.pixels.shape[:2])


def extract(
    model: Model, files: Sequence[Path], options: ExtractOptions, *, failed: Failed
) -> Generator[ImageFeatures, None, None]:
    """The features of each image of `files`, in their order, as they are computed.

    Files are decoded in threads, ahead of the model but never more than a window. At most two
    windows of images, each image of at most the model's `max_pixels`, are in memory at a time.

    Args:
        model: what computes them; only the final tokens are asked of it.
        files: image files.
        options: how they become batches.
        failed: told of each image that cannot be used, which is then left out.

    Raises:
        BackendError: the model cannot compute a batch.
        MissingDependencyError: Pillow is not installed.
    """
    window = WINDOW_BATCHES * options.batch

    def load(file: Path) -> _Image:
        return _load(file, options, model.options.max_pixels)

    for images in _chunks(_decoded(files, load, window, failed), window):
        yield from _rows(model, images, options, failed)


def seen_by_model(image: NDArray[np.uint8], snap: Snap) -> NDArray[np.uint8]:
    """`image` [H, W, 3] as its patch grid covers it, [14·h, 14·w, 3]; padding is black."""
    size = ImageSize(*image.shape[:2]).snapped(snap)
    (group,) = group_images([image], InputFormat.PIXELS, snap, max_pixels=size.pixels)
    pad = group.padding
    seen: NDArray[np.uint8] = np.pad(
        group.images[0], ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0))
    )
    return seen


def _load(file: Path, options: ExtractOptions, max_pixels: int) -> _Image:
    image = _Image(file, load_image(file, options.preprocess))
    try:
        seen = image.size.snapped(options.snap)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if seen.pixels > max_pixels:
        raise InputError(
            f"{file}: image of {image.size} has {seen.pixels} pixels, more than "
            f'max_pixels={max_pixels}; scale it, e.g. with preprocess "short-side:518", or raise '
            "max_pixels (memory grows with it)"
        )
    return image


def _decoded(
    files: Sequence[Path], load: Callable[[Path], _Image], ahead: int, failed: Failed
) -> Iterator[_Image]:
    waiting = iter(files)
    pending: deque[tuple[Path, Future[_Image]]] = deque()
    pool = ThreadPoolExecutor()
    try:
        while True:
            missing = itertools.islice(waiting, ahead - len(pending))
            pending.extend((file, pool.submit(load, file)) for file in missing)
            if not pending:
                return
            file, future = pending.popleft()
            try:
                image = future.result()
            except InputError as error:
                failed(file, error)
            else:
                yield image
    finally:
        pool.shutdown(cancel_futures=True)


def _rows(
    model: Model, images: list[_Image], options: ExtractOptions, failed: Failed
) -> Iterator[ImageFeatures]:
    """One window: computed in batches of one size each, given in the order of the files."""
    computed: dict[int, ImageFeatures | None] = {}
    given = 0
    for positions in _batches(images, options):
        batch = [images[position] for position in positions]
        computed.update(zip(positions, _computed(model, batch, options, failed), strict=True))
        while given in computed:
            row = computed.pop(given)
            if row is not None:
                yield row
            given += 1


def _computed(
    model: Model, batch: list[_Image], options: ExtractOptions, failed: Failed
) -> list[ImageFeatures | None]:
    """A row for each image; None for all where the model does not take their size."""
    pixels, outputs = [image.pixels for image in batch], output_names(model.variant)
    try:
        features = model(pixels, outputs=outputs, snap=options.snap)
    except InputError as error:  # outside of what a plan was built for, say
        for image in batch:
            failed(image.path, InputError(f"{image.path}: {error}"))
        return [None] * len(batch)
    return [_row(*pair, options) for pair in zip(batch, features, strict=True)]


def _batches(images: list[_Image], options: ExtractOptions) -> list[list[int]]:
    """Positions of images that the model sees in one size, the earliest batch first."""

    def seen(position: int) -> ImageSize:
        return images[position].size.snapped(options.snap)

    by_size = itertools.groupby(sorted(range(len(images)), key=seen), key=seen)
    return sorted(batch for _, alike in by_size for batch in _chunks(alike, options.batch))


def _row(image: _Image, features: Features, options: ExtractOptions) -> ImageFeatures:
    patches = features.patch_tokens[0].reshape(features.grid.num_patches, -1)
    return ImageFeatures(
        path=str(image.path),
        size=image.size,
        grid=features.grid,
        cls_token=_float32(features.cls_token[0]),
        register_tokens=_float32(features.register_tokens[0]),
        patch_mean=_float32(patches.mean(axis=0, dtype=np.float64)),
        patch_tokens=_float32(patches) if options.patch_tokens else None,
    )


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """A copy, so that a kept row does not keep its whole batch."""
    return array.astype(np.float32)


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
