"""A whole collection into one output: a folder of Parquet parts, or one .npz file."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.dataset import FeatureDataset, PartReport
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, Outcome, extract
from dinov2rt.extraction.image_features import ImageFeatures
from dinov2rt.extraction.npz import write_npz
from dinov2rt.extraction.ray_cluster import Cluster, process_on_ray
from dinov2rt.extraction.worker import feature_metadata, process_chunks
from dinov2rt.runtime.model import Model

Watch = Callable[[Outcome | PartReport], None]
"""Called with the outcome of each image. A cluster returns counts only, one report a part."""


def extract_to_parts(
    model: Model,
    chunks: list[Chunk],
    options: ExtractOptions,
    dataset: FeatureDataset,
    decoders: Decoders,
    *,
    cluster: Cluster | None,
    watching: Callable[[int], AbstractContextManager[Watch]],
) -> PartReport:
    """Write every part of `dataset` that an earlier run did not.

    Args:
        model: what computes the features.
        chunks: the collection, one chunk a part.
        options: how images become batches.
        dataset: where the parts go.
        decoders: where images are decoded, unless a cluster does it.
        cluster: where to compute; None is this process.
        watching: called with the number of images that were done before. While its context is
            open, the value is called with each outcome.

    Returns:
        What all parts hold together.

    Raises:
        Dinov2rtError: the features cannot be computed or written.
    """
    with dataset.resumed(chunks) as missing:
        done = sum(map(len, chunks)) - sum(map(len, missing))
        with watching(done) as watch:
            if missing and cluster is not None:
                _extract_on_ray(model, missing, options, dataset, cluster, watch)
            else:
                _extract_here(model, missing, options, dataset, decoders, watch)
        reports = [dataset.report(chunk) for chunk in chunks]
    return PartReport(
        sum(report.images for report in reports), sum(report.failures for report in reports)
    )


def extract_to_npz(
    model: Model,
    chunks: list[Chunk],
    options: ExtractOptions,
    file: Path,
    decoders: Decoders,
    *,
    watch: Watch,
) -> int:
    """Write the features of all images to `file`, and return how many there were.

    There is no file if no image can be used. `watch` is called with each outcome.

    Raises:
        Dinov2rtError: the features cannot be computed or written.
    """
    outcomes = extract(model, chunks, options, decoders)
    with contextlib.closing(outcomes):  # its threads end here, whatever happens to the rows
        rows = _rows((outcome for _, outcome in outcomes), watch)
        first = next(rows, None)
        if first is None:
            return 0
        metadata = feature_metadata(model, options)
        return write_npz(file, itertools.chain([first], rows), metadata)


def _extract_here(
    model: Model,
    chunks: list[Chunk],
    options: ExtractOptions,
    dataset: FeatureDataset,
    decoders: Decoders,
    watch: Watch,
) -> None:
    parts = process_chunks(model, chunks, options, dataset, decoders, watch=watch)
    with contextlib.closing(parts):
        for _ in parts:
            pass


def _extract_on_ray(
    model: Model,
    chunks: list[Chunk],
    options: ExtractOptions,
    dataset: FeatureDataset,
    cluster: Cluster,
    watch: Watch,
) -> None:
    """Only counts come back from the workers; the errors table has the failures themselves."""
    with contextlib.closing(process_on_ray(model, chunks, options, dataset, cluster)) as parts:
        for report in parts:
            watch(report)


def _rows(outcomes: Iterable[Outcome], watch: Watch) -> Iterator[ImageFeatures]:
    for outcome in outcomes:
        watch(outcome)
        if not isinstance(outcome, Failure):
            yield outcome
