"""How a backend declares what it runs: device, precision and kind of file."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Literal, get_args

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import Flavour, GraphEntry, PlanEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.named_enum import unknown_name
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.tensorrt.backend import TensorRTBackend

BackendName = Literal["openvino", "onnxruntime", "tensorrt"]
"""A library that runs bundles."""
Device = Literal["cpu", "cuda"]
"""The kind of device that a backend runs on."""
DeviceName = Literal["auto", "cpu", "cuda"]
"""A device as `load` takes it; a GPU by number, such as "cuda:1", is allowed as well."""

BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)


def parse_backend(name: str) -> BackendName:
    """The backend called `name`.

    Raises:
        InputError: no backend has this name.
    """
    for backend in BACKENDS:
        if backend == name:
            return backend
    raise unknown_name("backend", name, BACKENDS)


class GraphKind(StrEnum):
    """The graph of a bundle that is loaded."""

    OF_PRECISION = "the graph of that precision"
    FUSED = "the fused graph for ONNX Runtime CUDA"
    FP32 = "the fp32 graph, computed in another precision"


class Use(Enum):
    """The condition under which a mode is chosen."""

    UNASKED = auto()
    """Unless the request rules it out."""
    LESS_EXACT = auto()
    """Only on request: it is faster, and less exact."""
    CHECKING = auto()
    """Only on request: it is slow, and there to check a graph."""


@dataclass(frozen=True, slots=True)
class OptionalPackage:
    """A package's names on PyPI, of which one is enough; what it is for; the extra with it."""

    names: tuple[str, ...]
    purpose: str
    extra: str


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """A graph to open: its file, and how to run it. `ordinal` is the number of the GPU."""

    file: Path
    graph: GraphEntry
    architecture: Architecture
    threads: int | None
    ordinal: int


@dataclass(frozen=True, slots=True)
class GraphMode:
    """One way in which a backend runs graphs: a device, a precision, a kind of graph.

    `cannot_run` imports the library and returns why it cannot run here, or None.
    """

    backend: BackendName
    device: Device
    precision: Precision
    package: OptionalPackage
    cannot_run: Callable[[], str | None]
    open: Callable[[GraphRequest], Backend]
    kind: GraphKind = GraphKind.OF_PRECISION
    use: Use = Use.UNASKED

    def __str__(self) -> str:
        fused = ", fused" * (self.kind is GraphKind.FUSED)
        return f"{self.backend} {self.device} {self.precision}{fused}"

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precision, as a tuple, like `PlanMode.precisions`."""
        return (self.precision,)

    def graph_of(self, manifest: Manifest) -> GraphEntry | None:
        """The graph of the bundle that this runs, or None if the bundle does not hold it."""
        if self.kind is GraphKind.FUSED:
            return manifest.cuda_graph
        if self.kind is GraphKind.FP32:
            graph = manifest.graph_in(Precision.FP32)
            return graph.in_bf16 if graph else None
        return manifest.graph_in(self.precision)


@dataclass(frozen=True, slots=True)
class PlanMode:
    """One way in which a backend runs plans of one flavour of TensorRT, on a GPU."""

    backend: BackendName
    flavour: Flavour
    precisions: tuple[Precision, ...]
    package: OptionalPackage
    open: Callable[[Path, PlanEntry, GraphEntry, int], TensorRTBackend]
    device: Device = "cuda"


Mode = GraphMode | PlanMode
