"""Decodes and preprocesses images in separate processes, ahead of the model."""

import io
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.extraction.child_processes import ChildDiedError, ChildProcesses
from dinov2rt.extraction.chunks import Chunk, Failure, FileSlice, Item, batched, file_state
from dinov2rt.files import open_regular
from dinov2rt.foreign import shown
from dinov2rt.optional import require
from dinov2rt.runtime.images import load_fitted
from dinov2rt.runtime.inputs import group_images
from dinov2rt.runtime.preprocess import Preprocess

_TASK_IMAGES = 4
"""Images per message between processes: a message costs more than a small image."""

_TASKS_PER_DECODER = 2
"""One task runs and one is queued, so that no decoder is idle."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """The preparation of an image for the model.

    `max_pixels` bounds the model's input: larger images are scaled to fit, or refused if `scale` is
    false. `patch_size` is the side of the model's patches, in pixels.
    """

    preprocess: Preprocess
    snap: Snap
    max_pixels: int
    patch_size: int
    scale: bool = True

    def fit(self, size: ImageSize) -> ImageSize:
        """The size that an image of `size` is scaled to.

        Raises:
            InputError: the image is too large and must not be scaled, or cannot be snapped.
        """
        if self.scale:
            return size.fitted(self.max_pixels, self.snap, self.patch_size)
        if (seen := size.snapped(self.snap, self.patch_size)).pixels > self.max_pixels:
            raise InputError(
                f"image of {size} has {seen.pixels} pixels, more than max_pixels="
                f"{self.max_pixels}; let it be scaled to fit (without --no-scale), choose another "
                'preprocess, such as "short-side:448", or raise max_pixels (memory grows with it)'
            )
        return size


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """`pixels` [H, W, 3] for the model: snapped, but without the padding of `Snap.PAD`.

    `size` is the image's size before it was snapped. `scaled_from` is its size before it was scaled
    to fit, or None if it fitted. `lost_transparency` is as in `LoadedImage`.
    """

    key: str
    size: ImageSize
    pixels: NDArray[np.uint8]
    scaled_from: ImageSize | None = None
    lost_transparency: bool = False


class Decoders:
    """Processes that decode images, or one thread of this process if `processes` is 0.

    A context manager. The processes start when they are first needed. They end with the context, or
    with this process, even if it is killed. A pickled object holds only their number.

    Raises:
        InputError: `processes` is negative.
        MissingDependencyError: Pillow is not installed.
    """

    def __init__(self, processes: int) -> None:
        if processes < 0:
            raise InputError(f"decoders={processes}; allowed is a whole number from 0")
        self._processes = processes
        self.executor: Executor = _executor(processes)

    @property
    def count(self) -> int:
        """How many images are decoded concurrently."""
        return max(1, self._processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.executor.shutdown(cancel_futures=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoders, (self._processes,)


def decode_chunks(
    chunks: Iterable[Chunk], decoding: Decoding, decoders: Decoders, *, ahead: int
) -> Iterator[tuple[Chunk, DecodedImage | Failure]]:
    """Decode the images of `chunks`; yields each with its chunk, always in order.

    Up to `ahead` images, or two tasks per decoder if that is more, are decoded ahead, also across
    chunks. `chunks` is therefore read ahead as well.

    Raises:
        Dinov2rtError: a decoder died, or could not be started.
    """
    tasks = ((chunk, task) for chunk in chunks for task in batched(chunk.items(), _TASK_IMAGES))
    limit = max(-(-ahead // _TASK_IMAGES), _TASKS_PER_DECODER * decoders.count)
    pending: deque[tuple[Chunk, Future[list[DecodedImage | Failure]]]] = deque()
    try:
        while True:
            for chunk, task in itertools.islice(tasks, limit - len(pending)):
                pending.append((chunk, _submit(decoders, task, decoding)))
            if not pending:
                return
            chunk, future = pending.popleft()
            for image in _result(future):
                yield chunk, image
    finally:
        for _, future in pending:
            future.cancel()


def decode(item: Item | Failure, decoding: Decoding) -> DecodedImage | Failure:
    """Decode one image; return a failure if it cannot be used. A failure is returned unchanged.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    if isinstance(item, Failure):
        return item
    state = file_state(item.source) if isinstance(item.source, Path) else ""
    try:
        image = load_fitted(_readable(item), decoding.preprocess, decoding.fit)
        size = ImageSize(*image.pixels.shape[:2])
        pixels = _snapped(image.pixels, decoding)
        return DecodedImage(item.key, size, pixels, image.scaled_from, image.lost_transparency)
    except InputError as error:
        name = str(item.source) if isinstance(item.source, Path) else item.key
        reason = str(error)
        named = reason if reason.startswith(shown(name)) else f"{shown(item.key)}: {reason}"
        return Failure(item.key, named, state)


def _decode_task(items: list[Item | Failure], decoding: Decoding) -> list[DecodedImage | Failure]:
    return [decode(item, decoding) for item in items]


MOST_ENCODED_BYTES = 2**28
"""The limit for one image in a shard, which is read into memory before it is decoded."""


class _Content(io.BytesIO):
    """The bytes of an image; its `str`, for error messages, is the image's key."""

    def __init__(self, item: Item, content: bytes) -> None:
        super().__init__(content)
        self._key = item.key

    def __str__(self) -> str:
        return self._key


def _readable(item: Item) -> Path | BinaryIO:
    """The argument for Pillow: a path, or an open file."""
    if isinstance(item.source, Path):
        return item.source
    if isinstance(item.source, bytes):
        _check_encoded(len(item.source), item.key)
        return _Content(item, item.source)
    content = _read(item.source)
    return _Content(item, content)


def _check_encoded(size_bytes: int, place: str) -> None:
    if size_bytes > MOST_ENCODED_BYTES:
        raise InputError(
            f"an image of {size_bytes} bytes in {shown(place)}; allowed are {MOST_ENCODED_BYTES}, "
            "since it is read into memory"
        )


def _read(part: FileSlice) -> bytes:
    try:
        _check_encoded(part.size_bytes, part.file)
        with open_regular(Path(part.file)) as file:
            file.seek(part.offset)
            content = file.read(part.size_bytes)
    except OSError as error:
        raise InputError(f"{part.file} cannot be read ({error.strerror})") from error
    if len(content) < part.size_bytes:
        raise InputError(f"{part.file} ends before this image does; get the shard again")
    return content


def _snapped(image: NDArray[np.uint8], decoding: Decoding) -> NDArray[np.uint8]:
    # In a list, each image is snapped by itself, and not left to the graph.
    (group,) = group_images(
        [image],
        InputFormat.PIXELS,
        decoding.snap,
        decoding.max_pixels,
        patch_size=decoding.patch_size,
    )
    pixels: NDArray[np.uint8] = np.ascontiguousarray(group.images[0])
    return pixels


def _submit(decoders: Decoders, task: list[Item | Failure], decoding: Decoding) -> Future[Any]:
    return decoders.executor.submit(_decode_task, task, decoding)


def _result(future: Future[list[DecodedImage | Failure]]) -> list[DecodedImage | Failure]:
    try:
        return future.result()
    except ChildDiedError as error:
        raise Dinov2rtError(
            f"{error}, perhaps because memory ran out; try fewer decoders"
        ) from error


def _executor(processes: int) -> Executor:
    if not processes:
        return ThreadPoolExecutor(1)
    pillow = require("PIL.Image", extra="image", purpose="reading an image file")
    return ChildProcesses(processes, _start_decoder, pillow.MAX_IMAGE_PIXELS)


def _start_decoder(max_image_pixels: int | None) -> None:
    """Copy the caller's Pillow limit."""
    pillow: Any = require("PIL.Image", extra="image", purpose="reading an image file")
    pillow.MAX_IMAGE_PIXELS = max_image_pixels
