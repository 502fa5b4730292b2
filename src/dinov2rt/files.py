"""Files that are written whole or not at all, and read only where they are regular files."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from dinov2rt.errors import Dinov2rtError


@contextlib.contextmanager
def replacing(
    file: Path, raises: type[Dinov2rtError] = Dinov2rtError, *, make_folder: bool = False
) -> Iterator[Path]:
    """A sibling to write to, which becomes `file` in the end and is removed after an error.

    Several processes may do so at once: the last to end wins, and the next one removes files that a
    killed process left. `make_folder` makes the folder if it is missing.

    Raises:
        Dinov2rtError: the system refuses to write it; of the kind `raises`.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}")
    try:
        if make_folder:
            file.parent.mkdir(parents=True, exist_ok=True)
        for left in abandoned(file.parent, f".{file.name}.", _PARTIAL):
            left.unlink()
        partial.touch(exist_ok=False)
        with held(partial):
            yield partial
            partial.replace(file)
    except OSError as error:
        raise refused(file, error, raises) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[None]:
    """A lock on a file or folder; the kernel gives it back when this process ends, however it does.

    Raises:
        BlockingIOError: without `wait`, another process holds it.
        OSError: it cannot be opened.
    """
    import fcntl  # Unix alone has it

    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                raise
        yield
    finally:
        os.close(descriptor)


def abandoned(folder: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """Files in `folder` with such names that no process holds: killed processes left them."""
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if path.name.startswith(prefix) and path.name.endswith(suffix):
            with contextlib.suppress(OSError), held(path, wait=False):
                yield path


def refused(
    path: Path, error: OSError, raises: type[Dinov2rtError] = Dinov2rtError
) -> Dinov2rtError:
    """The error for a `path` that the system does not let us write."""
    return raises(
        f"{path} cannot be written ({error.strerror or error}); free the disk or choose "
        "another place"
    )


def open_regular(file: Path) -> BufferedReader:
    """Open `file` for reading, without ever waiting: a pipe, a socket or a device is refused.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | _NO_WAIT)
    try:
        require_regular(file, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(file: Path, most_bytes: int) -> bytes:
    """The whole content of a regular file of at most `most_bytes`.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
    """
    with open_regular(file) as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than the {most_bytes} bytes that are read of it")
    return content


def require_regular(file: Path, found: os.stat_result | None = None) -> None:
    """Refuse anything but a regular file, before a library opens it by its name.

    Raises:
        OSError: it is not a regular file, or does not exist.
    """
    mode = (found or file.stat()).st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")


def require_utf8(path: Path) -> None:
    """Refuse a path with bytes that are not UTF-8, before it is given to a library that takes text.

    Raises:
        OSError: it has such bytes.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise OSError(
            errno.EINVAL, "its path is not UTF-8, which is needed here; rename it"
        ) from None


def why_unreadable(error: Exception) -> str:
    """The cause of an error that the system or a library raised while reading, in one line."""
    number = getattr(error, "errno", None)
    if number and number != errno.EINVAL:  # of which only the text says what was invalid
        return os.strerror(number)
    return " ".join(str(getattr(error, "strerror", None) or error).split())


_PARTIAL = ".partial"
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
