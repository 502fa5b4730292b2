"""Measures the machine's peak rates: of a large matrix product, and of a copy.

Both run as candidates in processes of their own. They are measured once before a run to find the
fastest library. That library's matrix product then takes turns with the models of each cell, so
that a change in the machine's speed affects the roofline and the candidates alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.harness.worker import Turn, Worker
from dinov2rt.benchmarks.peers.candidate import Candidate, Workload, import_all
from dinov2rt.benchmarks.results import PeakRates
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError
from dinov2rt.runtime.backends.openvino import cannot_run_bf16

_SHAPE = {"cpu": (2048, 3072, 768), "cuda": (8192, 8192, 8192)}
"""M, K and N of the matrix product.

Of seven large shapes, the CPU's shape was the fastest or within 2 % of it with each library;
squares of 2048 reached 3 % less with OpenVINO.
"""
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Much larger than the last-level cache of a device."""

_MODULES = {"openvino": "dinov2rt.benchmarks.peers.quiet_openvino"}
"""Modules that are imported in place of a library's own."""
_LIBRARIES = {"cpu": ("numpy", "openvino", "torch"), "cuda": ("torch",)}
_MULTIPLIES = {
    "numpy": (Precision.FP32,),
    "openvino": (Precision.FP32, Precision.BF16),
    "torch": (Precision.FP32, Precision.FP16, Precision.BF16),
}
_NONE_CHOSEN: Mapping[str, str] = {}
_SECONDS, _TURNS = 0.3, 5
"""The time and turns spent on each rate and library, before the run."""


@dataclass(slots=True, eq=False)
class Work:
    """The runner of a candidate that does the same `work` for any images."""

    work: Callable[[], Any]
    version: str = ""

    def prepare(self, pixels: NDArray[np.uint8]) -> None:
        """Do nothing."""

    def run(self, prepared: None) -> Any:  # noqa: ARG002
        """Do the work once."""
        return self.work()

    def outputs(self, result: Any) -> dict[str, NDArray[np.float32]]:  # noqa: ARG002
        """Return no outputs."""
        return {}

    def close(self) -> None:
        """Do nothing; the process ends afterwards."""


def measure_peak_rates(
    device: str, threads: int, chosen: Mapping[str, str] = _NONE_CHOSEN
) -> PeakRates:
    """Measure the installed libraries on a "cpu" or "cuda" device. Takes some seconds.

    For a precision in `chosen`, that library is used if it is installed: two runs compare only if
    both used the same library. Otherwise the fastest library is used.

    Raises:
        BackendError: no library is installed.
        CandidateError: a library failed.
    """
    libraries = [name for name in _LIBRARIES[device] if find_spec(name)]
    if not libraries:
        raise BackendError("the matrix rate of a GPU is measured with torch; pip install torch")
    workload = Workload(Path(), device, threads)
    found = {
        precision: {
            library: median(
                matrix_gflops(_turns(matrix_product(library, precision), workload), device)
            )
            for library in libraries
            if precision in _MULTIPLIES[library]
        }
        for precision in _precisions(device)
    }
    copies = [
        _copy_gb_per_s(_turns(_copy(library), workload), device)
        for library in libraries
        if library != "openvino"
    ]
    return best_of(found, copies, _SHAPE[device], chosen)


def _precisions(device: str) -> tuple[Precision, ...]:
    """The precisions with a matrix rate; of int8 there is none, since no graph is wholly int8."""
    if device == "cuda":
        return Precision.FP32, Precision.FP16, Precision.BF16
    return (Precision.FP32,) if cannot_run_bf16() else (Precision.FP32, Precision.BF16)


def unmeasured_peak_rates(device: str) -> PeakRates:
    """Peak rates without rates, for a run in which they are not measured yet."""
    return PeakRates({}, {}, None, _SHAPE[device])


def best_of(
    matrix_gflops: dict[Precision, dict[str, float]],
    copies: Sequence[float],
    shape: tuple[int, int, int],
    chosen: Mapping[str, str] = _NONE_CHOSEN,
) -> PeakRates:
    """The highest of each rate, or the rate of the library in `chosen`.

    `matrix_gflops` is by precision and library, `chosen` by precision.
    """
    fastest = {
        name: chosen[name] if chosen.get(name) in rates else max(rates, key=rates.__getitem__)
        for name, rates in matrix_gflops.items()
    }
    return PeakRates(
        matrix_gflops={str(name): matrix_gflops[name][best] for name, best in fastest.items()},
        matrix_library={str(name): best for name, best in fastest.items()},
        copy_gb_per_s=max(copies),
        matrix_shape=shape,
    )


def matrix_product(library: str, precision: Precision) -> Candidate:
    """A large matrix product in "numpy" (only float32), "openvino" or "torch"."""
    return _candidate(f"matrix product in {precision}", library, precision, _open_product)


def matrix_gflops(turns: Sequence[Turn], device: str) -> list[float]:
    """The rate of `matrix_product` in each of its turns, in GFLOP/s."""
    gflop = 2 * prod(_SHAPE[device]) / 1e9
    return [1e3 * gflop / turn.median_ms for turn in turns]


def _copy(library: str) -> Candidate:
    return _candidate("copy", library, Precision.FP32, _open_copy)


def _copy_gb_per_s(turns: Sequence[Turn], device: str) -> float:
    gbyte = 2 * _COPY_BYTES[device] / 1e9  # read once, written once
    return median(1e3 * gbyte / turn.median_ms for turn in turns)


def _candidate(
    title: str, library: str, precision: Precision, open_it: Callable[..., Work]
) -> Candidate:
    return Candidate(
        name=f"{title} by {library}",
        title=title,
        precision=precision,
        is_peer=True,
        cannot_run=_can_run,
        open=partial(open_it, library=library, precision=precision),
        import_libraries=partial(import_all, _MODULES.get(library, library)),
    )


def _can_run(_: Workload) -> None:
    return None


def _open_product(workload: Workload, *, library: str, precision: Precision) -> Work:
    if library == "numpy":
        return Work(_numpy_product(workload))
    if library == "openvino":
        return Work(_openvino_product(workload, precision))
    return Work(_torch_product(workload, precision))


def _factors(workload: Workload) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows, summands, columns = _SHAPE[workload.device]
    random = np.random.default_rng(0)
    return (
        random.standard_normal((rows, summands), np.float32),
        random.standard_normal((summands, columns), np.float32),
    )


def _numpy_product(workload: Workload) -> Callable[[], Any]:
    """A product by the BLAS that numpy was built with."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(workload.threads, user_api="blas")
    left, right = _factors(workload)
    out = np.empty((len(left), right.shape[1]), np.float32)
    return lambda: np.matmul(left, right, out=out)


def _openvino_product(workload: Workload, precision: Precision) -> Callable[[], Any]:
    """A product with a constant matrix, which OpenVINO packs beforehand.

    The two operators after the product do nothing, but without them OpenVINO uses a library that is
    slower on some CPUs: see docs/adr/0008.
    """
    from openvino import opset1

    from dinov2rt.benchmarks.peers.quiet_openvino import openvino

    left, right = _factors(workload)
    given = opset1.parameter([-1, len(right)], np.float32)
    product = opset1.matmul(given, opset1.constant(right), False, False)
    with_bias = opset1.add(product, opset1.constant(np.zeros_like(right[:1])))
    same = opset1.prelu(with_bias, opset1.constant(np.ones(1, np.float32)))
    compiled = openvino.Core().compile_model(
        openvino.Model([same], [given]),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BF16 else "f32",
            "INFERENCE_NUM_THREADS": workload.threads,
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(left))
    return lambda: request.infer()


def _torch_product(workload: Workload, precision: Precision) -> Callable[[], Any]:
    """A product without TF32."""
    import torch

    torch.set_num_threads(workload.threads)
    torch.set_float32_matmul_precision("highest")
    types = {
        Precision.FP32: torch.float32,
        Precision.FP16: torch.float16,
        Precision.BF16: torch.bfloat16,
    }
    left, right = (
        torch.from_numpy(factor).to(workload.device, types[precision])
        for factor in _factors(workload)
    )
    return _finished(lambda: torch.mm(left, right), workload.device)


def _open_copy(workload: Workload, *, library: str, precision: Precision) -> Work:  # noqa: ARG001
    count = _COPY_BYTES[workload.device]
    if library == "numpy":
        # Ones, not zeros: pages of zeros that were never written share one page, which is cached.
        given, taken = np.ones(count, np.uint8), np.ones(count, np.uint8)
        return Work(lambda: np.copyto(taken, given))
    import torch

    torch.set_num_threads(workload.threads)
    source = torch.ones(count, dtype=torch.uint8, device=workload.device)
    target = torch.ones_like(source)
    return Work(_finished(lambda: target.copy_(source), workload.device))


def _finished(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """`call`, followed by a synchronization if the device is a GPU."""
    import torch

    if device == "cpu":
        return call

    def call_and_wait() -> None:
        call()
        torch.cuda.synchronize()

    return call_and_wait


def _turns(candidate: Candidate, workload: Workload) -> list[Turn]:
    with Worker(candidate, workload) as worker:
        worker.load()
        return [worker.turn(_SECONDS) for _ in range(_TURNS)]
