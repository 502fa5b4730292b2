"""Writes all predictions of a folder to one file: JSON, or Parquet with a row per class."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dinov2rt.extraction.image_features import as_unicode
from dinov2rt.files import replacing
from dinov2rt.named_enum import unknown_name
from dinov2rt.optional import require

FORMATS = ("json", "parquet")
_Record = dict[str, Any]


def table_name(table_format: str) -> str:
    """The name of the file.

    Raises:
        InputError: an unknown format.
    """
    if table_format not in FORMATS:
        raise unknown_name("table format", table_format, FORMATS)
    return f"predictions.{table_format}"


def write_table(records: Sequence[_Record], file: Path) -> None:
    """Write the `records` of `PredictionFolder.records` to a .json or .parquet file.

    A Parquet table has the columns `image`, `height`, `width`, `head`, `file`, `nearest_m` and
    `farthest_m` (of depth), `rank`, `index`, `name`, and `share` (the probability of a class of
    the image, or the share of the pixels that are of it). Depth has one row.

    Raises:
        MissingDependencyError: the format is Parquet and pyarrow is not installed.
        Dinov2rtError: the file cannot be written.
    """
    with replacing(file) as partial:
        if file.suffix == ".json":
            partial.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
            return
        pa = require("pyarrow", extra="parquet", purpose="writing answers as Parquet")
        parquet = require("pyarrow.parquet", extra="parquet", purpose="writing answers as Parquet")
        table = pa.Table.from_pylist(list(_rows(records)), _schema(pa))
        with partial.open("wb") as stream:
            parquet.write_table(table, stream)


def _schema(pa: Any) -> Any:
    numbers, texts = ("nearest_m", "farthest_m", "share"), ("image", "head", "file", "name")
    order = (
        "image", "height", "width", "head", "file", "nearest_m", "farthest_m", "rank", "index",
        "name", "share",
    )  # fmt: skip
    kinds = dict.fromkeys(numbers, pa.float32()) | dict.fromkeys(texts, pa.string())
    return pa.schema([(name, kinds.get(name, pa.int32())) for name in order])


def _rows(records: Sequence[_Record]) -> Iterator[_Record]:
    for record in records:
        image = {name: record[name] for name in ("image", "height", "width")}
        image["image"] = as_unicode(image["image"])
        for head, answer in record["heads"].items():
            facts = {name: answer.get(name) for name in ("file", "nearest_m", "farthest_m")}
            for rank, each in enumerate(answer.get("classes") or [{}]):
                share = each.get("probability", each.get("share"))
                index, name = each.get("index"), each.get("name")
                yield image | facts | {
                    "head": head, "rank": rank, "index": index, "name": name, "share": share
                }  # fmt: skip
