"""Turns paths into a collection: images in a fixed order, split into chunks."""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import (
    BadShard,
    Chunk,
    ImageFiles,
    ParquetRange,
    Source,
    TarRange,
    batched,
)
from dinov2rt.extraction.shards import (
    PARQUET_SUFFIX,
    SHARD_SUFFIXES,
    TAR_SUFFIX,
    BadMember,
    TarMember,
    parquet_images,
    tar_images,
)
from dinov2rt.runtime.image_search import find_images, search_images

DEFAULT_CHUNK_IMAGES = 1024


@dataclass(frozen=True, slots=True)
class Collection:
    """The images in chunks, and the number of other files in their folders, by suffix."""

    chunks: list[Chunk]
    left_out: Counter[str]


def find_chunks(
    paths: Sequence[Path | str],
    *,
    chunk_images: int = DEFAULT_CHUNK_IMAGES,
    image_column: str = "image",
) -> list[Chunk]:
    """The chunks of `find_collection`.

    Raises:
        InputError: see `find_collection`.
        MissingDependencyError: there is a Parquet shard, and pyarrow is not installed.
    """
    return find_collection(paths, chunk_images=chunk_images, image_column=image_column).chunks


def find_collection(
    paths: Sequence[Path | str],
    *,
    chunk_images: int = DEFAULT_CHUNK_IMAGES,
    image_column: str = "image",
) -> Collection:
    """The images at `paths`, in a fixed order, in chunks of at most `chunk_images`.

    A path is an image file, a Parquet or tar shard, a folder, or a pattern as in `glob` with `**`
    for any depth. A folder stands for its images, see `search_images`; if it has none, for the
    shards in it. No chunk spans two shards; a shard that cannot be read is a chunk that fails.

    Keys are relative to the root of the collection: the given folder, the folder of a given file,
    or the fixed part of a pattern. For several paths it is their common parent folder.

    Raises:
        InputError: `chunk_images` is less than 1, a path does not exist or cannot be read, a
            pattern has no match, or a folder has neither images nor shards.
        MissingDependencyError: there is a Parquet shard, and pyarrow is not installed.
    """
    if chunk_images < 1:
        raise InputError(f"{chunk_images} images per chunk; allowed is a whole number from 1")
    found = search_images([file for path in paths for file in _expanded(str(path))])
    root = _root(paths)
    sources = _sources(found.files, root, chunk_images, image_column)
    chunks = [Chunk(index, source, root) for index, source in enumerate(sources)]
    return Collection(chunks, found.left_out)


def _root(paths: Sequence[Path | str]) -> Path:
    """The common parent folder of `paths`, absolute, without following links."""
    return Path(os.path.commonpath([_folder_of(str(path)) for path in paths]))


def _folder_of(path: str) -> Path:
    if glob.has_magic(path) and not Path(path).exists():
        parts = itertools.takewhile(lambda part: not glob.has_magic(part), Path(path).parts)
        return Path(*parts).absolute()
    place = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow links
    return place if place.is_dir() else place.parent


def _name(file: Path, root: Path) -> str:
    return Path(os.path.abspath(file)).relative_to(root).as_posix()  # noqa: PTH100


def _expanded(path: str) -> list[Path | str]:
    if "://" in path:
        return [path]  # `search_images` refuses it
    if Path(path).is_dir():
        return [*(_shards_of(Path(path)) or [Path(path)])]
    if not glob.has_magic(path) or Path(path).exists():
        return [Path(path)]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  # Path.glob has no absolute
    if not matches:
        raise InputError(f"{path} matches nothing; give files, folders or another pattern")
    return [Path(match) for match in matches]


def _shards_of(folder: Path) -> list[Path]:
    """The shards in `folder`, if there are no images in it or below."""
    try:
        shards = sorted(entry for entry in folder.iterdir() if _is_visible_shard(entry))
    except OSError:
        return []  # `find_images` reports the error
    return shards if shards and not _holds_images(folder) else []


def _is_visible_shard(path: Path) -> bool:
    return _is_shard(path) and not path.name.startswith((".", "_")) and path.is_file()


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() in SHARD_SUFFIXES


def _holds_images(folder: Path) -> bool:
    try:
        return bool(find_images([folder]))
    except InputError:
        return False


def _sources(
    files: list[Path], root: Path, chunk_images: int, image_column: str
) -> Iterator[Source]:
    for is_shard, group in itertools.groupby(files, key=_is_shard):
        if not is_shard:
            for names in batched((_name(file, root) for file in group), chunk_images):
                yield ImageFiles(tuple(names))
            continue
        for shard in group:
            yield from _shard_sources(shard, _name(shard, root), chunk_images, image_column)


def _shard_sources(
    shard: Path, name: str, chunk_images: int, image_column: str
) -> Iterator[Source]:
    ranges = {
        TAR_SUFFIX: lambda: _tar_ranges(shard, name, chunk_images),
        PARQUET_SUFFIX: lambda: _parquet_ranges(shard, name, image_column, chunk_images),
    }
    found = False
    try:
        for source in ranges[shard.suffix.lower()]():
            found = True
            yield source
        if not found:
            raise InputError(f"{shard} holds no image; leave it out")
    except InputError as error:
        yield BadShard(name, str(error))


def _tar_ranges(shard: Path, name: str, chunk_images: int) -> Iterator[Source]:
    """The images of a tar archive; if it is damaged, only the images after the damage are lost."""
    members: list[TarMember | BadMember] = []
    damage = None
    try:
        members.extend(tar_images(shard))
    except InputError as error:
        damage = BadShard(name, str(error))
    for part in batched(members, chunk_images):
        yield TarRange(name, tuple(part))
    if damage is not None:
        yield damage


def _parquet_ranges(shard: Path, name: str, column: str, chunk_images: int) -> Iterator[Source]:
    rows = parquet_images(shard, column)
    for start in range(0, rows, chunk_images):
        yield ParquetRange(name, column, start, min(start + chunk_images, rows))
