"""Rounds weights to int8 by GPTQ, so that the rounding errors compensate one another.

Rounding to the nearest integer leaves an error of up to half a step in each weight. Activations are
correlated, so the weights of correlated inputs can cancel the error of one weight in the output.
GPTQ rounds one input channel after the other, and changes the channels that are not rounded yet to
compensate its error on the activations of photographs
(E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, ICLR 2023, arXiv:2210.17323, algorithm 1).
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dinov2rt.export.int8.activations import Steps
from dinov2rt.export.int8.products import products
from dinov2rt.export.model import Dinov2

_LARGEST = 127
_DAMPING = 0.01
"""The share of the mean second moment that is added to each. It keeps weights from growing in
directions that the calibration images lack (section 3.3 of the paper)."""

_BLOCK = 128
"""The number of input channels whose errors are passed on in one matrix product."""


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight: `integers` int8 [in, out] times `scale` float32 [out]."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]


def to_nearest(weight: NDArray[np.float32]) -> Int8Weight:
    """Round each number of `weight` [in, out] to the nearest integer."""
    scale = _scale(weight)
    return Int8Weight(np.rint(weight / scale).astype(np.int8), scale)


@dataclass(frozen=True, slots=True)
class Int8Product:
    """The weights of a product, and the steps of its activations if they are static.

    With `steps`, `weight` applies to activations in units of `steps.scale`.
    """

    weight: Int8Weight
    steps: Steps | None = None


@torch.inference_mode()
def round_products(
    model: Dinov2,
    images: Tensor,
    weights: Mapping[str, NDArray[np.float32]],
    steps: Mapping[str, Steps] | None = None,
) -> dict[str, Int8Product]:
    """Round the `weights` [in, out] of all products, for the activations on `images`.

    Args:
        model: the eager model, whose products have the same activations as the graph's products.
        images: float32 [B, 3, H, W].
        weights: the graph's weights, by product, e.g. `blocks.3.qkv`. Factors that were folded into
            output channels do not matter, as each output channel has its own scale.
        steps: the steps of static activations, by product; None if they are dynamic.
    """
    rounded: dict[str, Int8Product] = {}
    names: dict[nn.Module, str] = {linear: name for name, linear in products(model).items()}

    def hook(linear: nn.Module, given: tuple[Tensor]) -> None:
        name = names[linear]
        tokens, own = given[0].flatten(0, -2), steps[name] if steps else None
        rounded[name] = round_product(weights[name], tokens, own)

    with ExitStack() as hooks:
        for linear in names:
            hooks.callback(linear.register_forward_pre_hook(hook).remove)
        model.forward_features(images)
    return rounded


def round_product(
    weight: NDArray[np.float32], tokens: Tensor, steps: Steps | None = None
) -> Int8Product:
    """Round `weight` [in, out] for activations `tokens` [N, in], in units of `steps` if given."""
    if steps is None:
        return Int8Product(gptq(weight, tokens.T @ tokens))
    scaled = tokens / torch.from_numpy(steps.scale)
    return Int8Product(gptq(weight * steps.scale[:, None], scaled.T @ scaled), steps)


def gptq(weight: NDArray[np.float32], moments: Tensor) -> Int8Weight:
    """Round `weight` [in, out] for inputs whose second moments are `moments` [in, in].

    The input channels with the largest moments come first, while most channels are left to
    compensate their errors.
    """
    scale = _scale(weight)
    order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    passed_on = _inverse_root(moments.double()[order][:, order])
    left = torch.from_numpy(weight / scale).double()[order]  # in steps; rounded row by row
    integers = torch.empty_like(left)
    count = len(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = torch.empty_like(left[start:stop])
        for row in range(start, stop):
            integers[row] = left[row].round().clamp(-_LARGEST, _LARGEST)
            errors[row - start] = (left[row] - integers[row]) / passed_on[row, row]
            left[row:stop] -= torch.outer(passed_on[row, row:stop], errors[row - start])
        left[stop:] -= passed_on[start:stop, stop:].T @ errors
    back = torch.argsort(order)
    return Int8Weight(integers[back].to(torch.int8).numpy(), scale)


def _inverse_root(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of `moments` [in, in], damped."""
    diagonal = moments.diagonal()
    # an input that is always 0 has no moment, and its weights do not matter
    damping = _DAMPING * diagonal.mean() if diagonal.any() else torch.ones(())
    damped = moments + damping * torch.eye(len(moments), dtype=moments.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    root: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return root


def _scale(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale of each output channel: its largest weight / the largest integer."""
    peaks = np.abs(weight).max(axis=0)
    return np.where(peaks > 0, peaks / np.float32(_LARGEST), np.float32(1))
