"""The output formats of features, and a check that they can be written."""

from enum import StrEnum
from pathlib import Path

from dinov2rt.errors import InputError
from dinov2rt.files import require_utf8
from dinov2rt.optional import require


class FeatureFormat(StrEnum):
    """An output format, with its suffix as the value."""

    NPZ = ".npz"
    """One file, for features that fit into memory; see `write_npz`."""
    CSV = ".csv"
    """One file of text, for a small job; see `write_csv`."""
    PARQUET = ".parquet"
    """A folder of Parquet files, for any number of images; see `FeatureDataset`."""


def feature_format(path: Path) -> FeatureFormat:
    """The format for `path`; checks that it can be written, before a long computation.

    Raises:
        InputError: the suffix is unknown, the parent folder does not exist, or `path` is a folder
            (.npz, .csv), or a file or not UTF-8 (.parquet).
        MissingDependencyError: the format is Parquet and pyarrow is not installed.
    """
    suffixes = [str(member) for member in FeatureFormat]
    if path.suffix not in suffixes:
        raise InputError(f"{path} has the suffix {path.suffix!r}; allowed: {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder to write {path.name} in; create it first")
    chosen = FeatureFormat(path.suffix)
    if chosen is not FeatureFormat.PARQUET and path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if chosen is FeatureFormat.PARQUET:
        require("pyarrow", extra="parquet", purpose="writing Parquet")
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, not a folder of parts; give another name")
        _check_utf8(path)
    return chosen


def _check_utf8(path: Path) -> None:
    try:
        require_utf8(path)
    except OSError as error:
        raise InputError(f"{path} cannot be Parquet ({error.strerror})") from error
