r"""A loaded model under long use: equal outputs, flat memory, and what ends while others call.

    python -m dinov2rt.benchmarks.studies.reliability.steady_load [--calls 10000 --threads 8]

Without `--bundle`, a bundle is made that computes next to nothing, so that only the code
around a model is measured. For each CPU backend, threads call one model with images of mixed shapes
and compare every output with the first call's; the resident memory is read after the first 1,000
calls and at the end. As a control, a process of its own calls the library alone in the same way.
Then four processes unpickle the model, one closes a model while others call it, and one forks.
"""

import argparse
import multiprocessing
import os
import pickle
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from dinov2rt.benchmarks.studies.reliability.growing import print_rows
from dinov2rt.benchmarks.studies.reliability.small_bundle import write_small_bundle
from dinov2rt.errors import Dinov2rtError
from dinov2rt.optional import require
from dinov2rt.runtime.backends.modes import BackendName, parse_backend
from dinov2rt.runtime.backends.openvino import import_openvino
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


Compute = Callable[[np.ndarray], np.ndarray]
"""Images [B, H, W, 3] in, CLS tokens [B, D] out."""


def call_from_threads(compute: Compute, calls: int, threads: int) -> Load:
    """Call `compute` from `threads` threads, `calls` times each, with shapes in a random order."""
    batches = [images(number) for number in range(len(_SHAPES))]
    want = [compute(batch) for batch in batches]

    def call(seed: int) -> int:
        numbers = random.Random(seed)  # noqa: S311  # no secret
        unequal = 0
        for number in (numbers.randrange(len(_SHAPES)) for _ in range(count)):
            unequal += not np.array_equal(compute(batches[number]), want[number])
        return unequal

    settle = min(calls, -(-_SETTLED // threads))
    with ThreadPoolExecutor(threads) as pool:
        count = settle
        unequal = sum(pool.map(call, range(threads)))
        settled_mib, count = _resident_mib(), calls - settle
        unequal += sum(pool.map(call, range(threads, 2 * threads)))
    return Load(calls * threads, unequal, settled_mib, _resident_mib())


def in_new_process(bundle: Path, kind: str, calls: int, threads: int) -> Load:
    """`call_from_threads` in a process that holds nothing else; `kind` is one of `COMPUTES`."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(_in_this_process, bundle, kind, calls, threads).result()


def _in_this_process(bundle: Path, kind: str, calls: int, threads: int) -> Load:
    with COMPUTES[kind](bundle) as compute:
        return call_from_threads(compute, calls, threads)


@contextmanager
def _model(bundle: Path, backend: BackendName) -> Iterator[Compute]:
    with load(bundle, backend=backend, device="cpu") as model:
        yield cls_tokens_of(model)


def cls_tokens_of(model: Model) -> Compute:
    """What is called of `model`."""
    return lambda batch: model(batch, outputs=["cls_token"]).cls_token


@contextmanager
def _onnxruntime_alone(bundle: Path) -> Iterator[Compute]:
    ort = require("onnxruntime", extra="ort", purpose="the control")
    session = ort.InferenceSession(bundle / "fp32.onnx", providers=["CPUExecutionProvider"])
    yield lambda batch: session.run(["cls_token"], {"pixels": batch})[0]


@contextmanager
def _openvino_alone(bundle: Path) -> Iterator[Compute]:
    """One request and a lock, as OpenVINO's own documentation has it for several threads."""
    openvino = import_openvino()
    core, lock = openvino.Core(), threading.Lock()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(bundle / "fp32.onnx", "CPU", hints).create_infer_request()

    def compute(batch: np.ndarray) -> np.ndarray:
        with lock:
            request.infer({"pixels": batch})
            return np.array(request.get_tensor("cls_token").data)

    yield compute


ALONE = "{} alone"
COMPUTES: dict[str, Callable[[Path], AbstractContextManager[Compute]]] = {
    **{backend: partial(_model, backend=backend) for backend in BACKENDS},
    ALONE.format("onnxruntime"): _onnxruntime_alone,
    ALONE.format("openvino"): _openvino_alone,
}


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
    "MiB more at the end",
    "MiB more, library alone",
    "unequal processes",
    "closed: done, refused",
    "after a fork",
)


def study(bundle: Path, backend: BackendName, calls: int, threads: int) -> tuple[str, ...]:
    """A row of the table."""
    used, alone = (
        in_new_process(bundle, kind, calls, threads) for kind in (backend, ALONE.format(backend))
    )
    with load(bundle, backend=backend, device="cpu") as model:
        unequal = unpickle_in_processes(model)
        forked = fork_after_load(model)
        done, refused = close_while_called(model, threads)
    return (
        backend,
        f"{used.calls:,}",
        str(used.unequal),
        f"{used.settled_mib:.0f}",
        f"{used.growth_mib:.1f}",
        f"{alone.growth_mib:.1f}",
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
    backends = arguments.backends.split(",")
    with _bundle(arguments.bundle) as bundle:
        rows = (
            study(bundle, parse_backend(backend), arguments.calls, arguments.threads)
            for backend in backends
        )
        print_rows(_HEADER, backends, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
