"""Draws predictions: depth in colours, segments over the photo, classes beside it, attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.tasks.bilinear import resize_bilinear
from dinov2rt.foreign import shown
from dinov2rt.optional import require
from dinov2rt.runtime.images import resize
from dinov2rt.runtime.predictions import (
    Classification,
    Depth,
    Prediction,
    RankedClass,
    Segmentation,
)

Picture = NDArray[np.uint8]

_WHITE, _BLACK, _BAR = (255, 255, 255), (0, 0, 0), (69, 117, 180)
_LINE, _MARGIN, _SIDE, _FONT = 18, 8, 260, 12
_MOST_CLASSES, _MOST_WRITTEN = 20, 60
_OPACITY = 0.55
_LEAST_HEIGHT = 224
_STRONG = 0.98

# Viridis (Smith and van der Walt, CC0) at nine even steps; straight lines between them.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
        (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
    ],
    np.float64,
)  # fmt: skip


def colour_map(values: NDArray[np.floating[Any]]) -> Picture:
    """Values in 0..1 as colours uint8 [..., 3]; dark blue is 0, yellow is 1."""
    at = np.clip(values, 0, 1) * (len(_VIRIDIS) - 1)
    low = np.minimum(at.astype(int), len(_VIRIDIS) - 2)
    share = (at - low)[..., None]
    mixed = _VIRIDIS[low] * (1 - share) + _VIRIDIS[low + 1] * share
    return np.asarray(np.rint(mixed), np.uint8)


def draw_prediction(photo: Picture, prediction: Prediction) -> Picture:
    """A picture of one head's prediction for the photo [H, W, 3]."""
    if isinstance(prediction, Depth):
        return draw_depth(photo, prediction)
    if isinstance(prediction, Segmentation):
        return draw_segments(photo, prediction)
    return draw_classes(photo, prediction)


def draw_depth(photo: Picture, depth: Depth) -> Picture:
    """The photo, its depth in colours, and the colour scale in metres."""
    metres = depth.metres[0]
    nearest, farthest = float(metres.min()), float(metres.max())
    spread = max(farthest - nearest, 1e-9)
    colours = colour_map((metres - nearest) / spread)
    height = max(photo.shape[0], _LEAST_HEIGHT)
    panel = _panel(height, 90)
    bar = colour_map(np.linspace(1, 0, height - 2 * _LINE))[:, None].repeat(20, axis=1)
    panel.paste(_image(bar), (_MARGIN, _LINE))
    pen = _pen(panel)
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = round(_LINE + (1 - share) * (height - 2 * _LINE)) - _FONT // 2
        _text(pen, (_MARGIN + 26, y), f"{nearest + share * spread:.2f} m")
    return _beside([_fitted(photo, height), _fitted(colours, height), np.asarray(panel)])


def draw_segments(photo: Picture, segments: Segmentation) -> Picture:
    """Segments over the photo, and a legend of the largest classes with their shares."""
    classes = segments.classes[0]
    seen = photo[: classes.shape[0], : classes.shape[1]]
    mixed = (1 - _OPACITY) * seen + _OPACITY * segments.palette[classes]
    index, count = np.unique(classes, return_counts=True)
    order = np.argsort(-count, kind="stable")[:_MOST_CLASSES]
    height = max(seen.shape[0], _LEAST_HEIGHT, _LINE * len(order) + 2 * _MARGIN)
    panel = _panel(height, _SIDE)
    pen = _pen(panel)
    for line, at in enumerate(order):
        y = _MARGIN + line * _LINE
        colour = tuple(int(each) for each in segments.palette[index[at]])
        pen.rectangle((_MARGIN, y, _MARGIN + 12, y + 12), fill=colour, outline=_BLACK)
        name = segments.names[index[at]]
        _text(
            pen, (_MARGIN + 20, y), f"{count[at] / classes.size:6.1%}  {shown(name, _MOST_WRITTEN)}"
        )
    return _beside([_fitted(np.rint(mixed).astype(np.uint8), height), np.asarray(panel)])


def draw_classes(photo: Picture, classification: Classification) -> Picture:
    """The photo, and beside it its five most probable classes as bars."""
    (best,) = classification.top(min(5, classification.logits.shape[1]))
    height = max(photo.shape[0], _LEAST_HEIGHT)
    panel = _panel(height, _SIDE)
    pen = _pen(panel)
    for line, candidate in enumerate(best):
        _draw_bar(pen, _MARGIN + line * 2 * _LINE, candidate)
    return _beside([_fitted(photo, height), np.asarray(panel)])


def draw_attention(photo: Picture, attention: NDArray[np.float32]) -> Picture:
    """The photo, and for each attention head, the CLS token's attention over a grey photo.

    Args:
        photo: [H, W, 3].
        attention: [heads, h, w]; each map is scaled by its own largest value.
    """
    rows, columns = attention.shape[1:]
    patch = max(1, photo.shape[0] // rows)  # as many pixels as the model saw, but for the rest
    size = ImageSize(patch * rows, patch * columns)
    seen = resize(photo, size) if photo.shape[:2] != (size.height, size.width) else photo
    grey = seen.mean(axis=2, keepdims=True) * 0.35
    tiles = [seen]
    for each in attention:
        strength = resize_bilinear(each / max(float(each.max()), 1e-12), (size.height, size.width))
        heat = colour_map(strength) * strength[..., None]
        tiles.append(np.clip(grey + heat, 0, 255).astype(np.uint8))
    return _grid(tiles, per_row=min(7, len(tiles)))


def draw_overview(
    photo: Picture,
    colours: NDArray[np.floating[Any]],
    attention: NDArray[np.float32],
    depth: Depth,
    caption: str,
) -> Picture:
    """The features, the attention, the photo itself, and its depth with a scale, side by side.

    Args:
        photo: [H, W, 3].
        colours: colours of the patches, [h, w, 3] in 0..1, see `patch_pca`.
        attention: [heads, h, w]; its mean over the heads is drawn. The two percent of patches with
            the most attention have the last colour: single patches would leave the rest dark.
        depth: depth of the photo, [1, H, W].
        caption: a line above them.
    """
    height, width = photo.shape[:2]
    rows = np.arange(height) * colours.shape[0] // height
    columns = np.arange(width) * colours.shape[1] // width
    features = np.rint(255 * colours[rows][:, columns]).astype(np.uint8)
    mean = attention.mean(axis=0)
    strong = float(np.quantile(mean, _STRONG))
    strength = resize_bilinear(np.minimum(mean / max(strong, 1e-12), 1), (height, width))
    heat = photo.mean(axis=2, keepdims=True) * 0.35 + colour_map(strength) * strength[..., None]
    attended = np.clip(heat, 0, 255).astype(np.uint8)
    least = max(height, _LEAST_HEIGHT)
    parts = [_fitted(features, least), _fitted(attended, least), draw_depth(photo, depth)]
    return _below(caption, _beside(parts))


def _below(caption: str, picture: Picture) -> Picture:
    line = _panel(_LINE + _MARGIN, picture.shape[1])
    _text(_pen(line), (_MARGIN, _MARGIN // 2), caption)
    return np.concatenate([np.asarray(line), picture])


def _draw_bar(pen: Any, y: int, candidate: RankedClass) -> None:
    _text(
        pen, (_MARGIN, y), f"{candidate.probability:6.1%}  {shown(candidate.name, _MOST_WRITTEN)}"
    )
    width = round(candidate.probability * (_SIDE - 2 * _MARGIN))
    pen.rectangle((_MARGIN, y + 16, _MARGIN + max(1, width), y + 24), fill=_BAR)


def _grid(tiles: Sequence[Picture], per_row: int) -> Picture:
    blank = np.full_like(tiles[0], 255)
    rows = [list(tiles[at : at + per_row]) for at in range(0, len(tiles), per_row)]
    rows[-1] += [blank] * (per_row - len(rows[-1]))
    gap = np.full((_MARGIN, 1, 3), 255, np.uint8)
    lines = [_beside(row) for row in rows]
    parts: list[Picture] = []
    for line in lines:
        parts += [line, gap.repeat(line.shape[1], axis=1)]
    return np.concatenate(parts[:-1])


def _beside(parts: Sequence[Picture]) -> Picture:
    height = parts[0].shape[0]
    gap = np.full((height, _MARGIN, 3), 255, np.uint8)
    joined: list[Picture] = []
    for part in parts:
        joined += [part, gap]
    return np.concatenate(joined[:-1], axis=1)


def _fitted(image: Picture, height: int) -> Picture:
    """`image` with white below it, up to `height`."""
    lacking = height - image.shape[0]
    return np.pad(image, ((0, lacking), (0, 0), (0, 0)), constant_values=255) if lacking else image


def _panel(height: int, width: int) -> Any:
    return _pillow("Image").new("RGB", (width, height), _WHITE)


def _pen(panel: Any) -> Any:
    return _pillow("ImageDraw").Draw(panel)


def _text(pen: Any, place: tuple[int, int], text: str) -> None:
    pen.text(place, text, fill=_BLACK, font=_pillow("ImageFont").load_default(_FONT))


def _image(pixels: Picture) -> Any:
    return _pillow("Image").fromarray(pixels)


def _pillow(module: str) -> Any:
    return require(f"PIL.{module}", extra="image", purpose="drawing answers")
