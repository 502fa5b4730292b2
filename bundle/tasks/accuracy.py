"""Compares outputs other than tokens: attention maps, logits, depth and classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.limits import POOLED, TaskLimits
from dinov2rt.bundle.signature import FloatArray, scores_name
from dinov2rt.bundle.tasks.bilinear import resized_bands
from dinov2rt.errors import BundleError

DEPTH_OFF = 0.01
"""A pixel's depth counts as off if its relative error exceeds this."""


@dataclass(frozen=True, slots=True)
class TaskAccuracy:
    """The agreement of one output of one case with its reference.

    `relative_l2` is `|got - want| / |want|`, None for classes. `share_off` is the share of pixels
    (of images, for a classifier) that are off, as in `TaskLimits.most_off`, and `beyond_margin`
    the number of those whose class the reference is sure of; None where it means nothing. `limits`
    is what it was judged by.
    """

    case: str
    output: str
    passed: bool
    limits: TaskLimits
    relative_l2: float | None = None
    share_off: float | None = None
    beyond_margin: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.relative_l2 is not None:
            parts.append(f"relative L2 {self.relative_l2:.2e}")
        if self.share_off is not None:
            parts.append(f"{self.share_off:.3%} off")
        if self.beyond_margin:
            parts.append(f"{self.beyond_margin} of them beyond the margin")
        return f"{self.output} at {self.case}: {', '.join(parts)} (allowed: {self.limits})"


def compare_values(
    case: str, output: str, got: FloatArray, want: FloatArray, limits: TaskLimits
) -> TaskAccuracy:
    """Compare attention, logits, scores or depth of any shape, in float64.

    With `most_off`, values are depths in metres, and the share with a relative error above 1 % is
    counted. With `margin`, they are scores [B, K], and the share of rows with another best class is
    counted.

    Raises:
        BundleError: the shapes differ.
    """
    _check_shapes(case, output, got, want)
    exact, reference = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_l2 = float(np.linalg.norm(exact - reference) / np.linalg.norm(reference))
    if limits.margin is not None:
        off = exact.argmax(-1) != reference.argmax(-1)
        return _judged(case, output, relative_l2, off, off & _is_sure(reference, limits), limits)
    if limits.most_off is not None:
        off = ~(np.abs(exact - reference) <= DEPTH_OFF * np.abs(reference))
        return _judged(case, output, relative_l2, off, None, limits)
    return _judged(case, output, relative_l2, None, None, limits)


def compare_classes(
    case: str,
    output: str,
    got: NDArray[Any],
    want: NDArray[Any],
    margins: FloatArray,
    limits: TaskLimits,
) -> TaskAccuracy:
    """Compare class maps [B, H, W]; `margins` [B, H, W] of `want`: best score minus second.

    Raises:
        BundleError: the shapes differ.
    """
    _check_shapes(case, output, got, want)
    off = got != want
    is_sure = off & (margins > limits.margin) if limits.margin is not None else None
    return _judged(case, output, None, off, is_sure, limits)


def margins_of(scores: FloatArray, axis: int = -1) -> FloatArray:
    """The difference between the best two scores along `axis`; 0 if there is only one class."""
    if scores.shape[axis] < 2:
        return np.zeros(np.delete(scores.shape, axis), scores.dtype)
    best = np.partition(scores, -2, axis=axis)
    difference: FloatArray = np.take(best, -1, axis) - np.take(best, -2, axis)
    return difference


def class_margins(scores: FloatArray, size: tuple[int, ...]) -> FloatArray:
    """The margins [B, H, W] of `scores` [B, K, h, w] after resampling to `size`, H × W."""
    height, width = size
    margins = np.empty((len(scores), height, width), np.float32)
    for index, image in enumerate(scores.astype(np.float32)):
        for band, values in resized_bands(image, (height, width)):
            margins[index, band] = margins_of(values, axis=0)
    return margins


def _is_sure(scores: FloatArray, limits: TaskLimits) -> NDArray[np.bool_]:
    least = np.inf if limits.margin is None else limits.margin
    return np.asarray(margins_of(scores) > least)


def _judged(
    case: str,
    output: str,
    relative_l2: float | None,
    off: NDArray[np.bool_] | None,
    beyond: NDArray[np.bool_] | None,
    limits: TaskLimits,
) -> TaskAccuracy:
    share = None if off is None else float(off.mean())
    count = None if beyond is None else int(beyond.sum())
    # Comparisons with NaN are false, but NaN must fail.
    passed = not count
    if limits.relative_l2 is not None and relative_l2 is not None:
        passed &= relative_l2 <= limits.relative_l2
    if limits.most_off is not None and share is not None:
        passed &= share <= limits.most_off
    return TaskAccuracy(case, output, passed, limits, relative_l2, share, count)


def _check_shapes(case: str, output: str, got: NDArray[Any], want: NDArray[Any]) -> None:
    if got.shape != want.shape:
        raise BundleError(
            f"output {output} at {case} has shape {list(got.shape)}, its golden output "
            f"{list(want.shape)}; graph and golden outputs are not of one export"
        )


Outputs = Mapping[str, NDArray[Any]]


def compare_task_cases(
    cases: Sequence[tuple[str, Outputs, Outputs]], limits: Mapping[str, TaskLimits]
) -> tuple[TaskAccuracy, ...]:
    """Compare all outputs of all cases, each given as (name, outputs, reference).

    Each output with `pooled_l2` has one more comparison, over all cases together, whose case is
    `POOLED`.

    Raises:
        BundleError: shapes differ.
    """
    results = [each for case in cases for each in compare_tasks(*case, limits)]
    for name, limit in limits.items():
        given = [(got[name], want[name]) for _, got, want in cases if name in got]
        if limit.pooled_l2 is not None and given:
            all_got = np.concatenate([got.ravel() for got, _ in given])
            all_want = np.concatenate([want.ravel() for _, want in given])
            alone = TaskLimits(relative_l2=limit.pooled_l2)
            results.append(compare_values(POOLED, name, all_got, all_want, alone))
    return tuple(results)


def compare_tasks(
    case: str, got: Outputs, want: Outputs, limits: Mapping[str, TaskLimits]
) -> list[TaskAccuracy]:
    """Compare every output of `got` that has limits with `want`."""
    results = []
    for name, limit in limits.items():
        if name not in got:
            continue
        if want[name].dtype == np.uint8:
            margins = class_margins(want[scores_name(name)], want[name].shape[1:])
            results.append(compare_classes(case, name, got[name], want[name], margins, limit))
        else:
            results.append(compare_values(case, name, got[name], want[name], limit))
    return results
