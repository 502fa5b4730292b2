"""The work of `dinov2rt run`: features of a collection, and a picture of its first images."""

import contextlib
import itertools
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dinov2rt.analysis.pca import draw_pca, patch_pca, seen_by_model
from dinov2rt.bundle.signature import FloatArray
from dinov2rt.cli.output import complain
from dinov2rt.cli.progress import Progress
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.dataset import FeatureDataset
from dinov2rt.extraction.decoding import DecodedImage, Decoders, decode
from dinov2rt.extraction.extract import ExtractOptions, Outcome, extract
from dinov2rt.extraction.image_features import ImageFeatures
from dinov2rt.extraction.npz import FeatureFormat, write_npz
from dinov2rt.extraction.parquet import FeatureType
from dinov2rt.extraction.ray_cluster import Cluster, process_on_ray
from dinov2rt.extraction.worker import feature_dataset, feature_metadata, process_chunks
from dinov2rt.runtime.model import Model

PICTURE_IMAGES = 64
_LISTED_FAILURES = 100


@dataclass(slots=True)
class Job:
    """One run: what was asked for, and what came of it.

    With a `cluster` the parts are computed there. `images` and `failed` are what the output holds,
    `computed` and `failures` what this run added to it; only the first failures are kept.
    """

    arguments: Namespace
    model: Model
    options: ExtractOptions
    chunks: list[Chunk]
    decoders: Decoders
    cluster: Cluster | None = None
    images: int = 0
    failed: int = 0
    computed: int = 0
    drawn: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Images in the collection."""
        return sum(map(len, self.chunks))

    @property
    def out_format(self) -> FeatureFormat | None:
        """Where features go; None where there is only a picture."""
        out = self.arguments.out
        return None if out is None else FeatureFormat(out.suffix)


def run_job(job: Job) -> None:
    """Write what was asked for.

    Raises:
        Dinov2rtError: it cannot be computed or written.
    """
    started = time.perf_counter()
    if job.out_format is FeatureFormat.PARQUET:
        _extract_parts(job)
    elif job.out_format is FeatureFormat.NPZ:
        _extract_npz(job)
    if job.arguments.pca is not None:
        _draw(job)
    job.seconds = time.perf_counter() - started


def _extract_parts(job: Job) -> None:
    dtype = FeatureType.parse(job.arguments.dtype or FeatureType.FLOAT32)
    dataset = feature_dataset(job.arguments.out, job.model, job.options, dtype)
    with dataset.resumed(job.chunks) as missing:
        done = job.total - sum(map(len, missing))
        with Progress(job.total, done) as progress:
            if missing and job.cluster is not None:
                _extract_on_ray(job, missing, dataset, job.cluster, progress)
            else:
                _extract_here(job, missing, dataset, progress)
        reports = [dataset.report(chunk) for chunk in job.chunks]
    job.images = sum(report.images for report in reports)
    job.failed = sum(report.failures for report in reports)


def _extract_here(
    job: Job, chunks: list[Chunk], dataset: FeatureDataset, progress: Progress
) -> None:
    parts = process_chunks(
        job.model,
        chunks,
        job.options,
        dataset,
        job.decoders,
        watch=lambda outcome: _note(job, outcome, progress),
    )
    with contextlib.closing(parts):
        for _ in parts:
            pass


def _extract_on_ray(
    job: Job, chunks: list[Chunk], dataset: FeatureDataset, cluster: Cluster, progress: Progress
) -> None:
    """What failed is told by the errors table alone: only counts come back from the workers."""
    with contextlib.closing(
        process_on_ray(job.model, chunks, job.options, dataset, cluster)
    ) as parts:
        for report in parts:
            job.computed += report.images
            for _ in range(report.images + report.failures):
                progress.step()


def _extract_npz(job: Job) -> None:
    with Progress(job.total) as progress:
        outcomes = extract(job.model, job.chunks, job.options, job.decoders)
        with contextlib.closing(outcomes):  # its threads end here, whatever happens to the rows
            rows = _rows(job, (outcome for _, outcome in outcomes), progress)
            first = next(rows, None)
            if first is not None:  # else every image failed, which was said of each
                metadata = feature_metadata(job.model, job.options)
                job.images = write_npz(job.arguments.out, itertools.chain([first], rows), metadata)
    job.failed = job.total - job.images


def _rows(job: Job, outcomes: Iterator[Outcome], progress: Progress) -> Iterator[ImageFeatures]:
    for outcome in outcomes:
        _note(job, outcome, progress)
        if not isinstance(outcome, Failure):
            yield outcome


def _note(job: Job, outcome: Outcome, progress: Progress) -> None:
    """One image was computed, or cannot be."""
    if isinstance(outcome, Failure):
        progress.complain(outcome.reason)
        if len(job.failures) < _LISTED_FAILURES:
            job.failures.append({"path": outcome.key, "error": outcome.reason})
    else:
        job.computed += 1
    progress.step()


def _draw(job: Job) -> None:
    seen: list[NDArray[np.uint8]] = []
    tokens: list[FloatArray] = []
    for image, patch_tokens in itertools.islice(_pictured(job), PICTURE_IMAGES):
        seen.append(seen_by_model(image, job.options.snap))
        tokens.append(patch_tokens)
    job.drawn = len(seen)
    if job.out_format is None:
        job.images = job.computed = job.drawn
        job.failed = len(job.failures)
    if seen:
        draw_pca(seen, patch_pca(tokens), job.arguments.pca)
    left_out = job.total - job.failed - job.drawn
    if seen and left_out > 0:
        complain(f"{job.arguments.pca} shows the first {job.drawn}, not the other {left_out}")


def _pictured(job: Job) -> Iterator[tuple[NDArray[np.uint8], FloatArray]]:
    """Each image that can be used, with its patch tokens [h, w, D]: again, after a resumed run."""
    decoding = job.options.decoding(job.model.options.max_pixels)
    for item in (item for chunk in job.chunks for item in chunk.items()):
        image = decode(item, decoding)
        if isinstance(image, DecodedImage):
            try:
                features = job.model(image.pixels, outputs=["patch_tokens"], snap=job.options.snap)
                yield image.pixels, features.patch_tokens[0]
                continue
            except InputError as error:
                image = Failure(image.key, f"{image.key}: {error}")
        if job.out_format is None:  # else it was said before
            complain(image.reason)
            job.failures.append({"path": image.key, "error": image.reason})
