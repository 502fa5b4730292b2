from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from dinov2rt.analysis.pca import draw_demo, draw_pca, patch_pca
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.runtime.images import load_image

PHOTOS = Path(__file__).parents[2] / "export/photos"
WIDTH = 32


def scene(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """Tokens [h, w, D]: two clusters by `mask`, the foreground varying smoothly inside."""
    cluster = np.random.default_rng(99).standard_normal((2, WIDTH)) * 5
    inside = np.random.default_rng(98).standard_normal((3, WIDTH))
    rows, cols = np.mgrid[: mask.shape[0], : mask.shape[1]] / max(mask.shape) - 0.5
    variation = np.stack([rows, cols, rows * cols], axis=-1) @ inside
    noise = np.random.default_rng(seed).standard_normal((*mask.shape, WIDTH)) * 0.05
    return (cluster[mask.astype(int)] + mask[..., None] * variation + noise).astype(np.float32)


def box(shape: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def lit(colours: np.ndarray) -> np.ndarray:
    return colours.max(axis=-1) > 0


@pytest.mark.parametrize(
    "mask",
    [
        box((16, 16), 6, 6, 10, 10),
        box((16, 23), 1, 1, 15, 22),  # more foreground than background
        box((12, 12), 4, 4, 6, 6),  # 4 patches of 144: the mean lies inside the background
        box((10, 10), 3, 3, 10, 7),  # reaches one border
    ],
)
def test_the_object_has_colours_and_the_background_is_black(mask: np.ndarray) -> None:
    (colours,) = patch_pca([scene(mask)])
    assert colours.shape == (*mask.shape, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    np.testing.assert_array_equal(lit(colours)[~mask], False)
    # A patch at the low end of all three components is black as well.
    assert lit(colours)[mask].mean() > 0.9


def test_the_foreground_does_not_depend_on_signs() -> None:
    mask = box((16, 16), 4, 4, 12, 12)
    for tokens in (scene(mask), -scene(mask)):
        (colours,) = patch_pca([tokens])
        assert not lit(colours)[~mask].any()


def test_images_share_one_fit() -> None:
    masks = [box((16, 16), 4, 4, 12, 12), box((9, 20), 2, 5, 7, 15), np.zeros((8, 8), bool)]
    maps = patch_pca([scene(mask, seed) for seed, mask in enumerate(masks)])
    assert [colours.shape for colours in maps] == [(16, 16, 3), (9, 20, 3), (8, 8, 3)]
    for colours, mask in zip(maps, masks, strict=True):
        assert not lit(colours)[~mask].any()
    same = patch_pca([scene(masks[0])] * 2)
    np.testing.assert_array_equal(same[0], same[1])


def test_colours_follow_the_variation_inside_the_object() -> None:
    mask = box((16, 16), 2, 2, 14, 14)
    (colours,) = patch_pca([scene(mask)])
    rows, cols = np.nonzero(mask)
    design = np.column_stack([rows, cols, rows * cols, np.ones(len(rows))])
    for channel in range(2):  # the third component is weaker than the noise
        values = colours[mask][:, channel]
        unclipped = (values > 0) & (values < 1)
        fitted = design @ np.linalg.lstsq(design[unclipped], values[unclipped], rcond=None)[0]
        assert np.corrcoef(fitted[unclipped], values[unclipped])[0, 1] > 0.95


def test_repeatable_and_independent_of_dtype_of_storage() -> None:
    tokens = scene(box((16, 16), 4, 4, 12, 12))
    first, again = patch_pca([tokens]), patch_pca([tokens.astype(np.float64)])
    np.testing.assert_array_equal(first[0], again[0])


def test_outliers_do_not_flatten_the_colours() -> None:
    mask = box((24, 24), 4, 4, 20, 20)
    tokens = scene(mask)
    tokens[10, 10] += 20 * np.random.default_rng(98).standard_normal((3, WIDTH))[0]
    (colours,) = patch_pca([tokens])
    assert (np.ptp(colours[mask], axis=0) > 0.9).all()
    assert colours[mask].std(axis=0).min() > 0.15


@pytest.mark.parametrize(
    "tokens",
    [
        np.ones((1, 1, WIDTH)),
        np.zeros((3, 4, WIDTH)),
        np.full((5, 5, WIDTH), 1 / 3),
        np.arange(2 * WIDTH).reshape(1, 2, WIDTH),
        np.eye(3, WIDTH).reshape(3, 1, WIDTH),
        scene(box((6, 6), 2, 2, 3, 3)),  # one patch of foreground
        np.full((4, 4, WIDTH), 1e20),
    ],
)
def test_degenerate_tokens_give_finite_colours(tokens: np.ndarray) -> None:
    (colours,) = patch_pca([tokens.astype(np.float32)])
    assert colours.shape == (*tokens.shape[:2], 3)
    assert np.isfinite(colours).all()
    assert colours.min() >= 0
    assert colours.max() <= 1


def test_equal_tokens_are_grey() -> None:
    tokens = np.broadcast_to(np.random.default_rng(0).standard_normal(WIDTH), (7, 9, WIDTH))
    (colours,) = patch_pca([tokens.astype(np.float32)])
    np.testing.assert_array_equal(colours, 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tokens_that_are_not_finite(value: float) -> None:
    tokens = scene(box((6, 6), 2, 2, 4, 4))
    tokens[1, 1, 0] = value
    with pytest.raises(InputError, match="NaN or infinity; check the bundle: dinov2rt verify"):
        patch_pca([tokens])


def test_no_images() -> None:
    with pytest.raises(InputError, match="no patch tokens to draw; give at least one image"):
        patch_pca([])


def test_picture(tmp_path: Path) -> None:
    wide = np.zeros((100, 200, 3), np.uint8)
    wide[:, :, 1] = 200
    tall = np.full((300, 150, 3), 77, np.uint8)
    maps = [np.array([[[1.0, 0, 0], [0, 0, 1.0]]]), np.full((4, 2, 3), 0.5)]
    draw_pca([wide, tall], maps, tmp_path / "pca.png")
    picture = load_image(tmp_path / "pca.png")

    assert picture.shape == (448 + 8 + 448, 896 + 8 + 896, 3)
    first, gap, second = picture[:448], picture[448:456], picture[456:]
    assert (gap == 255).all()
    assert (first[:, :896] == [0, 200, 0]).all()
    assert (first[:, 896:904] == 255).all()
    assert (first[:, 904 : 904 + 448] == [255, 0, 0]).all()
    assert (first[:, 904 + 448 :] == [0, 0, 255]).all()
    assert (second[:, :224] == 77).all()
    assert (second[:, 224:232] == 255).all()
    assert (second[:, 232:456] == 128).all()
    assert (second[:, 456:] == 255).all()


def test_picture_of_a_photo(tmp_path: Path) -> None:
    photo = load_image(PHOTOS / "chelsea.jpg")
    draw_pca([photo], [np.zeros((21, 32, 3))], tmp_path / "pca.png")
    with PIL.Image.open(tmp_path / "pca.png") as picture:
        assert picture.size == (673 + 8 + 673, 448)
        left = np.asarray(picture.crop((0, 0, 673, 448)).resize((451, 300))).astype(float)
    assert np.abs(left - photo).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["pca.png"]


def test_picture_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(Dinov2rtError, match=r"pca\.png cannot be written \(No such file"):
        draw_pca([np.zeros((14, 14, 3), np.uint8)], [np.zeros((1, 1, 3))], tmp_path / "x/pca.png")


def test_picture_too_large_to_open(tmp_path: Path) -> None:
    images = [np.zeros((14, 14 * 60, 3), np.uint8)] * 4
    with pytest.raises(InputError, match=r"1816x53768 is 97642688 pixels, more than the 89478485"):
        draw_pca(images, [np.zeros((1, 60, 3))] * 4, tmp_path / "pca.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "pages"), [(4, 1), (5, 1), (15, 1), (16, 2), (64, 5)])
def test_many_images_are_pages_of_a_size_that_one_can_look_at(
    tmp_path: Path, count: int, pages: int
) -> None:
    image, colours = np.zeros((28, 42, 3), np.uint8), np.ones((2, 3, 3))
    written = draw_pca([image] * count, [colours] * count, tmp_path / "p.png")
    names = ["p.png", *(f"p-{number}.png" for number in range(2, pages + 1))]
    assert [page.name for page in written] == names
    for page in written:
        with PIL.Image.open(page) as picture:
            assert max(picture.size) <= 2200
    tiles = sum((load_image(page) == 0).all(axis=-1).sum() for page in written)
    height = 448 if count <= 4 else 224
    assert tiles == count * height * round(height * 1.5)  # every photo is there, and it is black


def test_the_whole_image_has_no_background() -> None:
    (colours,) = patch_pca([scene(box((16, 16), 6, 6, 10, 10))], whole=True)
    assert lit(colours).mean() > 0.9


def test_the_demo_shows_photo_whole_and_foreground_with_words(tmp_path: Path) -> None:
    photo = np.full((224, 224, 3), 77, np.uint8)
    draw_demo(photo, scene(box((16, 16), 6, 6, 10, 10)), tmp_path / "p.png")
    picture = load_image(tmp_path / "p.png")
    assert picture.shape[1] == 3 * 448 + 2 * 8
    assert (picture[:448, :448] == 77).all()
    whole, foreground = picture[:448, 456 : 456 + 448], picture[:448, 912:]
    assert (whole.max(axis=-1) == 0).mean() < 0.1 < (foreground.max(axis=-1) == 0).mean()
    assert (picture[448:] < 255).any(axis=(1, 2)).sum() > 30  # words
