"""The classifiers of DINOv2's official evaluation on frozen features: k-NN, logistic regression.

Both are fitted on unit vectors [N, D] with labels, and predict a label for each test vector.
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
"""The values behind the k-NN results in DINOv2's model card (`dinov2/eval/knn.py`)."""

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
    """The label with the most votes among the nearest `neighbours`; a vote counts exp(cosine / T).

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
    """The most likely label by a multinomial logistic regression.

    This is scikit-learn's regression with its default penalty, L2 with C = 1, on standardized
    features. The official evaluation tunes C on a validation set, which a user may not have.

    Raises:
        InputError: all training images have the same label.
        MissingDependencyError: scikit-learn is not installed.
    """
    if len(set(labels)) < 2:
        raise InputError(
            f"all training images have the label {labels[0]}; at least two labels are needed"
        )
    linear = require("sklearn.linear_model", extra="eval", purpose=_PURPOSE)
    pipeline = require("sklearn.pipeline", extra="eval", purpose=_PURPOSE)
    preprocessing = require("sklearn.preprocessing", extra="eval", purpose=_PURPOSE)
    classifier = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear.LogisticRegression(max_iter=_MAX_ITERATIONS)
    )
    return _predicted(classifier, train, labels, test)


def _votes(temperature: float, distances: NDArray[Any]) -> NDArray[Any]:
    """exp(cosine / T) of unit vectors at these distances, without the common factor exp(1 / T)."""
    votes: NDArray[Any] = np.exp(-(distances**2) / (2 * temperature))
    return votes


def _predicted(
    classifier: Any, train: Float32Array, labels: Sequence[str], test: Float32Array
) -> Labels:
    predicted: Labels = classifier.fit(train, np.array(labels)).predict(test)
    return predicted
