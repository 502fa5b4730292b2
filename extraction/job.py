"""A whole collection into one output: a folder of Parquet parts, or one .npz file."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.dataset import PartReport
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, Outcome, extract
from dinov2rt.extraction.extractor import Extractor, feature_metadata
from dinov2rt.extraction.image_features import ImageFeatures
from dinov2rt.extraction.npz import write_npz
from dinov2rt.extraction.ray_cluster import Cluster, process_on_ray
from dinov2rt.runtime.model import Model

LISTED_FAILURES = 100
"""More are counted, but not kept in memory."""

Watch = Callable[[Outcome | PartReport], None]
"""Called with the outcome of each image. A cluster returns counts only, one report a part."""

Watching = Callable[[int], AbstractContextManager[Watch]]
"""Called with the number of images that an earlier run has done; its value sees the others."""


@dataclass(frozen=True, slots=True)
class JobReport:
    """What came of a job.

    Attributes:
        images: images whose features the output holds.
        failed: images without features in the output.
        computed: images of `images` that this run computed.
        failures: the first failures that this run met.
    """

    images: int
    failed: int
    computed: int
    failures: tuple[Failure, ...] = ()


def extract_to_parts(
    extractor: Extractor, chunks: list[Chunk], *, cluster: Cluster | None, watching: Watching
) -> JobReport:
    """Write every part of the extractor's dataset that an earlier run did not.

    Args:
        extractor: the model, its options and the dataset.
        chunks: the collection, one chunk a part.
        cluster: where to compute; None is this process.
        watching: gives the function that is called with each outcome.

    Raises:
        Dinov2rtError: the features cannot be computed or written.
    """
    dataset = extractor.dataset
    with dataset.resumed(chunks) as missing:
        done = num_images(chunks) - num_images(missing)
        with watching(done) as watch:
            count = _Count(watch)
            _process(extractor, missing, cluster, count)
        parts = [dataset.report(chunk) for chunk in chunks]
    images, failed = sum(part.images for part in parts), sum(part.failures for part in parts)
    return JobReport(images, failed, count.computed, tuple(count.failures))


def extract_to_npz(
    model: Model,
    chunks: list[Chunk],
    options: ExtractOptions,
    decoders: Decoders,
    file: Path,
    *,
    watching: Watching,
) -> JobReport:
    """Write the features of all images to `file`; there is no file if no image can be used.

    Raises:
        Dinov2rtError: the features cannot be computed or written.
    """
    outcomes = extract(model, chunks, options, decoders)
    # Its threads end here, whatever happens to the rows.
    with contextlib.closing(outcomes), watching(0) as watch:
        count = _Count(watch)
        rows = count.features(outcome for _, outcome in outcomes)
        if (first := next(rows, None)) is not None:
            write_npz(file, itertools.chain([first], rows), feature_metadata(model, options))
    failed = num_images(chunks) - count.computed
    return JobReport(count.computed, failed, count.computed, tuple(count.failures))


def num_images(chunks: Iterable[Chunk]) -> int:
    """How many images `chunks` have together."""
    return sum(map(len, chunks))


@dataclass(slots=True)
class _Count:
    """What this run has computed so far; passes each outcome on to `watch`."""

    watch: Watch
    computed: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, outcome: Outcome | PartReport) -> None:
        if isinstance(outcome, PartReport):
            self.computed += outcome.images
        elif not isinstance(outcome, Failure):
            self.computed += 1
        elif len(self.failures) < LISTED_FAILURES:
            self.failures.append(outcome)
        self.watch(outcome)

    def features(self, outcomes: Iterable[Outcome]) -> Iterator[ImageFeatures]:
        """Count `outcomes`, and pass on those that are features."""
        for outcome in outcomes:
            self.add(outcome)
            if not isinstance(outcome, Failure):
                yield outcome


def _process(
    extractor: Extractor, chunks: list[Chunk], cluster: Cluster | None, count: _Count
) -> None:
    if not chunks:
        return
    if cluster is None:
        with contextlib.closing(extractor.process(chunks, watch=count.add)) as parts:
            for _ in parts:
                pass
        return
    # Only counts come back from the workers; the errors table has the failures themselves.
    with contextlib.closing(process_on_ray(extractor, chunks, cluster)) as parts:
        for report in parts:
            count.add(report)
