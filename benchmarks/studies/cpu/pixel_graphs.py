"""The graphs of a bundle that take pixels."""

from pathlib import Path

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import InputError


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
