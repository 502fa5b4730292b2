"""A run whose figures are invented: two variants, two sizes, two batches, five candidates."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from dinov2rt.benchmarks.results import (
    SCHEMA_VERSION,
    Accuracy,
    BenchmarkRun,
    BundleFacts,
    CandidateFacts,
    Cell,
    Environment,
    Missing,
    PeakRates,
    Roofline,
    Row,
    Settings,
)
from dinov2rt.benchmarks.statistics import summarise

VARIANTS = {"dinov2_vits14_reg": 1.0, "dinov2_vitb14": 3.8}
SIZES = (224, 518)
BATCHES = (1, 8)
TURNS = 15

# precision, whether it is a peer, time in units of dinov2rt's, relative L2
CANDIDATES = {
    "dinov2rt-ort": ("fp32", False, 1.0, 9.1e-7),
    "torch-eager": ("fp32", True, 1.4, 0.0),
    "torch-compile": ("fp32", True, 1.15, 1.2e-6),
    "openvino <2026>": ("fp32", True, 1.015, 1.4e-6),
    "torch-bf16": ("bf16", True, 0.7, 8.1e-3),
}


def _facts(variant: str, candidate: str) -> CandidateFacts:
    precision, is_peer, factor, _ = CANDIDATES[candidate]
    return CandidateFacts(
        variant=variant,
        candidate=candidate,
        title=f"{candidate}, as its users run it",
        version="1.2.3",
        precision=precision,
        is_peer=is_peer,
        import_ms=850.0 * factor,
        load_ms=120.0 * factor,
        first_call_ms=61.5 * factor,
        peak_rss_mib=812.4,
    )


def _row(cell: Cell, candidate: str) -> Row:
    _, _, factor, relative_l2 = CANDIDATES[candidate]
    patches = cell.batch * cell.height * cell.width / 14**2
    base_ms = 0.2 * patches * VARIANTS[cell.variant] * (1 + 2e-4 * patches / cell.batch)
    turns = [base_ms * factor * (1 + 0.004 * math.sin(5 * turn + factor)) for turn in range(TURNS)]
    latency = summarise(turns * 2, turns, cell.batch)
    return Row(
        cell,
        candidate,
        Accuracy(True, "relative L2 1e-05", 1 - relative_l2, relative_l2, 1.0, 1.0, 0),
        latency,
        Roofline(6.1, 0.09, 151.0, 0.55 * base_ms, "compute", 0.55 * base_ms / latency.p50_ms),
    )


def _failed(row: Row) -> Row:
    accuracy = Accuracy(False, "relative L2 0.01", math.nan, math.nan, math.nan, math.nan, 7)
    return replace(
        row,
        accuracy=accuracy,
        latency=None,
        roofline=None,
        failure="not accurate: 7 values are NaN",
    )


@pytest.fixture(scope="session")
def benchmark_run() -> BenchmarkRun:
    """`dinov2rt-ort` is fastest of float32 but in one cell; `torch-bf16` fails in another one."""
    cells = [
        Cell(variant, batch, size, size)
        for variant, size, batch in product(VARIANTS, SIZES, BATCHES)
    ]
    rows = [_row(cell, candidate) for cell, candidate in product(cells, CANDIDATES)]
    rows[-1] = _failed(rows[-1])
    slower = _row(cells[0], "torch-eager")
    rows[0] = replace(rows[0], latency=slower.latency, roofline=slower.roofline)
    return BenchmarkRun(
        schema=SCHEMA_VERSION,
        created="2026-01-02T03:04:05+00:00",
        command="dinov2rt bench artifacts/dinov2_vits14_reg artifacts/dinov2_vitb14",
        version="0.1.0",
        settings=Settings(2, "cpu", "crops of photographs", 4.0, TURNS),
        environment=Environment(
            machine="test-machine",
            cpu="Invented CPU | 8 GHz",
            gpu=None,
            cores=2,
            memory_gib=23.6,
            affinity=(0, 1),
            python="3.11.9",
            system="Linux",
            libraries={"torch": "2.13.0", "onnxruntime": "1.24.1"},
            details={"governor": "performance"},
            load_average=1.7,
            warnings=("the machine was busy: load average 1.70 on 2 cores",),
        ),
        peak_rates=PeakRates(
            {"fp32": 151.0, "bf16": 310.0}, {"fp32": "numpy", "bf16": "torch"}, 17.3
        ),
        bundles=tuple(
            BundleFacts(variant, "synthetic:0", "ab" * 32, "cd" * 32) for variant in VARIANTS
        ),
        candidates=tuple(_facts(*pair) for pair in product(VARIANTS, CANDIDATES)),
        missing=(Missing("dinov2_vitb14", "tensorrt", "needs an NVIDIA GPU; there is none"),),
        rows=tuple(rows),
    )


@pytest.fixture(scope="session")
def timed() -> Callable[[Row, float], Row]:
    """A row with all of its times multiplied."""

    def multiplied(row: Row, factor: float) -> Row:
        if row.latency is None:
            return row
        turns = [factor * turn for turn in row.latency.turns_ms]
        return replace(row, latency=summarise(turns * 2, turns, row.cell.batch))

    return multiplied


@pytest.fixture(scope="session")
def with_precisions(timed: Callable[[Row, float], Row]) -> Callable[..., BenchmarkRun]:
    """A run with more candidates of dinov2rt, whose times are multiples of its float32 ones."""

    def extended(run: BenchmarkRun, **factors: float) -> BenchmarkRun:
        own = [facts for facts in run.candidates if not facts.is_peer]
        results = [row for row in run.rows if not run.facts(row).is_peer]
        facts, rows = list(run.candidates), list(run.rows)
        for precision, factor in factors.items():
            name = f"dinov2rt-{precision}"
            facts += [replace(each, candidate=name, precision=precision) for each in own]
            rows += [replace(timed(row, factor), candidate=name) for row in results]
        return replace(run, candidates=tuple(facts), rows=tuple(rows))

    return extended
