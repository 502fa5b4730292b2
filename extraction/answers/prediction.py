"""Runs many images through a model's heads, in order, one window of images at a time."""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Chunk, Failure, batched
from dinov2rt.extraction.decoding import DecodedImage, Decoders, Decoding, decode_chunks
from dinov2rt.foreign import shown
from dinov2rt.runtime.model import Model
from dinov2rt.runtime.predictions import Predictions
from dinov2rt.runtime.preprocess import Preprocess
from dinov2rt.runtime.recipes import RecipeName


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """The options of a prediction.

    `heads` are names, or None for all heads. `batch` is the largest number of images in a batch.

    Raises:
        InputError: `batch` is less than 1.
    """

    heads: tuple[str, ...] | None = None
    recipe: RecipeName = "single"
    preprocess: Preprocess = field(default_factory=Preprocess)
    batch: int = 8

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch={self.batch}; allowed is a whole number from 1")


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A decoded image with its predictions."""

    key: str
    size: ImageSize
    pixels: NDArray[np.uint8]
    predictions: Predictions


def predict_chunks(
    model: Model, chunks: Iterable[Chunk], options: PredictOptions, decoders: Decoders
) -> Generator[Answered | Failure, None, None]:
    """The predictions for each image of `chunks`, in order, or a failure if it cannot be used.

    Raises:
        BackendError: the model cannot compute a batch.
        Dinov2rtError: a decoder died.
    """
    # Images keep their own size: heads pad or crop by themselves.
    side = model.architecture.patch_size
    decoding = Decoding(options.preprocess, Snap.PAD, model.options.max_pixels, side)
    decoded = decode_chunks(chunks, decoding, decoders, ahead=options.batch)
    for window in batched((image for _, image in decoded), options.batch):
        yield from _answers(model, window, options)


def _answers(
    model: Model, window: Sequence[DecodedImage | Failure], options: PredictOptions
) -> Iterator[Answered | Failure]:
    images = [image for image in window if isinstance(image, DecodedImage)]
    try:
        answered = iter(_answered(model, images, options))
    except InputError:  # one image fails; run each alone, so that the others are not affected
        answered = itertools.chain.from_iterable(_alone(model, image, options) for image in images)
    for image in window:
        yield image if isinstance(image, Failure) else next(answered)


def _alone(
    model: Model, image: DecodedImage, options: PredictOptions
) -> Iterator[Answered | Failure]:
    try:
        yield from _answered(model, [image], options)
    except InputError as error:
        yield Failure(image.key, f"{shown(image.key)}: {error}")


def _answered(
    model: Model, images: Sequence[DecodedImage], options: PredictOptions
) -> list[Answered | Failure]:
    if not images:
        return []
    pixels = [image.pixels for image in images]
    names = options.heads or tuple(head.name for head in model.manifest.heads)
    answers: Any = model.predict(pixels, heads=names, recipe=options.recipe)
    if len(names) == 1:  # of a single head, the model returns the answer itself
        answers = [Predictions({names[0]: answer}) for answer in answers]
    return [
        Answered(image.key, image.size, image.pixels, answer)
        for image, answer in zip(images, answers, strict=True)
    ]
