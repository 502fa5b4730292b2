"""Resumes a dataset: checks that the settings are the same, and retries failures."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dinov2rt.extraction.chunks import Chunk, Failure, file_state
from dinov2rt.extraction.image_features import ImageFeatures, as_unicode
from dinov2rt.extraction.parquet import LAYERS, read_failures
from dinov2rt.extraction.reader import read_keys
from dinov2rt.foreign import shown

_ASKED_FOR_BY: Mapping[str, Callable[[str], str]] = {
    "variant": "the bundle of {}".format,
    "weights_sha256": "the bundle that was exported from the weights {}".format,
    "architecture": "the bundle whose architecture has the fingerprint {}".format,
    "precision": "--precision {}".format,
    "preprocess": "--preprocess {}".format,
    "snap": "--snap {}".format,
    "dtype": "--dtype {}".format,
    "patch_tokens": lambda value: f"{'with' if value == 'yes' else 'without'} --patch-tokens",
    "max_pixels": "--max-pixels {}".format,
    "over_max_pixels": lambda value: f"{'with' if value == 'refuse' else 'without'} --no-scale",
    "root": "the images in {}".format,
    LAYERS: lambda value: (
        "no --layer-tokens" if value == _NONE else f"--layer-tokens of the blocks {value}"
    ),
}

_NONE = "none"
_UNSAID = {LAYERS: _NONE}
"""Settings that are only named where they are used, and their value elsewhere."""

OPTION_KEYS = tuple(_ASKED_FOR_BY)
"""Settings that all parts of one dataset have in common."""


def settings_differ(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The differences of settings `before` and `now`, with the options for `before`, or None."""
    before, now = _UNSAID | dict(before), _UNSAID | dict(now)
    different = [key for key in OPTION_KEYS if before.get(key) != now[key]]
    if not different:
        return None
    if any(key not in before for key in different):
        return "an older version of dinov2rt; write to another folder"
    facts = "; ".join(f"{key} {shown(before[key])}, and this is {now[key]}" for key in different)
    asked = ", ".join(_ASKED_FOR_BY[key](shown(before[key])) for key in different)
    return f"{facts}. To go on with it: {asked}. To begin anew, write to another folder"


def to_retry(chunk: Chunk, part: Path, errors: Path, *, also_unchanged: bool) -> Chunk | None:
    """`chunk` limited to the images that are missing in its `part` and shall be retried, or None.

    A failed image is retried if its file has changed since, or always with `also_unchanged`.

    Raises:
        InputError: the part or its errors cannot be read.
    """
    if not errors.exists():
        return None
    failures = [
        each for each in read_failures(errors) if also_unchanged or _has_changed(chunk, each)
    ]
    failed = {failure.key for failure in failures}
    if not failed:
        return None
    keys = [as_unicode(key) for key in chunk.keys]
    # In a shard, a failure may stand for many images, and a changed file affects all of them.
    missing = {key for key in _missing(keys, read_keys(part)) if chunk.is_shard or key in failed}
    only = frozenset(position for position, key in enumerate(keys) if key in missing)
    return replace(chunk, only=only) if only else None


def kept_failures(chunk: Chunk, errors: Path) -> list[Failure]:
    """The earlier failures of `chunk` that are not retried.

    Raises:
        InputError: the errors cannot be read.
    """
    if chunk.only is None or chunk.is_shard or not errors.exists():
        return []
    retried = _retried(chunk)
    return [failure for failure in read_failures(errors) if failure.key not in retried]


def merged(
    chunk: Chunk, earlier: Iterable[ImageFeatures], rows: Iterable[ImageFeatures]
) -> Iterator[ImageFeatures]:
    """The `rows` of retried images merged with the `earlier` rows, in the chunk's order."""
    retried = _retried(chunk)
    places = {as_unicode(key): place for place, key in enumerate(chunk.keys)}
    kept = (row for row in earlier if row.key in places and row.key not in retried)
    return heapq.merge(kept, rows, key=lambda row: places[as_unicode(row.key)])


def _retried(chunk: Chunk) -> set[str]:
    keys = chunk.keys
    return {as_unicode(keys[position]) for position in chunk.only or ()}


def _has_changed(chunk: Chunk, failure: Failure) -> bool:
    return failure.file_state != file_state(chunk.file_of(failure.key))


def _missing(keys: Sequence[str], there: Iterable[str]) -> Iterator[str]:
    """The `keys` that are not in `there`; both have the same order."""
    rest = iter(there)
    following = next(rest, None)
    for key in keys:
        if key == following:
            following = next(rest, None)
        else:
            yield key
