"""Runs a candidate in a process of its own, so that its libraries and memory are its own."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.harness.clock import busy_s, disk_reads, peak_rss_mib, stolen_s, timed
from dinov2rt.benchmarks.harness.gpu_state import memory_held_mib
from dinov2rt.benchmarks.peers.candidate import Candidate, Runner, RunnerWithPhases, Workload
from dinov2rt.errors import Dinov2rtError, first_line
from dinov2rt.runtime.gpu.phases import Phases

Outputs = Mapping[str, NDArray[np.float32]]

_PHASE_CALLS = 5
"""Calls whose phases are measured; the median counts."""


class CandidateError(Dinov2rtError):
    """A candidate failed to load or run, or its process died."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of loading, timed in a fresh process."""

    version: str
    import_ms: float
    load_ms: float


@dataclass(frozen=True, slots=True)
class Shown:
    """The outputs for the images, and the duration of that first call."""

    outputs: Outputs
    first_call_ms: float


@dataclass(frozen=True, slots=True)
class Turn:
    """The times of consecutive calls, and what may have disturbed them.

    Of all cores' time, `stolen` is the share that the host of a virtual machine gave to others, and
    `others` the share of other processes of this machine. Both are counted in ticks of 10 ms, so
    that they are inexact in a short turn. `disk_reads` is the number of major page faults.
    """

    samples_ms: tuple[float, ...]
    stolen: float
    others: float = 0.0
    disk_reads: int = 0

    @property
    def spent_s(self) -> float:
        """Timed seconds."""
        return sum(self.samples_ms) / 1e3

    @property
    def median_ms(self) -> float:
        """The median time of a call."""
        return median(self.samples_ms)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the process in MiB: the peak on the host, and the current use of the GPU."""

    peak_rss_mib: float | None
    device_mib: float | None


class Worker:
    """The parent's end. Every method waits for the process and raises its failure."""

    def __init__(self, candidate: Candidate, workload: Workload) -> None:
        self.candidate = candidate
        self._workload = workload
        self._start()

    def _start(self) -> None:
        # spawn: a forked child would inherit the parent's libraries and threads
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self.candidate, self._workload), daemon=True
        )
        self._process.start()
        theirs.close()

    def load(self) -> Loaded:
        """Open the candidate."""
        return self._ask("load")  # type: ignore[no-any-return]

    def show(self, pixels: NDArray[np.uint8]) -> Shown:
        """Use `pixels` [B, H, W, 3] as the images from now on, and call once."""
        return self._ask("show", pixels)  # type: ignore[no-any-return]

    def restart(self, pixels: NDArray[np.uint8]) -> None:
        """Go on in a fresh process, in which the candidate is loaded and has called `pixels`."""
        self.close()
        self._start()
        self.load()
        self.show(pixels)

    def turn(self, seconds: float, *, warm_up: bool = True) -> Turn:
        """Call for `seconds`, at least once; with `warm_up`, after one untimed call."""
        return self._ask("turn", seconds, warm_up)  # type: ignore[no-any-return]

    def phases(self) -> Phases | None:
        """The phases of a call on a GPU; None on a CPU, or if the candidate has no phases."""
        return self._ask("phases")  # type: ignore[no-any-return]

    def memory(self) -> Memory:
        """Memory of the process."""
        return self._ask("memory")  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        self._connection.close()  # the process ends at end of file
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            self._connection.send((method, arguments))
            problem, answer = self._connection.recv()
        except (EOFError, OSError):
            raise CandidateError(f"{self.candidate.name}: {self._exit_reason()}") from None
        if problem is not None:
            raise CandidateError(f"{self.candidate.name}: {problem}")
        return answer

    def _exit_reason(self) -> str:
        self._process.join(timeout=10)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return "its process was killed, as happens where memory runs out"
        return f"its process ended with status {code}"


class _Session:
    """The child's end: executes the methods of `Worker`."""

    def __init__(self, candidate: Candidate, workload: Workload) -> None:
        self._candidate = candidate
        self._workload = workload
        self._runner: Runner | None = None
        self._prepared: Any = None

    def load(self) -> Loaded:
        import_ms, _ = timed(self._candidate.import_libraries)
        load_ms, runner = timed(lambda: self._candidate.open(self._workload))
        self._runner = runner
        return Loaded(runner.version, import_ms, load_ms)

    def show(self, pixels: NDArray[np.uint8]) -> Shown:
        self._prepared = self._loaded.prepare(pixels)
        first_ms, result = timed(self._call)
        # Copied, because a runner may return views of memory that its next call reuses.
        outputs = {name: np.array(value) for name, value in self._loaded.outputs(result).items()}
        return Shown(outputs, first_ms)

    def turn(self, seconds: float, warm_up: bool) -> Turn:
        if warm_up:
            self._call()
        samples_ms: list[float] = []
        stolen, busy, own, reads = stolen_s(), busy_s(), time.process_time(), disk_reads()
        starts = time.perf_counter()
        while not samples_ms or time.perf_counter() < starts + seconds:
            samples_ms.append(timed(self._call)[0])
        all_cores_s = (time.perf_counter() - starts) * (os.cpu_count() or 1)
        own = time.process_time() - own
        return Turn(
            tuple(samples_ms),
            stolen=(stolen_s() - stolen) / all_cores_s,
            others=max(0.0, busy_s() - busy - own) / all_cores_s,
            disk_reads=disk_reads() - reads,
        )

    def phases(self) -> Phases | None:
        if not isinstance(self._runner, RunnerWithPhases):
            return None
        taken = [self._runner.phases(self._prepared) for _ in range(_PHASE_CALLS)]
        known = [phases for phases in taken if phases is not None]
        if not known:
            return None
        return Phases(
            *(median(getattr(each, one.name) for each in known) for one in fields(Phases))
        )

    def memory(self) -> Memory:
        return Memory(peak_rss_mib(), memory_held_mib(os.getpid()))

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def _call(self) -> Any:
        return self._loaded.run(self._prepared)

    @property
    def _loaded(self) -> Runner:
        if self._runner is None:
            raise CandidateError("it is not loaded")
        return self._runner


def _serve(connection: Connection, candidate: Candidate, workload: Workload) -> None:
    session = _Session(candidate, workload)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            session.close()
            return
        try:
            answer: tuple[str | None, Any] = (None, getattr(session, method)(*arguments))
        except Exception as error:  # any exception of a library is a failure of the candidate
            traceback.print_exc()
            answer = (first_line(error), None)
        connection.send(answer)
