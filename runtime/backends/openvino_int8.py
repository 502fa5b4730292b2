"""Int8 graphs in OpenVINO: int8 products, and everything else in bf16 or fp32."""

from pathlib import Path

from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_bf16


def fastest_rest() -> Precision:
    """The precision of everything but int8 products that is the fastest on this CPU."""
    return Precision.FP32 if cannot_run_bf16() else Precision.BF16


def open_int8(file: Path, graph: GraphEntry, *, threads: int | None) -> OpenVinoBackend:
    """Open an int8 graph; its rest is in bf16 only if its export measured it so."""
    measured = graph.quantization.rest if graph.quantization else Precision.FP32
    fastest = fastest_rest()
    rest = fastest if fastest is measured else Precision.FP32
    backend = OpenVinoBackend(file, threads=threads, precision=rest)
    backend.description += f", int8 products, the rest in {rest}"
    if rest is not fastest:
        backend.description += f" ({fastest} was not measured at the export)"
    return backend
