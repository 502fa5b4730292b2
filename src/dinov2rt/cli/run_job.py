"""The work of `dinov2rt run`: features of a collection, and a picture of its first images."""

import contextlib
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field

from dinov2rt.analysis.pca import draw_items
from dinov2rt.cli.output import complain
from dinov2rt.cli.progress import Progress
from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.dataset import PartReport
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, Outcome
from dinov2rt.extraction.job import Watch, extract_to_npz, extract_to_parts
from dinov2rt.extraction.npz import FeatureFormat
from dinov2rt.extraction.parquet import FeatureType
from dinov2rt.extraction.ray_cluster import Cluster
from dinov2rt.extraction.worker import feature_dataset
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
    held = extract_to_parts(
        job.model,
        job.chunks,
        job.options,
        dataset,
        job.decoders,
        cluster=job.cluster,
        watching=lambda done: _watching(job, done),
    )
    job.images, job.failed = held.images, held.failures


def _extract_npz(job: Job) -> None:
    with _watching(job) as watch:
        job.images = extract_to_npz(
            job.model, job.chunks, job.options, job.arguments.out, job.decoders, watch=watch
        )
    job.failed = job.total - job.images


@contextlib.contextmanager
def _watching(job: Job, done: int = 0) -> Iterator[Watch]:
    """Progress over all images of `job`, of which `done` were computed by an earlier run."""
    with Progress(job.total, done) as progress:
        yield lambda outcome: _note(job, outcome, progress)


def _note(job: Job, outcome: Outcome | PartReport, progress: Progress) -> None:
    """Count an image that was computed or cannot be, or a part that a cluster finished."""
    steps = 1
    if isinstance(outcome, PartReport):
        job.computed += outcome.images
        steps = outcome.images + outcome.failures
    elif isinstance(outcome, Failure):
        progress.complain(outcome.reason)
        if len(job.failures) < _LISTED_FAILURES:
            job.failures.append({"path": outcome.key, "error": outcome.reason})
    else:
        job.computed += 1
    for _ in range(steps):
        progress.step()


def _draw(job: Job) -> None:
    job.drawn = draw_items(
        job.model,
        (item for chunk in job.chunks for item in chunk.items()),
        job.options,
        job.arguments.pca,
        most=PICTURE_IMAGES,
        refused=lambda failure: _refused(job, failure),
    )
    if job.out_format is None:
        job.images = job.computed = job.drawn
        job.failed = len(job.failures)
    left_out = job.total - job.failed - job.drawn
    if job.drawn and left_out > 0:
        complain(f"{job.arguments.pca} shows the first {job.drawn}, not the other {left_out}")


def _refused(job: Job, failure: Failure) -> None:
    """Report an image that cannot be drawn, unless the extraction has reported it."""
    if job.out_format is None:
        complain(failure.reason)
        job.failures.append({"path": failure.key, "error": failure.reason})
