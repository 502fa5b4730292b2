"""Measures latency on a GPU within a few minutes: all variants and candidates in one process.

    python -m dinov2rt.benchmarks.gpu.cells OUT BUNDLE... --budget 300

`dinov2rt bench` starts a process for each candidate, which takes most of its time. Here one process
holds every model, the most important cells come first, and a cell starts only if it is likely to
end within the budget; the result names the cells that did not fit. For each bundle it writes
OUT/VARIANT.json, which `dinov2rt report` reads, and OUT/VARIANT.kernels.json.

Device time: images are in GPU memory and outputs stay there; about twenty calls are enqueued back
to back between two CUDA events. Host time: images come from numpy arrays and outputs return to
numpy arrays, one call at a time.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from dinov2rt._version import __version__
from dinov2rt.benchmarks.gpu.contestants import CELLS, Contestant, contestants_for, kernels_of
from dinov2rt.benchmarks.gpu.timing import TURNS, copy_gb_per_s, matrix_gflops, measure
from dinov2rt.benchmarks.harness.environment import describe_environment
from dinov2rt.benchmarks.harness.photo_batch import DESCRIPTION
from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.results import (
    SCHEMA_VERSION,
    BenchmarkRun,
    BundleFacts,
    CandidateFacts,
    Cell,
    Environment,
    Missing,
    PeakRates,
    Row,
    Settings,
)
from dinov2rt.bundle.manifest import MANIFEST_NAME, Manifest
from dinov2rt.errors import Dinov2rtError, first_line

_MATRIX_SIDE = 8192


class Run:
    """The results so far, written to disk after every cell."""

    def __init__(
        self, out: Path, bundles: Sequence[Path], deadline: float, *, all_peers: bool = False
    ) -> None:
        self.out: Path = out
        self.deadline: float = deadline
        self.all_peers: bool = all_peers
        self.workloads: dict[str, Workload] = {
            Manifest.read(bundle).name: Workload(bundle, "cuda", threads=1) for bundle in bundles
        }
        self.environment: Environment = describe_environment("cuda")
        rate = matrix_gflops(_MATRIX_SIDE)
        self.peak_rates: PeakRates = PeakRates(
            {"fp16": rate}, {"fp16": "torch"}, copy_gb_per_s(), (_MATRIX_SIDE,) * 3
        )
        self.rows: dict[str, list[Row]] = {name: [] for name in self.workloads}
        self.facts: dict[tuple[str, str], CandidateFacts] = {}
        self.missing: list[Missing] = []

    def measure_all(self) -> None:
        """Measure every cell, the most important first, until the budget is spent."""
        longest_s = 0.0
        for batch, side in CELLS:
            for variant, workload in self.workloads.items():
                cell = Cell(variant, batch, side, side)
                if time.monotonic() + longest_s > self.deadline:
                    _say(f"{cell}: does not fit into the budget")
                    self.missing.append(Missing(variant, "every candidate", f"{cell}: no time"))
                    continue
                began = time.monotonic()
                self._measure(cell, workload)
                self.write(variant)
                longest_s = max(longest_s, time.monotonic() - began)

    def _measure(self, cell: Cell, workload: Workload) -> None:
        contestants: list[Contestant] = []
        for contestant in contestants_for(cell, workload, all_peers=self.all_peers):
            _say(f"{cell}: loading {contestant.name}")
            try:
                contestant.open(cell)
                contestants.append(contestant)
            except Exception as error:  # the failure of a peer affects only its own row
                row = Row(cell, contestant.name, failure=first_line(error))
                self.rows[cell.variant].append(row)
            facts = contestant.facts(cell.variant)
            self.facts.setdefault((cell.variant, contestant.name), facts)  # its first load counts
        for row in measure(cell, workload.manifest, contestants, self.peak_rates):
            self.rows[cell.variant].append(row)
            if row.latency is not None:
                _say(
                    f"{row.cell} {row.candidate}: device {row.latency.compute_ms:.3f} ms, "
                    f"host {row.latency.p50_ms:.3f} ms"
                )
        self._keep_kernels(cell, contestants)

    def _keep_kernels(self, cell: Cell, contestants: Sequence[Contestant]) -> None:
        """Write the GPU kernels of dinov2rt at this cell, with their times, beside the result."""
        own = next(each for each in contestants if not each.is_peer)
        file = self.out / f"{cell.variant}.kernels.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        kept[str(cell)] = kernels_of(own.enqueue)
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def write(self, variant: str) -> None:
        """Write the results of one variant."""
        bundle = self.workloads[variant].bundle
        manifest = self.workloads[variant].manifest
        digest = hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest()
        weights = manifest.weights
        BenchmarkRun(
            schema=SCHEMA_VERSION,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join(["python", "-m", "dinov2rt.benchmarks.gpu.cells", *sys.argv[1:]]),
            version=__version__,
            settings=Settings(1, "cuda", DESCRIPTION, 0.0, TURNS, one_process=True),
            environment=self.environment,
            peak_rates=self.peak_rates,
            bundles=(BundleFacts(variant, weights.source, weights.sha256, digest),),
            candidates=tuple(f for (name, _), f in self.facts.items() if name == variant),
            missing=tuple(each for each in self.missing if each.variant == variant),
            rows=tuple(self.rows[variant]),
        ).write(self.out / f"{variant}.json")


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


_STARTED = time.monotonic()


def main() -> int:
    """Measure; the exit status is 0, or the error's."""
    parser = argparse.ArgumentParser(prog="cells", description="latency of all variants on a GPU")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the results")
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", type=Path, help="bundle to measure")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds (default: 600)")
    parser.add_argument(
        "--all-peers", action="store_true", help="include peers that compile for minutes"
    )
    given = parser.parse_args()
    try:
        deadline = _STARTED + given.budget
        run = Run(given.out, given.bundles, deadline, all_peers=given.all_peers)
        run.measure_all()
        for variant in run.workloads:
            run.write(variant)
    except Dinov2rtError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
