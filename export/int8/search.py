"""Searches for the int8 graph that is fastest within the limits, by measurement.

Products are rounded and ranked once (`form.py`). The graph then runs in OpenVINO on crops of
photographs, with static activations and the first k products of the ranking in bf16. The search
finds the smallest k that is within the limits, with a margin. On a CPU without bf16, the first k
products have dynamic activations instead; if no k is within the limits, all activations are dynamic
and the first k products stay float32. The result must be within the limits on other crops, too.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import (
    INT8_CLS_COSINE,
    INT8_KEPT_NEAREST,
    INT8_LIMITS,
    INT8_TOKEN_COSINE_P1,
    Limits,
)
from dinov2rt.bundle.precision import CalibrationEntry, Precision, QuantizationEntry
from dinov2rt.bundle.signature import Extras, InputFormat
from dinov2rt.errors import ExportError
from dinov2rt.export.golden import eager_case
from dinov2rt.export.int8.activations import Activations
from dinov2rt.export.int8.calibration import Calibration
from dinov2rt.export.int8.drawings import DRAWINGS, other_drawings
from dinov2rt.export.int8.form import RANGED_ON, Form, size_of
from dinov2rt.export.int8.gptq import Int8Product
from dinov2rt.export.int8.measurement import Crops, Measured, running, smallest_cosines
from dinov2rt.export.model import Dinov2
from dinov2rt.runtime.backends.openvino_int8 import fastest_rest

MARGIN = 0.5
"""The share of the allowed error that the search uses: other images may be worse."""

_STRICTER = Limits(
    cosine_min=1 - MARGIN * (1 - INT8_CLS_COSINE),
    cosine_p1=1 - MARGIN * (1 - INT8_TOKEN_COSINE_P1),
)

# Rows and columns. Small crops are the harder case: one that is flat has nothing beside it.
_PATCHES = ((16, 16), (7, 9))
_SEARCHED_ON = (range(4, 8), range(8, 12))
_CHECKED_ON = tuple(range(seed, seed + 1) for seed in range(12, 20))
_GALLERY_PATCHES = (16, 16)
_SEARCHED_GALLERY, _CHECKED_GALLERY = range(100, 200), range(200, 300)
_DRAWINGS_AT_ONCE = 8

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Outputs of the eager model for crops of `photos`, to search on and to check on.

    Those for `drawings` are measured, without an influence on the result.
    """

    photos: Calibration
    searched_on: Crops
    checked_on: Crops
    drawings: tuple[GoldenCase, ...]

    @property
    def entry(self) -> CalibrationEntry:
        """The record of it in the manifest."""
        return CalibrationEntry(
            paths=self.photos.paths,
            images=len(self.photos.photos),
            names_sha256=self.photos.names_sha256,
            rounded_on=len(RANGED_ON),
            searched_on=_crop_count(_SEARCHED_ON, _SEARCHED_GALLERY),
            checked_on=_crop_count(_CHECKED_ON, _CHECKED_GALLERY),
            drawings=DRAWINGS,
        )


def gather(
    model: Dinov2,
    golden: Sequence[GoldenCase],
    input_format: InputFormat,
    extras: Extras,
    photos: Calibration,
) -> Evidence:
    """Compute the outputs of `model` for crops of `photos`, and for drawings.

    The `golden` cases are added to the crops to check on.
    """

    def computed(name: str, pixels: NDArray[np.uint8]) -> GoldenCase:
        return eager_case(model, name, pixels, input_format, extras)

    def case(seeds: range, patches: tuple[int, int]) -> GoldenCase:
        size = size_of(model, patches)
        return computed(f"{seeds} at {size}", photos.crops(seeds, size))

    def crops(batches: Sequence[range], gallery: range) -> Crops:
        cases = tuple(case(seeds, patches) for patches in _PATCHES for seeds in batches)
        return Crops(cases, case(gallery, _GALLERY_PATCHES))

    checked = crops(_CHECKED_ON, _CHECKED_GALLERY)
    drawn = np.concatenate([*other_drawings(size_of(model, _GALLERY_PATCHES))])
    batches = np.split(drawn, range(_DRAWINGS_AT_ONCE, len(drawn), _DRAWINGS_AT_ONCE))
    return Evidence(
        photos,
        searched_on=crops(_SEARCHED_ON, _SEARCHED_GALLERY),
        checked_on=Crops((*checked.cases, *golden), checked.gallery),
        drawings=tuple(computed("drawings", pixels) for pixels in batches),
    )


def _crop_count(batches: Sequence[range], gallery: range) -> int:
    return len(_PATCHES) * sum(map(len, batches)) + len(gallery)


@dataclass(frozen=True, slots=True)
class _Trials:
    """Builds and runs trial graphs in the folder `scratch`, with everything else in `rest`."""

    model: ir.Model
    evidence: Evidence
    scratch: Path
    progress: Progress
    rest: Precision

    def build(self, form: Form, count: int) -> ir.Model:
        products, total = form.products(count), len(form.ranked)
        static = len(_static(products))
        self.progress(
            f"trying int8 with {static} of {total} products static, {len(products) - static} "
            f"dynamic, {total - len(products)} in {self.rest}"
        )
        return form.build(self.model, count)

    def least(self, form: Form) -> int:
        """The smallest number of replaced products that is within the limits with the margin."""

        def holds(count: int) -> bool:
            with running(self.build(form, count), self.scratch, self.rest) as graph:
                return graph.holds(self.evidence.searched_on, _STRICTER)

        return least_count(holds, len(form.ranked) - 1)

    def on_drawings(self, graph: ir.Model) -> tuple[float, float]:
        """The smallest cosine of a CLS token, and first percentile of other tokens, on drawings."""
        with running(graph, self.scratch, self.rest) as in_rest:
            return smallest_cosines([*in_rest.compare(self.evidence.drawings, INT8_LIMITS)])

    def check(self, graph: ir.Model) -> Measured:
        """Measure `graph` in `rest`, and then in float32, which other CPUs use; both must hold."""
        checked_on = self.evidence.checked_on
        with running(graph, self.scratch, self.rest) as in_rest:
            measured = in_rest.measure(checked_on, INT8_LIMITS)
        if self.rest is Precision.FP32 or not measured.holds:
            return measured
        with running(graph, self.scratch, Precision.FP32) as in_float32:
            also = in_float32.measure(checked_on, INT8_LIMITS)
        return measured if also.holds else also


def search(
    model: ir.Model,
    form_of: Callable[[Activations], Form],
    evidence: Evidence,
    scratch: Path,
    progress: Progress = lambda _: None,
) -> tuple[ir.Model, QuantizationEntry]:
    """Search for the int8 graph with the most static products that is within the limits.

    Products with static activations are the fastest, products that are not int8 the slowest.

    Args:
        model: the float32 graph, before `split_qkv`; it is not changed.
        form_of: makes a form of its products, see `make_form`.
        evidence: see `gather`.
        scratch: a folder for the files of trial graphs.
        progress: called with a line of text at each step.

    Returns:
        The graph, and its entry in the manifest.

    Raises:
        ExportError: no such graph is within the limits.
    """
    trials = _Trials(model, evidence, scratch, progress, fastest_rest())
    for form in _forms(form_of, trials.rest):
        for count in range(trials.least(form), len(form.ranked)):
            graph = trials.build(form, count)
            measured = trials.check(graph)
            if measured.holds:
                return graph, _entry(form, count, measured, trials.on_drawings(graph), trials)
    raise ExportError(_refusal(form.ranked, measured, trials.rest))


def _forms(form_of: Callable[[Activations], Form], rest: Precision) -> Iterator[Form]:
    """The forms to try in turn.

    If this CPU has bf16: static, with the first products in bf16. Otherwise static, with dynamic
    replacements of the first products; then dynamic, with the first products in float32.
    """
    if rest is Precision.BF16:
        yield form_of(Activations.STATIC)
        return
    dynamic = functools.cache(lambda: form_of(Activations.DYNAMIC))
    yield replace(form_of(Activations.STATIC), instead=lambda: dynamic().rounded)
    yield dynamic()


def _entry(
    form: Form, count: int, measured: Measured, drawn: tuple[float, float], trials: _Trials
) -> QuantizationEntry:
    cls_cosine_min, token_cosine_p1 = measured.cosines
    products = form.products(count)
    return QuantizationEntry(
        float32=tuple(sorted(set(form.ranked) - products.keys())),
        cls_cosine_min=cls_cosine_min,
        token_cosine_p1=token_cosine_p1,
        same_nearest=measured.same_nearest,
        kept_nearest=measured.kept_nearest,
        calibration=trials.evidence.entry,
        rest=trials.rest,
        static=tuple(sorted(_static(products))),
        drawn_cls_cosine_min=drawn[0],
        drawn_token_cosine_p1=drawn[1],
    )


def _static(products: Mapping[str, Int8Product]) -> list[str]:
    return [name for name, product in products.items() if product.steps is not None]


def least_count(holds: Callable[[int], bool], most: int) -> int:
    """The smallest count that `holds`, if more are never worse; `most`, untried, if none does."""
    low, high = -1, 0  # low does not hold
    while high < most and not holds(high):
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _refusal(ranked: Sequence[str], measured: Measured, rest: Precision) -> str:
    cls_token, others = measured.cosines
    return (
        f"int8 does not hold {INT8_LIMITS} and {INT8_KEPT_NEAREST:.0%} of nearest neighbours with "
        f"these weights: with all products but {ranked[-1]} in {rest} it reaches {cls_token:.6f}, "
        f'{others:.6f} and {measured.kept_nearest:.1%}; leave "int8" out of the precisions'
    )
