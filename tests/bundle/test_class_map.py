"""Class maps without the scores of all pixels: the same as with them."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from dinov2rt.bundle.tasks.accuracy import margins_of
from dinov2rt.bundle.tasks.bilinear import resize_bilinear
from dinov2rt.bundle.tasks.class_map import best_classes

rng = np.random.default_rng(0)


def smooth(*shape: int) -> np.ndarray:
    """Scores that vary from patch to patch as those of photographs do, little and by regions."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    return noise.cumsum(axis=1).cumsum(axis=2)


def assert_exact(scores: np.ndarray, size: tuple[int, int]) -> None:
    full = resize_bilinear(scores, size)
    found = best_classes(scores, size)
    np.testing.assert_array_equal(best_classes(scores, size, threads=3), found)
    off = found != full.argmax(axis=0)
    # Two sums of rounded products differ where two classes are equal up to rounding.
    assert not np.any(off & (margins_of(full, axis=0) > 1e-5 * np.abs(full).max()))
    assert off.mean() < 1e-3


@pytest.mark.parametrize("draw", [smooth, lambda *shape: rng.standard_normal(shape, np.float32)])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((150, 16, 16), (224, 224)),
        ((150, 7, 9), (98, 126)),
        ((21, 17, 25), (231, 345)),
        ((256, 4, 3), (9, 33)),  # some of the sixteen parts hold no pixel
        ((7, 2, 3), (2, 3)),
        ((5, 1, 1), (14, 1)),
        ((1, 3, 2), (40, 28)),
    ],
)
def test_classes_are_those_of_all_scores(
    draw: Callable[..., np.ndarray], shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    assert_exact(draw(*shape), size)


def test_any_number_of_classes_and_any_larger_size() -> None:
    for _ in range(50):
        classes, height, width = (int(each) for each in rng.integers(1, (257, 6, 6)))
        size = tuple(int(rng.integers(side, 15 * side + 1)) for side in (height, width))
        assert_exact(smooth(classes, height, width), size)  # type: ignore[arg-type]


def test_of_equal_scores_the_first_class_is_the_best() -> None:
    assert not best_classes(np.zeros((9, 4, 5), np.float32), (50, 60)).any()
    scores = np.full((9, 4, 5), -1, np.float32)
    scores[[3, 7]] = 1
    assert set(best_classes(scores, (50, 60)).ravel()) == {3}


def test_scores_that_are_not_numbers_give_a_class() -> None:
    scores = smooth(6, 4, 5)
    scores[2, 1, 1] = np.nan
    assert best_classes(scores, (50, 60)).max() < 6


def test_memory_is_bounded_even_where_no_class_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pair of a class and four samples takes up to 1,000 bytes while its strip is computed."""
    strip_pairs, classes, size = 2**14, 150, (560, 280)
    monkeypatch.setattr("dinov2rt.bundle.tasks.class_map._STRIP_PAIRS", strip_pairs)
    scores = np.zeros((classes, 40, 20), np.float32)
    tracemalloc.start()
    try:
        best_classes(scores, size)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bordered = 4 * classes * 42 * 22
    assert peak_bytes < 2 * bordered + 1000 * strip_pairs < 4 * classes * size[0] * size[1] / 4
