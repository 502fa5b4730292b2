"""Draws queries and their nearest neighbours side by side, as one PNG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dinov2rt.analysis.keyed_images import load_keyed_image
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.files import replacing
from dinov2rt.foreign import shown
from dinov2rt.optional import require
from dinov2rt.runtime.images import check_pixels, resize, write_png

TILE = 224
_GAP, _LINE, _LINES, _FONT_SIZE = 8, 16, 3, 12
_CELL = ImageSize(TILE + _LINES * _LINE + _GAP, TILE + _GAP)
_MOST_WRITTEN = 1000
_GREY, _WHITE, _BLACK = (200, 200, 200), (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Tile:
    """One image, by its file, or `SHARD#NAME`, and the lines under it: its caption and its key."""

    file: str
    caption: str
    key: str


def draw_neighbours(rows: Sequence[Sequence[Tile]], file: Path, image_column: str = "image") -> int:
    """Write a PNG with a row of tiles for each query, and return how many could not be shown.

    A tile is 224 pixels wide and high. An image that cannot be opened becomes a grey tile with the
    reason.

    Raises:
        InputError: the picture would have more pixels than Pillow opens.
        Dinov2rtError: the file cannot be written.
        MissingDependencyError: Pillow is not installed.
    """
    size = ImageSize(_CELL.height * len(rows), _CELL.width * max(map(len, rows)))
    check_pixels(size)
    canvas = _pillow("Image").new("RGB", (size.width, size.height), _WHITE)
    missing = 0
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            corner = (column * _CELL.width, row * _CELL.height)
            missing += not _draw_tile(canvas, tile, corner, image_column)
    with replacing(file) as partial:
        write_png(np.asarray(canvas), partial)
    return missing


def _draw_tile(canvas: Any, tile: Tile, corner: tuple[int, int], image_column: str) -> bool:
    """Draw one tile; return whether its image could be opened."""
    left, top = corner
    try:
        _paste(canvas, load_keyed_image(tile.file, image_column), corner)
        reason = None
    except InputError as error:
        reason = str(error)
        canvas.paste(_GREY, (left, top, left + TILE, top + TILE))
        _write(canvas, reason, (left + _GAP, top + _GAP), lines=TILE // _LINE - 1)
    _write(canvas, tile.caption, (left, top + TILE), lines=1)
    _write(canvas, tile.key, (left, top + TILE + _LINE), lines=_LINES - 1)
    return reason is None


def _paste(canvas: Any, image: Any, corner: tuple[int, int]) -> None:
    """Draw `image` scaled to fit the tile, centred."""
    height, width = image.shape[:2]
    scale = TILE / max(height, width)
    size = ImageSize(max(1, round(height * scale)), max(1, round(width * scale)))
    left, top = corner[0] + (TILE - size.width) // 2, corner[1] + (TILE - size.height) // 2
    canvas.paste(_pillow("Image").fromarray(resize(image, size)), (left, top))


def _write(canvas: Any, text: str, at: tuple[int, int], *, lines: int) -> None:
    """Write `text` in at most `lines` lines of a tile's width; a long text loses its beginning."""
    font = _pillow("ImageFont").load_default(_FONT_SIZE)
    draw = _pillow("ImageDraw").Draw(canvas)
    width = TILE - 2 * _GAP
    broken = _wrapped(text, lambda part: bool(draw.textlength(part, font) <= width))
    if len(broken) > lines:
        broken = [f"…{broken[-lines][1:]}", *broken[len(broken) - lines + 1 :]]
    for number, part in enumerate(broken):
        draw.text((at[0], at[1] + number * _LINE), part, _BLACK, font)


def _wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Break `text` into lines at any character, because paths have no spaces."""
    rest = shown(" ".join(text.split()), _MOST_WRITTEN)
    parts: list[str] = []
    while rest:
        length = next((size for size in range(len(rest), 1, -1) if fits(rest[:size])), 1)
        parts.append(rest[:length])
        rest = rest[length:]
    return parts


def _pillow(module: str) -> ModuleType:
    return require(f"PIL.{module}", extra="image", purpose="drawing neighbours")
