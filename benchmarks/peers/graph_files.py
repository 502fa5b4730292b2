"""Files that a plain export makes for a runner, in a folder that goes away with it."""

import tempfile
from pathlib import Path

from dinov2rt.benchmarks.peers.candidate import Task
from dinov2rt.benchmarks.peers.plain_export import Shape, exports_any_size, plain_export


class GraphFiles:
    """One file for each shape that needs its own, made when first asked for.

    `form` is "onnx" or "openvino". With registers one file takes any shape; without, one of ONNX
    takes any batch of its size, and one of OpenVINO its own shape alone.
    """

    def __init__(self, task: Task, form: str) -> None:
        self._task = task
        self._form = form
        self._any_size = exports_any_size(task)
        self._folder = tempfile.TemporaryDirectory(prefix="dinov2rt-bench-")

    def file(self, shape: Shape) -> Path:
        """The file for images of `shape` [B, 3, H, W].

        Raises:
            BackendError: the export failed.
        """
        suffix = {"onnx": "onnx", "openvino": "xml"}[self._form]
        file = Path(self._folder.name) / f"{self._name(shape)}.{suffix}"
        if not file.exists():
            plain_export(self._form, self._task, shape, file)
        return file

    def close(self) -> None:
        """Delete the folder."""
        self._folder.cleanup()

    def _name(self, shape: Shape) -> str:
        if self._any_size:
            return "any"
        sides = shape if self._form == "openvino" else shape[2:]
        return "x".join(map(str, sides))
