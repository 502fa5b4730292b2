"""`run --preprocess source` against the libraries' own code; how far off their positions are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.installed import require_for_tests

from dinov2rt.benchmarks.studies.sources.interpolation import distances
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.export.crops import PHOTOS
from dinov2rt.export.weights.preprocessor import normalization_of
from dinov2rt.runtime.images import load_image
from dinov2rt.runtime.preprocess import Preprocess

require_for_tests("transformers")
from dinov2rt.benchmarks.studies.sources import pixels  # noqa: E402  # it imports transformers


@pytest.fixture(scope="module")
def odd_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes whose margins are uneven in both ways, and one that is smaller than a crop."""
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(PHOTOS / "coffee.jpg") as coffee:
        for width, height in ((333, 331), (335, 329), (331, 500), (421, 330), (327, 333)):
            coffee.crop((60, 20, 60 + width, 20 + min(height, 380))).resize((width, height)).save(
                folder / f"{width}x{height}.jpg"
            )
    return folder


@pytest.mark.parametrize("name", pixels.TRANSFORMERS)
def test_pixels_are_those_of_transformers(name: str, odd_photos: Path) -> None:
    config = pixels.TRANSFORMERS[name]
    for photos in (PHOTOS, odd_photos):
        file = "preprocessor_config.json"
        same = pixels.compared("", name, file, config, pixels.by_pillow, photos)
        assert same.largest == 0
    # another kernel: it may round otherwise, but looks at the same place
    near = pixels.compared("", name, file, config, pixels.by_torchvision)
    assert near.largest <= 2
    assert near.mean < 0.05


@pytest.mark.parametrize("name", pixels.TIMM)
def test_pixels_are_those_of_timm(name: str, odd_photos: Path) -> None:
    config = {"pretrained_cfg": pixels.TIMM[name]}
    for photos in (PHOTOS, odd_photos):
        assert pixels.compared("", name, "config.json", config, pixels.by_timm, photos).largest == 0


def test_statistics_give_the_numbers_of_transformers(tmp_path: Path) -> None:
    """With a rescale factor, and without rescaling."""
    photo = PHOTOS / "chelsea.jpg"
    own = load_image(photo, "short-side:256,floor-crop:224")[None]
    for facts in (
        {"image_mean": [0.5307] * 3, "image_std": [0.2583] * 3},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [0.5] * 3},
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60.0] * 3},
        {"do_normalize": False},
    ):
        processor = pixels.BitImageProcessorPil(
            **pixels.TRANSFORMERS["short side 256, crop 224"] | facts
        )
        processor.save_pretrained(tmp_path)
        found = normalization_of(tmp_path)
        assert isinstance(found, Normalization)
        want = processor(Image.open(photo), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(found(own), want, rtol=0, atol=3e-6 * np.abs(want).max())


def test_a_crop_that_is_larger_than_the_image_is_padded_as_torchvision_does() -> None:
    assert Preprocess(crop=518).crop_start(515) == -1  # of three rows, one comes before
    assert Preprocess(crop=518, crop_floors=True).crop_start(515) == -2
    assert [Preprocess(crop=224).crop_start(224 + margin) for margin in (1, 3, 5)] == [0, 2, 2]
    assert [
        Preprocess(crop=224, crop_floors=True).crop_start(224 + margin) for margin in (1, 3, 5)
    ] == [0, 1, 2]


@pytest.mark.slow
def test_libraries_differ_where_the_table_is_resampled() -> None:
    sizes = (ImageSize(98, 126), ImageSize(518, 518))
    found = {(each.otherwise, each.size): each for each in distances("synthetic:0", sizes)}
    assert len(found) == 6
    for (_, size), each in found.items():
        is_native = size == ImageSize(518, 518)
        assert (each.patch_tokens == 0) if is_native else (1e-3 < each.patch_tokens < 0.5)
