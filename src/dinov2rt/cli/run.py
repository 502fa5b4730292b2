"""`dinov2rt run`: computes features of images, or a picture of them."""

from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.remote import local_bundle
from dinov2rt.cli.arguments import (
    add_bundle,
    add_executor,
    add_load_options,
    cluster_of,
    load_model,
)
from dinov2rt.cli.run_job import (
    PICTURE_IMAGES,
    Destination,
    Finished,
    check_destinations,
    run_job,
    writes_parts,
)
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.errors import InputError
from dinov2rt.extraction.collection import DEFAULT_CHUNK_IMAGES, find_collection
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions
from dinov2rt.extraction.extractor import MEANINGLESS, feature_metadata, is_synthetic
from dinov2rt.extraction.formats import FeatureFormat
from dinov2rt.extraction.image_features import ScaledImages
from dinov2rt.extraction.job import num_images
from dinov2rt.extraction.parquet import FeatureType
from dinov2rt.extraction.reader import ERRORS_FOLDER
from dinov2rt.runtime.cpu import usable_cores
from dinov2rt.runtime.image_search import describe_left_out
from dinov2rt.runtime.model import DEFAULT_MAX_PIXELS, Model
from dinov2rt.runtime.preprocess import Preprocess

_FEW_IMAGES = 16
_SOURCE = "source"
"""Decoded by this process itself: starting others would take longer."""


def _add_arguments(parser: ArgumentParser) -> None:
    add_bundle(parser, located=str)  # where a cluster computes, its nodes copy from the URL
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="image files, folders, patterns, and shards (.tar, .parquet)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT",
        help="features: a file, OUT.npz or OUT.csv, or a folder of parts that the same command "
        "takes up again, OUT.parquet",
    )
    parser.add_argument(
        "--pca",
        type=Path,
        metavar="FILE",
        help=f"picture of the patch tokens' principal components, FILE.png; of the first "
        f"{PICTURE_IMAGES} images, in pages FILE-2.png and so on where there are many",
    )
    parser.add_argument(
        "--patch-tokens", action="store_true", help="write every patch token, not only their mean"
    )
    parser.add_argument(
        "--layer-tokens",
        action="store_true",
        help="write the CLS tokens of the layers that the bundle was exported with (--layers), for "
        "train-head",
    )
    parser.add_argument(
        "--preprocess",
        default="native",
        help="native (default), classification, source (as the files beside the weights said at "
        "the export), or steps such as short-side:256,crop:224 and resize:518x518",
    )
    parser.add_argument(
        "--background",
        metavar="C",
        help="colour behind transparent images: white, black or R,G,B (default: none; the colours "
        "that transparency hides are taken as they are)",
    )
    parser.add_argument(
        "--snap",
        default="crop",
        help="how sides become multiples of the patch: crop (default), center-crop, pad, resize or "
        "error",
    )
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default: 8)")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=DEFAULT_MAX_PIXELS,
        help="larger images are scaled to fit, keeping their aspect (default: "
        f"{DEFAULT_MAX_PIXELS}, as 2048x2048)",
    )
    parser.add_argument(
        "--no-scale", action="store_true", help="refuse images of more than --max-pixels instead"
    )
    _add_collection_arguments(parser)
    add_load_options(parser)


def _add_collection_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("large collections")
    group.add_argument(
        "--decoders",
        type=int,
        metavar="N",
        help="processes that decode images; 0: none but this one (default: the usable cores)",
    )
    group.add_argument("--dtype", help="of features in OUT.parquet: float32 (default) or float16")
    group.add_argument("--image-column", default="image", help="of Parquet shards (default: image)")
    group.add_argument(
        "--part-images",
        type=int,
        default=DEFAULT_CHUNK_IMAGES,
        metavar="N",
        help=f"images in a part of OUT.parquet (default: {DEFAULT_CHUNK_IMAGES})",
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="try all images again that failed before (default: those whose file has changed)",
    )
    add_executor(group)


def _run(arguments: Namespace) -> Outcome:
    options = ExtractOptions(
        preprocess=_preprocess(arguments).on(arguments.background),
        snap=Snap.parse(arguments.snap),
        batch=arguments.batch,
        patch_tokens=arguments.patch_tokens,
        layer_tokens=arguments.layer_tokens,
        scale=not arguments.no_scale,
    )
    check_destinations(arguments)
    cluster = cluster_of(arguments)
    if cluster is not None and not writes_parts(arguments):
        raise InputError("--executor ray writes a folder of parts; give --out OUT.parquet")
    collection = find_collection(
        arguments.paths, chunk_images=arguments.part_images, image_column=arguments.image_column
    )
    chunks = collection.chunks
    destination = Destination(
        arguments.out,
        arguments.pca,
        FeatureType.parse(arguments.dtype or FeatureType.FLOAT32),
        cluster,
        arguments.retry_failed,
    )
    with (
        Decoders(_decoder_count(arguments.decoders, num_images(chunks))) as decoders,
        load_model(arguments, max_pixels=arguments.max_pixels) as model,
    ):
        finished = run_job(model, chunks, options, decoders, destination)
        facts = _facts(arguments.bundle, model, destination, finished)
        facts["left_out"] = dict(collection.left_out)
        facts["metadata"] = feature_metadata(model, options, chunks[0].root)
    return Outcome(facts, _text(facts), status_of(not finished.report.failed))


def _preprocess(arguments: Namespace) -> Preprocess:
    """The requested steps; "source" stands for the steps of the weights' source."""
    text = arguments.preprocess
    if text == _SOURCE:
        text = Manifest.read(local_bundle(arguments.bundle)).preprocess
        if text is None:
            raise InputError(
                f"{arguments.bundle} knows no preprocessing of its source: nothing stood beside "
                "the weights, or steps that are not bicubic; name the steps, such as "
                "short-side:256,crop:224"
            )
    return Preprocess.parse(text)


def _decoder_count(asked: int | None, images: int) -> int:
    if asked is not None:
        return asked
    return usable_cores() if images > _FEW_IMAGES else 0


def _facts(
    bundle: str,
    model: Model,
    destination: Destination,
    finished: Finished,
) -> dict[str, Any]:
    report, seconds = finished.report, finished.seconds
    is_dataset = destination.format is FeatureFormat.PARQUET
    has_features = destination.out is not None and bool(report.images)
    return {
        "bundle": bundle,
        # A dataset is there even where it has nothing but failures.
        "out": destination.out if is_dataset or has_features else None,
        "pca": destination.picture if finished.drawn else None,
        "pca_pages": finished.pages,
        "drawn": finished.drawn,
        "images": report.images,
        "failed": report.failed,
        "failures": [{"path": each.key, "error": each.reason} for each in report.failures],
        "errors": _errors_table(destination) if report.failed else None,
        "seconds": seconds,
        "images_per_s": report.computed / seconds,
        "left": report.left,
        "scaled": report.scaled,
        "lost_transparency": report.lost_transparency,
        "max_pixels": model.options.max_pixels,
        "backend": model.summary,
        "synthetic_weights": is_synthetic(model),
    }


def _errors_table(destination: Destination) -> Path | None:
    """The folder in which a dataset lists the images that failed."""
    if destination.out is None or destination.format is not FeatureFormat.PARQUET:
        return None
    return destination.out / ERRORS_FOLDER


def _text(facts: dict[str, Any]) -> str:
    lines = [facts["backend"]]
    if facts["out"]:
        lines.append(f"{facts['out']}: features of {_images(facts['images'])}")
    if facts["pca"]:
        pages = ", ".join(map(str, facts["pca_pages"]))
        lines.append(f"{pages}: picture of {_images(facts['drawn'])}")
    if facts["left"] == 0:
        lines.append("nothing was left to do: every image was done, or had failed, before")
    else:
        lines.append(f"{facts['images_per_s']:.1f} images/s over {facts['seconds']:.1f} s")
    lines += _notices(facts)
    if facts["failed"]:
        place = f"; see {facts['errors']}; --retry-failed tries them again"
        place = place if facts["errors"] else ""
        total = facts["images"] + facts["failed"]
        lines.append(f"{facts['failed']} of {_images(total)} failed{place}")
    if facts["synthetic_weights"]:
        lines.append(f"note: {MEANINGLESS}")
    return "\n".join(lines)


def _notices(facts: dict[str, Any]) -> list[str]:
    """Lines on images that were changed, and on files that were not read as images."""
    lines = []
    if facts["scaled"].count:
        lines.append(_scaled(facts["scaled"], facts["max_pixels"]))
    if facts["lost_transparency"]:
        lines.append(_lost_transparency(facts["lost_transparency"]))
    if facts["left_out"]:
        others = Counter[str](facts["left_out"])
        lines.append(f"left out as no images: {describe_left_out(others)}")
    return lines


def _scaled(scaled: ScaledImages, max_pixels: int) -> str:
    """The number and sizes of images that were scaled, and the two options that change it."""
    sizes = f"{scaled.smallest}"
    if scaled.smallest != scaled.largest:
        sizes += f" to {scaled.largest}"
    were = "was" if scaled.count == 1 else "were"
    return (
        f"{_images(scaled.count)} of {sizes} {were} scaled to fit max_pixels {max_pixels}; "
        "--no-scale refuses them, --max-pixels N keeps more"
    )


def _lost_transparency(count: int) -> str:
    has = "has" if count == 1 else "have"
    return (
        f"{_images(count)} {has} transparency, which was dropped: the colours below it count; "
        "--background white puts a colour behind it"
    )


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


RUN = Verb("run", "compute features of images", _add_arguments, _run)
