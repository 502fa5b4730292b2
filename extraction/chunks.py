"""Chunks, the units of work: consecutive images of a collection, and their locations."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dinov2rt.errors import InputError
from dinov2rt.extraction.shards import BadMember, TarMember, read_parquet_images
from dinov2rt.foreign import shown

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FileSlice:
    """`size_bytes` bytes of `file`, from `offset` on."""

    file: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Item:
    """One encoded image: its key, and the location of its bytes.

    `key` is the path of an image file, `SHARD.tar#MEMBER` or `SHARD.parquet#ROW`, relative to the
    collection's root.
    """

    key: str
    source: Path | FileSlice | bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """An image or a whole shard that cannot be used. `reason` is one line that names it.

    `file_state` is the result of `file_state` when the file was read; empty if it was not recorded.
    """

    key: str
    reason: str
    file_state: str = ""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Image files, by their paths below the root."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shard(self) -> None:
        """None: each image is a file of its own."""
        return

    @property
    def keys(self) -> Sequence[str]:
        """The keys of the images."""
        return self.names

    def items(self, root: Path) -> Iterator[Item | Failure]:
        """The images."""
        return (Item(name, root / name) for name in self.names)


@dataclass(frozen=True, slots=True)
class TarRange:
    """Consecutive images of a tar archive, which may be read in any order."""

    shard: str
    members: tuple[TarMember | BadMember, ...]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def keys(self) -> Sequence[str]:
        """The keys of the images."""
        return [f"{self.shard}#{member.name}" for member in self.members]

    def items(self, root: Path) -> Iterator[Item | Failure]:
        """The images."""
        file = str(root / self.shard)
        for key, member in zip(self.keys, self.members, strict=True):
            if isinstance(member, BadMember):
                yield Failure(key, f"{shown(key)}: {member.reason}")
            else:
                yield Item(key, FileSlice(file, member.offset, member.size_bytes))


@dataclass(frozen=True, slots=True)
class ParquetRange:
    """The rows of a Parquet file from `start` up to, but not including, `stop`."""

    shard: str
    column: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> Sequence[str]:
        """The keys of the images."""
        return [f"{self.shard}#{row}" for row in range(self.start, self.stop)]

    def items(self, root: Path) -> Iterator[Item | Failure]:
        """The images, read lazily; one failure stands for all rows that cannot be read."""
        file, row = root / self.shard, self.start
        try:
            for content in read_parquet_images(file, self.column, row, self.stop):
                key = f"{self.shard}#{row}"
                yield (
                    Failure(key, f"{shown(key)} is empty")
                    if content is None
                    else Item(key, content)
                )
                row += 1
            if row < self.stop:
                raise InputError(f"{file} has only {row} rows now, fewer than when listed")
        except InputError as error:
            yield Failure(f"{self.shard}#{row}-{self.stop - 1}", str(error))


@dataclass(frozen=True, slots=True)
class BadShard:
    """A shard that cannot be read, or the rest of a damaged shard."""

    shard: str
    reason: str

    def __len__(self) -> int:
        return 1

    @property
    def keys(self) -> Sequence[str]:
        """The name of the shard, instead of its images."""
        return [self.shard]

    def items(self, root: Path) -> Iterator[Item | Failure]:  # noqa: ARG002  # as its siblings
        """The shard's failure."""
        yield Failure(self.shard, self.reason)


Source = ImageFiles | TarRange | ParquetRange | BadShard


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of work: consecutive images. Picklable; a process that gets it reads the images.

    `index` counts the chunks of a collection from 0. `root` is the folder that keys are relative
    to. `only` limits the work to the images at these positions; None means all.
    """

    index: int
    source: Source
    root: Path = Path()
    only: frozenset[int] | None = None

    def __len__(self) -> int:
        return len(self.source) if self.only is None else len(self.only)

    @property
    def keys(self) -> Sequence[str]:
        """The keys of all its images, in order, regardless of `only`."""
        return self.source.keys

    def items(self) -> Iterator[Item | Failure]:
        """Its encoded images, in order; at least one item."""
        items = self.source.items(self.root)
        if self.only is None:
            return items
        return (
            item
            for position, item in enumerate(items)
            if position in self.only or isinstance(item, Failure)
        )

    @property
    def is_shard(self) -> bool:
        """Whether all its images are in one file."""
        return self.source.shard is not None

    def file_of(self, key: str) -> Path:
        """The file that contains the image `key`."""
        return self.root / (self.source.shard or key)

    @property
    def identity(self) -> str:
        """A text that is equal for chunks of the same images in the same order."""
        source = self.source
        facts = [source.shard] if isinstance(source, BadShard) else dataclasses.astuple(source)
        return json.dumps([type(source).__name__, *facts])


def file_state(file: Path) -> str:
    """Size and times of `file` as text, which stays equal until the file changes."""
    try:
        found = file.stat()
    except OSError as error:
        return str(error.strerror)
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """`items` in lists of `size`; the last list may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
