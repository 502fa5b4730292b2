"""Measures latency on a GPU within a few minutes: all variants and candidates in one process.

    python -m dinov2rt.benchmarks.gpu.cells OUT BUNDLE... --budget 300

`dinov2rt bench` starts a process for each candidate, which takes most of its time. Here one process
holds every model, the most important cells come first, and a cell starts only if it is likely to
end within the budget; the result names the cells that did not fit. For each bundle it writes
OUT/VARIANT.json, which `dinov2rt report` reads, and OUT/VARIANT.kernels.json. Called again, it
keeps the cells that are in OUT/VARIANT.json and measures the others.

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
from collections.abc import Iterator, Sequence
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
from dinov2rt.errors import BackendError, Dinov2rtError, InputError, first_line

_MATRIX_SIDE = 8192
_SETTINGS = Settings(1, "cuda", DESCRIPTION, 0.0, TURNS, one_process=True)


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
        for variant in self.workloads:
            self._take_over(variant)

    def _take_over(self, variant: str) -> None:
        """Keep what an earlier call measured on this machine, with this bundle and version."""
        file = self.out / f"{variant}.json"
        if not file.exists():
            return
        try:
            earlier = BenchmarkRun.read(file)
        except InputError as error:
            _say(f"{variant}: measured anew, since {error}")
            return
        same = (self._bundle_facts(variant), __version__, _SETTINGS, _setup(self.environment))
        kept = (*earlier.bundles, earlier.version, earlier.settings, _setup(earlier.environment))
        if kept != same:
            _say(
                f"{variant}: measured anew, since {file} is of another bundle, machine, version or "
                "way to measure"
            )
            return
        self.rows[variant] = list(earlier.rows)
        self.facts.update({(variant, facts.candidate): facts for facts in earlier.candidates})

    def _is_measured(self, cell: Cell, workload: Workload) -> bool:
        """Whether every contestant of the cell has a row."""
        asked = contestants_for(cell, workload, all_peers=self.all_peers)
        names = {each.name for each in asked if not each.is_reference}
        return names <= {row.candidate for row in self.rows[cell.variant] if row.cell == cell}

    def measure_all(self) -> None:
        """Measure every cell, the most important first, until the budget is spent."""
        longest_s = 0.0
        for batch, side in CELLS:
            for variant, workload in self.workloads.items():
                cell = Cell(variant, batch, side, side)
                if self._is_measured(cell, workload):
                    _say(f"{cell}: measured by an earlier call")
                    continue
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
        self.rows[cell.variant] = [row for row in self.rows[cell.variant] if row.cell != cell]
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
        try:
            for row in self._rows_of(cell, workload, contestants):
                self.rows[cell.variant].append(row)
                _say(_summary(row))
            self._keep_kernels(cell, contestants)
        except Exception as error:  # such as memory that is spent; later cells are tried
            _say(f"{cell}: {first_line(error)}")
            self._fail_the_rest(cell, contestants, first_line(error))

    def _rows_of(
        self, cell: Cell, workload: Workload, contestants: Sequence[Contestant]
    ) -> Iterator[Row]:
        if not any(each.is_reference for each in contestants):
            raise BackendError("the reference did not load, so nothing can be compared")
        yield from measure(cell, workload.manifest, contestants, self.peak_rates)

    def _fail_the_rest(self, cell: Cell, contestants: Sequence[Contestant], reason: str) -> None:
        """Give each contestant without a row at the cell one with the reason."""
        rows = self.rows[cell.variant]
        done = {row.candidate for row in rows if row.cell == cell}
        rows += [
            Row(cell, each.name, failure=reason)
            for each in contestants
            if not each.is_reference and each.name not in done
        ]

    def _keep_kernels(self, cell: Cell, contestants: Sequence[Contestant]) -> None:
        """Write the GPU kernels of dinov2rt at this cell, with their times, beside the result."""
        own = next((each for each in contestants if not each.is_peer), None)
        if own is None:  # it did not load; its row says why
            return
        file = self.out / f"{cell.variant}.kernels.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        kept[str(cell)] = kernels_of(own.enqueue)
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def write(self, variant: str) -> None:
        """Write the results of one variant."""
        BenchmarkRun(
            schema=SCHEMA_VERSION,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join(["python", "-m", "dinov2rt.benchmarks.gpu.cells", *sys.argv[1:]]),
            version=__version__,
            settings=_SETTINGS,
            environment=self.environment,
            peak_rates=self.peak_rates,
            bundles=(self._bundle_facts(variant),),
            candidates=tuple(f for (name, _), f in self.facts.items() if name == variant),
            missing=tuple(each for each in self.missing if each.variant == variant),
            rows=tuple(self.rows[variant]),
        ).write(self.out / f"{variant}.json")

    def _bundle_facts(self, variant: str) -> BundleFacts:
        workload = self.workloads[variant]
        digest = hashlib.sha256((workload.bundle / MANIFEST_NAME).read_bytes()).hexdigest()
        weights = workload.manifest.weights
        return BundleFacts(variant, weights.source, weights.sha256, digest)


def _setup(environment: Environment) -> tuple[str, str | None, dict[str, str]]:
    """Machine, GPU and libraries: cells are of one run only if these are equal."""
    return environment.machine, environment.gpu, environment.libraries


def _summary(row: Row) -> str:
    if row.latency is None:
        return f"{row.cell} {row.candidate}: {row.failure}"
    return (
        f"{row.cell} {row.candidate}: device {row.latency.compute_ms:.3f} ms, "
        f"host {row.latency.p50_ms:.3f} ms"
    )


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
