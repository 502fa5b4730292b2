"""Images unlike photographs, which static activations must be able to represent as well.

A value outside the range of its channel is clipped, and photographs do not reach the ranges of
documents, drawings and plain colours: see docs/adr/0009.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinov2rt.bundle.geometry import ImageSize

_CORNERS = tuple(itertools.product((0, 255), repeat=3))
"""The most saturated colours: black, white, red, green, blue and their mixtures."""

_GREY = (128, 128, 128)
_PATTERNS = 16

DRAWINGS = len(_CORNERS) + 1 + _PATTERNS
"""The number of images of `drawings`."""

OTHER_DRAWINGS = 24
"""The number of images of `other_drawings`."""

_LINES = 30

Mask = NDArray[np.bool_]
"""The foreground [H, W] of a pattern."""


def drawings(size: ImageSize) -> Iterator[NDArray[np.uint8]]:
    """Nine plain colours and sixteen patterns of two colours, uint8 [1, H, W, 3] each."""
    for colour in (*_CORNERS, _GREY):
        yield np.full((1, size.height, size.width, 3), colour, np.uint8)
    yield from _patterns(size, range(_PATTERNS))


def other_drawings(size: ImageSize) -> Iterator[NDArray[np.uint8]]:
    """More patterns like those of `drawings`, to measure accuracy on; uint8 [1, H, W, 3] each."""
    yield from _patterns(size, range(_PATTERNS, _PATTERNS + OTHER_DRAWINGS))


def _patterns(size: ImageSize, seeds: range) -> Iterator[NDArray[np.uint8]]:
    for seed in seeds:
        random, draw = np.random.default_rng(seed), _KINDS[seed % len(_KINDS)]
        back, front = random.choice(np.array(_CORNERS, np.uint8), 2, replace=False)
        yield np.where(draw(size, random)[None, ..., None], front, back)


def _dots(size: ImageSize, random: np.random.Generator) -> Mask:
    """Random squares of 1 to 4 pixels, which look like small print or noise."""
    side, share = int(random.integers(1, 5)), random.uniform(0.05, 0.5)
    squares = random.random((size.height // side + 1, size.width // side + 1)) < share
    return squares.repeat(side, 0).repeat(side, 1)[: size.height, : size.width]


def _lines(size: ImageSize, random: np.random.Generator) -> Mask:
    """Straight lines, 1 to 4 pixels wide."""
    image = Image.new("1", (size.width, size.height))
    for _ in range(_LINES):
        xs, ys = random.integers(size.width, size=2), random.integers(size.height, size=2)
        ends = [(int(x), int(y)) for x, y in zip(xs, ys, strict=True)]
        ImageDraw.Draw(image).line(ends, fill=1, width=int(random.integers(1, 5)))
    return np.asarray(image)


def _squares(size: ImageSize, random: np.random.Generator) -> Mask:
    """A checkerboard with squares of 3 to 19 pixels."""
    rows, cols = np.indices((size.height, size.width)) // int(random.integers(3, 20))
    squares: Mask = (rows + cols) % 2 == 1
    return squares


_KINDS: tuple[Callable[[ImageSize, np.random.Generator], Mask], ...] = (_dots, _lines, _squares)
