"""A form: all products of a model rounded in one way, and ranked by the error this causes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.export.folding import split_qkv
from dinov2rt.export.int8.activations import Activations, static_steps
from dinov2rt.export.int8.calibration import Calibration
from dinov2rt.export.int8.gptq import Int8Product, round_products
from dinov2rt.export.int8.graph import product_weights, to_int8
from dinov2rt.export.int8.sensitivity import rank
from dinov2rt.export.model import Dinov2

_RANKED_ON, _RANKED_PATCHES = range(4), (8, 8)
_ROUNDED_ON, _ROUNDED_PATCHES = range(20, 36), (16, 16)
RANGED_ON = range(20, 100)
"""Seeds of the crops that give the ranges of static activations; weights need fewer crops."""


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

    def images(seeds: range, patches: tuple[int, int]) -> torch.Tensor:
        crops = photos.crops(seeds, size_of(eager, patches))
        return torch.from_numpy(eager.normalization(crops))

    batches = (images(range(seed, seed + 1), _ROUNDED_PATCHES) for seed in RANGED_ON)
    steps = static_steps(eager, batches) if activations is Activations.STATIC else None
    weights = product_weights(model)
    rounded = round_products(eager, images(_ROUNDED_ON, _ROUNDED_PATCHES), weights, steps)
    ranked = rank(eager, images(_RANKED_ON, _RANKED_PATCHES), steps)
    return Form(rounded, ranked)


def size_of(model: Dinov2, patches: tuple[int, int]) -> ImageSize:
    """Rows and columns of patches, in pixels."""
    rows, cols = patches
    return ImageSize(rows * model.architecture.patch_size, cols * model.architecture.patch_size)
