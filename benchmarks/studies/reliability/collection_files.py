"""Sound files of images, labels and features, and what reads them."""

import io
import random
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dinov2rt.analysis.index import index_features
from dinov2rt.analysis.labels import find_labels
from dinov2rt.analysis.vectors import Token, open_collection
from dinov2rt.benchmarks.studies.reliability.file_kind import Kind
from dinov2rt.benchmarks.studies.reliability.small_bundle import write_small_bundle
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.variants import find_variant
from dinov2rt.extraction.chunks import Failure
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.extraction.decoding import Decoding, decode
from dinov2rt.extraction.job import extract_features
from dinov2rt.extraction.reader import read_features
from dinov2rt.optional import require
from dinov2rt.runtime.images import load_image
from dinov2rt.runtime.model import load
from dinov2rt.runtime.preprocess import Preprocess

_LABELS = [(f"{label}/{index}.png", label) for index in range(3) for label in ("cat", "dögs")]
_PATCH_SIZE = find_variant("dinov2_vits14").patch_size
_DECODING = Decoding(Preprocess(), Snap.CROP, max_pixels=2**22, patch_size=_PATCH_SIZE)


def _photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    _photo().save(buffer, format=image_format)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer, image = io.BytesIO(), _encoded("JPEG")
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.jpg", "é" * 60 + ".jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        archive.addfile(link)
    return buffer.getvalue()


def _right_checksums(content: bytearray, rng: random.Random) -> None:
    """Half of the time, so that a changed header is believed; and a change in one to believe."""
    if rng.random() < 0.5:
        return
    start = 512 * rng.randrange(max(1, len(content) // 512))
    header = content[start : start + 512]
    if len(header) == 512:
        header[rng.randrange(512)] = rng.randrange(256)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content[start : start + 512] = header


def _parquet() -> bytes:
    pa = require("pyarrow", extra="parquet", purpose="Parquet shards")
    parquet = require("pyarrow.parquet", extra="parquet", purpose="Parquet shards")
    buffer, image = io.BytesIO(), _encoded("PNG")
    table = pa.table({"image": [{"bytes": image, "path": "a.png"}] * 5, "label": list(range(5))})
    parquet.write_table(table, buffer, row_group_size=2)
    return buffer.getvalue()


def _read_shard(file: Path) -> list[str]:
    items = [item for chunk in find_chunks([file]) for item in chunk.items()]
    outcomes = [decode(item, _DECODING) for item in items]
    return [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]


def _read_image(file: Path) -> list[str]:
    load_image(file)
    return []


def _labels_csv() -> bytes:
    return "".join(f"{key},{label}\n" for key, label in [("key", "label"), *_LABELS]).encode()


def _labels_parquet() -> bytes:
    pa = require("pyarrow", extra="parquet", purpose="labels")
    parquet = require("pyarrow.parquet", extra="parquet", purpose="labels")
    buffer = io.BytesIO()
    keys, labels = zip(*_LABELS, strict=True)
    parquet.write_table(pa.table({"key": keys, "label": labels}), buffer)
    return buffer.getvalue()


def _features() -> bytes:
    """A part of a dataset of three images, as `dinov2rt run` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        write_small_bundle(Path(folder, "bundle"))
        (images := Path(folder, "images")).mkdir()
        for index in range(3):
            _photo().rotate(90 * index).save(images / f"{index}.png")
        with load(Path(folder, "bundle"), backend="onnxruntime", device="cpu") as model:
            extract_features(model, images, Path(folder, "features.parquet"))
        (part,) = Path(folder, "features.parquet").glob("*.parquet")
        return part.read_bytes()


def _read_labels(file: Path) -> list[str]:
    find_labels([key for key, _ in _LABELS], str(file))
    return []


def _read_features(file: Path) -> list[str]:
    read_features(file).to_pylist()
    index_features(open_collection(file), Token.CLS).search(np.ones(384, np.float32), 1)
    return []


KINDS = {
    "tar": Kind("shard.tar", _tar, _read_shard, _right_checksums),
    "parquet": Kind("shard.parquet", _parquet, _read_shard),
    "png": Kind("image.png", lambda: _encoded("PNG"), _read_image),
    "jpeg": Kind("image.jpg", lambda: _encoded("JPEG"), _read_image),
    "labels-csv": Kind("labels.csv", _labels_csv, _read_labels),
    "labels-parquet": Kind("labels.parquet", _labels_parquet, _read_labels),
    "features": Kind("part.parquet", _features, _read_features),
}
"""Files of images, labels and features."""
