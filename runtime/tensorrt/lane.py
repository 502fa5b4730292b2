"""One stream of work through a plan: its contexts, its buffers and its CUDA graphs."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.manifest import PlanEntry
from dinov2rt.errors import BackendError, InputError, PlanWarning
from dinov2rt.runtime.gpu.cuda import (
    CapturedGraph,
    DeviceMemory,
    Event,
    Gpu,
    PinnedMemory,
    PooledMemory,
    Stream,
    capture,
)
from dinov2rt.runtime.gpu.device_arrays import DeviceArray, DeviceView, is_on_gpu, view_of
from dinov2rt.runtime.gpu.graph_cache import GraphCache
from dinov2rt.runtime.gpu.memory_layout import MemoryLayout, TensorSpec
from dinov2rt.runtime.tensorrt.flavour import Contexts

_GRAPHS_PER_LANE = 8
_SCRATCH = "scratch memory"

Mark = Callable[[], None]


def _no_mark() -> None:
    """What is called between the steps of a batch that nobody times."""


@dataclass(frozen=True, slots=True)
class LoadedPlan:
    """A deserialised plan. Its engine is shared by all threads, contexts never are."""

    entry: PlanEntry
    gpu: Gpu
    trt: ModuleType
    engine: Any
    contexts: Contexts
    log: Any

    def require(self, done: bool, what: str) -> None:
        """Raise the reason that TensorRT gave, unless it is `done`."""
        if not done:
            raise BackendError(f"{self.entry.file.path}: {what} failed: {self.log.last}")

    def dtype(self, tensor: str) -> np.dtype[Any]:
        """Type of an input's or output's elements."""
        kind = self.engine.get_tensor_dtype(tensor)
        try:
            dtype: np.dtype[Any] = np.dtype(self.trt.nptype(kind))
        except TypeError:
            raise BackendError(
                f"{tensor} is {kind.name}, which numpy does not know; export without half outputs"
            ) from None
        return dtype


@dataclass(slots=True)
class _Bound:
    """A context with its profile, shapes and addresses set; `graph` is its captured work."""

    context: Any
    addresses: Mapping[str, int]
    outputs: Mapping[str, TensorSpec]
    graph: CapturedGraph | None = None


class Lane:
    """Runs one batch at a time, in order. Two lanes run beside each other.

    All memory is allocated once and grows only when a larger shape comes.
    """

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self.stream = Stream()
        self._released = Stream()
        self._context: Any = plan.contexts.changing()
        self._graphs: GraphCache[_Bound] = GraphCache(_GRAPHS_PER_LANE, self.stream.synchronize)
        self._arena: DeviceMemory | None = None
        self._staging: dict[str, PinnedMemory] = {}
        self._input_read = Event()
        self._input_owner: DeviceView | None = None

    def run(
        self, images: Any, profile: int, outputs: Sequence[str], mark: Mark = _no_mark
    ) -> dict[str, NDArray[Any]]:
        """The outputs that are asked for, on the host.

        `mark` is called four times: before the copy of the input is enqueued and after it, after
        the plan is, and after the copies of the outputs are.
        """
        bound = self._enqueue(images, profile, mark)
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

    def run_on_device(
        self, images: Any, profile: int, outputs: Sequence[str]
    ) -> dict[str, DeviceArray]:
        """The outputs that are asked for, left on the GPU; nothing waits for them here."""
        bound = self._enqueue(images, profile)
        ready, arrays = Event(), {}
        for name in outputs:
            spec = bound.outputs[name]
            memory = PooledMemory(spec.num_bytes, self.stream, ready, self._released)
            self.stream.copy(memory.address, bound.addresses[name], spec.num_bytes)
            arrays[name] = DeviceArray(memory, self._plan.gpu.ordinal, spec)
        ready.record(self.stream.handle)
        return arrays

    def _enqueue(self, images: Any, profile: int, mark: Mark = _no_mark) -> _Bound:
        """Copy the input and run the plan on it."""
        shape = tuple(images.shape)
        bound = self._graphs.get((profile, shape), partial(self._prepare, profile, shape))
        if bound is None:
            bound = self._bind(self._context, profile, shape)
        source, num_bytes = self._source(images)
        mark()
        self.stream.copy(bound.addresses[self._plan.entry.input_name], source, num_bytes)
        self._input_read.record(self.stream.handle)
        mark()
        self._launch(bound)
        mark()
        return bound

    def _source(self, images: Any) -> tuple[int, int]:
        """Address and bytes of what the GPU can copy: `images` there, or staged on the host."""
        # What the last call copied from may be overwritten or freed only once it was read.
        self._input_read.synchronize()
        if is_on_gpu(images):
            view = view_of(images, self.stream, self._plan.gpu.ordinal)
            self._check_dtype(view.spec.dtype)
            self._input_owner = view
            return view.address, view.spec.num_bytes
        self._check_dtype(images.dtype)
        spec = TensorSpec(images.shape, images.dtype)
        staging = self._pinned("input", spec.num_bytes)
        staging.array(0, spec)[...] = images
        return staging.address, spec.num_bytes

    def _check_dtype(self, dtype: np.dtype[Any]) -> None:
        expected = self._plan.dtype(self._plan.entry.input_name)
        if dtype != expected:
            raise InputError(f"got dtype {dtype}, the plan takes {expected}")

    def _launch(self, bound: _Bound) -> None:
        if bound.graph is not None:
            bound.graph.launch(self.stream)
        else:
            done = bound.context.execute_async_v3(self.stream.handle)
            self._plan.require(done, "execution")

    def _prepare(self, profile: int, shape: tuple[int, ...]) -> _Bound:
        """A context for this shape alone, its work captured as a CUDA graph."""
        bound = self._bind(self._plan.contexts.fixed(), profile, shape)
        if self._plan.contexts.captures:
            return bound
        self._launch(bound)  # settles what a new shape left undone, which a capture must not hold
        try:
            bound.graph = capture(self.stream, partial(self._launch, bound))
        except BackendError as error:
            warnings.warn(
                f"no CUDA graph for {list(shape)} ({error}); it runs without, which is slower",
                PlanWarning,
                stacklevel=2,
            )
        return bound

    def _bind(self, context: Any, profile: int, shape: tuple[int, ...]) -> _Bound:
        """Set profile, shape, addresses and scratch memory of `context`."""
        plan, entry = self._plan, self._plan.entry
        if context.active_optimization_profile != profile:
            # In the stream that executes, so that no further synchronisation is due.
            done = context.set_optimization_profile_async(profile, self.stream.handle)
            plan.require(done, f"switching to profile {entry.profiles[profile].name}")
        plan.require(context.set_input_shape(entry.input_name, shape), f"setting shape {shape}")
        plan.require(not context.infer_shapes(), f"inferring shapes from {shape}")
        specs = {
            name: TensorSpec(tuple(context.get_tensor_shape(name)), plan.dtype(name))
            for name in (entry.input_name, *entry.outputs)
        }
        sizes = {name: spec.num_bytes for name, spec in specs.items()}
        sizes[_SCRATCH] = context.update_device_memory_size_for_shapes()
        addresses = self._reserve(sizes)
        for name in specs:
            plan.require(context.set_tensor_address(name, addresses[name]), f"binding {name}")
        context.set_device_memory(addresses[_SCRATCH], sizes[_SCRATCH])
        return _Bound(context, addresses, {name: specs[name] for name in entry.outputs})

    def _reserve(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Addresses on the GPU for parts of these sizes; every shape shares the same memory."""
        layout = MemoryLayout.of(sizes)
        if self._arena is None or self._arena.size < layout.total_bytes:
            self._graphs.clear()  # they hold addresses in the old memory
            self._arena = None  # freed before more is taken
            self._arena = DeviceMemory(layout.total_bytes)
        return {name: self._arena.address + offset for name, offset in layout.offsets.items()}

    def _pinned(self, purpose: str, num_bytes: int) -> PinnedMemory:
        held = self._staging.get(purpose)
        if held is None or held.size < num_bytes:
            held = self._staging[purpose] = PinnedMemory(num_bytes)
        return held
