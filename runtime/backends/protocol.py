"""The interface between the model and its backends."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.runtime.gpu.phases import Phases


class Backend(Protocol):
    """Executes one graph. Safe to call from several threads at once."""

    @property
    def description(self) -> str:
        """Library, version and device, for messages."""
        ...

    @property
    def concurrent_calls(self) -> int:
        """How many concurrent calls are useful; more would not be faster."""
        ...

    @property
    def reads_gpu_arrays(self) -> bool:
        """Whether inputs may be on the GPU, and outputs may stay there."""
        ...

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, Any]:
        """Run the graph on its named inputs and return the requested outputs.

        Arrays are numpy arrays. If `reads_gpu_arrays` is set, inputs may also be arrays on the GPU,
        and outputs are `DeviceArray` if `device_outputs` is set.
        """
        ...

    def batch_limit(self, size: ImageSize) -> int | None:
        """The largest batch of `size` that one call allows, or None if there is no limit."""
        ...

    def close(self) -> None:
        """Free all resources; a second call does nothing."""
        ...


@runtime_checkable
class ShapePreparer(Protocol):
    """A backend that is faster for shapes which it knows beforehand."""

    def prepare(self, inputs: Mapping[str, Any]) -> None:
        """Make calls with inputs of exactly these shapes as fast as they can be.

        A few shapes are kept, and the least recently used is evicted.
        """
        ...


@runtime_checkable
class PhaseTimer(Protocol):
    """A backend on a GPU that can time the phases of a call."""

    def phases(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Phases:
        """The GPU time of one call with these inputs; its outputs are dropped."""
        ...
