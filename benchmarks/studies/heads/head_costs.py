r"""Measures what heads cost: their share of time beside their share of the work.

    python -m dinov2rt.benchmarks.studies.heads.head_costs dinov2_vits14 \
        [--heads linear,nyu-linear4,ade20k-linear,nyu-dpt --size 224,518 --seconds 10]

Exports the backbone alone and with each head, from synthetic weights, and times all of them on the
CPU in one interleaved run, beside the eager model with the same heads. Ratios are taken turn by
turn, so that a machine that is busy with other work disturbs them less than the times.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dinov2rt.benchmarks.harness.contest import Contestant, take_turns
from dinov2rt.benchmarks.harness.flops import flops
from dinov2rt.benchmarks.harness.graph_flops import head_flops
from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.benchmarks.harness.worker import Worker
from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.peers.candidates import find
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.errors import BackendError, Dinov2rtError, InputError
from dinov2rt.export.exporter import export_bundle
from dinov2rt.export.heads.checkpoint import HeadSource
from dinov2rt.export.options import ExportOptions
from dinov2rt.runtime.cpu import usable_cores

_ALONE = "backbone alone"
_WEIGHTS = "synthetic:0"


@dataclass(frozen=True, slots=True)
class HeadCost:
    """One image of `size` through the backbone with a head.

    `times_backbone` is the median over turns of the time divided by the backbone's alone, `least`
    and `most` the ends; `shortest` is the quotient of the two shortest turns, which other work on
    the machine disturbs least. `eager_times_backbone` is eager PyTorch's. `share_of_time` is
    the head's, `share_of_flops` its part of all matrix work of the graph. `over_eager` is the time
    of eager PyTorch divided by dinov2rt's time, both with the head and in their shortest turns.
    """

    size: ImageSize
    head: str
    ms: float
    times_backbone: float
    least: float
    most: float
    shortest: float
    share_of_flops: float
    eager_times_backbone: float
    over_eager: float

    @property
    def share_of_time(self) -> float:
        """The head's share of the time, by the shortest turns."""
        return 1 - 1 / self.shortest

    def __str__(self) -> str:
        return (
            f"{self.size} {self.head:14} {self.ms:8.1f} ms, {self.times_backbone:.3f} times the "
            f"backbone ({self.least:.3f} to {self.most:.3f}; {self.shortest:.3f} by the shortest "
            f"turns); head {self.share_of_time:6.1%} of "
            f"time, {self.share_of_flops:6.1%} of FLOPs; eager {self.eager_times_backbone:.3f} "
            f"times its backbone; {self.over_eager:.2f} times the speed of eager"
        )


def measure(
    variant: Variant,
    heads: Sequence[str],
    sizes: Sequence[ImageSize],
    *,
    backend: str,
    threads: int,
    seconds: float,
    folder: Path,
) -> Iterator[HeadCost]:
    """Export into `folder` what is not there yet, and measure each of `heads` at each of `sizes`.

    Raises:
        InputError: an unknown head, backend or size.
        CandidateError: a candidate cannot be loaded or fails.
        Dinov2rtError: an export fails.
    """
    bundles = {name: _bundle(variant, name, folder) for name in (_ALONE, *heads)}
    ours, eager = find([f"dinov2rt-{backend}-fp32", "eager"])
    with ExitStack() as stack:
        workers: dict[tuple[str, str], Worker] = {}
        for name, bundle in bundles.items():
            for candidate in (ours, eager):
                worker = stack.enter_context(Worker(candidate, Workload(bundle, "cpu", threads)))
                worker.load()
                workers[candidate.name, name] = worker
        for size in sizes:
            turns = _take_turns(workers, size, seconds)
            for head in heads:
                share = _share_of_flops(variant, bundles[head], size)
                yield _cost(head, size, share, turns, ours.name)


def _bundle(variant: Variant, name: str, folder: Path) -> Path:
    bundle = folder / name.replace(" ", "-")
    if not bundle.exists():
        sources = () if name == _ALONE else HeadSource.parse_all(f"{name}={_WEIGHTS}")
        options = ExportOptions(precisions=(Precision.FP32,), heads=sources)
        export_bundle(variant, _WEIGHTS, bundle, options)
    return bundle


_Turns = dict[tuple[str, str], list[float]]


def _take_turns(workers: dict[tuple[str, str], Worker], size: ImageSize, seconds: float) -> _Turns:
    """The median time of each turn in ms, by candidate and head."""
    pixels = photo_batch(1, size)
    contestants = {}
    for key, worker in workers.items():
        worker.show(pixels)
        contestants[key] = Contestant(worker)
    take_turns([*contestants.values()], seconds=seconds, min_turns=10)
    for (candidate, name), contestant in contestants.items():
        if contestant.failure is not None:
            raise BackendError(f"{candidate} with {name} failed: {contestant.failure}")
    return {key: [turn.median_ms for turn in each.turns] for key, each in contestants.items()}


def _share_of_flops(variant: Variant, bundle: Path, size: ImageSize) -> float:
    of_head = head_flops(bundle / "fp32.onnx", photo_batch(1, size))
    return of_head / (of_head + flops(variant.architecture, 1, size))


def _cost(head: str, size: ImageSize, share: float, turns: _Turns, ours: str) -> HeadCost:
    with_head, eager_with_head = turns[ours, head], turns["eager", head]
    ratios = _ratios(with_head, turns[ours, _ALONE])
    return HeadCost(
        size=size,
        head=head,
        ms=median(with_head),
        times_backbone=median(ratios),
        least=min(ratios),
        most=max(ratios),
        shortest=min(with_head) / min(turns[ours, _ALONE]),
        share_of_flops=share,
        eager_times_backbone=min(eager_with_head) / min(turns["eager", _ALONE]),
        over_eager=min(eager_with_head) / min(with_head),
    )


def _ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(times, others, strict=True)]


def main() -> int:
    """Print a line for each head and size; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="head_costs", description="the cost of heads on a CPU")
    parser.add_argument("variant", metavar="VARIANT")
    parser.add_argument("--heads", default="linear,nyu-linear4,ade20k-linear,nyu-dpt")
    parser.add_argument("--size", default="224,518", help="sides in pixels (default: 224,518)")
    parser.add_argument("--backend", default="openvino", help="default: openvino")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each candidate and size")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the bundles, for later")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            for cost in measure(
                find_variant(given.variant),
                given.heads.split(","),
                _sizes(given.size),
                backend=given.backend,
                threads=given.threads,
                seconds=given.seconds,
                folder=given.keep or Path(temporary),
            ):
                print(cost, flush=True)
        except Dinov2rtError as error:
            print(f"head_costs: {error}", file=sys.stderr)
            return error.exit_status
    return 0


def _sizes(text: str) -> list[ImageSize]:
    if not all(side.isdecimal() for side in text.split(",")):
        raise InputError(f"--size {text!r}; allowed are sides in pixels, as in 224,518")
    return [ImageSize(int(side), int(side)) for side in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
