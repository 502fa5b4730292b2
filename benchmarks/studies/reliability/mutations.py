r"""Damaged and forged files through the readers of dinov2rt: how many were tried and handled.

    python -m dinov2rt.benchmarks.studies.reliability.mutations [--seeds 300 --kinds tar,png]

A sound file of each kind is changed at random, a different way for every seed: bits, lengths,
repeated and missing parts, numbers at the ends of their ranges. A reader may read what it is given,
if that is still sound, or refuse it in one line (`Dinov2rtError`, or a row of the errors table).
Everything else, a crash, a line with control characters, counts as a failure.
"""

import argparse
import io
import json
import random
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.bundle.entries import FileEntry, GraphEntry, WeightsEntry
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.extraction.chunks import Failure
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.extraction.decoding import Decoding, decode
from dinov2rt.foreign import shown
from dinov2rt.optional import require
from dinov2rt.runtime.images import load_image
from dinov2rt.runtime.preprocess import Preprocess

_VARIANT = "dinov2_vits14"
_PATCH_SIZE = find_variant(_VARIANT).patch_size
_DECODING = Decoding(Preprocess(), Snap.CROP, max_pixels=2**22, patch_size=_PATCH_SIZE)
_EXTREMES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"-1\0 ",
    b"9999",
)
_MOST_CHANGES = 4


@dataclass(slots=True)
class Count:
    """The outcomes for files of one kind; `failures` are the seeds that were not handled."""

    read: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def tried(self) -> int:
        """All of them."""
        return self.read + self.refused + len(self.failures)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: what it is called, a sound one, and what reads it.

    `read` returns the lines with which parts were refused.
    """

    file: str
    sound: Callable[[], bytes]
    read: Callable[[Path], list[str]]
    repaired: Callable[[bytearray, random.Random], None] | None = None


def try_kind(kind: Kind, seeds: range) -> Count:
    """Read one changed file for each of `seeds`."""
    count, sound = Count(), kind.sound()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, kind.file)
        for seed in seeds:
            file.write_bytes(_changed(sound, random.Random(seed), kind))  # noqa: S311  # no secret
            began = time.monotonic()
            _try(kind, file, seed, count)
            count.slowest_s = max(count.slowest_s, time.monotonic() - began)
    return count


def _try(kind: Kind, file: Path, seed: int, count: Count) -> None:
    try:
        lines = kind.read(file)
    except Dinov2rtError as error:
        lines = [str(error)]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        count.failures[seed] = f"{type(error).__name__}: {shown(error)}"
        return
    if bad := [line for line in lines if not line.isprintable()]:
        count.failures[seed] = f"not one line: {bad[0]!a}"
    elif lines:
        count.refused += 1
    else:
        count.read += 1


def _changed(sound: bytes, rng: random.Random, kind: Kind) -> bytes:
    content = bytearray(sound)
    for _ in range(rng.randint(1, _MOST_CHANGES)):
        rng.choice(_CHANGES)(content, rng)
    if content and kind.repaired is not None:
        kind.repaired(content, rng)
    return bytes(content)


def _flip(content: bytearray, rng: random.Random) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _extreme(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    content[at : at + 4] = rng.choice(_EXTREMES)


def _cut(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    del content[at : at + rng.choice((1, 8, 512, len(content)))]


def _repeat(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    content[at:at] = content[at : at + rng.choice((1, 8, 512))] * rng.choice((1, 3))


def _noise(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    content[at : at + 16] = rng.randbytes(16)


_CHANGES = (_flip, _flip, _extreme, _extreme, _cut, _repeat, _noise)


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


def _golden() -> bytes:
    values = np.ones((1, 4, 3), np.float32)
    case = GoldenCase("28x28", np.zeros((1, 28, 28, 3), np.uint8), {"patch_tokens": values})
    with tempfile.TemporaryDirectory() as folder:
        Golden((case,)).write(Path(folder, "golden.npz"))
        return Path(folder, "golden.npz").read_bytes()


def _manifest() -> bytes:
    file = FileEntry("fp32.onnx", 1, "0" * 64)
    names = ("cls_token", "patch_tokens")
    graph = GraphEntry(Precision.FP32, 23, "pixels", names, (), (file,))
    source = WeightsEntry("synthetic:0", "0" * 64)
    architecture = find_variant(_VARIANT).architecture
    with tempfile.TemporaryDirectory() as folder:
        Manifest(SCHEMA_VERSION, architecture, source, (graph,), file).write(Path(folder))
        return Path(folder, MANIFEST_NAME).read_bytes()


def _safetensors() -> bytes:
    tensor = {"dtype": "F32", "shape": [1, 1, 384], "data_offsets": [0, 1536]}
    header = json.dumps({"cls_token": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(1536)


def _read_shard(file: Path) -> list[str]:
    items = [item for chunk in find_chunks([file]) for item in chunk.items()]
    outcomes = [decode(item, _DECODING) for item in items]
    return [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]


def _read_image(file: Path) -> list[str]:
    load_image(file)
    return []


def _read_golden(file: Path) -> list[str]:
    for case in Golden.read(file).cases:
        if not np.isfinite(case.images).all():
            raise InputError("images that are not finite")
    return []


def _read_manifest(file: Path) -> list[str]:
    Manifest.read(file.parent)
    return []


def _read_safetensors(file: Path) -> list[str]:
    from dinov2rt.export.weights.checkpoint import load_weights

    load_weights(str(file), find_variant(_VARIANT))
    return []


KINDS = {
    "tar": Kind("shard.tar", _tar, _read_shard, _right_checksums),
    "parquet": Kind("shard.parquet", _parquet, _read_shard),
    "png": Kind("image.png", lambda: _encoded("PNG"), _read_image),
    "jpeg": Kind("image.jpg", lambda: _encoded("JPEG"), _read_image),
    "manifest": Kind(MANIFEST_NAME, _manifest, _read_manifest),
    "npz": Kind("golden.npz", _golden, _read_golden),
    "safetensors": Kind("weights.safetensors", _safetensors, _read_safetensors),
}

_HEADER = ("file", "tried", "handled", "read as sound", "refused", "slowest s")


def table(counts: dict[str, Count]) -> Table:
    """A row for each kind of file."""
    rows = tuple(
        (
            name,
            str(count.tried),
            str(count.tried - len(count.failures)),
            str(count.read),
            str(count.refused),
            f"{count.slowest_s:.2f}",
        )
        for name, count in counts.items()
    )
    return Table("changed files", _HEADER, rows)


def main() -> int:
    """The table on standard output; 0 if everything was handled."""
    parser = argparse.ArgumentParser(prog="mutations")
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    counts = {
        name: try_kind(KINDS[name], range(arguments.seeds)) for name in arguments.kinds.split(",")
    }
    print(table(counts))
    for name, count in counts.items():
        for seed, failure in count.failures.items():
            print(f"{name}, seed {seed}: {failure}", file=sys.stderr)
    return int(any(count.failures for count in counts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
