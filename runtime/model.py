"""The loaded model: images in, features out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from dinov2rt.runtime.accuracy import LIMITS, AccuracyReport, Golden, GoldenCase, compare
from dinov2rt.runtime.backend import Backend
from dinov2rt.runtime.errors import AccuracyError, InputError
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.geometry import Padding, Snap
from dinov2rt.runtime.inputs import ImageGroup, InputFormat, group_images, scatter
from dinov2rt.runtime.manifest import GraphEntry, Manifest
from dinov2rt.runtime.selection import Choice, open_backend, select
from dinov2rt.runtime.variants import Variant

DEFAULT_MAX_PIXELS = 2**22
"""Pixels of one forward pass unless the caller says otherwise: one image of 2048 × 2048."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What was asked of `load`, so that another process can ask the same."""

    device: str = "auto"
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS


@dataclass(slots=True, eq=False)
class Model:
    """A bundle, loaded. Made by `load`; a context manager; safe to call from several threads.

    Pickling keeps the path and the options, and unpickling loads the bundle again.
    """

    path: Path
    manifest: Manifest
    options: LoadOptions
    _choice: Choice
    _backend: Backend = field(repr=False)

    @property
    def variant(self) -> Variant:
        """Which of the eight backbones this is."""
        return self.manifest.variant

    @property
    def graph(self) -> GraphEntry:
        """The graph that is loaded."""
        return self._choice.graph

    @overload
    def __call__(
        self,
        images: NDArray[Any],
        *,
        outputs: Sequence[str] | None = None,
        snap: str = "crop",
    ) -> Features: ...

    @overload
    def __call__(
        self,
        images: Sequence[NDArray[Any]],
        *,
        outputs: Sequence[str] | None = None,
        snap: str = "crop",
    ) -> list[Features]: ...

    def __call__(
        self,
        images: NDArray[Any] | Sequence[NDArray[Any]],
        *,
        outputs: Sequence[str] | None = None,
        snap: str = "crop",
    ) -> Features | list[Features]:
        """Features of one array, or of a list of images of any sizes, in its order.

        Args:
            images: uint8 [B, H, W, 3] or [H, W, 3], RGB, or a list of [H, W, 3]. A bundle exported
                with `--input normalized` takes float32 [B, 3, H, W] as well.
            outputs: names of the graph's outputs to return, e.g. `["cls_token"]`; None means all.
                What is not asked for is not copied.
            snap: how sides that are no multiples of 14 become some: "crop" (bottom and right, the
                model card's), "center-crop", "pad" (zeros after normalisation, centred, as the
                depth heads do), "resize" (to the nearest multiple), or "error".

        Returns:
            `Features` with B images, or for a list a list of `Features` with B = 1 each.

        Raises:
            InputError: images or arguments that cannot be used.
        """
        names = self._output_names(outputs)
        input_format = InputFormat(self.graph.input_name)
        groups = group_images(images, input_format, Snap.parse(snap), self.options.max_pixels)
        if not isinstance(images, list | tuple):
            return self._run(groups[0], names)
        return scatter((group, self._run(group, names)) for group in groups)

    def verify(self, cases: Sequence[GoldenCase] | None = None) -> AccuracyReport:
        """Compare this model with the eager float32 one, by default on the bundle's golden outputs.

        No torch is needed: what the eager model says was stored at export.

        Raises:
            BundleError: the golden outputs are missing, altered, or of another export.
        """
        if cases is None:
            rebuild = self.manifest.rebuild_command(self.path)
            cases = Golden.read(self.manifest.golden.check(self.path, rebuild=rebuild)).cases
        limits = LIMITS[self.graph.precision]
        compared = []
        for case in cases:
            names = [name for name in self.graph.outputs if name in case.outputs]
            got = self._backend.infer({self.graph.input_name: case.images}, names)
            compared += [
                compare(case.name, name, got[name], case.outputs[name], limits) for name in names
            ]
        return AccuracyReport(
            self.graph.precision, self._backend.description, limits, tuple(compared)
        )

    def describe(self) -> str:
        """What runs this model, and why nothing better does."""
        lines = [f"{self.variant.name} {self.graph.precision} on {self._backend.description}"]
        lines += [f"passed over {name}: {reason}" for name, reason in self._choice.passed_over]
        return "\n".join(lines)

    def close(self) -> None:
        """Free the backend. The model cannot be called afterwards."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        self.close()
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return _reload, (self.path, self.options)

    def _output_names(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        if outputs is None:
            return self.graph.outputs
        names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        unknown = [name for name in names if name not in self.graph.outputs]
        if unknown or not names:
            raise InputError(
                f"outputs {list(names)} asked for; this bundle has {', '.join(self.graph.outputs)}"
            )
        return names

    def _run(self, group: ImageGroup, names: tuple[str, ...]) -> Features:
        parts = [
            self._backend.infer(self._feed(images, group.padding), names)
            for images in self._passes(group)
        ]
        if len(parts) == 1:
            return Features(parts[0], group.grid)
        whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return Features(whole, group.grid)

    def _passes(self, group: ImageGroup) -> Iterator[NDArray[Any]]:
        """The group in batches that hold at most `max_pixels`."""
        pixels = group.grid.num_patches * 14 * 14
        step = max(1, self.options.max_pixels // pixels)
        for start in range(0, len(group.images), step):
            yield group.images[start : start + step]

    def _feed(self, images: NDArray[Any], padding: Padding) -> dict[str, NDArray[Any]]:
        feed = {self.graph.input_name: images}
        if padding != Padding():
            before, after = (padding.top, padding.left), (padding.bottom, padding.right)
            feed["padding"] = np.array((0, 0, *before, 0, 0, *after), dtype=np.int64)
        return feed


def load(
    bundle: str | Path,
    *,
    device: str = "auto",
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    verify: bool = False,
) -> Model:
    """Load a bundle.

    Args:
        bundle: its directory.
        device: "auto" (the best that runs here), "cpu" or "cuda".
        backend: "onnxruntime"; None chooses.
        precision: that of the graph, e.g. "fp32"; None chooses.
        threads: threads of the CPU backend; None leaves it to the backend.
        max_pixels: the most pixels (B · H · W) of one forward pass. A larger batch is run in
            several passes; a single larger image is refused, since memory grows with it.
        verify: compare with the golden outputs before returning.

    Raises:
        BundleError: no bundle there, or a missing, altered or newer file.
        BackendError: what was asked for by name cannot run here.
        InputError: an option that does not exist.
        AccuracyError: `verify` was asked for and failed.
    """
    model = _reload(Path(bundle), LoadOptions(device, backend, precision, threads, max_pixels))
    if verify:
        report = model.verify()
        if not report:
            model.close()
            raise AccuracyError(f"{bundle}: {report}")
    return model


def _reload(path: Path, options: LoadOptions) -> Model:
    for name in ("threads", "max_pixels"):
        value = getattr(options, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name}={value!r}; allowed is a whole number from 1")
    manifest = Manifest.read(path)
    choice = select(
        manifest, device=options.device, backend=options.backend, precision=options.precision
    )
    opened = open_backend(path, manifest, choice, threads=options.threads)
    return Model(path, manifest, options, choice, opened)
