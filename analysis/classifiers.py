"""What the official evaluation fits on frozen features: k-NN, and logistic regression.

Both take unit vectors [N, D] and labels, and say a label for each test vector.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.analysis.vectors import Float32Array
from dinov2rt.errors import InputError
from dinov2rt.optional import require

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Of the k-NN results in DINOv2's model card (`dinov2/eval/knn.py`)."""

_PURPOSE = "evaluating features"
_MAX_ITERATIONS = 1000

Labels = NDArray[np.str_]
Classifier = Callable[[Float32Array, Sequence[str], Float32Array], Labels]


def knn(
    train: Float32Array,
    labels: Sequence[str],
    test: Float32Array,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Labels:
    """The label with most votes among the `neighbours` nearest, each worth exp(cosine / T).

    This is the k-NN classifier of DINO (arXiv 2104.14294, from arXiv 1805.01978).

    Raises:
        InputError: `neighbours` is not from 1 to the number of training images, or `temperature`
            is not positive.
        MissingDependencyError: scikit-learn is not installed.
    """
    if not 1 <= neighbours <= len(train):
        raise InputError(
            f"{neighbours} neighbours; allowed are 1 to {len(train)}, the number of training images"
        )
    if not temperature > 0:
        raise InputError(f"temperature {temperature:g}; it must be greater than 0")
    module = require("sklearn.neighbors", extra="eval", purpose=_PURPOSE)
    classifier = module.KNeighborsClassifier(
        neighbours, weights=partial(_votes, temperature), algorithm="brute", metric="euclidean"
    )
    return _predicted(classifier, train, labels, test)


def logistic_regression(train: Float32Array, labels: Sequence[str], test: Float32Array) -> Labels:
    """The likeliest label by a multinomial logistic regression.

    It is scikit-learn's with its default penalty, L2 with C = 1, on standardised features. The
    official evaluation sweeps C on a validation set, which users' own data may not have.

    Raises:
        InputError: the training images are all of one class.
        MissingDependencyError: scikit-learn is not installed.
    """
    if len(set(labels)) < 2:
        raise InputError(f"all training images have the label {labels[0]}; two are the least")
    linear = require("sklearn.linear_model", extra="eval", purpose=_PURPOSE)
    pipeline = require("sklearn.pipeline", extra="eval", purpose=_PURPOSE)
    preprocessing = require("sklearn.preprocessing", extra="eval", purpose=_PURPOSE)
    classifier = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear.LogisticRegression(max_iter=_MAX_ITERATIONS)
    )
    return _predicted(classifier, train, labels, test)


def _votes(temperature: float, distances: NDArray[Any]) -> NDArray[Any]:
    """exp(cosine / T) of unit vectors at these distances; less exp(1 / T), which all share."""
    votes: NDArray[Any] = np.exp(-(distances**2) / (2 * temperature))
    return votes


def _predicted(
    classifier: Any, train: Float32Array, labels: Sequence[str], test: Float32Array
) -> Labels:
    predicted: Labels = classifier.fit(train, np.array(labels)).predict(test)
    return predicted
