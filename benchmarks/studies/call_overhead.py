"""Measures the overhead of `model(...)` over a bare ONNX Runtime session, and of the import.

    python -m dinov2rt.benchmarks.studies.call_overhead BUNDLE [--size 224 --batch 1 --repeats 50]

Both sides load the same graph with the same threads and take turns in one process, so that a change
in the machine's speed affects both. The first of the two changes from turn to turn.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.optional import require
from dinov2rt.runtime.model import Model, load

_WARM_UP = 3
_IMPORTS = 10
_TIMED_IMPORT = (
    "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Medians over all turns.

    `overhead_percent` is the median of the paired differences, in percent of the bare session's
    median. The imports are timed inside fresh interpreters whose bytecode is cached.
    """

    bundle: str
    variant: str
    backend: str
    batch: int
    size: int
    repeats: int
    session_p50_ms: float
    model_p50_ms: float
    overhead_percent: float
    import_p50_ms: float
    import_min_ms: float
    import_numpy_p50_ms: float
    import_numpy_min_ms: float

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.variant} on {self.backend}, {self.batch} x {self.size} x {self.size}, "
                f"{self.repeats} turns",
                f"session.run  {self.session_p50_ms:9.2f} ms",
                f"model(...)   {self.model_p50_ms:9.2f} ms",
                f"overhead     {self.overhead_percent:+9.2f} %",
                f"import dinov2rt {self.import_p50_ms:6.0f} ms (least {self.import_min_ms:.0f}), "
                f"numpy alone {self.import_numpy_p50_ms:.0f} "
                f"(least {self.import_numpy_min_ms:.0f})",
            )
        )


def measure(bundle: Path, *, size: int, batch: int, repeats: int) -> Overhead:
    """Time both on the CPU, on `batch` random square images of `size` pixels a side.

    Raises:
        InputError: the batch, the size or the number of turns is below 1.
        Dinov2rtError: the bundle cannot be loaded; see `load`.
    """
    if batch < 1 or repeats < 1 or size < 1:
        raise InputError(f"batch {batch}, size {size}, repeats {repeats}; the minimum is 1")
    with load(bundle, device="cpu", backend="onnxruntime", max_pixels=batch * size * size) as model:
        images = _images(model, (batch, size, size, 3))
        session_ms, model_ms = _take_turns(
            _bare_session(model, images), lambda: model(images), repeats
        )
        variant, backend = model.manifest.name, model.describe().partition(" on ")[2]
    differences = [call - bare for bare, call in zip(session_ms, model_ms, strict=True)]
    package_ms, numpy_ms = _import_ms("dinov2rt"), _import_ms("numpy")
    return Overhead(
        bundle=str(bundle),
        variant=variant,
        backend=backend,
        batch=batch,
        size=size,
        repeats=repeats,
        session_p50_ms=statistics.median(session_ms),
        model_p50_ms=statistics.median(model_ms),
        overhead_percent=100 * statistics.median(differences) / statistics.median(session_ms),
        import_p50_ms=statistics.median(package_ms),
        import_min_ms=min(package_ms),
        import_numpy_p50_ms=statistics.median(numpy_ms),
        import_numpy_min_ms=min(numpy_ms),
    )


def _images(model: Model, shape: tuple[int, int, int, int]) -> NDArray[Any]:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return (
        pixels
        if model.graph.input_name == InputFormat.PIXELS
        else model.manifest.normalization(pixels)
    )


def _bare_session(model: Model, images: NDArray[Any]) -> Callable[[], Any]:
    """The code that a user would write by hand: a default session, with all outputs."""
    ort = require("onnxruntime", extra="ort", purpose="the bare session")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # only errors
    session = ort.InferenceSession(
        model.path / model.graph.files[0].path, options, providers=["CPUExecutionProvider"]
    )
    feed = {model.graph.input_name: images}
    return lambda: session.run(None, feed)


def _take_turns(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    calls = (first, second)
    for turn in range(_WARM_UP + repeats):
        for side in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            calls[side]()
            times[side].append(1e3 * (time.perf_counter() - start))
    return times[0][_WARM_UP:], times[1][_WARM_UP:]


def _import_ms(module: str) -> list[float]:
    command = [sys.executable, "-c", _TIMED_IMPORT.format(module)]
    outputs = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
        for _ in range(1 + _IMPORTS)
    ]
    return [1e3 * float(output) for output in outputs[1:]]  # the first writes the bytecode


def main() -> int:
    """Print the measurement; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="call_overhead", description="overhead of model(...) over the bare session"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--batch", type=int, default=1, help="images per call (default: 1)")
    parser.add_argument("--repeats", type=int, default=50, help="turns (default: 50)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    try:
        result = measure(given.bundle, size=given.size, batch=given.batch, repeats=given.repeats)
    except Dinov2rtError as error:
        print(f"call_overhead: {error}", file=sys.stderr)
        return error.exit_status
    print(json.dumps(asdict(result), indent=2) if given.json else result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
