"""Draws patch tokens as colours, to see at a glance whether features make sense.

The method is that of figure 1 of the DINOv2 paper (arXiv 2304.07193): the first principal
component over all patches separates objects from background, and the first three components over
the objects' patches become red, green and blue.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.bundle.signature import FloatArray, InputFormat
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Failure, Item
from dinov2rt.extraction.decoding import DecodedImage, decode
from dinov2rt.extraction.extract import ExtractOptions
from dinov2rt.files import replacing
from dinov2rt.foreign import shown
from dinov2rt.runtime.images import check_pixels, resize, write_png
from dinov2rt.runtime.inputs import group_images
from dinov2rt.runtime.model import Model

Float64Array = NDArray[np.float64]

_PERCENTILES = (2, 98)
_ROW_HEIGHT = 448
_GAP = 8


def patch_pca(patch_tokens: Sequence[FloatArray]) -> list[Float64Array]:
    """Colours [h, w, 3] in 0..1 for the patches [h, w, D] of each image, fitted over all together.

    The background is black. Otsu's threshold on the first component parts it from the
    foreground: unlike the mean, it does not move into the larger group when the two differ in
    size. Foreground is the side that fewer patches of the image borders lie on. Where fewer than
    three patches would be left, all are foreground; a component without spread is drawn as 0.5.

    Raises:
        InputError: there is no image, or a token is not finite.
    """
    if not patch_tokens:
        raise InputError("there are no patch tokens to draw; give at least one image")
    tokens = np.concatenate([image.reshape(-1, image.shape[-1]) for image in patch_tokens])
    tokens = tokens.astype(np.float64)
    if not np.isfinite(tokens).all():
        raise InputError("patch tokens hold NaN or infinity; check the bundle: dinov2rt verify")
    border = np.concatenate([_border(*image.shape[:2]).ravel() for image in patch_tokens])
    foreground = _foreground(tokens, border)
    colours = np.zeros((len(tokens), 3))
    colours[foreground] = _scaled(_principal_components(tokens[foreground], 3), _noise(tokens))
    ends = np.cumsum([image.shape[0] * image.shape[1] for image in patch_tokens])
    parts = np.split(colours, ends[:-1])
    return [
        part.reshape(*image.shape[:2], 3) for part, image in zip(parts, patch_tokens, strict=True)
    ]


def draw_pca(images: Sequence[NDArray[np.uint8]], maps: Sequence[FloatArray], file: Path) -> None:
    """Write a PNG with a row an image: at left the photo [H, W, 3], at right its map [h, w, 3].

    Rows are 448 pixels high. `maps` are in 0..1, as from `patch_pca`, and drawn without
    interpolation.

    Raises:
        InputError: the picture would have more pixels than Pillow opens.
        Dinov2rtError: the file cannot be written.
        MissingDependencyError: Pillow is not installed.
    """
    sizes = [_drawn_size(image) for image in images]
    pitch = _ROW_HEIGHT + _GAP
    height, width = pitch * len(sizes) - _GAP, 2 * max(size.width for size in sizes) + _GAP
    check_pixels(ImageSize(height, width))
    picture = np.full((height, width, 3), 255, np.uint8)
    for index, (image, colours, size) in enumerate(zip(images, maps, sizes, strict=True)):
        row = picture[pitch * index :][:_ROW_HEIGHT]
        row[:, : size.width] = resize(image, size)
        row[:, size.width + _GAP :][:, : size.width] = _enlarged(colours, size)
    with replacing(file) as partial:
        write_png(picture, partial)


def draw_items(
    model: Model,
    items: Iterable[Item | Failure],
    options: ExtractOptions,
    file: Path,
    *,
    most: int,
    refused: Callable[[Failure], None],
) -> int:
    """Draw the patch tokens of the first `most` images that can be used.

    Args:
        model: computes the tokens, even if they were extracted before.
        items: the images.
        options: how images are read and snapped.
        file: the PNG; it is not written if no image can be used.
        most: the largest number of images in the picture.
        refused: called with each image that cannot be used.

    Returns:
        How many images the picture shows.

    Raises:
        InputError: see `patch_pca` and `draw_pca`.
        Dinov2rtError: the file cannot be written.
    """
    seen: list[NDArray[np.uint8]] = []
    tokens: list[FloatArray] = []
    for image, patch_tokens in itertools.islice(_tokens(model, items, options, refused), most):
        seen.append(seen_by_model(image, options.snap))
        tokens.append(patch_tokens)
    if seen:
        draw_pca(seen, patch_pca(tokens), file)
    return len(seen)


def seen_by_model(image: NDArray[np.uint8], snap: Snap) -> NDArray[np.uint8]:
    """`image` [H, W, 3] as its patch grid covers it, [14·h, 14·w, 3]; padding is black."""
    size = ImageSize(*image.shape[:2]).snapped(snap)
    (group,) = group_images([image], InputFormat.PIXELS, snap, max_pixels=size.pixels)
    pad = group.padding
    seen: NDArray[np.uint8] = np.pad(
        group.images[0], ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0))
    )
    return seen


def _tokens(
    model: Model,
    items: Iterable[Item | Failure],
    options: ExtractOptions,
    refused: Callable[[Failure], None],
) -> Iterator[tuple[NDArray[np.uint8], FloatArray]]:
    """The pixels [H, W, 3] of each image that can be used, with its patch tokens [h, w, D]."""
    decoding = options.decoding(model.options.max_pixels)
    for item in items:
        image = decode(item, decoding)
        if isinstance(image, DecodedImage):
            try:
                features = model(image.pixels, outputs=["patch_tokens"], snap=options.snap)
                yield image.pixels, features.patch_tokens[0]
                continue
            except InputError as error:
                image = Failure(image.key, f"{shown(image.key)}: {error}")
        refused(image)


def _border(rows: int, cols: int) -> NDArray[np.bool_]:
    border = np.ones((rows, cols), np.bool_)
    border[1:-1, 1:-1] = False
    return border


def _noise(tokens: Float64Array) -> float:
    """The spread along any axis that rounding to float32 causes in tokens of this magnitude."""
    width = tokens.shape[-1]
    return float(np.finfo(np.float32).eps * np.abs(tokens).max() * np.sqrt(width))


def _foreground(tokens: Float64Array, border: NDArray[np.bool_]) -> NDArray[np.bool_]:
    scores = _principal_components(tokens, 1)[:, 0]
    if np.ptp(scores) <= _noise(tokens):
        return np.ones(len(scores), np.bool_)
    above = scores > _otsu_threshold(scores)
    foreground = above if above[border].mean() <= 0.5 else ~above
    return foreground if foreground.sum() >= 3 else np.ones_like(foreground)


def _principal_components(tokens: Float64Array, count: int) -> Float64Array:
    """Scores [N, count] of `tokens` [N, D] along the directions of largest variance."""
    centred = tokens - tokens.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :count]
    # An eigenvector's sign is arbitrary; the largest loading is made positive to fix it.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    scores: Float64Array = centred @ (axes * np.sign(largest))
    return scores


def _otsu_threshold(scores: Float64Array) -> float:
    """The threshold that maximizes the variance between the two groups of scores.

    Source: Otsu, "A threshold selection method from gray-level histograms", 1979, eq. 18, applied
    to the sorted scores instead of a histogram.
    """
    ordered = np.sort(scores - scores.mean())
    sums = ordered.cumsum()[:-1]
    counts = np.arange(1, len(ordered))
    between = sums**2 / (counts * (len(ordered) - counts))
    split = int(between.argmax())
    return float(ordered[split : split + 2].mean() + scores.mean())


def _scaled(components: Float64Array, noise: float) -> Float64Array:
    low, high = np.percentile(components, _PERCENTILES, axis=0)
    flat = high - low <= noise
    scaled = (components - low) / np.where(flat, 1.0, high - low)
    return np.where(flat, 0.5, scaled).clip(0.0, 1.0)


def _drawn_size(image: NDArray[np.uint8]) -> ImageSize:
    height, width = image.shape[:2]
    return ImageSize(_ROW_HEIGHT, max(1, round(_ROW_HEIGHT * width / height)))


def _enlarged(colours: FloatArray, size: ImageSize) -> NDArray[np.uint8]:
    rows, cols = colours.shape[:2]
    nearest_row = np.arange(size.height) * rows // size.height
    nearest_col = np.arange(size.width) * cols // size.width
    pixels: NDArray[np.uint8] = np.rint(np.asarray(colours) * 255).astype(np.uint8)
    return pixels[np.ix_(nearest_row, nearest_col)]
