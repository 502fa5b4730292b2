"""`dinov2rt run`: images in, a file of features or a picture of them out."""

import contextlib
import dataclasses
import itertools
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinov2rt._version import __version__
from dinov2rt.cli.bundles import add_bundle, add_load_options, load_model
from dinov2rt.cli.output import Counter, complain
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.runtime.errors import InputError
from dinov2rt.runtime.extract import ExtractOptions, extract, seen_by_model
from dinov2rt.runtime.feature_files import ImageFeatures, feature_format, write_features
from dinov2rt.runtime.geometry import Snap
from dinov2rt.runtime.images import Preprocess, find_images, load_image
from dinov2rt.runtime.model import DEFAULT_MAX_PIXELS, Model
from dinov2rt.runtime.pca import draw_pca, patch_pca

_MEANINGLESS = "the weights are synthetic: these features mean nothing, they only exercise the path"
_PICTURE_IMAGES = 64


def _add_arguments(parser: ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="image files and folders of them")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="features: FILE.npz or FILE.parquet"
    )
    parser.add_argument(
        "--pca",
        type=Path,
        metavar="FILE",
        help=f"picture of the patch tokens' principal components, FILE.png; of the first "
        f"{_PICTURE_IMAGES} images",
    )
    parser.add_argument(
        "--patch-tokens", action="store_true", help="write every patch token, not only their mean"
    )
    parser.add_argument(
        "--preprocess", default="native", help="native (default), classification or short-side:N"
    )
    parser.add_argument(
        "--snap",
        default="crop",
        help="how sides become multiples of 14: crop (default), center-crop, pad, resize or error",
    )
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default: 8)")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=DEFAULT_MAX_PIXELS,
        help=f"the most that one image may have (default: {DEFAULT_MAX_PIXELS})",
    )
    add_load_options(parser)


@dataclass(slots=True)
class _Job:
    """One run: what was asked for, and what came of it."""

    arguments: Namespace
    model: Model
    options: ExtractOptions
    files: list[Path]
    drawn: list[ImageFeatures] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    written: int = 0
    seconds: float = 0.0


def _run(arguments: Namespace) -> Outcome:
    options = ExtractOptions(
        preprocess=Preprocess.parse(arguments.preprocess),
        snap=Snap.parse(arguments.snap),
        batch=arguments.batch,
        patch_tokens=arguments.patch_tokens or arguments.pca is not None,
    )
    _check_destinations(arguments)
    files = find_images(arguments.paths)
    with load_model(arguments, max_pixels=arguments.max_pixels) as model:
        job = _Job(arguments, model, options, files)
        _extract(job)
        if job.drawn:
            _draw(job)
        return _outcome(job)


def _check_destinations(arguments: Namespace) -> None:
    """Refuse before a long computation what could not be written after it."""
    out, pca = arguments.out, arguments.pca
    if out is None and pca is None:
        raise InputError("nothing to write; give --out FILE.npz, --out FILE.parquet or --pca F.png")
    if arguments.patch_tokens and out is None:
        raise InputError("--patch-tokens says what --out holds; give --out FILE as well")
    if out is not None:
        feature_format(out)
    if pca is not None and pca.suffix != ".png":
        raise InputError(f"{pca} has the suffix {pca.suffix!r}; allowed for --pca: .png")
    for file in filter(None, (out, pca)):
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            raise InputError(f"{file} cannot be written; choose a place that exists and is yours")


def _extract(job: _Job) -> None:
    started = time.perf_counter()
    with Counter(len(job.files)) as counter:

        def failed(path: Path, error: InputError) -> None:
            counter.complain(str(error))
            counter.step()
            job.failures.append({"path": str(path), "error": str(error)})

        extracted = extract(job.model, job.files, job.options, failed=failed)
        with contextlib.closing(extracted):  # its threads end here, whatever happens to the rows
            job.written = _write(job, _put_aside(job, _counted(extracted, counter)))
    job.seconds = time.perf_counter() - started


def _counted(rows: Iterator[ImageFeatures], counter: Counter) -> Iterator[ImageFeatures]:
    for row in rows:
        counter.step()
        yield row


def _put_aside(job: _Job, rows: Iterator[ImageFeatures]) -> Iterator[ImageFeatures]:
    """`rows` as they are to be written; the first ones are kept for the picture."""
    for row in rows:
        if job.arguments.pca is not None and len(job.drawn) < _PICTURE_IMAGES:
            job.drawn.append(row)
        yield row if job.arguments.patch_tokens else dataclasses.replace(row, patch_tokens=None)


def _write(job: _Job, rows: Iterator[ImageFeatures]) -> int:
    out = job.arguments.out
    if out is None:
        return sum(1 for _ in itertools.islice(rows, _PICTURE_IMAGES))
    first = next(rows, None)
    if first is None:  # every image failed, which was said of each
        return 0
    return write_features(out, itertools.chain([first], rows), _metadata(job))


def _metadata(job: _Job) -> dict[str, str]:
    weights = job.model.manifest.weights
    metadata = {
        "dinov2rt_version": __version__,
        "variant": job.model.variant.name,
        "weights_source": weights.source,
        "weights_sha256": weights.sha256,
        "precision": str(job.model.graph.precision),
        "preprocess": job.arguments.preprocess,
        "snap": job.arguments.snap,
    }
    return metadata | ({"warning": _MEANINGLESS} if _is_synthetic(job.model) else {})


def _backend(model: Model) -> str:
    return model.describe().partition("\n")[0]


def _is_synthetic(model: Model) -> bool:
    return model.manifest.weights.source.startswith("synthetic:")


def _draw(job: _Job) -> None:
    tokens = [
        row.patch_tokens.reshape(row.grid.rows, row.grid.cols, -1)
        for row in job.drawn
        if row.patch_tokens is not None
    ]
    images = [
        seen_by_model(load_image(row.path, job.options.preprocess), job.options.snap)
        for row in job.drawn
    ]
    draw_pca(images, patch_pca(tokens), job.arguments.pca)
    left_out = len(job.files) - len(job.failures) - len(job.drawn)
    if left_out > 0:
        complain(f"{job.arguments.pca} shows the first {len(job.drawn)}, not the other {left_out}")


def _outcome(job: _Job) -> Outcome:
    document: dict[str, Any] = {
        "bundle": job.arguments.bundle,
        "out": job.arguments.out if job.written else None,
        "pca": job.arguments.pca if job.drawn else None,
        "images": job.written,
        "failures": job.failures,
        "seconds": job.seconds,
        "images_per_s": job.written / job.seconds,
        "backend": _backend(job.model),
        "synthetic_weights": _is_synthetic(job.model),
        "metadata": _metadata(job),
    }
    return Outcome(document, _text(job), status_of(not job.failures))


def _text(job: _Job) -> str:
    lines = [_backend(job.model)]
    if job.written and job.arguments.out is not None:
        lines.append(f"{job.arguments.out}: features of {_images(job.written)}")
    if job.drawn:
        lines.append(f"{job.arguments.pca}: picture of {_images(len(job.drawn))}")
    lines.append(f"{job.written / job.seconds:.1f} images/s over {job.seconds:.1f} s")
    if job.failures:
        lines.append(f"{len(job.failures)} of {_images(len(job.files))} failed")
    if _is_synthetic(job.model):
        lines.append(f"note: {_MEANINGLESS}")
    return "\n".join(lines)


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


RUN = Verb("run", "compute features of images", _add_arguments, _run)
