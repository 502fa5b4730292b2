"""A bundle that is replaced while it is loaded: noticed, so that no two of them are mixed.

`export --force` renames a new bundle into place. A loader opens a file by its name more than once:
to hash it, and again in a library that maps it. So the identity of every file is taken before the
first opening and compared after the last. Names that lead to the same files at both times led to
them in between: a rename puts other files there, and what stood there before never comes back.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dinov2rt.bundle.manifest import MANIFEST_NAME, FileEntry
from dinov2rt.errors import BundleReplacedError, Dinov2rtError

_Identity = tuple[int, ...] | None


class Watch:
    """The files of a bundle, as they were when each was added."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._seen = {MANIFEST_NAME: _identity(bundle / MANIFEST_NAME)}

    def add(self, files: Iterable[FileEntry]) -> None:
        """Watch `files` as well, from now on."""
        for file in files:
            self._seen.setdefault(file.path, _identity(self._bundle / file.path))

    def first_replaced(self) -> str | None:
        """A file that is another one by now, or None."""
        changed = (
            path for path, seen in self._seen.items() if _identity(self._bundle / path) != seen
        )
        return next(changed, None)


@contextmanager
def not_replaced(bundle: Path) -> Iterator[Watch]:
    """Refuse what was read in the block if the bundle was replaced meanwhile.

    Raises:
        BundleReplacedError: a watched file is another one than at the start. It takes the place of
            an error in the block, which then only shows that two bundles were mixed.
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
    # The time of the last change of status tells a new file from an old one whose number it got and
    # whose times were copied; no program can set it.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
