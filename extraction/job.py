"""Extracts a whole collection to one output: a folder of Parquet parts, or a .npz or .csv file."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from dinov2rt.bundle.geometry import ImageSize, Snap, SnapName
from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.collection import DEFAULT_CHUNK_IMAGES, find_chunks
from dinov2rt.extraction.dataset import PartReport
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, ImageOutcome, extract
from dinov2rt.extraction.extractor import Extractor, feature_metadata
from dinov2rt.extraction.formats import FeatureFormat, feature_format
from dinov2rt.extraction.image_features import ImageFeatures, ScaledImages
from dinov2rt.extraction.npz import write_npz
from dinov2rt.extraction.parquet import FeatureType, FeatureTypeName
from dinov2rt.extraction.ray_cluster import Cluster, process_on_ray
from dinov2rt.extraction.text_table import write_csv
from dinov2rt.runtime.model import Model
from dinov2rt.runtime.preprocess import Preprocess

LISTED_FAILURES = 100
"""Failures that are kept in memory; all are counted."""

Watch = Callable[[ImageOutcome | PartReport], None]
"""Called with the outcome of each image; on a cluster, with one report per part."""

Watching = Callable[[int], AbstractContextManager[Watch]]
"""Called with the number of images that an earlier run has done; yields the watch for the rest."""


@dataclass(frozen=True, slots=True)
class JobReport:
    """The outcome of a job.

    Attributes:
        images: images whose features the output holds.
        failed: images without features in the output.
        computed: images of `images` that this run computed.
        failures: the first failures that this run met.
        left: images that were neither done nor known to fail when this run began.
        scaled: images of `images` that were scaled to fit `max_pixels`.
        lost_transparency: how many of `computed` had transparency that was dropped; a cluster does
            not tell.
    """

    images: int
    failed: int
    computed: int
    failures: tuple[Failure, ...] = ()
    left: int | None = None
    scaled: ScaledImages = field(default_factory=ScaledImages)
    lost_transparency: int = 0


@contextlib.contextmanager
def unwatched(done: int) -> Iterator[Watch]:  # noqa: ARG001  # as every `Watching`
    """Ignore all outcomes."""
    yield lambda _: None


def extract_features(
    model: Model,
    paths: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    preprocess: Preprocess | str = "native",
    snap: Snap | SnapName = "crop",
    batch_size: int = 8,
    patch_tokens: bool = False,
    layer_tokens: bool = False,
    scale: bool = True,
    dtype: FeatureType | FeatureTypeName = "float32",
    retry_failed: bool = False,
    part_images: int = DEFAULT_CHUNK_IMAGES,
    image_column: str = "image",
    decoders: int = 0,
    watching: Watching = unwatched,
) -> JobReport:
    """Write the features of folders, files and shards to `out`, as `dinov2rt run` does.

    Args:
        model: computes the features.
        paths: what to read, as in `find_chunks`; images that cannot be used do not end the work.
        out: a file, OUT.npz or OUT.csv, or a folder of parts, OUT.parquet, which the same call
            takes up again after it was stopped.
        preprocess: how images are scaled and cropped first.
        snap: how sides become whole patches.
        batch_size: images of one forward pass at most.
        patch_tokens: keep every patch token, not only their mean.
        layer_tokens: of OUT.parquet, keep the CLS tokens of the layers that the bundle was exported
            with.
        scale: scale images of more than the model's `max_pixels` to fit; else they fail.
        dtype: "float32" or "float16"; for OUT.parquet.
        retry_failed: for OUT.parquet: try again all images that failed before.
        part_images: the most images in a part of OUT.parquet.
        image_column: the column with the images in Parquet shards.
        decoders: processes that decode; 0 is a thread of this one.
        watching: gives the function that is called with each outcome.

    Raises:
        InputError: a path or argument cannot be used, or `out` was begun with other settings.
        Dinov2rtError: the features cannot be computed or written.

    Example:
        >>> report = dinov2rt.extract_features(model, "photos", "features.parquet")
        >>> report.images, report.failed
        (3, 0)
    """
    steps = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
    options = ExtractOptions(
        preprocess=steps,
        snap=Snap.parse(snap),
        batch=batch_size,
        patch_tokens=patch_tokens,
        layer_tokens=layer_tokens,
        scale=scale,
    )
    several = [paths] if isinstance(paths, Path | str) else paths
    chunks = find_chunks(several, chunk_images=part_images, image_column=image_column)
    file, kind = Path(out), FeatureType.parse(dtype)
    is_dataset = feature_format(file) is FeatureFormat.PARQUET
    with Decoders(decoders) as pool:
        if not is_dataset:
            return extract_to_file(model, chunks, options, pool, file, watching=watching)
        root = chunks[0].root
        extractor = Extractor.into(file, model, options, pool, dtype=kind, root=root)
        return extract_to_parts(
            extractor, chunks, cluster=None, watching=watching, retry_failed=retry_failed
        )


def extract_to_parts(
    extractor: Extractor,
    chunks: list[Chunk],
    *,
    cluster: Cluster | None,
    watching: Watching,
    retry_failed: bool = False,
) -> JobReport:
    """Write every part of the extractor's dataset that an earlier run did not.

    Images that failed in an earlier run are tried again if their files have changed since.

    Args:
        extractor: the model, its options and the dataset.
        chunks: the collection, one chunk a part.
        cluster: where to compute; None is this process.
        watching: gives the function that is called with each outcome.
        retry_failed: try all that failed again, changed or not.

    Raises:
        Dinov2rtError: the features cannot be computed or written.
    """
    dataset = extractor.dataset
    with dataset.resumed(chunks, retry_failed=retry_failed) as missing:
        left = num_images(missing)
        with watching(num_images(chunks) - left) as watch:
            count = _Count(watch)
            _process(extractor, missing, cluster, count)
        held = sum((dataset.report(chunk) for chunk in chunks), PartReport(0, 0))
    return JobReport(
        held.images,
        held.failures,
        count.computed,
        tuple(count.failures),
        left,
        held.scaled,
        count.lost_transparency,
    )


def extract_to_file(
    model: Model,
    chunks: list[Chunk],
    options: ExtractOptions,
    decoders: Decoders,
    file: Path,
    *,
    watching: Watching,
) -> JobReport:
    """Write the features of all images to `file`, .npz or .csv; no file if no image can be used.

    Raises:
        Dinov2rtError: the features cannot be computed or written.
    """
    outcomes = extract(model, chunks, options, decoders)
    # Closing ends its threads, even after an error.
    with contextlib.closing(outcomes), watching(0) as watch:
        count = _Count(watch)
        rows = count.features(outcome for _, outcome in outcomes)
        if (first := next(rows, None)) is not None:
            metadata = feature_metadata(model, options, chunks[0].root)
            _write(file, itertools.chain([first], rows), metadata)
    total, computed = num_images(chunks), count.computed
    scaled = ScaledImages.of(count.scaled_from)
    failures, lost = tuple(count.failures), count.lost_transparency
    return JobReport(computed, total - computed, computed, failures, total, scaled, lost)


def _write(file: Path, rows: Iterator[ImageFeatures], metadata: dict[str, str]) -> None:
    if feature_format(file) is FeatureFormat.CSV:
        write_csv(file, rows)
    else:
        write_npz(file, rows, metadata)


def num_images(chunks: Iterable[Chunk]) -> int:
    """The number of images in `chunks`."""
    return sum(map(len, chunks))


@dataclass(slots=True)
class _Count:
    """Counts the results of this run, and passes each outcome on to `watch`."""

    watch: Watch
    computed: int = 0
    failures: list[Failure] = field(default_factory=list)
    scaled_from: list[ImageSize] = field(default_factory=list)
    lost_transparency: int = 0

    def add(self, outcome: ImageOutcome | PartReport) -> None:
        if isinstance(outcome, PartReport):
            self.computed += outcome.images
        elif not isinstance(outcome, Failure):
            self.computed += 1
            self.lost_transparency += outcome.lost_transparency
        elif len(self.failures) < LISTED_FAILURES:
            self.failures.append(outcome)
        self.watch(outcome)

    def features(self, outcomes: Iterable[ImageOutcome]) -> Iterator[ImageFeatures]:
        """Count `outcomes`, and yield the features."""
        for outcome in outcomes:
            self.add(outcome)
            if not isinstance(outcome, Failure):
                if outcome.scaled_from is not None:
                    self.scaled_from.append(outcome.scaled_from)
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
    # Workers return only counts; the failures themselves are in the errors table.
    with contextlib.closing(process_on_ray(extractor, chunks, cluster)) as parts:
        for report in parts:
            count.add(report)
