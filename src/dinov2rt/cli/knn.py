"""`dinov2rt knn`: classifies with features, and compares two sets of features of equal images."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dinov2rt.analysis.classifiers import (
    NEIGHBOURS,
    TEMPERATURE,
    Classifier,
    knn,
    logistic_regression,
)
from dinov2rt.analysis.evaluation import Split, check_same_images, correct_answers, read_split
from dinov2rt.analysis.paired_accuracy import Correct, Difference, accuracy, compare_answers
from dinov2rt.cli.output import progress, table
from dinov2rt.cli.verb import Outcome, Verb

_METHODS = (
    "95% intervals over the choice of test images: Wilson's for an accuracy, Bonett and Price's "
    "for a paired difference; p: McNemar's exact test"
)

_LOOKS_ALONE = (
    "the weights are synthetic: these accuracies come of colour and texture alone, and say nothing "
    "of the trained model's"
)


def _add_arguments(parser: ArgumentParser) -> None:
    features = "features.parquet of `dinov2rt run`"
    parser.add_argument("--train", type=Path, required=True, metavar="FILE", help=features)
    parser.add_argument("--test", type=Path, required=True, metavar="FILE", help="the same")
    parser.add_argument(
        "--labels",
        required=True,
        metavar="LABELS",
        help="a .csv or .parquet file with the columns key and label, or `folder`: "
        "the name of the folder that an image lies in",
    )
    parser.add_argument("--test-labels", metavar="LABELS", help="if others than --labels")
    parser.add_argument(
        "--against",
        nargs=2,
        action="append",
        default=[],
        type=Path,
        metavar=("TRAIN", "TEST"),
        help="other features of the same images, such as features in another precision",
    )
    parser.add_argument(
        "-k", type=int, default=NEIGHBOURS, help=f"neighbours that vote (default: {NEIGHBOURS})"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=TEMPERATURE,
        help=f"of a vote, exp(cosine / temperature) (default: {TEMPERATURE})",
    )
    parser.add_argument(
        "--only-knn", action="store_true", help="leave the logistic regression out; it takes longer"
    )


def _run(arguments: Namespace) -> Outcome:
    pairs = [(arguments.train, arguments.test), *map(tuple, arguments.against)]
    splits = [_read(arguments, *pair) for pair in pairs]
    for split, (_, test) in zip(splits[1:], pairs[1:], strict=True):
        check_same_images(splits[0], split, (arguments.test, test))
    answers = [_answers(split, _classifiers(arguments)) for split in splits]
    sets = [
        _set_document(pair, split, answer)
        for pair, split, answer in zip(pairs, splits, answers, strict=True)
    ]
    comparisons = [
        {"test": pair[1], "against": arguments.test, "classifier": name, "difference": found}
        for pair, answer in zip(pairs[1:], answers[1:], strict=True)
        for name, found in _differences(answers[0], answer).items()
    ]
    synthetic = any(split.is_synthetic for split in splits)
    document = {
        "sets": sets,
        "comparisons": comparisons,
        "methods": _METHODS,
        "synthetic_weights": synthetic,
    }
    return Outcome(document, _text(sets, comparisons, synthetic=synthetic))


def _read(arguments: Namespace, train: Path, test: Path) -> Split:
    progress(f"reading {train} and {test}")
    return read_split(train, test, arguments.labels, arguments.test_labels or arguments.labels)


def _classifiers(arguments: Namespace) -> dict[str, Classifier]:
    own = partial(knn, neighbours=arguments.k, temperature=arguments.temperature)
    return {"knn": own} | ({} if arguments.only_knn else {"logistic": logistic_regression})


def _answers(split: Split, classifiers: Mapping[str, Classifier]) -> dict[str, Correct]:
    return {name: correct_answers(split, one) for name, one in classifiers.items()}


def _differences(
    first: Mapping[str, Correct], second: Mapping[str, Correct]
) -> dict[str, Difference]:
    return {name: compare_answers(first[name], second[name]) for name in first}


def _set_document(
    pair: tuple[Path, Path], split: Split, answers: Mapping[str, Correct]
) -> dict[str, Any]:
    return {
        "train": pair[0],
        "test": pair[1],
        "train_images": len(split.train.keys),
        "test_images": len(split.test.keys),
        "classes": len(set(split.train.labels)),
        "accuracy": {name: accuracy(correct) for name, correct in answers.items()},
        "metadata": split.metadata,
    }


def _text(sets: list[dict[str, Any]], comparisons: list[dict[str, Any]], *, synthetic: bool) -> str:
    parts = [_accuracy_table(sets)]
    if comparisons:
        parts.append(_difference_table(comparisons))
    parts.append(_METHODS)
    if synthetic:
        parts.append(f"note: {_LOOKS_ALONE}")
    return "\n\n".join(parts)


def _accuracy_table(sets: list[dict[str, Any]]) -> str:
    header = ("test", "variant", "precision", "images", "classes", "classifier", "accuracy", "95%")
    rows = [
        (
            str(one["test"]),
            one["metadata"]["variant"],
            one["metadata"]["precision"],
            f"{one['train_images']} + {one['test_images']}",
            str(one["classes"]),
            name,
            f"{found.share:.2%}",
            f"{found.low:.2%} to {found.high:.2%}",
        )
        for one in sets
        for name, found in one["accuracy"].items()
    ]
    return table(header, rows)


def _difference_table(comparisons: list[dict[str, Any]]) -> str:
    header = ("test", "classifier", "difference", "95%", "only right", "only wrong", "p")
    rows = [
        (str(one["test"]), one["classifier"], *_difference_cells(one["difference"]))
        for one in comparisons
    ]
    return f"against {comparisons[0]['against']}\n{table(header, rows)}"


def _difference_cells(found: Difference) -> tuple[str, ...]:
    return (
        f"{found.difference:+.2%}",
        f"{found.low:+.2%} to {found.high:+.2%}",
        str(found.only_second),
        str(found.only_first),
        f"{found.p_value:.2g}",
    )


KNN = Verb("knn", "say how well features classify, and compare them", _add_arguments, _run)
