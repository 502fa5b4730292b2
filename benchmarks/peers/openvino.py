"""The eager model, converted by OpenVINO and compiled for the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.peers.graph_files import GraphFiles
from dinov2rt.benchmarks.peers.quiet_openvino import openvino
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError

_TYPES = {Precision.FP32: "f32", Precision.BF16: "bf16"}


class OpenVinoPeer:
    """The compiled model of one file; the first call compiles it, after the file was created.

    A model for another shape replaces it, since a user would also have only one.
    """

    version: str = f"openvino {openvino.__version__}"

    def __init__(self, workload: Workload, precision: Precision) -> None:
        self._workload, self._precision = workload, precision
        self._files = GraphFiles(workload, "openvino")
        self._core = openvino.Core()
        self._compiled: tuple[Path | None, Any] = (None, None)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The normalized images, float32 [B, 3, H, W]."""
        images = self._workload.manifest.normalization(pixels)
        self._files.file(images.shape)
        return images

    def run(self, prepared: NDArray[np.float32]) -> Any:
        """All outputs; they are valid until the next call."""
        return self._model(self._files.file(prepared.shape))(prepared)

    def outputs(self, result: Any) -> Mapping[str, NDArray[np.float32]]:
        """The arrays of `result` by the names of the outputs."""
        return dict(zip(self._workload.outputs, result.values(), strict=True))

    def close(self) -> None:
        """Free the models and delete the files."""
        self._compiled = (None, None)
        self._files.close()

    def _model(self, file: Path) -> Any:
        if file != self._compiled[0]:
            self._compiled = (None, None)  # freed before the next one is made
            self._compiled = (file, self._core.compile_model(file, "CPU", self._options()))
            self._check_precision(self._compiled[1])
        return self._compiled[1]

    def _check_precision(self, compiled: Any) -> None:
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if found != _TYPES[self._precision]:
            raise BackendError(f"OpenVINO computes in {found}, this row is {self._precision}")

    def _options(self) -> dict[str, str]:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(self._workload.threads),
        }
        if self._precision is Precision.BF16:  # its own choice, on a CPU that has bfloat16
            return options
        return options | {"INFERENCE_PRECISION_HINT": "f32"}
