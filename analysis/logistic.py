"""Logistic regression on features, as weights for unmodified features."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import FitWarning, InputError
from dinov2rt.optional import require

_MAX_ITERATIONS = 1000
_PURPOSE = "fitting a head"
_MOST_SEEDS = 2**32
_LARGE_FIT = 10**7
"""Products of a number and a weight in a step, from which several threads pay."""

Matrix = NDArray[np.float32]


def check_options(held_out: float, penalty: float, seed: int) -> None:
    """Check the options that all fits have.

    Raises:
        InputError: the share `held_out`, the C `penalty` or the `seed` is not allowed.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held out {held_out:g}; allowed is a share between 0 and 1")
    if not penalty > 0:
        raise InputError(f"C {penalty:g}; it must be greater than 0")
    if not 0 <= seed < _MOST_SEEDS:
        raise InputError(f"seed {seed}; allowed is a whole number from 0 to {_MOST_SEEDS - 1}")


def fit_logistic(
    vectors: Matrix, labels: NDArray[Any], penalty: float
) -> tuple[Matrix, Matrix, NDArray[Any]]:
    """Weight [K, F] and bias [K] for `vectors` [N, F], and the K sorted values of `labels` [N].

    The regression is on standardized features, with scikit-learn's C of `penalty`. Mean and
    deviation are folded into the weights: `w (x - m) / s + b` is `(w / s) x + (b - (w / s) m)`.

    A fit takes 1,000 steps at most; if it has not converged, a `FitWarning` says so.

    Raises:
        InputError: the fit gives no numbers.
        MissingDependencyError: scikit-learn is not installed.
    """
    linear = require("sklearn.linear_model", extra="eval", purpose=_PURPOSE)
    wide = vectors.astype(np.float64)
    mean, deviation = wide.mean(axis=0), wide.std(axis=0)
    deviation[deviation == 0] = 1
    wide -= mean
    wide /= deviation
    model = linear.LogisticRegression(C=penalty, max_iter=_MAX_ITERATIONS)
    with np.errstate(all="ignore"):  # what matters is told below
        converged = _fit(model, wide, labels)
        weight, bias = _both_classes(model.coef_, model.intercept_)
        weight = weight / deviation
        bias = bias - weight @ mean
        fitted = weight.astype(np.float32), bias.astype(np.float32)
    if not all(np.isfinite(values).all() for values in fitted):
        raise InputError(
            f"the fit with C {penalty:g} gives no finite weights; choose another C, and check the "
            "features"
        )
    if not converged:
        warnings.warn(
            f"the fit ended after {model.n_iter_.max()} steps without converging, and may not be "
            f"the best; a C other than {penalty:g} may make it easier",
            FitWarning,
            stacklevel=2,
        )
    return *fitted, np.asarray(model.classes_)


def _fit(model: Any, vectors: NDArray[np.float64], labels: NDArray[Any]) -> bool:
    """Fit `model`; return whether it converged."""
    exceptions = require("sklearn.exceptions", extra="eval", purpose=_PURPOSE)
    with warnings.catch_warnings(record=True) as told, _threads(vectors, labels):
        warnings.simplefilter("always", exceptions.ConvergenceWarning)
        model.fit(vectors, labels)
    return not any(issubclass(each.category, exceptions.ConvergenceWarning) for each in told)


def _threads(vectors: NDArray[np.float64], labels: NDArray[Any]) -> AbstractContextManager[Any]:
    """One thread for a small fit, whose steps are shorter than it takes to wake up others.

    On a machine whose cores are busy, they make it much slower.
    """
    if vectors.size * len(np.unique(labels)) > _LARGE_FIT:
        return nullcontext()
    control = require("threadpoolctl", extra="eval", purpose=_PURPOSE)
    limits: AbstractContextManager[Any] = control.threadpool_limits(1)
    return limits


def _both_classes(
    weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add a row of zeros for the first of two classes, since scikit-learn returns only one row."""
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
