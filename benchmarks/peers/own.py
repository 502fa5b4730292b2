"""dinov2rt itself, through its public API."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt._version import __version__
from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends.modes import BackendName
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.gpu.phases import Phases
from dinov2rt.runtime.model import load
from dinov2rt.runtime.predictions import Classification, Depth, Prediction, Predictions

_ANY_CELL = 2**40
"""The limit on pixels of a pass, so high that every batch runs in one pass, as in the peers."""


class OwnRunner:
    """A loaded bundle. It takes uint8 pixels, so that its normalization is timed."""

    def __init__(self, workload: Workload, *, backend: BackendName, precision: Precision) -> None:
        self._model = load(
            workload.bundle,
            device=workload.device,
            backend=backend,
            precision=precision,
            threads=workload.threads,
            max_pixels=_ANY_CELL,
        )
        heads = self._model.manifest.heads
        self._names = tuple(head.output for head in heads) or workload.outputs
        # As the official code, where a head answers for every pixel; one pass for all heads.
        self._snap = Snap.PAD if any(head.is_dense for head in heads) else Snap.CROP
        self._prepared: set[tuple[int, ...]] = set()
        self.version: str = f"dinov2rt {__version__}, {self._model.summary}"

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The unchanged pixels."""
        return pixels

    def run(self, prepared: NDArray[np.uint8]) -> Any:
        """All tokens after the final norm, or the answers of all heads, in host memory.

        The first call of a shape prepares it as `Model.warm_up` does for a service: the OpenVINO
        peer, too, is compiled for each shape alone.
        """
        self._warm_up(prepared.shape)
        if self._model.manifest.heads:
            return self._model.predict(prepared, snap=self._snap)
        return self._model(prepared, outputs=self._names)

    def _warm_up(self, shape: tuple[int, ...]) -> None:
        if shape not in self._prepared and self._model.prepares_shapes:
            batch, height, width, _ = shape
            self._model.warm_up([(batch, height, width)])
        self._prepared.add(shape)

    def phases(self, prepared: NDArray[np.uint8]) -> Phases | None:
        """The phases of one call; see `Model.phases`."""
        return self._model.phases(prepared, outputs=self._names)

    def outputs(self, result: Any) -> Mapping[str, NDArray[Any]]:
        """The outputs by name, float32; classes of pixels are uint8."""
        if isinstance(result, Features):
            return {name: np.asarray(result.outputs[name], np.float32) for name in self._names}
        answers = result.values() if isinstance(result, Predictions) else [result]
        return dict(zip(self._names, map(_array, answers), strict=True))

    def close(self) -> None:
        """Free the backend."""
        self._model.close()


def _array(answer: Prediction) -> NDArray[Any]:
    if isinstance(answer, Classification):
        return answer.logits
    return answer.metres if isinstance(answer, Depth) else answer.classes
