"""Weights rounded to int8 so that the errors of a product's inputs make up for one another.

To the nearest integer, each weight is off by up to half a step, whatever the product is given.
Activations are correlated, though: what one weight adds to an output, the weights of the inputs
that come with it can take back. GPTQ rounds one input channel after the other and lets those that
are still to be rounded take over its error, as far as the activations of photographs allow
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
"""Of the mean second moment, added to each: keeps weights from growing along what calibration
images lack (section 3.3 of the paper)."""

_BLOCK = 128
"""Input channels whose errors are passed on to the rest in one product."""


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """`integers` int8 [in, out], to be multiplied by `scale` float32 [out]."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]


def to_nearest(weight: NDArray[np.float32]) -> Int8Weight:
    """`weight` [in, out] with each number rounded on its own."""
    scale = _scale(weight)
    return Int8Weight(np.rint(weight / scale).astype(np.int8), scale)


@dataclass(frozen=True, slots=True)
class Int8Product:
    """The weights of a product, and how its activations are rounded: statically, or None.

    With `steps`, `weight` is for activations in units of `steps.scale`.
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
    """`weights` [in, out], by product, e.g. `blocks.3.qkv`, rounded for what `model` gives them.

    Args:
        model: the eager model, whose products take the same activations as the graph's products.
        images: float32 [B, 3, H, W].
        weights: as they stand in the graph. Factors that were folded into output channels do not
            matter, as each output channel is rounded on its own.
        steps: of static activations, by product; dynamic ones have none.
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
    """`weight` [in, out], rounded for `tokens` [N, in] that are rounded with `steps`."""
    if steps is None:
        return Int8Product(gptq(weight, tokens.T @ tokens))
    scaled = tokens / torch.from_numpy(steps.scale)
    return Int8Product(gptq(weight * steps.scale[:, None], scaled.T @ scaled), steps)


def gptq(weight: NDArray[np.float32], moments: Tensor) -> Int8Weight:
    """`weight` [in, out], rounded for inputs whose second moments are `moments` [in, in].

    The input channels with the largest moments come first, while there is most left to take over
    their errors.
    """
    scale = _scale(weight)
    order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    passed_on = _inverse_root(moments.double()[order][:, order])
    left = torch.from_numpy(weight / scale).double()[order]  # in steps; rows are rounded in turn
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
    # an input that is always 0 has no moment, and its weights are free
    damping = _DAMPING * diagonal.mean() if diagonal.any() else torch.ones(())
    damped = moments + damping * torch.eye(len(moments), dtype=moments.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    root: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return root


def _scale(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """By output channel, the largest weight over the largest integer."""
    peaks = np.abs(weight).max(axis=0)
    return np.where(peaks > 0, peaks / np.float32(_LARGEST), np.float32(1))
