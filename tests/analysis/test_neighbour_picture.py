from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2rt.analysis.neighbour_picture import TILE, Tile, draw_neighbours
from dinov2rt.errors import InputError

GAP, TEXT = 8, 48


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    Image.new("RGB", (300, 150), (255, 0, 0)).save(file)
    return file


def drawn(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_images_stand_side_by_side_with_words_under_them(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    rows = [
        [Tile(str(photo), "query", "photo"), Tile(str(photo), "", "photo")],
        [Tile(str(photo), "query", "photo")],
    ]
    assert draw_neighbours(rows, out) == 0
    picture = drawn(out)
    assert picture.shape == (2 * (TILE + TEXT + GAP), 2 * (TILE + GAP), 3)
    tile = picture[:TILE, :TILE]
    # Twice as wide as high: it fills the width, and the middle half of the height.
    red = (tile == (255, 0, 0)).all(axis=2)
    assert red[TILE // 4 : 3 * TILE // 4].all()
    assert not red[: TILE // 4 - 1].any()
    caption = picture[TILE : TILE + 16]
    assert (caption[:, :TILE] < 128).any()
    assert (caption[:, TILE + GAP :] == 255).all()


def test_an_image_that_is_gone_is_grey_and_says_why(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    gone = tmp_path / "gone.png"
    assert (
        draw_neighbours([[Tile(str(photo), "query", "photo"), Tile(str(gone), "1", "gone")]], out)
        == 1
    )
    tile = drawn(out)[:TILE, TILE + GAP :][:, :TILE]
    assert (tile[-20:] == 200).all()
    assert (tile[:100] < 100).any()


def test_a_long_key_stays_under_its_own_tile(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    key = tmp_path / f"{'w' * 200}.png"
    photo.rename(key)
    draw_neighbours([[Tile(str(key), "query", str(key))]], out)
    picture = drawn(out)
    assert picture.shape[0] == TILE + TEXT + GAP
    assert (picture[:, TILE:] == 255).all()
    assert (picture[TILE + TEXT :] == 255).all()


def test_a_picture_beyond_pillows_limit_is_refused(photo: Path, tmp_path: Path) -> None:
    rows = [[Tile(str(photo), "", "photo")] * 3000] * 3
    with pytest.raises(InputError, match="more than the 89478485 that Pillow opens"):
        draw_neighbours(rows, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
