"""What a backend promises to the model."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray


class Backend(Protocol):
    """Executes one graph. Safe to call from several threads at once."""

    @property
    def description(self) -> str:
        """Library, version and device, for people."""
        ...

    def infer(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Run the graph on its named inputs and return the outputs that are asked for."""
        ...

    def close(self) -> None:
        """Give back what it holds; calling it again does nothing."""
        ...
