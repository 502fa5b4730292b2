"""Measures bundles and yields a `BenchmarkRun`: the work of `dinov2rt bench`."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from dinov2rt._version import __version__
from dinov2rt.benchmarks.harness.entrants import Say, own_candidates
from dinov2rt.benchmarks.harness.environment import describe_environment
from dinov2rt.benchmarks.harness.gpu_state import GpuState, watched
from dinov2rt.benchmarks.harness.measure import Measured, Request, measure_bundle
from dinov2rt.benchmarks.harness.peak_rates import measure_peak_rates, unmeasured_peak_rates
from dinov2rt.benchmarks.harness.photo_batch import DESCRIPTION
from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.results import (
    SCHEMA_VERSION,
    BenchmarkRun,
    BundleFacts,
    Environment,
    Settings,
)
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.manifest import MANIFEST_NAME, Manifest
from dinov2rt.errors import InputError


def bench(
    bundles: Sequence[Path], request: Request, *, command: str, say: Say
) -> Iterator[BenchmarkRun]:
    """Measure `bundles` one after the other.

    Yields the run so far: with its settings before anything is measured, with the
    machine's peak rates before the first cell, then after every cell. The last one is whole.

    Raises:
        InputError: two bundles are of one variant, nothing of dinov2rt is for one of them, or a
            size is below one patch.
        CandidateError: the reference cannot be loaded.
        BundleError: a bundle cannot be read.
    """
    run = _empty_run(bundles, request, command)
    yield run
    say("measuring what this machine can do at most")
    run = replace(
        run, peak_rates=measure_peak_rates(request.device, request.threads, request.matrix_library)
    )
    yield run
    done, so_far = Measured(), Measured()
    with watched() as gpu:
        for bundle in bundles:
            for so_far in measure_bundle(bundle, request, run.peak_rates, say):
                yield _with(run, done + so_far)
            done += so_far
    yield _with(replace(run, environment=_under_load(run.environment, gpu)), done)


def _with(run: BenchmarkRun, measured: Measured) -> BenchmarkRun:
    return replace(
        run,
        candidates=measured.candidates,
        missing=measured.missing,
        rows=measured.rows,
    )


def _under_load(environment: Environment, gpu: GpuState) -> Environment:
    return replace(
        environment,
        details=environment.details | gpu.details,
        warnings=(*environment.warnings, *gpu.warnings),
    )


def _empty_run(bundles: Sequence[Path], request: Request, command: str) -> BenchmarkRun:
    """The facts of a run before anything is measured."""
    facts = tuple(_bundle_facts(bundle) for bundle in bundles)
    _check_variants_differ(facts)
    _check_sizes(bundles, request)
    for bundle in bundles:
        own_candidates(request.own, Workload(bundle, request.device, request.threads))
    return BenchmarkRun(
        schema=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        version=__version__,
        settings=Settings(
            threads=request.threads,
            device=request.device,
            images=DESCRIPTION,
            seconds_per_candidate=request.seconds,
            min_turns=request.min_turns,
            processes=request.processes,
        ),
        environment=describe_environment(request.device),
        peak_rates=unmeasured_peak_rates(request.device),
        bundles=facts,
        candidates=(),
        missing=(),
        rows=(),
    )


def _check_variants_differ(facts: Sequence[BundleFacts]) -> None:
    variants = [bundle.variant for bundle in facts]
    for variant in variants:
        if variants.count(variant) > 1:
            raise InputError(
                f"{variants.count(variant)} bundles are of {variant}, so their rows would have the "
                "same name; measure them one after the other and compare with --against"
            )


def _check_sizes(bundles: Sequence[Path], request: Request) -> None:
    """Refuse a size below one patch of a bundle, before anything is measured."""
    for bundle, size in product(bundles, request.sizes):
        size.snapped(Snap.CROP, Manifest.read(bundle).architecture.patch_size)


def _bundle_facts(bundle: Path) -> BundleFacts:
    manifest = Manifest.read(bundle)
    return BundleFacts(
        variant=manifest.name,
        weights_source=manifest.weights.source,
        weights_sha256=manifest.weights.sha256,
        manifest_sha256=hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest(),
    )
