"""A plain `torch.onnx.export` of the eager model in a default ONNX Runtime session without TF32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.peers.graph_files import GraphFiles
from dinov2rt.errors import BackendError
from dinov2rt.runtime.backends.onnxruntime import load_cuda_libraries

# Its default on a GPU is TF32, which is faster, but not float32. The candidate is labelled as
# float32, and must meet float32's accuracy limits.
_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


class OnnxRuntimePeer:
    """A session for one file; the first call opens it, after the file was created.

    A session for another file replaces it, since a user would also have only one.
    """

    version: str = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._files = GraphFiles(workload, "onnx")
        self._opened: tuple[Path | None, Any] = (None, None)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The normalized images, float32 [B, 3, H, W]."""
        images = self._workload.manifest.normalization(pixels)
        self._files.file(images.shape)
        return images

    def run(self, prepared: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """All outputs, in host memory."""
        session = self._session(self._files.file(prepared.shape))
        tokens: list[NDArray[np.float32]] = session.run(None, {"images": prepared})
        return tokens

    def outputs(self, result: list[NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        """The arrays of `result` by the names of the outputs."""
        return dict(zip(self._workload.outputs, result, strict=True))

    def close(self) -> None:
        """Close the sessions and delete the files."""
        self._opened = (None, None)
        self._files.close()

    def _session(self, file: Path) -> Any:
        if file != self._opened[0]:
            self._opened = (None, None)  # freed before the next one is opened
            self._opened = (file, _open_session(file, self._workload))
        return self._opened[1]


def _open_session(file: Path, workload: Workload) -> Any:
    provider, provider_options = _PROVIDERS[workload.device]
    if workload.device == "cuda":
        load_cuda_libraries(onnxruntime)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = workload.threads
    session = onnxruntime.InferenceSession(file, options, providers=[(provider, provider_options)])
    if provider not in session.get_providers():  # ONNX Runtime silently falls back to the CPU
        raise BackendError(f"onnxruntime {onnxruntime.__version__} cannot start {provider} here")
    return session
