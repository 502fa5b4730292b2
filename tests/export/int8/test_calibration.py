"""The photographs of int8: which are taken, at which size, and what is refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import InputError
from dinov2rt.export.crops import photo_crops
from dinov2rt.export.exporter import ExportOptions
from dinov2rt.export.int8 import calibration
from dinov2rt.export.int8.calibration import LEAST_PHOTOS, Calibration

MakePhotos = Callable[..., Path]


@pytest.fixture
def make_photos(tmp_path: Path) -> MakePhotos:
    """Makes a folder of `count` photographs, whose colour is their number."""

    def make(count: int, width: int = 30, height: int = 20) -> Path:
        folder = tmp_path / "photos"
        folder.mkdir()
        for index in range(count):
            photo = Image.new("RGB", (width, height), (index, 0, 0))
            photo.save(folder / f"{index:03}.png")
        return folder

    return make


def colours(photos: Calibration) -> list[int]:
    return [int(photo[0, 0, 0]) for photo in photos.photos]


def test_without_paths_the_crops_are_those_of_the_photographs_that_ship() -> None:
    photos, size = Calibration.load(), ImageSize(98, 126)
    assert photos.paths == ()
    assert len(photos.photos) == LEAST_PHOTOS
    np.testing.assert_array_equal(photos.crops(range(3, 9), size), photo_crops(range(3, 9), size))


def test_files_and_folders_are_taken_and_named(make_photos: MakePhotos, tmp_path: Path) -> None:
    folder = make_photos(4)
    single = tmp_path / "single.png"
    Image.new("RGB", (9, 9), (77, 0, 0)).save(single)
    photos = Calibration.load([folder, single])
    assert colours(photos) == [0, 1, 2, 3, 77]
    assert photos.paths == (str(folder), str(single))
    names = b"000.png\n001.png\n002.png\n003.png\nsingle.png\n"
    assert photos.names_sha256 == hashlib.sha256(names).hexdigest()


def test_of_many_some_are_taken_evenly(
    make_photos: MakePhotos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_MOST_PHOTOS", 5)
    assert colours(Calibration.load([make_photos(12)])) == [0, 2, 4, 7, 9]


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((2000, 1024), (1000, 512)), ((512, 900), (512, 900)), ((40, 30), (40, 30))],
)
def test_large_photographs_are_scaled(
    size: tuple[int, int], scaled: tuple[int, int], make_photos: MakePhotos
) -> None:
    width, height = size
    photos = Calibration.load([make_photos(4, width, height)])
    assert {photo.shape for photo in photos.photos} == {(scaled[1], scaled[0], 3)}


def test_too_few_are_refused(make_photos: MakePhotos) -> None:
    with pytest.raises(InputError, match="--calibration names 3 photographs; the least is 4"):
        Calibration.load([make_photos(3)])


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds no image; it holds \.txt \(1\)"):
        Calibration.load([tmp_path])


def test_a_photograph_that_cannot_be_read_is_named(make_photos: MakePhotos) -> None:
    folder = make_photos(5)
    (folder / "002.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"002\.png .*not an image"):
        Calibration.load([folder])


def test_it_is_for_int8_alone(make_photos: MakePhotos) -> None:
    with pytest.raises(InputError, match="--calibration is for int8 graphs; add int8"):
        ExportOptions(precisions=(Precision.FP32,), calibration=(make_photos(4),))
