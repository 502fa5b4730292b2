"""Writes the features of a collection to a folder of Parquet files, one part file per chunk."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Chunk, Failure, file_state
from dinov2rt.extraction.image_features import ImageFeatures, ScaledImages
from dinov2rt.extraction.parquet import (
    FeatureType,
    feature_schema,
    read_rows,
    write_failures,
    write_features,
)
from dinov2rt.extraction.reader import ERRORS_FOLDER, num_rows, read_metadata, read_scaled
from dinov2rt.extraction.resume import (
    OPTION_KEYS,
    kept_failures,
    merged,
    settings_differ,
    to_retry,
)
from dinov2rt.files import refused

_PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True, slots=True)
class PartReport:
    """The contents of one part: `images` rows of features, and `failures` rows of errors.

    `scaled` counts the images that were scaled to fit.
    """

    images: int
    failures: int
    scaled: ScaledImages = field(default_factory=ScaledImages)

    def __add__(self, other: "PartReport") -> "PartReport":
        return PartReport(
            self.images + other.images,
            self.failures + other.failures,
            self.scaled + other.scaled,
        )


@dataclass(frozen=True, slots=True)
class FeatureDataset:
    """A folder of parts, and the settings of its features. Picklable; several processes may write.

    A part has one row per image, with the columns of `feature_schema`. If images of a chunk failed,
    the folder `_errors` has a file of the same name with the columns of `write_failures`.

    A part gets its name only when it is complete and on disk. The name contains a hash of the chunk
    and of the options, so that a later run finds the parts that it can reuse.
    """

    folder: Path
    architecture: Architecture
    dtype: FeatureType
    patch_tokens: bool
    metadata: Mapping[str, str]

    def part(self, chunk: Chunk) -> Path:
        """The file for the features of `chunk`."""
        options = [self.metadata[key] for key in OPTION_KEYS if key in self.metadata]
        made_of = json.dumps([options, chunk.identity])
        digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
        return self.folder / f"part-{chunk.index:06d}-{digest}.parquet"

    def has(self, chunk: Chunk) -> bool:
        """Whether `chunk` is done; a chunk that is limited to some images is not."""
        return chunk.only is None and self.part(chunk).exists()

    def report(self, chunk: Chunk) -> PartReport:
        """The report on the part of `chunk`, which must be done.

        Raises:
            InputError: the part is missing or damaged.
        """
        part = self.part(chunk)
        errors = self._errors(part)
        failures = num_rows(errors) if errors.exists() else 0
        return PartReport(num_rows(part), failures, ScaledImages.of(read_scaled(part)))

    @contextlib.contextmanager
    def resumed(
        self, chunks: Sequence[Chunk], *, retry_failed: bool = False
    ) -> Iterator[list[Chunk]]:
        """Create or resume the folder for `chunks`; yields the chunks that are still missing.

        For chunks with failures, it yields the failed images whose files have changed, or all
        failed images if `retry_failed` is set. Incomplete files of a killed run are removed, and
        also parts of other settings that have no features. Within the context, no other process can
        resume the folder.

        Raises:
            InputError: the folder has other features or other files, or another process writes it.
            Dinov2rtError: the folder cannot be created.
        """
        try:
            (self.folder / ERRORS_FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused(self.folder, error) from error
        with _locked(self.folder):
            for partial in self.folder.rglob(f".*{_PARTIAL_SUFFIX}"):
                partial.unlink(missing_ok=True)
            yield list(self._missing(chunks, self._done(chunks), retry_failed))

    def stage(self, chunk: Chunk, outcomes: Iterable[ImageFeatures | Failure]) -> "StagedPart":
        """Write the part of `chunk` under a temporary name; `StagedPart.commit` renames it.

        Raises:
            InputError: a feature does not fit into float16.
            Dinov2rtError: the part cannot be written.
        """
        part = self.part(chunk)
        staged = StagedPart(self._errors(part), part)
        failures = kept_failures(chunk, staged.errors)
        rows = _without_failures(chunk, outcomes, failures)
        scaled: list[ImageSize] = []
        if chunk.only is not None:
            rows = merged(chunk, read_rows(part), rows)
        try:
            with _written(staged.partial(part), part) as file:
                images = write_features(file, self._schema(), noting_scaled(rows, scaled))
            if failures:
                with _written(staged.partial(staged.errors), staged.errors) as file:
                    write_failures(file, failures)
        except BaseException:
            staged.discard()
            raise
        staged.report = PartReport(images, len(failures), ScaledImages.of(scaled))
        return staged

    def _schema(self) -> Any:
        return feature_schema(
            self.architecture, self.dtype, self.metadata, patch_tokens=self.patch_tokens
        )

    def _errors(self, part: Path) -> Path:
        return self.folder / ERRORS_FOLDER / part.name

    def _missing(
        self, chunks: Sequence[Chunk], done: set[str], retry_failed: bool
    ) -> Iterator[Chunk]:
        """The chunks that are not done, and the parts of others that shall be retried."""
        for chunk in chunks:
            part = self.part(chunk)
            if part.name not in done:
                yield chunk
                continue
            again = to_retry(chunk, part, self._errors(part), also_unchanged=retry_failed)
            if again is not None:
                yield again

    def _done(self, chunks: Sequence[Chunk]) -> set[str]:
        """The names of the existing parts; checks that all belong to `chunks` and these options."""
        wanted = {self.part(chunk).name for chunk in chunks}
        there = {entry.name for entry in self.folder.iterdir() if entry.name[0] not in "._"}
        for name in sorted(there - wanted):
            self._remove_without_features(self.folder / name)
        return there & wanted

    def _remove_without_features(self, part: Path) -> None:
        """Remove a part of other settings if all its images failed; otherwise refuse it."""
        metadata: dict[str, str] = {}
        with contextlib.suppress(InputError):
            metadata = read_metadata(part)
        if "variant" not in metadata:
            raise InputError(f"{part} is not part of a feature dataset; write to another folder")
        if num_rows(part):
            raise InputError(self._difference(part, metadata))
        self._errors(part).unlink(missing_ok=True)
        part.unlink()

    def _difference(self, part: Path, metadata: Mapping[str, str]) -> str:
        """Why `part`, with `metadata`, does not belong to these chunks and options, in one line."""
        if (difference := settings_differ(metadata, self.metadata)) is not None:
            return f"{self.folder} was begun with {difference}"
        return (
            f"{self.folder} was begun with other images, another order or another number of images "
            f"per part ({part.name} does not belong to this run); use the same settings as before, "
            "or write to another folder"
        )


@dataclass(slots=True)
class StagedPart:
    """A part that is written under a temporary name."""

    errors: Path
    part: Path
    report: PartReport = PartReport(0, 0)
    _token: str = field(default_factory=lambda: secrets.token_hex(4))

    def partial(self, file: Path) -> Path:
        """The temporary name of `file`, different for every try."""
        return file.with_name(f".{file.name}.{self._token}{_PARTIAL_SUFFIX}")

    def commit(self) -> PartReport:
        """Sync the files to disk and rename them: first the errors, last the features.

        Raises:
            Dinov2rtError: the files cannot be synced or renamed.
        """
        try:
            if self.report.failures:
                _put(self.partial(self.errors), self.errors)
            else:  # an earlier try may have left errors without features
                self.errors.unlink(missing_ok=True)
            _put(self.partial(self.part), self.part)
        except OSError as error:
            self.discard()
            raise refused(self.part, error) from error
        return self.report

    def discard(self) -> None:
        """Remove the temporary files."""
        for file in (self.errors, self.part):
            with contextlib.suppress(OSError):
                self.partial(file).unlink()


@contextlib.contextmanager
def _written(partial: Path, file: Path) -> Iterator[BinaryIO]:
    try:
        with partial.open("wb") as stream:
            yield stream
    except OSError as error:
        raise refused(file, error) from error


def _put(partial: Path, file: Path) -> None:
    """Rename durably: after a power cut, the file is complete or does not exist."""
    _sync(partial)
    partial.replace(file)
    _sync(file.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder; the kernel releases the lock when this process ends or is killed."""
    import fcntl  # exists only on Unix

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(
            f"another process is writing {folder}; wait for it, or write to another folder"
        ) from error
    finally:
        os.close(descriptor)


def _without_failures(
    chunk: Chunk, outcomes: Iterable[ImageFeatures | Failure], failures: list[Failure]
) -> Iterator[ImageFeatures]:
    """Yield the features; append failures to `failures`, with the state of their files."""
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            state = outcome.file_state or file_state(chunk.file_of(outcome.key))
            failures.append(replace(outcome, file_state=state))
        else:
            yield outcome


def noting_scaled(
    rows: Iterable[ImageFeatures], scaled: list[ImageSize]
) -> Iterator[ImageFeatures]:
    """Yield `rows`, and append the original sizes of scaled images to `scaled`."""
    for row in rows:
        if row.scaled_from is not None:
            scaled.append(row.scaled_from)
        yield row
