"""Writes the graph for ONNX Runtime CUDA into a bundle, at export or later."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import FileEntry, GraphEntry, sha256_of
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.replaced import not_replaced
from dinov2rt.errors import BundleError
from dinov2rt.export.cuda.fused import fuse
from dinov2rt.place import scratch_beside

_GRAPH, _DATA = "cuda.onnx", "cuda.onnx.data"
_HASH_DIGITS = 12

NOT_CAPTURED = (
    "for ONNX Runtime CUDA: they compute with the image's size, which a captured CUDA graph cannot"
)

_INLINE_BYTES = 1024
"""Smaller tensors are stored in the graph's own file."""


def add_cuda_graph(bundle: Path, progress: Callable[[str], None] = lambda _: None) -> GraphEntry:
    """Add the fused form of the bundle's fp16 graph, for ONNX Runtime CUDA, to the bundle.

    It needs no torch. Its files are named by their content: the files of an older such graph stay
    whole until the manifest, which is replaced atomically, names the new ones.

    Raises:
        BundleError: the bundle is unreadable or altered, or has no fp16 graph, or another build has
            removed the files of this one meanwhile.
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
        graph.check(bundle, rebuild=rebuild)
        progress("writing the graph for ONNX Runtime CUDA")
        entry = write_cuda_graph(bundle, manifest.architecture, graph)
    _record(bundle, entry)
    return entry


def _record(bundle: Path, entry: GraphEntry) -> None:
    """Name the files of `entry` in the manifest, and remove older ones."""
    with Manifest.changing(bundle) as manifest:
        if not all((bundle / file.path).is_file() for file in entry.files):
            raise BundleError(f"{bundle}: another build of this graph has just ended; build again")
        left = (file.name for name in (_GRAPH, _DATA) for file in bundle.glob(_named(name, "*")))
        dataclasses.replace(manifest, cuda_graph=entry).succeed(manifest, bundle, left)


def write_cuda_graph(bundle: Path, architecture: Architecture, graph: GraphEntry) -> GraphEntry:
    """Write the form for ONNX Runtime CUDA of `graph`, the fp16 graph in `bundle`.

    Weights that do not change stay in their file.
    """
    source, *weights = graph.files
    model = ir.load(bundle / source.path)
    fuse(model, architecture)
    with scratch_beside(bundle / _GRAPH) as scratch:
        own = _save(model, scratch)
        for name in own:
            (scratch / name).replace(bundle / name)
    files = tuple(FileEntry.of(bundle, name) for name in own)
    return dataclasses.replace(graph, opset=model.opset_imports[""], files=(*files, *weights))


def _save(model: ir.Model, folder: Path) -> tuple[str, str]:
    """Write the graph, and the tensors that are not in a file yet; return the files' names."""
    own = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.nbytes > _INLINE_BYTES
    ]
    tensors = [value.const_value for value in own if value.const_value is not None]
    moved = ir.external_data.convert_tensors_to_external(tensors, folder, _DATA)
    data = _named_by_content(folder / _DATA)
    for value, tensor in zip(own, moved, strict=True):
        value.const_value = _in_file(tensor, data)
    ir.save(model, folder / _GRAPH)
    return _named_by_content(folder / _GRAPH).name, data.name


def _named_by_content(file: Path) -> Path:
    """The file after it was renamed to `_named` with its hash."""
    return file.rename(file.with_name(_named(file.name, sha256_of(file)[:_HASH_DIGITS])))


def _named(name: str, digits: str) -> str:
    """`name` with `digits` behind its stem, such as cuda-1a2b3c4d5e6f.onnx.data."""
    stem, _, suffixes = name.partition(".")
    return f"{stem}-{digits}.{suffixes}"


def _in_file(tensor: ir.ExternalTensor, file: Path) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        file.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        base_dir=file.parent,
    )
