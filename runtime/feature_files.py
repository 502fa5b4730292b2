"""Features of many images in one file: NumPy's .npz or Apache Parquet."""

import contextlib
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.runtime.errors import Dinov2rtError, InputError
from dinov2rt.runtime.geometry import Grid, ImageSize
from dinov2rt.runtime.optional import require

Float32Array = NDArray[np.float32]

_ROW_GROUP_BYTES = 64 << 20


class FeatureFormat(StrEnum):
    """The file formats, called by their suffixes."""

    NPZ = ".npz"
    PARQUET = ".parquet"


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """What one image gave; all arrays float32.

    `size` is that of the image given to the model, before it was snapped to `grid`.
    Shapes: `cls_token` [D], `register_tokens` [R, D] (R is 0 for variants without registers),
    `patch_mean` [D], `patch_tokens` [P, D] row-major over the grid, or None to leave them out.
    """

    path: str
    size: ImageSize
    grid: Grid
    cls_token: Float32Array
    register_tokens: Float32Array
    patch_mean: Float32Array
    patch_tokens: Float32Array | None = None


def feature_format(file: Path) -> FeatureFormat:
    """The format that `write_features` would give `file`: ask before a long computation.

    Raises:
        InputError: an unknown suffix, no folder to write in, or a folder of that name.
        MissingDependencyError: Parquet without pyarrow.
    """
    suffixes = [str(member) for member in FeatureFormat]
    if file.suffix not in suffixes:
        raise InputError(f"{file} has the suffix {file.suffix!r}; allowed: {', '.join(suffixes)}")
    if not file.parent.is_dir():
        raise InputError(f"{file.parent} is not a folder to write {file.name} in; create it first")
    if file.is_dir():
        raise InputError(f"{file} is a folder; give the name of a file")
    chosen = FeatureFormat(file.suffix)
    if chosen is FeatureFormat.PARQUET:
        _pyarrow()
    return chosen


def write_features(file: Path, rows: Iterable[ImageFeatures], metadata: dict[str, str]) -> int:
    """Write `rows` to `file` as they come, and return how many there were.

    The suffix chooses the format:

    - .npz: `path` [N], `image_size` [N, 2], `grid` [N, 2], `cls_token` [N, D],
      `register_tokens` [N, R, D], `patch_mean` [N, D], `patch_tokens` [sum of P, D] of which
      image i has those from `patch_offsets[i]` to `patch_offsets[i + 1]`, and `metadata`, JSON.
    - .parquet: a row an image, with `path`, `height`, `width`, `grid_rows`, `grid_cols`,
      `cls_token`, `register_tokens` (flattened), `patch_mean` and `patch_tokens` (flattened);
      metadata in the schema's, each key prefixed by "dinov2rt.".

    `register_tokens` is left out where R is 0, and `patch_tokens` where there are none. A path
    that is not Unicode is written with backslash escapes. Patch tokens are never held in memory
    together. The file appears when complete, or not at all.

    Raises:
        InputError: as `feature_format`; no rows; or rows that are not of one model.
        Dinov2rtError: the file cannot be written.
    """
    write = {FeatureFormat.NPZ: _write_npz, FeatureFormat.PARQUET: _write_parquet}
    chosen = feature_format(file)
    with replacing(file) as partial:
        return write[chosen](partial, _alike(rows), metadata)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A sibling to write to, which becomes `file` in the end and is removed after an error.

    Raises:
        Dinov2rtError: the system refuses to write it.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        yield partial
        partial.replace(file)
    except OSError as error:
        raise Dinov2rtError(
            f"{file} cannot be written ({error.strerror or error}); free the disk or choose "
            "another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _alike(rows: Iterable[ImageFeatures]) -> Iterator[ImageFeatures]:
    """`rows` as they come, at least one, each of the first one's layout."""
    first = None
    for row in rows:
        first = first or row
        if _layout(row) != _layout(first):
            raise InputError(
                f"{row.path} has {_layout(row)}, but {first.path} has {_layout(first)}; "
                "write the features of one model to one file"
            )
        yield row
    if first is None:
        raise InputError("there are no features to write; give at least one image")


def _layout(row: ImageFeatures) -> str:
    patches = "no" if row.patch_tokens is None else "with"
    registers, width = len(row.register_tokens), row.cls_token.shape[-1]
    return f"{registers} registers, width {width}, {patches} patch tokens"


def _unicode(path: str) -> str:
    """`path` without the lone surrogates that stand for undecodable bytes of a file name."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


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
        "path": np.array([_unicode(row.path) for row in rows]),
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


def _write_parquet(file: Path, rows: Iterator[ImageFeatures], metadata: dict[str, str]) -> int:
    parquet = require("pyarrow.parquet", extra="parquet", purpose="writing Parquet")
    first = next(rows)
    schema = _parquet_schema(first, metadata)
    written = 0
    # Features hardly ever repeat: a dictionary would only be built to be thrown away.
    with parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for group in _row_groups(itertools.chain([first], rows)):
            writer.write_batch(_record_batch(group, schema))
            written += len(group)
    return written


def _row_groups(rows: Iterator[ImageFeatures]) -> Iterator[list[ImageFeatures]]:
    group, size_bytes = [], 0
    for row in rows:
        group.append(row)
        size_bytes += row.cls_token.nbytes + row.patch_mean.nbytes + row.register_tokens.nbytes
        size_bytes += 0 if row.patch_tokens is None else row.patch_tokens.nbytes
        if size_bytes >= _ROW_GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _parquet_schema(row: ImageFeatures, metadata: dict[str, str]) -> Any:
    pa = _pyarrow()
    token = pa.list_(pa.float32(), row.cls_token.shape[-1])
    fields = {"path": pa.string()}
    fields |= dict.fromkeys(("height", "width", "grid_rows", "grid_cols"), pa.int32())
    fields["cls_token"] = token
    if row.register_tokens.size:
        fields["register_tokens"] = pa.list_(pa.float32(), row.register_tokens.size)
    fields["patch_mean"] = token
    if row.patch_tokens is not None:
        fields["patch_tokens"] = pa.list_(pa.float32())
    return pa.schema(fields).with_metadata(
        {f"dinov2rt.{key}": value for key, value in metadata.items()}
    )


def _record_batch(rows: list[ImageFeatures], schema: Any) -> Any:
    columns = {
        "path": [_unicode(row.path) for row in rows],
        "height": [row.size.height for row in rows],
        "width": [row.size.width for row in rows],
        "grid_rows": [row.grid.rows for row in rows],
        "grid_cols": [row.grid.cols for row in rows],
    }
    for name in schema.names[len(columns) :]:
        columns[name] = [np.ravel(getattr(row, name)) for row in rows]
    return _pyarrow().record_batch(columns, schema=schema)


def _pyarrow() -> Any:
    return require("pyarrow", extra="parquet", purpose="writing Parquet")
