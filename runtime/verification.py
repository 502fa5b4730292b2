"""Compares a backend with the eager model's golden outputs, and records verified plans."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dinov2rt.bundle.accuracy import AccuracyReport, compare_cases
from dinov2rt.bundle.entries import GraphEntry, PlanEntry, VerificationEntry
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.signature import is_token_output
from dinov2rt.bundle.tasks.accuracy import compare_task_cases
from dinov2rt.errors import BundleError, PlanInputError, PlanWarning
from dinov2rt.foreign import shown
from dinov2rt.runtime.backends.grid_inputs import GridInputs
from dinov2rt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.gpu.cuda import Gpu


def compare_all(backend: Backend, graph: GraphEntry, cases: Sequence[GoldenCase]) -> AccuracyReport:
    """Compare every output of `graph` on `backend` with the eager model's, for every case.

    A case whose shape fits no profile of a plan is left out with a warning. With fewer than four
    images, the limits over all cases are wider, see `Limits.for_images`.

    Raises:
        BundleError: a case is from the export of another graph.
    """
    results, tasks, count = [], [], 0
    for case in cases:
        try:
            outputs = backend.infer({graph.input_name: case.images}, graph.outputs)
        except PlanInputError as error:
            warnings.warn(f"golden case {shown(case.name)} is left out: {error}", PlanWarning, 3)
            continue
        want = {name: case.reference(name) for name in outputs}
        tokens = {name: value for name, value in outputs.items() if is_token_output(name)}
        results.append((case.name, tokens, want))
        tasks.append((case.name, outputs, want))
        count += len(case.images)
    limits = graph.limits.for_images(count)
    task_limits = {name: each.for_images(count) for name, each in graph.task_limits.items()}
    compared = compare_cases(results, limits)
    compared_tasks = compare_task_cases(tasks, task_limits)
    return AccuracyReport(
        graph.precision, backend.description, limits, compared, tasks=compared_tasks
    )


def verify_cuda_graph_on_cpu(bundle: Path, manifest: Manifest) -> AccuracyReport:
    """Compare the graph for ONNX Runtime CUDA with the golden outputs, on the CPU provider.

    The CPU provider also has this graph's operators, but they are slow. This checks the graph; the
    GPU's kernels are checked by `verify` on a machine with a GPU.

    Raises:
        BundleError: the bundle has no such graph, or a file is missing or altered.
        BackendError: ONNX Runtime cannot load it.
    """
    graph, backend = cuda_graph_on_cpu(bundle, manifest)
    rebuild = manifest.rebuild_command(bundle)
    golden = Golden.parse(manifest.golden.read(bundle, rebuild=rebuild), manifest.golden.path)
    golden.check(manifest.normalization, rebuild)
    try:
        return compare_all(backend, graph, golden.cases)
    finally:
        backend.close()


def cuda_graph_on_cpu(bundle: Path, manifest: Manifest) -> tuple[GraphEntry, OnnxRuntimeBackend]:
    """The bundle's graph for ONNX Runtime CUDA, loaded on the CPU provider.

    Raises:
        BundleError: the bundle has no such graph, or a file is missing or altered.
        BackendError: ONNX Runtime cannot load it.
    """
    graph, rebuild = manifest.cuda_graph, manifest.rebuild_command(bundle)
    if graph is None:
        raise BundleError(f"{bundle} holds no graph for ONNX Runtime CUDA; {rebuild}")
    file = graph.check(bundle, rebuild=rebuild)

    def complete(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        grid = GridInputs.of(manifest.architecture, graph.input_name, inputs)
        return {**inputs, **grid.arrays()}

    backend = OnnxRuntimeBackend(file, device="cpu", threads=None, complete=complete)
    backend.description += ", fused graph"
    return graph, backend


def verify_static_graph(bundle: Path, manifest: Manifest, graph: GraphEntry) -> AccuracyReport:
    """Compare one of the static graphs with the golden outputs of its shape, on the CPU.

    Raises:
        BundleError: a file is missing or altered.
        BackendError: ONNX Runtime cannot load it.
    """
    rebuild = manifest.rebuild_command(bundle)
    file = graph.check(bundle, rebuild=rebuild)
    golden = Golden.parse(manifest.golden.read(bundle, rebuild=rebuild), manifest.golden.path)
    batch, *size = graph.static
    cases = [
        case for case in golden.cases if len(case.images) == batch and case.size == tuple(size)
    ]
    backend = OnnxRuntimeBackend(file, device="cpu", threads=None)
    backend.description += f", static {'x'.join(map(str, graph.static))}"
    try:
        return compare_all(backend, graph, cases)
    finally:
        backend.close()


def why_unverified(manifest: Manifest, plan: PlanEntry, gpu: Gpu) -> str | None:
    """Why `plan` is unverified on `gpu`, or None if `manifest` has its verification there."""
    verifications = {entry.file: entry.verification for entry in manifest.plans}
    seen = verifications.get(plan.file)
    if seen is None:
        return "unverified: never compared with the golden outputs; see `dinov2rt verify`"
    if (seen.machine, seen.driver) != (gpu.name, gpu.driver):
        return (
            f"unverified here: compared on {shown(seen.machine)} with driver "
            f"{shown(seen.driver)}, this is "
            f"{gpu.name} with driver {gpu.driver}; see `dinov2rt verify`"
        )
    return None


def record_verification(
    bundle: Path, plan: PlanEntry, gpu: Gpu, report: AccuracyReport
) -> Manifest:
    """Record in the manifest that `plan` passed `report` on `gpu` today; return the new manifest.

    The manifest is read again, since a build may have added a plan.

    Raises:
        BundleError: the manifest cannot be read or written.
    """
    entry = VerificationEntry(
        machine=gpu.name,
        driver=gpu.driver,
        date=datetime.now(UTC).date().isoformat(),
        cosine_min=report.cosine_min,
        relative_l2=report.relative_l2,
    )
    with Manifest.changing(bundle) as manifest:
        plans = tuple(
            replace(other, verification=entry) if other.file == plan.file else other
            for other in manifest.plans
        )
        changed = replace(manifest, plans=plans)
        changed.write(bundle)
    return changed
