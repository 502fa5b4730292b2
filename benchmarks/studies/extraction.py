"""Compares the rate of `dinov2rt run` with single calls, and measures its memory and Ray's scaling.

    python -m dinov2rt.benchmarks.studies.extraction BUNDLE [--images 2000 --turns 3] [--ray]

The command runs on a folder of JPEG crops in a process of its own, in turns with single calls at
each batch; the best batch counts. With --ray, one and two workers with one core each take turns on
a cluster that the command starts. The rate of a run is measured between its first and its last
part, so that the start-up time, which occurs once per run, is reported separately.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from PIL import Image

from dinov2rt.benchmarks.harness.clock import timed
from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import BackendError, Dinov2rtError, InputError
from dinov2rt.export.crops import PHOTOS, photo_crops
from dinov2rt.runtime.image_search import find_images
from dinov2rt.runtime.images import load_image
from dinov2rt.runtime.model import Model, load

_SIZE = ImageSize(224, 224)
_BATCHES = (1, 8, 32)
_PARTS = 20
_WATCHED_S = 0.2
_DECODED = 20
_ONE_CORE = ("--executor", "ray", "--cores", "1", "--workers")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command; rates in images/s, memory of all its processes in MiB.

    `rate` is measured between the first part and the last. `early_mib` is the peak memory until
    half of the parts are written, `peak_mib` the peak of the whole run.
    """

    rate: float
    seconds: float
    early_mib: float
    peak_mib: float
    bytes_per_image: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """Medians over the turns; `ratio` is the rate of `run` over the rate of the best batch.

    `decode_rate` is the number of dinov2rt's photographs that one core reads and resizes to
    224 x 224 per second. `ray_efficiency` is the rate of two workers divided by twice the rate of
    one, or None without Ray. `ray_start_s` is the time of a run on one worker minus the time for
    its images.
    """

    images: int
    best_batch: int
    calls_rate: float
    run_rate: float
    ratio: float
    growth_mib: float
    peak_mib: float
    bytes_per_image: float
    decode_rate: float
    ray_efficiency: float | None = None
    ray_worker_rate: float | None = None
    ray_start_s: float | None = None


def measure(bundle: Path, images: int, turns: int, *, ray: bool) -> Extraction:
    """Write the crops, and measure runs and single calls in turns.

    Raises:
        Dinov2rtError: the bundle cannot be loaded, or a run failed.
    """
    with tempfile.TemporaryDirectory() as scratch, load(bundle, device="cpu") as model:
        crops = _write_crops(Path(scratch, "crops"), images)
        rates: dict[int, list[float]] = {batch: [] for batch in _BATCHES}
        runs = []
        for turn in range(turns):
            for batch, taken in rates.items():
                taken.append(_calls_rate(model, batch))
            runs.append(_run(bundle, crops, Path(scratch, f"{turn}.parquet")))
        found = _summary(images, rates, runs)
        return _with_ray(found, bundle, crops, turns) if ray else found


def _write_crops(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        (pixels,) = photo_crops(range(index, index + 1), _SIZE)
        Image.fromarray(pixels).save(folder / f"{index:06}.jpg", quality=90)
    return folder


def _calls_rate(model: Model, batch: int) -> float:
    pixels = photo_batch(batch, _SIZE)
    model(pixels)
    times_ms: list[float] = []
    while sum(times_ms) < 5e3:
        times_ms.append(timed(lambda: model(pixels))[0])
    return 1e3 * batch / statistics.median(times_ms)


def _run(bundle: Path, crops: Path, out: Path, *options: str) -> Run:
    images = len(list(crops.iterdir()))
    part_images = images // _PARTS
    command = [sys.executable, "-m", "dinov2rt", "run", str(bundle), str(crops)]
    command += ["--out", str(out), "--part-images", str(part_images), "--device", "cpu", *options]
    started = time.perf_counter()
    process = psutil.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    memory = [(len(_parts(out)), held) for held in _memory(process)]
    if process.returncode != 0:
        raise BackendError(f"{' '.join(command)} ended with status {process.returncode}")
    seconds = time.perf_counter() - started
    ends = sorted(part.stat().st_mtime for part in _parts(out))
    return Run(
        rate=part_images * (len(ends) - 1) / (ends[-1] - ends[0]),
        seconds=seconds,
        early_mib=max(held for parts, held in memory if parts <= _PARTS / 2),
        peak_mib=max(held for _, held in memory),
        bytes_per_image=sum(part.stat().st_size for part in _parts(out)) / images,
    )


def _parts(out: Path) -> list[Path]:
    return list(out.glob("part-*.parquet"))


def _memory(process: psutil.Popen) -> Iterator[float]:
    """The resident memory of the command and its children in MiB, sampled until it ends.

    Shared pages count in each process that has touched them.
    """
    while process.poll() is None:
        held = 0
        for each in [process, *process.children(recursive=True)]:
            try:
                held += each.memory_info().rss
            except psutil.NoSuchProcess:  # it has ended
                continue
        yield held / 2**20
        time.sleep(_WATCHED_S)


def _summary(images: int, rates: dict[int, list[float]], runs: Sequence[Run]) -> Extraction:
    best = max(rates, key=lambda batch: statistics.median(rates[batch]))
    return Extraction(
        images=images,
        best_batch=best,
        calls_rate=statistics.median(rates[best]),
        run_rate=statistics.median(run.rate for run in runs),
        ratio=statistics.median(
            run.rate / calls for run, calls in zip(runs, rates[best], strict=True)
        ),
        growth_mib=statistics.median(run.peak_mib - run.early_mib for run in runs),
        peak_mib=max(run.peak_mib for run in runs),
        bytes_per_image=runs[0].bytes_per_image,
        decode_rate=_decode_rate(),
    )


def _decode_rate() -> float:
    files = find_images([PHOTOS])
    times_ms = [
        timed(lambda: [load_image(file, preprocess="classification") for file in files])[0]
        for _ in range(_DECODED)
    ]
    return 1e3 * len(files) / statistics.median(times_ms)


def _with_ray(found: Extraction, bundle: Path, crops: Path, turns: int) -> Extraction:
    pairs = []
    for turn in range(turns):
        outs = [crops.with_name(f"ray-{turn}-{workers}.parquet") for workers in (1, 2)]
        pairs.append(
            [
                _run(bundle, crops, out, *_ONE_CORE, str(workers))
                for workers, out in enumerate(outs, start=1)
            ]
        )
    facts = asdict(found) | {
        "ray_efficiency": statistics.median(two.rate / one.rate / 2 for one, two in pairs),
        "ray_worker_rate": statistics.median(one.rate for one, _ in pairs),
        "ray_start_s": statistics.median(one.seconds - found.images / one.rate for one, _ in pairs),
    }
    return Extraction(**facts)


def _text(found: Extraction) -> str:
    lines = [
        f"calls: {found.calls_rate:.1f} images/s at batch {found.best_batch}, the best",
        f"run: {found.run_rate:.1f} images/s over {found.images} crops, {found.ratio:.3f} of calls",
        f"memory: {found.peak_mib:.0f} MiB at most, {found.growth_mib:.1f} MiB more in the second "
        f"half than before; {found.bytes_per_image:.0f} bytes an image on disk",
        f"decoding: {found.decode_rate:.0f} photographs/s a core, brought to 224 x 224",
    ]
    if found.ray_efficiency is not None:
        lines.append(
            f"Ray: {found.ray_worker_rate:.1f} images/s a worker of one core, two workers reach "
            f"{found.ray_efficiency:.3f} of twice that; starting takes {found.ray_start_s:.1f} s"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the measurement; the exit status is 0, or the error's."""
    parser = argparse.ArgumentParser(prog="extraction", description="dinov2rt run beside calls")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="crops (default: 2000)")
    parser.add_argument("--turns", type=int, default=3, help="of each way (default: 3)")
    parser.add_argument("--ray", action="store_true", help="one and two workers on Ray as well")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    try:
        if given.images < 2 * _PARTS or given.turns < 1:
            raise InputError(
                f"{given.images} images, {given.turns} turns; the minimums are {2 * _PARTS} images "
                "and 1 turn"
            )
        found = measure(given.bundle, given.images, given.turns, ray=given.ray)
    except Dinov2rtError as error:
        print(f"extraction: {error}", file=sys.stderr)
        return error.exit_status
    print(json.dumps(asdict(found), indent=1) if given.json else _text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
