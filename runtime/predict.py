"""Computes the predictions of a bundle's heads; heads with the same input share one pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.heads import HeadEntry, Task
from dinov2rt.bundle.signature import scores_name
from dinov2rt.bundle.tasks.classes import ClassTable, class_table
from dinov2rt.errors import BundleError, InputError
from dinov2rt.runtime.inputs import ImageGroup
from dinov2rt.runtime.predictions import (
    Classification,
    Depth,
    Prediction,
    Predictions,
    Segmentation,
)

Run = Callable[[ImageGroup, tuple[str, ...]], Mapping[str, Any]]
Group = Callable[[Any, Snap], list[ImageGroup]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request: the heads, how sides become multiples of the patch, and whether to return scores.

    If `snap` is None, each head treats images as in its official evaluation: classifiers drop
    pixels at the bottom and at the right, dense heads pad.
    """

    heads: tuple[HeadEntry, ...]
    snap: Snap | None
    scores: bool

    @classmethod
    def of(
        cls, available: Sequence[HeadEntry], names: Any, snap: str | None, *, scores: bool
    ) -> "Request":
        """Check the arguments of a caller.

        Args:
            available: the bundle's heads.
            names: one name, several names, or None for all heads.
            snap: a name of `Snap`, or None.
            scores: whether segmentations have scores.

        Raises:
            InputError: no head is given, the bundle lacks a head, or `snap` is unknown.
        """
        if not available:
            raise InputError(
                "this bundle has no head; export one with: dinov2rt export VARIANT --head NAME "
                "(linear, nyu-dpt, ade20k-linear, …)"
            )
        wanted = [head.name for head in available] if names is None else names
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        by_name = {head.name: head for head in available}
        unknown = [name for name in wanted if name not in by_name]
        if unknown or not wanted:
            raise InputError(f"heads {wanted} asked for; this bundle has {', '.join(by_name)}")
        chosen = tuple(by_name[name] for name in wanted)
        return cls(chosen, None if snap is None else Snap.parse(snap), scores)

    def by_snap(self) -> dict[Snap, tuple[HeadEntry, ...]]:
        """The heads by snap; heads with the same snap share a pass."""
        if self.snap is not None:
            return {self.snap: self.heads}
        passes: dict[Snap, tuple[HeadEntry, ...]] = {}
        for head in self.heads:
            snap = Snap.PAD if head.is_dense else Snap.CROP
            passes[snap] = (*passes.get(snap, ()), head)
        return passes


def predict_all(
    images: Any, request: Request, group: Group, run: Run, patch_size: int
) -> list[Predictions] | Predictions:
    """The predictions for an array of images, or for each image of a list.

    If all sides are multiples of the patch, all heads share one pass.
    """
    is_list = isinstance(images, list | tuple)
    parts: list[list[Predictions]] = []
    passes = request.by_snap()
    if len(passes) > 1 and _is_snapped(images, patch_size):
        passes = {Snap.PAD: request.heads}
    for snap, heads in passes.items():
        names = tuple(name for head in heads for name in _outputs(head, scores=request.scores))
        answered = [
            (each, _answers(run(each, names), heads, scores=request.scores))
            for each in group(images, snap)
        ]
        parts.append(_in_order(answered) if is_list else [answered[0][1]])
    merged = [_merged(each, request.heads) for each in zip(*parts, strict=True)]
    return merged if is_list else merged[0]


def _is_snapped(images: Any, patch_size: int) -> bool:
    """Whether every image has sides that are multiples of the patch."""
    every = images if isinstance(images, list | tuple) else [images]
    try:
        shapes = [np.shape(image) for image in every]
    except (TypeError, ValueError, RuntimeError):
        return False  # the check of the images reports the error
    return all(_sides_are_whole(shape, patch_size) for shape in shapes)


def _sides_are_whole(shape: Sequence[int], patch_size: int) -> bool:
    if len(shape) not in (3, 4):
        return False
    sides = shape[-3:-1] if shape[-1] == 3 else shape[-2:]
    return all(side % patch_size == 0 for side in sides)


def _outputs(head: HeadEntry, *, scores: bool) -> tuple[str, ...]:
    if scores and head.task is Task.SEGMENTATION:
        return head.output, scores_name(head.output)
    return (head.output,)


def _answers(
    outputs: Mapping[str, Any], heads: Sequence[HeadEntry], *, scores: bool
) -> Predictions:
    return Predictions({head.name: _answer(outputs, head, scores=scores) for head in heads})


def _answer(outputs: Mapping[str, Any], head: HeadEntry, *, scores: bool) -> Prediction:
    value = outputs[head.output]
    _check_kind(head, value)
    if head.task is Task.DEPTH:
        if head.depth_range is None:
            raise BundleError(f"the manifest states no range for head {head.name}; export it again")
        return Depth(value, head.depth_range)
    if head.task is Task.CLASSIFICATION:
        names = class_names(head)
        _check_classes(head, value.shape[1], len(names))
        return Classification(value, names)
    names = class_names(head)
    if isinstance(value, np.ndarray):  # classes that stay on a GPU are not read
        _check_classes(head, int(value.max(initial=0)) + 1, len(names))
    lowres = outputs[scores_name(head.output)] if scores else None
    return Segmentation(value, names, palette_of(head), lowres)


def _check_kind(head: HeadEntry, value: Any) -> None:
    """Refuse an output that is of another task than the manifest says."""
    axes = 3 if head.is_dense else 2
    is_classes = np.issubdtype(value.dtype, np.integer)
    if len(value.shape) != axes or is_classes != (head.task is Task.SEGMENTATION):
        raise BundleError(
            f"the output {head.output} does not fit head {head.name}; export the bundle again"
        )


def _check_classes(head: HeadEntry, returned: int, named: int) -> None:
    if returned > named:
        raise BundleError(
            f"head {head.name} returns {returned} classes, and the manifest names {named}; "
            "export the bundle again"
        )


def class_names(head: HeadEntry) -> tuple[str, ...]:
    """Names of the classes of `head`, by index.

    Raises:
        BundleError: the manifest names none, and data that is unknown.
    """
    return head.class_names or _table(head).names


def _table(head: HeadEntry) -> ClassTable:
    try:
        return class_table(head.data)
    except InputError as error:
        raise BundleError(f"head {head.name} has {error}; export the bundle again") from error


def palette_of(head: HeadEntry) -> NDArray[np.uint8]:
    """Colours of the classes of `head`, uint8 [K, 3], RGB, by index.

    Raises:
        BundleError: the classes have none.
    """
    if _is_palette(head):
        return np.array(head.palette, np.uint8)
    palette = None if head.class_names else _table(head).palette
    if palette is None:
        raise BundleError(f"the classes of head {head.name} have no palette; export it again")
    return palette


def _is_palette(head: HeadEntry) -> bool:
    """Whether the manifest has a colour for each of the head's own classes."""
    return (
        bool(head.palette)
        and len(head.palette) == len(head.class_names)
        and all(len(colour) == 3 and {*colour} <= {*range(256)} for colour in head.palette)
    )


def _in_order(answered: Sequence[tuple[ImageGroup, Predictions]]) -> list[Predictions]:
    """The predictions for each image, in the caller's order."""
    placed = {
        position: predictions.of_image(index)
        for group, predictions in answered
        for index, position in enumerate(group.positions)
    }
    return [placed[position] for position in sorted(placed)]


def _merged(parts: Sequence[Predictions], heads: Sequence[HeadEntry]) -> Predictions:
    found = {name: each for part in parts for name, each in part.items()}
    return Predictions({head.name: found[head.name] for head in heads})
