"""Int8 graphs in OpenVINO: int8 products, and everything else in bf16 or fp32."""

from pathlib import Path

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.limits import INT8_CLS_COSINE, INT8_TOKEN_COSINE_P1
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_bf16
from dinov2rt.runtime.cpu import this_cpu

_PRODUCTS_OF_A_BLOCK = 4


def fastest_rest() -> Precision:
    """The fastest precision on this CPU for everything but int8 products."""
    return Precision.FP32 if cannot_run_bf16() else Precision.BF16


def rounds_dynamically() -> bool:
    """Whether int8 products with dynamic activations are faster here than products in bf16.

    On a CPU with AMX, OpenVINO does not round activations if the rest is in bf16. It converts the
    int8 weights to bf16 at every call, which takes longer than a bf16 graph: docs/adr/0009.
    """
    return not this_cpu().multiplies_bf16_tiles


def open_int8(
    file: Path, graph: GraphEntry, architecture: Architecture, *, threads: int | None
) -> OpenVinoBackend:
    """Open an int8 graph; the rest is computed in bf16 only if the export measured that."""
    measured = graph.quantization.rest if graph.quantization else Precision.FP32
    fastest = fastest_rest()
    rest = fastest if fastest is measured else Precision.FP32
    backend = OpenVinoBackend(file, threads=threads, precision=rest)
    backend.description += f", int8 products, the rest in {rest}"
    if rest is not fastest:
        backend.description += f" ({fastest} was not measured at the export)"
    backend.description += _advice(graph, architecture, rest) + _warning(graph)
    return backend


def _advice(graph: GraphEntry, architecture: Architecture, rest: Precision) -> str:
    """A hint for `describe()` if another precision is better here, or an empty string."""
    made, products = graph.quantization, _PRODUCTS_OF_A_BLOCK * architecture.depth
    static, others = (len(made.static), len(made.float32)) if made else (0, 0)
    has_dynamic = static + others < products
    if has_dynamic and not rounds_dynamically():
        return '; precision="bf16" is faster on this CPU'
    if 2 * others > products:
        return f"; {others} of {products} products are in {rest}, so int8 gains little"
    return ""


def _warning(graph: GraphEntry) -> str:
    """A warning for `describe()` if images unlike photographs are less accurate, or ""."""
    made = graph.quantization
    if made is None:
        return ""
    if made.static and not (made.calibration and made.calibration.drawings):
        return "; text, drawings and plain colours are less accurate: export int8 again"
    cls_token, others = made.drawn_cls_cosine_min, made.drawn_token_cosine_p1
    if cls_token is None or others is None:
        return ""
    if cls_token >= INT8_CLS_COSINE and others >= INT8_TOKEN_COSINE_P1:
        return ""
    return (
        "; drawings are less accurate than photographs: smallest CLS cosine "
        f"{cls_token:.4f} instead of {made.cls_cosine_min:.4f}, first percentile of other tokens "
        f"{others:.4f} instead of {made.token_cosine_p1:.4f}"
    )
