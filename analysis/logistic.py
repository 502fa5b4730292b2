"""Logistic regression on features, as weights for unmodified features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.optional import require

_MAX_ITERATIONS = 1000

Matrix = NDArray[np.float32]


def fit_logistic(
    vectors: Matrix, labels: NDArray[Any], penalty: float
) -> tuple[Matrix, Matrix, NDArray[Any]]:
    """Weight [K, F] and bias [K] for `vectors` [N, F], and the K sorted values of `labels` [N].

    The regression is on standardized features, with scikit-learn's C of `penalty`. Mean and
    deviation are folded into the weights: `w (x - m) / s + b` is `(w / s) x + (b - (w / s) m)`.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    linear = require("sklearn.linear_model", extra="eval", purpose="fitting a head")
    wide = vectors.astype(np.float64)
    mean, deviation = wide.mean(axis=0), wide.std(axis=0)
    deviation[deviation == 0] = 1
    wide -= mean
    wide /= deviation
    model = linear.LogisticRegression(C=penalty, max_iter=_MAX_ITERATIONS)
    model.fit(wide, labels)
    weight, bias = _both_classes(model.coef_, model.intercept_)
    weight = weight / deviation
    return (
        weight.astype(np.float32),
        (bias - weight @ mean).astype(np.float32),
        np.asarray(model.classes_),
    )


def _both_classes(
    weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add a row of zeros for the first of two classes, since scikit-learn returns only one row."""
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
