"""Which products of an int8 graph stay float32: as few as the limits allow, found by measurement.

Weights are rounded once (`gptq.py`), and products ranked once (`sensitivity.py`). Then the graph
itself, with the first k of that rank in float32, runs in OpenVINO on crops of photographs, until
the least k is found that holds the limits with a margin. What was found must hold the limits on
other crops as well.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dinov2rt.bundle.accuracy import OutputAccuracy, compare, nearest_lost
from dinov2rt.bundle.entries import QuantizationEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import (
    INT8_CLS_COSINE,
    INT8_KEPT_NEAREST,
    INT8_LIMITS,
    INT8_TOKEN_COSINE_P1,
    NEAREST_TIE,
    Limits,
)
from dinov2rt.bundle.signature import Extras, InputFormat, is_token_output
from dinov2rt.errors import ExportError
from dinov2rt.export.crops import photo_crops
from dinov2rt.export.folding import split_qkv
from dinov2rt.export.golden import eager_case
from dinov2rt.export.int8.gptq import Int8Weight, round_products
from dinov2rt.export.int8.graph import product_weights, to_int8
from dinov2rt.export.int8.sensitivity import rank
from dinov2rt.export.model import Dinov2
from dinov2rt.runtime.backends.openvino import OpenVinoBackend

_MARGIN = 0.5
"""How much of the error that the limits allow the search does: other images may be worse."""

_STRICTER = Limits(
    cosine_min=1 - _MARGIN * (1 - INT8_CLS_COSINE),
    cosine_p1=1 - _MARGIN * (1 - INT8_TOKEN_COSINE_P1),
)

_RANKED_ON, _RANKED_PATCHES = range(4), (8, 8)
# Rows and columns. Small crops are the harder case: one that is flat has nothing beside it.
_PATCHES = ((16, 16), (7, 9))
_SEARCHED_ON = (range(4, 8), range(8, 12))
_CHECKED_ON = tuple(range(seed, seed + 1) for seed in range(12, 20))
_GALLERY_PATCHES = (16, 16)
_SEARCHED_GALLERY, _CHECKED_GALLERY = range(100, 200), range(200, 300)
_ROUNDED_ON, _ROUNDED_PATCHES = range(20, 36), (16, 16)


@dataclass(frozen=True, slots=True)
class Crops:
    """What the eager model says: in `cases` every token counts, in `gallery` CLS and neighbours."""

    cases: tuple[GoldenCase, ...]
    gallery: GoldenCase


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the search needs of the eager model: the rank, and crops to search and to check on."""

    ranked: tuple[str, ...]
    searched_on: Crops
    checked_on: Crops


@dataclass(frozen=True, slots=True)
class _Measured:
    """A graph that was tried, on crops."""

    outputs: tuple[OutputAccuracy, ...]
    nearest_lost: NDArray[np.float64]

    @property
    def holds(self) -> bool:
        """Whether it keeps the limits that it was measured with, and the neighbours."""
        return self.kept_nearest >= INT8_KEPT_NEAREST and all(
            output.passed for output in self.outputs
        )

    @property
    def same_nearest(self) -> float:
        """The share of crops whose nearest neighbour is the one that eager finds."""
        return float((self.nearest_lost == 0).mean())

    @property
    def kept_nearest(self) -> float:
        """The share of crops whose nearest neighbour is as near as that, up to a tie."""
        return float((self.nearest_lost <= NEAREST_TIE).mean())

    @property
    def cosines(self) -> tuple[float, float]:
        """The smallest of a CLS token, and of the others at the first percentile."""
        return (
            min(output.cosine_min for output in self.outputs if output.cosine_p1 is None),
            min(output.cosine_p1 for output in self.outputs if output.cosine_p1 is not None),
        )


def gather(
    model: Dinov2,
    golden: Sequence[GoldenCase],
    input_format: InputFormat,
    extras: Extras,
) -> Evidence:
    """Rank the products of `model`, and compute what it says of the crops.

    The `golden` cases are among those that are checked.
    """

    def case(seeds: range, patches: tuple[int, int]) -> GoldenCase:
        size = _size(model, patches)
        pixels = photo_crops(seeds, size)
        return eager_case(model, f"{seeds} at {size}", pixels, input_format, extras)

    def crops(batches: Sequence[range], gallery: range) -> Crops:
        cases = tuple(case(seeds, patches) for patches in _PATCHES for seeds in batches)
        return Crops(cases, case(gallery, _GALLERY_PATCHES))

    ranked_on = photo_crops(_RANKED_ON, _size(model, _RANKED_PATCHES))
    ranked = rank(model, torch.from_numpy(model.normalization(ranked_on)))
    checked = crops(_CHECKED_ON, _CHECKED_GALLERY)
    return Evidence(
        ranked,
        searched_on=crops(_SEARCHED_ON, _SEARCHED_GALLERY),
        checked_on=Crops((*checked.cases, *golden), checked.gallery),
    )


def _size(model: Dinov2, patches: tuple[int, int]) -> ImageSize:
    rows, cols = patches
    return ImageSize(rows * model.architecture.patch_size, cols * model.architecture.patch_size)


def round_weights(model: ir.Model, eager: Dinov2) -> dict[str, Int8Weight]:
    """The weights of all products of `model`, the float32 graph of `eager`, as int8."""
    pixels = photo_crops(_ROUNDED_ON, _size(eager, _ROUNDED_PATCHES))
    images = torch.from_numpy(eager.normalization(pixels))
    return round_products(eager, images, product_weights(model))


def search(
    model: ir.Model,
    weights: Mapping[str, Int8Weight],
    evidence: Evidence,
    scratch: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[ir.Model, QuantizationEntry]:
    """The int8 graph with the fewest float32 products that holds the limits, and what it took.

    Args:
        model: the float32 graph, not split; it stays as it is.
        weights: those of its products, see `round_weights`.
        evidence: see `gather`.
        scratch: a folder in which each graph that is tried is written, to be run.
        progress: told what is being done.

    Raises:
        ExportError: it does not, however many stay float32.
    """
    ranked = evidence.ranked

    def build(count: int) -> ir.Model:
        progress(f"trying int8 with {count} of {len(ranked)} products in float32")
        graph = model.clone()
        to_int8(graph, weights, ranked[:count])
        split_qkv(graph)
        return graph

    def holds(count: int) -> bool:
        return _measure(build(count), evidence.searched_on, _STRICTER, scratch).holds

    for count in range(_least(holds, len(ranked) - 1), len(ranked)):
        graph = build(count)
        measured = _measure(graph, evidence.checked_on, INT8_LIMITS, scratch)
        if measured.holds:
            entry = QuantizationEntry(
                tuple(sorted(ranked[:count])),
                *measured.cosines,
                measured.same_nearest,
                measured.kept_nearest,
            )
            return graph, entry
    raise ExportError(_refusal(ranked, measured))


def _least(holds: Callable[[int], bool], most: int) -> int:
    """The least count that `holds`, if more are never worse; `most`, untried, if no lower does."""
    low, high = -1, 0  # low does not hold
    while high < most and not holds(high):
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _measure(model: ir.Model, crops: Crops, limits: Limits, scratch: Path) -> _Measured:
    """Run `model` in OpenVINO on every crop."""
    input_name = str(model.graph.inputs[0].name)
    names = [str(output.name) for output in model.graph.outputs]
    output_names = list(filter(is_token_output, names))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        file = Path(folder, "int8.onnx")
        ir.save(model, file, external_data="int8.onnx.data")
        backend = OpenVinoBackend(file, threads=None)
        try:
            compared = [
                compare(case.name, name, got, case.reference(name), limits)
                for case in crops.cases
                for name, got in backend.infer({input_name: case.images}, output_names).items()
            ]
            cls_tokens = _cls_tokens(backend, input_name, crops.gallery.images)
        finally:
            backend.close()
    want = crops.gallery.reference("cls_token")
    compared.append(compare(crops.gallery.name, "cls_token", cls_tokens, want, limits))
    return _Measured(tuple(compared), nearest_lost(cls_tokens, want))


def _cls_tokens(
    backend: OpenVinoBackend, input_name: str, images: NDArray[Any]
) -> NDArray[np.float32]:
    """Those of many images, one at a time, since all at once take much memory."""
    return np.concatenate(
        [backend.infer({input_name: image[None]}, ["cls_token"])["cls_token"] for image in images]
    )


def _refusal(ranked: Sequence[str], measured: _Measured) -> str:
    cls_token, others = measured.cosines
    return (
        f"int8 does not hold {INT8_LIMITS} and {INT8_KEPT_NEAREST:.0%} of nearest neighbours with "
        f"these weights: with all products but {ranked[-1]} in float32 it reaches {cls_token:.6f}, "
        f'{others:.6f} and {measured.kept_nearest:.1%}; leave "int8" out of the precisions'
    )
