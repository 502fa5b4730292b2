"""`dinov2rt build`: a bundle's graph becomes a TensorRT plan in the bundle."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dinov2rt.bundle.entries import Flavour, PlanEntry
from dinov2rt.bundle.precision import Precision
from dinov2rt.cli.arguments import add_bundle
from dinov2rt.cli.output import mib, progress, table
from dinov2rt.cli.verb import Outcome, Verb
from dinov2rt.engines.build import build_plan
from dinov2rt.engines.flavours import OPEN
from dinov2rt.engines.options import BuildOptions, HardwareCompatibility
from dinov2rt.optional import require
from dinov2rt.runtime.selection import CUDA_TARGET

_DEFAULTS = BuildOptions()
_HEADER = ("profile", "batch x height x width", "scratch memory")


def _add_arguments(parser: ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument(
        "--target",
        default=_DEFAULTS.target,
        help="compute capability of the GPU that the plan is for, such as sm80 (default; 8.0, "
        "sm_80 and A100 mean the same), or current, or open; or onnxruntime-cuda: no plan, but the "
        "graph for ONNX Runtime on any NVIDIA GPU",
    )
    parser.add_argument(
        "--flavour",
        default=_DEFAULTS.flavour,
        help="tensorrt, tensorrt-rtx, or auto: tensorrt where it and a GPU are, else the other",
    )
    parser.add_argument(
        "--precision", default=str(_DEFAULTS.precision), help="of the graph (default: fp16)"
    )
    parser.add_argument("--force", action="store_true", help="replace the plan that is there")
    _add_profiles(parser)
    _add_builder_options(parser)


def _add_profiles(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("shapes")
    group.add_argument(
        "--profiles",
        default=_DEFAULTS.profiles,
        metavar="P,...",
        help="sides of squares, HEIGHTxWIDTH, wide (any size), or MIN..OPT..MAX as "
        "BATCHxHEIGHTxWIDTH (default: 224, the size of the position table, and wide)",
    )
    group.add_argument(
        "--max-batch", type=int, default=_DEFAULTS.max_batch, help="images (default: %(default)s)"
    )
    group.add_argument(
        "--max-size",
        type=int,
        default=_DEFAULTS.max_size,
        help="longest side in pixels of wide (default: %(default)s)",
    )


def _add_builder_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("the builder; what a flavour lacks is refused")
    group.add_argument(
        "--memory-limit", type=int, metavar="MIB", help="most scratch memory of a profile"
    )
    group.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="in place of the one beside the bundle"
    )
    group.add_argument("--optimization-level", type=int, metavar="N", help="0 to 5")
    group.add_argument(
        "--version-compatible", action="store_true", help="runs with later versions as well"
    )
    group.add_argument(
        "--strip-weights", action="store_true", help="without weights; refitted from the graph"
    )
    group.add_argument(
        "--weight-streaming", action="store_true", help="weights may stay in host memory"
    )
    group.add_argument(
        "--hardware-compatible",
        choices=[level.value for level in HardwareCompatibility],
        help="runs on other GPUs as well, and slower",
    )


def _run(arguments: Namespace) -> Outcome:
    if arguments.target == CUDA_TARGET:
        return _add_cuda_graph(arguments.bundle)
    options = BuildOptions(
        target=arguments.target,
        flavour=arguments.flavour,
        precision=Precision.parse(arguments.precision),
        profiles=arguments.profiles,
        max_batch=arguments.max_batch,
        max_size=arguments.max_size,
        memory_limit_mib=arguments.memory_limit,
        timing_cache=arguments.timing_cache,
        optimization_level=arguments.optimization_level,
        version_compatible=arguments.version_compatible,
        strip_weights=arguments.strip_weights,
        weight_streaming=arguments.weight_streaming,
        hardware_compatible=(
            HardwareCompatibility(arguments.hardware_compatible)
            if arguments.hardware_compatible
            else None
        ),
    )
    return _outcome(
        arguments.bundle, build_plan(arguments.bundle, options, progress, force=arguments.force)
    )


def _add_cuda_graph(bundle: Path) -> Outcome:
    for package in ("onnx_ir", "ml_dtypes"):
        require(package, extra="export", purpose=f"building for {CUDA_TARGET}")
    from dinov2rt.export.cuda.bundle_graph import add_cuda_graph

    graph = add_cuda_graph(bundle, progress)
    own = graph.files[:2]
    size = mib(sum(file.size_bytes for file in own))
    lines = [
        f"{bundle / own[0].path}: {size}; the fp16 graph in the fused operators of ONNX Runtime",
        f"unverified: compare it on an NVIDIA GPU with: dinov2rt verify {bundle} --device cuda",
    ]
    return Outcome({"bundle": bundle, "graph": graph}, "\n".join(lines))


def _outcome(bundle: Path, plan: PlanEntry) -> Outcome:
    rows = [(entry.name, str(entry.shapes), mib(entry.scratch_bytes)) for entry in plan.profiles]
    lines = [
        _kind(plan),
        f"{bundle / plan.file.path}: {mib(plan.file.size_bytes)}, {mib(plan.weight_bytes)} of "
        f"weights, in {plan.build_seconds:.0f} s",
        f"attention: one fused kernel in each of {plan.fused_attention} blocks, in every profile",
        table(_HEADER, rows),
        f"unverified: compare it on a {plan.target} GPU with: dinov2rt verify {bundle}",
    ]
    document = {"bundle": bundle, "plan": plan, "verified": plan.verification is not None}
    return Outcome(document, "\n".join(lines))


def _kind(plan: PlanEntry) -> str:
    """Lines on the plan that was built, and where it runs."""
    gpus = "GPUs that it knows" if plan.target == OPEN else f"{plan.target} GPUs"
    if plan.flavour is Flavour.TENSORRT:
        return (
            f"a TensorRT plan, {plan.precision}: runs on {gpus} with TensorRT {plan.version}, "
            "here and in Triton"
        )
    return (
        f"a TensorRT for RTX plan, {plan.precision}: runs on {gpus} with TensorRT for RTX "
        f"{plan.version}, and not with TensorRT; build that with --flavour tensorrt on the GPU"
    )


BUILD = Verb("build", "build a TensorRT plan into a bundle", _add_arguments, _run)
