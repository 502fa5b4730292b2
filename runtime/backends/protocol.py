"""What a backend promises to the model."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dinov2rt.bundle.geometry import ImageSize


class Backend(Protocol):
    """Executes one graph. Safe to call from several threads at once."""

    @property
    def description(self) -> str:
        """Library, version and device, for people."""
        ...

    @property
    def concurrent_calls(self) -> int:
        """How many calls at the same time are faster than one after the other."""
        ...

    @property
    def reads_gpu_arrays(self) -> bool:
        """Whether inputs may lie on the GPU and outputs stay there."""
        ...

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, Any]:
        """Run the graph on its named inputs and return the outputs that are asked for.

        Arrays are numpy's, unless `reads_gpu_arrays`: then inputs may be any that lie on the GPU,
        and outputs are `DeviceArray` where `device_outputs`.
        """
        ...

    def batch_limit(self, size: ImageSize) -> int | None:
        """The most images of `size` that one call may hold, or None for no such limit."""
        ...

    def close(self) -> None:
        """Give back what it holds; calling it again does nothing."""
        ...
