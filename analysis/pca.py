"""Draws patch tokens as colours, to see at a glance whether features make sense.

The method is from figure 1 of the DINOv2 paper (arXiv 2304.07193): the first principal
component over all patches separates objects from background, and the first three components over
the objects' patches become red, green and blue.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.analysis.pca_picture import draw_panels, draw_pca
from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.bundle.signature import FloatArray, InputFormat
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Failure, Item
from dinov2rt.extraction.decoding import DecodedImage, decode
from dinov2rt.extraction.extract import ExtractOptions
from dinov2rt.foreign import shown
from dinov2rt.runtime.inputs import group_images
from dinov2rt.runtime.model import Model

Float64Array = NDArray[np.float64]

_PERCENTILES = (2, 98)
_CAPTION = (
    "Each square is one patch of {side}x{side} pixels. Red, green and blue are the first three "
    "principal components of the patch tokens: patches of one colour are similar for the model.",
    "Right: the first component separates foreground from background; the colours are fitted to "
    "the foreground only. Synthetic weights see colour and texture, not objects.",
)


def patch_pca(patch_tokens: Sequence[FloatArray], *, whole: bool = False) -> list[Float64Array]:
    """Colours [h, w, 3] in 0..1 for the patches [h, w, D] of each image, from one PCA over all.

    With `whole`, every patch has a colour. Otherwise the background is black. Otsu's threshold on
    the first component separates it from the foreground; unlike the mean, the threshold does not
    shift into the larger of two groups. The foreground is the side with fewer patches of the image
    borders. If it has fewer than three patches, all patches are foreground. A component without
    spread is drawn as 0.5.

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
    foreground = np.ones(len(tokens), np.bool_) if whole else _foreground(tokens, border)
    colours = np.zeros((len(tokens), 3))
    colours[foreground] = _scaled(_principal_components(tokens[foreground], 3), _noise(tokens))
    ends = np.cumsum([image.shape[0] * image.shape[1] for image in patch_tokens])
    parts = np.split(colours, ends[:-1])
    return [
        part.reshape(*image.shape[:2], 3) for part, image in zip(parts, patch_tokens, strict=True)
    ]


def draw_items(
    model: Model,
    items: Iterable[Item | Failure],
    options: ExtractOptions,
    file: Path,
    *,
    most: int,
    refused: Callable[[Failure], None],
) -> tuple[int, list[Path]]:
    """Draw the patch tokens of the first `most` images that can be used.

    Args:
        model: computes the tokens, even if they were extracted before.
        items: the images.
        options: how images are read and snapped.
        file: the PNG; it is not written if no image can be used.
        most: the largest number of images in the picture.
        refused: called with each image that cannot be used.

    Returns:
        The number of images that are drawn, and the pages; see `draw_pca`.

    Raises:
        InputError: see `patch_pca` and `draw_pca`.
        Dinov2rtError: the file cannot be written.
    """
    seen: list[NDArray[np.uint8]] = []
    tokens: list[FloatArray] = []
    for image, patch_tokens in itertools.islice(_tokens(model, items, options, refused), most):
        seen.append(seen_by_model(image, options.snap, model.architecture.patch_size))
        tokens.append(patch_tokens)
    pages = draw_pca(seen, patch_pca(tokens), file) if seen else []
    return len(seen), pages


def draw_demo(photo: NDArray[np.uint8], patch_tokens: FloatArray, file: Path) -> None:
    """Draw one photo [P·h, P·w, 3] and its patches [h, w, D]: all of them, and the foreground.

    Raises:
        Dinov2rtError: the file cannot be written.
        MissingDependencyError: Pillow is not installed.
    """
    panels = [
        ("all patches", patch_pca([patch_tokens], whole=True)[0]),
        ("the foreground; the rest is black", patch_pca([patch_tokens])[0]),
    ]
    side = photo.shape[0] // patch_tokens.shape[0]
    draw_panels(photo, panels, tuple(line.format(side=side) for line in _CAPTION), file)


def seen_by_model(image: NDArray[np.uint8], snap: Snap, patch_size: int) -> NDArray[np.uint8]:
    """The part of `image` [H, W, 3] that its P × P patches cover, [P·h, P·w, 3], padded black."""
    pixels = ImageSize(*image.shape[:2]).snapped(snap, patch_size).pixels
    (group,) = group_images([image], InputFormat.PIXELS, snap, pixels, patch_size=patch_size)
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
    decoding = options.decoding(model)
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
