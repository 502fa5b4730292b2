"""Nearest-neighbour search among features, by cosine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov2rt.analysis.places import Places, places_of
from dinov2rt.analysis.vectors import Collection, Float32Array, Token
from dinov2rt.errors import InputError
from dinov2rt.optional import require


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One result: `rank` counts from 1, `score` is the cosine, `file` the image's location."""

    rank: int
    key: str
    score: float
    file: Path


@dataclass(frozen=True, slots=True, eq=False)
class FeatureIndex:
    """An exact search index over unit vectors in memory. Made by `index_features`.

    `keys` is an Arrow array; `_index` is faiss's `IndexFlatIP`, which holds the only copy of the
    vectors: 4·D bytes per image.
    """

    keys: Any
    places: Places
    _index: Any

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def find(self, query: str) -> int | None:
        """The position of the image that `query` names, or None; see `Places.find`.

        Raises:
            InputError: `query` is ambiguous.
        """
        return self.places.find(query, self.keys)

    def file(self, position: int) -> Path:
        """The file of the image at `position`; `SHARD#NAME` for a shard."""
        return self.places.file(position, self.keys[position].as_py())

    def vector(self, position: int) -> Float32Array:
        """The unit vector [D] of the image at `position`."""
        vector: Float32Array = self._index.reconstruct(position)
        return vector

    def search(
        self, vector: Float32Array, count: int, *, without: int | None = None
    ) -> list[Neighbour]:
        """The `count` images nearest to the unit vector `vector` [D], or all if there are fewer.

        `without` is a position to leave out, such as the position of the query itself.

        Raises:
            InputError: `count` is less than 1.
        """
        if count < 1:
            raise InputError(f"{count} neighbours; allowed is a whole number from 1")
        wanted = min(count + (without is not None), len(self))
        scores, positions = self._index.search(vector[None], wanted)
        pairs = zip(positions[0].tolist(), scores[0].tolist(), strict=True)
        found = [pair for pair in pairs if pair[0] != without][:count]
        return [
            Neighbour(rank, self.keys[position].as_py(), score, self.file(position))
            for rank, (position, score) in enumerate(found, start=1)
        ]


def index_features(
    collection: Collection, token: Token, *, root: Path | None = None
) -> FeatureIndex:
    """Read one vector per image into an index, a few thousand images at a time.

    `root` is the folder of the images, if they were moved after the extraction.

    Raises:
        InputError: a vector is zero, NaN or infinite.
        MissingDependencyError: faiss is not installed.

    Example:
        >>> from dinov2rt.analysis.index import index_features
        >>> from dinov2rt.analysis.vectors import Token, open_collection
        >>> report = dinov2rt.extract_features(model, "photos", "features.parquet")
        >>> index = index_features(open_collection("features.parquet"), Token.CLS)
        >>> position = index.find("photos/a.jpg")
        >>> [near.key for near in index.search(index.vector(position), 1)]
        ['a.jpg']
    """
    faiss = require("faiss", extra="search", purpose="searching features")
    pa = require("pyarrow", extra="parquet", purpose="reading features")
    index, keys = None, []
    for batch_keys, vectors in collection.vectors(token):
        if index is None:
            index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        keys.append(batch_keys)
    places = places_of(collection.dataset.files, root)
    return FeatureIndex(pa.chunked_array(keys), places, index)
