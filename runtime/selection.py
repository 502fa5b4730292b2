"""Which graph of a bundle runs on what: the best that works here, and why not a better one."""

from dataclasses import dataclass
from pathlib import Path

from dinov2rt.runtime.backend import Backend
from dinov2rt.runtime.errors import BackendError, InputError
from dinov2rt.runtime.manifest import GraphEntry, Manifest
from dinov2rt.runtime.ort import Device, OnnxRuntimeBackend, cannot_run
from dinov2rt.runtime.precision import Precision

BACKENDS = ("onnxruntime",)
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Choice:
    """What will run, and each better choice with the reason why it does not."""

    graph: GraphEntry
    device: Device
    passed_over: tuple[tuple[str, str], ...]


# Best first. fp16 on a CPU is slow and there for checking only, so it is never chosen unasked.
_PREFERENCE: tuple[tuple[Device, Precision], ...] = (
    ("cuda", Precision.FP16),
    ("cuda", Precision.FP32),
    ("cpu", Precision.FP32),
)
_ONLY_BY_NAME: tuple[tuple[Device, Precision], ...] = (("cpu", Precision.FP16),)


def select(
    manifest: Manifest, *, device: str, backend: str | None, precision: str | None
) -> Choice:
    """The best graph and device among those that fit what was asked for.

    Raises:
        InputError: a name that does not exist.
        BackendError: nothing that fits can run here; the message gives every reason.
    """
    _check_name("device", device, DEVICES)
    _check_name("backend", backend or BACKENDS[0], BACKENDS)
    wanted = Precision.parse(precision) if precision else None
    passed_over: list[tuple[str, str]] = []
    for where, kind in _PREFERENCE + _ONLY_BY_NAME * (wanted is not None):
        if device not in ("auto", where) or wanted not in (None, kind):
            continue
        graph = _graph(manifest, kind)
        reason = cannot_run(where) if graph else f"the bundle holds no {kind} graph"
        if graph is not None and reason is None:
            return Choice(graph, where, tuple(passed_over))
        passed_over.append((f"onnxruntime {where} {kind}", str(reason)))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    raise BackendError(f"nothing that was asked for runs here ({reasons})")


def open_backend(
    bundle: Path, manifest: Manifest, choice: Choice, *, threads: int | None
) -> Backend:
    """Check the files of the chosen graph against the manifest, then load it.

    Raises:
        BundleError: a file is missing or altered.
        BackendError: the backend does not take it.
    """
    rebuild = manifest.rebuild_command(bundle)
    graph, *_ = (entry.check(bundle, rebuild=rebuild) for entry in choice.graph.files)
    return OnnxRuntimeBackend(graph, device=choice.device, threads=threads)


def _graph(manifest: Manifest, precision: Precision) -> GraphEntry | None:
    return next((graph for graph in manifest.graphs if graph.precision is precision), None)


def _check_name(what: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        choices = ", ".join(f'"{choice}"' for choice in allowed)
        raise InputError(f"unknown {what} {name!r}; allowed are {choices}")
