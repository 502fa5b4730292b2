"""`dinov2rt search`: the images whose features are nearest to a query's."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov2rt.analysis.index import FeatureIndex, Neighbour, index_features
from dinov2rt.analysis.neighbour_picture import Tile, draw_neighbours
from dinov2rt.analysis.query import check_same_model, query_vectors
from dinov2rt.analysis.vectors import Float32Array, Token, open_collection
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.remote import local_bundle
from dinov2rt.cli.arguments import add_load_options, load_model
from dinov2rt.cli.output import complain, progress, table
from dinov2rt.cli.verb import Outcome, Verb
from dinov2rt.errors import InputError
from dinov2rt.foreign import shown
from dinov2rt.runtime.model import DEFAULT_MAX_PIXELS

_LOOKS_ALONE = (
    "the weights are synthetic: near means alike in colour and texture, told no better than by the "
    "mean colour, and says nothing of what is shown"
)


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """A query. `position` is its row in the features, or None if it has no row there."""

    name: str
    vector: Float32Array
    position: int | None


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "queries",
        metavar="QUERY",
        nargs="+",
        help="an image of the features, by its key or its path, or else another image file, which "
        "needs --bundle",
    )
    parser.add_argument(
        "--features",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="what to search: features.parquet of `dinov2rt run`, of one model",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where the images are now, if they were moved (default: where they were)",
    )
    parser.add_argument("-k", type=int, default=10, help="neighbours of each query (default: 10)")
    parser.add_argument("--token", default="cls", help="cls (default) or patch-mean")
    parser.add_argument(
        "--bundle",
        type=local_bundle,
        metavar="BUNDLE",
        help="that made the features, or its URL; for image files",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="queries and neighbours side by side, FILE.png"
    )
    parser.add_argument(
        "--image-column",
        default="image",
        help="of Parquet shards, for --picture (default: image)",
    )
    add_load_options(parser)


def _run(arguments: Namespace) -> Outcome:
    token = Token.parse(arguments.token)
    _check_picture(arguments.picture)
    collection = open_collection(arguments.features)
    progress(f"reading {len(collection)} features")
    index = index_features(collection, token, root=_root(arguments.root))
    queries = _queries(arguments, index, token, collection.metadata)
    found = {
        query.name: index.search(query.vector, arguments.k, without=query.position)
        for query in queries
    }
    if arguments.picture is not None:
        _draw(arguments, index, queries, found)
    document: dict[str, Any] = {
        "features": arguments.features,
        "images": len(index),
        "token": str(token),
        "picture": arguments.picture,
        "queries": [{"query": name, "neighbours": near} for name, near in found.items()],
        "synthetic_weights": collection.is_synthetic,
        "metadata": collection.metadata,
    }
    note = f"\nnote: {_LOOKS_ALONE}" if collection.is_synthetic else ""
    return Outcome(document, f"{_table(found)}{note}")


def _root(root: Path | None) -> Path | None:
    if root is not None and not root.is_dir():
        raise InputError(f"--root {root} is not a folder; give the one that the images are in now")
    return None if root is None else root.absolute()


def _check_picture(picture: Path | None) -> None:
    if picture is None:
        return
    if picture.suffix != ".png":
        raise InputError(f"{picture} has the suffix {picture.suffix!r}; allowed: .png")
    if not picture.parent.is_dir():
        raise InputError(f"{picture.parent} is not a folder to write {picture.name} in")


def _queries(
    arguments: Namespace, index: FeatureIndex, token: Token, metadata: Mapping[str, str]
) -> list[_Query]:
    """The queries, each once, in the given order."""
    names = list(dict.fromkeys(arguments.queries))
    positions = {name: index.find(name) for name in names}
    files = [name for name, position in positions.items() if position is None]
    computed = _computed(arguments, index, files, token, metadata)
    return [
        _Query(name, computed[name] if position is None else index.vector(position), position)
        for name, position in positions.items()
    ]


def _computed(
    arguments: Namespace,
    index: FeatureIndex,
    files: list[str],
    token: Token,
    metadata: Mapping[str, str],
) -> dict[str, Float32Array]:
    """The vectors of image files."""
    if not files:
        return {}
    for file in files:
        if not Path(file).is_file():
            raise InputError(
                f"{file} is neither an image file nor one of these features; their first key is "
                f"{shown(index.keys[0].as_py())}, in {shown(index.places.roots[0])}"
            )
    if arguments.bundle is None:
        raise InputError(
            f"{files[0]} is not in the features, so it has to be computed; "
            "give --bundle BUNDLE, the one that made them"
        )
    check_same_model(Manifest.read(arguments.bundle), metadata, arguments.precision)
    arguments.precision = metadata["precision"]
    max_pixels = int(metadata.get("max_pixels", DEFAULT_MAX_PIXELS))
    with load_model(arguments, max_pixels=max_pixels) as model:
        vectors = query_vectors(model, [Path(file) for file in files], metadata, token)
    return dict(zip(files, vectors, strict=True))


def _draw(
    arguments: Namespace,
    index: FeatureIndex,
    queries: list[_Query],
    found: Mapping[str, list[Neighbour]],
) -> None:
    rows = [
        [
            Tile(_file(query, index), "query", query.name),
            *(Tile(str(near.file), _caption(near), near.key) for near in found[query.name]),
        ]
        for query in queries
    ]
    missing = draw_neighbours(rows, arguments.picture, arguments.image_column)
    if missing:
        complain(f"{missing} images cannot be opened any more; they are grey in the picture")


def _file(query: _Query, index: FeatureIndex) -> str:
    return query.name if query.position is None else str(index.file(query.position))


def _caption(neighbour: Neighbour) -> str:
    return f"{neighbour.rank}   {neighbour.score:.4f}"


def _table(found: Mapping[str, list[Neighbour]]) -> str:
    rows = [
        (query, str(near.rank), f"{near.score:.4f}", near.key)
        for query, neighbours in found.items()
        for near in neighbours
    ]
    return table(("query", "rank", "cosine", "key"), rows)


SEARCH = Verb("search", "find the images nearest to others by their features", _add_arguments, _run)
