"""A TensorRT plan as a `Program`: TensorRT's contexts, profiles and CUDA graphs."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import numpy as np

from dinov2rt.bundle.entries import PlanEntry
from dinov2rt.errors import BackendError
from dinov2rt.runtime.gpu.cuda import CapturedGraph, Gpu, Stream
from dinov2rt.runtime.gpu.execution import ExecutionContext, capture_or_warn
from dinov2rt.runtime.gpu.memory_layout import TensorSpec
from dinov2rt.runtime.tensorrt.flavour import Contexts

_SCRATCH = "scratch memory"


@dataclass(frozen=True, slots=True)
class LoadedPlan:
    """A deserialized plan. Threads share its engine, but never an execution context."""

    entry: PlanEntry
    gpu: Gpu
    trt: ModuleType
    engine: Any
    contexts: Contexts
    log: Any

    def require(self, done: bool, what: str) -> None:
        """Raise a `BackendError` with TensorRT's reason, unless `done`."""
        if not done:
            raise BackendError(f"{self.entry.file.path}: {what} failed: {self.log.last}")

    def dtype(self, tensor: str) -> np.dtype[Any]:
        """Dtype of an input or output."""
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
    """A context whose profile, shapes and addresses are set; `graph` is its CUDA graph, if any."""

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
    """TensorRT's contexts for one `ExecutionContext`.

    The key of a shape is the index of its optimization profile.
    """

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self._context: Any = plan.contexts.changing()
        self.input_name: str = plan.entry.input_name
        self.ordinal: int = plan.gpu.ordinal

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """Dtype of the images."""
        return self._plan.dtype(self.input_name)

    def bind(self, key: Hashable, shape: tuple[int, ...], execution: ExecutionContext) -> _Bound:
        """Set the context that serves changing shapes to this shape."""
        return self._bind(self._context, cast(int, key), shape, execution)

    def prepare(self, key: Hashable, shape: tuple[int, ...], execution: ExecutionContext) -> _Bound:
        """Create a context for this shape alone and capture its CUDA graph."""
        bound = self._bind(self._plan.contexts.fixed(), cast(int, key), shape, execution)
        if self._plan.contexts.captures:
            return bound
        bound.launch()  # deferred work of a new shape must run before the capture
        bound.graph = capture_or_warn(execution.stream, bound.launch, shape)
        return bound

    def _bind(
        self, context: Any, profile: int, shape: tuple[int, ...], execution: ExecutionContext
    ) -> _Bound:
        """Set the profile, shape, addresses and scratch memory of `context`."""
        plan, entry = self._plan, self._plan.entry
        if context.active_optimization_profile != profile:
            # In the stream of the execution, so that no further synchronization is needed.
            done = context.set_optimization_profile_async(profile, execution.stream.handle)
            plan.require(done, f"switching to profile {entry.profiles[profile].name}")
        plan.require(context.set_input_shape(entry.input_name, shape), f"setting shape {shape}")
        plan.require(not context.infer_shapes(), f"inferring shapes from {shape}")
        specs = {
            name: TensorSpec(tuple(context.get_tensor_shape(name)), plan.dtype(name))
            for name in (entry.input_name, *entry.outputs)
        }
        sizes = {name: spec.num_bytes for name, spec in specs.items()}
        sizes[_SCRATCH] = context.update_device_memory_size_for_shapes()
        addresses = execution.reserve(sizes)
        for name in specs:
            plan.require(context.set_tensor_address(name, addresses[name]), f"binding {name}")
        context.set_device_memory(addresses[_SCRATCH], sizes[_SCRATCH])
        outputs = {name: specs[name] for name in entry.outputs}
        return _Bound(plan, execution.stream, context, addresses, outputs)
