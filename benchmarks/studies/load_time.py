r"""Measures the time of `dinov2rt.load` in a fresh process, and its peak memory.

    python -m dinov2rt.benchmarks.studies.load_time BUNDLE \
        [--backends openvino,onnxruntime --repeats 7]

Each load runs in a process of its own, which imports its modules before the timing starts; the
backends take turns. The first load is left out, so that the bundle's files are in the page cache.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dinov2rt.benchmarks.harness.clock import peak_rss_mib, timed
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import BackendError, Dinov2rtError, InputError
from dinov2rt.runtime.backends.modes import BackendName, parse_backend
from dinov2rt.runtime.backends.registry import GRAPH_MODES
from dinov2rt.runtime.model import load

_BACKENDS: dict[BackendName, Callable[[], object]] = {
    mode.backend: mode.cannot_run
    for mode in GRAPH_MODES
    if (mode.device, mode.precision) == ("cpu", Precision.FP32)
}
"""Functions that import the backend's library and return why it cannot run, or None."""
_SIDE = 224


@dataclass(frozen=True, slots=True)
class _Sample:
    description: str
    import_ms: float
    load_ms: float
    imported_mib: float
    loaded_mib: float
    called_mib: float


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Medians over all processes except the first; `load_min_ms` is the shortest load.

    Memory is the peak resident memory in MiB after the imports, after the load, and after one call
    with one image of 224 x 224. It includes the pages of memory-mapped files.
    """

    description: str
    repeats: int
    import_p50_ms: float
    load_p50_ms: float
    load_min_ms: float
    imported_mib: float
    loaded_mib: float
    called_mib: float

    def __str__(self) -> str:
        return (
            f"{self.description}: load {self.load_p50_ms:.0f} ms (least {self.load_min_ms:.0f}), "
            f"imports {self.import_p50_ms:.0f} ms; peak memory {self.imported_mib:.0f} MiB "
            f"imported, {self.loaded_mib:.0f} loaded, {self.called_mib:.0f} called"
        )


def measure(bundle: Path, backends: Sequence[BackendName], *, repeats: int) -> tuple[LoadTime, ...]:
    """Time `load` of the float32 graph on the CPU, `repeats` times in each of `backends`.

    Raises:
        InputError: `repeats` is below 1, or a backend is unknown or given twice.
        BackendError: a process died.
        Dinov2rtError: the bundle cannot be loaded; see `load`.
    """
    different = set(backends)
    if repeats < 1 or not different <= _BACKENDS.keys() or len(different) < len(backends):
        raise InputError(
            f"repeats {repeats}, backends {','.join(backends)}; "
            f"repeats must be at least 1, and backends some of {','.join(_BACKENDS)}, each once"
        )
    samples: dict[str, list[_Sample]] = {backend: [] for backend in backends}
    for _ in range(1 + repeats):
        for backend in backends:
            samples[backend].append(_in_fresh_process(bundle, backend))
    return tuple(_summarize(samples[backend][1:]) for backend in backends)


def _in_fresh_process(bundle: Path, backend: BackendName) -> _Sample:
    # spawn: a forked child would inherit the libraries and the memory
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_sample, bundle, backend).result()
        except BrokenProcessPool as error:
            raise BackendError(
                f"the process that loaded {bundle} with {backend} died, perhaps because memory ran "
                f"out; free some, or leave {backend} out of --backends"
            ) from error


def _sample(bundle: Path, backend: BackendName) -> _Sample:
    import_ms, _ = timed(_BACKENDS[backend])
    imported_mib = peak_rss_mib()
    load_ms, model = timed(lambda: load(bundle, device="cpu", backend=backend, precision="fp32"))
    loaded_mib = peak_rss_mib()
    pixels = np.zeros((1, _SIDE, _SIDE, 3), np.uint8)
    model(
        pixels
        if model.graph.input_name == InputFormat.PIXELS
        else model.manifest.normalization(pixels)
    )
    description = model.summary
    return _Sample(description, import_ms, load_ms, imported_mib, loaded_mib, peak_rss_mib())


def _summarize(samples: Sequence[_Sample]) -> LoadTime:
    return LoadTime(
        description=samples[0].description,
        repeats=len(samples),
        import_p50_ms=statistics.median(sample.import_ms for sample in samples),
        load_p50_ms=statistics.median(sample.load_ms for sample in samples),
        load_min_ms=min(sample.load_ms for sample in samples),
        imported_mib=statistics.median(sample.imported_mib for sample in samples),
        loaded_mib=statistics.median(sample.loaded_mib for sample in samples),
        called_mib=statistics.median(sample.called_mib for sample in samples),
    )


def main() -> int:
    """Print the measurement; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="load_time", description="time and memory of loading a bundle"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--backends", default=",".join(_BACKENDS), help="backends to measure (default: all)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="loads of each (default: 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    try:
        backends = [parse_backend(name) for name in given.backends.split(",")]
        results = measure(given.bundle, backends, repeats=given.repeats)
    except Dinov2rtError as error:
        print(f"load_time: {error}", file=sys.stderr)
        return error.exit_status
    document = json.dumps([asdict(result) for result in results], indent=2)
    print(document if given.json else "\n".join(map(str, results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
