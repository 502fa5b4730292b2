"""Labels of images, by the keys of their features."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from dinov2rt.analysis.keyed_images import split_key
from dinov2rt.errors import InputError
from dinov2rt.files import read_regular, require_regular, require_utf8
from dinov2rt.foreign import quoted, shown
from dinov2rt.optional import require

FOLDER = "folder"
"""Instead of a file: an image's label is the name of its folder."""

_COLUMNS = ("key", "label")
_EXAMPLES = 3
_MOST_BYTES = 2**30


def find_labels(keys: Sequence[str], source: str, root: Path = Path()) -> list[str]:
    """The label of each of `keys`, as text.

    Args:
        keys: as in the features.
        source: "folder", or a CSV or Parquet file with the columns `key` and `label`. It may hold
            other keys as well, and paths that start with the root in place of keys.
        root: the folder that keys are relative to.

    Raises:
        InputError: a key has no label or two labels, or the file cannot be read.
        MissingDependencyError: the file is Parquet and pyarrow is not installed.
    """
    table = _by_folder(keys, root) if source == FOLDER else _by_key(_read(Path(source)), root)
    if missing := [key for key in keys if not table.get(key)]:
        known = (
            "" if source == FOLDER or not table else f"; a key there is {shown(next(iter(table)))}"
        )
        raise InputError(
            f"{source} has no label for {len(missing)} of {len(keys)} images, such as "
            f"{examples(missing)}{known}; give every image a label, or leave it out of the features"
        )
    return [table[key] for key in keys]


def check_known(labels: Iterable[str], known: Iterable[str]) -> None:
    """Check that every label of a test image is also the label of a training image.

    Raises:
        InputError: a label is unknown.
    """
    classes = set(known)
    unknown = [label for label in labels if label not in classes]
    if unknown:
        raise InputError(
            f"{len(unknown)} test images have labels that no training image has, such as "
            f"{examples(dict.fromkeys(unknown))}; no classifier can get them right, leave them out "
            "or check the labels"
        )


def examples(names: Iterable[str]) -> str:
    """The first few of `names`, for a message."""
    return ", ".join(shown(name) for name in list(names)[:_EXAMPLES])


def _by_folder(keys: Sequence[str], root: Path) -> dict[str, str]:
    """The folder of each image; for a member of a shard, the folder inside the shard."""
    return {key: PurePath(split_key(str(root / key))[1]).parent.name for key in keys}


def _by_key(labels: Mapping[str, str], root: Path) -> dict[str, str]:
    """Paths that start with `root` as keys."""
    prefix = f"{root.as_posix()}/"
    return {key.removeprefix(prefix): label for key, label in labels.items()}


def _read(file: Path) -> Mapping[str, str]:
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix not in readers:
        raise InputError(
            f"labels {quoted(str(file))} are neither {quoted(FOLDER)} nor a file with one of the "
            "suffixes "
            f"{', '.join(readers)}"
        )
    labels: dict[str, str] = {}
    for key, label in readers[file.suffix](file):
        if labels.setdefault(key, label) != label:
            raise InputError(
                f"{file} gives {shown(key)} two labels, {shown(labels[key])} and {shown(label)}; "
                "leave one of them out"
            )
    return labels


def _read_csv(file: Path) -> list[tuple[str, str]]:
    try:
        text = io.StringIO(read_regular(file, _MOST_BYTES).decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text)
        _check_columns(file, reader.fieldnames or ())
        return [(row["key"] or "", row["label"] or "") for row in reader]
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); give a file") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not CSV in UTF-8 ({error}); write it again") from error


def _read_parquet(file: Path) -> list[tuple[str, str]]:
    pa = require("pyarrow", extra="parquet", purpose="reading labels from Parquet")
    parquet = require("pyarrow.parquet", extra="parquet", purpose="reading labels from Parquet")
    try:
        require_utf8(file)
        require_regular(file)
        with parquet.ParquetFile(file) as opened:
            _check_columns(file, opened.schema_arrow.names)
            table = opened.read(columns=list(_COLUMNS))
            keys, labels = (table.column(name).to_pylist() for name in _COLUMNS)
    except (pa.lib.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read as Parquet ({reason}); write it again") from error
    return [(_text(key), _text(label)) for key, label in zip(keys, labels, strict=True)]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _check_columns(file: Path, names: Sequence[str]) -> None:
    if twice := [column for column in _COLUMNS if names.count(column) > 1]:
        raise InputError(f"{file} has several columns {quoted(twice[0])}; leave one")
    if missing := [column for column in _COLUMNS if column not in names]:
        raise InputError(
            f"{file} has no column {quoted(missing[0])}, only {shown(', '.join(names)) or 'none'}; "
            f"it must have {' and '.join(_COLUMNS)}"
        )
