"""Reads and writes features and failures as Parquet."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Failure
from dinov2rt.extraction.image_features import (
    KEY,
    SIZE_COLUMNS,
    TOKEN_COLUMNS,
    ImageFeatures,
    as_unicode,
    check_columns,
    check_filled,
    check_row,
    sizes,
)
from dinov2rt.files import require_regular, require_utf8, why_unreadable
from dinov2rt.foreign import quoted, shown
from dinov2rt.named_enum import NamedEnum
from dinov2rt.optional import require

METADATA_PREFIX = "dinov2rt."
"""The prefix of this project's keys in a schema's metadata."""

LAYERS = "layers"
"""The setting that names the blocks of `layer_cls_tokens`, as in "8,9,10,11 of 12"."""

PATCH_SIZE = "patch_size"
"""The setting that states the side of a patch in pixels."""

_LAYERS_OF = re.compile(r"\d{1,4}(,\d{1,4})* of \d{1,4}")
_ROW_GROUP_BYTES = 64 << 20
_ROWS_AT_A_TIME = 64


class FeatureType(NamedEnum):
    """How a feature is stored."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @classmethod
    def kind(cls) -> str:
        """The name of the option."""
        return "dtype"


FeatureTypeName = Literal["float16", "float32"]
"""The names of `FeatureType`."""


def feature_schema(
    architecture: Architecture,
    dtype: FeatureType,
    metadata: Mapping[str, str],
    *,
    patch_tokens: bool,
) -> Any:
    """The columns of a table of features, as a pyarrow schema.

    `key`; `height` and `width` of the image given to the model; `scaled_from_height` and
    `scaled_from_width`, its size before it was scaled to fit `max_pixels`, null where it fitted;
    `grid_rows` and `grid_cols`; and lists of `dtype`: `cls_token` [D], `register_tokens` [R, D]
    where there are any, with layers in `metadata` `layer_cls_tokens` [L, D], `patch_mean` [D], and
    with `patch_tokens` also `patch_tokens` [P, D], row-major over the grid. All lists have fixed
    sizes, except for P.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    pa = _pyarrow()
    number = pa.float16() if dtype is FeatureType.FLOAT16 else pa.float32()
    width = architecture.embed_dim
    token = pa.list_(number, width)
    fields = {"key": pa.string()} | dict.fromkeys(SIZE_COLUMNS, pa.int32()) | {"cls_token": token}
    if architecture.num_registers:
        fields["register_tokens"] = pa.list_(token, architecture.num_registers)
    if layers := layers_of(metadata):
        fields["layer_cls_tokens"] = pa.list_(token, len(layers))
    fields["patch_mean"] = token
    if patch_tokens:
        fields["patch_tokens"] = pa.list_(token)
    prefixed = {f"{METADATA_PREFIX}{key}": value for key, value in metadata.items()}
    return pa.schema(fields).with_metadata(prefixed)


def layers_of(metadata: Mapping[str, str]) -> tuple[int, ...]:
    """The blocks whose CLS tokens are in `layer_cls_tokens`, counted from 0; empty if none are.

    Raises:
        InputError: the metadata name no blocks there.
    """
    said = metadata.get(LAYERS, "")
    if said and not _LAYERS_OF.fullmatch(said):
        raise InputError(f"{shown(said)} are no layers of features; leave them out")
    listed = said.partition(" ")[0]
    return tuple(map(int, listed.split(","))) if listed else ()


def patch_size_of(metadata: Mapping[str, str]) -> int:
    """The side of a patch in pixels. Older features do not state it, but name their variant.

    Raises:
        InputError: the variant is unknown, or the side is no number.
    """
    stated = metadata.get(PATCH_SIZE)
    if stated is None:
        return find_variant(metadata["variant"]).patch_size
    if not stated.isdecimal() or not int(stated):
        raise InputError(f"the features state a patch size of {quoted(stated)}; compute them again")
    return int(stated)


def write_features(file: BinaryIO, schema: Any, rows: Iterator[ImageFeatures]) -> int:
    """Write `rows` as they arrive, and return their number.

    Raises:
        InputError: a feature is too large for the schema's float16, or rows of another width.
        OSError: the system refuses to write.
    """
    parquet = require("pyarrow.parquet", extra="parquet", purpose="writing Parquet")
    written = 0
    # Features hardly ever repeat, so that a dictionary would be useless.
    with parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for group in _row_groups(rows):
            writer.write_batch(_record_batch(group, schema))
            written += len(group)
    return written


def write_failures(file: BinaryIO, failures: Sequence[Failure]) -> None:
    """Write the columns `key`, `reason` and `file_state`.

    Raises:
        OSError: the system refuses to write.
    """
    parquet = require("pyarrow.parquet", extra="parquet", purpose="writing Parquet")
    columns = {
        "key": [as_unicode(failure.key) for failure in failures],
        "reason": [as_unicode(failure.reason) for failure in failures],
        "file_state": [failure.file_state for failure in failures],
    }
    parquet.write_table(_pyarrow().table(columns), file)


def read_failures(file: Path) -> list[Failure]:
    """Read a file of `write_failures`.

    Raises:
        InputError: the file cannot be read.
    """
    with opened_parquet(file) as table:
        rows = table.read().to_pylist()
    try:
        return [Failure(**row) for row in rows]
    except TypeError as error:
        raise InputError(f"{file} holds no errors of dinov2rt; remove it to go on") from error


def read_rows(part: Path) -> Iterator[ImageFeatures]:
    """Read a file of `write_features`, a few images at a time, in float32.

    Raises:
        InputError: the file cannot be read.
    """
    with opened_parquet(part) as table:
        check_columns(part, table.schema_arrow, (KEY, *SIZE_COLUMNS, "cls_token", "patch_mean"))
        for batch in table.iter_batches(_ROWS_AT_A_TIME):
            check_filled(part, batch)
            columns = {name: batch.column(name) for name in batch.schema.names}
            for at in range(len(batch)):
                row = _row({name: column[at] for name, column in columns.items()})
                check_row(part, row)
                yield row


def _row(cells: Mapping[str, Any]) -> ImageFeatures:
    tokens: dict[str, Any] = {name: _tokens(cells[name]) for name in TOKEN_COLUMNS if name in cells}
    tokens.setdefault("register_tokens", np.zeros((0, len(tokens["cls_token"])), np.float32))
    height, width, from_height, from_width, rows, cols = (cells[name] for name in SIZE_COLUMNS)
    scaled_from = (
        ImageSize(from_height.as_py(), from_width.as_py()) if from_height.is_valid else None
    )
    return ImageFeatures(
        key=cells["key"].as_py(),
        size=ImageSize(height.as_py(), width.as_py()),
        grid=Grid(rows.as_py(), cols.as_py()),
        scaled_from=scaled_from,
        **tokens,
    )


def _tokens(cell: Any) -> NDArray[np.float32]:
    """A list of numbers as an array [D], or a list of such lists as [N, D]."""
    values, rows = cell.values, None
    if not _pyarrow().types.is_floating(values.type):
        values, rows = values.flatten(), len(values)
    numbers: NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers if rows is None else numbers.reshape(rows, -1)


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


def _record_batch(rows: list[ImageFeatures], schema: Any) -> Any:
    columns: dict[str, Any] = {"key": [as_unicode(row.key) for row in rows]}
    columns |= dict(zip(SIZE_COLUMNS, zip(*map(sizes, rows), strict=True), strict=True))
    for field in list(schema)[len(columns) :]:
        columns[field.name] = _list_array([getattr(row, field.name) for row in rows], field.type)
    return _pyarrow().record_batch(columns, schema=schema)


def _list_array(values: list[NDArray[np.float32]], kind: Any) -> Any:
    """`values`, one per row, as an Arrow array of type `kind`, without Python objects."""
    pa = _pyarrow()
    is_nested = not pa.types.is_floating(kind.value_type)
    number = kind.value_type.value_type if is_nested else kind.value_type
    flat = pa.array(_cast(np.concatenate(values).ravel(), number), number)
    if is_nested:
        flat = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        if widths := {len(row) for row in values} - {kind.list_size}:
            raise InputError(
                f"the graph gives {widths.pop()} numbers where its manifest says {kind.list_size}; "
                "export the bundle again"
            )
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, flat, type=kind)


def _cast(values: NDArray[np.float32], number: Any) -> NDArray[Any]:
    limit = np.finfo(number.to_pandas_dtype()).max
    if (largest := np.abs(values).max(initial=0)) > limit:
        raise InputError(
            f"a feature of {largest:g} is beyond {number}, which ends at {limit:g}; "
            "use dtype float32"
        )
    return values.astype(number.to_pandas_dtype())


@contextlib.contextmanager
def opened_parquet(file: Path) -> Iterator[Any]:
    """Open a Parquet file of features or failures; read errors become `InputError`."""
    parquet = require("pyarrow.parquet", extra="parquet", purpose="reading features")
    with reading_parquet(file):
        require_utf8(file)
        require_regular(file)
        with parquet.ParquetFile(file) as opened:
            yield opened


@contextlib.contextmanager
def reading_parquet(place: object) -> Iterator[None]:
    """Turn errors of reading from `place` into `InputError` within the block."""
    try:
        yield
    except (_pyarrow().lib.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{place} cannot be read as Parquet ({why_unreadable(error)}); leave it out"
        ) from error


def _pyarrow() -> Any:
    return require("pyarrow", extra="parquet", purpose="writing Parquet")
