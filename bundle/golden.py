"""Golden outputs: images, and what the eager float32 model returns for them."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.normalization import Normalization
from dinov2rt.bundle.signature import FloatArray, is_class_map
from dinov2rt.errors import BundleError
from dinov2rt.files import read_regular
from dinov2rt.foreign import shown

_MOST_BYTES = 2**31
_MOST_CASES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class GoldenCase:
    """One batch and the eager float32 model's outputs for it.

    `images` are in the graph's format: uint8 [B, H, W, 3] or normalized float32 [B, 3, H, W].
    `outputs` maps the graph's output names to [B, D] or [B, tokens, D].
    """

    name: str
    images: NDArray[Any]
    outputs: Mapping[str, FloatArray]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = (
            self.images.shape[1:3] if self.images.dtype == np.uint8 else self.images.shape[2:4]
        )
        return int(height), int(width)

    def reference(self, name: str) -> FloatArray:
        """The eager model's output `name`.

        Raises:
            BundleError: the case does not have this output.
        """
        if name not in self.outputs:
            raise BundleError(
                f"the golden case {shown(self.name)} holds no {shown(name)}, which the graph "
                "returns; "
                "graph and golden outputs are not of one export"
            )
        return self.outputs[name]


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """The golden cases of a bundle, stored in `golden.npz`.

    The first case has its arrays under their plain names (`images`, `cls_token`, ...), each further
    one under `NAME/images`, `NAME/cls_token`, ... `normalization` was applied to the
    eager model's input (`mean` and `std` in the file); None in files from before it was stored.
    """

    cases: tuple[GoldenCase, ...]
    normalization: Normalization | None = None

    def check(self, normalization: Normalization, rebuild: str) -> None:
        """Compare the statistics of the eager model's input with those that the bundle states.

        Raises:
            BundleError: they differ, so that these outputs say nothing of the bundle.
        """
        if self.normalization not in (None, normalization):
            raise BundleError(
                f"the golden outputs were made with {self.normalization}, the bundle states "
                f"{normalization}; {rebuild}"
            )

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read `golden.npz`.

        Raises:
            BundleError: the file cannot be read, or is malformed.
        """
        try:
            content = read_regular(file, _MOST_BYTES)
        except OSError as error:
            raise BundleError(f"{file} holds no golden outputs ({error})") from error
        return cls.parse(content, str(file))

    @classmethod
    def parse(cls, content: bytes, name: str) -> Self:
        """Parse the bytes of a `golden.npz`; `name` is its name in messages.

        Raises:
            BundleError: the file is malformed.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > _MOST_BYTES:
                    raise ValueError(f"more than {_MOST_BYTES} bytes when unpacked")
                arrays = dict(archive)
            normalization = _normalization(arrays)
            return cls(tuple(_cases(arrays)), normalization)
        except Exception as error:  # zipfile, zlib and numpy each raise their own types
            raise BundleError(f"{name} holds no golden outputs ({shown(error)})") from error

    def write(self, file: Path) -> None:
        """Write `golden.npz`."""
        arrays: dict[str, NDArray[Any]] = {"cases": np.array([case.name for case in self.cases])}
        if self.normalization is not None:
            arrays |= {
                name: np.array(getattr(self.normalization, name)) for name in ("mean", "std")
            }
        for index, case in enumerate(self.cases):
            prefix = _prefix(index, case.name)
            arrays[f"{prefix}images"] = case.images
            arrays |= {f"{prefix}{name}": value for name, value in case.outputs.items()}
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _normalization(arrays: dict[str, NDArray[Any]]) -> Normalization | None:
    mean, std = (arrays.pop(name, None) for name in ("mean", "std"))
    if mean is None or std is None:
        return None
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]


def _cases(arrays: dict[str, NDArray[Any]]) -> Iterable[GoldenCase]:
    names = arrays.pop("cases")
    if names.ndim != 1 or len(names) > _MOST_CASES:
        raise ValueError(f"cases of shape {list(names.shape)}; allowed are up to {_MOST_CASES}")
    for index, name in enumerate(map(str, names)):
        prefix = _prefix(index, name)
        own = {
            key.removeprefix(prefix): value
            for key, value in arrays.items()
            if key.rpartition("/")[0] == prefix.rstrip("/")
        }
        images = own.pop("images")
        _check_arrays(name, images, own)
        yield GoldenCase(name=name, images=images, outputs=own)


def _check_arrays(case: str, images: NDArray[Any], outputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse arrays that are not numeric: a comparison could fail on them, or wrongly pass."""
    if images.dtype not in (np.uint8, np.float32) or images.ndim != 4 or not images.size:
        raise ValueError(f"images of {shown(case)} are {images.dtype} {list(images.shape)}")
    for name, values in outputs.items():
        wanted = "uint8" if is_class_map(name) else "float32"
        if str(values.dtype) != wanted or not values.size:
            raise ValueError(f"{shown(name)} of {shown(case)} is {values.dtype}, must be {wanted}")


def _prefix(index: int, name: str) -> str:
    return f"{name}/" if index else ""
