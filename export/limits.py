"""How far half precision may be off: measured at export, on the same weights and photographs."""

from collections.abc import Sequence

import numpy as np
import torch

from dinov2rt.export.golden import eager_outputs
from dinov2rt.export.model import Dinov2
from dinov2rt.runtime.accuracy import GoldenCase, Limits, compare
from dinov2rt.runtime.normalization import normalize
from dinov2rt.runtime.precision import Precision

_DTYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}

ALLOWANCE = 1.25
"""How much larger than the official regime's the relative error of a graph may be."""

# 1 - cos goes with the square of the error, and the worst token of all cases is compared with the
# worst of few.
_COSINE_ALLOWANCE = 4.0

# Torch's half kernels on a CPU are many times slower than those of float32.
_MOST_PIXELS = 224 * 224

_NO_LIMITS = Limits(cosine_min=-1.0, relative_l2=float("inf"))


def autocast_limits(
    model: Dinov2, cases: Sequence[GoldenCase], layers: tuple[int, ...], precision: Precision
) -> Limits:
    """Limits for a graph of half `precision`: 1.25 times the error of autocast with these weights.

    Autocast is how the official evaluation ran; its error depends on the weights. The worst output
    of the golden cases up to 224 x 224 counts.
    """
    compared = [
        compare(case.name, name, got, case.reference(name), _NO_LIMITS)
        for case in cases
        if np.prod(case.size) <= _MOST_PIXELS
        for name, got in _autocast(model, case, layers, precision).items()
    ]
    worst_l2 = max(output.relative_l2 for output in compared)
    worst_cosine = min(output.cosine_min for output in compared)
    return Limits(
        cosine_min=1 - _COSINE_ALLOWANCE * (1 - worst_cosine),
        relative_l2=ALLOWANCE * worst_l2,
    )


def _autocast(
    model: Dinov2, case: GoldenCase, layers: tuple[int, ...], precision: Precision
) -> dict[str, np.ndarray]:
    images = normalize(case.images) if case.images.dtype == np.uint8 else case.images
    with torch.autocast("cpu", dtype=_DTYPES[precision]):
        return eager_outputs(model, torch.from_numpy(images), layers)
