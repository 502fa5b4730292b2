"""`dinov2rt run` on bad input, mixed collections, and a terminal."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from dinov2rt.cli import main
from dinov2rt.cli.progress import Progress, duration
from dinov2rt.export.crops import PHOTOS

Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def run(bundle_s: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with --json: its status, its document, and what it complained of."""

    def call(*arguments: object) -> tuple[int, Any, str]:
        status = main(["run", str(bundle_s), *map(str, arguments), "--decoders", "0", "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out), captured.err

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(encoded(14, 28))
    return folder


def encoded(height: int, width: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def keys(folder: Path) -> list[str]:
    return [Path(key).name for key in pyarrow.parquet.read_table(folder)["key"].to_pylist()]


def test_every_bad_input_is_one_line_and_everything_else_is_saved(
    run: Run, images: Path, tmp_path: Path
) -> None:
    (images / "1x1.png").write_bytes(encoded(1, 1))
    Image.new("1", (30_000, 30_000)).save(images / "bomb.png")
    (images / "circle.jpg").symlink_to("circle.jpg")
    (images / "again").symlink_to(images)
    (images / "cut.jpg").write_bytes(encoded(28, 28, "JPEG")[:-200])
    (images / "text.jpg").write_text("plain text")
    tar, parquet, other = (tmp_path / name for name in ("b.tar", "b.parquet", "o.parquet"))
    tar.write_bytes(b"no tar")
    parquet.write_bytes(b"no Parquet")
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), other)
    out = tmp_path / "f.parquet"
    status, document, complaints = run(images, tar, parquet, other, "--out", out)
    assert (status, document["images"], document["failed"]) == (1, 3, 8)
    assert document["errors"] == str(out / "_errors")
    lines = complaints.splitlines()
    reasons = [
        "1x1.png cannot be used: image of 1x1 pixels is smaller than one patch",
        "bomb.png is too large: Image size (900000000 pixels) exceeds limit",
        "circle.jpg cannot be read (Too many levels of symbolic links)",
        "cut.jpg cannot be decoded (image file is truncated",
        "text.jpg is not an image of a format that is opened",
        "b.tar is not a whole, uncompressed tar archive (truncated header)",
        "b.parquet cannot be read as Parquet (",
        "o.parquet has no column 'image', only label",
    ]
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line
    errors = pyarrow.parquet.read_table(out / "_errors")["reason"].to_pylist()
    assert [f"dinov2rt: {reason}" for reason in errors] == lines
    assert keys(out) == ["0.png", "1.png", "2.png"]

    again, document, complaints = run(images, tar, parquet, other, "--out", out)
    assert (again, complaints) == (1, "")  # it was said before, and stands in the table
    assert (document["images"], document["failed"], document["failures"]) == (3, 8, [])


def test_photographs_of_twelve_megapixels_work_by_default(run: Run, tmp_path: Path) -> None:
    phone = tmp_path / "phone"
    phone.mkdir()
    for index, sides in enumerate([(4000, 3000), (3000, 4000), (28, 28)]):
        photo = Image.open(PHOTOS / "astronaut.jpg").resize(sides)
        photo.save(phone / f"{index}.jpg", quality=50)
    out = tmp_path / "phone.parquet"
    options = (phone, "--out", out, "--max-pixels", 20_000)  # the same path, for less time
    status, document, complaints = run(*options, "--no-scale")
    assert (status, document["images"], document["failed"]) == (1, 1, 2)
    assert "more than max_pixels=20000; let it be scaled to fit (without --no-scale)" in complaints
    status, document, _ = run(*options)
    assert status == 2
    assert "To go on with it: with --no-scale. To begin anew" in document["error"]["message"]

    shutil.rmtree(out)
    status, document, complaints = run(*options)
    assert (status, document["failed"], complaints) == (0, 0, "")
    assert document["scaled"] == {
        "count": 2,
        "smallest": {"height": 3000, "width": 4000},
        "largest": {"height": 4000, "width": 3000},
    }
    rows = pyarrow.parquet.read_table(out).to_pylist()
    assert [row["scaled_from_height"] for row in rows] == [3000, 4000, None]
    assert [row["scaled_from_width"] for row in rows] == [4000, 3000, None]
    assert [(row["height"], row["width"]) for row in rows] == [(122, 163), (163, 122), (28, 28)]


def test_a_run_says_once_what_it_scaled(
    bundle_s: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in images.iterdir():
        file.write_bytes(encoded(28, 28))
    out = str(tmp_path / "f.csv")
    assert main(["run", str(bundle_s), str(images), "--out", out, "--max-pixels", "300"]) == 0
    said = capsys.readouterr().out
    assert said.count("scaled") == 1
    assert "3 images of 28x28 were scaled to fit max_pixels 300; --no-scale refuses them" in said
    assert len(Path(out).read_text().splitlines()) == 4


def test_a_repaired_image_is_taken_up_and_nothing_left_is_said(
    run: Run, images: Path, tmp_path: Path, bundle_s: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.parquet"
    sound = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(sound[:-100])
    assert run(images, "--out", out)[0] == 1
    assert main(["run", str(bundle_s), str(images), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "nothing was left to do" in said
    assert f"1 of 3 images failed; see {out / '_errors'}; --retry-failed tries them again" in said
    assert "images/s" not in said

    (images / "1.png").write_bytes(sound)
    status, document, _ = run(images, "--out", out)
    assert (status, document["images"], document["failed"], document["left"]) == (0, 3, 0, 1)
    assert keys(out) == ["0.png", "1.png", "2.png"]
    status, document, _ = run(images, "--out", out, "--retry-failed")
    assert (status, document["left"]) == (0, 0)


def test_shards_and_files_make_one_table(run: Run, images: Path, tmp_path: Path) -> None:
    tar, shard = tmp_path / "s.tar", tmp_path / "s.parquet"
    with tarfile.open(tar, "w") as archive:
        archive.add(images / "0.png", "x.png")
    pyarrow.parquet.write_table(pyarrow.table({"photo": [encoded(28, 28)]}), shard)
    out = tmp_path / "f.parquet"
    pattern = images / "[12].png"
    status, document, _ = run(
        pattern, tar, shard, "--out", out, "--image-column", "photo", "--dtype", "float16"
    )
    assert (status, document["failed"]) == (0, 0)
    assert keys(out) == ["1.png", "2.png", "s.tar#x.png", "s.parquet#0"]
    assert pyarrow.parquet.read_schema(next(out.glob("*.parquet"))).field(
        "cls_token"
    ).type == pyarrow.list_(pyarrow.float16(), 384)


def test_a_picture_is_drawn_of_shards_and_after_a_resumed_run(
    run: Run, images: Path, tmp_path: Path
) -> None:
    tar, out, pca = tmp_path / "s.tar", tmp_path / "f.parquet", tmp_path / "p.png"
    with tarfile.open(tar, "w") as archive:
        archive.add(images / "0.png", "x.png")
    assert run(tar, images, "--out", out)[0] == 0
    status, document, complaints = run(tar, images, "--out", out, "--pca", pca)
    assert (status, document["pca"], complaints) == (0, str(pca), "")
    with Image.open(pca) as picture:
        assert picture.height == 4 * 448 + 3 * 8


def test_a_picture_alone_tells_of_what_it_cannot_show(
    run: Run, images: Path, tmp_path: Path
) -> None:
    (images / "0.png").write_text("plain text")
    status, document, complaints = run(images, "--pca", tmp_path / "p.png")
    assert (status, document["images"], document["failed"]) == (1, 2, 1)
    (line,) = complaints.splitlines()
    assert "0.png is not an image" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part-images", "0"], "0 images per chunk; allowed is a whole number from 1"),
        (["--decoders", "-1"], "decoders=-1; allowed is a whole number from 0"),
        (["--dtype", "bfloat16"], 'unknown dtype \'bfloat16\'; allowed are "float16", "float32"'),
        (["--dtype", "float16", "--out", "f.npz"], "--dtype is for OUT.parquet, and this is .npz"),
        (
            ["--snap", "pad"],
            "was begun with snap crop, and this is pad. To go on with it: --snap crop",
        ),
        (["--part-images", "1"], "was begun with other images, another order or another number"),
        (["--out", "taken.parquet"], "taken.parquet is a file, not a folder of parts"),
        (["--out", "/proc/f.parquet"], "/proc/f.parquet cannot be written (No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run,
    bundle_s: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.parquet").touch()
    assert run(images, "--out", "f.parquet")[0] == 0
    before = sorted(Path("f.parquet").rglob("*"))
    status = main(["run", str(bundle_s), str(images), "--out", "f.parquet", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert line.startswith("dinov2rt: error: ")
    assert message in line
    assert sorted(Path("f.parquet").rglob("*")) == before


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What is written to standard error from now on, as to a terminal."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def test_progress_shows_the_way_the_speed_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = watch(monkeypatch)
    seconds = iter([0.0, 0.05, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    with Progress(100, done=50) as progress:
        progress.step()
        progress.step()
    shown = terminal.getvalue().split("\r\x1b[K")
    # Two in ten seconds; those of an earlier run are part of the way, not of the speed.
    assert shown[-2] == "52/100 images, 0.2 images/s, 4 min 00 s left"
    assert shown[-1] == ""


def test_complaints_do_not_run_into_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch)
    with Progress(2) as progress:
        progress.step()
        progress.complain("a line")
    assert "\r\x1b[Kdinov2rt: a line\n" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
        (86400 * 3 + 3600 * 4 + 60, "3 d 4 h"),
    ],
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_left_out_and_what_is_dropped_is_said(
    run: Run, images: Path, tmp_path: Path, bundle_s: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("notes.txt", "b.TXT", "raw.cr2"):
        (images / name).touch()
    Image.new("RGBA", (28, 14), (255, 0, 0, 0)).save(images / "clear.png")
    (images / "white.jfif").write_bytes(encoded(14, 28, "JPEG"))
    out = tmp_path / "f.npz"
    _, document, _ = run(images, "--out", out)
    assert (document["images"], document["lost_transparency"]) == (5, 1)
    assert document["left_out"] == {".txt": 2, ".cr2": 1}
    main(["run", str(bundle_s), str(images), "--out", str(out), "--decoders", "0"])
    text = capsys.readouterr().out
    assert "left out as no images: .txt (2), .cr2 (1)" in text
    assert "1 image has transparency, which was dropped" in text
    _, document, _ = run(images, "--out", out, "--background", "white")
    assert document["lost_transparency"] == 0
    assert document["metadata"]["preprocess"] == "native,background:#ffffff"
