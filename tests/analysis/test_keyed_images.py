import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from dinov2rt.analysis.keyed_images import load_keyed_image, split_key
from dinov2rt.errors import InputError


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (value, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image file, a tar and a Parquet shard, whose images differ in red."""
    (tmp_path / "a.png").write_bytes(encoded(1))
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, value in (("x/b.png", 2), ("x/c.png", 3)):
            info = tarfile.TarInfo(name)
            info.size = len(encoded(value))
            archive.addfile(info, io.BytesIO(encoded(value)))
    table = pyarrow.table({"photo": [encoded(4), encoded(5)]})
    pyarrow.parquet.write_table(table, tmp_path / "s.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "red"), [("a.png", 1), ("s.tar#x/c.png", 3), ("s.parquet#0", 4), ("s.parquet#1", 5)]
)
def test_an_image_is_found_by_its_key(folder: Path, key: str, red: int) -> None:
    image = load_keyed_image(f"{folder}/{key}", "photo")
    assert image.shape == (20, 30, 3)
    np.testing.assert_array_equal(image[..., 0], red)


def test_a_file_may_be_called_like_a_member_of_a_shard(folder: Path) -> None:
    (folder / "s.tar#x").mkdir()
    (folder / "s.tar#x" / "c.png").write_bytes(encoded(9))
    assert load_keyed_image(f"{folder}/s.tar#x/c.png")[0, 0, 0] == 9


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("gone.png", "gone.png cannot be read (No such file or directory)"),
        ("gone.tar#x.png", "gone.tar is not a whole, uncompressed tar archive (No such file"),
        ("s.tar#x/z.png", "s.tar has no image 'x/z.png' any more"),
        ("s.parquet#2", "s.parquet has no image in row 2 any more"),
        ("s.parquet#two", "s.parquet has no image in row two any more"),
    ],
)
def test_an_image_that_is_gone_is_one_line(folder: Path, key: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        load_keyed_image(f"{folder}/{key}", "photo")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("key", "shard", "name"),
    [
        ("cat#1/a.jpg", None, "cat#1/a.jpg"),
        ("d/s.tar#cat/a.jpg", Path("d/s.tar"), "cat/a.jpg"),
        ("d/S.TAR#a#b.jpg", Path("d/S.TAR"), "a#b.jpg"),
        ("s.parquet#12", Path("s.parquet"), "12"),
    ],
)
def test_a_key_is_a_path_or_a_shard_and_a_name(key: str, shard: Path | None, name: str) -> None:
    assert split_key(key) == (shard, name)
