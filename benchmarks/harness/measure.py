"""Measures one bundle: loads every candidate, and checks and times it at every cell."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.harness.accuracy_check import (
    check,
    check_heads,
    limits_for,
    task_limits_for,
)
from dinov2rt.benchmarks.harness.contest import Contestant, restart, take_turns
from dinov2rt.benchmarks.harness.entrants import Entrant, Say, enter, facts_of, own_candidates
from dinov2rt.benchmarks.harness.flops import HeadWork, roofline
from dinov2rt.benchmarks.harness.graph_flops import head_work
from dinov2rt.benchmarks.harness.peak_rates import matrix_gflops, matrix_product
from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.benchmarks.harness.worker import CandidateError, Outputs, Worker
from dinov2rt.benchmarks.peers.candidate import Candidate, Workload
from dinov2rt.benchmarks.results import (
    Accuracy,
    CandidateFacts,
    Cell,
    LatencyReport,
    Missing,
    PeakRates,
    Roofline,
    Row,
)
from dinov2rt.benchmarks.statistics import summarise
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import Dinov2rtError


@dataclass(frozen=True, slots=True)
class Request:
    """Selects what to measure; a cell ends when a candidate has `seconds` of timed calls.

    `reference` computes the outputs that all others are compared with. Candidates of `own` that do
    not fit a bundle or device are left out; any other candidate that cannot run, also of `peers`,
    is reported as missing. Each candidate has `processes` at a cell, one after the other, which
    share `seconds` and `min_turns`. `matrix_library` names the libraries of an earlier run to
    compare with, by precision.
    """

    own: tuple[Candidate, ...]
    peers: tuple[Candidate, ...]
    reference: Candidate
    batches: tuple[int, ...]
    sizes: tuple[ImageSize, ...]
    device: str
    threads: int
    seconds: float
    min_turns: int
    processes: int = 1
    matrix_library: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """The results so far."""

    rows: tuple[Row, ...] = ()
    candidates: tuple[CandidateFacts, ...] = ()
    missing: tuple[Missing, ...] = ()

    def __add__(self, other: "Measured") -> "Measured":
        """The results of both."""
        return Measured(
            self.rows + other.rows,
            self.candidates + other.candidates,
            self.missing + other.missing,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Peaks:
    """Holds the matrix products for the rooflines of one bundle, which take turns in every cell."""

    manifest: Manifest
    bundle: Path
    products: dict[Precision, Worker]
    copy_gb_per_s: float


def measure_bundle(
    bundle: Path, request: Request, peak_rates: PeakRates, say: Say
) -> Iterator[Measured]:
    """Measure one bundle; yields the results so far after every cell.

    Raises:
        InputError: no requested backend of dinov2rt can run the bundle.
        CandidateError: the reference cannot be loaded, so that accuracy cannot be checked.
        BundleError: the accuracy limits for the precision of a candidate are unknown.
    """
    workload = Workload(bundle, request.device, request.threads)
    variant, candidates = workload.manifest.name, own_candidates(request.own, workload)
    with ExitStack() as stack:
        reference = stack.enter_context(Worker(request.reference, workload))
        say(f"{variant}: loading {request.reference.name}, which the others are compared with")
        reference.load()
        entrants, missing = enter(workload, (*candidates, *request.peers), stack, say)
        peaks = _start_matrix_products(workload, entrants, peak_rates, stack)
        rows: list[Row] = []
        for cell in _cells(variant, request):
            say(f"{cell}: {', '.join(entrant.candidate.name for entrant in entrants)}")
            rows += _measure_cell(cell, entrants, peaks, reference, request)
            facts = tuple(facts_of(workload.manifest, entrant) for entrant in entrants)
            yield Measured(tuple(rows), facts, tuple(missing))


def _cells(variant: str, request: Request) -> Iterator[Cell]:
    for size in request.sizes:
        for batch in request.batches:
            yield Cell(variant, batch, size.height, size.width)


def _start_matrix_products(
    workload: Workload, entrants: Sequence[Entrant], peak_rates: PeakRates, stack: ExitStack
) -> _Peaks:
    """Start a matrix product in each precision of `entrants` that `peak_rates` has a rate for."""
    products = {}
    for precision in dict.fromkeys(entrant.candidate.precision for entrant in entrants):
        if precision in peak_rates.matrix_library:
            product = matrix_product(peak_rates.matrix_library[precision], precision)
            products[precision] = stack.enter_context(Worker(product, workload))
            products[precision].load()
    if peak_rates.copy_gb_per_s is None:
        raise AssertionError("peak rates that were just measured have a copy rate")
    return _Peaks(workload.manifest, workload.bundle, products, peak_rates.copy_gb_per_s)


def _measure_cell(
    cell: Cell,
    entrants: Sequence[Entrant],
    peaks: _Peaks,
    reference: Worker,
    request: Request,
) -> list[Row]:
    pixels = photo_batch(cell.batch, cell.size)
    try:
        want = reference.show(pixels).outputs
    except CandidateError as error:
        failure = f"the reference failed: {error}"
        return [Row(cell, entrant.candidate.name, failure=failure) for entrant in entrants]
    rows: dict[str, Row] = {}
    contestants = []
    for entrant in entrants:
        row = _checked(cell, entrant, pixels, want, peaks.manifest)
        rows[row.candidate] = row
        if row.failure is None:
            contestants.append(Contestant(entrant.worker))
    heads = head_work(peaks.bundle, pixels, want)
    products = {name: Contestant(worker) for name, worker in peaks.products.items()}
    _time([*contestants, *products.values()], pixels, request)
    for contestant in contestants:
        candidate = contestant.worker.candidate
        row = _timed(rows[candidate.name], contestant)
        rates = products.get(candidate.precision)  # none for int8
        if row.latency is not None and rates is not None:
            row = replace(
                row, roofline=_roofline(row, contestant, rates, peaks, heads, request.device)
            )
        rows[candidate.name] = row
    return list(rows.values())


def _time(contestants: Sequence[Contestant], pixels: NDArray[np.uint8], request: Request) -> None:
    """Let `contestants` take their turns, in as many fresh processes as the request has."""
    for process in range(request.processes):
        if process > 0:
            restart(contestants, pixels)
        take_turns(
            contestants,
            seconds=request.seconds * (process + 1) / request.processes,
            min_turns=ceil(request.min_turns / request.processes),
        )


def _checked(
    cell: Cell,
    entrant: Entrant,
    pixels: NDArray[np.uint8],
    want: Outputs,
    manifest: Manifest,
) -> Row:
    """The row of a candidate before timing: its accuracy, or the failure."""
    candidate = entrant.candidate
    row = Row(cell, candidate.name)
    try:
        shown = entrant.worker.show(pixels)
        accuracy = _accuracy(shown.outputs, want, manifest, candidate.precision)
    except Dinov2rtError as error:
        return replace(row, failure=str(error))
    if entrant.first_call_ms is None:
        entrant.first_call_ms = shown.first_call_ms
    failure = None if accuracy.passed else _inaccuracy(accuracy)
    return replace(row, accuracy=accuracy, failure=failure)


def _accuracy(
    outputs: Outputs, want: Outputs, manifest: Manifest, precision: Precision
) -> Accuracy:
    if manifest.heads:
        return check_heads(outputs, want, task_limits_for(manifest, precision))
    return check(outputs, want, limits_for(manifest, precision))


def _inaccuracy(accuracy: Accuracy) -> str:
    if accuracy.cosine_min is None:
        return f"not accurate: relative L2 {accuracy.relative_l2}; allowed are {accuracy.limits}"
    return (
        f"not accurate: relative L2 {accuracy.relative_l2:.2e}, smallest cosine "
        f"{accuracy.cosine_min:.6f} (CLS tokens {accuracy.cls_cosine_min:.6f}, first percentile of "
        f"patch tokens {accuracy.patch_cosine_p1:.6f}); allowed are {accuracy.limits}"
    )


def _timed(row: Row, contestant: Contestant) -> Row:
    if contestant.failure is not None:
        return replace(row, failure=contestant.failure)
    turns = contestant.turns
    samples = [time for turn in turns for time in turn.samples_ms]
    latency = replace(
        summarise(samples, _medians_ms(contestant), row.cell.batch),
        stolen=max(turn.stolen for turn in turns),
        disturbed_turns=len(contestant.disturbed),
        others=fmean((turn.others for turn in turns), weights=[turn.spent_s for turn in turns]),
        disk_reads_per_s=sum(turn.disk_reads for turn in turns) / contestant.spent_s,
    )
    return replace(row, latency=_with_phases(latency, contestant.worker))


def _with_phases(latency: LatencyReport, worker: Worker) -> LatencyReport:
    try:
        phases = worker.phases()
    except CandidateError:  # the measured times remain valid
        phases = None
    return latency if phases is None else replace(latency, **asdict(phases))


def _roofline(
    row: Row,
    contestant: Contestant,
    product: Contestant,
    peaks: _Peaks,
    heads: HeadWork | None,
    device: str,
) -> Roofline | None:
    """The roofline, turn by turn; None if the matrix product failed."""
    if product.failure is not None:
        return None
    return roofline(
        peaks.manifest.architecture,
        row.cell,
        contestant.worker.candidate.precision,
        turns_ms=_medians_ms(contestant),
        matrix_gflops=matrix_gflops(product.turns, device),
        copy_gb_per_s=peaks.copy_gb_per_s,
        heads=heads,
    )


def _medians_ms(contestant: Contestant) -> list[float]:
    return [turn.median_ms for turn in contestant.turns]
