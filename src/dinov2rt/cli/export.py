"""`dinov2rt export`: a checkpoint becomes a bundle, which is verified at once."""

from argparse import Namespace
from pathlib import Path

from dinov2rt.bundle.accuracy import AccuracyReport
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.limits import NEAREST_TIE
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import CalibrationEntry, Precision, QuantizationEntry
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.cli.arguments import require_export_room
from dinov2rt.cli.options.export import (
    AUTO,
    INPUTS,
    add_arguments,
    parse_grid,
    parse_layers,
    parse_normalization,
)
from dinov2rt.cli.output import mib, progress
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.errors import BackendError, ExportError, InputError
from dinov2rt.foreign import shown
from dinov2rt.runtime.backends.modes import GraphKind, GraphMode
from dinov2rt.runtime.backends.registry import GRAPH_MODES
from dinov2rt.runtime.model import load
from dinov2rt.runtime.verification import verify_cuda_graph_on_cpu, verify_static_graph


def _run(arguments: Namespace) -> Outcome:
    variant = None if arguments.variant == AUTO else find_variant(arguments.variant)
    layers = parse_layers(arguments.layers, variant) if arguments.layers is not None else ()
    precisions = tuple(map(Precision.parse, arguments.precision.split(",")))
    out = arguments.out or Path("artifacts", arguments.variant)
    require_export_room("exporting a bundle")
    manifest = _export(variant, out, layers, precisions, arguments)
    return _outcome(out, manifest, *_verify(out, manifest))


def _export(
    variant: Variant | None,
    out: Path,
    layers: tuple[int, ...],
    precisions: tuple[Precision, ...],
    arguments: Namespace,
) -> Manifest:
    from dinov2rt.export.exporter import export_bundle
    from dinov2rt.export.heads.checkpoint import HeadSource
    from dinov2rt.export.options import ExportOptions
    from dinov2rt.export.portable.static import StaticShape
    from dinov2rt.export.weights.architecture import Stated

    stated = Stated(
        num_heads=arguments.num_heads,
        native_grid=None if arguments.grid is None else parse_grid(arguments.grid),
        antialias=None if arguments.antialias is None else arguments.antialias == "on",
        offset=arguments.offset,
        normalization=parse_normalization(arguments.mean, arguments.std),
        follows_source=arguments.interpolation == "source",
    )
    options = ExportOptions(
        INPUTS[arguments.input],
        layers,
        precisions,
        stated=stated,
        prefix=arguments.prefix,
        unnormed=arguments.unnormed,
        x_prenorm=arguments.x_prenorm,
        attention=arguments.attention,
        opset=arguments.opset,
        static=None if arguments.static is None else StaticShape.parse(arguments.static),
        calibration=tuple(arguments.calibration),
        heads=() if arguments.head is None else HeadSource.parse_all(arguments.head),
    )
    try:
        return export_bundle(
            variant, arguments.weights, out, options, force=arguments.force, progress=progress
        )
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.filename}: {error.strerror}); choose another --out"
        ) from error


def _verify(
    out: Path, manifest: Manifest
) -> tuple[tuple[AccuracyReport, ...], dict[Precision, str]]:
    """The reports of all graphs that can run on this CPU, and why the others cannot."""
    unverifiable = _unverifiable(manifest)
    reports = []
    for mode in _modes(manifest):
        progress(f"verifying {mode.precision} with {mode.backend}")
        try:
            with load(out, device="cpu", backend=mode.backend, precision=mode.precision) as model:
                reports.append(model.verify())
        except (
            BackendError
        ) as error:  # the graph was just written: that it does not run is our fault
            raise ExportError(f"{out} was written but does not run: {error}") from error
    for graph in manifest.static_graphs:
        if graph.precision not in unverifiable:
            progress(f"verifying the static graph of {graph.precision}")
            reports.append(verify_static_graph(out, manifest, graph))
    if manifest.cuda_graph is not None and Precision.FP16 not in unverifiable:
        progress("verifying the graph for ONNX Runtime CUDA, on the CPU")
        reports.append(verify_cuda_graph_on_cpu(out, manifest))
    return tuple(reports), unverifiable


def _modes(manifest: Manifest) -> list[GraphMode]:
    """How each precision of the bundle is verified on this CPU."""
    # ONNX Runtime first: OpenVINO packs a copy of the weights, too much for ViT-g beside an export.
    modes = sorted(_cpu_modes(manifest), key=lambda mode: mode.backend == "openvino")
    chosen: dict[Precision, GraphMode] = {}
    for mode in modes:
        if mode.cannot_run() is None:
            chosen.setdefault(mode.precision, mode)
    return list(chosen.values())


def _unverifiable(manifest: Manifest) -> dict[Precision, str]:
    """Why graphs cannot be verified on this CPU, by their precision."""
    modes = [mode for mode in _cpu_modes(manifest) if mode.kind is GraphKind.OF_PRECISION]
    unverifiable: dict[Precision, str] = {}
    for graph in manifest.graphs:
        reasons = [mode.cannot_run() for mode in modes if mode.precision == graph.precision]
        if not reasons:
            unverifiable[graph.precision] = (
                f"no backend computes {graph.precision} graphs on a CPU; verify its plan on the GPU"
            )
        elif all(reason is not None for reason in reasons):
            unverifiable[graph.precision] = str(reasons[0])
    return unverifiable


def _cpu_modes(manifest: Manifest) -> list[GraphMode]:
    return [m for m in GRAPH_MODES if m.device == "cpu" and m.graph_of(manifest) is not None]


def _outcome(
    out: Path,
    manifest: Manifest,
    reports: tuple[AccuracyReport, ...],
    unverifiable: dict[Precision, str],
) -> Outcome:
    graph, weights = manifest.graphs[0], manifest.weights
    quantization = next((each.quantization for each in manifest.graphs if each.quantization), None)
    size_bytes = sum(file.size_bytes for file in manifest.files)
    passed = all(reports)
    document = {
        "bundle": out,
        "variant": manifest.name,
        "weights": weights,
        "input": graph.input_name,
        "outputs": graph.outputs,
        "layers": graph.layers,
        "heads": manifest.heads,
        "size_bytes": size_bytes,
        "verified": reports,
        "not_verified": unverifiable,
        "quantization": quantization,
        "passed": passed,
    }
    lines = [
        f"{out}: {manifest.name}, {mib(size_bytes)}",
        f"weights: {shown(weights.source)}, SHA-256 {weights.sha256}",
        *([f"weights: {weights.selection}"] if weights.selection else []),
        f"graph: {graph.input_name} -> {', '.join(graph.outputs)}",
        *map(str, reports),
        *(_quantized(quantization, manifest.architecture) if quantization else []),
        *(f"not verified: {precision}: {reason}" for precision, reason in unverifiable.items()),
    ]
    return Outcome(document, "\n".join(lines), status_of(passed))


def _quantized(entry: QuantizationEntry, architecture: Architecture) -> list[str]:
    from dinov2rt.export.int8.drawings import OTHER_DRAWINGS
    from dinov2rt.export.int8.products import product_names

    total = len(product_names(architecture))
    static, float32 = len(entry.static), len(entry.float32)
    lines = [
        f"int8: of {total} products {static} round activations statically, "
        f"{total - static - float32} dynamically, {float32} stayed {entry.rest} (the manifest "
        "names them); on other crops the smallest cosine of a CLS token is "
        f"{entry.cls_cosine_min:.6f}, the first percentile of other tokens "
        f"{entry.token_cosine_p1:.6f}; {entry.kept_nearest:.1%} keep their nearest neighbour, "
        f"or one as near up to {NEAREST_TIE}, {entry.same_nearest:.1%} the very same",
        f"int8: on {OTHER_DRAWINGS} drawings, which need not be within the limits, the cosines are "
        f"{entry.drawn_cls_cosine_min:.6f} and {entry.drawn_token_cosine_p1:.6f}",
    ]
    if 2 * float32 > total:
        lines.append(f"int8: most products stayed {entry.rest}, so int8 gains little over it")
    return lines + ([_measured_on(entry.calibration)] if entry.calibration else [])


def _measured_on(entry: CalibrationEntry) -> str:
    source = shown(" ".join(entry.paths)) if entry.paths else "those that ship with dinov2rt"
    return (
        f"int8: measured on {entry.images} photographs ({source}; names have SHA-256 "
        f"{entry.names_sha256[:16]}…): rounded for {entry.rounded_on} crops and "
        f"{entry.drawings} drawings, searched on {entry.searched_on} crops, checked on "
        f"{entry.checked_on} others and the golden cases"
    )


EXPORT = Verb("export", "turn a checkpoint into a bundle", add_arguments, _run)
