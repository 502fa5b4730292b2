"""Files of features that others wrote: each is read, or refused in a line, by all readers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov2rt.analysis.head_training import TrainOptions, train_classifier
from dinov2rt.analysis.index import index_features
from dinov2rt.analysis.segment_training import SegmentOptions, train_segmenter
from dinov2rt.analysis.vectors import Token, open_collection
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.extraction.image_features import SIZE_COLUMNS, ImageFeatures
from dinov2rt.extraction.parquet import (
    FeatureType,
    feature_schema,
    layers_of,
    read_failures,
    read_rows,
    write_features,
)
from dinov2rt.extraction.reader import read_features, read_keys, read_metadata, read_scaled

WIDTH = 384
FLOAT = pa.float32()
METADATA = {
    "variant": "dinov2_vits14",
    "weights_sha256": "0" * 64,
    "patch_tokens": "yes",
    "snap": "crop",
    "preprocess": "native",
    "root": "photos",
}
IMAGES = 4
HARMLESS = {
    "nothing",
    "no fact root",
    "a root with a null byte",
    *(f"scaled_from_width of {value}" for value in (-3, 0, 99, None)),
    "scaled_from_height of None",
}
"""What no reader here depends on, or may be so."""


def sound() -> pa.Table:
    """Four images of two folders, of one row of two patches each."""
    values = np.random.default_rng(0).normal(size=(IMAGES, WIDTH)).astype(np.float32)
    rows = [
        ImageFeatures(
            f"{'ab'[index % 2]}/{index}.png",
            ImageSize(14, 28),
            Grid(1, 2),
            token,
            np.zeros((0, WIDTH), np.float32),
            token,
            np.stack([token, token]),
        )
        for index, token in enumerate(values)
    ]
    architecture = find_variant("dinov2_vits14").architecture
    schema = feature_schema(architecture, FeatureType.FLOAT32, METADATA, patch_tokens=True)
    buffer = pa.BufferOutputStream()
    write_features(buffer, schema, iter(rows))
    return pq.read_table(pa.BufferReader(buffer.getvalue()))


def column(name: str, values: list[Any], kind: Any = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.names.index(name), name, pa.array(values, kind))

    return change


def fact(name: str, value: bytes | None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        metadata = {**table.schema.metadata, f"dinov2rt.{name}".encode(): value}
        return table.replace_schema_metadata(
            {key: each for key, each in metadata.items() if each is not None}
        )

    return change


def without(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


CHANGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "nothing": lambda table: table,
    **{f"no {name}": without(name) for name in ("key", "cls_token", "patch_mean", "height")},
    "no patches": without("patch_tokens"),
    **{f"no fact {name}": fact(name, None) for name in METADATA},
    "facts that are no text": fact("variant", b"\xff\xfe"),
    "a variant with escapes": fact("variant", b"\x1b[2J" * 1000),
    "a root with a null byte": fact("root", b"\0"),
    "layers in words": fact("layers", b"a,b of c"),
    "endless layers": fact("layers", b"8,9,10,11 of " + b"9" * 5000),
    "too many layers": fact("layers", b"0 of 99999999999"),
    "texts as tokens": column("cls_token", ["x"] * IMAGES),
    "structs as tokens": column("cls_token", [{"a": 1.0}] * IMAGES),
    "whole numbers as tokens": column("cls_token", [[1, 2]] * IMAGES),
    "ragged tokens": column(
        "cls_token", [[1.0] * (at + 1) for at in range(IMAGES)], pa.list_(FLOAT)
    ),
    "empty tokens": column("cls_token", [[]] * IMAGES, pa.list_(FLOAT)),
    "no tokens": column("cls_token", [None] * IMAGES, pa.list_(FLOAT, WIDTH)),
    "tokens without numbers": column("cls_token", [[None] * WIDTH] * IMAGES, pa.list_(FLOAT)),
    "a column twice": lambda table: table.append_column("cls_token", table["cls_token"]),
    "numbers as keys": column("key", list(range(IMAGES))),
    "no keys": column("key", [None] * IMAGES, pa.string()),
    "empty keys": column("key", [""] * IMAGES),
    "keys with a null byte": column("key", ["a\0b"] * IMAGES),
    "long keys": column("key", ["a" * 5000] * IMAGES),
    "keys that lead out": column("key", ["../../etc/passwd\x1b[2J"] * IMAGES),
    **{
        f"{name} of {value}": column(name, [value] * IMAGES, pa.int64())
        for name in SIZE_COLUMNS
        for value in (-3, 0, 99, None)
    },
    "a text as a size": column("height", ["a"] * IMAGES),
    "narrow patches": column("patch_tokens", [[[1.0], [2.0]]] * IMAGES),
    "few patches": column("patch_tokens", [[[1.0] * WIDTH]] * IMAGES),
    "null patches": column("patch_tokens", [None] * IMAGES, pa.list_(pa.list_(FLOAT, WIDTH))),
}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return sound()


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    from PIL import Image

    classes = np.repeat([[0, 1]], 14, axis=1).repeat(14, axis=0).astype(np.uint8)
    for index in range(IMAGES):
        file = tmp_path / "masks" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(classes).save(file)
    return tmp_path / "masks"


def readings(file: Path, masks: Path) -> Iterator[Callable[[], object]]:
    """Everything that reads such a file."""
    yield lambda: read_features(file)
    yield lambda: list(read_rows(file))
    yield lambda: (read_keys(file), read_scaled(file), layers_of(read_metadata(file)))
    yield lambda: index_features(open_collection(file), Token.PATCH_MEAN).find("a/0.png")
    yield lambda: index_features(open_collection(file), Token.CLS).search(np.ones(WIDTH), 1)
    for tokens in ("cls+mean", "layers+mean"):
        options = TrainOptions(tokens, held_out=0.5)
        yield lambda options=options: train_classifier(file, "folder", options)
    yield lambda: train_segmenter(file, masks, SegmentOptions(held_out=0.5))


@pytest.mark.parametrize("change", CHANGES)
def test_features_of_others_are_read_or_refused_in_a_line(
    change: str, table: pa.Table, masks: Path, tmp_path: Path
) -> None:
    file = tmp_path / "features.parquet"
    pq.write_table(CHANGES[change](table), file)
    refusals = []
    for reading in readings(file, masks):
        try:
            reading()
        except Dinov2rtError as error:
            refusals.append(str(error))
    assert all(refusal.isprintable() for refusal in refusals)
    assert (len(refusals) == 1) == (change in HARMLESS)  # even the sound one has no layers


def test_of_the_sound_file_only_the_layers_are_missing(
    table: pa.Table, masks: Path, tmp_path: Path
) -> None:
    file = tmp_path / "features.parquet"
    pq.write_table(table, file)
    *rest, _ = [reading for index, reading in enumerate(readings(file, masks)) if index != 6]
    for reading in rest:
        reading()


def test_an_errors_table_of_others_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": [1]}), tmp_path / "errors.parquet")
    with pytest.raises(InputError, match="holds no errors of dinov2rt"):
        read_failures(tmp_path / "errors.parquet")
