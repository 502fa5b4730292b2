"""Lists everything that dinov2rt can run, in a table that selection, doctor and benchmarks read.

A new backend needs rows here, and a name in `BackendName`.
"""

from functools import partial

from dinov2rt.bundle.entries import Flavour
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends import onnxruntime as ort
from dinov2rt.runtime.backends import openvino
from dinov2rt.runtime.backends.modes import (
    Device,
    GraphKind,
    GraphMode,
    GraphRequest,
    Mode,
    OptionalPackage,
    PlanMode,
    Use,
)
from dinov2rt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from dinov2rt.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from dinov2rt.runtime.backends.openvino import OpenVinoBackend
from dinov2rt.runtime.backends.openvino_int8 import open_int8
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.cpu import is_x86
from dinov2rt.runtime.tensorrt.backend import open_plan

_OPENVINO = OptionalPackage(("openvino",), "running ONNX graphs on a CPU", "openvino")
_ORT = OptionalPackage(("onnxruntime", "onnxruntime-gpu"), "running ONNX graphs", "ort")
_ORT_CUDA = OptionalPackage(("onnxruntime-gpu",), "running ONNX graphs on an NVIDIA GPU", "cuda")
_TENSORRT = OptionalPackage(
    ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"), "TensorRT plans", "tensorrt"
)
_TENSORRT_RTX = OptionalPackage(("tensorrt-rtx",), "TensorRT-RTX plans", "tensorrt-rtx")


def _open_openvino(request: GraphRequest, precision: Precision) -> Backend:
    return OpenVinoBackend(request.file, threads=request.threads, precision=precision)


def _open_int8(request: GraphRequest) -> Backend:
    return open_int8(request.file, request.graph, request.architecture, threads=request.threads)


def _open_onnxruntime(request: GraphRequest, device: Device) -> Backend:
    return OnnxRuntimeBackend(
        request.file, device=device, threads=request.threads, ordinal=request.ordinal
    )


def _open_fused(request: GraphRequest) -> Backend:
    return OnnxRuntimeCudaBackend(request.file, request.graph, request.architecture)


def _onnxruntime(device: Device, precision: Precision, use: Use = Use.UNASKED) -> GraphMode:
    return GraphMode(
        "onnxruntime",
        device,
        precision,
        _ORT_CUDA if device == "cuda" else _ORT,
        cannot_run=lambda: ort.cannot_run(device),
        open=partial(_open_onnxruntime, device=device),
        use=use,
    )


_FUSED = GraphMode(
    "onnxruntime",
    "cuda",
    Precision.FP16,
    _ORT_CUDA,
    cannot_run=lambda: ort.cannot_run("cuda"),
    open=_open_fused,
    kind=GraphKind.FUSED,
)
_OPENVINO_FP32 = GraphMode(
    "openvino",
    "cpu",
    Precision.FP32,
    _OPENVINO,
    cannot_run=openvino.cannot_run,
    open=partial(_open_openvino, precision=Precision.FP32),
)
_OPENVINO_BF16 = GraphMode(
    "openvino",
    "cpu",
    Precision.BF16,
    _OPENVINO,
    cannot_run=openvino.cannot_run_bf16,
    open=partial(_open_openvino, precision=Precision.BF16),
    kind=GraphKind.FP32,
    use=Use.LESS_EXACT,
)
_OPENVINO_INT8 = GraphMode(
    "openvino",
    "cpu",
    Precision.INT8,
    _OPENVINO,
    cannot_run=openvino.cannot_run_int8,
    open=_open_int8,
    use=Use.LESS_EXACT,
)
_CPU_FP32 = (_OPENVINO_FP32, _onnxruntime("cpu", Precision.FP32))

GRAPH_MODES: tuple[GraphMode, ...] = (
    _FUSED,
    _onnxruntime("cuda", Precision.FP16),
    _onnxruntime("cuda", Precision.FP32),
    *(_CPU_FP32 if is_x86() else reversed(_CPU_FP32)),  # elsewhere OpenVINO was not measured
    _onnxruntime("cpu", Precision.FP16, Use.CHECKING),
    _OPENVINO_BF16,
    _OPENVINO_INT8,
)
"""All ways to run graphs, best first."""

_PLAN_PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP32)
PLAN_MODES: tuple[PlanMode, ...] = (
    PlanMode("tensorrt", Flavour.TENSORRT, _PLAN_PRECISIONS, _TENSORRT, open_plan),
    PlanMode("tensorrt", Flavour.TENSORRT_RTX, _PLAN_PRECISIONS, _TENSORRT_RTX, open_plan),
)
"""All ways to run plans; a plan is better than every graph."""

MODES: tuple[Mode, ...] = (*PLAN_MODES, *GRAPH_MODES)
_CPU_FIRST = sorted(MODES, key=lambda mode: mode.device != "cpu")
PACKAGES: tuple[OptionalPackage, ...] = tuple(dict.fromkeys(mode.package for mode in _CPU_FIRST))
"""The packages that execute graphs and plans."""
