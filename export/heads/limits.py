"""How far outputs that are no tokens may be off: attention, logits, scores, depth and classes.

As for tokens, it is measured at export, on the same weights and photographs; see `limits.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import FLOAT32_ERROR, INT8_CLS_COSINE, POOLED, TaskLimits
from dinov2rt.bundle.signature import ATTENTION, is_token_output, scores_name
from dinov2rt.bundle.tasks.accuracy import TaskAccuracy, compare_task_cases
from dinov2rt.export.heads.answers import center_padded, head_levels, pads_images
from dinov2rt.export.heads.checkpoint import EagerHead
from dinov2rt.export.heads.eager import Classifier, Level
from dinov2rt.export.heads.own import OWN_DATA
from dinov2rt.export.model import Dinov2

LEAST_MARGIN = 1e-4
"""Two float32 implementations may disagree about a class whose score is that much ahead."""

_MARGIN_IN_ERRORS = 8.0
"""Errors of two scores that differ by their root mean square times that are one in a million."""

_OFF_ALLOWANCE = 1e-3

_INT8_ERROR = 0.05

ATTENTION_FACTOR = 4.0
"""The allowed relative error of attention, as a multiple of that of tokens: see docs/adr/0007.

It applies where the limit of tokens is fixed, in float32 and int8.
"""

_ATTENTION_ALLOWANCE = 2.0
"""The allowed error of attention in half precision, as a multiple of the error of autocast.

It is more than that of tokens, because a few heads of a few images make most of the error: correct
graphs reach 0.7 to 1.3. See docs/adr/0007.
"""


Run = tuple[GoldenCase, Mapping[str, np.ndarray]]
"""A case, and what the eager model returns for it in other circumstances."""


def task_outputs(cases: Sequence[GoldenCase]) -> list[str]:
    """The outputs of the eager model that are no tokens."""
    return [name for name in cases[0].outputs if not is_token_output(name)]


@torch.inference_mode()
def condition_numbers(
    model: Dinov2, images: Sequence[torch.Tensor], outputs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """The factor by which the user's own heads can enlarge a relative error of tokens.

    A head that was fitted on few or similar images subtracts large numbers: the error of tokens,
    times the norm of its weights, then meets scores that are small. Official heads do not.

    Args:
        model: the backbone with its heads.
        images: of the cases, normalised [B, 3, H, W].
        outputs: of the eager model for them, in the same order.

    Returns:
        The largest `|W| |x| / |W x + b|` over all cases, by output; |W| is the spectral norm.
    """
    found: dict[str, float] = {}
    for image, want in zip(images, outputs, strict=True):
        if pads_images(model.task_heads):
            image = center_padded(image, model.architecture.patch_size)
        for head, levels in head_levels(model, image):
            if head.spec.data != OWN_DATA:
                continue
            name, read = _scores_of(head), _read(head.module, levels)
            size = _spectral_norm(head.module) * float(torch.linalg.vector_norm(read))
            ratio = size / max(float(np.linalg.norm(want[name])), 1e-12)
            found[name] = max(ratio, found.get(name, 0.0))
    return found


def _scores_of(head: EagerHead) -> str:
    """The output that holds the head's scores, of images or of patches."""
    return scores_name(head.entry.output) if head.spec.is_dense else head.entry.output


def _read(module: nn.Module, levels: Sequence[Level]) -> torch.Tensor:
    if isinstance(module, Classifier):
        return module.features(levels)
    return torch.cat([level.patches for level in levels], dim=1)


def _spectral_norm(module: nn.Module) -> float:
    name = "weight" if isinstance(module, Classifier) else "conv_seg.weight"
    return float(torch.linalg.matrix_norm(module.state_dict()[name].flatten(1), ord=2))


def float32_task_limits(
    runs: Sequence[Run], allowance: float, least: Mapping[str, float] = MappingProxyType({})
) -> dict[str, TaskLimits]:
    """Limits by output: `allowance` times what was measured in `runs`, or float32's own.

    Attention is limited over all cases together, the other outputs in each case.

    Args:
        runs: what the eager model returns for nudged images.
        allowance: the factor.
        least: outputs whose relative error may in any case be as large.
    """
    limits = _case_limits(runs, allowance, least)
    floor = {ATTENTION: ATTENTION_FACTOR * FLOAT32_ERROR}
    return limits | _pooled(limits, runs, {ATTENTION: allowance}, {**least, **floor})


def half_task_limits(
    runs: Sequence[Run], allowance: float, least: Mapping[str, float] = MappingProxyType({})
) -> dict[str, TaskLimits]:
    """As `float32_task_limits`, from `runs` under autocast, with logits over all cases as well.

    An image has one vector of logits, as it has one CLS token.
    """
    limits = _case_limits(runs, allowance, least)
    allowances = {name: allowance for name in limits if name.startswith("logits")}
    return limits | _pooled(limits, runs, allowances | {ATTENTION: _ATTENTION_ALLOWANCE}, least)


def int8_task_limits(names: Sequence[str]) -> dict[str, TaskLimits]:
    """Limits of the outputs `names` in int8: fixed, like those of its tokens.

    The search for an int8 graph uses only tokens. Vectors of equal length and the cosine that CLS
    tokens must have differ by 4.5 %. Attention may differ by `ATTENTION_FACTOR` times as much over
    all cases together, the other outputs by 5 % in each case.
    """
    limits = dict.fromkeys(names, TaskLimits(relative_l2=_INT8_ERROR))
    if ATTENTION in limits:
        cls_error = math.sqrt(2 * (1 - INT8_CLS_COSINE))
        limits[ATTENTION] = TaskLimits(pooled_l2=ATTENTION_FACTOR * cls_error)
    return limits


def _case_limits(
    runs: Sequence[Run], allowance: float, least: Mapping[str, float] = MappingProxyType({})
) -> dict[str, TaskLimits]:
    """Limits of each case alone; for the arguments see `float32_task_limits`."""
    cases = [case for case, _ in runs]
    unlimited = {name: _kind(name, cases[0].outputs) for name in task_outputs(cases)}
    measured = _compared(runs, unlimited)
    errors = {
        name: max(FLOAT32_ERROR, allowance * _largest_error(name, measured), least.get(name, 0.0))
        for name in unlimited
    }
    return {
        name: _limits(name, limits, errors, allowance, measured, cases)
        for name, limits in unlimited.items()
    }


def _pooled(
    limits: Mapping[str, TaskLimits],
    runs: Sequence[Run],
    allowances: Mapping[str, float],
    least: Mapping[str, float],
) -> dict[str, TaskLimits]:
    """The `limits` of the outputs in `allowances`, for the error over all cases together."""
    few = [name for name in allowances if name in limits]
    found: dict[str, TaskLimits] = {}
    for each in _compared(runs, dict.fromkeys(few, TaskLimits(pooled_l2=np.inf))):
        if each.case == POOLED and each.relative_l2 is not None:
            name = each.output
            measured = allowances[name] * each.relative_l2
            error = max(FLOAT32_ERROR, measured, least.get(name, 0.0))
            found[name] = replace(limits[name], relative_l2=None, pooled_l2=error)
    return found


def _compared(runs: Sequence[Run], limits: Mapping[str, TaskLimits]) -> tuple[TaskAccuracy, ...]:
    return compare_task_cases([(case.name, got, case.outputs) for case, got in runs], limits)


def _kind(name: str, outputs: Mapping[str, np.ndarray]) -> TaskLimits:
    """The comparisons that apply to an output, with limits that everything passes."""
    if name.startswith("depth"):
        return TaskLimits(relative_l2=np.inf, most_off=1.0)
    if outputs[name].dtype == np.uint8 or name.startswith("logits"):
        return TaskLimits(relative_l2=np.inf, most_off=1.0, margin=np.inf)
    return TaskLimits(relative_l2=np.inf)


def _limits(
    name: str,
    kind: TaskLimits,
    errors: Mapping[str, float],
    allowance: float,
    measured: Sequence[TaskAccuracy],
    cases: Sequence[GoldenCase],
) -> TaskLimits:
    is_class_map = cases[0].outputs[name].dtype == np.uint8
    scores = scores_name(name) if is_class_map else name
    margin = None
    if kind.margin is not None:
        size = max(float(np.sqrt(np.mean(case.outputs[scores] ** 2))) for case in cases)
        is_noise = errors[scores] <= FLOAT32_ERROR
        margin = LEAST_MARGIN if is_noise else _MARGIN_IN_ERRORS * errors[scores] * size
    off = [result.share_off for result in measured if result.output == name]
    most_off = None
    # Of a few crops, one with another class would be a large share: the margin decides.
    if kind.most_off is not None and not name.startswith("logits"):
        largest = max(share for share in off if share is not None)
        most_off = allowance * largest + _OFF_ALLOWANCE
    return TaskLimits(None if is_class_map else errors[name], most_off, margin)


def _largest_error(name: str, measured: Sequence[TaskAccuracy]) -> float:
    errors = [each.relative_l2 for each in measured if each.output == name]
    return max((error for error in errors if error is not None), default=0.0)
