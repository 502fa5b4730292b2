"""Folders take every suffix of every format that is opened, and tell what they leave out."""

import io
from collections import Counter

import pytest
from PIL import Image, features

from dinov2rt.errors import InputError
from dinov2rt.runtime.image_search import (
    IMAGE_SUFFIXES,
    SUFFIXES,
    describe_left_out,
    find_images,
    search_images,
)
from dinov2rt.runtime.images import FORMATS, load_image

# ftyp box of a HEIC file, as phones write them.
HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(40)


def test_every_suffix_of_pillow_for_these_formats_is_searched_for():
    Image.init()
    theirs = {
        suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS
    } - {".dib"}
    assert theirs <= IMAGE_SUFFIXES
    assert set(SUFFIXES) == set(FORMATS)


@pytest.mark.parametrize(
    "suffix", [".jfif", ".jpe", ".JPG", ".jp2", ".j2k", ".tga", ".pbm", ".mpo"]
)
def test_pictures_of_unusual_suffixes_are_found_and_opened(tmp_path, suffix):
    formats = {".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".jp2": "JPEG2000"}
    formats |= {".j2k": "JPEG2000", ".tga": "TGA", ".pbm": "PPM", ".mpo": "JPEG"}
    file = tmp_path / f"picture{suffix}"
    Image.new("L" if suffix == ".tga" else "RGB", (28, 14)).save(file, format=formats[suffix])
    assert find_images([tmp_path]) == [file]
    assert load_image(file).shape == (14, 28, 3)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_an_avif_is_found_and_opened(tmp_path):
    Image.new("RGB", (28, 14)).save(tmp_path / "picture.avif")
    assert load_image(find_images([tmp_path])[0]).shape == (14, 28, 3)


def test_what_a_folder_leaves_out_is_counted_by_suffix(tmp_path):
    (tmp_path / "below").mkdir()
    names = ["a.txt", "b.TXT", "below/c.txt", "below/raw.CR2", "noext", ".hidden", "d.png"]
    for name in names:
        (tmp_path / name).touch()
    found = search_images([tmp_path])
    assert [file.name for file in found.files] == ["d.png"]
    assert found.left_out == {".txt": 3, ".cr2": 1, "": 1}
    assert describe_left_out(found.left_out) == ".txt (3), .cr2 (1), no suffix (1)"


def test_what_is_left_out_is_cut_and_escaped():
    left_out = Counter({f".s{index}": 20 - index for index in range(10)})
    assert describe_left_out(left_out).endswith(".s7 (13) and 2 more")
    assert describe_left_out(Counter({".\x1b[2J": 1})) == ".\\x1b[2J (1)"


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.psd").touch()
    with pytest.raises(InputError, match=r" holds no image; it holds \.psd \(1\); looked for "):
        find_images([tmp_path])


def test_a_url_is_not_taken_for_a_path():
    with pytest.raises(InputError, match=r"^https://host/a\.jpg is a URL; copy its images here "):
        find_images(["https://host/a.jpg"])


@pytest.mark.parametrize("where", ["file", "memory"])
def test_heic_without_its_package_is_refused_with_the_way_out(tmp_path, where):
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("pillow-heif is installed; the test below reads a HEIC")
    file = tmp_path / "phone.HEIC"
    file.write_bytes(HEIC)
    assert find_images([tmp_path]) == [file]
    with pytest.raises(InputError) as caught:
        load_image(file if where == "file" else io.BytesIO(HEIC))
    assert str(caught.value).endswith(
        "cannot be used: HEIC needs the package pillow-heif; pip install 'dinov2rt[heif]', or "
        "convert it to PNG or JPEG"
    )


def test_heic_with_its_package_is_opened(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (56, 28), (200, 30, 30))).save(tmp_path / "a.heic")
    (file,) = find_images([tmp_path])
    pixels = load_image(file)
    assert pixels.shape == (28, 56, 3)
    assert abs(pixels.astype(int) - (200, 30, 30)).max() < 8
