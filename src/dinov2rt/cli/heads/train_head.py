"""`dinov2rt train-head`: a head from features of one's own labelled images."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dinov2rt.analysis.head_training import TOKENS, TrainOptions, train_classifier
from dinov2rt.analysis.segment_training import SegmentOptions, train_segmenter
from dinov2rt.bundle.tasks.classifier_file import write_classifier
from dinov2rt.bundle.tasks.segmenter_file import write_segmenter
from dinov2rt.bundle.variants import variants
from dinov2rt.cli.output import progress
from dinov2rt.cli.verb import Outcome, Verb
from dinov2rt.errors import InputError
from dinov2rt.files import read_regular, replacing
from dinov2rt.foreign import shown

_SUFFIX = ".npz"
_MOST_BYTES_OF_NAMES = 2**20
_WORST = 5
"""Classes that are named, of those with the least intersection over union."""


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
        metavar="LABELS",
        help="for a classifier: a .csv or .parquet file with the columns key and label, or "
        "`folder`: the name of the folder that an image lies in",
    )
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="for a segmentation head: PNG files in grey or with a palette, with the stems of the "
        "photographs and a class from 0 to 254 for each pixel, 255 where it has none",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.npz", help="the head, for export --head"
    )
    parser.add_argument(
        "--tokens",
        help=f"what a classifier reads: {', '.join(TOKENS)} (default: cls+mean); layers are those "
        "of features with --layer-tokens",
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="names of the classes of masks, a text file with one a line, from 0 on (default: "
        "their numbers)",
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
    out, masks = arguments.out, arguments.masks
    if out.suffix != _SUFFIX:
        raise InputError(f"{out} has the suffix {out.suffix!r}; allowed for --out: {_SUFFIX}")
    if (arguments.labels is None) == (masks is None):
        raise InputError("give --labels for a classifier, or --masks for a segmentation head")
    stray = "tokens" if masks is not None else "class_names"
    if getattr(arguments, stray) is not None:
        kind = "--labels" if masks is not None else "--masks"
        raise InputError(f"--{stray.replace('_', '-')} is for {kind}; leave it out")
    return _train_classifier(arguments) if masks is None else _train_segmenter(arguments)


def _train_classifier(arguments: Namespace) -> Outcome:
    out, tokens = arguments.out, arguments.tokens or "cls+mean"
    options = TrainOptions(tokens, arguments.held_out, arguments.penalty, arguments.seed)
    trained = train_classifier(arguments.features, arguments.labels, options, progress)
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
    lines = [
        f"{out}: {len(own.class_names)} classes from {trained.images} images",
        f"accuracy on images held out: {held_out.share:.1%} "
        f"(95% interval {held_out.low:.1%} to {held_out.high:.1%}); the head is fitted on all",
        _how_to_export(own.variant, f"classifier={out}"),
    ]
    return Outcome(document, "\n".join(lines))


def _train_segmenter(arguments: Namespace) -> Outcome:
    out = arguments.out
    options = SegmentOptions(
        arguments.held_out,
        arguments.penalty,
        arguments.seed,
        names=() if arguments.class_names is None else _names(arguments.class_names),
    )
    trained = train_segmenter(arguments.features, arguments.masks, options, progress)
    with replacing(out) as partial:
        write_segmenter(trained.segmenter, partial)
    own, held_out = trained.segmenter, trained.held_out
    document = {
        "out": out,
        "variant": own.variant,
        "classes": own.class_names,
        "images": trained.images,
        "patches": trained.patches,
        "held_out_accuracy": held_out,
        "synthetic_weights": trained.is_synthetic,
    }
    worst = sorted(held_out.ious.items(), key=lambda each: each[1])[:_WORST]
    lines = [
        f"{out}: {len(own.class_names)} classes from {trained.patches} patches of "
        f"{trained.images} images",
        f"on images held out: mean IoU {held_out.mean_iou:.1%}, {held_out.pixels:.1%} of pixels "
        "right; the head is fitted on all",
        f"least IoU: {', '.join(f'{shown(name)} {iou:.1%}' for name, iou in worst)}",
        _how_to_export(own.variant, f"segmenter={out}"),
    ]
    return Outcome(document, "\n".join(lines))


def _how_to_export(backbone: str, head: str) -> str:
    is_variant = any(variant.name == backbone for variant in variants())
    wanted = backbone if is_variant else "auto --weights W"
    return f"export it with: dinov2rt export {wanted} --head {head}"


def _names(file: Path) -> tuple[str, ...]:
    try:
        text = read_regular(file, _MOST_BYTES_OF_NAMES).decode()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); give a file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} cannot be read as text; give one name a line") from error
    return tuple(line.strip() for line in text.splitlines())


TRAIN_HEAD = Verb(
    "train-head",
    "fit a classifier or a segmentation head on features of your own images",
    _add_arguments,
    _run,
)
