"""Reads features; refuses to mix features of different models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.extraction.image_features import Facts, check_columns
from dinov2rt.extraction.parquet import METADATA_PREFIX, opened_parquet, reading_parquet
from dinov2rt.foreign import quoted, shown
from dinov2rt.optional import require

ERRORS_FOLDER = "_errors"
"""A folder in a feature dataset. Readers of Parquet ignore names that begin with an underscore."""

MODEL_KEYS = (
    "variant",
    "weights_sha256",
    "architecture",
    "precision",
    "preprocess",
    "snap",
    "dtype",
)
"""Metadata that features must have in common to be comparable."""

Paths = Path | str | Sequence[Path | str]


def read_features(paths: Paths, columns: Sequence[str] | None = None) -> Any:
    """The features at `paths` as one `pyarrow.Table`, in the order of the collection.

    Args:
        paths: feature datasets, or single parts of them, of one model.
        columns: the columns to read; None means all.

    Raises:
        InputError: the features are of different models, a path has no features, or a column is
            unknown.
        MissingDependencyError: pyarrow is not installed.

    Example:
        >>> report = dinov2rt.extract_features(model, "photos", "features.parquet")
        >>> table = dinov2rt.read_features("features.parquet", columns=["key", "cls_token"])
        >>> table["key"].to_pylist()
        ['a.jpg', 'b.jpg', 'c.jpg']
        >>> np.stack(table["cls_token"].to_numpy()).shape
        (3, 384)
    """
    features = open_features(paths)
    wanted = _checked(features, columns)
    with reading_parquet(", ".join(features.files)):
        table = features.to_table(columns=wanted)
        table.validate(full=True)  # text that is no UTF-8
    return table


def open_features(paths: Paths) -> Any:
    """The features at `paths` as one `pyarrow.dataset.Dataset`; no features are read yet.

    Its `to_batches(columns=...)` iterates over more features than fit into memory.

    Raises:
        InputError: the features are of different models, or a path has no features.
        MissingDependencyError: pyarrow is not installed.
    """
    dataset = require("pyarrow.dataset", extra="parquet", purpose="reading features")
    several = [paths] if isinstance(paths, Path | str) else paths
    parts = [part for path in several for part in _parts(Path(path))]
    if not parts:
        raise InputError("no path to read features from; give at least one")
    _check_model(parts)
    return dataset.dataset([str(part) for part in parts], format="parquet")


def read_metadata(part: Path) -> Facts:
    """The model and settings of the features in the file `part`; empty if it has no features.

    Raises:
        InputError: it cannot be read.
    """
    with opened_parquet(part) as file:
        return _metadata(file.schema_arrow)


def _metadata(schema: Any) -> Facts:
    texts = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    return Facts(
        (key.removeprefix(METADATA_PREFIX), value)
        for key, value in texts.items()
        if key.startswith(METADATA_PREFIX)
    )


def num_rows(part: Path) -> int:
    """The number of rows of the Parquet file `part`.

    Raises:
        InputError: it cannot be read.
    """
    with opened_parquet(part) as file:
        return int(file.metadata.num_rows)


def read_scaled(part: Path) -> list[ImageSize]:
    """The original sizes of the images in the file `part` that were scaled to fit.

    Raises:
        InputError: it cannot be read.
    """
    names = ["scaled_from_height", "scaled_from_width"]
    heights, widths = _columns(part, names)
    sides = zip(heights, widths, strict=True)
    return [ImageSize(*both) for both in sides if None not in both]


def read_keys(part: Path) -> list[str]:
    """The keys in the file `part`, in order.

    Raises:
        InputError: it cannot be read.
    """
    (keys,) = _columns(part, ["key"])
    return keys


def _columns(part: Path, names: list[str]) -> list[list[Any]]:
    with opened_parquet(part) as file:
        check_columns(part, file.schema_arrow, names)
        table = file.read(columns=names)
        return [table.column(name).to_pylist() for name in names]


def _parts(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    parts = sorted(part for part in path.glob("*.parquet") if part.name[0] not in "._")
    if not parts:
        raise InputError(f"{path} holds no features; make some with: dinov2rt run")
    return parts


def _check_model(parts: list[Path]) -> None:
    first = read_metadata(parts[0])
    for part in parts:
        with opened_parquet(part) as file:
            metadata = _metadata(file.schema_arrow)
            check_columns(part, file.schema_arrow)
        if "variant" not in metadata:
            raise InputError(f"{part} holds no features of dinov2rt; leave it out")
        for key in MODEL_KEYS:
            if metadata.get(key) != first.get(key):
                raise InputError(
                    f"{parts[0]} has {key} {first.get(key)}, but {part} has {metadata.get(key)}; "
                    "features of different models cannot be compared, read them one by one"
                )


def _checked(features: Any, columns: Sequence[str] | None) -> list[str] | None:
    if columns is None:
        return None
    names = features.schema.names
    if unknown := [column for column in columns if column not in names]:
        raise InputError(
            f"there is no column {quoted(unknown[0])}; there are {shown(', '.join(names))}"
        )
    return list(columns)
