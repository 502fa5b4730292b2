"""Photographs beside the colours of their patches, as pages of PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.signature import FloatArray
from dinov2rt.files import replacing
from dinov2rt.optional import require
from dinov2rt.runtime.images import check_pixels, resize, write_png

_FEW_IMAGES = 4
"""So many are drawn large, one below the other."""

_LARGE, _SMALL = 448, 224
_COLUMNS, _ROWS = 3, 5
_GAP, _LINE, _FONT_SIZE = 8, 20, 14

Photo = NDArray[np.uint8]


def draw_pca(images: Sequence[Photo], maps: Sequence[FloatArray], file: Path) -> list[Path]:
    """Write each photo [H, W, 3] with its map [h, w, 3] at its right, and return the pages.

    Up to four images are one page, 448 pixels high each. More are pages of 15 in three columns,
    224 pixels high each: `file`, then the same name with -2, -3 and so on. `maps` are in 0..1, as
    from `patch_pca`, and drawn without interpolation.

    Raises:
        InputError: a page would have more pixels than Pillow opens.
        Dinov2rtError: a page cannot be written.
        MissingDependencyError: Pillow is not installed.
    """
    few = len(images) <= _FEW_IMAGES
    columns, height, per_page = (1, _LARGE, _FEW_IMAGES) if few else (_COLUMNS, _SMALL, _PER_PAGE)
    pages = []
    for start in range(0, len(images), per_page):
        number = start // per_page + 1
        page = file if number == 1 else file.with_stem(f"{file.stem}-{number}")
        part = slice(start, start + per_page)
        cells = [
            _beside(image, colours, height)
            for image, colours in zip(images[part], maps[part], strict=True)
        ]
        _write(_grid(cells, columns), page)
        pages.append(page)
    return pages


def draw_panels(
    photo: Photo, panels: Sequence[tuple[str, FloatArray]], caption: Sequence[str], file: Path
) -> None:
    """Write a photo [H, W, 3] and maps of it [h, w, 3] side by side, with words below.

    Args:
        photo: as the patches cover it.
        panels: what stands under a map, and the map, in 0..1.
        caption: lines that say what one sees.
        file: the PNG.

    Raises:
        Dinov2rtError: the file cannot be written.
        MissingDependencyError: Pillow is not installed.
    """
    size = _drawn_size(photo, _LARGE)
    pictures = [("photo", resize(photo, size))]
    pictures += [(title, _enlarged(colours, size)) for title, colours in panels]
    width = len(pictures) * (size.width + _GAP) - _GAP
    canvas = np.full((size.height + (len(caption) + 2) * _LINE, width, 3), 255, np.uint8)
    for index, (_, picture) in enumerate(pictures):
        canvas[: size.height, index * (size.width + _GAP) :][:, : size.width] = picture
    image = require("PIL.Image", extra="image", purpose="drawing").fromarray(canvas)
    for index, (title, _) in enumerate(pictures):
        _text(image, title, (index * (size.width + _GAP), size.height + 4))
    for number, line in enumerate(caption):
        _text(image, line, (0, size.height + (number + 1) * _LINE + 8))
    _write(np.asarray(image), file)


_PER_PAGE = _COLUMNS * _ROWS


def _beside(image: Photo, colours: FloatArray, height: int) -> Photo:
    size = _drawn_size(image, height)
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    return np.concatenate([resize(image, size), gap, _enlarged(colours, size)], axis=1)


def _grid(cells: Sequence[Photo], columns: int) -> Photo:
    """`cells` of one height row by row, on white."""
    pitch_y = cells[0].shape[0] + _GAP
    pitch_x = max(cell.shape[1] for cell in cells) + 2 * _GAP
    rows, columns = -(-len(cells) // columns), min(columns, len(cells))
    size = ImageSize(rows * pitch_y - _GAP, columns * pitch_x - 2 * _GAP)
    check_pixels(size)
    page = np.full((size.height, size.width, 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        top, left = index // columns * pitch_y, index % columns * pitch_x
        page[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return page


def _drawn_size(image: Photo, height: int) -> ImageSize:
    sides = image.shape[:2]
    return ImageSize(height, max(1, round(height * sides[1] / sides[0])))


def _enlarged(colours: FloatArray, size: ImageSize) -> Photo:
    rows, cols = colours.shape[:2]
    nearest_row = np.arange(size.height) * rows // size.height
    nearest_col = np.arange(size.width) * cols // size.width
    pixels: Photo = np.rint(np.asarray(colours) * 255).astype(np.uint8)
    return pixels[np.ix_(nearest_row, nearest_col)]


def _text(image: Any, text: str, at: tuple[int, int]) -> None:
    draw = require("PIL.ImageDraw", extra="image", purpose="drawing").Draw(image)
    font = require("PIL.ImageFont", extra="image", purpose="drawing").load_default(_FONT_SIZE)
    draw.text(at, text, (0, 0, 0), font)


def _write(picture: Photo, file: Path) -> None:
    with replacing(file) as partial:
        write_png(picture, partial)
