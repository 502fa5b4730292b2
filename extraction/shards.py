"""Reads shards, files with many images: WebDataset's tar archives, and Parquet."""

import contextlib
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.files import open_regular, require_regular, require_utf8, why_unreadable
from dinov2rt.foreign import quoted, shown
from dinov2rt.optional import require
from dinov2rt.runtime.image_search import IMAGE_SUFFIXES

TAR_SUFFIX = ".tar"
PARQUET_SUFFIX = ".parquet"
SHARD_SUFFIXES = frozenset({TAR_SUFFIX, PARQUET_SUFFIX})

_ROWS_AT_A_TIME = 64
_BYTES_AT_A_TIME = 2**28
_MOST_HEADER_BYTES = 2**20
_MOST_OFFSET = 2**63 - 1
_MOST_LINKS = 40
"""The limit on a chain of links, as on Linux; a longer chain is a cycle."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file in an uncompressed archive: its name, and the place of its bytes in the archive."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BadMember:
    """A member with the name of an image that cannot be read; `reason` is one line."""

    name: str
    reason: str


def tar_images(shard: Path) -> Iterator[TarMember | BadMember]:
    """The images in the archive `shard`, in order; hidden members are left out.

    A link to another member of the same archive stands for the bytes of that member.

    Raises:
        InputError: the file is not an uncompressed tar, or is damaged; images that were yielded
            before are valid.
    """
    members: list[tarfile.TarInfo] = []
    damage: Exception | None = None
    try:
        with open_regular(shard) as file, _opened_tar(file) as archive:
            for member in archive:
                _check_member(member)
                members.append(member)
            _check_end(archive)
    except Exception as error:  # a damaged header can make the parser raise anything
        damage = error
    yield from _Links(members).images()
    if damage is not None:
        reason = getattr(damage, "strerror", None) or shown(damage)
        raise InputError(
            f"{shard} is not a whole, uncompressed tar archive ({reason}); get it again"
        ) from damage


class _HeaderReader:
    """Limits the size of headers, which is all that `tarfile` reads and small in valid archives.

    A damaged archive may declare a header of gigabytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(
                f"a header of {size} bytes; allowed are {_MOST_HEADER_BYTES}, since it is read "
                "whole"
            )
        return self._file.read(size)


def _opened_tar(file: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=_HeaderReader(file), mode="r:")  # type: ignore[call-overload, no-any-return]


def _check_member(member: tarfile.TarInfo) -> None:
    if not 0 <= member.size <= _MOST_OFFSET:
        raise tarfile.ReadError(f"{quoted(member.name)} has a size of {member.size} bytes")


class _Links:
    """The members of an archive, by name, so that links among them can be followed."""

    def __init__(self, members: Sequence[tarfile.TarInfo]) -> None:
        self._members = members
        # If names are equal, the last member counts, as when the archive is unpacked.
        self._by_name = {posixpath.normpath(member.name): member for member in members}

    def images(self) -> Iterator[TarMember | BadMember]:
        for member in self._members:
            if _is_image(PurePosixPath(member.name)) and not member.isdir():
                yield self._image(member)

    def _image(self, member: tarfile.TarInfo) -> TarMember | BadMember:
        file = self._target(member)
        if file is None:
            target = quoted(member.linkname)
            return BadMember(member.name, f"a link to {target}, which is no file in this archive")
        if file.issparse():
            return BadMember(member.name, "stored as a sparse file, which is not read")
        if not file.isreg():
            return BadMember(member.name, "no file, but a pipe, a device or of an unknown type")
        return TarMember(member.name, file.offset_data, file.size)

    def _target(self, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """The end of a chain of links; None if it leads out of the archive."""
        for _ in range(_MOST_LINKS):
            if not (member.issym() or member.islnk()):
                return member
            # A symbolic link is relative to its folder, a hard link to the archive.
            start = posixpath.dirname(member.name) if member.issym() else ""
            place = posixpath.normpath(posixpath.join(start, member.linkname))
            following = self._by_name.get(place)
            if following is None:
                return None
            member = following
        return None


def parquet_images(shard: Path, column: str) -> int:
    """The number of rows of `shard`, after a check that `column` can hold images.

    Raises:
        InputError: the file is not Parquet, or has no such column.
        MissingDependencyError: pyarrow is not installed.
    """
    with _opened(shard) as file, _reading(shard):
        _leaf(shard, file.schema_arrow, column)
        return int(file.metadata.num_rows)


def read_parquet_images(shard: Path, column: str, start: int, stop: int) -> Iterator[bytes | None]:
    """The encoded images in the rows from `start` up to `stop`, exclusive; None for an empty row.

    Raises:
        InputError: a row cannot be read; rows that were yielded before are valid.
    """
    with _opened(shard) as file:
        with _reading(shard):
            leaf = _leaf(shard, file.schema_arrow, column)
        for group, first in _row_groups(file.metadata, start, stop):
            row = first
            # One by one, so that a damaged group does not affect others.
            rows = _rows_at_a_time(file.metadata.row_group(group))
            batches = file.iter_batches(rows, row_groups=[group], columns=[leaf])
            for batch in _readable(shard, batches):
                with _reading(shard):
                    # By name: another column, which is also read, may have the leaf's path.
                    wanted = batch.column(column)[max(0, start - row) : max(0, stop - row)]
                    images = wanted.field("bytes") if leaf != column else wanted
                row += len(batch)
                yield from images.to_pylist()


def _rows_at_a_time(group: Any) -> int:
    """Rows per batch: few if rows are large, so that the images of a batch fit into memory."""
    size_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
    return int(min(_ROWS_AT_A_TIME, max(1, _BYTES_AT_A_TIME // size_bytes)))


def _is_image(name: PurePosixPath) -> bool:
    return name.suffix.lower() in IMAGE_SUFFIXES and not name.name.startswith(".")


def _check_end(archive: tarfile.TarFile) -> None:
    """Check that the archive ends in zero blocks or at end of file, not in a damaged header."""
    assert archive.fileobj is not None  # noqa: S101  # never None for an open archive
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"damaged header at byte {archive.offset}")


def _opened(shard: Path) -> Any:
    parquet = require("pyarrow.parquet", extra="parquet", purpose="reading Parquet shards")
    with _reading(shard):
        require_utf8(shard)
        require_regular(shard)
        return parquet.ParquetFile(shard)


def _readable(shard: Path, batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with _reading(shard):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextlib.contextmanager
def _reading(shard: Path) -> Iterator[None]:
    try:
        yield
    except Dinov2rtError:
        raise
    except Exception as error:  # a damaged file can make pyarrow raise anything
        raise _unreadable(shard, error) from error


def _unreadable(shard: Path, error: Exception) -> InputError:
    return InputError(
        f"{shard} cannot be read as Parquet ({shown(why_unreadable(error))}); get it again"
    )


def _leaf(shard: Path, schema: Any, column: str) -> str:
    """The leaf of `column` with the images: the column if it is binary, its "bytes" if a struct."""
    pa = require("pyarrow", extra="parquet", purpose="reading Parquet shards")
    if column not in schema.names:
        raise InputError(
            f"{shard} has no column {quoted(column)}, only {shown(', '.join(schema.names))}; "
            "name the one with the images (--image-column)"
        )
    if schema.names.count(column) > 1:
        raise InputError(f"{shard} has several columns {quoted(column)}; rename all but one")
    kind = schema.field(column).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and _has_bytes(kind) else None
    if inner is not None and (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        return f"{column}.bytes"
    raise InputError(
        f"{shard} has {shown(kind)} in the column {quoted(column)}; allowed are encoded images as "
        "binary or as struct<bytes, path>"
    )


def _has_bytes(struct: Any) -> bool:
    return bool(struct.get_field_index("bytes") >= 0)


def _row_groups(metadata: Any, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Each row group with rows from `start` up to `stop`, exclusive, and its own first row."""
    row = 0
    for index in range(metadata.num_row_groups):
        end = row + metadata.row_group(index).num_rows
        if row < stop and start < end:
            yield index, row
        row = end
