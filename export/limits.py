"""Measures the accuracy limits of a graph at export, with its weights, on photographs.

How much a rounding error grows depends on the weights. Therefore both the noise of float32 and the
error of autocast, the official evaluation's precision, are measured with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dinov2rt.bundle.accuracy import compare, compare_cases, is_pooled
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import (
    FLOAT32_ERROR,
    FLOAT32_LIMITS,
    INT8_LIMITS,
    POOLED,
    Limits,
    TaskLimits,
)
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import Extras, InputFormat, is_token_output
from dinov2rt.export.golden import eager_case, eager_outputs, golden_pixels, small_size
from dinov2rt.export.heads.limits import (
    Run,
    condition_numbers,
    float32_task_limits,
    half_task_limits,
    int8_task_limits,
    task_outputs,
)
from dinov2rt.export.model import Dinov2

_DTYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}

ALLOWANCE = 1.4
"""The allowed relative error of a graph, as a multiple of the error of autocast on a CPU.

Correct implementations reach at most 1.24; the nearest wrong one, a residual stream in half,
reaches 2.2. See docs/adr/0007.
"""

_PHOTOS = ("astronaut.jpg", "chelsea.jpg", "coffee.jpg", "hubble.jpg")

# 1 - cos grows with the square of the error, and the worst token of all cases is compared with the
# worst token of a few cases.
_COSINE_ALLOWANCE = 4.0

# Torch's half kernels on a CPU are many times slower than its float32 kernels.
_MOST_PIXELS = 224 * 224

_NOISE_ALLOWANCE = 2.0

_NO_LIMITS = Limits(cosine_min=-1.0)

_MOST_ERROR = 1e6
"""If the eager outputs are zero, a relative error is unbounded; a limit must be finite."""


@dataclass(frozen=True, slots=True)
class MeasuredLimits:
    """The least agreement that passes: for tokens, and for each other output by name."""

    tokens: Limits
    tasks: dict[str, TaskLimits]


def measure(
    model: Dinov2, cases: Sequence[GoldenCase], extras: Extras, precision: Precision
) -> MeasuredLimits:
    """The least agreement with the eager `model` that passes for a graph of `precision`."""
    if precision is Precision.FP32:
        runs = nudged_runs(model, cases, extras)
        return _measured(model, runs, _float32_limits(runs), _NOISE_ALLOWANCE)
    if precision is Precision.INT8:
        return MeasuredLimits(INT8_LIMITS, int8_task_limits(task_outputs(cases)))
    runs = autocast_runs(model, cases, extras, precision)
    return _measured(model, runs, _autocast_limits(runs), ALLOWANCE)


def _measured(
    model: Dinov2, runs: Sequence[Run], tokens: Limits, allowance: float
) -> MeasuredLimits:
    """The limits of `tokens`, and of heads, because a user's own head may amplify an error."""
    images = [torch.from_numpy(_normalized(model, case)) for case, _ in runs]
    conditions = condition_numbers(model, images, [case.outputs for case, _ in runs])
    error = FLOAT32_ERROR if tokens.relative_l2 is None else tokens.relative_l2
    least = {name: _error_limit(error * number) for name, number in conditions.items()}
    measure_tasks = float32_task_limits if tokens.pooled_l2 is None else half_task_limits
    return MeasuredLimits(tokens, measure_tasks(runs, allowance, least))


def nudged_runs(model: Dinov2, cases: Sequence[GoldenCase], extras: Extras) -> list[Run]:
    """The eager model on images that are one unit in the last place larger."""
    return [(case, _nudged(model, case, extras)) for case in cases]


def autocast_runs(
    model: Dinov2, cases: Sequence[GoldenCase], extras: Extras, precision: Precision
) -> list[Run]:
    """The official regime in half `precision`, on cases up to 224 x 224 and on small crops."""
    small = [case for case in cases if np.prod(case.size) <= _MOST_PIXELS]
    small += _crops(model, InputFormat.PIXELS, extras)
    return [(case, _autocast(model, case, extras, precision)) for case in small]


def float32_limits(model: Dinov2, cases: Sequence[GoldenCase], extras: Extras) -> Limits:
    """1e-5, or twice the output's change for one unit in the last place of the input.

    The first is about ten times the noise of well-behaved weights. If the second is larger, no two
    float32 implementations agree better, not even the official one on two machines.
    """
    return _float32_limits(nudged_runs(model, cases, extras))


def _float32_limits(runs: Sequence[Run]) -> Limits:
    compared = [
        compare(case.name, name, value, case.reference(name), _NO_LIMITS)
        for case, got in runs
        for name, value in got.items()
        if is_token_output(name)
    ]
    noise = max(output.relative_l2 for output in compared)
    worst_cosine = min(output.cosine_min for output in compared)
    return Limits(
        cosine_min=min(FLOAT32_LIMITS.cosine_min, _cosine_limit(worst_cosine)),
        relative_l2=_error_limit(_NOISE_ALLOWANCE * noise),
    )


def autocast_limits(
    model: Dinov2, cases: Sequence[GoldenCase], extras: Extras, precision: Precision
) -> Limits:
    """Limits for a graph of half `precision`: autocast's error with these weights, and 40 % more.

    Autocast is how the official evaluation ran; its error depends on the weights. It is measured on
    the golden cases up to 224 x 224 and on small crops of all photographs. CLS and register tokens
    are pooled over all of them; of patch tokens the worst case counts.
    """
    return _autocast_limits(autocast_runs(model, cases, extras, precision))


def _autocast_limits(runs: Sequence[Run]) -> Limits:
    results = [(case.name, _tokens(got), case.outputs) for case, got in runs]
    compared = compare_cases(results, replace(_NO_LIMITS, pooled_l2=np.inf))
    tokens = [each for each in compared if not is_pooled(each.output)]
    pooled = [each for each in compared if each.case == POOLED]
    # If autocast is exact (layer scales of 0), the limits of float32 apply.
    return Limits(
        cosine_min=min(
            FLOAT32_LIMITS.cosine_min,
            _cosine_limit(min(output.cosine_min for output in compared)),
        ),
        relative_l2=_error_limit(ALLOWANCE * max(output.relative_l2 for output in tokens)),
        pooled_l2=_error_limit(ALLOWANCE * max(output.relative_l2 for output in pooled)),
    )


def _tokens(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in outputs.items() if is_token_output(name)}


def _crops(model: Dinov2, input_format: InputFormat, extras: Extras) -> Iterator[GoldenCase]:
    for photo in _PHOTOS:
        pixels = golden_pixels(small_size(model.architecture), (photo,))
        yield eager_case(model, photo, pixels, input_format, extras)


def _autocast(
    model: Dinov2, case: GoldenCase, extras: Extras, precision: Precision
) -> dict[str, np.ndarray]:
    with torch.autocast("cpu", dtype=_DTYPES[precision]):
        return eager_outputs(model, torch.from_numpy(_normalized(model, case)), extras)


def _nudged(model: Dinov2, case: GoldenCase, extras: Extras) -> dict[str, np.ndarray]:
    images = _normalized(model, case)
    nudged = np.nextafter(images, np.float32(np.inf), dtype=np.float32)
    return eager_outputs(model, torch.from_numpy(nudged), extras)


def _normalized(model: Dinov2, case: GoldenCase) -> np.ndarray:
    return model.normalization(case.images) if case.images.dtype == np.uint8 else case.images


def _cosine_limit(worst_cosine: float) -> float:
    return max(-1.0, 1 - _COSINE_ALLOWANCE * (1 - worst_cosine))


def _error_limit(measured: float) -> float:
    return min(_MOST_ERROR, max(FLOAT32_ERROR, measured))
