"""Features of a few images as CSV."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from dinov2rt.extraction.image_features import (
    SIZE_COLUMNS,
    Float32Array,
    ImageFeatures,
    alike,
    as_unicode,
    sizes,
)
from dinov2rt.files import replacing

_VECTORS = ("cls_token", "patch_mean")


def write_csv(file: Path, rows: Iterable[ImageFeatures]) -> int:
    """Write `rows` to `file` as they arrive, in UTF-8, and return their number.

    The columns are `key`; the sizes of `feature_schema`, empty where it has null; `cls_token_0` and
    so on; and `patch_mean_0` and so on. Register and patch tokens are left out. Numbers have as
    many digits as float32 needs. The file appears when complete, or not at all.

    Raises:
        InputError: no rows, or rows that are not of one model.
        Dinov2rtError: the file cannot be written.
    """
    with replacing(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer, count = csv.writer(stream), 0
        for row in alike(rows):
            if not count:
                writer.writerow(["key", *SIZE_COLUMNS, *_names(row)])
            writer.writerow([as_unicode(row.key), *sizes(row), *_numbers(row)])
            count += 1
    return count


def _names(row: ImageFeatures) -> Iterator[str]:
    return (f"{name}_{index}" for name in _VECTORS for index in range(len(_vector(row, name))))


def _numbers(row: ImageFeatures) -> Iterator[str]:
    return (str(value) for name in _VECTORS for value in _vector(row, name))


def _vector(row: ImageFeatures, name: str) -> Float32Array:
    vector: Float32Array = getattr(row, name)
    return vector
