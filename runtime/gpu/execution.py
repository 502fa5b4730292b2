"""Executes one batch at a time on the GPU: copies the input, launches, copies the outputs.

Both GPU backends run their batches through an `ExecutionContext`. It executes a `Program`: a
TensorRT plan, or an ONNX Runtime session.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import BackendError, InputError, PlanWarning
from dinov2rt.runtime.gpu.cuda import (
    CapturedGraph,
    DeviceMemory,
    Event,
    PinnedMemory,
    PooledMemory,
    Stopwatch,
    Stream,
    capture,
)
from dinov2rt.runtime.gpu.device_arrays import DeviceArray, DeviceView, is_on_gpu, view_of
from dinov2rt.runtime.gpu.graph_cache import GraphCache
from dinov2rt.runtime.gpu.memory_layout import MemoryLayout, TensorSpec
from dinov2rt.runtime.gpu.phases import Phases

SHAPES_PER_CONTEXT = 8
"""How many prepared shapes, such as captured CUDA graphs, an execution context keeps."""

Mark = Callable[[], None]


class Bound(Protocol):
    """A program whose shape and buffer addresses are set."""

    @property
    def addresses(self) -> Mapping[str, int]:
        """GPU addresses of the input and of each output."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Shape and dtype of each output."""
        ...

    def launch(self) -> None:
        """Enqueue the work in the stream of the execution context."""
        ...


class Program(Protocol):
    """A network that an execution context executes.

    `key` and the input's shape together identify a prepared shape. For a TensorRT plan, `key` is
    the index of the optimization profile; for ONNX Runtime, it is padding and grid.
    """

    @property
    def input_name(self) -> str:
        """Name of the input that takes the images."""
        ...

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """Dtype of the images."""
        ...

    @property
    def ordinal(self) -> int:
        """Number of the GPU."""
        ...

    def bind(self, key: Hashable, shape: tuple[int, ...], execution: "ExecutionContext") -> Bound:
        """Set shape and addresses for a shape that is new; cheap, without a CUDA graph."""
        ...

    def prepare(
        self, key: Hashable, shape: tuple[int, ...], execution: "ExecutionContext"
    ) -> Bound:
        """Set shape and addresses for many calls, with a captured CUDA graph if possible."""
        ...


def capture_or_warn(
    stream: Stream, launch: Callable[[], None], shape: tuple[int, ...]
) -> CapturedGraph | None:
    """The CUDA graph of what `launch` enqueues for images of `shape`.

    None, with a warning, if it cannot be captured.
    """
    try:
        return capture(stream, launch)
    except BackendError as error:
        warnings.warn(
            f"no CUDA graph for {list(shape)} ({error}); it runs without, which is slower",
            PlanWarning,
            stacklevel=3,
        )
        return None


def _no_mark() -> None:
    """The default of `mark`: nothing is timed."""


class ExecutionContext:
    """Runs one batch at a time in `stream`. Several execution contexts may run concurrently.

    Memory is allocated once and grows only for a larger shape.
    """

    def __init__(self, program: Program, stream: Stream) -> None:
        self._program = program
        self.stream = stream
        self._released = Stream()
        self._shapes: GraphCache[Bound] = GraphCache(SHAPES_PER_CONTEXT, stream.synchronize)
        self._arena: DeviceMemory | None = None
        self._staging: dict[str, PinnedMemory] = {}
        self._input_read = Event()
        self._input_owner: DeviceView | None = None

    def run(
        self, images: Any, key: Hashable, outputs: Sequence[str], mark: Mark = _no_mark
    ) -> dict[str, NDArray[Any]]:
        """The requested outputs, on the host.

        `mark` is called four times: before and after enqueuing the input's copy, after enqueuing
        the program, and after enqueuing the outputs' copies.
        """
        bound = self._enqueue(images, key, mark)
        specs = {name: bound.outputs[name] for name in outputs}
        layout = MemoryLayout.of({name: spec.num_bytes for name, spec in specs.items()})
        staging = self._pinned("outputs", layout.total_bytes)
        for name, spec in specs.items():
            target = staging.address + layout.offsets[name]
            self.stream.copy(target, bound.addresses[name], spec.num_bytes)
        mark()
        self.stream.synchronize()
        self._input_owner = None
        return {
            name: staging.array(layout.offsets[name], spec).copy() for name, spec in specs.items()
        }

    def phases(self, images: Any, key: Hashable, outputs: Sequence[str]) -> Phases:
        """Run it, and return the GPU time of its phases instead of the outputs."""
        watch = Stopwatch(self.stream, num_marks=4)
        self.run(images, key, outputs, watch.mark)
        return Phases(*watch.laps_ms())

    def run_on_device(
        self, images: Any, key: Hashable, outputs: Sequence[str]
    ) -> dict[str, DeviceArray]:
        """The requested outputs, on the GPU. The host does not wait for them."""
        bound = self._enqueue(images, key)
        ready, arrays = Event(), {}
        for name in outputs:
            spec = bound.outputs[name]
            memory = PooledMemory(spec.num_bytes, self.stream, ready, self._released)
            self.stream.copy(memory.address, bound.addresses[name], spec.num_bytes)
            arrays[name] = DeviceArray(memory, self._program.ordinal, spec)
        ready.record(self.stream.handle)
        return arrays

    def reserve(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """GPU addresses for parts of these sizes, in bytes; all shapes share the same memory."""
        layout = MemoryLayout.of(sizes)
        if self._arena is None or self._arena.size < layout.total_bytes:
            self._shapes.clear()  # prepared shapes hold addresses in the old memory
            self._arena = None  # free the old memory before allocating the new
            self._arena = DeviceMemory(layout.total_bytes)
        return {name: self._arena.address + offset for name, offset in layout.offsets.items()}

    def _enqueue(self, images: Any, key: Hashable, mark: Mark = _no_mark) -> Bound:
        """Copy the input and launch the program on it."""
        shape, program = tuple(images.shape), self._program
        bound = self._shapes.get((key, shape), partial(program.prepare, key, shape, self))
        if bound is None:
            bound = program.bind(key, shape, self)
        source, num_bytes = self._source(images)
        mark()
        self.stream.copy(bound.addresses[program.input_name], source, num_bytes)
        self._input_read.record(self.stream.handle)
        mark()
        bound.launch()
        mark()
        return bound

    def _source(self, images: Any) -> tuple[int, int]:
        """Address and size in bytes of `images`: on the GPU, or copied into pinned memory."""
        # The last call's input must be read before it is overwritten or freed.
        self._input_read.synchronize()
        if is_on_gpu(images):
            view = view_of(images, self.stream, self._program.ordinal)
            self._check_dtype(view.spec.dtype)
            self._input_owner = view
            return view.address, view.spec.num_bytes
        self._check_dtype(images.dtype)
        spec = TensorSpec(images.shape, images.dtype)
        staging = self._pinned("input", spec.num_bytes)
        staging.array(0, spec)[...] = images
        return staging.address, spec.num_bytes

    def _check_dtype(self, dtype: np.dtype[Any]) -> None:
        expected = self._program.input_dtype
        if dtype != expected:
            raise InputError(f"got dtype {dtype}, the graph takes {expected}")

    def _pinned(self, purpose: str, num_bytes: int) -> PinnedMemory:
        held = self._staging.get(purpose)
        if held is None or held.size < num_bytes:
            held = self._staging[purpose] = PinnedMemory(num_bytes)
        return held
