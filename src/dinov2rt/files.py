"""Files that are written whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dinov2rt.errors import Dinov2rtError


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A sibling to write to, which becomes `file` in the end and is removed after an error.

    Raises:
        Dinov2rtError: the system refuses to write it.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        yield partial
        partial.replace(file)
    except OSError as error:
        raise refused(file, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def refused(path: Path, error: OSError) -> Dinov2rtError:
    """What to raise when the system does not let `path` be written."""
    return Dinov2rtError(
        f"{path} cannot be written ({error.strerror or error}); free the disk or choose "
        "another place"
    )
