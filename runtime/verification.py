"""Is what runs still what was exported? Compared with the eager model, and noted down for plans."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from dinov2rt.bundle.accuracy import AccuracyReport, compare
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.manifest import GraphEntry, Manifest, PlanEntry, VerificationEntry
from dinov2rt.errors import PlanInputError, PlanWarning
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.gpu.cuda import Gpu


def compare_all(backend: Backend, graph: GraphEntry, cases: Sequence[GoldenCase]) -> AccuracyReport:
    """Every output of `graph` on `backend` against the eager model's, for every case.

    A case of a shape that a plan has no profile for is left out with a warning.

    Raises:
        BundleError: a case is not of this graph's export.
    """
    limits = graph.limits
    compared = []
    for case in cases:
        try:
            outputs = backend.infer({graph.input_name: case.images}, graph.outputs)
        except PlanInputError as error:
            warnings.warn(f"golden case {case.name} is left out: {error}", PlanWarning, 3)
            continue
        compared += [
            compare(case.name, name, got, case.reference(name), limits)
            for name, got in outputs.items()
        ]
    return AccuracyReport(graph.precision, backend.description, limits, tuple(compared))


def doubt(manifest: Manifest, plan: PlanEntry, gpu: Gpu) -> str | None:
    """Why the outputs of `plan` are not vouched for on `gpu`, or None where `manifest` says so."""
    notes = {entry.file: entry.verification for entry in manifest.plans}
    seen = notes.get(plan.file)
    if seen is None:
        return "unverified: never compared with the golden outputs; see `dinov2rt verify`"
    if (seen.machine, seen.driver) != (gpu.name, gpu.driver):
        return (
            f"unverified here: compared on {seen.machine} with driver {seen.driver}, this is "
            f"{gpu.name} with driver {gpu.driver}; see `dinov2rt verify`"
        )
    return None


def note_down(bundle: Path, plan: PlanEntry, gpu: Gpu, report: AccuracyReport) -> Manifest:
    """Write into the manifest that `plan` passed `report` on `gpu`, now; returns it as written.

    It is read anew, since a build may have added a plan meanwhile.

    Raises:
        BundleError: it cannot be read or written.
    """
    manifest = Manifest.read(bundle)
    entry = VerificationEntry(
        machine=gpu.name,
        driver=gpu.driver,
        date=datetime.now(UTC).date().isoformat(),
        cosine_min=report.cosine_min,
        relative_l2=report.relative_l2,
    )
    plans = tuple(
        replace(other, verification=entry) if other.file == plan.file else other
        for other in manifest.plans
    )
    noted = replace(manifest, plans=plans)
    noted.write(bundle)
    return noted
