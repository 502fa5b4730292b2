"""The float32 graph that an export would write, without golden outputs, limits and other graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.precision import Precision
from dinov2rt.export.finish import finish
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.options import ExportOptions
from dinov2rt.export.trace import trace


class Float32Graph:
    """The graph of `state` in ONNX Runtime; called with pixels, it gives its outputs by name."""

    def __init__(self, architecture: Architecture, state: Any, folder: Path) -> None:
        traced = trace(ExportGraph(architecture, state).eval())
        model = finish(traced, architecture, Precision.FP32, ExportOptions(), ())
        ir.save(model, folder / "fp32.onnx", external_data="fp32.onnx.data")
        self._session = onnxruntime.InferenceSession(
            folder / "fp32.onnx", providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for `pixels`, uint8 [B, H, W, 3]."""
        outputs = self._session.run(None, {"pixels": pixels})
        return dict(zip(self._names, outputs, strict=True))
