"""The work of `dinov2rt run`: features of a collection, and a picture of its first images."""

import contextlib
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.analysis.pca import draw_items
from dinov2rt.cli.output import complain
from dinov2rt.cli.progress import Progress
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.dataset import PartReport
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, ImageOutcome
from dinov2rt.extraction.extractor import Extractor
from dinov2rt.extraction.formats import FeatureFormat, feature_format
from dinov2rt.extraction.job import (
    JobReport,
    Watch,
    extract_to_file,
    extract_to_parts,
    num_images,
)
from dinov2rt.extraction.parquet import FeatureType
from dinov2rt.extraction.ray_cluster import Cluster
from dinov2rt.runtime.model import Model

PICTURE_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Destination:
    """The outputs of a run: features to `out`, a picture to `picture`, or both.

    With a `cluster`, the parts of `out` are computed there. `retry_failed` applies to parts.
    """

    out: Path | None
    picture: Path | None
    dtype: FeatureType = FeatureType.FLOAT32
    cluster: Cluster | None = None
    retry_failed: bool = False

    @property
    def format(self) -> FeatureFormat | None:
        """How features are written; None where there is only a picture."""
        return None if self.out is None else FeatureFormat(self.out.suffix)


@dataclass(frozen=True, slots=True)
class Finished:
    """The outcome of a run; `drawn` images are in the pages of the picture."""

    report: JobReport
    drawn: int
    pages: list[Path]
    seconds: float


def check_destinations(arguments: Namespace) -> None:
    """Refuse outputs that could not be written, before a long computation.

    Raises:
        InputError: `--out` or `--pca` cannot be written, or options do not go with them.
    """
    out, pca = arguments.out, arguments.pca
    if out is None and pca is None:
        raise InputError("nothing to write; give --out FILE.npz, .csv or .parquet, or --pca F.png")
    if arguments.patch_tokens and out is None:
        raise InputError("--patch-tokens says what --out holds; give --out FILE as well")
    if out is not None:
        _check_format(arguments, feature_format(out))
    elif arguments.retry_failed:
        raise InputError("--retry-failed is for --out OUT.parquet; give it as well")
    if pca is not None and pca.suffix != ".png":
        raise InputError(f"{pca} has the suffix {pca.suffix!r}; allowed for --pca: .png")
    for file in filter(None, (out, pca)):
        place = file if file == out and file.is_dir() else file.parent
        if (file == pca and file.is_dir()) or not os.access(place, os.W_OK):
            raise InputError(f"{file} cannot be written; choose a place that exists and is yours")


def _check_format(arguments: Namespace, out_format: FeatureFormat) -> None:
    """Refuse options that the output's format does not support."""
    if out_format is FeatureFormat.CSV and arguments.patch_tokens:
        raise InputError("--patch-tokens do not fit into .csv; give --out OUT.npz or OUT.parquet")
    if arguments.dtype is not None:
        FeatureType.parse(arguments.dtype)
    for option in ("dtype", "retry_failed", "layer_tokens"):
        if getattr(arguments, option) and out_format is not FeatureFormat.PARQUET:
            name = option.replace("_", "-")
            raise InputError(f"--{name} is for OUT.parquet, and this is {out_format}; leave it out")


def writes_parts(arguments: Namespace) -> bool:
    """Whether `--out` is a folder of parts."""
    return arguments.out is not None and feature_format(arguments.out) is FeatureFormat.PARQUET


def run_job(
    model: Model,
    chunks: list[Chunk],
    options: ExtractOptions,
    decoders: Decoders,
    destination: Destination,
) -> Finished:
    """Write the requested outputs.

    Raises:
        Dinov2rtError: it cannot be computed or written.
    """
    started = time.perf_counter()
    report = _extract(model, chunks, options, decoders, destination)
    drawn = 0
    pages: list[Path] = []
    if destination.picture is not None:
        drawn, pages, refused = _draw(model, chunks, options, destination.picture, report is None)
        report = report or JobReport(drawn, len(refused), drawn, tuple(refused))
        _tell_left_out(destination.picture, drawn, num_images(chunks) - report.failed - drawn)
    assert report is not None  # noqa: S101  # a destination has at least one of the two
    return Finished(report, drawn, pages, time.perf_counter() - started)


def _extract(
    model: Model,
    chunks: list[Chunk],
    options: ExtractOptions,
    decoders: Decoders,
    destination: Destination,
) -> JobReport | None:
    """Write the features, if they are asked for."""
    out, dtype, total = destination.out, destination.dtype, num_images(chunks)
    if out is None:
        return None
    if destination.format is not FeatureFormat.PARQUET:
        return extract_to_file(
            model, chunks, options, decoders, out, watching=lambda done: _watching(total, done)
        )
    return extract_to_parts(
        Extractor.into(out, model, options, decoders, dtype=dtype, root=chunks[0].root),
        chunks,
        cluster=destination.cluster,
        watching=lambda done: _watching(total, done),
        retry_failed=destination.retry_failed,
    )


@contextlib.contextmanager
def _watching(total: int, done: int) -> Iterator[Watch]:
    """Progress over `total` images, of which `done` were computed by an earlier run."""
    with Progress(total, done) as progress:
        yield lambda outcome: _show(outcome, progress)


def _show(outcome: ImageOutcome | PartReport, progress: Progress) -> None:
    """Show one step for an image, or one for each image of a part that a cluster finished."""
    if isinstance(outcome, Failure):
        progress.complain(outcome.reason)
    steps = outcome.images + outcome.failures if isinstance(outcome, PartReport) else 1
    for _ in range(steps):
        progress.step()


def _draw(
    model: Model, chunks: list[Chunk], options: ExtractOptions, file: Path, is_alone: bool
) -> tuple[int, list[Path], list[Failure]]:
    """How many images are drawn, the pages, and the images that could not be used.

    These are reported here only if the picture `is_alone`: an extraction has reported them.
    """
    refused: list[Failure] = []
    items = (item for chunk in chunks for item in chunk.items())
    drawn, pages = draw_items(
        model, items, options, file, most=PICTURE_IMAGES, refused=refused.append
    )
    for failure in refused if is_alone else ():
        complain(failure.reason)
    return drawn, pages, refused


def _tell_left_out(picture: Path, drawn: int, left_out: int) -> None:
    if drawn and left_out > 0:
        complain(f"{picture} shows the first {drawn}, not the other {left_out}")
