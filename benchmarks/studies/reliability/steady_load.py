r"""A loaded model under long use: equal outputs, flat memory, and what ends while others call.

    python -m dinov2rt.benchmarks.studies.reliability.steady_load [--calls 10000 --threads 8]

Without `--bundle`, a bundle is made that computes next to nothing, so that only the code
around a model is measured. For each CPU backend, threads call one model with images of mixed shapes
and compare every output with the first call's; the resident memory is read after the first 1,000
calls and at the end. Then four processes unpickle the model, one closes a model while others call
it, and one forks.
"""

import argparse
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.benchmarks.studies.reliability.small_bundle import write_small_bundle
from dinov2rt.errors import Dinov2rtError
from dinov2rt.runtime.backends.modes import BackendName, parse_backend
from dinov2rt.runtime.model import Model, load

_SHAPES = ((1, 28, 28), (1, 56, 42), (3, 28, 28), (2, 70, 98), (8, 42, 42), (1, 224, 224))
_SETTLED = 1000
_PROCESSES = 4
_CLOSE_AFTER = 200
BACKENDS: tuple[BackendName, ...] = ("onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class Load:
    """Counts and memory, in MiB, after many calls of one model."""

    calls: int
    unequal: int
    settled_mib: float
    end_mib: float

    @property
    def growth_mib(self) -> float:
        """After the first calls."""
        return self.end_mib - self.settled_mib


def images(number: int) -> np.ndarray:
    """One of a few batches, the same for the same number."""
    batch, height, width = _SHAPES[number % len(_SHAPES)]
    random_numbers = np.random.default_rng(number % len(_SHAPES))
    return random_numbers.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def expected(model: Model) -> list[np.ndarray]:
    """The CLS tokens of each batch."""
    return [model(images(number)).cls_token for number in range(len(_SHAPES))]


def call_from_threads(model: Model, calls: int, threads: int) -> Load:
    """Call `model` from `threads` threads, `calls` times each, with shapes in a random order."""
    want, batches = expected(model), [images(number) for number in range(len(_SHAPES))]

    def call(seed: int) -> int:
        numbers = random.Random(seed)  # noqa: S311  # no secret
        unequal = 0
        for number in (numbers.randrange(len(_SHAPES)) for _ in range(count)):
            got = model(batches[number], outputs=["cls_token"]).cls_token
            unequal += not np.array_equal(got, want[number])
        return unequal

    settle = min(calls, -(-_SETTLED // threads))
    with ThreadPoolExecutor(threads) as pool:
        count = settle
        unequal = sum(pool.map(call, range(threads)))
        settled_mib, count = _resident_mib(), calls - settle
        unequal += sum(pool.map(call, range(threads, 2 * threads)))
    return Load(calls * threads, unequal, settled_mib, _resident_mib())


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


def _resident_mib() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


@contextmanager
def _bundle(given: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        if given is None:
            write_small_bundle(Path(folder, "bundle"))
        yield given or Path(folder, "bundle")


_HEADER = (
    "backend",
    "calls",
    "unequal",
    "MiB after 1,000",
    "MiB at the end",
    "unequal processes",
    "closed: done, refused",
    "after a fork",
)


def study(bundle: Path, backend: BackendName, calls: int, threads: int) -> tuple[str, ...]:
    """A row of the table."""
    with load(bundle, backend=backend, device="cpu") as model:
        used = call_from_threads(model, calls, threads)
        unequal = unpickle_in_processes(model)
        forked = fork_after_load(model)
        done, refused = close_while_called(model, threads)
    return (
        backend,
        f"{used.calls:,}",
        str(used.unequal),
        f"{used.settled_mib:.0f}",
        f"{used.end_mib:.0f}",
        str(unequal),
        f"{done}, {refused}",
        forked,
    )


def main() -> int:
    """The table on standard output."""
    parser = argparse.ArgumentParser(prog="steady_load")
    parser.add_argument("--calls", type=int, default=10_000, help="of each thread")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--backends", default=",".join(BACKENDS))
    arguments = parser.parse_args()
    with _bundle(arguments.bundle) as bundle:
        rows = []
        for backend in arguments.backends.split(","):
            print(f"{backend} …", file=sys.stderr)
            rows.append(study(bundle, parse_backend(backend), arguments.calls, arguments.threads))
    print(Table("load", _HEADER, tuple(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
