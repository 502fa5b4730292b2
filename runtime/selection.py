"""Which graph of a bundle runs on what: the best that works here, and why not a better one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from dinov2rt.runtime.backend import Backend
from dinov2rt.runtime.errors import BackendError, InputError, MissingDependencyError
from dinov2rt.runtime.fallback import FallbackBackend
from dinov2rt.runtime.manifest import GraphEntry, Manifest, PlanEntry
from dinov2rt.runtime.ort import Device, OnnxRuntimeBackend, cannot_run
from dinov2rt.runtime.plan_checks import graph_of, rebuild_command
from dinov2rt.runtime.precision import Precision
from dinov2rt.runtime.trt import TensorRTBackend, open_plan

BACKENDS = ("onnxruntime", "tensorrt")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs, and each better candidate with the reason why it does not.

    With a `plan`, `graph` is the one that it was built from.
    """

    graph: GraphEntry
    backend: Backend
    passed_over: tuple[tuple[str, str], ...]
    plan: TensorRTBackend | None = None


# Best first. fp16 on a CPU is slow and there for checking only, so it is never chosen unasked.
_PREFERENCE: tuple[tuple[Device, Precision], ...] = (
    ("cuda", Precision.FP16),
    ("cuda", Precision.FP32),
    ("cpu", Precision.FP32),
)
_ONLY_BY_NAME: tuple[tuple[Device, Precision], ...] = (("cpu", Precision.FP16),)


@dataclass(frozen=True, slots=True)
class _Request:
    bundle: Path
    manifest: Manifest
    device: str
    backend: str | None
    precision: Precision | None
    threads: int | None


_Candidates = Iterator[tuple[str, Callable[[], Choice]]]


def select(
    bundle: Path,
    manifest: Manifest,
    *,
    device: str,
    backend: str | None,
    precision: str | None,
    threads: int | None,
) -> Choice:
    """Open the best of what fits what was asked for, which is the first that really starts here.

    Raises:
        InputError: a name that does not exist.
        BundleError: a file is missing or altered.
        BackendError: nothing that fits can run here; the message gives every reason.
    """
    _check_name("device", device, DEVICES)
    _check_name("backend", backend or BACKENDS[0], BACKENDS)
    wanted = Precision.parse(precision) if precision else None
    request = _Request(bundle, manifest, device, backend, wanted, threads)
    return _first_that_starts(request)


def _first_that_starts(request: _Request) -> Choice:
    passed_over: list[tuple[str, str]] = []
    for name, open_it in chain(_plans(request), _graphs(request)):
        try:
            return replace(open_it(), passed_over=tuple(passed_over))
        except (BackendError, MissingDependencyError) as error:
            passed_over.append((name, str(error)))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    raise BackendError(f"nothing that was asked for runs here ({reasons})")


def _plans(request: _Request) -> _Candidates:
    if request.backend not in (None, "tensorrt"):
        return
    plans = [plan for plan in request.manifest.plans if request.precision in (None, plan.precision)]
    if request.device != "cpu":
        for plan in plans:
            yield f"{plan.flavour} cuda {plan.precision}", partial(_open_plan, request, plan)
    if request.backend == "tensorrt" and (request.device == "cpu" or not plans):
        yield f"tensorrt {request.device}", partial(_no_plan, request)


def _graphs(request: _Request) -> _Candidates:
    if request.backend not in (None, "onnxruntime"):
        return
    for device, precision in _PREFERENCE + _ONLY_BY_NAME * (request.precision is not None):
        if request.device in ("auto", device) and request.precision in (None, precision):
            name = f"onnxruntime {device} {precision}"
            yield name, partial(_open_graph, request, device, precision)


def _open_plan(request: _Request, entry: PlanEntry) -> Choice:
    """Check and load a plan; where nothing was asked for by name, with a graph behind it."""
    rebuild = rebuild_command(request.bundle, entry)
    graph = graph_of(request.manifest, entry, rebuild)
    plan = open_plan(request.bundle, entry, graph)
    if request.device != "auto" or request.backend is not None:
        return Choice(graph, plan, (), plan)
    behind = replace(request, backend="onnxruntime")
    whole = FallbackBackend(plan, lambda: _first_that_starts(behind).backend)
    return Choice(graph, whole, (), plan)


def _no_plan(request: _Request) -> Choice:
    if request.device == "cpu":
        raise BackendError('plans run on NVIDIA GPUs alone; use device="cuda"')
    kind = f"{request.precision} plan" if request.precision else "plan"
    raise BackendError(
        f"the bundle holds no {kind}; make one with: dinov2rt build {request.bundle} --target sm80"
    )


def _open_graph(request: _Request, device: Device, precision: Precision) -> Choice:
    """Check the files of the graph against the manifest, then load it."""
    graphs = request.manifest.graphs
    graph = next((graph for graph in graphs if graph.precision is precision), None)
    reason = cannot_run(device) if graph else f"the bundle holds no {precision} graph"
    if graph is None or reason is not None:
        raise BackendError(reason)
    rebuild = request.manifest.rebuild_command(request.bundle)
    file, *_ = [entry.check(request.bundle, rebuild=rebuild) for entry in graph.files]
    return Choice(graph, OnnxRuntimeBackend(file, device=device, threads=request.threads), ())


def _check_name(what: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        choices = ", ".join(f'"{choice}"' for choice in allowed)
        raise InputError(f"unknown {what} {name!r}; allowed are {choices}")
