"""Features of many images in one .npz file."""

import dataclasses
import json
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dinov2rt.extraction.image_features import (
    SIZE_COLUMNS,
    ImageFeatures,
    alike,
    as_unicode,
    sizes,
)
from dinov2rt.files import replacing


def write_npz(file: Path, rows: Iterable[ImageFeatures], metadata: dict[str, str]) -> int:
    """Write `rows` to `file` as they arrive, and return their number.

    The arrays are the columns of `feature_schema`: `key`, `height`, `width`,
    `scaled_from_height`, `scaled_from_width` (0 where the image fitted), `grid_rows`, `grid_cols`,
    each [N], `cls_token` [N, D], `register_tokens` [N, R, D], `patch_mean` [N, D]; also
    `patch_tokens` [sum of P, D] of which image i has the rows from `patch_offsets[i]` to
    `patch_offsets[i + 1]`, and `metadata`, JSON.

    `register_tokens` is left out where R is 0, and `patch_tokens` where there are none. A key
    that is not Unicode is written with backslash escapes. Patch tokens are never held in memory
    together. The file appears when complete, or not at all.

    Raises:
        InputError: no rows, or rows that are not of one model.
        Dinov2rtError: the file cannot be written.
    """
    with replacing(file) as partial:
        return _write_npz(partial, alike(rows), metadata)


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
        _savez(archive, {"metadata": np.array(json.dumps(metadata)), **arrays})
    return len(kept)


def _savez(archive: BinaryIO, arrays: dict[str, NDArray[Any]]) -> None:
    """Write what `np.savez` would write, and raise an error at once if the disk is full.

    `np.savez` itself then prints an error later, from its archive, which NumPy 1 leaves open.
    """
    with zipfile.ZipFile(archive, "w") as members:
        for name, array in arrays.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _npz_arrays(rows: list[ImageFeatures]) -> dict[str, NDArray[Any]]:
    columns = zip(*map(sizes, rows), strict=True)
    arrays: dict[str, NDArray[Any]] = {
        "key": np.array([as_unicode(row.key) for row in rows]),
        **{name: _integers(values) for name, values in zip(SIZE_COLUMNS, columns, strict=True)},
        "cls_token": np.stack([row.cls_token for row in rows], dtype=np.float32),
        "patch_mean": np.stack([row.patch_mean for row in rows], dtype=np.float32),
    }
    if len(rows[0].register_tokens):
        arrays["register_tokens"] = np.stack(
            [row.register_tokens for row in rows], dtype=np.float32
        )
    return arrays


def _integers(values: Iterable[int | None]) -> NDArray[np.int64]:
    return np.array([value or 0 for value in values], np.int64)
