import contextlib
import csv
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.extraction.formats import FeatureFormat, feature_format
from dinov2rt.extraction.image_features import SIZE_COLUMNS, ImageFeatures
from dinov2rt.extraction.npz import write_npz
from dinov2rt.extraction.text_table import write_csv

WIDTH = 6
GRIDS = (Grid(2, 3), Grid(1, 1), Grid(4, 2))
METADATA = {"variant": "dinov2_vits14_reg", "preprocess": "native", "été": "å"}


def make_rows(registers: int = 4, patches: bool = True, width: int = WIDTH) -> list[ImageFeatures]:
    def tokens(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, width), dtype=np.float32)

    rng = np.random.default_rng(7)
    return [
        ImageFeatures(
            key=f"photos/{index}.jpg",
            size=ImageSize(14 * grid.rows + 5, 14 * grid.cols + 1),
            grid=grid,
            cls_token=tokens(),
            register_tokens=tokens(registers),
            patch_mean=tokens(),
            patch_tokens=tokens(grid.num_patches) if patches else None,
            scaled_from=ImageSize(300, 400) if index == 1 else None,
        )
        for index, grid in enumerate(GRIDS)
    ]


# .npz


def test_npz_holds_everything(tmp_path: Path) -> None:
    rows = make_rows()
    assert write_npz(tmp_path / "out.npz", iter(rows), METADATA) == 3
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["key"].tolist() == ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg"]
        assert arrays["height"].tolist() == [33, 19, 61]
        assert arrays["width"].tolist() == [43, 15, 29]
        assert arrays["scaled_from_height"].tolist() == [0, 300, 0]
        assert arrays["scaled_from_width"].tolist() == [0, 400, 0]
        assert arrays["grid_rows"].tolist() == [2, 1, 4]
        assert arrays["grid_cols"].tolist() == [3, 1, 2]
        assert json.loads(str(arrays["metadata"])) == METADATA
        for name in ("cls_token", "register_tokens", "patch_mean"):
            assert arrays[name].dtype == np.float32
            np.testing.assert_array_equal(arrays[name], [getattr(row, name) for row in rows])
        offsets = arrays["patch_offsets"]
        assert offsets.tolist() == [0, 6, 7, 15]
        assert arrays["patch_tokens"].dtype == np.float32
        for row, start, end in zip(rows, offsets, offsets[1:], strict=False):
            np.testing.assert_array_equal(arrays["patch_tokens"][start:end], row.patch_tokens)


def test_npz_leaves_out_what_there_is_not(tmp_path: Path) -> None:
    write_npz(tmp_path / "out.npz", make_rows(registers=0, patches=False), METADATA)
    with np.load(tmp_path / "out.npz") as arrays:
        assert set(arrays) == {"key", *SIZE_COLUMNS, "cls_token", "patch_mean", "metadata"}


# .csv


def test_csv_holds_one_vector_an_image_to_the_last_digit(tmp_path: Path) -> None:
    rows = make_rows()
    assert write_csv(tmp_path / "out.csv", rows) == 3
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        records = list(csv.DictReader(stream))
    assert list(records[0])[:9] == ["key", *SIZE_COLUMNS, "cls_token_0", "cls_token_1"]
    assert [record["key"] for record in records] == [row.key for row in rows]
    assert [record["scaled_from_height"] for record in records] == ["", "300", ""]
    for record, row in zip(records, rows, strict=True):
        for name in ("cls_token", "patch_mean"):
            numbers = [float(record[f"{name}_{index}"]) for index in range(WIDTH)]
            np.testing.assert_array_equal(np.float32(numbers), getattr(row, name))


# Whole or not at all


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "out.npz"
    file.write_bytes(b"old")

    def interrupted() -> Iterator[ImageFeatures]:
        yield make_rows()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_npz(file, interrupted(), METADATA)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"old"


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.npz").write_bytes(b"old")
    write_npz(tmp_path / "out.npz", make_rows(), METADATA)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]
    assert (tmp_path / "out.npz").stat().st_size > 100


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("patches", [False, True])
def test_a_write_that_the_system_refuses(tmp_path: Path, patches: bool) -> None:
    rows = make_rows(patches=patches, width=50_000)
    with (
        file_size_limit(10_000),
        pytest.raises(
            Dinov2rtError, match=r"out.npz cannot be written \(.*too large.*; free"
        ) as caught,
    ):
        write_npz(tmp_path / "out.npz", rows, METADATA)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(Dinov2rtError, match=r"cannot be written \(File name too long\)"):
        write_npz(tmp_path / f"{'x' * 250}.npz", make_rows(), METADATA)


# Refused up front


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.tsv", r"suffix '\.tsv'; allowed: \.npz, \.csv, \.parquet"),
        ("out", r"suffix ''; allowed: \.npz, \.csv, \.parquet"),
        ("missing/out.npz", r"missing is not a folder to write out\.npz in; create it"),
        ("folder.npz", r"folder\.npz is a folder; give the name of a file"),
        ("file.parquet", r"file\.parquet is a file, not a folder of parts; give another name"),
    ],
)
def test_refused_before_any_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file.parquet").touch()
    with pytest.raises(InputError, match=message):
        feature_format(tmp_path / name)


def test_feature_format(tmp_path: Path) -> None:
    assert feature_format(tmp_path / "a.npz") is FeatureFormat.NPZ
    assert feature_format(tmp_path / "a.parquet") is FeatureFormat.PARQUET
    (tmp_path / "a.parquet").mkdir()
    assert feature_format(tmp_path / "a.parquet") is FeatureFormat.PARQUET  # to be resumed


# Rows


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no features to write; give at least one image"):
        write_npz(tmp_path / "out.npz", [], METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"width": 8}, {"registers": 0}, {"patches": False}])
def test_rows_of_different_models(tmp_path: Path, other: dict[str, int]) -> None:
    rows = [make_rows()[0], make_rows(**other)[1]]
    with pytest.raises(
        InputError, match=r"photos/1\.jpg has .*, but photos/0\.jpg has 4 registers"
    ):
        write_npz(tmp_path / "out.npz", rows, METADATA)


def test_a_path_that_is_not_unicode(tmp_path: Path) -> None:
    row = make_rows()[0]
    odd = ImageFeatures(
        "caf\udce9.jpg", row.size, row.grid, row.cls_token, row.register_tokens, row.patch_mean
    )
    write_npz(tmp_path / "out.npz", [odd], METADATA)
    assert np.load(tmp_path / "out.npz")["key"].tolist() == ["caf\\udce9.jpg"]


def test_pyarrow_is_imported_only_when_used() -> None:
    script = "import sys, dinov2rt.extraction.npz; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
