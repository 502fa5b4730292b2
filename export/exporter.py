"""Exports weights to a bundle, atomically."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir

from dinov2rt._version import __version__
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import FileEntry, GraphEntry
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.manifest import SCHEMA_VERSION, Manifest
from dinov2rt.bundle.normalization import IMAGENET
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import OPSET
from dinov2rt.bundle.variants import Variant, name_of
from dinov2rt.errors import ExportError
from dinov2rt.export.cuda.bundle_graph import write_cuda_graph
from dinov2rt.export.finish import finish
from dinov2rt.export.golden import golden_cases, source_difference
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.heads.checkpoint import EagerHead, load_heads
from dinov2rt.export.int8.calibration import Calibration
from dinov2rt.export.int8.form import make_form
from dinov2rt.export.int8.search import Evidence, gather, search
from dinov2rt.export.limits import MeasuredLimits, measure
from dinov2rt.export.model import load_eager
from dinov2rt.export.options import (
    ExportOptions,
    block_indices,
    check_int8,
    check_static,
    check_target,
)
from dinov2rt.export.portable.static import write_static_graphs
from dinov2rt.export.ranges import Ranges, record_ranges, worst
from dinov2rt.export.trace import trace
from dinov2rt.export.typed import FLOAT16_MAX
from dinov2rt.export.weights.checkpoint import Weights, load_weights
from dinov2rt.place import built_beside
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_bf16
from dinov2rt.runtime.verification import compare_all

_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Reference:
    """Facts from the eager model: golden outputs, ranges of activations, and accuracy limits."""

    golden: FileEntry
    cases: tuple[GoldenCase, ...]
    heads: tuple[EagerHead, ...]
    ranges: Ranges
    limits: dict[Precision, MeasuredLimits]
    evidence: Evidence | None


def export_bundle(
    wanted: Variant | None,
    weights: str,
    out: Path,
    options: ExportOptions,
    *,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Make the directory `out` a bundle of `weights`.

    Args:
        wanted: the variant that the weights must have; None reads the architecture from them.
        weights: "official", "synthetic:SEED", a checkpoint file or folder, or OWNER/NAME on a hub.
        out: the bundle; written to a temporary sibling and renamed when complete.
        options: the graph's input and extra outputs.
        force: replace a bundle that is there already.
        progress: called with a line of text at each step.

    Raises:
        InputError: `out` is in use, or cannot be replaced.
        WeightsError: the weights cannot be loaded, or do not fit.
        ExportError: the exported graph is not valid, or int8 cannot run here.
    """
    out = Path(os.path.realpath(out))  # "." and ".." cannot be renamed by that name
    check_target(out, force=force)
    check_int8(options)
    photos = Calibration.load(options.calibration) if Precision.INT8 in options.precisions else None
    progress(f"loading {weights}")
    loaded = load_weights(weights, wanted, options.prefix, options.stated)
    architecture, normalization = loaded.architecture, loaded.architecture.normalization
    heads = load_heads(options.heads, architecture)
    check_static(options.static, heads, architecture)
    options = dataclasses.replace(options, layers=block_indices(options.layers, architecture.depth))
    if loaded.of_source is not None and loaded.of_source != architecture:
        progress(source_difference(loaded, loaded.of_source))
    if normalization != IMAGENET:
        progress(f"input is normalised with {normalization}, not with ImageNet's statistics")
    with built_beside(out, replace=force) as partial:
        progress("computing golden outputs with the eager model")
        reference = _write_golden(partial, loaded, options, heads, photos)
        if Precision.FP16 in options.precisions:
            name, largest = worst(reference.ranges)
            progress(f"largest value in fp16: {name} with {largest:.4g} of {FLOAT16_MAX:.0f}")
        for precision, limits in reference.limits.items():
            progress(f"limits for {precision} with these weights: {limits.tokens}")
        progress("tracing the graph")
        graphs = _write_graphs(partial, loaded, options, reference, progress)
        manifest = Manifest(
            cuda_graph=_write_cuda_graph(partial, architecture, graphs),
            schema=SCHEMA_VERSION,
            architecture=architecture,
            weights=loaded.entry,
            preprocess=loaded.preprocess,
            graphs=graphs,
            heads=tuple(head.entry for head in reference.heads),
            static_graphs=write_static_graphs(
                partial, graphs, options.static, architecture.patch_size
            ),
            golden=reference.golden,
            tools={"dinov2rt": __version__} | {name: version(name) for name in _TOOLS},
        )
        manifest.write(partial)
    return manifest


def _write_golden(
    bundle: Path,
    weights: Weights,
    options: ExportOptions,
    heads: tuple[EagerHead, ...],
    photos: Calibration | None,
) -> _Reference:
    """Store the eager model's golden outputs, and measure the limits for the graphs."""
    model = load_eager(weights.architecture, weights.state_dict)
    model.task_heads = heads
    with record_ranges(model) as ranges:
        cases = golden_cases(model, options.input_format, options.extras, options.static)
    golden_outputs = Golden(cases, weights.architecture.normalization)
    golden_outputs.write(bundle / "golden.npz")
    measured = [*options.precisions]
    if Precision.FP32 in measured and Precision.BF16 not in measured:
        measured.append(Precision.BF16)  # CPUs compute the fp32 graph in it
    limits = {each: measure(model, cases, options.extras, each) for each in measured}
    evidence = None
    if photos is not None:
        model.task_heads = ()  # the search looks at tokens, of hundreds of crops
        evidence = gather(model, cases, options.input_format, options.extras, photos)
    golden = FileEntry.of(bundle, "golden.npz")
    return _Reference(golden, cases, heads, ranges, limits, evidence)


def _write_graphs(
    bundle: Path,
    weights: Weights,
    options: ExportOptions,
    reference: _Reference,
    progress: Progress,
) -> tuple[GraphEntry, ...]:
    """Write all graphs: clones of one trace, which share weights until one changes them.

    The last one is the trace itself, so that weights which it changes are freed.
    """
    traced = trace(ExportGraph(weights.architecture, weights.state_dict, options.extras).eval())
    _describe(traced, weights)
    *others, last = options.precisions
    models = itertools.chain(((each, traced.clone()) for each in others), [(last, traced)])
    return tuple(
        _write_graph(bundle, model, weights, precision, options, reference, progress)
        for precision, model in models
    )


def _write_graph(
    bundle: Path,
    model: ir.Model,
    weights: Weights,
    precision: Precision,
    options: ExportOptions,
    reference: _Reference,
    progress: Progress,
) -> GraphEntry:
    """Write one graph, made of `model`, the trace; the next one is made after its return."""
    model = finish(model, weights.architecture, precision, options, reference.heads)
    quantization = None
    if precision is Precision.INT8 and reference.evidence is not None:
        progress("rounding weights to int8")
        eager = load_eager(weights.architecture, weights.state_dict)
        form_of = partial(make_form, model, eager, reference.evidence.photos)
        model, quantization = search(model, form_of, reference.evidence, bundle, progress)
    in_bf16 = reference.limits[Precision.BF16] if precision is Precision.FP32 else None
    entry = GraphEntry(
        precision=precision,
        opset=options.opset,
        input_name=options.input_format.value,
        outputs=tuple(str(output.name) for output in model.graph.outputs),
        pads=any(head.spec.is_dense for head in reference.heads),
        layers=options.layers,
        files=_save(model, bundle, precision),
        ranges=reference.ranges if precision is Precision.FP16 else {},
        limits=reference.limits[precision].tokens,
        task_limits=reference.limits[precision].tasks,
        unnormed=options.unnormed,
        quantization=quantization,
        bf16_limits=in_bf16.tokens if in_bf16 else None,
        bf16_task_limits=in_bf16.tasks if in_bf16 else {},
    )
    if in_bf16 and in_bf16.tasks and not _holds_in_bf16(bundle, entry, reference.cases):
        progress("no bf16 on a CPU: it does not hold the limits of heads, or cannot run here")
        return dataclasses.replace(entry, bf16_limits=None, bf16_task_limits={})
    return entry


def _holds_in_bf16(bundle: Path, graph: GraphEntry, cases: Sequence[GoldenCase]) -> bool:
    """Whether heads hold their limits on a backbone in bf16; False where this CPU cannot tell.

    The share of pixels that are off is counted in few golden cases, and so varies a lot.
    """
    in_bf16 = graph.in_bf16
    if in_bf16 is None or cannot_run_bf16() is not None:
        return False
    file = bundle / graph.files[0].path
    backend = OpenVinoBackend(file, threads=None, precision=Precision.BF16)
    try:
        return bool(compare_all(backend, in_bf16, cases))
    finally:
        backend.close()


def _write_cuda_graph(
    bundle: Path, architecture: Architecture, graphs: tuple[GraphEntry, ...]
) -> GraphEntry | None:
    """Write the fused form of the fp16 graph, for ONNX Runtime CUDA."""
    half = next((graph for graph in graphs if graph.precision is Precision.FP16), None)
    if half is None or half.opset < OPSET:  # it is for newer runtimes alone
        return None
    if half.pads:  # dense heads compute with the image's size: see `NOT_CAPTURED`
        return None
    return write_cuda_graph(bundle, architecture, half)


def _describe(model: ir.Model, weights: Weights) -> None:
    name = name_of(weights.architecture)
    model.producer_name, model.producer_version = "dinov2rt", __version__
    model.graph.name = name
    model.metadata_props.update(
        variant=name,
        weights_source=weights.entry.source,
        weights_sha256=weights.entry.sha256,
        exporter_version=__version__,
    )


def _save(model: ir.Model, bundle: Path, precision: Precision) -> tuple[FileEntry, ...]:
    name = f"{precision}.onnx"
    ir.save(model, bundle / name, external_data=f"{name}.data")
    try:
        # By path: a model over 2 GiB cannot be checked in memory. "full" infers shapes strictly.
        onnx.checker.check_model(str(bundle / name), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{name} is no valid ONNX: {error}") from error
    return FileEntry.of(bundle, name), FileEntry.of(bundle, f"{name}.data")
