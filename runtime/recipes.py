"""The official evaluation of each task, built from single passes of the model.

Depth: the mean of the depths of the image and of its mirror image. Segmentation: see `sliding.py`.
Classification: the short side is scaled to 256 pixels, and the central 224 are cropped.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.heads import HeadEntry, Task
from dinov2rt.errors import InputError
from dinov2rt.named_enum import unknown_name
from dinov2rt.runtime.images import preprocessed
from dinov2rt.runtime.predict import Request, class_names, palette_of
from dinov2rt.runtime.predictions import (
    Classification,
    Depth,
    Prediction,
    Predictions,
    Segmentation,
)
from dinov2rt.runtime.preprocess import Preprocess
from dinov2rt.runtime.sliding import classify_pixels, recipe_of

RecipeName = Literal["single", "official"]
"""One pass over the unmodified pixels, or the official evaluation."""

RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)

Ask = Callable[[Any, HeadEntry, bool], Any]
"""The prediction of one head in one pass, for an array of images; the flag requests scores."""

_EVALUATION = Preprocess.parse("classification")


def check_recipe(name: str, request: Request, *, device_outputs: bool) -> None:
    """Check the recipe, and that the official recipe has no options that it decides itself.

    Raises:
        InputError: the recipe is unknown, or an option is not allowed.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    if name == "official" and (request.snap is not None or request.scores or device_outputs):
        raise InputError(
            'recipe="official" chooses sizes itself, and combines many passes on the host; '
            "leave out snap, scores and device_outputs"
        )


def official(images: Any, heads: Sequence[HeadEntry], ask: Ask) -> Predictions | list[Predictions]:
    """Predictions of `heads` for a batch uint8 [B, H, W, 3], one image, or a list of images.

    Raises:
        InputError: an image is not uint8 pixels in host memory.
    """
    is_list = isinstance(images, list | tuple)
    every = list(images) if is_list else list(_batch(images))
    for image in every:
        _check(image)
    answers = [
        Predictions({head.name: _ANSWERS[head.task](image, head, ask) for head in heads})
        for image in every
    ]
    return answers if is_list else _stacked(answers)


def _batch(images: Any) -> NDArray[np.uint8]:
    array = np.asarray(images)
    return array[None] if array.ndim == 3 else array


def _check(image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        raise InputError(
            'recipe="official" takes uint8 pixels [H, W, 3] or [B, H, W, 3], or a list of images; '
            "it scales and cuts them itself"
        )


def _classification(image: NDArray[np.uint8], head: HeadEntry, ask: Ask) -> Classification:
    answer: Classification = ask(preprocessed(image, _EVALUATION)[None], head, False)
    return answer


def _depth(image: NDArray[np.uint8], head: HeadEntry, ask: Ask) -> Depth:
    both: Depth = ask(np.stack((image, image[:, ::-1])), head, False)
    straight, mirrored = both.metres
    return Depth(((straight + mirrored[:, ::-1]) / 2)[None], both.depth_range)


def _segmentation(image: NDArray[np.uint8], head: HeadEntry, ask: Ask) -> Segmentation:
    def scores_of(windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = ask(windows, head, True).scores
        return scores

    classes = classify_pixels(image, recipe_of(len(head.layers)), scores_of)
    return Segmentation(classes[None], class_names(head), palette_of(head))


_ANSWERS: dict[Task, Callable[[NDArray[np.uint8], HeadEntry, Ask], Prediction]] = {
    Task.CLASSIFICATION: _classification,
    Task.DEPTH: _depth,
    Task.SEGMENTATION: _segmentation,
}


def _stacked(answers: Sequence[Predictions]) -> Predictions:
    """Combine the predictions for single images of one size into predictions for a batch."""
    first = answers[0]
    return Predictions({name: _joined([each[name] for each in answers]) for name in first})


def _joined(answers: Sequence[Any]) -> Prediction:
    first = answers[0]
    if isinstance(first, Classification):
        return Classification(np.concatenate([each.logits for each in answers]), first.names)
    if isinstance(first, Depth):
        return Depth(np.concatenate([each.metres for each in answers]), first.depth_range)
    classes = np.concatenate([each.classes for each in answers])
    return Segmentation(classes, first.names, first.palette)
