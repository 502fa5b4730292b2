"""`dinov2rt predict`: answers as files and pictures, resumed, and what is refused."""

import dataclasses
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.cli import main

Predict = Callable[..., tuple[int, Any, str]]
HEADS = "linear,nyu-linear,voc2012-linear"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (45, 31)), ("below/b.png", (28, 42))):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str], bundle_heads: Path, tmp_path: Path) -> Predict:
    def call(*arguments: object) -> tuple[int, Any, str]:
        out = ("--out", str(tmp_path / "out"), "--backend", "onnxruntime")
        status = main(["predict", str(bundle_heads), *map(str, arguments), *out, "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err

    return call


def test_answers_are_files_that_say_what_they_are(
    predict: Predict, photos: Path, tmp_path: Path
) -> None:
    status, document, _ = predict(photos, "--head", HEADS, "--pictures", "--top", 2)
    assert (status, document["images"], document["failed"]) == (0, 2, 0)
    assert document["synthetic_weights"]
    record = document["predictions"][0]
    assert (record["height"], record["width"]) == (45, 31)
    assert len(record["heads"]["linear"]["classes"]) == 2
    out = tmp_path / "out"
    depth = record["heads"]["nyu-linear"]
    with Image.open(out / depth["file"]) as image:
        metres = np.asarray(image).astype(float) * depth["metres_per_step"]
    assert metres.shape == (45, 31)
    assert metres.min() == pytest.approx(depth["nearest_m"], abs=depth["metres_per_step"])
    assert metres.max() == pytest.approx(depth["farthest_m"], abs=depth["metres_per_step"])
    segments = record["heads"]["voc2012-linear"]
    with Image.open(out / segments["file"]) as image:
        assert image.mode == "P"
        assert image.size == (31, 45)
        classes = np.asarray(image)
    shares = {each["index"]: each["share"] for each in segments["classes"]}
    assert shares == {int(i): pytest.approx(np.mean(classes == i)) for i in np.unique(classes)}
    assert sum(shares.values()) == pytest.approx(1)
    assert json.loads((out / "predictions.json").read_text()) == document["predictions"]
    for name in (*HEADS.split(","), "attention"):
        pictures = sorted((out / "pictures" / name).rglob("*.png"))
        assert len(pictures) == 2, name
        with Image.open(pictures[0]) as image:
            assert image.mode == "RGB"
            assert image.height >= 45 - 45 % 14


def test_images_of_a_shard_are_answered_by_their_names(
    predict: Predict, photos: Path, tmp_path: Path
) -> None:
    shard = tmp_path / "photos.tar"
    with tarfile.open(shard, "w") as archive:
        for name in ("a.png", "below/b.png"):
            archive.add(photos / name, name)
    status, document, _ = predict(shard, "--head", "nyu-linear,linear")
    assert (status, document["images"]) == (0, 2)
    keys = [record["image"] for record in document["predictions"]]
    assert [key.rpartition("#")[2] for key in keys] == ["a.png", "below/b.png"]
    for record in document["predictions"]:
        with Image.open(tmp_path / "out" / record["heads"]["nyu-linear"]["file"]) as image:
            assert image.size == (record["width"], record["height"])
            assert image.mode == "I;16"


def test_the_same_command_resumes(
    predict: Predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "c.png").write_bytes(b"no image")
    status, first, complaint = predict(photos, "--head", "linear")
    assert (status, first["images"], first["failed"]) == (1, 2, 1)
    assert "c.png" in complaint
    (photos / "c.png").write_bytes((photos / "a.png").read_bytes())
    asked: list[str] = []
    from dinov2rt.extraction.answers.files import PredictionFolder

    write = PredictionFolder.write

    def watched(self: PredictionFolder, answer: Any) -> Any:
        asked.append(answer.key)
        return write(self, answer)

    monkeypatch.setattr(PredictionFolder, "write", watched)
    status, second, _ = predict(photos, "--head", "linear")
    assert (status, second["images"]) == (0, 3)
    assert [Path(key).name for key in asked] == ["c.png"]
    status, _, complaint = predict(photos, "--head", "linear4")
    assert (status, "holds answers with another asked" in complaint) == (2, True)


@pytest.mark.parametrize("name", ["pictures", "records", "attention"])
def test_a_head_that_is_called_as_another_folder_is_refused(
    name: str,
    bundle_classifiers: Path,
    copy_of: Callable[[Path], Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = copy_of(bundle_classifiers)
    manifest = Manifest.read(bundle)
    first, *rest = manifest.heads
    heads = (dataclasses.replace(first, name=name), *rest)
    dataclasses.replace(manifest, heads=heads).write(bundle)
    out = tmp_path / "out"
    assert main(["predict", str(bundle), str(photos), "--out", str(out)]) == 2
    assert f"a folder of the answers is called {name} already" in capsys.readouterr().err
    assert not out.exists()


def test_depth_as_metres_in_npy(predict: Predict, photos: Path, tmp_path: Path) -> None:
    _, document, _ = predict(photos / "a.png", "--head", "kitti-linear", "--depth-format", "npy")
    (record,) = document["predictions"]
    depth = record["heads"]["kitti-linear"]
    metres = np.load(tmp_path / "out" / depth["file"])
    assert metres.dtype == np.float32
    assert metres.shape == (45, 31)
    assert float(metres.min()) == depth["nearest_m"]


def test_a_table_of_all_answers_in_parquet(predict: Predict, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    heads = "linear,kitti-linear,voc2012-linear"
    _, document, _ = predict(photos, "--head", heads, "--table", "parquet", "--top", 3)
    rows = parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    record = document["predictions"][0]
    mine = [row for row in rows if row["image"] == record["image"]]
    classes = [row for row in mine if row["head"] == "linear"]
    assert [row["name"] for row in classes] == [
        each["name"] for each in record["heads"]["linear"]["classes"]
    ]
    assert [row["rank"] for row in classes] == [0, 1, 2]
    (depth,) = [row for row in mine if row["head"] == "kitti-linear"]
    assert depth["farthest_m"] == pytest.approx(record["heads"]["kitti-linear"]["farthest_m"])
    assert depth["name"] is None
    shares = [row["share"] for row in mine if row["head"] == "voc2012-linear"]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--head", "dpt"), "this bundle has linear"),
        (("--recipe", "best"), 'allowed are "single", "official"'),
        (("--depth-format", "tiff"), 'allowed are "png", "npy"'),
        (("--table", "csv"), 'allowed are "json", "parquet"'),
        (("--top", "0"), "a whole number from 1"),
        (("--batch", "0"), "a whole number from 1"),
    ],
)
def test_bad_options_are_one_line(
    arguments: tuple[str, ...], message: str, predict: Predict, photos: Path
) -> None:
    status, _, complaint = predict(photos / "a.png", *arguments)
    assert status == 2
    assert message in complaint
    assert complaint.count("\n") == 1
