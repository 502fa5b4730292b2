"""Fits a linear classifier on features of labelled images, for `export --head`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.analysis.labels import examples, find_labels
from dinov2rt.analysis.logistic import Matrix, check_options, fit_logistic
from dinov2rt.analysis.paired_accuracy import Accuracy, accuracy
from dinov2rt.analysis.vectors import Collection, open_collection
from dinov2rt.bundle.tasks.classifier_file import OwnClassifier
from dinov2rt.errors import InputError
from dinov2rt.extraction.parquet import LAYERS, layers_of
from dinov2rt.named_enum import unknown_name
from dinov2rt.optional import require

TOKENS = ("cls", "cls+mean", "layers+mean")
"""The inputs of a classifier: the CLS token, the CLS token and the mean patch token, or the CLS
tokens of several last layers and the mean patch token."""

_COLUMNS = {
    "cls": ("cls_token",),
    "cls+mean": ("cls_token", "patch_mean"),
    "layers+mean": ("layer_cls_tokens", "patch_mean"),
}
_PURPOSE = "fitting a classifier"


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a classifier is fitted.

    `held_out` is the share of each class's images that are used to measure the accuracy, with a
    classifier that was fitted without them. `penalty` is the C of scikit-learn's logistic
    regression.

    Raises:
        InputError: a value is not allowed.
    """

    tokens: str = "cls+mean"
    held_out: float = 0.2
    penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise unknown_name("tokens", self.tokens, TOKENS)
        check_options(self.held_out, self.penalty, self.seed)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedHead:
    """A classifier fitted on all images, and the accuracy that was measured on held-out images."""

    classifier: OwnClassifier
    held_out: Accuracy
    images: int
    is_synthetic: bool


def train_classifier(
    features: Path,
    labels: str,
    options: TrainOptions,
    progress: Callable[[str], None] = lambda _: None,
) -> TrainedHead:
    """Fit a classifier on the features at `features`; for `labels` see `find_labels`.

    `progress` is told each step.

    Raises:
        InputError: features or labels cannot be used, there are fewer than two classes, or a class
            has fewer than two images.
        MissingDependencyError: scikit-learn or pyarrow is not installed.
    """
    collection = open_collection([features])
    num_layers = _num_layers(collection, options.tokens)
    progress(f"reading {len(collection)} features")
    keys, vectors = _read(collection, options.tokens)
    names = np.array(find_labels(keys, labels, Path(collection.metadata.get("root", ""))))
    _check_classes(names)
    progress("fitting without the images held out, and measuring the accuracy on those")
    correct = _held_out(vectors, names, options)
    progress(f"fitting on all {len(keys)} images")
    weight, bias, classes = fit_logistic(vectors, names, options.penalty)
    own = OwnClassifier(
        weight=weight,
        bias=bias,
        class_names=tuple(map(str, classes)),
        num_layers=num_layers,
        uses_mean=options.tokens != "cls",
        variant=collection.metadata["variant"],
        weights_sha256=collection.metadata["weights_sha256"],
    )
    return TrainedHead(own, accuracy(correct), len(keys), collection.is_synthetic)


def _num_layers(collection: Collection, tokens: str) -> int:
    """How many of the last layers' CLS tokens the classifier reads.

    Raises:
        InputError: the features do not hold the last layers' CLS tokens, and they are asked for.
    """
    if tokens != "layers+mean":
        return 1
    said = collection.metadata.get(LAYERS, "none")
    layers, depth = layers_of(collection.metadata), said.rpartition(" ")[2]
    if not layers or tuple(range(int(depth) - len(layers), int(depth))) != layers:
        raise InputError(
            f"tokens layers+mean reads the last layers, and the features hold {said}; make them "
            "with dinov2rt run --layer-tokens, of a bundle that was exported with its last four "
            "layers, such as --layers 8,9,10,11 for 12 blocks"
        )
    return len(layers)


def _read(collection: Collection, tokens: str) -> tuple[list[str], Matrix]:
    """Keys and the classifier's inputs [N, F], without normalization."""
    columns = _COLUMNS[tokens]
    keys: list[str] = []
    parts: list[Matrix] = []
    for names, values in collection.values(columns):
        keys += names.to_pylist()
        parts.append(values.astype(np.float32, copy=False))
    vectors = np.concatenate(parts)
    if not np.isfinite(vectors).all():
        raise InputError("features hold NaN or infinity; check the bundle: dinov2rt verify")
    return keys, vectors


def _check_classes(names: NDArray[np.str_]) -> None:
    classes, counts = np.unique(names, return_counts=True)
    if len(classes) < 2:
        raise InputError(f"all images have the label {classes[0]}; two classes are the least")
    few = [str(name) for name, count in zip(classes, counts, strict=True) if count < 2]
    if few:
        raise InputError(
            f"{len(few)} classes have one image only, such as {examples(few)}; "
            "give two or more of each, or leave those out"
        )


def _held_out(vectors: Matrix, names: NDArray[np.str_], options: TrainOptions) -> NDArray[np.bool_]:
    """Whether a classifier fitted on the other images is right about each held-out image."""
    selection = require("sklearn.model_selection", extra="eval", purpose=_PURPOSE)
    classes = len(np.unique(names))
    count = min(max(classes, round(options.held_out * len(names))), len(names) - classes)
    fitted_on, tested_on = selection.train_test_split(
        np.arange(len(names)), test_size=count, stratify=names, random_state=options.seed
    )
    weight, bias, found = fit_logistic(vectors[fitted_on], names[fitted_on], options.penalty)
    logits = vectors[tested_on] @ weight.T + bias
    predicted = found[logits.argmax(axis=1)]
    return np.asarray(predicted == names[tested_on])
