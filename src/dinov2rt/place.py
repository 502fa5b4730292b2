"""Puts a bundle in its place in one step, or not at all."""

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinov2rt.errors import InputError
from dinov2rt.files import abandoned, held

_HERE = -100
_EXCHANGE = 2


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, removed at the end; `out`'s folder is made if need be.

    Scratch folders that killed processes have left are removed first.

    Raises:
        OSError: the system refuses it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(out)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with held(scratch):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def built_beside(out: Path, *, replace: bool = True) -> Iterator[Path]:
    """A folder beside `out` to fill, which takes its place once the block has ended well.

    Raises:
        InputError: without `replace`, `out` exists by then.
        OSError: the system refuses it.
    """
    with scratch_beside(out) as partial:
        yield partial
        partial.chmod(0o777 & ~_umask())
        if replace:
            swap(partial, out)
        else:
            _put(partial, out)


def swap(partial: Path, out: Path) -> None:
    """Give the folder `partial` the name `out`, in one step where the system can.

    The old folder at `out` is removed afterwards; after an error it is still in place.
    """
    if not out.exists():
        partial.rename(out)
        return
    if _exchanged(partial, out):
        shutil.rmtree(partial)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    old = aside / out.name
    with held(aside):
        try:
            out.rename(old)
            partial.rename(out)
        finally:
            if not out.exists():
                old.rename(out)
            shutil.rmtree(aside)


def _put(partial: Path, out: Path) -> None:
    try:
        partial.rename(out)  # takes the place of an empty folder alone
    except OSError as error:
        if not out.exists():
            raise
        raise InputError(f"{out} was created meanwhile; remove it, or give another name") from error


def _exchanged(first: Path, second: Path) -> bool:
    """Whether the two names changed places, which Linux does in one step on most file systems."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    return rename is not None and not rename(_HERE, names[0], _HERE, names[1], _EXCHANGE)


def _clean_up(out: Path) -> None:
    """Remove the folders that killed exports left; put back a bundle that was moved aside."""
    for left in abandoned(out.parent, f".{out.name}."):
        aside = left / out.name
        if aside.is_dir() and not out.exists():
            with contextlib.suppress(OSError):
                aside.rename(out)
        shutil.rmtree(left, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
