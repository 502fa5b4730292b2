"""Steps before the model: every name is parsed to steps and named again the same."""

import re

import numpy as np
import pytest
from PIL import Image

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.runtime.images import load_image
from dinov2rt.runtime.preprocess import Preprocess


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("native", {}),
        ("classification", {"short_side": 256, "crop": 224}),
        ("short-side:518", {"short_side": 518}),
        ("short-side:248,crop:224", {"short_side": 248, "crop": 224}),
        ("resize:224x224", {"resize": ImageSize(224, 224)}),
        ("resize:224x448,crop:196", {"resize": ImageSize(224, 448), "crop": 196}),
        ("crop:224", {"crop": 224}),
        ("native,background:#ffffff", {"background": (255, 255, 255)}),
        (
            "classification,background:#01fe20",
            {"short_side": 256, "crop": 224, "background": (1, 254, 32)},
        ),
    ],
)
def test_a_name_and_its_steps_are_one(name, steps):
    assert Preprocess.parse(name) == Preprocess(**steps)
    assert Preprocess(**steps).name == name


def test_the_steps_of_classification_are_called_so():
    assert Preprocess.parse("short-side:256,crop:224").name == "classification"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ",",
        "nativ",
        "short-side:0",
        "short-side:-1",
        "short-side:٣",
        "crop:224,short-side:256",
        "short-side:256,short-side:256",
        "short-side:256,resize:224x224",
        "resize:224",
        "resize:0x224",
        "crop:1000000",
        "crop:224,",
        "classification,crop:100",
        "background:#fff",
        "background:white",
    ],
)
def test_other_names_are_refused_in_one_line(name):
    line = rf"^unknown preprocess {re.escape(repr(name))}; allowed are \"native\"[^\n]*$"
    with pytest.raises(InputError, match=line):
        Preprocess.parse(name)


@pytest.mark.parametrize(
    ("text", "colour"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("1,20,255", (1, 20, 255))],
)
def test_a_background_by_name_or_by_numbers(text, colour):
    assert Preprocess.parse("crop:14").on(text) == Preprocess(crop=14, background=colour)


@pytest.mark.parametrize("text", ["", "red", "1,2", "1,2,256", "1,2,-3", "1,2,3,4", "1,2,x"])
def test_other_backgrounds_are_refused(text):
    with pytest.raises(InputError, match=r"^unknown background [^\n]*such as 255,255,255$"):
        Preprocess().on(text)


def test_no_background_leaves_the_steps_as_they_are():
    assert Preprocess.parse("crop:14").on(None) == Preprocess(crop=14)


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_resize_gives_the_size_whatever_the_aspect(tmp_path, colours):
    file = tmp_path / "image.png"
    Image.fromarray(colours).save(file)
    expected = Image.fromarray(colours).resize((28, 56), Image.Resampling.BICUBIC)
    assert np.array_equal(load_image(file, "resize:56x28"), np.asarray(expected))
    cropped = load_image(file, "resize:56x28,crop:28")
    assert np.array_equal(cropped, np.asarray(expected)[14:42])


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "transparent-colour"])
def test_a_background_shows_where_an_image_is_transparent(tmp_path, colours, kind):
    file = tmp_path / "image.png"
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 255
    image = Image.fromarray(np.dstack((colours, alpha)))
    if kind == "transparent-colour":
        flat = colours // 2
        flat[:, :30] = 255
        Image.fromarray(flat).save(file, transparency=(255, 255, 255))
        shown = flat
    elif kind == "P":
        palette = np.where(alpha > 0, 1, 0).astype(np.uint8)
        made = Image.fromarray(palette).convert("P")
        made.putpalette([200, 0, 0, 0, 0, 200])
        made.save(file, transparency=0)
        shown = np.where(alpha[..., None] > 0, [0, 0, 200], [200, 0, 0])
    else:
        image.convert(kind).save(file)
        shown = np.asarray(image.convert(kind).convert("RGB"))
    dropped = load_image(file)
    on_green = load_image(file, Preprocess(background=(0, 255, 0)))
    assert np.array_equal(dropped, shown)
    assert (on_green[:, :30] == (0, 255, 0)).all()
    assert np.array_equal(on_green[:, 30:], shown[:, 30:])


def test_half_transparent_pixels_are_mixed_before_they_are_scaled(tmp_path):
    file = tmp_path / "image.png"
    Image.new("RGBA", (28, 28), (255, 0, 0, 51)).save(file)
    mixed = load_image(file, Preprocess.parse("resize:14x14").on("white"))
    assert (mixed == (255, 204, 204)).all()


def test_an_opaque_image_is_the_same_on_every_background(tmp_path, colours):
    file = tmp_path / "image.png"
    Image.fromarray(colours).convert("RGBA").save(file)
    assert np.array_equal(load_image(file, Preprocess().on("white")), colours)
