r"""A loaded model under long use: equal outputs, flat memory, and what ends while others call.

    python -m dinov2rt.benchmarks.studies.reliability.steady_load [--calls 10000 --threads 8]

Without `--bundle`, a bundle is made that computes next to nothing, so that only the code
around a model is measured. For each CPU backend, threads call one model with images of mixed shapes
and compare every output with the first call's. The resident memory is read after the first 1,000
calls, halfway and at the end, in processes that do nothing else, after allocators gave back what
is free: how much they hold is another amount in each process. As a control, threads call the
library alone in the same way.
Then four processes unpickle the model, one closes a model while others call it, and one forks.
"""

import argparse
import multiprocessing
import os
import pickle
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dinov2rt.benchmarks.studies.reliability.growing import print_rows
from dinov2rt.benchmarks.studies.reliability.many_calls import (
    ALONE,
    BACKENDS,
    Load,
    expected,
    images,
    in_new_process,
)
from dinov2rt.benchmarks.studies.reliability.small_bundle import write_small_bundle
from dinov2rt.errors import Dinov2rtError
from dinov2rt.runtime.backends.modes import BackendName, parse_backend
from dinov2rt.runtime.model import Model, load

_PROCESSES = 4
_CLOSE_AFTER = 200


def unpickle_in_processes(model: Model) -> int:
    """How many of four processes get other outputs from the model that they unpickle."""
    want, content = expected(model), pickle.dumps(model)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, spawn) as pool:
        got = list(pool.map(_outputs_of, [content] * _PROCESSES))
    return sum(
        not all(map(np.allclose, outputs, want)) for outputs in got
    )  # threads may differ, and with them the last digits


def _outputs_of(content: bytes) -> list[np.ndarray]:
    with pickle.loads(content) as model:  # noqa: S301  # made above
        return expected(model)


def close_while_called(model: Model, threads: int) -> tuple[int, int]:
    """Calls that ended well, and those that were told that the model is closed.

    Raises:
        Exception: whatever else a call ended with.
    """
    done, refused = [0] * threads, [0] * threads
    started = threading.Barrier(threads + 1)

    def call(thread: int) -> None:
        started.wait()
        while True:
            try:
                model(images(thread))
                done[thread] += 1
            except Dinov2rtError:
                refused[thread] += 1
                return

    with ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(call, thread) for thread in range(threads)]
        started.wait()
        while sum(done) < _CLOSE_AFTER:
            os.sched_yield()
        model.close()
        for each in calls:
            each.result()
    return sum(done), sum(refused)


def fork_after_load(model: Model, limit_s: float = 20.0) -> str:
    """The result in a forked child, of a model that was loaded before the fork."""
    want = expected(model)
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    child = fork.Process(target=_tell_outputs, args=(model, want, sending))
    child.start()
    answer = str(receiving.recv()) if receiving.poll(limit_s) else "hangs"
    child.kill()
    child.join()
    return answer


def _tell_outputs(model: Model, want: list[np.ndarray], sending: object) -> None:
    try:
        got = expected(model)
        answer = "equal outputs" if all(map(np.allclose, got, want)) else "OTHER OUTPUTS"
    except Exception as error:
        answer = str(error)
    sending.send(answer)  # type: ignore[attr-defined]


@contextmanager
def _bundle(given: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        if given is None:
            write_small_bundle(Path(folder, "bundle"))
        yield given or Path(folder, "bundle")


_MEMORY_HEADER = (
    "what is called",
    "MiB in use after 1,000",
    "MiB more at the end",
    "of these in the last half",
    "MiB free, held by allocators",
)
_HEADER = (
    "backend",
    "calls",
    "unequal",
    "unequal processes",
    "closed: done, refused",
    "after a fork",
)


def memory_row(kind: str, loads: Sequence[Load]) -> tuple[str, ...]:
    """A row of the first table, with the least and the most of each figure."""
    return (
        kind,
        _range("{:.0f}", [each.in_use_mib[0] for each in loads]),
        _range("{:.1f}", [each.growth_mib for each in loads]),
        _range("{:.1f}", [each.late_growth_mib for each in loads]),
        _range("{:.1f}", [each.free_mib for each in loads]),
    )


def _range(form: str, values: Sequence[float]) -> str:
    ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def row(bundle: Path, backend: BackendName, loads: Sequence[Load], threads: int) -> tuple[str, ...]:
    """A row of the second table."""
    with load(bundle, backend=backend, device="cpu") as model:
        unequal = unpickle_in_processes(model)
        forked = fork_after_load(model)
        done, refused = close_while_called(model, threads)
    return (
        backend,
        f"{sum(each.calls for each in loads):,}",
        str(sum(each.unequal for each in loads)),
        str(unequal),
        f"{done}, {refused}",
        forked,
    )


def main() -> int:
    """Two tables on standard output."""
    parser = argparse.ArgumentParser(prog="steady_load")
    parser.add_argument("--calls", type=int, default=10_000, help="of each thread")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1, help="processes of each kind")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--backends", default=",".join(BACKENDS))
    arguments = parser.parse_args()
    backends = [parse_backend(each) for each in arguments.backends.split(",")]
    loads: dict[str, list[Load]] = {}
    kinds = [kind for backend in backends for kind in (backend, ALONE.format(backend))]
    with _bundle(arguments.bundle) as bundle:

        def memory_rows() -> Iterator[tuple[str, ...]]:
            for kind in kinds:
                loads[kind] = [
                    in_new_process(bundle, kind, arguments.calls, arguments.threads)
                    for _ in range(arguments.repeats)
                ]
                yield memory_row(kind, loads[kind])

        print_rows(_MEMORY_HEADER, kinds, memory_rows())
        print()
        rows = (row(bundle, each, loads[each], arguments.threads) for each in backends)
        print_rows(_HEADER, backends, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
