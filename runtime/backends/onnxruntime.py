"""ONNX Runtime, on the CPU or an NVIDIA GPU."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import BackendError, InputError, first_line
from dinov2rt.optional import is_older, require
from dinov2rt.runtime.backends.modes import Device

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Its default is TF32, which rounds float32 factors to a 10-bit mantissa.
_WITHOUT_TF32 = {"use_tf32": "0"}
_ERRORS_ONLY = 3
_LEAST_ON_CUDA = (1, 31)
"""The oldest version that ran on a GPU (docs/gpu-support.md)."""


def cannot_run(device: Device) -> str | None:
    """Why ONNX Runtime cannot run on `device` here, or None if it can."""
    try:
        extra = "cuda" if device == "cuda" else "ort"
        ort = require("onnxruntime", extra=extra, purpose="the ONNX Runtime backend")
    except ImportError as error:
        return str(error)
    if _PROVIDERS[device] in ort.get_available_providers():
        return _too_old(ort.__version__) if device == "cuda" else None
    return (
        f"onnxruntime {ort.__version__} here has no {_PROVIDERS[device]}; "
        "pip install 'dinov2rt[cuda]' on a machine with an NVIDIA GPU"
    )


def _too_old(version: str) -> str | None:
    """Why a version is too old for GPUs.

    Versions before 1.25 silently compute Attention on the CPU; those before 1.31 were never tried.
    """
    if not is_older(version, _LEAST_ON_CUDA):
        return None
    return (
        f"onnxruntime {version} is older than {'.'.join(map(str, _LEAST_ON_CUDA))}, the first that "
        "was tried on a GPU; pip install -U 'dinov2rt[cuda]'"
    )


def load_cuda_libraries(ort: ModuleType) -> None:
    """Load CUDA libraries that pip installed, since a provider does not search for them there."""
    if hasattr(ort, "preload_dlls"):
        # It prints missing libraries to stdout, which belongs to the command's own output.
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()


def new_session(
    graph: Path,
    provider: str,
    provider_options: Mapping[str, str],
    *,
    description: str,
    threads: int | None = None,
    optimize: bool = True,
) -> Any:
    """A session that runs `graph` on `provider`, without a fallback to another provider.

    Raises:
        BackendError: the library cannot load the graph, or the provider does not start here.
    """
    ort = require("onnxruntime", extra="ort", purpose="the ONNX Runtime backend")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        options.intra_op_num_threads = threads or 0  # 0: one per core
        # ONNX Runtime's fallback would silently move work of a failing GPU to the CPU.
        session = ort.InferenceSession(
            graph,
            options,
            providers=[(provider, dict(provider_options))],
            enable_fallback=False,
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise BackendError(f"{description} cannot load {graph}: {first_line(error)}") from error
    if provider not in session.get_providers():
        # ONNX Runtime drops a provider with missing libraries and only prints a warning.
        raise BackendError(
            f"{description} could not be started on this machine; "
            'see `dinov2rt doctor`, or use device="cpu"'
        )
    return session


class OnnxRuntimeBackend:
    """One session over one graph file. Sessions are safe to run from several threads.

    `complete` adds the inputs that this graph has and the portable graph has not.
    """

    concurrent_calls = 1  # each call uses all cores
    reads_gpu_arrays = False

    def __init__(
        self,
        graph: Path,
        *,
        device: Device,
        threads: int | None,
        ordinal: int = 0,
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda inputs: inputs,
    ) -> None:
        ort = require("onnxruntime", extra="ort", purpose="the ONNX Runtime backend")
        self.description: str = f"onnxruntime {ort.__version__}, {device}"
        self._complete = complete
        if device == "cuda":
            load_cuda_libraries(ort)
        self._session: Any = new_session(
            graph,
            _PROVIDERS[device],
            _WITHOUT_TF32 | {"device_id": str(ordinal)} if device == "cuda" else {},
            description=self.description,
            threads=threads,
        )

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, NDArray[Any]]:
        """Run the graph; see `Backend.infer`."""
        if device_outputs:
            raise InputError(
                "this graph returns numpy arrays; device outputs need a plan or the fused graph"
            )
        session = self._session  # another thread may close the backend during this call
        if session is None:
            raise BackendError("the model is closed; load it again")
        complete = self._complete(inputs)
        feed = {name: np.ascontiguousarray(value) for name, value in complete.items()}
        try:
            values = session.run(list(outputs), feed)
        except Exception as error:  # ONNX Runtime's errors share no base class
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feed.items())
            raise BackendError(
                f"{self.description} failed on {shapes}: {first_line(error)}"
            ) from error
        return dict(zip(outputs, values, strict=True))

    def batch_limit(self, size: ImageSize) -> int | None:  # noqa: ARG002
        """None: every batch that fits into memory is allowed."""
        return None

    def close(self) -> None:
        """Free the session."""
        self._session = None
