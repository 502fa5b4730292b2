"""Classification with frozen features, to compare two sets of features of the same images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinov2rt.analysis.classifiers import Classifier
from dinov2rt.analysis.labels import check_known, examples, find_labels
from dinov2rt.analysis.paired_accuracy import Correct
from dinov2rt.analysis.vectors import Float32Array, Token, open_collection
from dinov2rt.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFeatures:
    """CLS tokens as unit vectors [N, D] with a label for each, sorted by key."""

    keys: Sequence[str]
    labels: Sequence[str]
    vectors: Float32Array


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Training and test features of one model; `metadata` describes the model."""

    train: LabelledFeatures
    test: LabelledFeatures
    metadata: Mapping[str, str]
    is_synthetic: bool


def read_split(train: Path, test: Path, train_labels: str, test_labels: str) -> Split:
    """Read two feature datasets and their labels; see `find_labels` for the labels.

    Raises:
        InputError: the features are of different models, an image has no label or is in a dataset
            twice, or a test image has a label that no training image has.
    """
    both = open_collection([train, test])
    split = Split(
        _read(train, train_labels), _read(test, test_labels), both.metadata, both.is_synthetic
    )
    check_known(split.test.labels, split.train.labels)
    return split


def check_same_images(first: Split, second: Split, names: tuple[Path, Path]) -> None:
    """Check that the test sets, read from `names`, have the same images, so that they pair up.

    Raises:
        InputError: an image is in only one of them.
    """
    ours, theirs = set(first.test.keys), set(second.test.keys)
    for here, there, alone in (
        (names[0], names[1], ours - theirs),
        (names[1], names[0], theirs - ours),
    ):
        if alone:
            raise InputError(
                f"{len(alone)} images of {here} are not in {there}, such as "
                f"{examples(sorted(alone))}; compare features of the same test images"
            )


def correct_answers(split: Split, classifier: Classifier) -> Correct:
    """Whether the classifier is right, [N], for each test image in the order of the keys."""
    predicted = classifier(split.train.vectors, split.train.labels, split.test.vectors)
    correct: Correct = predicted == np.array(split.test.labels)
    return correct


def _read(path: Path, source: str) -> LabelledFeatures:
    collection = open_collection(path)
    batches = list(collection.vectors(Token.CLS))
    keys = [key for batch, _ in batches for key in batch.to_pylist()]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise InputError(
            f"{path} has {len(twice)} images more than once, such as {examples(twice)}; "
            "leave them out, they would count twice"
        )
    # Sorted, so that two datasets of the same images pair up, and ties are resolved the same way.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    labels = find_labels(keys, source, Path(collection.metadata.get("root", "")))
    vectors = np.concatenate([vectors for _, vectors in batches])[order]
    return LabelledFeatures([keys[at] for at in order], [labels[at] for at in order], vectors)
