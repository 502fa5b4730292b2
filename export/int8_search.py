"""Which products of an int8 graph stay float32: as few as the limits allow, found by measurement.

Products are ranked once (`sensitivity.py`). Then the graph itself, with the first k of that rank in
float32, runs in OpenVINO on crops of photographs, until the least k is found that holds the
limits with a margin. What was found must hold the limits on other crops as well.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from dinov2rt.export.crops import photo_crops
from dinov2rt.export.golden import eager_case
from dinov2rt.export.int8 import to_int8
from dinov2rt.export.model import Dinov2
from dinov2rt.export.sensitivity import rank
from dinov2rt.runtime.accuracy import (
    INT8_CLS_COSINE,
    INT8_LIMITS,
    INT8_TOKEN_COSINE_P1,
    GoldenCase,
    Limits,
    OutputAccuracy,
    compare,
)
from dinov2rt.runtime.errors import ExportError
from dinov2rt.runtime.geometry import ImageSize
from dinov2rt.runtime.inputs import InputFormat
from dinov2rt.runtime.manifest import QuantizationEntry
from dinov2rt.runtime.normalization import normalize
from dinov2rt.runtime.openvino import OpenVinoBackend

_MARGIN = 0.5
"""How much of the error that the limits allow the search does: other images may be worse."""

_STRICTER = Limits(
    cosine_min=1 - _MARGIN * (1 - INT8_CLS_COSINE),
    cosine_p1=1 - _MARGIN * (1 - INT8_TOKEN_COSINE_P1),
)

_RANKED_ON = (range(4), ImageSize(112, 112))
# Small crops are the harder case: one that is flat has nothing beside it.
_SIZES = (ImageSize(224, 224), ImageSize(98, 126))
_SEARCHED_ON = (range(4, 8), range(8, 12))
_CHECKED_ON = tuple(range(seed, seed + 1) for seed in range(12, 20))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the search needs of the eager model: the rank, and two sets of cases."""

    ranked: tuple[str, ...]
    searched_on: tuple[GoldenCase, ...]
    checked_on: tuple[GoldenCase, ...]


def gather(
    model: Dinov2,
    golden: Sequence[GoldenCase],
    input_format: InputFormat,
    layers: tuple[int, ...],
) -> Evidence:
    """Rank the products of `model`, and compute what it says of the crops.

    The `golden` cases are among those that are checked.
    """

    def cases(batches: Sequence[range]) -> tuple[GoldenCase, ...]:
        return tuple(
            eager_case(model, f"{seeds} at {size}", photo_crops(seeds, size), input_format, layers)
            for size in _SIZES
            for seeds in batches
        )

    images = torch.from_numpy(normalize(photo_crops(*_RANKED_ON)))
    return Evidence(rank(model, images), cases(_SEARCHED_ON), (*cases(_CHECKED_ON), *golden))


def search(
    model: ir.Model,
    evidence: Evidence,
    scratch: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[ir.Model, QuantizationEntry]:
    """The int8 graph with the fewest float32 products that holds the limits, and what it took.

    Args:
        model: the float32 graph; it stays as it is.
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
        to_int8(graph, ranked[:count])
        return graph

    def holds(count: int) -> bool:
        measured = _measure(build(count), evidence.searched_on, _STRICTER, scratch)
        return all(output.passed for output in measured)

    for count in range(_least(holds, len(ranked) - 1), len(ranked)):
        graph = build(count)
        measured = _measure(graph, evidence.checked_on, INT8_LIMITS, scratch)
        if all(output.passed for output in measured):
            return graph, _entry(ranked[:count], measured)
    raise ExportError(
        f"int8 does not hold {INT8_LIMITS} with these weights: with all products but "
        f"{ranked[-1]} in float32 it reaches {_worst(measured)}; "
        'leave "int8" out of the precisions'
    )


def _least(holds: Callable[[int], bool], most: int) -> int:
    """The least count that `holds`, if more are never worse; `most` if none does."""
    low, high = -1, 0  # low does not hold
    while high < most and not holds(high):
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _measure(
    model: ir.Model, cases: Sequence[GoldenCase], limits: Limits, scratch: Path
) -> tuple[OutputAccuracy, ...]:
    """Run `model` in OpenVINO on every case."""
    names = [str(output.name) for output in model.graph.outputs]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        file = Path(folder, "int8.onnx")
        ir.save(model, file, external_data="int8.onnx.data")
        backend = OpenVinoBackend(file, threads=None)
        try:
            return tuple(
                compare(case.name, name, got, case.reference(name), limits)
                for case in cases
                for name, got in backend.infer(
                    {str(model.graph.inputs[0].name): case.images}, names
                ).items()
            )
        finally:
            backend.close()


def _entry(float32: Sequence[str], measured: Sequence[OutputAccuracy]) -> QuantizationEntry:
    cls_token, others = _worst_cosines(measured)
    return QuantizationEntry(tuple(sorted(float32)), cls_token, others)


def _worst(measured: Sequence[OutputAccuracy]) -> str:
    cls_token, others = _worst_cosines(measured)
    return f"{cls_token:.6f} and {others:.6f}"


def _worst_cosines(measured: Sequence[OutputAccuracy]) -> tuple[float, float]:
    """The smallest cosine of a CLS token, and of the others at the first percentile."""
    cls_token = min(output.cosine_min for output in measured if output.cosine_p1 is None)
    return cls_token, min(output.cosine_p1 for output in measured if output.cosine_p1 is not None)
