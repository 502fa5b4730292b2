"""Detects that a bundle is replaced while it is loaded, so that two bundles are never mixed.

`export --force` renames a new bundle into place. A loader opens each file by name more than once:
to hash it, and again in a library that memory-maps it. Therefore the identity of every file is
recorded before it is first opened, and compared after it was last opened. If it is the same, it was
the same in between, because a rename puts other files there and the old files never come back.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.manifest import MANIFEST_NAME
from dinov2rt.errors import BundleReplacedError, Dinov2rtError

_Identity = tuple[int, ...] | None


class Watch:
    """The identities of a bundle's files, each recorded when the file was added."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._seen = {MANIFEST_NAME: _identity(bundle / MANIFEST_NAME)}

    def add(self, files: Iterable[FileEntry]) -> None:
        """Also watch `files`, from now on."""
        for file in files:
            self._seen.setdefault(file.path, _identity(self._bundle / file.path))

    def first_replaced(self) -> str | None:
        """A file that was replaced, or None."""
        changed = (
            path for path, seen in self._seen.items() if _identity(self._bundle / path) != seen
        )
        return next(changed, None)


@contextmanager
def not_replaced(bundle: Path) -> Iterator[Watch]:
    """Fail if the bundle is replaced while the block runs.

    Raises:
        BundleReplacedError: a watched file was replaced. It replaces an error of the block, which
            then only shows that two bundles were mixed.
    """
    watch = Watch(bundle)
    try:
        yield watch
    except Dinov2rtError as error:
        _check(bundle, watch, error)
        raise
    _check(bundle, watch, None)


def _check(bundle: Path, watch: Watch, cause: Exception | None) -> None:
    replaced = watch.first_replaced()
    if replaced is not None:
        raise BundleReplacedError(
            f"{bundle} was replaced while it was read ({replaced} is another file now); "
            "load it again"
        ) from cause


def _identity(file: Path) -> _Identity:
    try:
        found = file.stat()
    except OSError:
        return None
    # A new file may reuse an old inode and copy its mtime, but programs cannot set ctime.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
