"""Writes predictions: JSON for classes, 16-bit PNG or NPY for depth, palette PNG for segments."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import InputError
from dinov2rt.extraction.answers.prediction import Answered
from dinov2rt.extraction.chunks import Chunk
from dinov2rt.files import replacing
from dinov2rt.named_enum import unknown_name
from dinov2rt.optional import require
from dinov2rt.runtime.predictions import Classification, Depth, Prediction, Segmentation

DEPTH_FORMATS = ("png", "npy")
SETTINGS, RECORDS = "settings.json", "records"
_MOST_GREY = 65535


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
            found = json.loads(file.read_text(encoding="utf-8"))
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
        file.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")

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
                yield json.loads(self._record(key).read_text(encoding="utf-8"))

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

    A key that would lead out of the folder gets a checksum of the key in its name.
    """
    parts = PurePosixPath(key).parts
    inside = [part for part in parts if part not in ("/", "..", "//")]
    name = "/".join(inside) or "image"
    return name if len(inside) == len(parts) else f"{name}-{zlib.crc32(key.encode()):08x}"


def _image(values: NDArray[Any]) -> Any:
    return require("PIL.Image", extra="image", purpose="writing answers as PNG").fromarray(values)


def _save_npy(file: Path, values: NDArray[Any]) -> None:
    with file.open("wb") as stream:
        np.save(stream, values)


def _write_text(file: Path, text: str) -> None:
    _write(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def _write(file: Path, write: Callable[[Path], Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        write(partial)
