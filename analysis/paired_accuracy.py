"""Accuracy on a test set, and whether two accuracies on the same test set differ."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dinov2rt.optional import require

CONFIDENCE = 0.95

Correct = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of right answers, with Wilson's confidence interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of the second classifier minus accuracy of the first, on the same images.

    `low` and `high` are its 95% confidence interval. `only_first` and `only_second` count the
    images that only one of them gets right. `p_value` tests whether both are equally accurate.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference is unlikely to come only from the choice of test images."""
        return self.p_value < 1 - CONFIDENCE


def accuracy(correct: Correct) -> Accuracy:
    """The accuracy of the answers `correct` [N], N ≥ 1.

    Raises:
        MissingDependencyError: SciPy, which comes with scikit-learn, is not installed.
    """
    stats = require("scipy.stats", extra="eval", purpose="evaluating features")
    test = stats.binomtest(int(correct.sum()), len(correct))
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Accuracy(float(correct.mean()), float(interval.low), float(interval.high))


def compare_answers(first: Correct, second: Correct) -> Difference:
    """The paired difference of `first` [N] and `second` [N], over the same N images.

    The p-value is from McNemar's exact test: among the images that only one classifier gets right,
    each classifier should have half. The interval is Bonett and Price's adjusted Wald interval for
    paired proportions (Journal of Educational and Behavioral Statistics 37, 2012, pages 479-488):
    it adds one image to each side, so that the interval has a width even if there are no such
    images. Both treat the test images as a random sample and the training set as fixed.

    Raises:
        MissingDependencyError: SciPy, which comes with scikit-learn, is not installed.
    """
    stats = require("scipy.stats", extra="eval", purpose="evaluating features")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    low, high = _bonett_price(only_first, only_second, len(first))
    difference = (only_second - only_first) / len(first)
    return Difference(difference, low, high, only_first, only_second, p_value)


def _bonett_price(only_first: int, only_second: int, count: int) -> tuple[float, float]:
    p_first, p_second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    centre = p_second - p_first
    spread = math.sqrt((p_first + p_second - centre**2) / (count + 2))
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * spread
    return max(-1.0, centre - half), min(1.0, centre + half)
