"""Units of work: images that are neighbours in a collection, and where they are."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dinov2rt.errors import InputError
from dinov2rt.extraction.shards import TarMember, read_parquet_images
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

    `key` is the path of an image file, `SHARD.tar#MEMBER` or `SHARD.parquet#ROW`.
    """

    key: str
    source: Path | FileSlice | bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """What cannot be used, an image or a whole shard. `reason` is one line that names it."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Image files, by their paths."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def items(self) -> Iterator[Item | Failure]:
        """Each of them."""
        return (Item(path, Path(path)) for path in self.paths)


@dataclass(frozen=True, slots=True)
class TarRange:
    """Neighbouring images of a tar archive, which may be read in any order."""

    shard: str
    members: tuple[TarMember, ...]

    def __len__(self) -> int:
        return len(self.members)

    def items(self) -> Iterator[Item | Failure]:
        """Each of them."""
        for member in self.members:
            source = FileSlice(self.shard, member.offset, member.size_bytes)
            yield Item(f"{self.shard}#{member.name}", source)


@dataclass(frozen=True, slots=True)
class ParquetRange:
    """The rows of a Parquet file from `start` to before `stop`."""

    shard: str
    column: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def items(self) -> Iterator[Item | Failure]:
        """Each of them, read as they are asked for; one failure for all that cannot be read."""
        row = self.start
        try:
            for content in read_parquet_images(Path(self.shard), self.column, row, self.stop):
                key = f"{self.shard}#{row}"
                yield (
                    Failure(key, f"{shown(key)} is empty")
                    if content is None
                    else Item(key, content)
                )
                row += 1
            if row < self.stop:
                raise InputError(f"{self.shard} has only {row} rows now, fewer than when listed")
        except InputError as error:
            yield Failure(f"{self.shard}#{row}-{self.stop - 1}", str(error))


@dataclass(frozen=True, slots=True)
class BadShard:
    """A shard that cannot be read, or the rest of it from where it is damaged."""

    shard: str
    reason: str

    def __len__(self) -> int:
        return 1

    def items(self) -> Iterator[Item | Failure]:
        """The failure that it is."""
        yield Failure(self.shard, self.reason)


Source = ImageFiles | TarRange | ParquetRange | BadShard


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of work: neighbours in the collection. Picklable; reads its images where it is.

    `index` counts the chunks of a collection from 0.
    """

    index: int
    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def items(self) -> Iterator[Item | Failure]:
        """Its images, still encoded, in their order; at least one item."""
        return self.source.items()

    @property
    def identity(self) -> str:
        """What it is made of, as text: equal for equal images in equal order."""
        return json.dumps([type(self.source).__name__, *dataclasses.astuple(self.source)])


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """`items` in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
