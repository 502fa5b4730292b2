"""What is timed: one way to run a backbone, as its own users would."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dinov2rt.runtime.manifest import Manifest
from dinov2rt.runtime.precision import Precision


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
class Candidate:
    """A way to run a backbone. `open` runs in a fresh process that holds nothing else.

    `cannot_run` says why it cannot on a device, without loading anything large, or None.
    `libraries` are the modules that `open` needs, imported before its clock starts.
    """

    name: str
    title: str
    precision: Precision
    is_peer: bool
    cannot_run: Callable[[Task], str | None]
    open: Callable[[Task], Runner]
    libraries: tuple[str, ...] = ()
