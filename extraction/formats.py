"""Where features go, and whether they can be written there."""

from enum import StrEnum
from pathlib import Path

from dinov2rt.errors import InputError
from dinov2rt.optional import require


class FeatureFormat(StrEnum):
    """Where features go, called by its suffix."""

    NPZ = ".npz"
    """One file, for what fits into memory; see `write_npz`."""
    CSV = ".csv"
    """One file of text, for a small job; see `write_csv`."""
    PARQUET = ".parquet"
    """A folder of Parquet files, for any number of images; see `FeatureDataset`."""


def feature_format(path: Path) -> FeatureFormat:
    """The format that `path` asks for, once it can be written: ask before a long computation.

    Raises:
        InputError: an unknown suffix, no folder to write in, or a name that is taken by a folder
            (.npz, .csv) or a file (.parquet).
        MissingDependencyError: Parquet without pyarrow.
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
    return chosen
