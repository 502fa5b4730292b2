"""Selects the best plan or graph that runs here, with the reasons against better ones."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from dinov2rt.bundle.entries import GraphEntry, PlanEntry
from dinov2rt.bundle.manifest import Manifest, graph_of, rebuild_command
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError, InputError, MissingDependencyError
from dinov2rt.foreign import quoted
from dinov2rt.runtime.backends.checked_graph import open_while_hashing
from dinov2rt.runtime.backends.fallback import FallbackBackend
from dinov2rt.runtime.backends.modes import (
    DEVICES,
    GraphKind,
    GraphMode,
    GraphRequest,
    Mode,
    Use,
    parse_backend,
)
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.backends.registry import GRAPH_MODES, PLAN_MODES
from dinov2rt.runtime.gpu.cuda import check_gpu, on_gpu
from dinov2rt.runtime.tensorrt.backend import TensorRTBackend

CUDA_TARGET = "onnxruntime-cuda"
"""The target of `build` that adds the graph for ONNX Runtime CUDA."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The selected backend, and each better candidate with the reason why it does not run.

    If a `plan` runs, `graph` is the graph that it was built from.
    """

    graph: GraphEntry
    backend: Backend
    passed_over: tuple[tuple[str, str], ...]
    plan: TensorRTBackend | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    bundle: Path
    manifest: Manifest
    device: str
    ordinal: int | None
    backend: str | None
    precision: Precision | None
    threads: int | None

    def __str__(self) -> str:
        asked = (self.backend, self.device, self.precision)
        return " ".join(name for name in asked if name is not None)

    def allows(self, mode: Mode) -> bool:
        """Whether the device and the backend are as requested, or free."""
        return self.backend in (None, mode.backend) and self.device in ("auto", mode.device)


_Openings = Iterator[tuple[str, Callable[[], Choice]]]
"""The modes that could run, best first: each with its name and a function that opens it."""


def select(
    bundle: Path,
    manifest: Manifest,
    *,
    device: str,
    backend: str | None,
    precision: str | None,
    threads: int | None,
) -> Choice:
    """Open the best plan or graph that meets the request and starts on this machine.

    Raises:
        InputError: a name is unknown.
        BundleError: a file is missing or altered.
        BackendError: no matching plan or graph can run here; the message gives every reason.
    """
    kind, ordinal = parse_device(device)
    named = parse_backend(backend) if backend else None
    wanted = Precision.parse(precision) if precision else None
    request = _Request(bundle, manifest, kind, ordinal, named, wanted, threads)
    if ordinal is None:
        return _best(request)
    check_gpu(ordinal)
    with on_gpu(ordinal):
        return _best(request)


def _best(request: _Request) -> Choice:
    return _first_that_starts(request, chain(_plans(request), _graphs(request)))


def parse_device(device: str) -> tuple[str, int | None]:
    """The kind of a device, and the number of the GPU if the name has one, as in "cuda:1".

    Raises:
        InputError: the device is unknown.
    """
    named = re.fullmatch(r"cuda:(\d{1,4})", device)
    if named is not None:
        return "cuda", int(named[1])
    if device not in DEVICES:
        choices = ", ".join(f'"{choice}"' for choice in DEVICES)
        raise InputError(
            f"unknown device {quoted(device)}; allowed are {choices}, or a GPU by number, "
            'such as "cuda:1"'
        )
    return device, None


def _first_that_starts(request: _Request, openings: _Openings) -> Choice:
    passed_over: list[tuple[str, str]] = []
    for name, open_it in openings:
        try:
            return replace(open_it(), passed_over=tuple(passed_over))
        except (BackendError, MissingDependencyError) as error:
            passed_over.append((name, str(error)))
    if not passed_over:
        passed_over = [(str(request), f"graphs run as {', '.join(map(str, GRAPH_MODES))}")]
    if not str(request).replace("auto", "").strip():
        passed_over.sort(key=lambda entry: " cpu " not in entry[0])  # most machines have no GPU
        raise BackendError("nothing in this bundle runs here", _reasons(passed_over))
    raise BackendError("nothing that was asked for runs here", _reasons(passed_over))


def _reasons(passed_over: list[tuple[str, str]]) -> list[str]:
    """One line for each reason, with the names of all modes that it applies to."""
    names: dict[str, list[str]] = {}
    for name, reason in passed_over:
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(held)}: {reason}" for reason, held in names.items()]


def worth_asking_for(manifest: Manifest, choice: Choice) -> list[str]:
    """Faster and less exact graphs that would run here, and how to get them."""
    if choice.plan is not None or choice.graph.precision is not Precision.FP32:
        return []
    lines = []
    for mode in GRAPH_MODES:
        if mode.use is Use.LESS_EXACT and mode.cannot_run() is None:
            way = f'precision="{mode.precision}"'
            if mode.graph_of(manifest) is None:
                computes_fp32 = mode.kind is GraphKind.FP32
                if computes_fp32 and choice.graph.task_limits:
                    continue
                also = "" if computes_fp32 else f",{mode.precision}"
                way = f"export --precision fp32{also}, then {way}"
            lines.append(f"{mode} would run here, faster and less exact: {way}")
    return lines


def _plans(request: _Request) -> _Openings:
    modes = {mode.flavour: mode for mode in PLAN_MODES if request.allows(mode)}
    plans = [plan for plan in request.manifest.plans if request.precision in (None, plan.precision)]
    for plan in plans:
        if plan.flavour in modes:
            name = f"{plan.flavour} {modes[plan.flavour].device} {plan.precision}"
            yield name, partial(_open_plan, request, plan)
    asks_for_plans = request.backend in {mode.backend for mode in PLAN_MODES}
    if asks_for_plans and not (plans and modes):
        yield f"{request.backend} {request.device}", partial(_no_plan, request)


def _graphs(request: _Request) -> _Openings:
    for mode in GRAPH_MODES:
        is_unasked = request.precision is None and mode.use is Use.UNASKED
        if request.allows(mode) and (is_unasked or request.precision is mode.precision):
            yield str(mode), partial(_open_graph, request, mode)


def _open_plan(request: _Request, entry: PlanEntry) -> Choice:
    """Check and load a plan; add a fallback graph unless a device or backend was requested."""
    rebuild = rebuild_command(request.bundle, entry)
    graph = graph_of(request.manifest, entry, rebuild)
    (mode,) = (mode for mode in PLAN_MODES if mode.flavour is entry.flavour)
    plan = mode.open(request.bundle, entry, graph, request.manifest.architecture.patch_size)
    if request.device != "auto" or request.backend is not None:
        return Choice(graph, plan, (), plan)
    whole = FallbackBackend(plan, lambda: _first_that_starts(request, _graphs(request)).backend)
    return Choice(graph, whole, (), plan)


def _no_plan(request: _Request) -> Choice:
    if not any(map(request.allows, PLAN_MODES)):
        raise BackendError('plans run only on NVIDIA GPUs; use device="cuda"')
    precisions = [precision for mode in PLAN_MODES for precision in mode.precisions]
    if request.precision not in (None, *precisions):
        others = ", ".join(str(m) for m in GRAPH_MODES if m.precision is request.precision)
        raise BackendError(
            f"plans are in {', '.join(dict.fromkeys(precisions))}; {request.precision} runs as "
            f"{others}"
        )
    kind = f"{request.precision} plan" if request.precision else "plan"
    raise BackendError(
        f"the bundle holds no {kind}; make one with: dinov2rt build {request.bundle} --target sm80"
    )


def _open_graph(request: _Request, mode: GraphMode) -> Choice:
    """Load the graph and compare its files with the manifest."""
    manifest = request.manifest
    graph = mode.graph_of(manifest)
    if graph is None:
        raise BackendError(_no_graph(request, mode))
    if (reason := mode.cannot_run()) is not None:
        raise BackendError(reason)

    def open_it(file: Path) -> Backend:
        ordinal = request.ordinal or 0
        return mode.open(GraphRequest(file, graph, manifest.architecture, request.threads, ordinal))

    rebuild = manifest.rebuild_command(request.bundle)
    return Choice(graph, open_while_hashing(request.bundle, graph, rebuild, open_it), ())


def _no_graph(request: _Request, mode: GraphMode) -> str:
    """Why the bundle has no graph for `mode`, and how to get one."""
    dense = [head.name for head in request.manifest.heads if head.is_dense]
    if mode.kind is GraphKind.FUSED and dense:
        return (
            f"dense heads ({', '.join(dense)}) compute with the image's size, which a captured "
            "CUDA graph cannot follow; the portable graph runs instead, which is slower"
        )
    if mode.kind is GraphKind.FUSED:
        return (
            "the bundle holds no fused graph; add it with: "
            f"dinov2rt build {shlex.quote(str(request.bundle))} --target {CUDA_TARGET}"
        )
    if mode.kind is GraphKind.FP32:
        return mode.cannot_run() or _no_bf16_limits(request)
    precisions = ",".join([*(graph.precision for graph in request.manifest.graphs), mode.precision])
    return f"the bundle holds no {mode.precision} graph; export it with --precision {precisions}"


def _no_bf16_limits(request: _Request) -> str:
    graph = request.manifest.graph_in(Precision.FP32)
    if graph is None:
        return "bf16 on a CPU is the fp32 graph, and the bundle holds none; export it as well"
    if graph.task_limits:
        return (
            f"the export did not show that {', '.join(graph.task_limits)} hold their limits in "
            'bf16 on a CPU; use precision="fp32", or export again on a CPU with bfloat16'
        )
    return (
        "the bundle was exported before limits for bf16 on a CPU were measured; "
        f"{request.manifest.rebuild_command(request.bundle)}"
    )
