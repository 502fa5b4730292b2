"""From bundles to one `BenchmarkRun`: what `dinov2rt bench` does."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from dinov2rt._version import __version__
from dinov2rt.benchmarks.environment import describe_environment
from dinov2rt.benchmarks.measure import Measured, Request, Say, measure_bundle
from dinov2rt.benchmarks.photo_batch import DESCRIPTION
from dinov2rt.benchmarks.results import SCHEMA_VERSION, BenchmarkRun, BundleFacts, Settings
from dinov2rt.benchmarks.roof import measure_roof
from dinov2rt.runtime.manifest import MANIFEST_NAME, Manifest


def bench(bundles: Sequence[Path], request: Request, *, command: str, say: Say) -> BenchmarkRun:
    """Measure `bundles` one after the other.

    Raises:
        CandidateError: the reference could not run.
        BundleError: a bundle cannot be read.
    """
    facts = [_bundle_facts(bundle) for bundle in bundles]
    environment = describe_environment(request.device)
    say("measuring what this machine can do at most")
    roof = measure_roof(request.device, request.threads)
    measured = Measured()
    for bundle in bundles:
        measured.extend(measure_bundle(bundle, request, roof, say))
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
        ),
        environment=environment,
        roof=roof,
        bundles=tuple(facts),
        candidates=tuple(measured.candidates),
        missing=tuple(measured.missing),
        rows=tuple(measured.rows),
    )


def _bundle_facts(bundle: Path) -> BundleFacts:
    manifest = Manifest.read(bundle)
    return BundleFacts(
        variant=manifest.variant.name,
        weights_source=manifest.weights.source,
        weights_sha256=manifest.weights.sha256,
        manifest_sha256=hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest(),
    )
