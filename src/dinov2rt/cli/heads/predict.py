"""`dinov2rt predict`: images in, classes, depth and segments out."""

import contextlib
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dinov2rt.analysis.prediction_pictures import draw_attention, draw_prediction
from dinov2rt.bundle.signature import ATTENTION
from dinov2rt.cli.arguments import (
    add_bundle,
    add_executor,
    add_load_options,
    cluster_of,
    load_model,
)
from dinov2rt.cli.progress import Progress
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.errors import InputError
from dinov2rt.extraction.answers.files import DEPTH_FORMATS, RECORDS, PredictionFolder
from dinov2rt.extraction.answers.prediction import Answered, PredictOptions
from dinov2rt.extraction.answers.predictor import Predictor, Watch, predict_to_folder
from dinov2rt.extraction.answers.table import FORMATS, table_name, write_table
from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.collection import DEFAULT_CHUNK_IMAGES, find_chunks
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extractor import is_synthetic
from dinov2rt.extraction.job import num_images
from dinov2rt.files import replacing
from dinov2rt.foreign import shown
from dinov2rt.named_enum import unknown_name
from dinov2rt.runtime.images import write_png
from dinov2rt.runtime.model import Model
from dinov2rt.runtime.predict import Request
from dinov2rt.runtime.preprocess import Preprocess
from dinov2rt.runtime.recipes import RECIPES

PICTURES = "pictures"
_MEANINGLESS = "the weights are synthetic: these answers mean nothing, they only exercise the path"


def _add_arguments(parser: ArgumentParser) -> None:
    add_bundle(parser, located=str)  # on a cluster, its nodes copy from the URL
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="image files, folders, patterns, and shards (.tar, .parquet)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="a folder: the table of all answers, depth as 16-bit PNG or NPY, segments as palette "
        "PNG; the same command resumes it",
    )
    parser.add_argument(
        "--head", metavar="NAME,...", help="heads of the bundle that are to answer (default: all)"
    )
    parser.add_argument(
        "--recipe",
        default="single",
        help="single (default): one pass over the pixels as they are; official: as the heads were "
        "evaluated, in many passes",
    )
    parser.add_argument(
        "--table",
        default="json",
        help=f"{' or '.join(FORMATS)}: all answers in one file, "
        "predictions.json (default) or predictions.parquet",
    )
    parser.add_argument("--pictures", action="store_true", help="draw every answer as well")
    parser.add_argument("--top", type=int, default=5, help="classes of an image (default: 5)")
    parser.add_argument(
        "--depth-format", default="png", help=f"{' or '.join(DEPTH_FORMATS)} (default: png)"
    )
    parser.add_argument(
        "--preprocess", default="native", help="native (default), classification or short-side:N"
    )
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default: 8)")
    _add_collection_arguments(parser)
    add_load_options(parser)


def _add_collection_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("large collections")
    group.add_argument(
        "--decoders", type=int, default=0, metavar="N", help="processes that decode (default: 0)"
    )
    group.add_argument("--image-column", default="image", help="of Parquet shards (default: image)")
    group.add_argument(
        "--part-images",
        type=int,
        default=DEFAULT_CHUNK_IMAGES,
        metavar="N",
        help=f"images that a Ray actor takes at a time (default: {DEFAULT_CHUNK_IMAGES})",
    )
    add_executor(group)


def _run(arguments: Namespace) -> Outcome:
    options = PredictOptions(
        heads=None if arguments.head is None else tuple(arguments.head.split(",")),
        recipe=arguments.recipe,
        preprocess=Preprocess.parse(arguments.preprocess),
        batch=arguments.batch,
    )
    if arguments.recipe not in RECIPES:
        raise unknown_name("recipe", arguments.recipe, RECIPES)
    if arguments.top < 1:
        raise InputError(f"--top {arguments.top}; allowed is a whole number from 1")
    table = table_name(arguments.table)
    cluster = cluster_of(arguments)
    chunks = find_chunks(
        arguments.paths, chunk_images=arguments.part_images, image_column=arguments.image_column
    )
    with Decoders(arguments.decoders) as decoders, load_model(arguments) as model:
        _check_names(Request.of(model.manifest.heads, options.heads, None, scores=False))
        folder = _folder(model, arguments, options, chunks)
        draw = _draw if arguments.pictures else None
        predictor = Predictor(model, options, folder, decoders, draw)
        watching = partial(_watching, num_images(chunks))
        failures = predict_to_folder(predictor, chunks, cluster=cluster, watching=watching)
        records = list(folder.records(chunks))
        write_table(records, folder.folder / table)
        return _outcome(arguments, model, records, failures)


def _check_names(request: Request) -> None:
    """Refuse heads that are called as other folders of the answers: they would share files."""
    taken = [head.name for head in request.heads if head.name in (RECORDS, PICTURES, ATTENTION)]
    if taken:
        raise InputError(
            f"a folder of the answers is called {taken[0]} already, as this head of the bundle is; "
            "leave it out with --head"
        )


def _folder(
    model: Model, arguments: Namespace, options: PredictOptions, chunks: list[Chunk]
) -> PredictionFolder:
    settings: dict[str, Any] = {
        "variant": model.manifest.name,
        "weights_sha256": model.manifest.weights.sha256,
        "heads": {head.name: head.sha256 for head in model.manifest.heads},
        "asked": list(options.heads or [head.name for head in model.manifest.heads]),
        "precision": str(model.graph.precision),
        "recipe": options.recipe,
        "preprocess": arguments.preprocess,
        "pictures": arguments.pictures,
        "root": str(chunks[0].root),
    }
    return PredictionFolder(arguments.out, settings, arguments.depth_format, arguments.top)


@contextlib.contextmanager
def _watching(total: int, done: int) -> Iterator[Watch]:
    """Progress over `total` images, of which `done` were answered by an earlier run."""
    with Progress(total, done) as progress:

        def watch(count: int, failures: Sequence[Failure]) -> None:
            for failure in failures:
                progress.complain(failure.reason)
            for _ in range(count):
                progress.step()

        yield watch


def _draw(model: Model, folder: PredictionFolder, answer: Answered) -> None:
    pictures = {
        head: draw_prediction(answer.pixels, prediction)
        for head, prediction in answer.predictions.items()
    }
    if ATTENTION in model.graph.outputs:
        (attention,) = model(answer.pixels, outputs=[ATTENTION]).attention
        pictures[ATTENTION] = draw_attention(answer.pixels, attention)
    for name, picture in pictures.items():
        file = folder.place(f"{PICTURES}/{name}", answer.key, ".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            write_png(picture, unfinished)


def _outcome(
    arguments: Namespace, model: Model, records: list[dict[str, Any]], failures: list[Failure]
) -> Outcome:
    document = {
        "bundle": arguments.bundle,
        "out": arguments.out,
        "images": len(records),
        "failed": len(failures),
        "failures": [{"path": each.key, "error": each.reason} for each in failures],
        "backend": model.summary,
        "synthetic_weights": is_synthetic(model),
        "predictions": records,
    }
    lines = [document["backend"], *_lines(records)]
    lines.append(f"{arguments.out}: answers for {len(records)} images")
    if failures:
        lines.append(f"{len(failures)} images failed")
    if document["synthetic_weights"]:
        lines.append(f"note: {_MEANINGLESS}")
    return Outcome(document, "\n".join(map(str, lines)), status_of(not failures))


def _lines(records: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each of the first images and heads."""
    for record in records[:10]:
        for head, answer in record["heads"].items():
            yield f"{shown(record['image'])}: {shown(head)}: {_said(answer)}"


def _said(answer: dict[str, Any]) -> str:
    if "nearest_m" in answer:
        return f"{answer['nearest_m']:.2f} to {answer['farthest_m']:.2f} m"
    first = answer["classes"][:3]
    return ", ".join(
        f"{shown(each['name'])} {each.get('probability', each.get('share')):.1%}" for each in first
    )


PREDICT = Verb("predict", "classes, depth and segments by a bundle's heads", _add_arguments, _run)
