"""Runs many images through a model, one window at a time, to bound memory."""

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.signature import layer_output_names, output_names
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Chunk, Failure, batched
from dinov2rt.extraction.decoding import DecodedImage, Decoders, Decoding, decode_chunks
from dinov2rt.extraction.image_features import ImageFeatures
from dinov2rt.foreign import shown
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.model import Model
from dinov2rt.runtime.preprocess import Preprocess

WINDOW_BATCHES = 4
"""Images are grouped by size within a window of this many batches; the next window is decoded while
the model computes."""

ImageOutcome = ImageFeatures | Failure


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How images become batches.

    `batch` is the largest batch of a forward pass. `patch_tokens` keeps each image's patch tokens
    in its row; without them a row has a few kilobytes. `layer_tokens` keeps the CLS tokens of the
    layers that the bundle was exported with. Images with more pixels than the model's `max_pixels`
    are scaled to fit, or refused if `scale` is false.

    Raises:
        InputError: `batch` is less than 1.
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    snap: Snap = Snap.CROP
    batch: int = 8
    patch_tokens: bool = False
    layer_tokens: bool = False
    scale: bool = True

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch={self.batch}; allowed is a whole number from 1")

    def decoding(self, model: Model) -> Decoding:
        """The steps that come before `model`, in the decoder."""
        side = model.architecture.patch_size
        return Decoding(self.preprocess, self.snap, model.options.max_pixels, side, self.scale)


def extract(
    model: Model, chunks: Iterable[Chunk], options: ExtractOptions, decoders: Decoders
) -> Generator[tuple[Chunk, ImageOutcome], None, None]:
    """The features of each image of `chunks`, in order, as they are computed.

    Batches depend only on the images of a chunk and their order, never on timing or on other
    chunks. Therefore a chunk gives the same rows on every run and every machine. At most three
    windows of images are in memory at a time, or more if that is needed to keep the decoders busy.

    Args:
        model: computes the features; only outputs that `options` name are requested.
        chunks: the work; read ahead while the model computes.
        options: how images become batches.
        decoders: decode the images.

    Yields:
        A chunk, and the features of one of its images, or why that image cannot be used.

    Raises:
        BackendError: the model cannot compute a batch.
        Dinov2rtError: a decoder died.
    """
    window_images = WINDOW_BATCHES * options.batch
    decoding = options.decoding(model)
    images = decode_chunks(chunks, decoding, decoders, ahead=window_images)
    # One iterator feeds the model, a few batches ahead of the other, which collects the results.
    fed, awaited = itertools.tee(_windows(images, options.batch))
    batches = (batch for window in fed for batch in window.batches)
    computed = _computed(model, batches, options)
    for window in awaited:
        placed = dict(window.failures)
        for batch in window.batches:
            placed.update(zip(batch.positions, next(computed), strict=True))
        yield from ((window.chunk, placed[position]) for position in sorted(placed))


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Images of one shape, and their positions in the window."""

    positions: list[int]
    images: list[DecodedImage]


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    chunk: Chunk
    batches: list[_Batch]
    failures: dict[int, ImageOutcome]


def _windows(
    images: Iterator[tuple[Chunk, DecodedImage | Failure]], batch: int
) -> Iterator[_Window]:
    """Windows within single chunks, since a chunk's batches must not depend on other chunks."""
    for chunk, group in itertools.groupby(images, key=itemgetter(0)):
        for window in batched((image for _, image in group), WINDOW_BATCHES * batch):
            failures = {at: it for at, it in enumerate(window) if isinstance(it, Failure)}
            yield _Window(chunk, _batches(window, batch), dict(failures))


def _batches(window: list[DecodedImage | Failure], size: int) -> list[_Batch]:
    """The images of `window` in batches of one shape each, the earliest batch first."""
    alike: dict[tuple[int, ...], list[tuple[int, DecodedImage]]] = {}
    for position, image in enumerate(window):
        if isinstance(image, DecodedImage):
            alike.setdefault(image.pixels.shape, []).append((position, image))
    batches = [
        _Batch([position for position, _ in part], [image for _, image in part])
        for same in alike.values()
        for part in batched(same, size)
    ]
    return sorted(batches, key=lambda batch: batch.positions)


def _computed(
    model: Model, batches: Iterator[_Batch], options: ExtractOptions
) -> Iterator[list[ImageOutcome]]:
    """The outcomes of each batch; a batch that the model refuses does not affect the others."""
    waiting: deque[_Batch] = deque()
    layers = layer_outputs(model, options)
    outputs = (*output_names(model.architecture), *layers)

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for batch in tuple(waiting):  # in flight when the model refused a batch
            yield _stacked(batch)
        for batch in batches:
            waiting.append(batch)
            yield _stacked(batch)

    while True:
        try:
            for features in model.map(pixels(), outputs=outputs, snap=options.snap):
                assert isinstance(features, Features)  # noqa: S101  # what an array gives
                yield _rows(waiting.popleft(), features, options, layers)
            return
        except InputError as error:  # for example, the shape is outside every profile of a plan
            yield [_refused(image, error) for image in waiting.popleft().images]


def layer_outputs(model: Model, options: ExtractOptions) -> tuple[str, ...]:
    """The outputs for `layer_cls_tokens`, in the order of the blocks.

    Raises:
        InputError: they are asked for and the bundle has none, or has them without the final norm.
    """
    if not options.layer_tokens:
        return ()
    graph = model.graph
    if not graph.layers or graph.unnormed:
        found = "them without the final norm" if graph.layers else "none"
        last = ",".join(map(str, range(model.architecture.depth - 4, model.architecture.depth)))
        raise InputError(
            f"layer tokens are asked for, and this bundle has {found}; export it with --layers, "
            f"such as --layers {last}, without --unnormed"
        )
    return tuple(layer_output_names(layer)[0] for layer in graph.layers)


def _stacked(batch: _Batch) -> NDArray[np.uint8]:
    return np.stack([image.pixels for image in batch.images])


def _refused(image: DecodedImage, error: InputError) -> Failure:
    return Failure(image.key, f"{shown(image.key)}: {error}")


def _rows(
    batch: _Batch, features: Features, options: ExtractOptions, layers: Sequence[str]
) -> list[ImageOutcome]:
    count, patches = len(features), features.grid.num_patches
    patch_tokens = features.patch_tokens.reshape(count, patches, -1)
    patch_mean = patch_tokens.mean(axis=1, dtype=np.float64)
    return [
        ImageFeatures(
            key=image.key,
            size=image.size,
            grid=features.grid,
            cls_token=_float32(features.cls_token[index]),
            register_tokens=_float32(features.register_tokens[index]),
            patch_mean=_float32(patch_mean[index]),
            patch_tokens=_float32(patch_tokens[index]) if options.patch_tokens else None,
            layer_cls_tokens=(
                _float32(np.stack([features.outputs[name][index] for name in layers]))
                if layers
                else None
            ),
            scaled_from=image.scaled_from,
            lost_transparency=image.lost_transparency,
        )
        for index, image in enumerate(batch.images)
    ]


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """A copy, so that a row does not keep its whole batch in memory."""
    return array.astype(np.float32)
