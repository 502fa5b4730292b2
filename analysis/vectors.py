"""Reads features as unit vectors, whose dot product is the cosine, for search and evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import InputError
from dinov2rt.extraction.image_features import (
    KEY,
    Facts,
    check_columns,
    check_filled,
    matrix,
)
from dinov2rt.extraction.parquet import reading_parquet
from dinov2rt.extraction.reader import Paths, open_features, read_metadata
from dinov2rt.foreign import shown
from dinov2rt.named_enum import NamedEnum

Float32Array = NDArray[np.float32]

_ROWS_AT_A_TIME = 16_384


class Token(NamedEnum):
    """The vector that represents an image."""

    CLS = "cls"
    PATCH_MEAN = "patch-mean"

    @property
    def column(self) -> str:
        """The name of the column in a table of features and of the field of `ImageFeatures`."""
        return "cls_token" if self is Token.CLS else "patch_mean"


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """An opened feature dataset: pyarrow's `dataset`, and the `metadata` of model and options."""

    dataset: Any
    metadata: Facts

    def __len__(self) -> int:
        return int(self.dataset.count_rows())

    @property
    def is_synthetic(self) -> bool:
        """Whether the features come from random weights, `synthetic:SEED`."""
        return self.metadata.get("weights_source", "").startswith("synthetic:")

    def vectors(self, token: Token) -> Iterator[tuple[Any, Float32Array]]:
        """Keys (an Arrow array) and unit vectors [n, D], a few thousand images at a time.

        Raises:
            InputError: a vector is zero, NaN or infinite, or the file is damaged.
        """
        for keys, vectors in self.values([token.column]):
            yield keys, unit_vectors(vectors, keys)

    def values(self, columns: Sequence[str]) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Keys (an Arrow array) and the values of `columns` side by side, [n, F].

        Raises:
            InputError: a column is missing or holds something else, or the file is damaged.
        """
        for batch in self._batches([KEY, *columns]):
            if len(batch):
                parts = [matrix(self._place, batch.column(name)) for name in columns]
                yield batch.column(KEY), np.concatenate(parts, axis=1)

    @property
    def _place(self) -> str:
        return ", ".join(self.dataset.files)

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        place = self._place
        with reading_parquet(place):
            check_columns(place, self.dataset.schema, columns)
        with reading_parquet(place):
            # Read-ahead is kept small, to leave the memory to the caller.
            batches = self.dataset.to_batches(
                columns=columns,
                batch_size=_ROWS_AT_A_TIME,
                batch_readahead=1,
                fragment_readahead=1,
            )
        while True:
            with reading_parquet(place):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)  # text that is no UTF-8
                check_filled(place, batch)
            yield batch


def open_collection(paths: Paths) -> Collection:
    """Open the features at `paths`; no vectors are read yet.

    Raises:
        InputError: the features are of different models, a path has no features, or there is no
            image.
        MissingDependencyError: pyarrow is not installed.
    """
    dataset = open_features(paths)
    collection = Collection(dataset, read_metadata(Path(dataset.files[0])))
    if not len(collection):
        raise InputError(f"{paths} holds no image; make features of some with: dinov2rt run")
    return collection


def unit_vectors(vectors: NDArray[Any], keys: Any) -> Float32Array:
    """Normalize `vectors` [N, D] to length 1, in float32; `keys` are their names in a message.

    Raises:
        InputError: a vector is zero, NaN or infinite.
    """
    wide = vectors.astype(np.float32, copy=False)
    norms = np.linalg.norm(wide.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~((norms > 0) & np.isfinite(norms))[:, 0])
    if len(bad):
        raise InputError(
            f"the features of {shown(keys[int(bad[0])])} are zero or not finite and cannot be "
            "compared; compute them again, and check the bundle: dinov2rt verify"
        )
    unit: Float32Array = (wide / norms).astype(np.float32)
    return unit
