"""Checks why dinov2rt cannot run a bundle as a candidate, and for which bundles it is meant."""

from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.peers.requirements import NO_BF16_LIMITS
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends.modes import BackendName, GraphKind, GraphMode, Mode, PlanMode, Use
from dinov2rt.runtime.backends.registry import MODES

_DEFAULT_OF_PLANS = Precision.FP16


def cannot_run_own(workload: Workload, *, backend: BackendName, precision: Precision) -> str | None:
    """Why no graph or plan of the bundle runs in this backend and precision, or None."""
    reasons = [
        _no_plan(workload, precision) if isinstance(mode, PlanMode) else _no_graph(workload, mode)
        for mode in _modes(workload, backend, precision)
    ]
    if None in reasons:
        return None
    return reasons[-1] if reasons else _no_such_mode(backend)


def own_is_for(workload: Workload, *, backend: BackendName, precision: Precision) -> bool:
    """Whether the bundle has, or should have, such a graph or plan for the device."""
    return any(
        _should_have_plan(workload, precision)
        if isinstance(mode, PlanMode)
        else _has_graph(workload, mode)
        for mode in _modes(workload, backend, precision)
    )


def _modes(workload: Workload, backend: BackendName, precision: Precision) -> list[Mode]:
    return [
        mode
        for mode in MODES
        if (mode.backend, mode.device) == (backend, workload.device)
        and precision in mode.precisions
    ]


def _no_such_mode(backend: BackendName) -> str:
    pairs = {
        f"{mode.device} {precision}": None
        for mode in MODES
        for precision in mode.precisions
        if mode.backend == backend
    }
    return f"dinov2rt runs {backend} only as {', '.join(pairs)}"


def _no_graph(workload: Workload, mode: GraphMode) -> str | None:
    if mode.use is Use.CHECKING:
        return f"on a CPU the {mode.precision} graph is for checking only; fp32 is faster there"
    if mode.graph_of(workload.manifest) is not None:
        return mode.cannot_run()
    if mode.kind is GraphKind.FP32:
        return mode.cannot_run() or NO_BF16_LIMITS
    return (
        f"the bundle holds no {mode.precision} graph; export it with --precision {mode.precision}"
    )


def _has_graph(workload: Workload, mode: GraphMode) -> bool:
    if mode.use is Use.CHECKING or mode.graph_of(workload.manifest) is None:
        return False
    # Every bundle has the fp32 graph: only where another precision of it runs, it is meant.
    return mode.kind is not GraphKind.FP32 or mode.cannot_run() is None


def _no_plan(workload: Workload, precision: Precision) -> str | None:
    if precision in [plan.precision for plan in workload.manifest.plans]:
        return None
    return (
        f"the bundle holds no {precision} plan; make one with: "
        f"dinov2rt build {workload.bundle} --target sm80"
    )


def _should_have_plan(workload: Workload, precision: Precision) -> bool:
    held = [plan.precision for plan in workload.manifest.plans]
    return precision in held or precision is _DEFAULT_OF_PLANS
