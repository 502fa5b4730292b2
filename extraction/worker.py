"""Chunks of a collection into the parts of a feature dataset: what one worker does."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path

from dinov2rt._version import __version__
from dinov2rt.extraction.chunks import Chunk
from dinov2rt.extraction.dataset import FeatureDataset, PartReport
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, Outcome, extract
from dinov2rt.extraction.parquet import FeatureType
from dinov2rt.runtime.images import Preprocess
from dinov2rt.runtime.model import Model

MEANINGLESS = "the weights are synthetic: these features mean nothing, they only exercise the path"


def feature_dataset(
    folder: Path, model: Model, options: ExtractOptions, dtype: FeatureType = FeatureType.FLOAT32
) -> FeatureDataset:
    """The dataset in `folder` that `model` and `options` fill; nothing is written yet."""
    settings = {
        "dtype": str(dtype),
        "patch_tokens": "yes" if options.patch_tokens else "no",
        "max_pixels": str(model.options.max_pixels),
    }
    metadata = feature_metadata(model, options) | settings
    return FeatureDataset(folder, model.variant, dtype, options.patch_tokens, metadata)


def feature_metadata(model: Model, options: ExtractOptions) -> dict[str, str]:
    """What made the features, as text."""
    weights = model.manifest.weights
    metadata = {
        "dinov2rt_version": __version__,
        "variant": model.variant.name,
        "weights_source": weights.source,
        "weights_sha256": weights.sha256,
        "precision": str(model.graph.precision),
        "preprocess": _preprocess_name(options.preprocess),
        "snap": str(options.snap),
    }
    return metadata | ({"warning": MEANINGLESS} if is_synthetic(model) else {})


def is_synthetic(model: Model) -> bool:
    """Whether the weights were made from a seed, and the features mean nothing."""
    return model.manifest.weights.source.startswith("synthetic:")


def process_chunks(
    model: Model,
    chunks: Iterable[Chunk],
    options: ExtractOptions,
    dataset: FeatureDataset,
    decoders: Decoders,
    *,
    watch: Callable[[Outcome], None] = lambda _: None,
) -> Generator[PartReport, None, None]:
    """Compute `chunks` and write each as a part of `dataset`; those whose part is there are left.

    The next chunks are decoded while one is computed, and computed while one is written to disk.

    Args:
        model: what computes them.
        chunks: what to compute; read ahead.
        options: how images become batches.
        dataset: where the parts go.
        decoders: where images are decoded.
        watch: told of each image as it is done.

    Yields:
        What each newly computed part holds, once it is safely on the disk.

    Raises:
        BackendError: the model cannot compute a batch.
        Dinov2rtError: a decoder died, or a part cannot be written.
    """
    missing = (chunk for chunk in chunks if not dataset.has(chunk))
    committing: Future[PartReport] | None = None
    with (
        ThreadPoolExecutor(1) as disk,
        contextlib.closing(extract(model, missing, options, decoders)) as outcomes,
    ):
        for chunk, group in itertools.groupby(outcomes, key=itemgetter(0)):
            part = dataset.stage(chunk, _watched((outcome for _, outcome in group), watch))
            before, committing = committing, disk.submit(part.commit)
            if before is not None:
                yield before.result()
        if committing is not None:
            yield committing.result()


def process_chunk(
    model: Model,
    chunk: Chunk,
    options: ExtractOptions,
    dataset: FeatureDataset,
    decoders: Decoders,
) -> PartReport:
    """Compute one chunk and write its part, unless it is there; the same again after a retry.

    All arguments but `model` and `decoders` can be pickled; those two belong to the process that
    calls. To decode one chunk while another is computed, use `process_chunks`.

    Raises:
        BackendError: the model cannot compute a batch.
        Dinov2rtError: a decoder died, or the part cannot be written.
    """
    for _ in process_chunks(model, [chunk], options, dataset, decoders):
        pass
    return dataset.report(chunk)


def _watched(outcomes: Iterable[Outcome], watch: Callable[[Outcome], None]) -> Iterator[Outcome]:
    for outcome in outcomes:
        watch(outcome)
        yield outcome


def _preprocess_name(preprocess: Preprocess) -> str:
    """What `Preprocess.parse` takes, where it has a name for these steps."""
    for name in ("native", "classification"):
        if preprocess == Preprocess.parse(name):
            return name
    crop = "" if preprocess.crop is None else f",crop:{preprocess.crop}"
    return f"short-side:{preprocess.short_side}{crop}"
