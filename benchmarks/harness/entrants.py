"""Selects and loads the candidates of one bundle."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from dinov2rt.benchmarks.harness.worker import CandidateError, Loaded, Memory, Worker
from dinov2rt.benchmarks.peers.candidate import Candidate, Workload
from dinov2rt.benchmarks.results import CandidateFacts, Missing
from dinov2rt.benchmarks.statistics import LOADS
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import InputError

Say = Callable[[str], None]


@dataclass(slots=True, eq=False)
class Entrant:
    """A loaded candidate; it stays loaded for all cells."""

    worker: Worker
    loaded: Loaded
    first_call_ms: float | None = None

    @property
    def candidate(self) -> Candidate:
        """The candidate that is loaded."""
        return self.worker.candidate


def own_candidates(own: Sequence[Candidate], workload: Workload) -> tuple[Candidate, ...]:
    """The candidates of dinov2rt, out of `own`, that fit the bundle and the device.

    Raises:
        InputError: no candidate fits; the message gives the reasons.
    """
    found = tuple(candidate for candidate in own if candidate.is_for(workload))
    if not found:
        reasons = {str(candidate.cannot_run(workload)): None for candidate in own}
        raise InputError(
            f"no requested backend of dinov2rt can run {workload.bundle} on {workload.device}: "
            f"{'; '.join(reasons)}"
        )
    return found


def enter(
    workload: Workload, candidates: Sequence[Candidate], stack: ExitStack, say: Say
) -> tuple[list[Entrant], list[Missing]]:
    """Load `candidates` one after the other; they stay loaded until `stack` is closed.

    Candidates that cannot run or load are returned as missing.
    """
    entrants, missing, variant = [], [], workload.manifest.name
    for candidate in candidates:
        reason = candidate.cannot_run(workload)
        if reason is not None:
            missing.append(Missing(variant, candidate.name, reason))
            continue
        say(f"{variant}: loading {candidate.name}")
        try:
            entrants.append(_load(candidate, workload, stack))
        except CandidateError as error:
            is_own = not candidate.is_peer
            missing.append(Missing(variant, candidate.name, str(error), failed=is_own))
    return entrants, missing


def _load(candidate: Candidate, workload: Workload, stack: ExitStack) -> Entrant:
    times = []
    for _ in range(0 if candidate.is_peer else LOADS - 1):
        with Worker(candidate, workload) as worker:
            times.append(worker.load())
    with ExitStack() as attempt:  # a candidate that fails to load must not keep its memory
        worker = attempt.enter_context(Worker(candidate, workload))
        times.append(worker.load())
        stack.enter_context(attempt.pop_all())
    return Entrant(
        worker,
        Loaded(
            times[-1].version,
            import_ms=median(each.import_ms for each in times),
            load_ms=median(each.load_ms for each in times),
        ),
    )


def facts_of(manifest: Manifest, entrant: Entrant) -> CandidateFacts:
    """The facts of an entrant, with its memory use so far."""
    candidate, memory = entrant.candidate, _memory(entrant.worker)
    heads = ", ".join(head.name for head in manifest.heads)
    return CandidateFacts(
        variant=manifest.name,
        candidate=candidate.name,
        title=f"{candidate.title}, with {heads}" if heads else candidate.title,
        version=entrant.loaded.version,
        precision=str(candidate.precision),
        is_peer=candidate.is_peer,
        import_ms=entrant.loaded.import_ms,
        load_ms=entrant.loaded.load_ms,
        first_call_ms=entrant.first_call_ms,
        peak_rss_mib=memory.peak_rss_mib,
        peak_device_mib=memory.device_mib,
    )


def _memory(worker: Worker) -> Memory:
    """The memory of the worker's process; unknown if the process died."""
    try:
        return worker.memory()
    except CandidateError:
        return Memory(None, None)
