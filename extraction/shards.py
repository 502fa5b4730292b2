"""Shards, which hold many images in one file: WebDataset's tar archives, and Parquet."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dinov2rt.errors import InputError
from dinov2rt.files import open_regular, require_regular
from dinov2rt.foreign import quoted
from dinov2rt.optional import require
from dinov2rt.runtime.images import IMAGE_SUFFIXES

TAR_SUFFIX = ".tar"
PARQUET_SUFFIX = ".parquet"
SHARD_SUFFIXES = frozenset({TAR_SUFFIX, PARQUET_SUFFIX})

_ROWS_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file in an uncompressed archive: its name, and where in the archive its bytes are."""

    name: str
    offset: int
    size_bytes: int


def tar_images(shard: Path) -> Iterator[TarMember]:
    """The images in the archive `shard`, in its order; hidden members are left out.

    Raises:
        InputError: not an uncompressed tar, or damaged; what came before was sound.
    """
    try:
        with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                _check_member(member)
                if member.isfile() and _is_image(PurePosixPath(member.name)):
                    yield TarMember(member.name, member.offset_data, member.size)
            _check_end(archive)
    # The parser lets through whatever a damaged header makes it trip over.
    except (tarfile.TarError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{shard} is not a whole, uncompressed tar archive ({reason}); get it again"
        ) from error


def _check_member(member: tarfile.TarInfo) -> None:
    if member.size < 0:
        raise tarfile.ReadError(f"{quoted(member.name)} has a size of {member.size} bytes")
    if member.issparse():
        raise tarfile.ReadError(f"{quoted(member.name)} is sparse, which is not read")


def parquet_images(shard: Path, column: str) -> int:
    """How many rows `shard` has, once it is clear that `column` can hold images.

    Raises:
        InputError: not a Parquet file, or no such column.
        MissingDependencyError: pyarrow is not installed.
    """
    with _opened(shard) as file:
        _leaf(shard, file.schema_arrow, column)
        return int(file.metadata.num_rows)


def read_parquet_images(shard: Path, column: str, start: int, stop: int) -> Iterator[bytes | None]:
    """The encoded images in the rows from `start` to before `stop`; None where there is none.

    Raises:
        InputError: the rows cannot be read; those that came before were sound.
    """
    with _opened(shard) as file:
        leaf = _leaf(shard, file.schema_arrow, column)
        for group, first in _row_groups(file.metadata, start, stop):
            row = first
            # One by one, so that a damaged group takes no other with it.
            batches = file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[leaf])
            for batch in _readable(shard, batches):
                wanted = batch.column(0)[max(0, start - row) : max(0, stop - row)]
                row += len(batch)
                yield from (wanted.field("bytes") if leaf != column else wanted).to_pylist()


def _is_image(name: PurePosixPath) -> bool:
    return name.suffix.lower() in IMAGE_SUFFIXES and not name.name.startswith(".")


def _check_end(archive: tarfile.TarFile) -> None:
    """`tarfile` takes a damaged header for the end of the archive; only zeros, or nothing, are."""
    assert archive.fileobj is not None  # noqa: S101  # of an open archive it never is
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"damaged header at byte {archive.offset}")


def _opened(shard: Path) -> Any:
    pa = require("pyarrow", extra="parquet", purpose="reading Parquet shards")
    parquet = require("pyarrow.parquet", extra="parquet", purpose="reading Parquet shards")
    try:
        require_regular(shard)
        return parquet.ParquetFile(shard)
    except (pa.lib.ArrowException, OSError) as error:
        raise _unreadable(shard, error) from error


def _readable(shard: Path, batches: Iterator[Any]) -> Iterator[Any]:
    pa = require("pyarrow", extra="parquet", purpose="reading Parquet shards")
    try:
        yield from batches
    except (pa.lib.ArrowException, OSError) as error:
        raise _unreadable(shard, error) from error


def _unreadable(shard: Path, error: Exception) -> InputError:
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return InputError(
        f"{shard} cannot be read as Parquet ({' '.join(reason.split())}); get it again"
    )


def _leaf(shard: Path, schema: Any, column: str) -> str:
    """What to read of `column`: itself where it is binary, "bytes" where it is a struct."""
    pa = require("pyarrow", extra="parquet", purpose="reading Parquet shards")
    if column not in schema.names:
        raise InputError(
            f"{shard} has no column {quoted(column)}, only {', '.join(schema.names)}; "
            "name the one with the images (--image-column)"
        )
    if schema.names.count(column) > 1 or "." in column:
        raise InputError(
            f"{shard} has a column {quoted(column)} that is there twice or holds a dot, and "
            "cannot be "
            "told from others; rename it"
        )
    kind = schema.field(column).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and _has_bytes(kind) else None
    if inner is not None and (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        return f"{column}.bytes"
    raise InputError(
        f"{shard} has {kind} in the column {quoted(column)}; allowed are encoded images as binary "
        "or as "
        "struct<bytes, path>"
    )


def _has_bytes(struct: Any) -> bool:
    return bool(struct.get_field_index("bytes") >= 0)


def _row_groups(metadata: Any, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Each row group that holds rows from `start` to before `stop`, with its own first row."""
    row = 0
    for index in range(metadata.num_row_groups):
        end = row + metadata.row_group(index).num_rows
        if row < stop and start < end:
            yield index, row
        row = end
