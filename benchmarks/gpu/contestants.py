"""The models that are timed in one process on a GPU: dinov2rt, and common ways to run PyTorch."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from dinov2rt._version import __version__
from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.peers.pytorch import AllTokens, TorchRunner, load_all_tokens
from dinov2rt.benchmarks.results import CandidateFacts, Cell
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.signature import output_names
from dinov2rt.runtime.gpu.phases import Phases
from dinov2rt.runtime.model import Model, load

CELLS = ((1, 224), (32, 224), (8, 518), (128, 224), (8, 224))
"""Batches and sides, the most important first."""

_EVERY_CELL = 2**40
"""Pixels per pass, so high that dinov2rt runs each batch in one pass, as the peers do."""

_SHAPES_AT_MOST = 64
"""Shapes that torch.compile may compile for; its default of 8 is too low for all cells."""

Outputs = Mapping[str, NDArray[np.float32]]


class Contestant(Protocol):
    """A model that is ready for one cell after `open`."""

    name: str
    is_reference: bool
    is_peer: bool

    def open(self, cell: Cell) -> None:
        """Load and compile the model, and prepare the cell's photographs."""

    def enqueue(self) -> object:
        """Enqueue one call on images in GPU memory; outputs stay there, and the host goes on."""

    def call(self) -> object:
        """One call from host memory to host memory."""

    def outputs(self) -> Outputs:
        """The model's outputs for the photographs, by name."""

    def phases(self) -> Phases | None:
        """GPU time of one call, in phases."""

    def facts(self, variant: str) -> CandidateFacts:
        """Name, version and load time."""


@dataclass(frozen=True, slots=True)
class TorchForm:
    """One way to run the eager model: in float32, under float16 autocast, or in half.

    `mode` is the mode of `torch.compile`, or None for eager. `for_one` and `for_many` mark the
    forms that are always measured, on single images and on batches; the others need `all_peers`.
    """

    name: str
    title: str
    half: bool = False
    autocast: bool = False
    mode: str | None = None
    for_one: bool = False
    for_many: bool = False


REFERENCE = TorchForm("eager", "PyTorch eager, float32", for_one=True, for_many=True)

_GRAPHS = "reduce-overhead"
"""The mode that captures CUDA graphs. Without them, one image takes longer to launch than to
compute."""

PEERS = (
    TorchForm("eager-half", "PyTorch eager, half", half=True, for_one=True, for_many=True),
    TorchForm(
        "compile-reduce-overhead-half",
        "torch.compile reduce-overhead, half",
        half=True,
        mode=_GRAPHS,
        for_one=True,
    ),
    TorchForm(
        "compile-autocast",
        "torch.compile, float16 autocast",
        autocast=True,
        mode="default",
        for_many=True,
    ),
    TorchForm("compile-half", "torch.compile, half", half=True, mode="default", for_many=True),
    TorchForm(
        "compile-reduce-overhead-autocast",
        "torch.compile reduce-overhead, float16 autocast",
        autocast=True,
        mode=_GRAPHS,
    ),
    TorchForm("eager-autocast", "PyTorch eager, float16 autocast", autocast=True),
    TorchForm(
        "compile-max-autotune-half",
        "torch.compile max-autotune, half",
        half=True,
        mode="max-autotune",
    ),
    TorchForm(
        "compile-max-autotune-autocast",
        "torch.compile max-autotune, float16 autocast",
        autocast=True,
        mode="max-autotune",
    ),
)
"""The peers, the most important first: equal accuracy (autocast), and the fastest (half)."""


def contestants_for(
    cell: Cell, workload: Workload, *, all_peers: bool = False
) -> Iterator[Contestant]:
    """The reference, dinov2rt, and the most important peers at the cell, or all peers."""
    yield TorchContestant(REFERENCE, workload.manifest)
    yield OwnContestant(workload.bundle)
    for form in PEERS:
        if all_peers or (form.for_one if cell.batch == 1 else form.for_many):
            yield TorchContestant(form, workload.manifest)


class OwnContestant:
    """dinov2rt through its public API, on ONNX Runtime CUDA."""

    name: str = "dinov2rt-onnxruntime-fp16"
    is_reference: bool = False
    is_peer: bool = False

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._load_ms = 0.0
        self._version = f"dinov2rt {__version__}"

    def open(self, cell: Cell) -> None:
        """Load the bundle, once for all cells, and prepare the photographs."""
        began = time.perf_counter()
        self._model = _own_model(self._bundle)
        self._load_ms = 1e3 * (time.perf_counter() - began)
        self._version = f"dinov2rt {__version__}, {self._model.summary}"
        self._pixels = photo_batch(cell.batch, cell.size)
        self._on_gpu = torch.from_numpy(self._pixels).cuda()
        self._model.warm_up([(cell.batch, cell.height, cell.width)])

    def enqueue(self) -> object:
        """Enqueue one call; torch's stream waits for the outputs, so that its events time them."""
        model: Any = self._model  # its signature has only numpy types, because DLPack has no type
        features = model(self._on_gpu, device_outputs=True)
        return [from_dlpack(value) for value in features.outputs.values()]

    def call(self) -> object:
        """Call with numpy arrays."""
        return self._model(self._pixels)

    def outputs(self) -> Outputs:
        """Return the outputs by name, as float32 arrays."""
        return dict(self._model(self._pixels).outputs)

    def phases(self) -> Phases | None:
        """Measured with the backend's own events."""
        return self._model.phases(self._pixels)

    def facts(self, variant: str) -> CandidateFacts:
        """Version and backend."""
        title = "dinov2rt, ONNX Runtime CUDA, fp16"
        return _facts(variant, self.name, title, self._version, self._load_ms)


class TorchContestant:
    """PyTorch in one of its forms."""

    is_peer = True

    def __init__(self, form: TorchForm, manifest: Manifest) -> None:
        self.name: str = form.name
        self.is_reference: bool = form == REFERENCE
        self._form, self._manifest = form, manifest
        self._first_ms = 0.0

    def open(self, cell: Cell) -> None:
        """Compile for the cell's shape alone, as dinov2rt captures a CUDA graph for each shape."""
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.compiler.config.recompile_limit = _SHAPES_AT_MOST
        module: Any = _module(self._manifest, self._form.half)
        if self._form.mode is not None:
            module = torch.compile(module, mode=self._form.mode, dynamic=False, fullgraph=True)
        images = torch.from_numpy(self._manifest.normalization(photo_batch(cell.batch, cell.size)))
        self._images = images.half() if self._form.half else images
        self._on_gpu = self._images.cuda()
        names = output_names(self._manifest.architecture)
        autocast = torch.float16 if self._form.autocast else None
        self._runner = TorchRunner("", "cuda", names, module, autocast)
        began = time.perf_counter()
        for _ in range(3):  # compiled, warmed up and captured
            self.enqueue()
        torch.cuda.synchronize()
        self._first_ms = 1e3 * (time.perf_counter() - began)

    def enqueue(self) -> object:
        """Enqueue the forward pass."""
        with self._mode_of_calls():
            return self._runner.forward(self._on_gpu)

    def call(self) -> object:
        """Call with a normalized tensor in host memory, and copy the outputs to the host."""
        return self._runner.run(self._images)

    def outputs(self) -> Outputs:
        """Return the outputs by name, as float32 arrays."""
        return self._runner.outputs(self._runner.run(self._images))

    def phases(self) -> Phases | None:
        """Measured with events around each step."""
        return self._runner.phases(self._images)

    def facts(self, variant: str) -> CandidateFacts:
        """Version; the load time is the time of compiling and of the first calls."""
        version = f"torch {torch.__version__}"
        facts = _facts(variant, self.name, self._form.title, version, self._first_ms)
        return replace(facts, is_peer=True, precision="fp32" if self.is_reference else "fp16")

    def _mode_of_calls(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast("cuda", torch.float16, enabled=self._form.autocast))
        return stack


@lru_cache(maxsize=4)
def _own_model(bundle: Path) -> Model:
    return load(
        bundle, device="cuda", backend="onnxruntime", precision="fp16", max_pixels=_EVERY_CELL
    )


_modules: dict[tuple[str, bool], AllTokens] = {}


def _module(manifest: Manifest, half: bool) -> AllTokens:
    """The eager model on the GPU, in float32 or half; created once for all cells."""
    key = (manifest.name, half)
    if key not in _modules:
        module = load_all_tokens(manifest)
        _modules[manifest.name, False] = module.cuda()
        _modules[manifest.name, True] = _half_copy(manifest, module)
    return _modules[key]


def _half_copy(manifest: Manifest, module: AllTokens) -> AllTokens:
    from dinov2rt.export.model import load_eager

    state = {name: value.half() for name, value in module.model.state_dict().items()}
    return AllTokens(load_eager(manifest.architecture, state)).eval()


def _facts(variant: str, name: str, title: str, version: str, load_ms: float) -> CandidateFacts:
    return CandidateFacts(
        variant=variant,
        candidate=name,
        title=title,
        version=version,
        precision="fp16",
        is_peer=False,
        import_ms=None,
        load_ms=load_ms,
        first_call_ms=None,
        peak_rss_mib=None,
    )


def kernels_of(call: Callable[[], object]) -> list[dict[str, Any]]:
    """Name, count and GPU time of every kernel of one call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    return [
        {
            "kernel": event.key,
            "count": event.count,
            "microseconds": round(event.self_device_time_total, 1),
        }
        for event in sorted(events, key=lambda event: -event.self_device_time_total)
    ]
