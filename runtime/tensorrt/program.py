"""A TensorRT plan as what a lane executes: its contexts, its profiles and its CUDA graphs."""

import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import numpy as np

from dinov2rt.bundle.manifest import PlanEntry
from dinov2rt.errors import BackendError, PlanWarning
from dinov2rt.runtime.gpu.cuda import CapturedGraph, Gpu, Stream, capture
from dinov2rt.runtime.gpu.lane import Lane
from dinov2rt.runtime.gpu.memory_layout import TensorSpec
from dinov2rt.runtime.tensorrt.flavour import Contexts

_SCRATCH = "scratch memory"


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

    plan: LoadedPlan
    stream: Stream
    context: Any
    addresses: Mapping[str, int]
    outputs: Mapping[str, TensorSpec]
    graph: CapturedGraph | None = None

    def launch(self) -> None:
        if self.graph is not None:
            self.graph.launch(self.stream)
        else:
            done = self.context.execute_async_v3(self.stream.handle)
            self.plan.require(done, "execution")


class PlanProgram:
    """The contexts of one lane. The key of a shape is the number of its optimization profile."""

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self._context: Any = plan.contexts.changing()
        self.input_name = plan.entry.input_name
        self.ordinal = plan.gpu.ordinal

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """Type of the images' elements."""
        return self._plan.dtype(self.input_name)

    def bind(self, key: Hashable, shape: tuple[int, ...], lane: Lane) -> _Bound:
        """The context whose shapes change, set to this one."""
        return self._bind(self._context, cast(int, key), shape, lane)

    def prepare(self, key: Hashable, shape: tuple[int, ...], lane: Lane) -> _Bound:
        """A context for this shape alone, its work captured as a CUDA graph."""
        bound = self._bind(self._plan.contexts.fixed(), cast(int, key), shape, lane)
        if self._plan.contexts.captures:
            return bound
        bound.launch()  # settles what a new shape left undone, which a capture must not hold
        try:
            bound.graph = capture(lane.stream, bound.launch)
        except BackendError as error:
            warnings.warn(
                f"no CUDA graph for {list(shape)} ({error}); it runs without, which is slower",
                PlanWarning,
                stacklevel=2,
            )
        return bound

    def _bind(self, context: Any, profile: int, shape: tuple[int, ...], lane: Lane) -> _Bound:
        """Set profile, shape, addresses and scratch memory of `context`."""
        plan, entry = self._plan, self._plan.entry
        if context.active_optimization_profile != profile:
            # In the stream that executes, so that no further synchronisation is due.
            done = context.set_optimization_profile_async(profile, lane.stream.handle)
            plan.require(done, f"switching to profile {entry.profiles[profile].name}")
        plan.require(context.set_input_shape(entry.input_name, shape), f"setting shape {shape}")
        plan.require(not context.infer_shapes(), f"inferring shapes from {shape}")
        specs = {
            name: TensorSpec(tuple(context.get_tensor_shape(name)), plan.dtype(name))
            for name in (entry.input_name, *entry.outputs)
        }
        sizes = {name: spec.num_bytes for name, spec in specs.items()}
        sizes[_SCRATCH] = context.update_device_memory_size_for_shapes()
        addresses = lane.reserve(sizes)
        for name in specs:
            plan.require(context.set_tensor_address(name, addresses[name]), f"binding {name}")
        context.set_device_memory(addresses[_SCRATCH], sizes[_SCRATCH])
        outputs = {name: specs[name] for name in entry.outputs}
        return _Bound(plan, lane.stream, context, addresses, outputs)
