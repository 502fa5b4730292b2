r"""Estimates the time and cost of extracting a very large collection, from given rates.

    python -m dinov2rt.benchmarks.studies.fleet \
        [--images 1e9 --gpus 64 --tflops 156 --decode-rate 100]

`--tflops` is the assumed rate of one GPU on the model. `--decode-rate` is the number of images that
a CPU core decodes per second (`python -m dinov2rt.benchmarks.studies.extraction` measures it). The
memory for the list of work is measured, on a small collection of each kind.
"""

import argparse
import gc
import io
import sys
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

from PIL import Image

from dinov2rt.benchmarks.harness.flops import flops
from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.variants import Variant, variants
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.optional import require

_SIZE = ImageSize(224, 224)
_LISTED = 2000
_HALF_BYTES = 2
_VECTORS = 2
"""Vectors per row: the CLS token and the mean of the patch tokens."""

_HEADER = (
    "variant",
    "GFLOP per image",
    "images/s",
    "hours",
    "GPU hours",
    "cores per GPU",
    "output TB",
)


def estimate(images: float, gpus: int, tflops: float, decode_rate: float) -> Table:
    """A row for each variant without registers; registers change little.

    `cores per GPU` is the number of cores that decoding needs, `output TB` the size of float16 rows
    without patch tokens.
    """
    plain = [variant for variant in variants() if not variant.num_registers]
    rows = tuple(_row(variant, images, gpus, tflops, decode_rate) for variant in plain)
    return Table("estimate", _HEADER, rows)


def _row(
    variant: Variant, images: float, gpus: int, tflops: float, decode_rate: float
) -> tuple[str, ...]:
    work = flops(variant, 1, _SIZE)
    rate = tflops * 1e12 / work
    hours = images / (rate * gpus) / 3600
    terabytes = images * _VECTORS * variant.embed_dim * _HALF_BYTES / 1e12
    return (
        variant.name,
        f"{work / 1e9:.0f}",
        f"{rate * gpus:,.0f}",
        f"{hours:.1f}",
        f"{hours * gpus:,.0f}",
        f"{rate / decode_rate:.0f}",
        f"{terabytes:.1f}",
    )


def listing_bytes() -> dict[str, float]:
    """Bytes per image of the list of work, in the process that starts the run."""
    with tempfile.TemporaryDirectory() as scratch:
        return {
            kind: _measured(folder)
            for kind, folder in (
                ("files", _files(Path(scratch, "files"))),
                ("tar shards", _tar(Path(scratch, "tar"))),
                ("Parquet shards", _parquet(Path(scratch, "parquet"))),
            )
        }


def _measured(folder: Path) -> float:
    find_chunks([folder])  # imports and caches on the first call must not count
    tracemalloc.start()
    chunks = find_chunks([folder])
    gc.collect()  # reading a tar leaves reference cycles behind
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / sum(map(len, chunks))


def _files(folder: Path) -> Path:
    folder.mkdir()
    for index in range(_LISTED):
        folder.joinpath(f"{index:012}.jpg").write_bytes(_IMAGE)
    return folder


def _tar(folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for index in range(_LISTED):
            member = tarfile.TarInfo(f"{index:012}.jpg")
            member.size = len(_IMAGE)
            shard.addfile(member, io.BytesIO(_IMAGE))
    return folder


def _parquet(folder: Path) -> Path:
    arrow = require("pyarrow", extra="parquet", purpose="a Parquet shard")
    parquet = require("pyarrow.parquet", extra="parquet", purpose="a Parquet shard")
    folder.mkdir()
    parquet.write_table(arrow.table({"image": [_IMAGE] * _LISTED}), folder / "shard.parquet")
    return folder


def _smallest_jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (14, 14)).save(file, "JPEG")
    return file.getvalue()


_IMAGE = _smallest_jpeg()


def main() -> int:
    """Print the estimate; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="fleet", description="a very large collection")
    parser.add_argument("--images", type=float, default=1e9, help="default: 1e9")
    parser.add_argument("--gpus", type=int, default=64, help="default: 64")
    parser.add_argument(
        "--tflops", type=float, default=156, help="rate of one GPU on the model (default: 156)"
    )
    parser.add_argument(
        "--decode-rate", type=float, default=100, help="images per second of a core (default: 100)"
    )
    given = parser.parse_args()
    try:
        if min(given.images, given.gpus, given.tflops, given.decode_rate) <= 0:
            raise InputError("images, GPUs and rates must be more than 0")
        print(estimate(given.images, given.gpus, given.tflops, given.decode_rate))
        for kind, held in listing_bytes().items():
            print(f"the list of work, {kind}: {held:.1f} bytes per image")
    except Dinov2rtError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
