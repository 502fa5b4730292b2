"""Selects the best plan or graph that runs here, with the reasons against better ones."""

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from dinov2rt.bundle.entries import GraphEntry, PlanEntry
from dinov2rt.bundle.manifest import Manifest, graph_of, rebuild_command
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.replaced import not_replaced
from dinov2rt.errors import BackendError, BundleError, InputError, MissingDependencyError
from dinov2rt.foreign import quoted
from dinov2rt.named_enum import unknown_name
from dinov2rt.runtime.backends import onnxruntime as ort
from dinov2rt.runtime.backends import openvino
from dinov2rt.runtime.backends.fallback import FallbackBackend
from dinov2rt.runtime.backends.onnx_files import external_files
from dinov2rt.runtime.backends.onnxruntime import Device, OnnxRuntimeBackend
from dinov2rt.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from dinov2rt.runtime.backends.openvino import OpenVinoBackend
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.cpu import is_x86
from dinov2rt.runtime.gpu.cuda import use_gpu
from dinov2rt.runtime.tensorrt.backend import TensorRTBackend, open_plan

BACKENDS = ("openvino", "onnxruntime", "tensorrt")
DEVICES = ("auto", "cpu", "cuda")
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
class _Runner:
    """A library that executes graphs, on a device, in a precision.

    `is_fused` selects the fused graph for ONNX Runtime CUDA.
    """

    backend: str
    device: Device
    precision: Precision
    is_fused: bool = False

    def __str__(self) -> str:
        fused = ", fused" * self.is_fused
        return f"{self.backend} {self.device} {self.precision}{fused}"

    def graph_of(self, manifest: Manifest) -> GraphEntry | None:
        """The graph of the bundle that this runs."""
        if self.is_fused:
            return manifest.cuda_graph
        if self.is_cpu_bf16:
            graph = _find(manifest, Precision.FP32)
            return graph.in_bf16 if graph else None
        return _find(manifest, self.precision)

    @property
    def is_cpu_bf16(self) -> bool:
        """Whether it computes the fp32 graph in bfloat16."""
        return (self.backend, self.precision) == ("openvino", Precision.BF16)

    def cannot_run(self) -> str | None:
        if self.precision is Precision.INT8:
            return openvino.cannot_run_int8()
        if self.is_cpu_bf16:
            return openvino.cannot_run_bf16()
        return openvino.cannot_run() if self.backend == "openvino" else ort.cannot_run(self.device)

    def open(self, file: Path, graph: GraphEntry, request: "_Request") -> Backend:
        if self.backend == "openvino":
            return OpenVinoBackend(file, threads=request.threads, precision=self.precision)
        if self.is_fused:
            return OnnxRuntimeCudaBackend(file, graph, request.manifest.architecture)
        return OnnxRuntimeBackend(
            file, device=self.device, threads=request.threads, ordinal=request.ordinal or 0
        )


_ON_CPU = (
    _Runner("openvino", "cpu", Precision.FP32),
    _Runner("onnxruntime", "cpu", Precision.FP32),
)
_CPU_BF16 = _Runner("openvino", "cpu", Precision.BF16)
# Best first. Never chosen unasked: fp16 on a CPU, which is slow and there for checking only, and
# int8 and bf16, which trade accuracy for speed.
_PREFERENCE = (
    _Runner("onnxruntime", "cuda", Precision.FP16, is_fused=True),
    _Runner("onnxruntime", "cuda", Precision.FP16),
    _Runner("onnxruntime", "cuda", Precision.FP32),
    *(_ON_CPU if is_x86() else reversed(_ON_CPU)),  # elsewhere OpenVINO was not measured
)
_RUNNERS = (
    *_PREFERENCE,
    _Runner("onnxruntime", "cpu", Precision.FP16),
    _CPU_BF16,
    _Runner("openvino", "cpu", Precision.INT8),
)


_UNASKED = (Precision.INT8, Precision.BF16)
"""Precisions that trade accuracy for speed on a CPU, and are never chosen unasked."""


@dataclass(frozen=True, slots=True)
class _Request:
    bundle: Path
    manifest: Manifest
    device: str
    ordinal: int | None
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
    """Open the best plan or graph that meets the request and starts on this machine.

    Raises:
        InputError: a name is unknown.
        BundleError: a file is missing or altered.
        BackendError: no matching plan or graph can run here; the message gives every reason.
    """
    kind, ordinal = parse_device(device)
    if backend not in (None, *BACKENDS):
        raise unknown_name("backend", backend, BACKENDS)
    wanted = Precision.parse(precision) if precision else None
    request = _Request(bundle, manifest, kind, ordinal, backend, wanted, threads)
    if ordinal is not None:
        use_gpu(ordinal)
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


def _first_that_starts(request: _Request, candidates: _Candidates) -> Choice:
    passed_over: list[tuple[str, str]] = []
    for name, open_it in candidates:
        try:
            return replace(open_it(), passed_over=tuple(passed_over))
        except (BackendError, MissingDependencyError) as error:
            passed_over.append((name, str(error)))
    if not passed_over:
        passed_over = [(_asked_for(request), f"graphs run as {', '.join(map(str, _RUNNERS))}")]
    if not _asked_for(request).replace("auto", "").strip():
        passed_over.sort(key=lambda entry: " cpu " not in entry[0])  # most machines have no GPU
        raise BackendError("nothing in this bundle runs here", _reasons(passed_over))
    raise BackendError("nothing that was asked for runs here", _reasons(passed_over))


def _reasons(passed_over: list[tuple[str, str]]) -> list[str]:
    """One line for each reason, with all that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in passed_over:
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(held)}: {reason}" for reason, held in names.items()]


def worth_asking_for(manifest: Manifest, choice: Choice) -> list[str]:
    """Faster and less exact graphs that would run here, and how to get them."""
    if choice.plan is not None or choice.graph.precision is not Precision.FP32:
        return []
    lines = []
    for runner in dict.fromkeys(_RUNNERS[len(_PREFERENCE) :]):
        if runner.precision in _UNASKED and runner.cannot_run() is None:
            way = f'precision="{runner.precision}"'
            if runner.graph_of(manifest) is None:
                if runner.is_cpu_bf16 and choice.graph.task_limits:
                    continue
                also = "" if runner.is_cpu_bf16 else f",{runner.precision}"
                way = f"export --precision fp32{also}, then {way}"
            lines.append(f"{runner} would run here, faster and less exact: {way}")
    return lines


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
    for runner in _PREFERENCE if request.precision is None else _RUNNERS:
        if (
            request.backend in (None, runner.backend)
            and request.device in ("auto", runner.device)
            and request.precision in (None, runner.precision)
        ):
            yield str(runner), partial(_open_graph, request, runner)


def _asked_for(request: _Request) -> str:
    asked = (request.backend, request.device, request.precision)
    return " ".join(name for name in asked if name is not None)


def _open_plan(request: _Request, entry: PlanEntry) -> Choice:
    """Check and load a plan; add a fallback graph unless a device or backend was requested."""
    rebuild = rebuild_command(request.bundle, entry)
    graph = graph_of(request.manifest, entry, rebuild)
    plan = open_plan(request.bundle, entry, graph, request.manifest.architecture.patch_size)
    if request.device != "auto" or request.backend is not None:
        return Choice(graph, plan, (), plan)
    whole = FallbackBackend(plan, lambda: _first_that_starts(request, _graphs(request)).backend)
    return Choice(graph, whole, (), plan)


def _no_plan(request: _Request) -> Choice:
    if request.device == "cpu":
        raise BackendError('plans run only on NVIDIA GPUs; use device="cuda"')
    if request.precision is Precision.INT8:
        raise BackendError('int8 is for OpenVINO on the CPU; use backend="openvino"')
    kind = f"{request.precision} plan" if request.precision else "plan"
    raise BackendError(
        f"the bundle holds no {kind}; make one with: dinov2rt build {request.bundle} --target sm80"
    )


def _open_graph(request: _Request, runner: _Runner) -> Choice:
    """Load the graph and compare its files with the manifest."""
    graph = runner.graph_of(request.manifest)
    if graph is None:
        raise BackendError(_no_graph(request, runner))
    if (reason := runner.cannot_run()) is not None:
        raise BackendError(reason)
    return Choice(graph, _open_while_hashing(request, graph, runner), ())


def _no_graph(request: _Request, runner: _Runner) -> str:
    if runner.is_fused:
        return (
            "the bundle holds no fused graph; add it with: "
            f"dinov2rt build {shlex.quote(str(request.bundle))} --target {CUDA_TARGET}"
        )
    if runner.is_cpu_bf16:
        return runner.cannot_run() or _no_bf16_limits(request)
    return f"the bundle holds no {runner.precision} graph"


def _no_bf16_limits(request: _Request) -> str:
    graph = _find(request.manifest, Precision.FP32)
    if graph is None:
        return "bf16 on a CPU is the fp32 graph, and the bundle holds none; export it as well"
    if graph.task_limits:
        return (
            "bf16 on a CPU is for graphs of tokens alone, and this one gives "
            f'{", ".join(graph.task_limits)} as well; use precision="fp32"'
        )
    return (
        "the bundle was exported before limits for bf16 on a CPU were measured; "
        f"{request.manifest.rebuild_command(request.bundle)}"
    )


def _find(manifest: Manifest, precision: Precision) -> GraphEntry | None:
    return next((graph for graph in manifest.graphs if graph.precision is precision), None)


def _open_while_hashing(request: _Request, graph: GraphEntry, runner: _Runner) -> Backend:
    """Hash the weights in a thread while the library loads them, since both take equally long.

    The graph is hashed before it is parsed. Weights are plain numbers: their size is checked before
    the load, and their hash before the first call.
    """
    rebuild = request.manifest.rebuild_command(request.bundle)
    graph_file, *weights = graph.files
    with contextlib.ExitStack() as undo:
        with not_replaced(request.bundle) as watch, ThreadPoolExecutor(1) as pool:
            watch.add(graph.files)
            content = graph_file.read(request.bundle, rebuild=rebuild)
            _check_external_files(request.bundle, graph, content)
            for entry in weights:
                entry.locate(request.bundle, rebuild=rebuild)
            hashing = pool.submit(
                lambda: [entry.check(request.bundle, rebuild=rebuild) for entry in weights]
            )
            try:
                backend = runner.open(request.bundle / graph_file.path, graph, request)
                undo.callback(backend.close)
            finally:
                hashing.result()  # altered weights take precedence over an error of the library
        undo.pop_all()
    return backend


def _check_external_files(bundle: Path, graph: GraphEntry, content: bytes) -> None:
    """Refuse a graph that refers to a file that is not among its files in the manifest."""
    name = bundle / graph.files[0].path
    try:
        found = external_files(content)
    except ValueError as error:
        raise BundleError(f"{name} is no ONNX graph ({error}); export the bundle again") from error
    unnamed = found - {file.path for file in graph.files}
    if unnamed:
        raise BundleError(
            f"{name} refers to {quoted(sorted(unnamed)[0])}, which the manifest does not name for "
            "it; "
            "export the bundle again"
        )
