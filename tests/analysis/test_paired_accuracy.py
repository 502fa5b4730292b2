import numpy as np
import pytest

from dinov2rt.analysis.paired_accuracy import accuracy, compare_answers


def answers(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two lists of answers, given how many images both, only one, and neither gets right."""
    counts = [both, first, second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat(
        [True, False, True, False], counts
    )


def test_an_accuracy_has_wilsons_interval() -> None:
    found = accuracy(np.repeat([True, False], [8, 2]))
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), by hand for 8 of 10
    assert (found.share, round(found.low, 4), round(found.high, 4)) == (0.8, 0.4902, 0.9433)


def test_a_difference_by_hand() -> None:
    found = compare_answers(*answers(both=1, first=1, second=7, neither=12))
    assert (found.only_first, found.only_second) == (1, 7)
    assert found.difference == pytest.approx(6 / 21)
    # Two tails of a fair coin's 8 throws with at most one head.
    assert found.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    # p₁ = 2/23, p₂ = 8/23: 6/23 ± 1.96 √((10/23 - (6/23)²) / 23)
    assert found.low == pytest.approx(0.01338, abs=1e-5)
    assert found.high == pytest.approx(0.50836, abs=1e-5)
    assert not found.is_significant


def test_the_difference_is_positive_if_the_second_is_better() -> None:
    better = compare_answers(*answers(50, 0, 10, 40))
    worse = compare_answers(*answers(50, 10, 0, 40))
    assert better.is_significant and better.low > 0
    assert worse.is_significant and worse.high < 0
    assert worse.difference == -better.difference


def test_the_interval_of_equal_answers_shrinks_with_more_images() -> None:
    few, many = (compare_answers(*answers(count, 0, 0, 0)) for count in (20, 2000))
    for found in (few, many):
        assert (found.difference, found.p_value) == (0.0, 1.0)
        assert found.low < 0 < found.high
    assert many.high - many.low < (few.high - few.low) / 50


@pytest.mark.parametrize(("p_first", "p_second"), [(0.05, 0.05), (0.02, 0.05), (0.2, 0.1)])
def test_intervals_have_their_nominal_coverage(p_first: float, p_second: float) -> None:
    rng = np.random.default_rng(0)
    table = rng.multinomial(300, [0.6 - p_first, p_first, p_second, 0.4 - p_second], size=400)
    intervals = [compare_answers(*answers(*counts)) for counts in table]
    truth = p_second - p_first
    held = np.mean([found.low <= truth <= found.high for found in intervals])
    assert 0.92 <= held <= 0.99
