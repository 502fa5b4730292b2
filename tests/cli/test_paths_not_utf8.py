"""Paths with bytes that are not UTF-8: they work, or one line says what to rename."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from dinov2rt.cli import main
from dinov2rt.cli.verb import BAD_INPUT

ODD = "caf\udce9"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    Image.new("RGB", (28, 28), (200, 100, 0)).save(folder / "a.png")
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([*map(str, argv)]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "unexpected" not in line
    assert ODD not in line
    return line


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_features_are_written_to_files_of_any_name(
    suffix: str, pooling_bundle: Path, odd: Path
) -> None:
    out = odd / f"f{suffix}"
    assert main(["run", str(pooling_bundle), str(odd / "a.png"), "--out", str(out)]) == 0
    assert out.is_file()


def test_a_parquet_folder_is_refused_before_anything_is_computed(
    pooling_bundle: Path, odd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = odd / "f.parquet"
    line = refusal(capsys, "run", pooling_bundle, odd, "--out", out)
    assert line.endswith("(its path is not UTF-8, which is needed here; rename it)")
    assert not out.exists()


@pytest.mark.parametrize(
    "argv",
    [
        ("search", "{}/a.png", "--features", "{}/f.parquet"),
        ("knn", "--train", "{}/f.parquet", "--test", "{}/f.parquet", "--labels", "folder"),
        ("train-head", "--features", "{}/f.parquet", "--labels", "folder", "--out", "{}/c.npz"),
    ],
)
def test_features_that_were_moved_there_are_refused(
    argv: tuple[str, ...],
    bundle_s: Path,
    odd: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "f.parquet"
    assert main(["run", str(bundle_s), str(odd), "--out", str(out)]) == 0
    shutil.move(out, odd)
    capsys.readouterr()
    line = refusal(capsys, *(word.format(odd) for word in argv))
    assert "not UTF-8, which is needed here; rename it" in line


def test_labels_and_shards_are_refused(
    bundle_s: Path, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.parquet"
    assert main(["run", str(bundle_s), str(odd), "--out", str(out)]) == 0
    (part,) = (path for path in out.rglob("*.parquet") if path.name.startswith("part"))
    shutil.copy(part, odd / "x.parquet")
    capsys.readouterr()
    features = ("--train", out, "--test", out)
    assert "not UTF-8" in refusal(capsys, "knn", *features, "--labels", odd / "x.parquet")
    shard = str(odd / "x.parquet")
    assert main(["run", str(bundle_s), shard, "--out", str(tmp_path / "g.npz")]) == 1
    assert "x.parquet cannot be read as Parquet (its path is not" in capsys.readouterr().err


def test_a_bundle_computes_there_and_tensorrt_names_what_to_rename(
    bundle_s: Path, odd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = odd / "bundle"
    shutil.copytree(bundle_s, bundle)
    assert main(["verify", str(bundle)]) == 0
    capsys.readouterr()
    line = refusal(capsys, "build", bundle, "--target", "sm80")
    assert "cannot be parsed (its path is not UTF-8" in line
