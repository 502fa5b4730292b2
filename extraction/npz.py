"""Features of an image, and of many in one .npz file."""

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import InputError
from dinov2rt.extraction.image_features import ImageFeatures, as_unicode
from dinov2rt.files import replacing
from dinov2rt.optional import require


class FeatureFormat(StrEnum):
    """Where features go, called by its suffix."""

    NPZ = ".npz"
    """One file, for what fits into memory; see `write_npz`."""
    PARQUET = ".parquet"
    """A folder of Parquet files, for any number of images; see `FeatureDataset`."""


def feature_format(path: Path) -> FeatureFormat:
    """The format that `path` asks for, once it can be written: ask before a long computation.

    Raises:
        InputError: an unknown suffix, no folder to write in, or a name that is taken by a folder
            (.npz) or a file (.parquet).
        MissingDependencyError: Parquet without pyarrow.
    """
    suffixes = [str(member) for member in FeatureFormat]
    if path.suffix not in suffixes:
        raise InputError(f"{path} has the suffix {path.suffix!r}; allowed: {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder to write {path.name} in; create it first")
    chosen = FeatureFormat(path.suffix)
    if chosen is FeatureFormat.NPZ and path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if chosen is FeatureFormat.PARQUET:
        require("pyarrow", extra="parquet", purpose="writing Parquet")
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, not a folder of parts; give another name")
    return chosen


def write_npz(file: Path, rows: Iterable[ImageFeatures], metadata: dict[str, str]) -> int:
    """Write `rows` to `file` as they come, and return how many there were.

    The arrays are `path` [N], `image_size` [N, 2], `grid` [N, 2], `cls_token` [N, D],
    `register_tokens` [N, R, D], `patch_mean` [N, D], `patch_tokens` [sum of P, D] of which
    image i has those from `patch_offsets[i]` to `patch_offsets[i + 1]`, and `metadata`, JSON.

    `register_tokens` is left out where R is 0, and `patch_tokens` where there are none. A path
    that is not Unicode is written with backslash escapes. Patch tokens are never held in memory
    together. The file appears when complete, or not at all.

    Raises:
        InputError: as `feature_format`; no rows; or rows that are not of one model.
        Dinov2rtError: the file cannot be written.
    """
    feature_format(file)
    with replacing(file) as partial:
        return _write_npz(partial, _alike(rows), metadata)


def _alike(rows: Iterable[ImageFeatures]) -> Iterator[ImageFeatures]:
    """`rows` as they come, at least one, each of the first one's layout."""
    first = None
    for row in rows:
        first = first or row
        if _layout(row) != _layout(first):
            raise InputError(
                f"{row.key} has {_layout(row)}, but {first.key} has {_layout(first)}; "
                "write the features of one model to one file"
            )
        yield row
    if first is None:
        raise InputError("there are no features to write; give at least one image")


def _layout(row: ImageFeatures) -> str:
    patches = "no" if row.patch_tokens is None else "with"
    registers, width = len(row.register_tokens), row.cls_token.shape[-1]
    return f"{registers} registers, width {width}, {patches} patch tokens"


def _write_npz(file: Path, rows: Iterator[ImageFeatures], metadata: dict[str, str]) -> int:
    kept, offsets = [], [0]
    with file.open("wb") as archive, tempfile.TemporaryFile(dir=file.parent) as spool:
        for row in rows:
            kept.append(dataclasses.replace(row, patch_tokens=None))
            if row.patch_tokens is not None:
                spool.write(np.ascontiguousarray(row.patch_tokens, np.float32).data)
                offsets.append(offsets[-1] + len(row.patch_tokens))
        arrays = _npz_arrays(kept)
        if len(offsets) > 1:
            spool.flush()
            shape = (offsets[-1], kept[0].cls_token.shape[-1])
            arrays["patch_tokens"] = np.memmap(spool, np.float32, mode="r", shape=shape)
            arrays["patch_offsets"] = np.array(offsets, np.int64)
        np.savez(archive, metadata=np.array(json.dumps(metadata)), **arrays)  # type: ignore[arg-type]
    return len(kept)


def _npz_arrays(rows: list[ImageFeatures]) -> dict[str, NDArray[Any]]:
    arrays = {
        "path": np.array([as_unicode(row.key) for row in rows]),
        "image_size": np.array([(row.size.height, row.size.width) for row in rows], np.int64),
        "grid": np.array([(row.grid.rows, row.grid.cols) for row in rows], np.int64),
        "cls_token": np.stack([row.cls_token for row in rows], dtype=np.float32),
        "patch_mean": np.stack([row.patch_mean for row in rows], dtype=np.float32),
    }
    if len(rows[0].register_tokens):
        arrays["register_tokens"] = np.stack(
            [row.register_tokens for row in rows], dtype=np.float32
        )
    return arrays
