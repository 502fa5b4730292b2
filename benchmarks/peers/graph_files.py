"""Files of a plain export for a runner, in a temporary folder."""

import tempfile
from pathlib import Path

from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.peers.plain_export import Shape, exports_any_size, plain_export


class GraphFiles:
    """One file for each shape that needs its own, created at the first request.

    `form` is "onnx" or "openvino". For variants with registers, one file serves every shape. For
    those without, an ONNX file serves every batch of its size, and an OpenVINO file only its shape.
    """

    def __init__(self, workload: Workload, form: str) -> None:
        self._workload = workload
        self._form = form
        self._any_size = exports_any_size(workload)
        self._folder = tempfile.TemporaryDirectory(prefix="dinov2rt-bench-")

    def file(self, shape: Shape) -> Path:
        """The file for images of `shape` [B, 3, H, W].

        Raises:
            BackendError: the export failed.
        """
        suffix = {"onnx": "onnx", "openvino": "xml"}[self._form]
        file = Path(self._folder.name) / f"{self._name(shape)}.{suffix}"
        if not file.exists():
            plain_export(self._form, self._workload, shape, file)
        return file

    def close(self) -> None:
        """Delete the folder."""
        self._folder.cleanup()

    def _name(self, shape: Shape) -> str:
        if self._any_size:
            return "any"
        sides = shape if self._form == "openvino" else shape[2:]
        return "x".join(map(str, sides))
