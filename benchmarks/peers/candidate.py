"""What is timed: one way to run a backbone, as its own users would."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision


@dataclass(frozen=True, slots=True)
class Task:
    """What a candidate is asked to load: the weights of a bundle, for one device."""

    bundle: Path
    device: str
    threads: int

    @property
    def manifest(self) -> Manifest:
        """That of the bundle."""
        return Manifest.read(self.bundle)


class Runner(Protocol):
    """A loaded candidate.

    A call is timed from `prepare`d images in host memory to results in host memory. What its users
    have before a call (a normalised tensor, say) is made by `prepare`, outside of the clock.
    """

    version: str

    def prepare(self, pixels: NDArray[np.uint8]) -> Any:
        """From RGB uint8 [B, H, W, 3] to what `run` takes."""

    def run(self, prepared: Any) -> Any:
        """One call; returns when its results can be read."""

    def outputs(self, result: Any) -> Mapping[str, NDArray[np.float32]]:
        """The results as `cls_token` [B, D], `register_tokens` [B, R, D], `patch_tokens` [B, P, D].

        An output that this candidate does not give is left out.
        """

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the time of one call on a GPU goes, in ms by CUDA events.

    The copies are those of images to the GPU and of outputs from it; what the host does before,
    between and after them is in none of the three.
    """

    host_to_device_ms: float
    compute_ms: float
    device_to_host_ms: float


@runtime_checkable
class PhaseTimer(Protocol):
    """What a runner can do beside `Runner`, if it sees the steps of its calls on a GPU."""

    def phases(self, prepared: Any) -> Phases | None:
        """Those of one call; None where it does not run on a GPU."""


def for_any(_: Task) -> bool:
    """`is_for` of what runs any bundle."""
    return True


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to run a backbone. `open` runs in a fresh process that holds nothing else.

    `cannot_run` says why it cannot on a device, without loading anything large, or None; `is_for`
    whether it is meant for the bundle and the device at all. `libraries` are the modules that
    `open` needs, imported before its clock starts.
    """

    name: str
    title: str
    precision: Precision
    is_peer: bool
    cannot_run: Callable[[Task], str | None]
    open: Callable[[Task], Runner]
    libraries: tuple[str, ...] = ()
    is_for: Callable[[Task], bool] = for_any
