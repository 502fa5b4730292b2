"""`dinov2rt export`: a checkpoint becomes a bundle, which is verified at once."""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from dinov2rt.bundle.accuracy import AccuracyReport
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import QuantizationEntry
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.limits import NEAREST_TIE
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import OPSET, InputFormat
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.cli.arguments import require_export_room
from dinov2rt.cli.output import mib, progress
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.errors import BackendError, ExportError, InputError
from dinov2rt.foreign import shown
from dinov2rt.runtime.backends.modes import BackendName
from dinov2rt.runtime.backends.onnxruntime import cannot_run
from dinov2rt.runtime.backends.openvino import cannot_run_bf16
from dinov2rt.runtime.model import load
from dinov2rt.runtime.verification import verify_cuda_graph_on_cpu, verify_static_graph

AUTO = "auto"
_INPUTS = {"pixels": InputFormat.PIXELS, "normalized": InputFormat.IMAGES}


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "variant",
        metavar="VARIANT",
        help="what the weights must be, e.g. dinov2_vits14_reg (see: info); or auto: whatever they "
        "are",
    )
    parser.add_argument(
        "--weights",
        default="official",
        metavar="W",
        help="official (default), synthetic:SEED, a checkpoint (.pth, .pt, .ckpt, .bin, "
        ".safetensors), a folder of transformers or timm, or OWNER/NAME on the Hugging Face hub",
    )
    parser.add_argument(
        "--prefix",
        metavar="P",
        help="what the names of the backbone begin with in the checkpoint, such as "
        "teacher.backbone (default: where a whole backbone is)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the bundle (default: artifacts/VARIANT)"
    )
    parser.add_argument(
        "--input",
        choices=_INPUTS,
        default="pixels",
        help="pixels: uint8 [B, H, W, 3] (default); normalized: float32 [B, 3, H, W]",
    )
    parser.add_argument(
        "--layers",
        help="intermediate blocks to return as well: indices from 0 (2,5,8,11), or the last few "
        "(last4)",
    )
    parser.add_argument(
        "--unnormed",
        action="store_true",
        help="return the tokens of --layers as they are, without the final norm",
    )
    parser.add_argument(
        "--x-prenorm",
        action="store_true",
        help="return the last block's tokens before the final norm as well",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="return the CLS token's attention to each patch in the last block as well, per head",
    )
    parser.add_argument(
        "--head",
        metavar="NAME[=SOURCE],...",
        help="task heads in the same graph: linear, linear4, nyu-linear, nyu-linear4, nyu-dpt, "
        "kitti-linear, kitti-linear4, kitti-dpt, ade20k-linear, ade20k-ms, voc2012-linear, "
        "voc2012-ms; SOURCE is official (default), a .pth or .safetensors file, or synthetic:SEED; "
        "classifier=FILE and segmenter=FILE are your own, by train-head",
    )
    parser.add_argument(
        "--precision",
        default="fp32,fp16",
        metavar="P,...",
        help="a graph for each of fp32, fp16, bf16 and int8 (default: fp32,fp16); bf16 is for "
        "TensorRT (a CPU computes the fp32 graph in bf16); int8, for CPUs, takes minutes to be "
        "searched for",
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=OPSET,
        metavar="N",
        help=f"of the graphs: {OPSET} (default), or 17, 20 or 21 for ONNX Runtime from 1.15, 1.17 "
        "or 1.18 on",
    )
    parser.add_argument(
        "--static",
        metavar="BxHxW",
        help="write each graph once more for this one batch and size, for engines that take no "
        "other; pixels, such as 1x224x224",
    )
    _add_architecture(parser)
    parser.add_argument("--force", action="store_true", help="replace the bundle that is there")


def _add_architecture(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "of the weights, where neither their tensors nor the files beside them tell it"
    )
    group.add_argument(
        "--mean",
        metavar="R,G,B",
        help="of the input, for pixels in 0..1 (default: as the files beside the weights say, else "
        "ImageNet's)",
    )
    group.add_argument("--std", metavar="R,G,B", help="standard deviation, as --mean")
    group.add_argument(
        "--antialias",
        choices=("on", "off"),
        help="of the resampled position table (default: on with registers, off without)",
    )
    group.add_argument(
        "--offset",
        type=float,
        metavar="F",
        help="added to the grid that the table is resampled to (default: 0 with registers, 0.1 "
        "without)",
    )
    group.add_argument(
        "--interpolation",
        choices=("official", "source"),
        default="official",
        help="of the position table: as the official code does (default), or as the library does "
        "that the weights are from, transformers or timm",
    )
    group.add_argument(
        "--num-heads", type=int, metavar="N", help="of attention (default: heads are 64 wide)"
    )
    group.add_argument(
        "--grid", metavar="ROWSxCOLUMNS", help="of the position table (default: a square)"
    )


def _run(arguments: Namespace) -> Outcome:
    variant = None if arguments.variant == AUTO else find_variant(arguments.variant)
    layers = parse_layers(arguments.layers, variant) if arguments.layers is not None else ()
    precisions = tuple(map(Precision.parse, arguments.precision.split(",")))
    out = arguments.out or Path("artifacts", arguments.variant)
    require_export_room("exporting a bundle")
    manifest = _export(variant, out, layers, precisions, arguments)
    unverifiable = _unverifiable(manifest)
    return _outcome(out, manifest, _verify(out, manifest, unverifiable), unverifiable)


def _export(
    variant: Variant | None,
    out: Path,
    layers: tuple[int, ...],
    precisions: tuple[Precision, ...],
    arguments: Namespace,
) -> Manifest:
    from dinov2rt.export.exporter import ExportOptions, export_bundle
    from dinov2rt.export.heads.checkpoint import HeadSource
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
        _INPUTS[arguments.input],
        layers,
        precisions,
        stated=stated,
        prefix=arguments.prefix,
        unnormed=arguments.unnormed,
        x_prenorm=arguments.x_prenorm,
        attention=arguments.attention,
        opset=arguments.opset,
        static=None if arguments.static is None else StaticShape.parse(arguments.static),
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


def parse_normalization(mean: str | None, std: str | None) -> Normalization | None:
    """Statistics from "0.5,0.5,0.5" each; None where neither is given.

    Raises:
        InputError: one without the other, or anything but three numbers.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("--mean and --std belong together; give both, or neither")
    try:
        (red, green, blue), (of_red, of_green, of_blue) = (
            [float(value) for value in text.split(",")] for text in (mean, std)
        )
        return Normalization((red, green, blue), (of_red, of_green, of_blue))
    except ValueError as error:
        raise InputError(
            f"--mean {mean!r} --std {std!r}; allowed are three numbers each, a std above 0, "
            "such as 0.485,0.456,0.406"
        ) from error


def parse_grid(text: str) -> Grid:
    """Rows and columns from "16x32".

    Raises:
        InputError: anything else.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise InputError(f"--grid {text!r}; allowed is ROWSxCOLUMNS in patches, such as 16x32")
    return Grid(int(match[1]), int(match[2]))


def parse_layers(text: str, variant: Variant | None) -> tuple[int, ...]:
    """Block indices, ascending, from "2,5,8,11" or "last4".

    Without a `variant` the depth is not known yet: the last four are -4 to -1 then.

    Raises:
        InputError: anything else, or a block that `variant` does not have.
    """
    depth = 0 if variant is None else variant.depth
    last = re.fullmatch(r"last(\d{1,4})", text)
    layers = tuple(sorted(range(depth - int(last[1]), depth) if last else _numbers(text)))
    there = set(
        layers if variant is None and (last or min(layers, default=-1) >= 0) else range(depth)
    )
    if not layers or not set(layers) <= there or len(set(layers)) < len(layers):
        name, end = ("auto", "the last") if variant is None else (variant.name, str(depth - 1))
        raise InputError(
            f"layers {text!r}; allowed for {name} are different block indices from 0 to {end}, "
            f"such as 2,5,8,11, or lastN with N from 1 to {depth or 'the depth'}, such as last4"
        )
    return layers


def _numbers(text: str) -> list[int]:
    try:
        return [int(index) for index in text.split(",")]
    except ValueError:
        return []


def _unverifiable(manifest: Manifest) -> dict[Precision, str]:
    """The graphs that cannot be run here, and why."""
    missing = cannot_run("cpu")
    if missing:
        return dict.fromkeys((graph.precision for graph in manifest.graphs), missing)
    reason = "ONNX Runtime has no bf16 on a CPU; verify its graph where its plan is built"
    return {graph.precision: reason for graph in manifest.graphs if graph.precision == "bf16"}


def _verify(
    out: Path, manifest: Manifest, unverifiable: dict[Precision, str]
) -> tuple[AccuracyReport, ...]:
    reports = []
    for precision, backend in _runs(manifest, unverifiable):
        progress(f"verifying {precision} with {backend}")
        try:
            with load(out, device="cpu", backend=backend, precision=precision) as model:
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
    return tuple(reports)


def _runs(
    manifest: Manifest, unverifiable: dict[Precision, str]
) -> Iterator[tuple[Precision, BackendName]]:
    """The graphs that can run on this CPU; the fp32 graph in bfloat16 as well."""
    for precision in (graph.precision for graph in manifest.graphs):
        if precision not in unverifiable:
            yield precision, "openvino" if precision is Precision.INT8 else "onnxruntime"
    if any(graph.in_bf16 for graph in manifest.graphs) and cannot_run_bf16() is None:
        yield Precision.BF16, "openvino"


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
        *([_quantized(quantization, manifest.architecture)] if quantization else []),
        *(f"not verified: {precision}: {reason}" for precision, reason in unverifiable.items()),
    ]
    return Outcome(document, "\n".join(lines), status_of(passed))


def _quantized(entry: QuantizationEntry, architecture: Architecture) -> str:
    from dinov2rt.export.int8.products import product_names

    return (
        f"int8: {len(entry.float32)} of {len(product_names(architecture))} products stayed float32 "
        "(the manifest names them); on other crops the smallest cosine of a CLS token is "
        f"{entry.cls_cosine_min:.6f}, the first percentile of other tokens "
        f"{entry.token_cosine_p1:.6f}; {entry.kept_nearest:.1%} keep their nearest neighbour, "
        f"or one as near up to {NEAREST_TIE}, {entry.same_nearest:.1%} the very same"
    )


EXPORT = Verb("export", "turn a checkpoint into a bundle", _add_arguments, _run)
