import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.runtime.image_search import find_images
from dinov2rt.runtime.images import load_image, resize, write_png
from dinov2rt.runtime.preprocess import Preprocess

PHOTOS = Path(__file__).parents[2] / "export/photos"
BICUBIC = PIL.Image.Resampling.BICUBIC


def gradient(height: int, width: int) -> np.ndarray:
    """An image in which no two pixels of a 256x256 area are alike."""
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows % 256, cols % 256, (rows + cols) % 256], axis=-1).astype(np.uint8)


def save(folder: Path, pixels: np.ndarray, name: str = "image.png", **options: object) -> Path:
    PIL.Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


# Preprocessing


def test_native_keeps_the_pixels(tmp_path: Path) -> None:
    pixels = gradient(30, 45)
    loaded = load_image(save(tmp_path, pixels))
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, pixels)


@pytest.mark.parametrize(
    ("photo", "scaled", "left", "top"),
    [  # width x height that Resize(256) gives, and the offsets of CenterCrop(224)
        ("coffee.jpg", (384, 256), 80, 16),  # 600x400
        ("chelsea.jpg", (384, 256), 80, 16),  # 451x300: 384.85 is cut off, not rounded
        ("astronaut.jpg", (256, 256), 16, 16),
    ],
)
def test_classification_is_resize_256_and_center_crop_224(
    photo: str, scaled: tuple[int, int], left: int, top: int
) -> None:
    image = PIL.Image.open(PHOTOS / photo).convert("RGB").resize(scaled, BICUBIC)
    expected = np.asarray(image)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(load_image(PHOTOS / photo, "classification"), expected)


@pytest.mark.parametrize(("long_side", "offset"), [(257, 16), (259, 18)])
@pytest.mark.parametrize("upright", [False, True])
def test_center_crop_rounds_half_to_even(
    tmp_path: Path, long_side: int, offset: int, upright: bool
) -> None:
    pixels = gradient(256, long_side)
    expected = pixels[16:240, offset : offset + 224]
    if upright:
        pixels, expected = pixels.swapaxes(0, 1), expected.swapaxes(0, 1)
    loaded = load_image(save(tmp_path, np.ascontiguousarray(pixels)), "classification")
    np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize(("size", "expected"), [((20, 31), (37, 57)), ((31, 20), (57, 37))])
def test_short_side_keeps_the_aspect(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert load_image(save(tmp_path, gradient(*size)), "short-side:37").shape == (*expected, 3)


@pytest.mark.parametrize(
    "name", ["", "Native", "short-side", "short-side:", "short-side:0", "short-side:-5", "518"]
)
def test_unknown_preprocess_lists_the_forms(name: str) -> None:
    with pytest.raises(InputError, match='allowed are "native", "classification", or') as caught:
        Preprocess.parse(name)
    assert repr(name) in str(caught.value)


def test_scaling_beyond_the_pixel_limit_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, gradient(1, 60000))
    with pytest.raises(InputError, match=r"image\.png cannot be used: 518x31080000 is 16099440000"):
        load_image(path, "short-side:518")


# Conversions


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((40, 20, 3), np.uint8)
    upright[:20] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise to view
    path = save(tmp_path, np.rot90(upright), f"photo.{suffix}", exif=exif)
    loaded = load_image(path)
    assert loaded.shape == (40, 20, 3)
    assert loaded[:15].min() > 200
    assert loaded[25:].max() < 50


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = gradient(20, 30)[..., 0]
    np.testing.assert_array_equal(load_image(save(tmp_path, grey)), np.dstack([grey] * 3))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    colour, alpha = gradient(20, 30), gradient(20, 30)[..., 1]
    np.testing.assert_array_equal(load_image(save(tmp_path, np.dstack([colour, alpha]))), colour)


def test_palette_with_transparent_entries(tmp_path: Path) -> None:
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    loaded = load_image(tmp_path / "palette.png")
    np.testing.assert_array_equal(loaded, [[[10, 20, 30], [200, 100, 50]]])


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_grey_of_16_bits_is_scaled_and_rounded(tmp_path: Path, name: str) -> None:
    grey = np.array([[0, 128, 129, 256, 32768, 65407, 65535]], np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 7 1 65535\n" + grey.astype(">u2").tobytes())
    else:
        save(tmp_path, grey, name)
    loaded = load_image(tmp_path / name)
    np.testing.assert_array_equal(loaded[..., 0], np.rint(grey * (255 / 65535)))
    np.testing.assert_array_equal(loaded[0, :, 2], [0, 0, 1, 1, 128, 255, 255])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_32_bits_is_refused(tmp_path: Path, dtype: type) -> None:
    path = save(tmp_path, np.full((20, 20), 7, dtype), "depth.tif")
    with pytest.raises(InputError, match=r"depth\.tif cannot be used: grey values of 32 bits"):
        load_image(path)


def test_cmyk(tmp_path: Path) -> None:
    PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "print.tif")[0, 0], [255, 0, 0])


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(tmp_path / "moving.gif")[0, 0], [255, 0, 0])


# Files that cannot be used


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png cannot be read \(No such file"):
        load_image(tmp_path / "none.png")


def test_folder(tmp_path: Path) -> None:
    reason = r"cannot be read \(it is a folder, not a regular file\); give an image file"
    with pytest.raises(InputError, match=reason):
        load_image(tmp_path)


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"notes\.jpg is not an image of a format that is opened"):
        load_image(tmp_path / "notes.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_every_truncation_is_one_line(tmp_path: Path, suffix: str) -> None:
    whole = save(tmp_path, gradient(60, 60), f"whole.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for length in range(0, len(whole) // 2, max(1, len(whole) // 40)):
        cut.write_bytes(whole[:length])
        with pytest.raises(
            InputError, match=rf"cut\.{suffix} (is not|cannot be decoded)"
        ) as caught:
            load_image(cut)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "limit"), [(10_000, 89_478_485), (20_000, 178_956_970)])
def test_too_many_pixels(tmp_path: Path, width: int, limit: int) -> None:
    PIL.Image.new("1", (width, 10_000)).save(tmp_path / "huge.png")
    expected = rf"huge\.png is too large: .*{width * 10_000} pixels.* {limit} pixels.*MAX_IMAGE_PIX"
    with pytest.raises(InputError, match=expected):
        load_image(tmp_path / "huge.png")


# Writing and resizing


def test_resize_is_antialiased_bicubic() -> None:
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    resized = resize(stripes, ImageSize(28, 14))
    assert resized.shape == (28, 14, 3)
    assert np.abs(resized.astype(int) - 128).max() < 16  # grey; without antialiasing, stripes


def test_write_png_round_trip(tmp_path: Path) -> None:
    write_png(gradient(20, 30), tmp_path / "picture.partial")
    np.testing.assert_array_equal(load_image(tmp_path / "picture.partial"), gradient(20, 30))


def test_pillow_is_imported_only_when_used() -> None:
    script = "import sys, dinov2rt.runtime.images; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# Finding


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *paths: str) -> list[str]:
    return [str(path.relative_to(root)) for path in find_images([root / path for path in paths])]


def test_folders_are_searched_in_sorted_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/10.png", "a/z.webp", "c.Tiff", "a/notes.txt", "b/.jpg")
    assert found(tmp_path, ".") == ["a/z.webp", "b/10.png", "b/2.JPG", "c.Tiff"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/a.jpg", "._b.jpg", "c.jpg")
    assert found(tmp_path, ".") == ["c.jpg"]


def test_files_are_taken_as_given_in_order_and_once(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "raw.data", "a/b.jpg")
    assert found(tmp_path, "z.jpg", "raw.data", "a", ".", "z.jpg") == [
        "z.jpg",
        "raw.data",
        "a/b.jpg",
    ]
    assert found(tmp_path, "a", "a") == ["a/b.jpg"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "far/photo.jpg", "near/own.jpg")
    (tmp_path / "near/loop").symlink_to(tmp_path / "near")
    (tmp_path / "near/to-far").symlink_to(tmp_path / "far")
    (tmp_path / "near/other-name.jpg").symlink_to(tmp_path / "near/own.jpg")
    assert found(tmp_path, "near") == [
        "near/other-name.jpg",
        "near/own.jpg",
        "near/to-far/photo.jpg",
    ]


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere cannot be read \(No such file"):
        find_images([tmp_path / "nowhere"])


def test_folder_without_images(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".hidden.jpg")
    message = r"holds no image; it holds \.txt \(1\); looked for \.apng, .*\.webp"
    with pytest.raises(InputError, match=message):
        find_images([tmp_path])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with pytest.raises(InputError, match=r"locked cannot be read \(Permission denied\)"):
        find_images([tmp_path])
