r"""Measures how cost grows with batch and side, and whether `model.map` is as fast as single calls.

    python -m dinov2rt.benchmarks.studies.growth BUNDLE \
        [--batch 1,2,4,... --size 98,224,... --images 1000]

Beside each measured time are the two terms that it should follow: the time of the FLOPs that grow
linearly with the tokens, and of those that grow with their square, both at the rate of a large
matrix product that takes turns with the shape. If the last column is constant, cost grows as the
arithmetic predicts.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.harness.clock import rss_mib, timed
from dinov2rt.benchmarks.harness.flops import flops, quadratic_flops
from dinov2rt.benchmarks.harness.peak_rates import matrix_gflops, matrix_product, measure_peak_rates
from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.benchmarks.harness.worker import Worker
from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.runtime.cpu import usable_cores
from dinov2rt.runtime.model import Model, load

_BATCHES = "1,2,4,8,16,32,64"
_SIDES = "98,224,350,518,700,1036"
_LEAST_CALLS = 3
_PRODUCT_S = 0.1
_MAP_SIDE = 224
_MAP_TURNS = 3

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Request:
    """The shapes to measure: (batch, side) of each, and `images` through `model.map`, or 0."""

    shapes: tuple[tuple[int, int], ...]
    seconds: float
    images: int
    map_batch: int

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest batch, including `model.map`'s, so that no batch is split."""
        mapped = [(self.map_batch, _MAP_SIDE)] if self.images else []
        return max(batch * side**2 for batch, side in (*self.shapes, *mapped))


@dataclass(frozen=True, slots=True)
class _Sample:
    """One call, and the matrix rate right after it."""

    time_ms: float
    gflops: float


@dataclass(frozen=True, slots=True)
class Point:
    """One shape; times in ms, `fraction` is the time of the arithmetic over the measured time."""

    batch: int
    side: int
    tokens: int
    p50_ms: float
    linear_ms: float
    quadratic_ms: float
    fraction: float


@dataclass(frozen=True, slots=True)
class MapRate:
    """`model.map` beside single calls with the same batch, in turns; images/s of the whole job.

    `ratio` is the median over the turns; `rss_growth_mib` is the resident memory after the last
    turn minus that after the first.
    """

    batch: int
    images: int
    map_images_per_s: float
    calls_images_per_s: float
    ratio: float
    rss_growth_mib: float


def curve(model: Model, shapes: Sequence[tuple[int, int]], seconds: float) -> list[Point]:
    """Measure all (batch, side) in turns, with a matrix product after every call."""
    workload = Workload(Path(), "cpu", model.options.threads or usable_cores())
    library = measure_peak_rates(workload.device, workload.threads).matrix_library[Precision.FP32]
    times: dict[tuple[int, int], list[_Sample]] = {shape: [] for shape in shapes}
    for batch, side in shapes:
        model(photo_batch(batch, ImageSize(side, side)))
    with Worker(matrix_product(library, Precision.FP32), workload) as product:
        product.load()
        while any(not _is_enough(taken, seconds) for taken in times.values()):
            for (batch, side), taken in times.items():
                if not _is_enough(taken, seconds):
                    pixels = photo_batch(batch, ImageSize(side, side))
                    model(pixels)  # not timed: the matrix product has evicted the caches
                    time_ms, _ = timed(lambda pixels=pixels: model(pixels))  # type: ignore[misc]
                    (rate,) = matrix_gflops([product.turn(_PRODUCT_S)], workload.device)
                    taken.append(_Sample(time_ms, rate))
    return [_point(model, *shape, taken) for shape, taken in times.items()]


def map_rate(model: Model, batch: int, images: int) -> MapRate:
    """Time the whole job in turns: with `model.map`, and with single calls."""
    crops = photo_batch(batch, ImageSize(_MAP_SIDE, _MAP_SIDE))
    count = -(-images // batch)
    ways: dict[str, Callable[[], None]] = {
        "map": lambda: _exhaust(model.map(_copies(crops, count))),
        "calls": lambda: _exhaust(model(pixels) for pixels in _copies(crops, count)),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    held_mib = []
    for _ in range(_MAP_TURNS):
        for name, way in ways.items():
            taken[name].append(timed(way)[0] / 1e3)
        held_mib.append(rss_mib())
    done = count * batch
    ratios = [calls / mapped for calls, mapped in zip(taken["calls"], taken["map"], strict=True)]
    return MapRate(
        batch=batch,
        images=done,
        map_images_per_s=done / statistics.median(taken["map"]),
        calls_images_per_s=done / statistics.median(taken["calls"]),
        ratio=statistics.median(ratios),
        rss_growth_mib=held_mib[-1] - held_mib[0],
    )


def _is_enough(taken: Sequence[_Sample], seconds: float) -> bool:
    spent_ms = sum(sample.time_ms for sample in taken)
    return len(taken) >= _LEAST_CALLS and spent_ms >= 1e3 * seconds


def _point(model: Model, batch: int, side: int, taken: Sequence[_Sample]) -> Point:
    size = ImageSize(side, side)
    gflop = flops(model.architecture, batch, size) / 1e9
    quadratic = quadratic_flops(model.architecture, batch, size) / 1e9
    p50_ms = statistics.median(sample.time_ms for sample in taken)
    fraction = statistics.median(1e3 * gflop / each.gflops / each.time_ms for each in taken)
    quadratic_ms = fraction * p50_ms * quadratic / gflop
    return Point(
        batch=batch,
        side=side,
        tokens=model.architecture.num_prefix_tokens
        + size.grid(model.architecture.patch_size).num_patches,
        p50_ms=p50_ms,
        linear_ms=fraction * p50_ms - quadratic_ms,
        quadratic_ms=quadratic_ms,
        fraction=fraction,
    )


def _copies(crops: Pixels, count: int) -> Iterator[Pixels]:
    """A new array for each batch, as from a data loader."""
    return (crops.copy() for _ in range(count))


def _exhaust(results: Iterator[object]) -> None:
    for _ in results:
        pass


def _text(points: Sequence[Point], mapped: MapRate | None) -> str:
    lines = ["batch  side  tokens  measured ms  linear ms  quadratic ms  of the matrix rate"]
    lines += [
        f"{point.batch:5}  {point.side:4}  {point.tokens:6}  {point.p50_ms:11.1f}  "
        f"{point.linear_ms:9.1f}  {point.quadratic_ms:12.1f}  {point.fraction:18.0%}"
        for point in points
    ]
    if mapped is not None:
        lines.append(
            f"map over {mapped.images} images, batch {mapped.batch}: {mapped.map_images_per_s:.1f} "
            f"images/s, {mapped.ratio:.3f} of single calls; memory rose by "
            f"{mapped.rss_growth_mib:.1f} MiB from the first turn to the last"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="growth", description="cost by batch and side")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--batch", default=_BATCHES, help=f"batches at side 224 (default: {_BATCHES})"
    )
    parser.add_argument("--size", default=_SIDES, help=f"sides at batch 1 (default: {_SIDES})")
    parser.add_argument("--seconds", default="2", help="seconds per shape (default: 2)")
    parser.add_argument(
        "--images", default="1000", help="images for map; 0 leaves it out (default: 1000)"
    )
    parser.add_argument("--map-batch", default="8", help="batch for map (default: 8)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _request(given: argparse.Namespace) -> _Request:
    batches, sides = _counts("batch", given.batch), _counts("size", given.size)
    return _Request(
        shapes=(
            *((batch, _MAP_SIDE) for batch in batches),
            *((1, side) for side in sides if side != _MAP_SIDE),
        ),
        seconds=_seconds(given.seconds),
        images=_count("images", given.images, least=0),
        map_batch=_count("map-batch", given.map_batch, least=1),
    )


def _counts(option: str, text: str) -> list[int]:
    if not all(_is_count(number, least=1) for number in text.split(",")):
        raise InputError(f"--{option} {text!r}; allowed are whole numbers from 1, as in 1,8,32")
    return [int(number) for number in text.split(",")]


def _count(option: str, text: str, *, least: int) -> int:
    if not _is_count(text, least=least):
        raise InputError(f"--{option} {text!r}; allowed is a whole number from {least}")
    return int(text)


def _is_count(text: str, *, least: int) -> bool:
    return text.isascii() and text.isdecimal() and int(text) >= least


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"--seconds {text!r}; allowed is a finite number from 0")
    return seconds


def _measure(bundle: Path, request: _Request) -> tuple[list[Point], MapRate | None]:
    with load(bundle, device="cpu", max_pixels=request.max_pixels) as model:
        points = curve(model, request.shapes, request.seconds)
        mapped = map_rate(model, request.map_batch, request.images) if request.images else None
    return points, mapped


def main() -> int:
    """Print the measurement; the exit status is 0, or 2 for bad input."""
    given = _parser().parse_args()
    try:
        points, mapped = _measure(given.bundle, _request(given))
    except Dinov2rtError as error:
        print(f"growth: {error}", file=sys.stderr)
        return error.exit_status
    document = {"points": [asdict(point) for point in points], "map": mapped and asdict(mapped)}
    print(json.dumps(document, indent=1) if given.json else _text(points, mapped))
    return 0


if __name__ == "__main__":
    sys.exit(main())
