"""`dinov2rt info`: lists the eight variants, or shows the contents of a bundle."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import FileEntry, GraphEntry, PlanEntry
from dinov2rt.bundle.golden import Golden
from dinov2rt.bundle.heads import HeadEntry, Task
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.signature import InputFormat, scores_name
from dinov2rt.bundle.variants import variants
from dinov2rt.cli.arguments import add_bundle
from dinov2rt.cli.output import mib, table
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.errors import BundleError, InputError

_FLOAT32_BYTES = 4
_INPUT_SHAPES = {
    InputFormat.PIXELS: "uint8 [B, H, W, 3], RGB",
    InputFormat.IMAGES: "float32 [B, 3, H, W], RGB, normalised",
}


def _add_arguments(parser: ArgumentParser) -> None:
    add_bundle(parser, optional=True)
    parser.add_argument(
        "--check", action="store_true", help="hash every file of the bundle; exit 1 if one differs"
    )


def _run(arguments: Namespace) -> Outcome:
    if arguments.bundle is not None:
        return _bundle(arguments.bundle, check=arguments.check)
    if arguments.check:
        raise InputError("--check hashes the files of a bundle; name one: dinov2rt info BUNDLE")
    return _variants()


def parameter_count(architecture: Architecture) -> int:
    """Numbers in the official checkpoint, the unused mask token included."""
    dim, hidden = architecture.embed_dim, architecture.hidden_dim
    positions = 1 + architecture.native_grid.num_patches
    tokens = (1 + architecture.num_registers + 1 + positions) * dim  # CLS, mask, positions
    patch_embed = _linear(3 * architecture.patch_size**2, dim)
    if architecture.ffn == "mlp":
        ffn = _linear(dim, hidden) + _linear(hidden, dim)
    else:
        ffn = _linear(dim, 2 * hidden) + _linear(hidden, dim)
    attention = _linear(dim, 3 * dim) + _linear(dim, dim) - 3 * dim * (not architecture.qkv_bias)
    norms, layer_scales = 2 * 2 * dim, 2 * dim * architecture.layer_scale
    block = norms + attention + layer_scales + ffn
    return tokens + patch_embed + architecture.depth * block + 2 * dim


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _variants() -> Outcome:
    facts = [
        {
            "name": variant.name,
            "embed_dim": variant.embed_dim,
            "depth": variant.depth,
            "num_heads": variant.num_heads,
            "ffn": variant.ffn,
            "num_registers": variant.num_registers,
            "parameters": parameter_count(variant),
            "fp32_bytes": _FLOAT32_BYTES * parameter_count(variant),
        }
        for variant in variants()
    ]
    rows = [
        (
            *(str(fact[key]) for key in list(fact)[:6]),
            f"{parameter_count(variant) / 1e6:.1f} M",
            mib(_FLOAT32_BYTES * parameter_count(variant)),
        )
        for fact, variant in zip(facts, variants(), strict=True)
    ]
    header = ("variant", "D", "depth", "heads", "FFN", "registers", "parameters", "fp32")
    return Outcome({"variants": facts}, table(header, rows))


def _bundle(bundle: Path, *, check: bool) -> Outcome:
    manifest, document = Manifest.read_both(bundle)
    files = [
        {"path": entry.path, "size_bytes": entry.size_bytes, "state": state}
        for entry in manifest.files
        for state in [_state(bundle, entry, manifest, check=check)]
    ]
    intact = all(file["state"] in ("there", "intact") for file in files)
    golden_cases, golden_error = _golden_cases(bundle, manifest)
    outcome: dict[str, Any] = {
        "bundle": bundle,
        "manifest": document,
        "inputs": {graph.input_name: _input_shape(graph) for graph in manifest.graphs},
        "outputs": _output_shapes(manifest),
        "files": files,
        "golden_cases": golden_cases,
        "golden_error": golden_error,
        "hashes_checked": check,
        "intact": intact,
    }
    return Outcome(outcome, _bundle_text(manifest, outcome), status_of(intact or not check))


def _state(bundle: Path, entry: FileEntry, manifest: Manifest, *, check: bool) -> str:
    """Whether the file is there, and with `check` whether it is intact."""
    if not check:
        return "there" if (bundle / entry.path).is_file() else "missing"
    rebuild = manifest.rebuild_command(bundle)
    try:
        for graph in manifest.all_graphs:
            if entry == graph.files[0]:
                graph.check_references(bundle, entry.read(bundle, rebuild=rebuild))
                return "intact"
        entry.check(bundle, rebuild=rebuild)
    except BundleError as error:
        return str(error)
    return "intact"


def _golden_cases(bundle: Path, manifest: Manifest) -> tuple[dict[str, list[int]], str | None]:
    """The shapes of the images of each case, and the fault of the file, if any."""
    try:
        content = manifest.golden.read(bundle, rebuild=manifest.rebuild_command(bundle))
        golden = Golden.parse(content, str(bundle / manifest.golden.path))
        return {case.name: list(case.images.shape) for case in golden.cases}, None
    except BundleError as error:
        return {}, str(error)


def _input_shape(graph: GraphEntry) -> str:
    return _INPUT_SHAPES[InputFormat(graph.input_name)]


def _output_shapes(manifest: Manifest) -> dict[str, str]:
    architecture = manifest.architecture
    dim, registers = architecture.embed_dim, architecture.num_registers
    patches = f"(H // {architecture.patch_size})·(W // {architecture.patch_size})"
    shapes = {
        "cls_token": f"[B, {dim}]",
        "register_tokens": f"[B, {registers}, {dim}]",
        "patch_tokens": f"[B, {patches}, {dim}]",
        "x_prenorm": f"[B, {1 + registers} + {patches}, {dim}]",
        "attention": f"[B, {architecture.num_heads}, {patches}]",
    }
    for head in manifest.heads:
        shapes |= _head_shapes(head, architecture.patch_size)
    names = dict.fromkeys(name for graph in manifest.graphs for name in graph.outputs)
    return {
        name: next((shape for kind, shape in shapes.items() if name.endswith(kind)), "unknown")
        for name in names
    }


def _head_shapes(head: HeadEntry, patch_size: int) -> dict[str, str]:
    """Shapes of a head's outputs; dense heads pad H and W to whole patches."""
    if head.task is Task.CLASSIFICATION:
        return {head.output: f"[B, {head.num_classes}]"}
    if head.task is Task.DEPTH:
        return {head.output: "[B, H, W] in metres"}
    grid = f"[B, {head.num_classes}, ⌈H / {patch_size}⌉, ⌈W / {patch_size}⌉]"
    return {scores_name(head.output): grid, head.output: "[B, H, W] classes, uint8"}


def _head(head: HeadEntry) -> str:
    blocks = ", ".join(map(str, head.layers))
    depth = (
        "" if head.depth_range is None else f", {head.depth_range[0]} to {head.depth_range[1]} m"
    )
    return f"{head.name} from {head.source}, blocks {blocks}{depth}, SHA-256 {head.sha256[:16]}…"


def _bundle_text(manifest: Manifest, outcome: dict[str, Any]) -> str:
    facts = [
        ("variant", manifest.name),
        ("architecture", describe(manifest.architecture)),
        ("weights", f"{manifest.weights.source}, SHA-256 {manifest.weights.sha256}"),
        *([("", manifest.weights.selection)] if manifest.weights.selection else []),
        ("made with", ", ".join(f"{name} {number}" for name, number in manifest.tools.items())),
        *(("head", _head(head)) for head in manifest.heads),
        *(("graph", f"{graph.precision}, opset {graph.opset}") for graph in manifest.graphs),
        *((f"input {name}", shape) for name, shape in outcome["inputs"].items()),
        *((f"output {name}", shape) for name, shape in outcome["outputs"].items()),
        *(("plan", _plan(plan)) for plan in manifest.plans),
        ("golden cases", outcome["golden_error"] or ", ".join(outcome["golden_cases"])),
    ]
    rows = [(file["path"], mib(file["size_bytes"]), file["state"]) for file in outcome["files"]]
    return f"{table(('bundle', str(outcome['bundle'])), facts)}\n\n" + table(
        ("file", "size", "state"), rows
    )


def describe(architecture: Architecture) -> str:
    """All of `architecture`, in one line."""
    given = architecture
    parts = [
        f"{given.depth} blocks of width {given.embed_dim}",
        f"{given.num_heads} heads",
        f"{given.ffn} of {given.hidden_dim}",
        f"patch {given.patch_size}",
        f"{given.num_registers} registers",
        f"positions {given.native_grid}",
        f"antialias {'on' if given.antialias else 'off'}",
        f"offset {given.offset:g}",
        str(given.normalization),
        *(["no LayerScale"] if not given.layer_scale else []),
        *(["no bias of q, k, v"] if not given.qkv_bias else []),
    ]
    return ", ".join(parts)


def _plan(plan: PlanEntry) -> str:
    profiles = ", ".join(f"{profile.name} {profile.shapes}" for profile in plan.profiles)
    verified = plan.verification
    agreement = "unverified"
    if verified is not None:
        agreement = f"relative L2 {verified.relative_l2:.2e} on {verified.machine}"
    return (
        f"{plan.file.path}: {plan.precision} for {plan.target}, {plan.flavour} {plan.version}, "
        f"profiles {profiles}, {agreement}"
    )


INFO = Verb("info", "show the eight variants, or what is in a bundle", _add_arguments, _run)
