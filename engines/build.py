"""Builds a TensorRT plan from a bundle's graph and adds it to the bundle."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dinov2rt.bundle.entries import GraphEntry, PlanEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.profiles import ProfileEntry, ShapeRange
from dinov2rt.bundle.replaced import not_replaced
from dinov2rt.engines import fusion, timing_cache
from dinov2rt.engines.builder_log import make_logger
from dinov2rt.engines.configure import configure
from dinov2rt.engines.flavours import BuildFacts, Toolkit, find_toolkit
from dinov2rt.engines.options import BuildOptions, canonical_target
from dinov2rt.engines.plans import FOLDER, identity_of, record_plan, write_plan
from dinov2rt.engines.profile_syntax import default_profiles, parse_profiles
from dinov2rt.errors import BackendError, BuildError, BundleError, Dinov2rtError, InputError
from dinov2rt.files import require_utf8

Progress = Callable[[str], None]

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class _Job:
    """The inputs of a build, resolved and checked before the builder starts."""

    bundle: Path
    options: BuildOptions
    toolkit: Toolkit
    target: str
    graph: GraphEntry
    depth: int
    profiles: Mapping[str, ShapeRange]
    cache_file: Path | None

    @property
    def plan_name(self) -> str:
        """Target, flavour, version and precision: unique in the bundle."""
        toolkit = self.toolkit
        return f"{self.target}-{toolkit.flavour}-{toolkit.version}-{self.graph.precision}"

    @property
    def rejection_file(self) -> Path:
        """The file that explains why the plan was rejected."""
        return self.bundle / FOLDER / f"{self.plan_name}.refused.txt"


@dataclass(frozen=True, slots=True)
class _Built:
    """A serialized plan and the facts read back from it."""

    plan: Any
    precision: Precision
    input_name: str
    outputs: tuple[str, ...]
    facts: BuildFacts
    fused_attention: int
    seconds: float


def build_plan(
    bundle: Path,
    options: BuildOptions,
    progress: Progress = lambda _: None,
    *,
    force: bool = False,
) -> PlanEntry:
    """Build a plan from the bundle's graph and add it to the bundle.

    With `force` it replaces the plan of the same target, flavour, version and precision, which is
    refused otherwise. A plan is unverified until `verify` has compared it with the golden outputs
    on a GPU of its target. If the build fails, the builder's log is kept beside the plans, in a
    file that the error names.

    Args:
        bundle: the bundle's directory.
        options: see `BuildOptions`.
        progress: told what is being done.
        force: replace a plan that is there already.

    Raises:
        BundleError: the bundle is unreadable or altered, or has no graph of that precision.
        InputError: an option has an unknown value, the flavour does not support it, or the bundle
            already has such a plan.
        BackendError: the flavour cannot build here.
        MissingDependencyError: the flavour's package is not installed.
        FusionError: attention is not exactly one fused kernel per block in every profile.
        BuildError: the builder failed, or a profile needs more memory than allowed.
    """
    with not_replaced(bundle) as watch:
        manifest = Manifest.read(bundle)
        target = canonical_target(options.target)
        job = _decide(bundle, manifest, replace(options, target=target))
        if not force:
            _refuse_to_replace(job, manifest)
        watch.add(job.graph.files)
        progress(f"checking the files of the {job.graph.precision} graph")
        rebuild = manifest.rebuild_command(bundle)
        built = _build(job, job.graph.check(bundle, rebuild=rebuild), progress)
    _check_memory(job, built.facts)
    progress("writing the plan")
    entry = _write(job, built)
    record_plan(bundle, entry)
    return entry


def _refuse_to_replace(job: _Job, manifest: Manifest) -> None:
    identity = (job.target, job.toolkit.flavour, job.toolkit.version, job.graph.precision)
    for plan in manifest.plans:
        if identity_of(plan) == identity:
            profiles = ", ".join(f"{entry.name} ({entry.shapes})" for entry in plan.profiles)
            raise InputError(
                f"{job.bundle} holds a {plan.precision} plan of {job.toolkit.name} for "
                f"{plan.target} already, with the profiles {profiles}; --force replaces it"
            )


def _decide(bundle: Path, manifest: Manifest, options: BuildOptions) -> _Job:
    architecture = manifest.architecture
    names = default_profiles(architecture) if options.profiles is None else options.profiles
    profiles = parse_profiles(
        names, architecture, max_batch=options.max_batch, max_size=options.max_size
    )
    toolkit = find_toolkit(options.flavour)
    toolkit.refuse(options)
    target = toolkit.resolve_target(options.target)
    cache_file = None
    if toolkit.has_timing_cache:
        cache_file = options.timing_cache or timing_cache.default_file(bundle, toolkit, target)
    return _Job(
        bundle=bundle,
        options=options,
        toolkit=toolkit,
        target=target,
        graph=_find_graph(bundle, manifest, options.precision),
        depth=architecture.depth,
        profiles=profiles,
        cache_file=cache_file,
    )


def _find_graph(bundle: Path, manifest: Manifest, precision: Precision) -> GraphEntry:
    for graph in manifest.graphs:
        if graph.precision is precision:
            return graph
    there = ", ".join(graph.precision for graph in manifest.graphs)
    raise BundleError(
        f"{bundle} holds no {precision} graph, only {there}; {manifest.rebuild_command(bundle)}"
    )


def _parse(parser: Any, onnx_file: Path, toolkit: str) -> None:
    try:
        require_utf8(onnx_file)
    except OSError as error:
        raise BundleError(f"{onnx_file} cannot be parsed ({error.strerror})") from error
    if not parser.parse_from_file(str(onnx_file)):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise BuildError(f"{toolkit} cannot parse {onnx_file}: {_one_line(reasons)}")


def _build(job: _Job, onnx_file: Path, progress: Progress) -> _Built:
    """Parse the graph and build the plan; check fusion after both steps."""
    trt, started = job.toolkit.trt, time.perf_counter()
    log = make_logger(trt)
    progress(f"parsing {onnx_file.name}")
    builder = _new_builder(job.toolkit, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)  # owns the weights: must live until the plan is built
    _parse(parser, onnx_file, job.toolkit.name)
    blocks = fusion.read_network(trt, network)
    precision = fusion.check_network(blocks, job.depth, job.graph.precision)
    config = configure(job.toolkit, builder, network.get_input(0).name, job.options, job.profiles)
    if job.cache_file is not None:
        timing_cache.attach(config, job.cache_file)
    progress(f"building {len(job.profiles)} profiles for {job.target} with {job.toolkit.name}")
    with _saved_log(job, log.messages) as evidence:
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _failure(job, log.errors)
        seconds = time.perf_counter() - started
        _save_timing_cache(job, config, progress)
        facts = job.toolkit.read_back(plan, log, len(job.profiles))
        evidence.append(facts.layers)
        fused_attention = fusion.check_kernels(
            facts.layers, list(job.profiles), job.depth, precision
        )
    return _Built(
        plan=plan,
        precision=precision,
        input_name=network.get_input(0).name,
        outputs=tuple(network.get_output(index).name for index in range(network.num_outputs)),
        facts=facts,
        fused_attention=fused_attention,
        seconds=seconds,
    )


@contextmanager
def _saved_log(job: _Job, messages: list[str]) -> Iterator[list[str]]:
    """Save the builder's `messages` and the yielded list of evidence if the plan is rejected.

    Repeating the build may be hard: the machine may be rented.
    """
    evidence: list[str] = []
    file = job.rejection_file
    try:
        yield evidence
    except BuildError as error:
        try:
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join([str(error), *evidence, *messages]), encoding="utf-8")
        except OSError:
            raise error from None  # the reason for the rejection matters more
        raise type(error)(f"{error}; the builder's log is in {file}") from error


def _new_builder(toolkit: Toolkit, log: Any) -> Any:
    try:
        return toolkit.trt.Builder(log)
    except TypeError as error:  # the bindings raise it if the library does not start
        reasons = _one_line("; ".join(log.errors)) or str(error)
        raise BackendError(f"{toolkit.name} does not start here: {reasons}") from error


def _failure(job: _Job, errors: list[str]) -> BuildError:
    if any(fusion.NO_KERNEL in error for error in errors):
        return fusion.no_kernel(job.depth)
    reasons = _one_line("; ".join(errors[-2:])) or "it gave no reason"
    return BuildError(f"{job.toolkit.name} cannot build the plan: {reasons}")


def _save_timing_cache(job: _Job, config: Any, progress: Progress) -> None:
    if job.cache_file is None:
        return
    try:
        timing_cache.save(config, job.cache_file)
    except Dinov2rtError as error:  # the plan is unaffected; only the next build takes longer
        progress(f"{error}; the timing cache is not saved")


def _check_memory(job: _Job, facts: BuildFacts) -> None:
    """Check every profile's scratch memory: not every builder respects the limit that is set."""
    limit = job.options.memory_limit_mib
    for name, scratch_bytes in zip(job.profiles, facts.scratch_bytes, strict=True):
        if limit is not None and scratch_bytes > limit * _MIB:
            raise BuildError(
                f"profile {name} needs {scratch_bytes / _MIB:.0f} MiB of scratch memory, the limit "
                f"is {limit} MiB; lower --max-batch or --max-size, or raise the limit"
            )


def _write(job: _Job, built: _Built) -> PlanEntry:
    toolkit, facts = job.toolkit, built.facts
    file = write_plan(job.bundle, job.plan_name, built.plan)
    job.rejection_file.unlink(missing_ok=True)  # from an earlier build
    return PlanEntry(
        file=file,
        flavour=toolkit.flavour,
        version=toolkit.version,
        target=job.target,
        precision=built.precision,
        input_name=built.input_name,
        outputs=built.outputs,
        profiles=tuple(
            ProfileEntry(name, shapes, scratch_bytes)
            for (name, shapes), scratch_bytes in zip(
                job.profiles.items(), facts.scratch_bytes, strict=True
            )
        ),
        fused_attention=built.fused_attention,
        weight_bytes=facts.weight_bytes,
        build_seconds=round(built.seconds, 1),
        graph_sha256=job.graph.files[0].sha256,
        options=job.options.recorded(),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
