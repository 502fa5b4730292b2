"""Names of answers, and folders of answers that something has damaged."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.extraction.answers.files import RECORDS, SETTINGS, PredictionFolder, file_name
from dinov2rt.extraction.answers.prediction import Answered
from dinov2rt.extraction.answers.table import write_table
from dinov2rt.extraction.chunks import Chunk, ImageFiles
from dinov2rt.runtime.predictions import Classification

ODD = "caf\udce9\x1b[2J.jpg"


def answered(key: str) -> Answered:
    answer = Classification(np.array([[3.0, 1.0]], np.float32), ("c\x1b[2Jat", "dog"))
    return Answered(key, ImageSize(14, 14), np.zeros((14, 14, 3), np.uint8), {"linear": answer})


@pytest.mark.parametrize("key", ["a.jpg", "below/a b.jpg", "shard.tar#犬/1.jpg"])
def test_names_that_file_systems_take_are_kept(key: str) -> None:
    assert file_name(key) == key


@pytest.mark.parametrize(
    "key", ["../a", "/etc/a", "a//b", "./a", "a\0b", ODD, "x" * 300, "犬" * 90, "", "\n"]
)
def test_other_names_are_printable_short_inside_the_folder_and_differ(key: str) -> None:
    name = file_name(key)
    assert name.isprintable()
    assert not name.startswith("/")
    assert ".." not in Path(name).parts
    assert max(len(part.encode()) for part in Path(name).parts) < 200
    assert name not in (key, file_name(f"{key}x"), file_name(f"{key}/x"))


def test_keys_of_any_bytes_are_written_and_read_again(tmp_path: Path) -> None:
    keys = (ODD, "x" * 300, "a\0b")
    folder = PredictionFolder(tmp_path / "out", {})
    folder.open()
    for key in keys:
        folder.write(answered(key))
    records = list(folder.records([Chunk(0, ImageFiles(keys))]))
    assert [record["image"] for record in records] == list(keys)
    for name in ("predictions.json", "predictions.parquet"):
        write_table(records, tmp_path / name)
    assert json.loads((tmp_path / "predictions.json").read_text())[0]["image"] == ODD
    images = pq.read_table(tmp_path / "predictions.parquet")["image"].to_pylist()
    assert images[0] == "caf\\udce9\x1b[2J.jpg"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_settings_file_or_record_is_named(tmp_path: Path, content: bytes) -> None:
    folder = PredictionFolder(tmp_path / "out", {})
    folder.open()
    folder.write(answered("a"))
    (record,) = (folder.folder / RECORDS).iterdir()
    record.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json .*; remove it to have it again"):
        list(folder.records([Chunk(0, ImageFiles(("a",)))]))
    (folder.folder / SETTINGS).write_bytes(content)
    with pytest.raises(InputError, match=r"settings\.json .*; remove it to have it again"):
        folder.open()


SOUND = {"image": "a.jpg", "height": 14, "width": 14, "heads": {}}
CLASS = {"index": 1, "name": "cat", "probability": 0.5}


@pytest.mark.parametrize(
    "record",
    [
        {},
        SOUND | {"image": 5},
        SOUND | {"height": "14"},
        SOUND | {"width": 2**40},
        SOUND | {"height": -1},
        SOUND | {"heads": "linear"},
        SOUND | {"heads": {"linear": []}},
        SOUND | {"heads": {"linear": {}}},
        SOUND | {"heads": {"linear": {"classes": [5]}}},
        SOUND | {"heads": {"linear": {"classes": [CLASS | {"name": 5}]}}},
        SOUND | {"heads": {"linear": {"classes": [CLASS | {"index": True}]}}},
        SOUND | {"heads": {"linear": {"classes": [CLASS | {"probability": "x"}]}}},
        SOUND | {"heads": {"depth": {"nearest_m": "x", "farthest_m": 1.0}}},
        SOUND | {"heads": {"depth": {"nearest_m": 1.0}}},
        SOUND | {"heads": {"depth": {"nearest_m": 1.0, "farthest_m": 1.0, "file": []}}},
    ],
    ids=str,
)
def test_a_record_of_others_is_named(tmp_path: Path, record: dict[str, object]) -> None:
    folder = PredictionFolder(tmp_path / "out", {})
    folder.open()
    folder.write(answered("a.jpg"))
    file = tmp_path / "out" / RECORDS / "a.jpg.json"
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"a\.jpg\.json is no record of answers"):
        list(folder.records([Chunk(0, ImageFiles(("a.jpg",)))]))
