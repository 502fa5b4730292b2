"""Runs int8 graphs in OpenVINO on crops, and compares them with the eager model."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dinov2rt.bundle.accuracy import OutputAccuracy, compare, nearest_lost
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import INT8_KEPT_NEAREST, NEAREST_TIE, Limits
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import is_token_output
from dinov2rt.runtime.backends.openvino import OpenVinoBackend


@dataclass(frozen=True, slots=True)
class Crops:
    """What the eager model says: in `cases` every token counts, in `gallery` CLS and neighbours."""

    cases: tuple[GoldenCase, ...]
    gallery: GoldenCase


@dataclass(frozen=True, slots=True)
class Measured:
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


@dataclass(frozen=True, slots=True)
class Running:
    """An int8 graph in OpenVINO."""

    backend: OpenVinoBackend
    input_name: str
    outputs: tuple[str, ...]

    def measure(self, crops: Crops, limits: Limits) -> Measured:
        """Compare every output on every crop."""
        return self._with_gallery(crops, limits, tuple(self._compared(crops, limits)))

    def holds(self, crops: Crops, limits: Limits) -> bool:
        """Whether `measure` would hold; most of its time is saved where a case misses a limit."""
        compared = []
        for output in self._compared(crops, limits):
            if not output.passed:
                return False
            compared.append(output)
        return self._with_gallery(crops, limits, tuple(compared)).holds

    def _compared(self, crops: Crops, limits: Limits) -> Iterator[OutputAccuracy]:
        for case in crops.cases:
            got = self.backend.infer({self.input_name: case.images}, self.outputs)
            for name, value in got.items():
                yield compare(case.name, name, value, case.reference(name), limits)

    def _with_gallery(
        self, crops: Crops, limits: Limits, compared: tuple[OutputAccuracy, ...]
    ) -> Measured:
        name, want = "cls_token", crops.gallery.reference("cls_token")
        got = np.concatenate([self._cls_token(image[None]) for image in crops.gallery.images])
        accuracy = compare(crops.gallery.name, name, got, want, limits)
        return Measured((*compared, accuracy), nearest_lost(got, want))

    def _cls_token(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """That of one image: many at once take much memory."""
        token: NDArray[np.float32] = self.backend.infer({self.input_name: images}, ["cls_token"])[
            "cls_token"
        ]
        return token


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
