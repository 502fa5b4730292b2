"""Units of work: images that are neighbours in a collection, and where they are."""

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
    """Bytes of `file` from `offset` on."""

    file: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Item:
    """One image that is still encoded: what it is called, and where its bytes are.

    `key` is the path of an image file, `SHARD.tar#MEMBER` or `SHARD.parquet#ROW`, relative to the
    collection's root.
    """

    key: str
    source: Path | FileSlice | bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """What cannot be used, an image or a whole shard. `reason` is one line that names it.

    `file_state` is that of the file when it was read, as from `file_state`; empty where nobody
    looked.
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
        """Each image is a file of its own."""
        return

    @property
    def keys(self) -> Sequence[str]:
        """What the images are called."""
        return self.names

    def items(self, root: Path) -> Iterator[Item | Failure]:
        """Each of them."""
        return (Item(name, root / name) for name in self.names)


@dataclass(frozen=True, slots=True)
class TarRange:
    """Neighbouring images of a tar archive, which may be read in any order."""

    shard: str
    members: tuple[TarMember | BadMember, ...]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def keys(self) -> Sequence[str]:
        """What the images are called."""
        return [f"{self.shard}#{member.name}" for member in self.members]

    def items(self, root: Path) -> Iterator[Item | Failure]:
        """Each of them."""
        file = str(root / self.shard)
        for key, member in zip(self.keys, self.members, strict=True):
            if isinstance(member, BadMember):
                yield Failure(key, f"{shown(key)}: {member.reason}")
            else:
                yield Item(key, FileSlice(file, member.offset, member.size_bytes))


@dataclass(frozen=True, slots=True)
class ParquetRange:
    """The rows of a Parquet file from `start` to before `stop`."""

    shard: str
    column: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> Sequence[str]:
        """What the images are called."""
        return [f"{self.shard}#{row}" for row in range(self.start, self.stop)]

    def items(self, root: Path) -> Iterator[Item | Failure]:
        """Each of them, read as they are asked for; one failure for all that cannot be read."""
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
    """A shard that cannot be read, or the rest of it from where it is damaged."""

    shard: str
    reason: str

    def __len__(self) -> int:
        return 1

    @property
    def keys(self) -> Sequence[str]:
        """The shard in place of its images."""
        return [self.shard]

    def items(self, root: Path) -> Iterator[Item | Failure]:  # noqa: ARG002  # as its siblings
        """The failure that it is."""
        yield Failure(self.shard, self.reason)


Source = ImageFiles | TarRange | ParquetRange | BadShard


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of work: neighbours in the collection. Picklable; reads its images where it is.

    `index` counts the chunks of a collection from 0, `root` is the folder that keys are relative
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
        """What all images of it are called, in their order, whatever `only` says."""
        return self.source.keys

    def items(self) -> Iterator[Item | Failure]:
        """Its images, still encoded, in their order; at least one item."""
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
        """Whether all of its images are in one file."""
        return self.source.shard is not None

    def file_of(self, key: str) -> Path:
        """The file that the image called `key` is in."""
        return self.root / (self.source.shard or key)

    @property
    def identity(self) -> str:
        """What it is made of, as text: equal for equal images in equal order."""
        source = self.source
        facts = [source.shard] if isinstance(source, BadShard) else dataclasses.astuple(source)
        return json.dumps([type(source).__name__, *facts])


def file_state(file: Path) -> str:
    """Size and times of `file`, as text: equal as long as nothing has changed it."""
    try:
        found = file.stat()
    except OSError as error:
        return str(error.strerror)
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """`items` in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
