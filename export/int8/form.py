"""A form: all products of a model rounded in one way, and ranked by the error this causes."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.export.folding import split_qkv
from dinov2rt.export.int8.activations import Activations, Steps, static_steps
from dinov2rt.export.int8.calibration import Calibration
from dinov2rt.export.int8.drawings import drawings
from dinov2rt.export.int8.gptq import Int8Product, round_products
from dinov2rt.export.int8.graph import product_weights, to_int8
from dinov2rt.export.int8.sensitivity import rank
from dinov2rt.export.model import Dinov2

_RANKED_ON, _RANKED_PATCHES = range(4), (8, 8)
_ROUNDED_ON, _ROUNDED_PATCHES = range(20, 36), (16, 16)
RANGED_ON = range(20, 100)
"""Seeds of the crops whose activations give ranges of static rounding; weights need fewer."""


def _float32() -> Mapping[str, Int8Product]:
    return {}


@dataclass(frozen=True, slots=True)
class Form:
    """All products of a float32 graph, rounded.

    `ranked` holds their names, the most harmful first. `instead` returns replacements, which are
    rounded in another way; a product without a replacement stays float32.
    """

    rounded: Mapping[str, Int8Product]
    ranked: tuple[str, ...]
    instead: Callable[[], Mapping[str, Int8Product]] = _float32

    def products(self, count: int) -> dict[str, Int8Product]:
        """The int8 products if the first `count` of the ranking are replaced."""
        kept = {name: self.rounded[name] for name in self.ranked[count:]}
        if count == 0:
            return kept
        others = self.instead()
        return kept | {name: others[name] for name in self.ranked[:count] if name in others}

    def build(self, model: ir.Model, count: int) -> ir.Model:
        """A copy of `model`, a folded float32 graph, with the products of `products(count)`."""
        graph, rounded = model.clone(), self.products(count)
        to_int8(graph, rounded, set(self.ranked) - rounded.keys())
        split_qkv(graph)
        return graph


def make_form(
    model: ir.Model, eager: Dinov2, photos: Calibration, activations: Activations
) -> Form:
    """Round and rank the products of `model`, the folded graph of `eager`, on crops of `photos`."""
    is_static = activations is Activations.STATIC
    steps = static_steps(eager, range_images(eager, photos)) if is_static else None
    return form_of(eager, photos, product_weights(model), steps)


def range_images(eager: Dinov2, photos: Calibration) -> Iterator[torch.Tensor]:
    """Images float32 [1, 3, H, W] whose activations give the ranges of static rounding.

    Crops of `photos` come first, one for each seed of `RANGED_ON`, then the drawings.
    """
    size = size_of(eager, _ROUNDED_PATCHES)
    crops = (photos.crops(range(seed, seed + 1), size) for seed in RANGED_ON)
    for pixels in itertools.chain(crops, drawings(size)):
        yield torch.from_numpy(eager.normalization(pixels))


def form_of(
    eager: Dinov2,
    photos: Calibration,
    weights: Mapping[str, NDArray[np.float32]],
    steps: Mapping[str, Steps] | None,
) -> Form:
    """Round `weights` [in, out] of all products of `eager`, and rank the products.

    Args:
        eager: the eager model.
        photos: their crops give the activations.
        weights: by product; of `eager`, or of a graph that computes the same.
        steps: the steps of static activations, by product; None for dynamic rounding.
    """

    def images(seeds: range, patches: tuple[int, int]) -> torch.Tensor:
        crops = photos.crops(seeds, size_of(eager, patches))
        return torch.from_numpy(eager.normalization(crops))

    rounded = round_products(eager, images(_ROUNDED_ON, _ROUNDED_PATCHES), weights, steps)
    return Form(rounded, rank(eager, images(_RANKED_ON, _RANKED_PATCHES), steps))


def size_of(model: Dinov2, patches: tuple[int, int]) -> ImageSize:
    """Rows and columns of patches, in pixels."""
    rows, cols = patches
    return ImageSize(rows * model.architecture.patch_size, cols * model.architecture.patch_size)
