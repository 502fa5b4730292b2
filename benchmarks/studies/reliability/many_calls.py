"""Many calls of one model from several threads, and the memory of the process meanwhile."""

import ctypes
import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from dinov2rt.optional import require
from dinov2rt.runtime.backends.modes import BackendName
from dinov2rt.runtime.backends.openvino import import_openvino
from dinov2rt.runtime.model import Model, load

SHAPES = ((1, 28, 28), (1, 56, 42), (3, 28, 28), (2, 70, 98), (8, 42, 42), (1, 224, 224))
BACKENDS: tuple[BackendName, ...] = ("onnxruntime", "openvino")
_SETTLED = 1000
_TBB = "/libtbbmalloc.so"
_CLEAN_ALL_BUFFERS = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Counts and memory, in MiB, of many calls of one model.

    `in_use_mib` is the resident memory after the first 1,000 calls, halfway, and at the end, each
    time after allocators gave back what is free. `free_mib` is what they gave back at the end.
    """

    calls: int
    unequal: int
    in_use_mib: tuple[float, float, float]
    free_mib: float

    @property
    def growth_mib(self) -> float:
        """The growth after the first calls."""
        return self.in_use_mib[2] - self.in_use_mib[0]

    @property
    def late_growth_mib(self) -> float:
        """The growth in the second half of the calls."""
        return self.in_use_mib[2] - self.in_use_mib[1]

    @property
    def late_bytes_a_call(self) -> float:
        """The growth per call in the second half of the calls."""
        return self.late_growth_mib * 2**20 / (self.calls / 2)


def images(number: int) -> np.ndarray:
    """A batch of images; a few batches take turns, and a number always gives the same batch."""
    batch, height, width = SHAPES[number % len(SHAPES)]
    random_numbers = np.random.default_rng(number % len(SHAPES))
    return random_numbers.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def expected(model: Model) -> list[np.ndarray]:
    """The CLS tokens of each batch."""
    return [model(images(number)).cls_token for number in range(len(SHAPES))]


Compute = Callable[[np.ndarray], np.ndarray]
"""Images [B, H, W, 3] in, CLS tokens [B, D] out."""


def call_from_threads(compute: Compute, calls: int, threads: int) -> Load:
    """Call `compute` from `threads` threads, `calls` times each, with shapes in a random order."""
    batches = [images(number) for number in range(len(SHAPES))]
    want = [compute(batch) for batch in batches]

    def call(count: int, seed: int) -> int:
        numbers = random.Random(seed)  # noqa: S311  # no secret
        unequal = 0
        for number in (numbers.randrange(len(SHAPES)) for _ in range(count)):
            unequal += not np.array_equal(compute(batches[number]), want[number])
        return unequal

    unequal, in_use_mib, free_mib = 0, [], 0.0
    for part, count in enumerate(_counts(calls, threads)):
        with ThreadPoolExecutor(threads) as pool:  # threads that have ended hold no memory
            seeds = range(part * threads, (part + 1) * threads)
            unequal += sum(pool.map(partial(call, count), seeds))
            resident_mib = _resident_mib()
        _give_back()
        in_use_mib.append(_resident_mib())
        free_mib = resident_mib - in_use_mib[-1]
    settled, half, end = in_use_mib
    return Load(calls * threads, unequal, (settled, half, end), free_mib)


def _counts(calls: int, threads: int) -> tuple[int, int, int]:
    """Calls of each thread before the memory is read the first time, the second and the third."""
    settle = min(calls, -(-_SETTLED // threads))
    half = max(settle, calls // 2)
    return settle, half - settle, calls - half


def _give_back() -> None:
    """Have glibc, and the allocator that OpenVINO brings, return free memory to the system."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if _TBB in line:
            ctypes.CDLL(line.split()[-1]).scalable_allocation_command(_CLEAN_ALL_BUFFERS, None)
            return


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
    """A function that returns the CLS tokens of `model` for a batch."""
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


def _resident_mib() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)
