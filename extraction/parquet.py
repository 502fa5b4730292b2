"""Features and failures as Parquet: their columns, and how they are written."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Failure
from dinov2rt.extraction.image_features import ImageFeatures, as_unicode
from dinov2rt.foreign import quoted
from dinov2rt.optional import require

METADATA_PREFIX = "dinov2rt."
"""Of the keys in a schema's metadata that are this project's."""

_ROW_GROUP_BYTES = 64 << 20


class FeatureType(StrEnum):
    """How a feature is stored."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @classmethod
    def parse(cls, name: str) -> "FeatureType":
        """The member called `name`.

        Raises:
            InputError: there is none.
        """
        try:
            return cls(name)
        except ValueError:
            raise InputError(
                f"unknown dtype {quoted(name)}; allowed are {', '.join(cls)}"
            ) from None


def feature_schema(
    variant: Variant, dtype: FeatureType, metadata: Mapping[str, str], *, patch_tokens: bool
) -> Any:
    """The columns of a table of features, as a pyarrow schema.

    `key`, `height`, `width`, `grid_rows`, `grid_cols`, and lists of `dtype`: `cls_token` [D],
    `register_tokens` [R·D] where there are any, `patch_mean` [D], and with `patch_tokens` those
    [P·D], row-major over the grid. All lists but the last have a fixed size.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    pa = _pyarrow()
    number = pa.float16() if dtype is FeatureType.FLOAT16 else pa.float32()
    width = variant.embed_dim
    fields = {"key": pa.string()}
    fields |= dict.fromkeys(("height", "width", "grid_rows", "grid_cols"), pa.int32())
    fields["cls_token"] = pa.list_(number, width)
    if variant.num_registers:
        fields["register_tokens"] = pa.list_(number, variant.num_registers * width)
    fields["patch_mean"] = pa.list_(number, width)
    if patch_tokens:
        fields["patch_tokens"] = pa.list_(number)
    prefixed = {f"{METADATA_PREFIX}{key}": value for key, value in metadata.items()}
    return pa.schema(fields).with_metadata(prefixed)


def write_features(file: BinaryIO, schema: Any, rows: Iterator[ImageFeatures]) -> int:
    """Write `rows` as they come, and return how many there were.

    Raises:
        InputError: a feature is too large for the schema's float16.
        OSError: the system refuses to write.
    """
    parquet = require("pyarrow.parquet", extra="parquet", purpose="writing Parquet")
    written = 0
    # Features hardly ever repeat: a dictionary would only be built to be thrown away.
    with parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for group in _row_groups(rows):
            writer.write_batch(_record_batch(group, schema))
            written += len(group)
    return written


def write_failures(file: BinaryIO, failures: Sequence[Failure]) -> None:
    """Write the columns `key` and `reason`.

    Raises:
        OSError: the system refuses to write.
    """
    parquet = require("pyarrow.parquet", extra="parquet", purpose="writing Parquet")
    columns = {
        "key": [as_unicode(failure.key) for failure in failures],
        "reason": [as_unicode(failure.reason) for failure in failures],
    }
    parquet.write_table(_pyarrow().table(columns), file)


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
    columns = {
        "key": [as_unicode(row.key) for row in rows],
        "height": [row.size.height for row in rows],
        "width": [row.size.width for row in rows],
        "grid_rows": [row.grid.rows for row in rows],
        "grid_cols": [row.grid.cols for row in rows],
    }
    for field in list(schema)[len(columns) :]:
        values = [np.ravel(getattr(row, field.name)) for row in rows]
        columns[field.name] = _list_array(values, field.type)
    return _pyarrow().record_batch(columns, schema=schema)


def _list_array(values: list[NDArray[np.float32]], kind: Any) -> Any:
    """`values`, one list a row, as an Arrow array of the type `kind`, without Python objects."""
    pa = _pyarrow()
    flat = pa.array(_cast(np.concatenate(values), kind.value_type), kind.value_type)
    if pa.types.is_fixed_size_list(kind):
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


def _pyarrow() -> Any:
    return require("pyarrow", extra="parquet", purpose="writing Parquet")
