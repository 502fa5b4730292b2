"""The interface of a candidate: one way to run a backbone, as its users would."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.heads import Task
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import output_names, scores_name
from dinov2rt.runtime.gpu.phases import Phases


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a candidate: load the weights of a bundle, on one device."""

    bundle: Path
    device: str
    threads: int

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return Manifest.read(self.bundle)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: answers of the bundle's heads, or all tokens if it has none.

        A segmentation head's scores are among them; a candidate may leave them out.
        """
        manifest = self.manifest
        if not manifest.heads:
            return output_names(manifest.architecture)
        return tuple(
            name
            for head in manifest.heads
            for name in (
                (head.output, scores_name(head.output))
                if head.task is Task.SEGMENTATION
                else (head.output,)
            )
        )


class Runner(Protocol):
    """A loaded candidate.

    A call is timed from prepared images in host memory to results in host memory. `prepare` makes
    the input that users of the library have before a call, such as a normalized tensor; it is not
    timed.
    """

    version: str

    def prepare(self, pixels: NDArray[np.uint8]) -> Any:
        """Convert RGB pixels, uint8 [B, H, W, 3], to the input of `run`."""

    def run(self, prepared: Any) -> Any:
        """Make one call; return when the results are ready."""

    def outputs(self, result: Any) -> Mapping[str, NDArray[np.float32]]:
        """The results by name, for the names in `Workload.outputs` that this candidate has.

        They are `cls_token` [B, D], `register_tokens` [B, R, D], `patch_tokens` [B, P, D], or with
        heads `logits` [B, K], `depth` [B, H, W] and `segmentation` [B, H, W], uint8.
        """

    def close(self) -> None:
        """Free all resources."""


@runtime_checkable
class RunnerWithPhases(Protocol):
    """A runner that can time the phases of its calls on a GPU."""

    def phases(self, prepared: Any) -> Phases | None:
        """The phases of one call; None if they are not timed here."""


def for_any(_: Workload) -> bool:
    """The `is_for` of a candidate that runs any bundle."""
    return True


def import_all(*modules: str) -> None:
    """Import `modules`."""
    for module in modules:
        importlib.import_module(module)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to run a backbone. `open` runs in a fresh process of its own.

    `cannot_run` returns why it cannot run on a device, or None, without loading anything large.
    `is_for` returns whether it is meant for the bundle and the device at all. `import_libraries`
    imports what `open` needs, before its timing starts.
    """

    name: str
    title: str
    precision: Precision
    is_peer: bool
    cannot_run: Callable[[Workload], str | None]
    open: Callable[[Workload], Runner]
    import_libraries: Callable[[], None] = import_all
    is_for: Callable[[Workload], bool] = for_any
