"""The extractor computes chunks of a collection and writes them as parts of a feature dataset."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Self

from dinov2rt._version import __version__
from dinov2rt.extraction.chunks import Chunk
from dinov2rt.extraction.dataset import FeatureDataset, PartReport, StagedPart
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, ImageOutcome, extract, layer_outputs
from dinov2rt.extraction.image_features import as_unicode
from dinov2rt.extraction.parquet import LAYERS, PATCH_SIZE, FeatureType
from dinov2rt.runtime.model import Model

MEANINGLESS = "the weights are synthetic: these features mean nothing, they only exercise the path"


@dataclass(frozen=True, slots=True)
class Extractor:
    """Computes chunks of a collection and writes each as a part of a dataset.

    The caller owns the model and the decoders, and closes them. Another process can do the same
    work with a pickled copy: it loads the model again and starts its own decoders.

    Attributes:
        model: computes the features.
        options: how images become batches.
        dataset: the folder of parts.
        decoders: decode the images.
    """

    model: Model
    options: ExtractOptions
    dataset: FeatureDataset
    decoders: Decoders

    @classmethod
    def into(
        cls,
        folder: Path,
        model: Model,
        options: ExtractOptions,
        decoders: Decoders,
        *,
        dtype: FeatureType = FeatureType.FLOAT32,
        root: Path = Path(),
    ) -> Self:
        """The extractor that fills the dataset in `folder`; nothing is written yet.

        `root` is the folder that the keys of the images are relative to.
        """
        settings = {"dtype": str(dtype), "patch_tokens": "yes" if options.patch_tokens else "no"}
        metadata = feature_metadata(model, options, root) | settings
        dataset = FeatureDataset(folder, model.architecture, dtype, options.patch_tokens, metadata)
        return cls(model, options, dataset, decoders)

    def process(
        self, chunks: Iterable[Chunk], *, watch: Callable[[ImageOutcome], None] = lambda _: None
    ) -> Generator[PartReport, None, None]:
        """Compute `chunks` and write each as a part; those whose part exists are skipped.

        The next chunks are decoded while one is computed, and computed while one is written to
        disk. `chunks` is read ahead. `watch` is called with the outcome of each image.

        Yields:
            A report on each new part, when it is safely on disk.

        Raises:
            BackendError: the model cannot compute a batch.
            Dinov2rtError: a decoder died, or a part cannot be written.
        """
        missing = (chunk for chunk in chunks if not self.dataset.has(chunk))
        committing: Future[PartReport] | None = None
        with (
            ThreadPoolExecutor(1) as disk,
            contextlib.closing(self._outcomes(missing)) as outcomes,
        ):
            for chunk, group in itertools.groupby(outcomes, key=itemgetter(0)):
                part = self.dataset.stage(chunk, _watched((outcome for _, outcome in group), watch))
                before, committing = committing, _submitted(disk, part)
                if before is not None:
                    yield before.result()
            if committing is not None:
                yield committing.result()

    def process_chunk(self, chunk: Chunk) -> PartReport:
        """Compute one chunk and write its part, unless it exists; safe to call again.

        To decode one chunk while another is computed, use `process`.

        Raises:
            BackendError: the model cannot compute a batch.
            Dinov2rtError: a decoder died, or the part cannot be written.
        """
        for _ in self.process([chunk]):
            pass
        return self.dataset.report(chunk)

    def on_cores(self, cores: int) -> Self:
        """A copy for another machine, with `cores` CPU cores there; to be pickled.

        The copy keeps this model's precision, which is in the dataset's metadata, even if the other
        machine would choose another one.
        """
        dataset = replace(self.dataset, folder=self.dataset.folder.absolute())
        model = model_on_cores(self.model, cores)
        return replace(self, model=model, dataset=dataset, decoders=Decoders(cores))

    def _outcomes(
        self, chunks: Iterable[Chunk]
    ) -> Generator[tuple[Chunk, ImageOutcome], None, None]:
        return extract(self.model, chunks, self.options, self.decoders)


def model_on_cores(model: Model, cores: int) -> Model:
    """`model` to be pickled for a machine with `cores` CPU cores, in the precision of this one."""
    options = replace(model.options, threads=cores, precision=model.graph.precision)
    return replace(model, options=options)


def _submitted(disk: ThreadPoolExecutor, part: StagedPart) -> Future[PartReport]:
    try:
        return disk.submit(part.commit)
    except RuntimeError:  # the system starts no thread
        part.discard()
        raise


def feature_metadata(model: Model, options: ExtractOptions, root: Path) -> dict[str, str]:
    """The model and the settings of the features of the images below `root`, as text."""
    weights = model.manifest.weights
    metadata = {
        "dinov2rt_version": __version__,
        "variant": model.manifest.name,
        "weights_source": weights.source,
        "weights_sha256": weights.sha256,
        "architecture": model.architecture.fingerprint,
        PATCH_SIZE: str(model.architecture.patch_size),
        "precision": str(model.graph.precision),
        "preprocess": options.preprocess.name,
        "snap": str(options.snap),
        "max_pixels": str(model.options.max_pixels),
        "over_max_pixels": "scale" if options.scale else "refuse",
        "root": as_unicode(str(root)),
    }
    if layer_outputs(model, options):
        layers = ",".join(map(str, model.graph.layers))
        metadata[LAYERS] = f"{layers} of {model.architecture.depth}"
    return metadata | ({"warning": MEANINGLESS} if is_synthetic(model) else {})


def is_synthetic(model: Model) -> bool:
    """Whether the weights are random (`synthetic:SEED`), so that the features mean nothing."""
    return model.manifest.weights.source.startswith("synthetic:")


def _watched(
    outcomes: Iterable[ImageOutcome], watch: Callable[[ImageOutcome], None]
) -> Iterator[ImageOutcome]:
    for outcome in outcomes:
        watch(outcome)
        yield outcome
