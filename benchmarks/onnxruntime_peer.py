"""A plain `torch.onnx.export` of the eager model in a default ONNX Runtime session."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dinov2rt.benchmarks.candidate import Task
from dinov2rt.benchmarks.graph_files import GraphFiles
from dinov2rt.runtime.errors import BackendError
from dinov2rt.runtime.features import output_names
from dinov2rt.runtime.normalization import normalize

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimePeer:
    """A session for each file; it is opened by the first call, and the file made before that."""

    version = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, task: Task) -> None:
        self._task = task
        self._files = GraphFiles(task, "onnx")
        self._sessions: dict[Path, Any] = {}

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The normalised images, float32 [B, 3, H, W]."""
        images = normalize(pixels)
        self._files.file(images.shape)
        return images

    def run(self, prepared: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """All tokens, in host memory."""
        session = self._session(self._files.file(prepared.shape))
        tokens: list[NDArray[np.float32]] = session.run(None, {"images": prepared})
        return tokens

    def outputs(self, result: list[NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        """By name."""
        return dict(zip(output_names(self._task.manifest.variant), result, strict=True))

    def close(self) -> None:
        """Close the sessions and delete the files."""
        self._sessions.clear()
        self._files.close()

    def _session(self, file: Path) -> Any:
        if file not in self._sessions:
            self._sessions[file] = _open_session(file, self._task)
        return self._sessions[file]


def _open_session(file: Path, task: Task) -> Any:
    provider = _PROVIDERS[task.device]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(file, options, providers=[provider])
    if provider not in session.get_providers():  # it falls back to the CPU and goes on
        raise BackendError(f"onnxruntime {onnxruntime.__version__} cannot start {provider} here")
    return session
