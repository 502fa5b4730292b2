"""Runs a plan, and falls back to a graph for inputs that the plan does not support."""

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import PlanInputError, PlanWarning
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.gpu.device_arrays import is_on_gpu


class FallbackBackend:
    """Runs the plan, or the graph with a warning; only for `device="auto"`.

    The graph is opened when it is first needed.
    """

    def __init__(self, plan: Backend, open_graph: Callable[[], Backend]) -> None:
        self._plan = plan
        self._open_graph = open_graph
        self._graph: Backend | None = None
        self._lock = threading.Lock()
        self.concurrent_calls: int = plan.concurrent_calls
        self.reads_gpu_arrays: bool = plan.reads_gpu_arrays

    @property
    def description(self) -> str:
        """The plan's description, and the graph's if it is open."""
        graph = self._graph
        beside = f"; unsupported inputs on {graph.description}" if graph else ""
        return self._plan.description + beside

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, Any]:
        """Run the plan, or the graph if the plan lacks support; see `Backend.infer`."""
        try:
            return self._plan.infer(inputs, outputs, device_outputs=device_outputs)
        except PlanInputError as error:
            graph = self._opened_graph()
            is_for_gpu = device_outputs or any(map(is_on_gpu, inputs.values()))
            if is_for_gpu and not graph.reads_gpu_arrays:
                raise  # the graph would copy the arrays through the host
            warnings.warn(f"{error}; {graph.description} is used instead", PlanWarning, 2)
            return graph.infer(inputs, outputs, device_outputs=device_outputs)

    def batch_limit(self, size: ImageSize) -> int | None:
        """The plan's limit; see `Backend.batch_limit`."""
        return self._plan.batch_limit(size)

    def close(self) -> None:
        """Close the plan and the graph."""
        self._plan.close()
        with self._lock:
            if self._graph is not None:
                self._graph.close()

    def _opened_graph(self) -> Backend:
        with self._lock:
            if self._graph is None:
                self._graph = self._open_graph()
            return self._graph
