"""The official evaluations: their arithmetic alone, and the official outputs with a real model."""

import math
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.tasks.bilinear import resize_bilinear
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import InputError
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.heads.checkpoint import HeadSource
from dinov2rt.runtime.model import Model, load
from dinov2rt.runtime.sliding import (
    MULTI_SCALE,
    ONE_SCALE,
    SlidingRecipe,
    classify_pixels,
    resize_uint8,
    scaled_sizes,
    windows_of,
)

GOLDEN = Path(__file__).parents[1] / "golden_heads"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return dict(archive)


def pixels(case: str) -> np.ndarray:
    return golden("inputs")[case]


@pytest.mark.parametrize(
    ("side", "recipe", "starts"),
    [
        (512, ONE_SCALE, [0]),
        (518, ONE_SCALE, [0, 6]),
        (853, ONE_SCALE, [0, 341]),
        (854, ONE_SCALE, [0, 341, 342]),
        (100, ONE_SCALE, [0]),
        (1107, MULTI_SCALE, [0, 320, 467]),
    ],
)
def test_windows_are_the_official_ones(side: int, recipe: SlidingRecipe, starts: list[int]) -> None:
    windows = windows_of(ImageSize(side, 30), recipe)
    assert [down.start for down, _ in windows] == starts
    assert {down.stop - down.start for down, _ in windows} == {min(side, recipe.crop)}


def test_scales_are_the_official_ones() -> None:
    want = golden("dinov2_vits14__voc2012_ms__chelsea_98x126__pipeline")["scale_hw"][::2]
    assert [(s.height, s.width) for s in scaled_sizes(ImageSize(98, 126), MULTI_SCALE)] == [
        tuple(each) for each in want
    ]
    (one,) = scaled_sizes(ImageSize(98, 126), ONE_SCALE)
    assert one == ImageSize(512, 658)


@pytest.mark.parametrize("recipe", [ONE_SCALE, MULTI_SCALE])
def test_a_thin_image_that_would_fill_the_memory_is_refused(recipe: SlidingRecipe) -> None:
    def unused(_: np.ndarray) -> np.ndarray:
        raise AssertionError

    with pytest.raises(InputError, match=r"scales 1x5000 to .*; crop the image, or use recipe"):
        classify_pixels(np.zeros((1, 5000, 3), np.uint8), recipe, unused)


def test_pixels_are_resampled_as_opencv_does() -> None:
    want = golden("dinov2_vits14__ade20k_linear__chelsea_98x126__pipeline")["resized_uint8"]
    got = resize_uint8(pixels("chelsea_98x126")[0], ImageSize(512, 658))
    off = np.abs(got.astype(int) - want)
    assert off.max() <= 1
    assert np.mean(off != 0) < 0.002  # 13 % with exact weights


def colours_as_scores(windows: np.ndarray) -> np.ndarray:
    """A head that tells the colours of every fourth pixel apart."""
    return np.ascontiguousarray(windows[:, ::4, ::4].transpose(0, 3, 1, 2), np.float32) / 8


def straightforward(image: np.ndarray, recipe: SlidingRecipe) -> np.ndarray:
    """The same with whole arrays, as the official code has it."""
    size, total = ImageSize(*image.shape[:2]), 0.0
    for scaled in scaled_sizes(size, recipe):
        for mirrored in (False, True) if recipe.mirrors else (False,):
            view = resize_uint8(image, scaled)
            view = view[:, ::-1] if mirrored else view
            sums = np.zeros((3, *view.shape[:2]), np.float32)
            count = np.zeros(view.shape[:2], np.float32)
            for place in windows_of(scaled, recipe):
                scores = colours_as_scores(view[place][None])[0]
                sums[(slice(None), *place)] += resize_bilinear(scores, view[place].shape[:2])
                count[place] += 1
            logits = resize_bilinear(sums / count, (size.height, size.width))
            odds = np.exp(logits - logits.max(0))
            odds /= odds.sum(0)
            total = total + (odds[:, :, ::-1] if mirrored else odds)
    return np.asarray(total).argmax(0).astype(np.uint8)


@pytest.mark.parametrize("band_bytes", [2**26, 4 * 3 * 90 * 7])
def test_bands_windows_scales_and_mirrors_are_those_of_whole_arrays(
    band_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinov2rt.runtime.sliding._BAND_BYTES", band_bytes)
    recipe = SlidingRecipe(40, crop=24, stride=10, ratios=(1.0, 1.7), mirrors=True)
    image = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    got = classify_pixels(image, recipe, colours_as_scores)
    assert np.mean(got != straightforward(image, recipe)) < 1e-3


CLASSES = 150
MANY_VIEWS = SlidingRecipe(100, crop=70, stride=35, ratios=(1.0, 1.7), mirrors=True)


def noise_as_scores(windows: np.ndarray) -> np.ndarray:
    batch, height, width, _ = windows.shape
    shape = (batch, CLASSES, height // 14, width // 14)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def bytes_on_the_host(
    photo: ImageSize, recipe: SlidingRecipe, *, classes: int, band_bytes: int
) -> int:
    """What `classify_pixels` has to hold at once, from shapes alone.

    Three arrays of a band's scores (the sum so far, a view's, and what the latter is made of), the
    scores of all windows, the classes, weights of resampling along both axes at every scale, and
    thirteen bytes a value while a photo's columns are resampled: one uint8 and three int32.
    """
    views = scaled_sizes(photo, recipe)
    copies = 2 if recipe.mirrors else 1
    windows = copies * sum(len(windows_of(view, recipe)) for view in views)
    scores = 4 * classes * windows * math.ceil(recipe.crop / 14) ** 2
    weights = sum(4 * (photo.height * v.height + photo.width * v.width) for v in views)
    columns = max(13 * 3 * photo.height * view.width for view in views)
    resampled = copies * sum(3 * view.pixels for view in views)
    return 3 * band_bytes + scores + weights + columns + resampled + photo.pixels


@pytest.mark.parametrize("photo", [ImageSize(150, 180), ImageSize(60, 72)])
def test_memory_does_not_grow_with_classes_times_pixels(
    photo: ImageSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with the photo's pixels, nor with those of its largest scale."""

    def peak_bytes(band_bytes: int) -> int:
        monkeypatch.setattr("dinov2rt.runtime.sliding._BAND_BYTES", band_bytes)
        tracemalloc.start()
        try:
            classify_pixels(image, MANY_VIEWS, noise_as_scores)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    image = np.zeros((photo.height, photo.width, 3), np.uint8)
    bound = bytes_on_the_host(photo, MANY_VIEWS, classes=CLASSES, band_bytes=2**19)
    all_scores = 4 * CLASSES * max(scaled_sizes(photo, MANY_VIEWS)[-1].pixels, photo.pixels)
    assert peak_bytes(2**19) < bound < all_scores / 3
    assert peak_bytes(2**40) > all_scores  # all rows are one band: what the bound has to exclude


def test_depth_is_averaged_with_the_mirror_image(bundle_heads: Path) -> None:
    want = golden("dinov2_vits14__nyu_dpt__coffee_231x345__flip")["depth"]
    with load(bundle_heads, device="cpu", backend="openvino") as model:
        got = model.predict(pixels("coffee_231x345"), heads="nyu-dpt", recipe="official").metres
        assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
        check_refusals(model)


def check_refusals(model: Model) -> None:
    image = pixels("chelsea_98x126")
    with pytest.raises(
        InputError, match='unknown recipe \'best\'; allowed are "single", "official"'
    ):
        model.predict(image, recipe="best")
    with pytest.raises(InputError, match="leave out snap, scores and device_outputs"):
        model.predict(image, recipe="official", scores=True)
    with pytest.raises(InputError, match="takes uint8 pixels"):
        model.predict([image.astype(np.float32)[0]], recipe="official")


def test_classes_of_an_image_are_of_its_middle(bundle_classifiers: Path) -> None:
    image = pixels("chelsea_98x126")[0]
    with load(bundle_classifiers, device="cpu", backend="openvino") as model:
        (answer,) = model.predict([image], heads="linear", recipe="official")
        from dinov2rt.runtime.images import preprocessed
        from dinov2rt.runtime.preprocess import Preprocess

        cropped = preprocessed(image, Preprocess.parse("classification"))
        assert cropped.shape == (224, 224, 3)
        want = model.predict(cropped, heads="linear").logits
    np.testing.assert_allclose(answer.logits, want, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Model]]:
    bundle = tmp_path_factory.mktemp("bundles") / "segments"
    heads = tuple(HeadSource(name, "synthetic:0") for name in ("ade20k-linear", "voc2012-ms"))
    options = ExportOptions(precisions=(Precision.FP32,), heads=heads)
    export_bundle(find_variant("dinov2_vits14"), "synthetic:0", bundle, options)
    with load(bundle, device="cpu", backend="openvino") as model:
        yield lambda _: model


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ade20k_linear", "voc2012_ms"])
def test_the_official_pipeline_is_reproduced(head: str, segments: Callable[[str], Model]) -> None:
    want = golden(f"dinov2_vits14__{head}__chelsea_98x126__pipeline")
    got = segments(head).predict(
        pixels("chelsea_98x126"), heads=head.replace("_", "-"), recipe="official"
    )
    off = got.classes != want["class_map"]
    # OpenCV's grey levels may differ by one, which moves probabilities by less than 0.005.
    assert not np.any(off & (want["margin"] > 5e-3))
    assert off.mean() < 0.01


@pytest.mark.slow
def test_the_sliding_window_is_the_official_one(
    segments: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden has no rescaling: the image is taken as it is."""
    monkeypatch.setattr(
        "dinov2rt.runtime.recipes.recipe_of", lambda _: SlidingRecipe(518, crop=512, stride=341)
    )
    want = golden("dinov2_vits14__ade20k_linear__hubble_518x518__slide")["class_map"]
    got = segments("").predict(pixels("hubble_518x518"), heads="ade20k-linear", recipe="official")
    assert np.mean(got.classes != want) < 1e-4
