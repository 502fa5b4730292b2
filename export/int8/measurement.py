"""Runs int8 graphs in OpenVINO on crops, and compares them with the eager model."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dinov2rt.bundle.accuracy import OutputAccuracy, compare, nearest_lost
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import INT8_KEPT_NEAREST, NEAREST_TIE, Limits
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import is_token_output
from dinov2rt.runtime.backends.openvino import OpenVinoBackend

_CLS = "cls_token"


@dataclass(frozen=True, slots=True)
class Crops:
    """Outputs of the eager model: all tokens of `cases`, only CLS tokens of `gallery`."""

    cases: tuple[GoldenCase, ...]
    gallery: GoldenCase


@dataclass(frozen=True, slots=True)
class Measured:
    """The accuracy of a graph on crops."""

    outputs: tuple[OutputAccuracy, ...]
    nearest_lost: NDArray[np.float64]

    @property
    def holds(self) -> bool:
        """Whether it is within the limits that it was measured with, and keeps the neighbours."""
        return self.kept_nearest >= INT8_KEPT_NEAREST and all(
            output.passed for output in self.outputs
        )

    @property
    def same_nearest(self) -> float:
        """The share of crops with the same nearest neighbour as in the eager model."""
        return float((self.nearest_lost == 0).mean())

    @property
    def kept_nearest(self) -> float:
        """The share of crops whose nearest neighbour is the same, or as near up to a tie."""
        return float((self.nearest_lost <= NEAREST_TIE).mean())

    @property
    def cosines(self) -> tuple[float, float]:
        """See `smallest_cosines`."""
        return smallest_cosines(self.outputs)


@dataclass(frozen=True, slots=True)
class Running:
    """An int8 graph in OpenVINO."""

    backend: OpenVinoBackend
    input_name: str
    outputs: tuple[str, ...]

    def measure(self, crops: Crops, limits: Limits) -> Measured:
        """Compare every output on every crop."""
        compared = tuple(self.compare(crops.cases, limits))
        return _measured(crops, limits, compared, list(self._cls_tokens(crops.gallery)))

    def holds(self, crops: Crops, limits: Limits) -> bool:
        """Whether `measure` would hold; this stops at the first crop that misses a limit."""
        compared, cls_tokens = [], []
        for output in self.compare(crops.cases, limits):
            if not output.passed:
                return False
            compared.append(output)
        for cls_token, want in zip(
            self._cls_tokens(crops.gallery), crops.gallery.reference(_CLS), strict=True
        ):
            if not compare(crops.gallery.name, _CLS, cls_token, want[None], limits).passed:
                return False
            cls_tokens.append(cls_token)
        return _measured(crops, limits, compared, cls_tokens).holds

    def compare(self, cases: Iterable[GoldenCase], limits: Limits) -> Iterator[OutputAccuracy]:
        """Compare every output of `cases`, one case a call."""
        for case in cases:
            got = self.backend.infer({self.input_name: case.images}, self.outputs)
            for name, value in got.items():
                yield compare(case.name, name, value, case.reference(name), limits)

    def _cls_tokens(self, gallery: GoldenCase) -> Iterator[NDArray[np.float32]]:
        """The CLS token [1, D] of each crop, one crop a call: many at once take much memory."""
        for image in gallery.images:
            yield self.backend.infer({self.input_name: image[None]}, [_CLS])[_CLS]


def smallest_cosines(outputs: Sequence[OutputAccuracy]) -> tuple[float, float]:
    """The smallest cosine of a CLS token, and the smallest first percentile of other tokens."""
    return (
        min(output.cosine_min for output in outputs if output.cosine_p1 is None),
        min(output.cosine_p1 for output in outputs if output.cosine_p1 is not None),
    )


def _measured(
    crops: Crops,
    limits: Limits,
    compared: Sequence[OutputAccuracy],
    cls_tokens: Sequence[NDArray[np.float32]],
) -> Measured:
    """The comparisons in `compared`, completed by the gallery and its neighbours."""
    got, want = np.concatenate(cls_tokens), crops.gallery.reference(_CLS)
    accuracy = compare(crops.gallery.name, _CLS, got, want, limits)
    return Measured((*compared, accuracy), nearest_lost(got, want))


@contextlib.contextmanager
def running(model: ir.Model, scratch: Path, rest: Precision) -> Iterator[Running]:
    """Write `model` below `scratch`, and run it with everything but int8 products in `rest`."""
    names = [str(output.name) for output in model.graph.outputs]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        file = Path(folder, "int8.onnx")
        ir.save(model, file, external_data="int8.onnx.data")
        backend = OpenVinoBackend(file, threads=None, precision=rest)
        try:
            input_name = str(model.graph.inputs[0].name)
            yield Running(backend, input_name, tuple(filter(is_token_output, names)))
        finally:
            backend.close()
