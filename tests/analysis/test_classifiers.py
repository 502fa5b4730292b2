import numpy as np
import pytest

from dinov2rt.analysis.classifiers import knn, logistic_regression
from dinov2rt.errors import InputError

CLASSES = np.array(["ant", "bee", "cat"])


def points(count: int, seed: int, noise: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one centre per class, and their labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, 16))
    classes = rng.integers(0, 3, count)
    vectors = centres[classes] + noise * rng.normal(size=(count, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), CLASSES[classes]


def voted(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, count: int, temperature: float
) -> np.ndarray:
    """The result of `dinov2/eval/knn.py`: a softmax over the nearest cosines, summed by class."""
    cosines = test.astype(np.float64) @ train.T.astype(np.float64)
    nearest = np.argsort(-cosines, axis=1)[:, :count]
    weights = np.exp(np.take_along_axis(cosines, nearest, axis=1) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    votes = [(weights * (labels[nearest] == name)).sum(axis=1) for name in CLASSES]
    return CLASSES[np.argmax(votes, axis=0)]


@pytest.mark.parametrize(("count", "temperature"), [(20, 0.07), (1, 0.07), (7, 0.01), (50, 10.0)])
def test_neighbours_vote_by_their_cosine_over_the_temperature(
    count: int, temperature: float
) -> None:
    (train, labels), (test, _) = points(200, seed=0), points(100, seed=1)
    predicted = knn(train, labels, test, neighbours=count, temperature=temperature)
    expected = voted(train, labels, test, count, temperature)
    np.testing.assert_array_equal(predicted, expected)


def test_the_temperature_decides_between_one_near_and_two_far() -> None:
    train = np.array([[1, 0], [0.8, 0.6], [0.8, -0.6]], np.float32)
    labels, test = ["near", "far", "far"], np.array([[1, 0]], np.float32)
    (cold,) = knn(train, labels, test, neighbours=3, temperature=0.07)
    (hot,) = knn(train, labels, test, neighbours=3, temperature=10)
    assert (cold, hot) == ("near", "far")


def test_a_regression_separates_separable_classes() -> None:
    (train, labels), (test, truth) = points(300, 0, noise=0.3), points(100, 1, noise=0.3)
    assert (logistic_regression(train, labels, test) == truth).mean() > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "0 neighbours; allowed are 1 to 10, the number of training images"),
        ({"neighbours": 11}, "11 neighbours; allowed are 1 to 10"),
        ({"temperature": 0.0}, "temperature 0; it must be greater than 0"),
        ({"temperature": float("nan")}, "temperature nan; it must be"),
    ],
)
def test_bad_options_of_knn_are_refused(options: dict[str, float], message: str) -> None:
    train, labels = points(10, 0)
    with pytest.raises(InputError, match=message):
        knn(train, labels, train, **{"neighbours": 5} | options)


def test_a_regression_needs_two_classes() -> None:
    train, _ = points(10, 0)
    with pytest.raises(InputError, match="all training images have the label ant; at least two"):
        logistic_regression(train, ["ant"] * 10, train)
