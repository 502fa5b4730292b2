"""The predictor computes chunks of a collection and writes the predictions for each image."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Self

from dinov2rt.extraction.answers.files import PredictionFolder
from dinov2rt.extraction.answers.prediction import Answered, PredictOptions, predict_chunks
from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extractor import model_on_cores
from dinov2rt.extraction.job import num_images
from dinov2rt.extraction.ray_cluster import Cluster, process_on_ray
from dinov2rt.runtime.model import Model

Draw = Callable[[Model, PredictionFolder, Answered], None]
"""Writes the pictures of an image's predictions; a function of a module, so that it pickles."""

Watch = Callable[[int, Sequence[Failure]], None]
"""Called with the number of images that are done, and with the failures among them."""

Watching = Callable[[int], AbstractContextManager[Watch]]
"""Called with the number of images that an earlier run has done; yields the watch for the rest."""


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """The result of a chunk: how many `images` have predictions now, and the `failures`."""

    images: int
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Predictor:
    """Computes chunks of a collection and writes the predictions to a folder.

    The caller owns the model and the decoders, and closes them. Another process can do the same
    work with a pickled copy: it loads the model again and starts its own decoders.

    Attributes:
        model: computes the predictions.
        options: which heads answer, and how images become batches.
        folder: the predictions; the caller has opened it.
        decoders: decode the images.
        draw: draws each image's predictions; None draws nothing.
    """

    model: Model
    options: PredictOptions
    folder: PredictionFolder
    decoders: Decoders
    draw: Draw | None = None

    def process(self, chunks: Iterable[Chunk], watch: Watch) -> None:
        """Write the predictions for every image of `chunks`, the record of an image last.

        Raises:
            BackendError: the model cannot compute a batch.
            Dinov2rtError: a decoder died, or a file cannot be written.
        """
        answers = predict_chunks(self.model, chunks, self.options, self.decoders)
        with contextlib.closing(answers):
            for answer in answers:
                if isinstance(answer, Failure):
                    watch(1, [answer])
                    continue
                if self.draw is not None:
                    self.draw(self.model, self.folder, answer)
                self.folder.write(answer)
                watch(1, [])

    def process_chunk(self, chunk: Chunk) -> PredictionReport:
        """Predict for the images of one chunk that have no record; safe to call again.

        Raises:
            BackendError: the model cannot compute a batch.
            Dinov2rtError: a decoder died, or a file cannot be written.
        """
        failures: list[Failure] = []
        self.process(self.folder.missing([chunk]), lambda _, found: failures.extend(found))
        return PredictionReport(len(chunk) - len(failures), tuple(failures))

    def on_cores(self, cores: int) -> Self:
        """A copy for another machine, with `cores` CPU cores there; to be pickled."""
        folder = replace(self.folder, folder=self.folder.folder.absolute())
        model = model_on_cores(self.model, cores)
        return replace(self, model=model, folder=folder, decoders=Decoders(cores))


def predict_to_folder(
    predictor: Predictor, chunks: Sequence[Chunk], *, cluster: Cluster | None, watching: Watching
) -> list[Failure]:
    """Write the predictions that an earlier run did not; returns the images that cannot be used.

    Args:
        predictor: the model, its options and the folder.
        chunks: the collection.
        cluster: where to compute; None is this process.
        watching: gives the function that is called with what is done.

    Raises:
        InputError: the folder has other settings, or other contents.
        Dinov2rtError: the predictions cannot be computed or written.
    """
    predictor.folder.open()
    missing = list(predictor.folder.missing(chunks))
    failures: list[Failure] = []
    with watching(num_images(chunks) - num_images(missing)) as watch:

        def note(done: int, found: Sequence[Failure]) -> None:
            failures.extend(found)
            watch(done, found)

        if cluster is None:
            predictor.process(missing, note)
        elif missing:
            with contextlib.closing(process_on_ray(predictor, missing, cluster)) as reports:
                for report in reports:
                    note(report.images + len(report.failures), report.failures)
    return failures
