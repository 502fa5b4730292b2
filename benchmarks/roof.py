"""What the machine can do at most: the rate of a large matrix product, and of a copy.

    python -m dinov2rt.benchmarks.roof {numpy,torch} {cpu,cuda} THREADS

prints what one library reaches. Each runs in a process of its own, with its threads told by
environment variables, because OpenBLAS reads them at import and at no other time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import msgspec

from dinov2rt.benchmarks.results import Roof
from dinov2rt.runtime.errors import BackendError

_REPEATS = 5
_SIDE = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Far over the last-level cache of a device."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Rates:
    """What one library reaches: products in GFLOP/s by precision, copies in GB/s."""

    library: str
    matrix_gflops: dict[str, float]
    copy_gb_per_s: float


def measure_roof(device: str, threads: int) -> Roof:
    """The best of numpy and PyTorch, on a "cpu" or "cuda" device; some seconds.

    Raises:
        BackendError: a library failed.
    """
    libraries = ["numpy"] if device == "cpu" else []
    libraries += ["torch"] if find_spec("torch") else []
    if not libraries:
        raise BackendError("the matrix rate of a GPU is measured with torch; pip install torch")
    return best_of([_rates(library, device, threads) for library in libraries])


def best_of(rates: list[Rates]) -> Roof:
    """The highest of each rate."""
    precisions = sorted({name for each in rates for name in each.matrix_gflops})
    best = {
        name: max(rates, key=lambda each, name=name: each.matrix_gflops.get(name, 0.0))  # type: ignore[misc]
        for name in precisions
    }
    return Roof(
        matrix_gflops={name: each.matrix_gflops[name] for name, each in best.items()},
        matrix_library={name: each.library for name, each in best.items()},
        copy_gb_per_s=max(each.copy_gb_per_s for each in rates),
    )


def numpy_rates() -> Rates:
    """Float32 on the CPU, with the BLAS that numpy was built with."""
    import numpy as np

    side, numbers = _SIDE["cpu"], _COPY_BYTES["cpu"] // 4
    left = np.random.default_rng(0).standard_normal((side, side), np.float32)
    right, out = left.T.copy(), np.empty_like(left)
    source, target = np.zeros(numbers, np.float32), np.ones(numbers, np.float32)
    return Rates(
        library=f"numpy {np.__version__}",
        matrix_gflops={"fp32": _gflops(side, lambda: np.matmul(left, right, out=out))},
        copy_gb_per_s=_copy_rate("cpu", lambda: np.copyto(target, source)),
    )


def torch_rates(device: str, threads: int) -> Rates:
    """Float32 (without TF32) everywhere, on a GPU float16 and bfloat16 as well."""
    import torch

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    types = {"fp32": torch.float32}
    if device == "cuda":
        types |= {"fp16": torch.float16, "bf16": torch.bfloat16}

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def matrix_rate(dtype: Any) -> float:
        side = _SIDE[device]
        left, right = torch.randn(2, side, side, device=device).to(dtype)
        return _gflops(side, lambda: torch.mm(left, right), wait)

    source = torch.zeros(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return Rates(
        library=f"torch {torch.__version__}",
        matrix_gflops={name: matrix_rate(dtype) for name, dtype in types.items()},
        copy_gb_per_s=_copy_rate(device, lambda: target.copy_(source), wait),
    )


def _gflops(side: int, product: Callable[[], Any], wait: Callable[[], Any] = int) -> float:
    return 2 * side**3 / _median_s(product, wait) / 1e9


def _copy_rate(device: str, copy: Callable[[], Any], wait: Callable[[], Any] = int) -> float:
    return 2 * _COPY_BYTES[device] / _median_s(copy, wait) / 1e9  # read once, written once


def _median_s(call: Callable[[], Any], wait: Callable[[], Any]) -> float:
    call()
    wait()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _rates(library: str, device: str, threads: int) -> Rates:
    command = [sys.executable, "-m", __name__, library, device, str(threads)]
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise BackendError(f"the matrix rate of {library} could not be measured: {said[-1]}")
    return msgspec.json.decode(done.stdout, type=Rates)


def main() -> int:
    """Print the rates of one library as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=("numpy", "torch"))
    parser.add_argument("device", choices=tuple(_SIDE))
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    numpy_alone = given.library == "numpy"
    rates = numpy_rates() if numpy_alone else torch_rates(given.device, given.threads)
    print(json.dumps(msgspec.to_builtins(rates)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
