"""Writes predictions: JSON for classes, 16-bit PNG or NPY for depth, palette PNG for segments."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import InputError
from dinov2rt.extraction.answers.prediction import Answered
from dinov2rt.extraction.answers.record import Record, checked
from dinov2rt.extraction.chunks import Chunk
from dinov2rt.files import read_regular, replacing
from dinov2rt.foreign import escaped
from dinov2rt.named_enum import unknown_name
from dinov2rt.optional import require
from dinov2rt.runtime.predictions import Classification, Depth, Prediction, Segmentation

DEPTH_FORMATS = ("png", "npy")
SETTINGS, RECORDS = "settings.json", "records"
_MOST_GREY = 65535
_MOST_BYTES = 2**26
_MOST_BYTES_IN_NAME = 160
"""File systems allow 255; temporary names are longer than final ones."""

_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class PredictionFolder:
    """A folder of predictions, which the same command resumes.

    Each image has a record `records/NAME.json`, which is written after all its other files; those
    are in folders named after the heads. `settings` describe how they were made; a folder with
    other settings is refused. Depth is float32 metres ("npy"), or 16-bit grey in steps of the
    range / 65535 ("png").
    """

    folder: Path
    settings: dict[str, Any]
    depth_format: str = "png"
    top: int = 5

    def open(self) -> None:
        """Create the folder, or check that it was created with the same settings.

        Raises:
            InputError: the folder has other settings, or other contents.
        """
        if self.depth_format not in DEPTH_FORMATS:
            raise unknown_name("depth format", self.depth_format, DEPTH_FORMATS)
        file = self.folder / SETTINGS
        wanted = self.settings | {"depth_format": self.depth_format, "top": self.top}
        if file.is_file():
            found = _read_json(file)
            other = sorted(name for name in wanted if found.get(name) != wanted[name])
            if other:
                raise InputError(
                    f"{self.folder} holds answers with another {', '.join(other)}; "
                    "choose another --out, or remove it"
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} is not empty and holds no answers; choose another --out"
            )
        (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
        _write_text(file, json.dumps(wanted, indent=2) + "\n")

    def missing(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The parts of `chunks` that have no record yet."""
        for chunk in chunks:
            only = frozenset(at for at, key in enumerate(chunk.keys) if not self.has(key))
            if only:
                yield replace(chunk, only=only)

    def has(self, key: str) -> bool:
        """Whether the image `key` is done."""
        return self._record(key).is_file()

    def write(self, answer: Answered) -> dict[str, Any]:
        """Write the predictions for one image, its record last; return the record."""
        record: dict[str, Any] = {
            "image": answer.key,
            "height": answer.size.height,
            "width": answer.size.width,
            "heads": {
                head: self._write_one(head, answer.key, prediction)
                for head, prediction in answer.predictions.items()
            },
        }
        _write_text(self._record(answer.key), json.dumps(record, indent=2) + "\n")
        return record

    def records(self, chunks: Iterable[Chunk]) -> Iterator[dict[str, Any]]:
        """The records of the images of `chunks` that are done, in order."""
        for chunk in chunks:
            for key in filter(self.has, chunk.keys):
                yield _read_record(self._record(key))

    def place(self, folder: str, key: str, suffix: str) -> Path:
        """The path of a file about the image `key`."""
        return self.folder / folder / f"{file_name(key)}{suffix}"

    def _record(self, key: str) -> Path:
        return self.place(RECORDS, key, ".json")

    def _write_one(self, head: str, key: str, prediction: Prediction) -> dict[str, Any]:
        if isinstance(prediction, Classification):
            count = min(self.top, prediction.logits.shape[1])
            (best,) = prediction.top(count)
            return {
                "classes": [
                    {"index": each.index, "name": each.name, "probability": each.probability}
                    for each in best
                ]
            }
        if isinstance(prediction, Depth):
            return self._write_depth(head, key, prediction)
        return self._write_segments(head, key, prediction)

    def _write_depth(self, head: str, key: str, depth: Depth) -> dict[str, Any]:
        metres = depth.metres[0]
        file = self.place(head, key, f".{self.depth_format}")
        facts: dict[str, Any] = {"file": self._relative(file)}
        if self.depth_format == "npy":
            _write(file, lambda partial: _save_npy(partial, metres))
        else:
            scale = depth.depth_range[1] / _MOST_GREY
            grey = np.clip(np.rint(metres / scale), 0, _MOST_GREY).astype(np.uint16)
            _write(file, lambda partial: _image(grey).save(partial, format="PNG"))
            facts["metres_per_step"] = scale
        return facts | {"nearest_m": float(metres.min()), "farthest_m": float(metres.max())}

    def _write_segments(self, head: str, key: str, segments: Segmentation) -> dict[str, Any]:
        classes = segments.classes[0]
        image = _image(classes)
        image.putpalette(segments.palette.tobytes())
        file = self.place(head, key, ".png")
        _write(file, lambda partial: image.save(partial, format="PNG"))
        index, count = np.unique(classes, return_counts=True)
        order = np.argsort(-count, kind="stable")
        return {
            "file": self._relative(file),
            "classes": [
                {
                    "index": int(index[at]),
                    "name": segments.names[index[at]],
                    "share": float(count[at] / classes.size),
                }
                for at in order
            ],
        }

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


def file_name(key: str) -> str:
    """A relative path for the image `key`, different for every key.

    A key that would lead out of the folder, or that no file system takes, gets a hash of the key in
    its name.
    """
    parts = [part for part in PurePosixPath(key).parts if part not in ("/", "..", "//")]
    name = "/".join(map(_file_system_name, parts)) or "image"
    if name == key:
        return name
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name}-{digest[:_HASH_DIGITS]}"


def _file_system_name(part: str) -> str:
    """`part`, printable and short enough for the suffixes that are added to it."""
    name = escaped(part)
    return name if len(name.encode()) <= _MOST_BYTES_IN_NAME else name[: _MOST_BYTES_IN_NAME // 4]


def _image(values: NDArray[Any]) -> Any:
    return require("PIL.Image", extra="image", purpose="writing answers as PNG").fromarray(values)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_regular(file, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}); remove it to have it again") from error
    if not isinstance(document, dict):
        raise InputError(f"{file} holds no JSON object; remove it to have it again")
    return document


def _read_record(file: Path) -> Record:
    try:
        return checked(_read_json(file))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file} is no record of answers ({error}); remove it to have it again"
        ) from error


def _save_npy(file: Path, values: NDArray[Any]) -> None:
    with file.open("wb") as stream:
        np.save(stream, values)


def _write_text(file: Path, text: str) -> None:
    _write(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def _write(file: Path, write: Callable[[Path], Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        write(partial)
