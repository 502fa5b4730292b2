"""The graphs of a bundle that take pixels."""

from collections.abc import Iterator
from pathlib import Path

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import InputError
from dinov2rt.runtime.backends import openvino as backend


def pixel_graphs(bundle: Path) -> dict[Precision, Path]:
    """Files of the graphs that take pixels, by precision; float32 is among them.

    Raises:
        InputError: the bundle has no such float32 graph.
    """
    files = {
        graph.precision: bundle / graph.files[0].path
        for graph in Manifest.read(bundle).graphs
        if graph.input_name == "pixels"
    }
    if Precision.FP32 not in files:
        raise InputError(f"{bundle} has no fp32 graph that takes pixels; export one")
    return files


def modes(bundle: Path) -> Iterator[tuple[str, Path, Precision]]:
    """What can run here: its name, its graph, and the precision of what is not int8.

    Raises:
        InputError: the bundle has no fp32 graph that takes pixels.
    """
    files = pixel_graphs(bundle)
    has_bf16 = backend.cannot_run_bf16() is None
    yield "fp32", files[Precision.FP32], Precision.FP32
    if has_bf16:
        yield "bf16", files[Precision.FP32], Precision.BF16
    if Precision.INT8 in files and backend.cannot_run_int8() is None:
        yield "int8", files[Precision.INT8], Precision.BF16 if has_bf16 else Precision.FP32
