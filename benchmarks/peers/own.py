"""dinov2rt itself, through its public API."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dinov2rt._version import __version__
from dinov2rt.benchmarks.peers.candidate import Phases, Task
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import InputFormat, output_names
from dinov2rt.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from dinov2rt.runtime.backends.protocol import ShapePreparer
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.inputs import group_images
from dinov2rt.runtime.model import load
from dinov2rt.runtime.tensorrt.backend import TensorRTBackend

_ANY_CELL = 2**40
"""The limit on pixels of a pass, so high that every batch runs in one pass, as in the peers."""


class ProductRunner:
    """A loaded bundle. It takes uint8 pixels, so that its normalization is timed."""

    def __init__(self, task: Task, *, backend: str, precision: Precision) -> None:
        self._model = load(
            task.bundle,
            device=task.device,
            backend=backend,
            precision=precision,
            threads=task.threads,
            max_pixels=_ANY_CELL,
        )
        self._names = output_names(task.manifest.architecture)
        self._prepared: set[tuple[int, ...]] = set()
        graph, runs_on = self._model.graph, self._model._choice.backend
        name = f"{self._model.manifest.name} {graph.precision} on {runs_on.description}"
        self.version = f"dinov2rt {__version__}, {name}"  # `describe` looks at other libraries too

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The unchanged pixels."""
        return pixels

    def run(self, prepared: NDArray[np.uint8]) -> Features:
        """All tokens after the final norm, in host memory.

        The first call of a shape prepares it as `Model.warm_up` does for a service: the OpenVINO
        peer, too, is compiled for each shape alone.
        """
        self._warm_up(prepared.shape)
        return self._model(prepared, outputs=self._names)

    def _warm_up(self, shape: tuple[int, ...]) -> None:
        if shape not in self._prepared and isinstance(self._model._backend, ShapePreparer):
            batch, height, width, _ = shape
            self._model.warm_up([(batch, height, width)])
        self._prepared.add(shape)

    def phases(self, prepared: NDArray[np.uint8]) -> Phases | None:
        """The phases of one call in one pass; None if the backend does not run on a GPU.

        Raises:
            PlanInputError: the call needs several passes.
        """
        choice = self._model._choice  # not public API; only for measuring
        backend = choice.plan or choice.backend
        if not isinstance(backend, TensorRTBackend | OnnxRuntimeCudaBackend):
            return None
        input_name = self._model.graph.input_name
        (group,) = group_images(
            prepared,
            InputFormat(input_name),
            Snap.CROP,
            _ANY_CELL,
            patch_size=self._model.architecture.patch_size,
            normalization=self._model.architecture.normalization,
        )
        return Phases(*backend.phases_ms({input_name: group.images}, self._names))

    def outputs(self, result: Features) -> Mapping[str, NDArray[np.float32]]:
        """The tokens by name, float32."""
        return {name: np.asarray(result.outputs[name], np.float32) for name in self._names}

    def close(self) -> None:
        """Free the backend."""
        self._model.close()
