"""Writes the graph for ONNX Runtime CUDA into a bundle, at export or later."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import FileEntry, GraphEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.replaced import not_replaced
from dinov2rt.errors import BundleError
from dinov2rt.export.cuda.fused import fuse

CUDA_GRAPH = "cuda.onnx"

NOT_CAPTURED = (
    "for ONNX Runtime CUDA: they compute with the image's size, which a captured CUDA graph cannot"
)

_INLINE_BYTES = 1024
"""Smaller tensors are stored in the graph's own file."""


def add_cuda_graph(bundle: Path, progress: Callable[[str], None] = lambda _: None) -> GraphEntry:
    """Add the fused form of the bundle's fp16 graph, for ONNX Runtime CUDA, to the bundle.

    It needs no torch. Files of the bundle are replaced atomically, the manifest last.

    Raises:
        BundleError: the bundle is unreadable or altered, or has no fp16 graph.
    """
    with not_replaced(bundle) as watch:
        manifest = Manifest.read(bundle)
        rebuild = manifest.rebuild_command(bundle)
        graph = manifest.graph_in(Precision.FP16)
        if graph is None:
            raise BundleError(
                f"{bundle} holds no fp16 graph, which this form is made of; {rebuild}"
            )
        if graph.pads:
            raise BundleError(f"{bundle} has dense heads, whose graph has no form {NOT_CAPTURED}")
        watch.add(graph.files)
        progress(f"checking the files of the {graph.precision} graph")
        for file in graph.files:
            file.check(bundle, rebuild=rebuild)
        progress("writing the graph for ONNX Runtime CUDA")
        entry = write_cuda_graph(bundle, manifest.architecture, graph)
    with Manifest.changing(bundle) as manifest:
        dataclasses.replace(manifest, cuda_graph=entry).write(bundle)
    return entry


def write_cuda_graph(bundle: Path, architecture: Architecture, graph: GraphEntry) -> GraphEntry:
    """Write the form for ONNX Runtime CUDA of `graph`, the fp16 graph in `bundle`.

    Weights that do not change stay in their file.
    """
    source, *weights = graph.files
    model = ir.load(bundle / source.path)
    fuse(model, architecture)
    with tempfile.TemporaryDirectory(dir=bundle, prefix=".cuda-") as scratch:
        _save(model, Path(scratch))
        for name in (f"{CUDA_GRAPH}.data", CUDA_GRAPH):
            Path(scratch, name).replace(bundle / name)
    files = tuple(FileEntry.of(bundle, name) for name in (CUDA_GRAPH, f"{CUDA_GRAPH}.data"))
    return dataclasses.replace(graph, opset=model.opset_imports[""], files=(*files, *weights))


def _save(model: ir.Model, folder: Path) -> None:
    """Write the graph, and the tensors that are not in a file yet."""
    own = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.nbytes > _INLINE_BYTES
    ]
    tensors = [value.const_value for value in own if value.const_value is not None]
    moved = ir.external_data.convert_tensors_to_external(tensors, folder, f"{CUDA_GRAPH}.data")
    for value, tensor in zip(own, moved, strict=True):
        value.const_value = tensor
    ir.save(model, folder / CUDA_GRAPH)
