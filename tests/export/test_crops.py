"""Crops of photographs: the same as ever, with one photograph in memory at a time."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.export import crops
from dinov2rt.export.crops import PHOTOS, photo_crops
from dinov2rt.runtime.images import load_image

SIDES = (20, 21, 22, 23, 24)


def plain_crops(seeds: range, size: ImageSize, names: Sequence[str]) -> NDArray[np.uint8]:
    """All photographs at once, and seed by seed."""
    photos = [load_image(PHOTOS / name) for name in names]
    crops = []
    for seed in seeds:
        image = photos[seed % len(photos)]
        scale = max(size.height / image.shape[0], size.width / image.shape[1])
        if scale > 1:
            enlarged = [int(np.ceil(side * scale)) for side in (image.shape[1], image.shape[0])]
            image = np.asarray(Image.fromarray(image).resize(enlarged, Image.Resampling.BICUBIC))
        random = np.random.default_rng(seed)
        top, left = (
            random.integers(image.shape[axis] - side + 1)
            for axis, side in enumerate((size.height, size.width))
        )
        crop = image[top : top + size.height, left : left + size.width]
        crops.append(np.fliplr(crop) if random.integers(2) else crop)
    return np.stack(crops)


@pytest.mark.parametrize("seeds", [range(9), range(1001, 1004), range(30, 3, -4)], ids=str)
@pytest.mark.parametrize("size", [ImageSize(224, 224), ImageSize(98, 126), ImageSize(56, 700)])
def test_each_seed_gives_the_same_crop_at_its_place(seeds: range, size: ImageSize) -> None:
    got = photo_crops(seeds, size)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(
        got, plain_crops(seeds, size, ("astronaut.jpg", "chelsea.jpg", "coffee.jpg", "hubble.jpg"))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs with the sides `SIDES`, in that order."""
    for side in SIDES:
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    return tmp_path


def test_a_photograph_is_loaded_once_and_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[NDArray[np.uint8]]] = []
    names: list[str] = []
    alive: list[int] = []

    def watched(path: Path) -> NDArray[np.uint8]:
        image = load_image(path)
        alive.append(sum(before() is not None for before in loaded))
        loaded.append(weakref.ref(image))
        names.append(path.stem)
        return image

    monkeypatch.setattr(crops, "load_image", watched)
    photo_crops(range(3 * len(SIDES)), ImageSize(14, 14), folder)
    assert sorted(names) == list(map(str, SIDES))
    assert max(alive) <= 1  # the one before, until the next takes its name


def test_photographs_that_no_seed_uses_are_not_loaded(folder: Path) -> None:
    (folder / f"{SIDES[-1]}.png").write_bytes(b"no image")
    assert len(photo_crops(range(len(SIDES) - 1), ImageSize(14, 14), folder)) == len(SIDES) - 1
