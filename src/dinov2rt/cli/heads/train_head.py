"""`dinov2rt train-head`: a classifier from features of one's own labelled images."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dinov2rt.analysis.head_training import TOKENS, TrainOptions, train_classifier
from dinov2rt.bundle.tasks.classifier_file import write_classifier
from dinov2rt.cli.verb import Outcome, Verb
from dinov2rt.errors import InputError
from dinov2rt.files import replacing

_SUFFIX = ".npz"


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--features",
        type=Path,
        required=True,
        metavar="FILE",
        help="features.parquet of `dinov2rt run`, computed as images will be at inference",
    )
    parser.add_argument(
        "--labels",
        required=True,
        metavar="LABELS",
        help="a .csv or .parquet file with the columns key and label, or `folder`: "
        "the name of the folder that an image lies in",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.npz", help="the head, for export --head"
    )
    parser.add_argument(
        "--tokens",
        default="cls+mean",
        help=f"what it reads: {' or '.join(TOKENS)} (default: cls+mean)",
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of the images, for measuring the accuracy (default: 0.2)",
    )
    parser.add_argument(
        "-C", type=float, default=1.0, dest="penalty", help="of the regression (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the images held out (default: 0)")


def _run(arguments: Namespace) -> Outcome:
    out = arguments.out
    if out.suffix != _SUFFIX:
        raise InputError(f"{out} has the suffix {out.suffix!r}; allowed for --out: {_SUFFIX}")
    options = TrainOptions(arguments.tokens, arguments.held_out, arguments.penalty, arguments.seed)
    trained = train_classifier(arguments.features, arguments.labels, options)
    with replacing(out) as partial:
        write_classifier(trained.classifier, partial)
    own, held_out = trained.classifier, trained.held_out
    document = {
        "out": out,
        "variant": own.variant,
        "classes": own.class_names,
        "tokens": options.tokens,
        "images": trained.images,
        "held_out_accuracy": held_out,
        "synthetic_weights": trained.is_synthetic,
    }
    command = f"dinov2rt export {own.variant} --head classifier={out}"
    lines = [
        f"{out}: {len(own.class_names)} classes from {trained.images} images",
        f"accuracy on images held out: {held_out.share:.1%} "
        f"(95% interval {held_out.low:.1%} to {held_out.high:.1%}); the head is fitted on all",
        f"export it with: {command}",
    ]
    return Outcome(document, "\n".join(lines))


TRAIN_HEAD = Verb(
    "train-head", "fit a classifier on features of labelled images", _add_arguments, _run
)
