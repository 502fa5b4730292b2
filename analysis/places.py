"""Finds the files of a feature dataset's images, and the image that a query names."""

import bisect
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov2rt.errors import InputError
from dinov2rt.extraction.image_features import as_unicode, existing
from dinov2rt.extraction.reader import num_rows, read_metadata
from dinov2rt.foreign import shown
from dinov2rt.optional import require

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Places:
    """The folders that keys are relative to.

    Images at the positions from `ends[i - 1]` up to, but not including, `ends[i]` are below
    `roots[i]`.
    """

    roots: tuple[Path, ...]
    ends: tuple[int, ...]

    def file(self, position: int, key: str) -> Path:
        """The file of the image at `position` with the given `key`; `SHARD#NAME` for a shard."""
        return existing(str(self.roots[bisect.bisect_right(self.ends, position)] / key))

    def find(self, query: str, keys: Any) -> int | None:
        """The position of the image that `query` names, among `keys` (an Arrow array), or None.

        `query` is tried, in this order, as a key; as a path (relative to the current directory or
        absolute) to an image below a root; as a path to an image whose folder was moved away from
        its root; and, if there is no such file, as the end of a key.

        Raises:
            InputError: `query` is the end of several keys.
        """
        position = _position(keys, query)
        if position is not None:
            return position
        path = Path(os.path.abspath(query))  # noqa: PTH100  # resolve() would follow links
        for name in self._names(path):
            position = _position(keys, name)
            if position is not None and self._may_be(path, self.file(position, name)):
                return position
        return None if path.exists() else _by_end(query, keys)

    def _names(self, path: Path) -> Iterator[str]:
        """Possible keys of `path`: relative to each root, then its ends, the longest first."""
        for root in dict.fromkeys(self.roots):
            if path.is_relative_to(root):
                yield path.relative_to(root).as_posix()
        parts = path.parts[1:]
        yield from ("/".join(parts[start:]) for start in range(len(parts)))

    def _may_be(self, path: Path, file: Path) -> bool:
        """Whether `path` can be the image `file`: it is the same file, or one of them is gone."""
        if path == file or not (path.exists() and file.exists()):
            return True
        return path.samefile(file)


def places_of(parts: Sequence[str], root: Path | None = None) -> Places:
    """The places of the images of the files `parts`; if `root` is given, all are below it.

    Raises:
        InputError: a part cannot be read.
    """
    files = [Path(part) for part in parts]
    roots = [root or existing(read_metadata(file).get("root", "")) for file in files]
    return Places(tuple(roots), tuple(itertools.accumulate(map(num_rows, files))))


def _position(keys: Any, key: str) -> int | None:
    position = int(keys.index(as_unicode(key)).as_py())
    return None if position < 0 else position


def _by_end(query: str, keys: Any) -> int | None:
    compute = require("pyarrow.compute", extra="parquet", purpose="searching features")
    found = keys.filter(compute.ends_with(keys, f"/{as_unicode(query)}")).unique().to_pylist()
    if len(found) > 1:
        raise InputError(
            f"{shown(query)} is the end of {len(found)} keys, such as "
            f"{shown(', '.join(found[:_EXAMPLES]))}; give the whole key"
        )
    return _position(keys, found[0]) if found else None
