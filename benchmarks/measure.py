"""One bundle, every candidate, every cell: loaded, checked against eager, then timed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.accuracy_check import check, limits_for
from dinov2rt.benchmarks.candidate import Candidate, Task
from dinov2rt.benchmarks.contest import Contestant, take_turns
from dinov2rt.benchmarks.flops import floor
from dinov2rt.benchmarks.photo_batch import photo_batch
from dinov2rt.benchmarks.results import (
    Accuracy,
    CandidateFacts,
    Cell,
    Floor,
    Missing,
    Roof,
    Row,
)
from dinov2rt.benchmarks.roof import matrix_gflops, matrix_product
from dinov2rt.benchmarks.statistics import summarise
from dinov2rt.benchmarks.worker import CandidateError, Loaded, Outputs, Worker
from dinov2rt.runtime.errors import Dinov2rtError
from dinov2rt.runtime.geometry import ImageSize
from dinov2rt.runtime.manifest import Manifest
from dinov2rt.runtime.precision import Precision

Say = Callable[[str], None]

_LOADS = 5
"""Fresh processes that load a candidate of ours, the median of whose times counts; a peer, which
may export or compile for minutes, is loaded once."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure; `seconds` is the time of one candidate at one cell.

    `reference` gives the outputs that all others are compared with. Of `own`, those that do not
    apply to a bundle or device are left out; of `peers`, each that cannot run is named.
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


@dataclass(slots=True)
class Measured:
    """What came of one bundle."""

    rows: list[Row] = field(default_factory=list)
    candidates: list[CandidateFacts] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def extend(self, other: Self) -> None:
        """Take in what came of another bundle."""
        self.rows += other.rows
        self.candidates += other.candidates
        self.missing += other.missing


@dataclass(slots=True, eq=False)
class _Entrant:
    """A loaded candidate, for all cells."""

    worker: Worker
    loaded: Loaded
    first_call_ms: float | None = None

    @property
    def candidate(self) -> Candidate:
        return self.worker.candidate


@dataclass(frozen=True, slots=True, eq=False)
class _Limit:
    """The machine's limit for one bundle: the matrix products that take turns in every cell."""

    manifest: Manifest
    products: dict[Precision, Worker]
    copy_gb_per_s: float


def measure_bundle(bundle: Path, request: Request, roof: Roof, say: Say) -> Measured:
    """Measure one bundle.

    Raises:
        CandidateError: the reference could not run, so that no accuracy can be told.
        BundleError: no limits are known for the precision of a candidate.
    """
    task = Task(bundle, request.device, request.threads)
    manifest, measured = task.manifest, Measured()
    candidates = (*(own for own in request.own if own.cannot_run(task) is None), *request.peers)
    variant = manifest.variant.name
    with ExitStack() as stack:
        reference = stack.enter_context(Worker(request.reference, task))
        say(f"{variant}: loading {request.reference.name}, which the others are compared with")
        reference.load()
        entrants = _enter(task, candidates, measured, stack, say)
        limit = _enter_limit(task, entrants, roof, stack)
        for cell in _cells(variant, request):
            say(f"{cell}: {', '.join(entrant.candidate.name for entrant in entrants)}")
            measured.rows += _measure_cell(cell, entrants, limit, reference, request)
        measured.candidates += [_facts(variant, entrant) for entrant in entrants]
    return measured


def _cells(variant: str, request: Request) -> Iterator[Cell]:
    for size, batch in product(request.sizes, request.batches):
        yield Cell(variant, batch, size.height, size.width)


def _enter(
    task: Task, candidates: Sequence[Candidate], measured: Measured, stack: ExitStack, say: Say
) -> list[_Entrant]:
    """Load the candidates one after the other; who cannot is noted down as missing."""
    entrants = []
    for candidate in candidates:
        reason = candidate.cannot_run(task)
        try:
            if reason is None:
                say(f"{task.manifest.variant.name}: loading {candidate.name}")
                entrants.append(_load(candidate, task, stack))
        except CandidateError as error:
            reason = str(error)
        if reason is not None:
            measured.missing.append(Missing(task.manifest.variant.name, candidate.name, reason))
    return entrants


def _load(candidate: Candidate, task: Task, stack: ExitStack) -> _Entrant:
    times = []
    for _ in range(0 if candidate.is_peer else _LOADS - 1):
        with Worker(candidate, task) as worker:
            times.append(worker.load())
    worker = stack.enter_context(Worker(candidate, task))
    times.append(worker.load())
    return _Entrant(
        worker,
        Loaded(
            times[-1].version,
            import_ms=median(each.import_ms for each in times),
            load_ms=median(each.load_ms for each in times),
        ),
    )


def _enter_limit(task: Task, entrants: Sequence[_Entrant], roof: Roof, stack: ExitStack) -> _Limit:
    """Start a matrix product in each precision of `entrants` that the machine has a rate for."""
    products = {}
    for precision in dict.fromkeys(entrant.candidate.precision for entrant in entrants):
        if precision in roof.matrix_library:
            product_ = matrix_product(roof.matrix_library[precision], precision)
            products[precision] = stack.enter_context(Worker(product_, task))
            products[precision].load()
    return _Limit(task.manifest, products, roof.copy_gb_per_s)


def _measure_cell(
    cell: Cell,
    entrants: Sequence[_Entrant],
    limit: _Limit,
    reference: Worker,
    request: Request,
) -> list[Row]:
    pixels = photo_batch(cell.batch, cell.size)
    want = reference.show(pixels).outputs
    rows: dict[str, Row] = {}
    contestants = []
    for entrant in entrants:
        row = _checked(cell, entrant, pixels, want, limit.manifest)
        rows[row.candidate] = row
        if row.failure is None:
            contestants.append(Contestant(entrant.worker))
    products = {name: Contestant(worker) for name, worker in limit.products.items()}
    everyone = [*contestants, *products.values()]
    take_turns(everyone, seconds=request.seconds, min_turns=request.min_turns)
    for contestant in contestants:
        candidate = contestant.worker.candidate
        row = _timed(rows[candidate.name], contestant)
        rates = products.get(candidate.precision)  # int8 has none: part of its graph is float32
        if row.latency is not None and rates is not None:
            row = replace(row, floor=_floor(row, contestant, rates, limit, request.device))
        rows[candidate.name] = row
    return list(rows.values())


def _checked(
    cell: Cell,
    entrant: _Entrant,
    pixels: NDArray[np.uint8],
    want: Outputs,
    manifest: Manifest,
) -> Row:
    """The row of a candidate before it is timed: its accuracy, or why it has none."""
    candidate = entrant.candidate
    row = Row(cell, candidate.name)
    try:
        shown = entrant.worker.show(pixels)
        accuracy = check(shown.outputs, want, limits_for(manifest, candidate.precision))
    except Dinov2rtError as error:
        return replace(row, failure=str(error))
    if entrant.first_call_ms is None:
        entrant.first_call_ms = shown.first_call_ms
    failure = None if accuracy.passed else _inaccuracy(accuracy)
    return replace(row, accuracy=accuracy, failure=failure)


def _inaccuracy(accuracy: Accuracy) -> str:
    return (
        f"not accurate: relative L2 {accuracy.relative_l2:.2e}, smallest cosine "
        f"{accuracy.cosine_min:.6f}, of CLS tokens {accuracy.cls_cosine_min:.6f}, patch tokens' "
        f"first percentile {accuracy.patch_cosine_p1:.6f}, allowed are {accuracy.limits}"
    )


def _timed(row: Row, contestant: Contestant) -> Row:
    if contestant.failure is not None:
        return replace(row, failure=contestant.failure)
    samples = [time for turn in contestant.turns for time in turn.samples_ms]
    latency = replace(
        summarise(samples, _medians_ms(contestant), row.cell.batch),
        stolen=max(turn.stolen for turn in contestant.turns),
        disturbed_turns=len(contestant.disturbed),
    )
    return replace(row, latency=latency)


def _floor(
    row: Row, contestant: Contestant, product_: Contestant, limit: _Limit, device: str
) -> Floor | None:
    """The distance from the limit, turn by turn; None where the matrix product gave up."""
    if product_.failure is not None:
        return None
    return floor(
        limit.manifest.variant,
        row.cell,
        contestant.worker.candidate.precision,
        turns_ms=_medians_ms(contestant),
        matrix_gflops=matrix_gflops(product_.turns, device),
        copy_gb_per_s=limit.copy_gb_per_s,
    )


def _medians_ms(contestant: Contestant) -> list[float]:
    return [turn.median_ms for turn in contestant.turns]


def _facts(variant: str, entrant: _Entrant) -> CandidateFacts:
    memory = entrant.worker.memory()
    candidate = entrant.candidate
    return CandidateFacts(
        variant=variant,
        candidate=candidate.name,
        title=candidate.title,
        version=entrant.loaded.version,
        precision=str(candidate.precision),
        is_peer=candidate.is_peer,
        import_ms=entrant.loaded.import_ms,
        load_ms=entrant.loaded.load_ms,
        first_call_ms=entrant.first_call_ms,
        peak_rss_mib=memory.peak_rss_mib,
        peak_device_mib=memory.peak_device_mib,
    )
