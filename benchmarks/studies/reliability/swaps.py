r"""A bundle that is replaced over and over while it is loaded: old, new or refused, never mixed.

    python -m dinov2rt.benchmarks.studies.reliability.swaps [--loads 300 --kinds onnxruntime]

Another process puts two bundles in place by turns, as `export --force` does. Each load is followed
by a call, whose output says which weights are served; they must be the manifest's. A plan
needs a GPU to be deserialized. Without one, it is loaded up to there, and the bytes that TensorRT
for RTX is given must be the plan of the manifest.
"""

import argparse
import contextlib
import hashlib
import itertools
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.benchmarks.studies.reliability.small_bundle import write_small_bundle
from dinov2rt.bundle.entries import FileEntry, Flavour, PlanEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.profiles import ProfileEntry, ShapeRange
from dinov2rt.errors import BackendError, BundleError
from dinov2rt.place import swap
from dinov2rt.runtime.backends.modes import BackendName
from dinov2rt.runtime.gpu.cuda import Gpu
from dinov2rt.runtime.model import load
from dinov2rt.runtime.tensorrt import backend
from dinov2rt.runtime.tensorrt.flavour import error_log, import_tensorrt
from dinov2rt.runtime.tensorrt.plan_checks import Machine, check_runs

_MODULE = "dinov2rt.benchmarks.studies.reliability.swaps"
_LOADS_A_PAUSE = 4
_TIMED_LOADS = 5
_GAINS = (1, 2)
_PIXELS = np.full((1, 28, 42, 3), 100, np.uint8)
_PLAN = "plans/a.plan"
_GPU = Gpu(0, "no GPU", "sm80", "no driver", (99, 0))


@dataclass(slots=True)
class Loads:
    """Counts how loads ended: with one of the two bundles, a refusal, or a mixture of both.

    `changes` is how often a load was served from another bundle than the load before.
    """

    first: int = 0
    second: int = 0
    refused: int = 0
    mixed: int = 0
    swaps: int = 0
    changes: int = 0
    served: str | None = None

    @property
    def outcomes(self) -> tuple[int, ...]:
        """The counts of all outcomes."""
        return self.first, self.second, self.refused, self.mixed

    @property
    def tried(self) -> int:
        """The number of loads."""
        return sum(self.outcomes)

    def count(self, source: str, *, is_whole: bool) -> None:
        """Count a load that was served from the bundle with weights from `source`."""
        self.changes += self.served not in (None, source)
        self.served = source
        self.mixed += not is_whole
        self.first += is_whole and source == _source(_GAINS[0])
        self.second += is_whole and source == _source(_GAINS[1])


def _source(gain: float) -> str:
    return f"synthetic:{gain:g}"


def try_swaps(kind: str, loads: int) -> Loads:
    """Load at least `loads` times, and until a tenth as many met another bundle than before."""
    counts = Loads()
    with tempfile.TemporaryDirectory() as folder:
        place, bundles = Path(folder, "served"), _bundles(Path(folder), with_plan=kind == PLAN)
        shutil.copytree(bundles[0], place)
        with (
            KINDS[kind](place) as load_once,
            _swapped(place, bundles, _pause_s(load_once), counts),
        ):
            while counts.tried < loads or counts.changes < loads / 10:
                try:
                    load_once(counts)
                except BundleError:
                    counts.refused += 1
    return counts


def _pause_s(load_once: Callable[[Loads], None]) -> float:
    """So long that some loads end between two swaps, however slow this machine is."""
    load_once(Loads())  # imports the library
    return _LOADS_A_PAUSE * min(_seconds(load_once) for _ in range(_TIMED_LOADS))


def _seconds(load_once: Callable[[Loads], None]) -> float:
    began = time.perf_counter()
    load_once(Loads())
    return time.perf_counter() - began


def _bundles(folder: Path, *, with_plan: bool) -> list[Path]:
    bundles = [folder / f"gain-{gain}" for gain in _GAINS]
    for bundle, gain in zip(bundles, _GAINS, strict=True):
        write_small_bundle(bundle, gain)
        if with_plan:
            _add_plan(bundle, gain)
    return bundles


@contextlib.contextmanager
def _graph(place: Path, library: BackendName) -> Iterator[Callable[[Loads], None]]:
    def load_once(counts: Loads) -> None:
        with load(place, backend=library, device="cpu", threads=1) as model:
            source = model.manifest.weights.source
            gain = model(_PIXELS).cls_token[0, 0] / _PIXELS[0, 0, 0, 0]
            counts.count(source, is_whole=bool(np.isclose(gain, float(source.partition(":")[2]))))

    yield load_once


class _UpToTheGpu:
    """TensorRT for RTX, whose runtime finds every header valid and keeps what it is given."""

    def __init__(self, trt: Any) -> None:
        self._trt, self.given = trt, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trt, name)

    def Runtime(self, _: Any) -> "_UpToTheGpu":  # noqa: N802  # the library's name
        return self

    def deserialize_cuda_engine(self, content: bytes) -> None:
        self.given = content


@contextlib.contextmanager
def _plan(place: Path) -> Iterator[Callable[[Loads], None]]:
    trt = import_tensorrt(Flavour.TENSORRT_RTX)
    machine = Machine(_GPU, (Flavour.TENSORRT_RTX,), trt.__version__, (0, 0))
    runtime = _UpToTheGpu(trt)
    entries: list[PlanEntry] = []

    def noting(entry: PlanEntry, *rest: Any) -> None:
        entries[:], runtime.given = [entry], b""
        check_runs(entry, *rest)

    def load_once(counts: Loads) -> None:
        try:
            load(place, backend="tensorrt")
        except BackendError:  # nothing is deserialized without a GPU
            (entry,) = entries
            digest = hashlib.sha256(runtime.given).hexdigest()
            counts.count(entry.options["weights"], is_whole=digest == entry.file.sha256)

    with (
        patch.object(Machine, "examine", lambda _: machine),
        patch.object(backend, "import_tensorrt", lambda _: runtime),
        patch.object(backend, "invalidity", lambda *_: None),
        patch.object(backend, "check_runs", noting),
    ):
        yield load_once


def _add_plan(bundle: Path, gain: int) -> None:
    """A plan that the installed TensorRT for RTX builds for sm80, of as many casts as `gain`."""
    trt = import_tensorrt(Flavour.TENSORRT_RTX)
    (bundle / "plans").mkdir()
    (bundle / _PLAN).write_bytes(_built(trt, gain))
    manifest = Manifest.read(bundle)
    (graph,) = manifest.graphs
    plan = PlanEntry(
        file=FileEntry.of(bundle, _PLAN),
        flavour=Flavour.TENSORRT_RTX,
        version=trt.__version__,
        target="sm80",
        precision=graph.precision,
        input_name=graph.input_name,
        outputs=graph.outputs,
        profiles=(ProfileEntry("28", ShapeRange.pinned(ImageSize(28, 28), 1), 0),),
        fused_attention=0,
        weight_bytes=0,
        build_seconds=0.0,
        graph_sha256=graph.files[0].sha256,
        options={"weights": _source(gain)},
    )
    replace(manifest, plans=(plan,)).write(bundle)


def _built(trt: Any, gain: int) -> bytes:
    builder = trt.Builder(error_log(trt))
    network = builder.create_network(0)
    value = network.add_input("images", trt.float32, (1, 3, 14, 14))
    for kind in (trt.float16, trt.float32)[:gain]:
        value = network.add_cast(value, kind).get_output(0)
    network.mark_output(value)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    return bytes(builder.build_serialized_network(network, config))


@contextlib.contextmanager
def _swapped(place: Path, bundles: list[Path], pause_s: float, counts: Loads) -> Iterator[None]:
    """Another process replaces what stands at `place`, over and over, with pauses up to one."""
    command = [sys.executable, "-m", _MODULE, "--swap", str(place), *map(str, bundles)]
    with subprocess.Popen(  # noqa: S603
        [*command, str(pause_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as swapper:
        assert swapper.stdin is not None  # noqa: S101
        assert swapper.stdout is not None  # noqa: S101
        swapper.stdout.readline()  # the first swap is done
        try:
            yield
        finally:
            swapper.stdin.close()
            counts.swaps = int(swapper.stdout.readline())


def _swap_until_told(place: Path, first: Path, second: Path, pause_s: float) -> None:
    """Until the standard input ends, as it does with the process that holds the other end."""
    pauses = random.Random(0)  # noqa: S311  # no secret
    for number, source in enumerate(itertools.cycle((second, first)), start=1):
        fresh = place.with_name("fresh")
        shutil.copytree(source, fresh)
        swap(fresh, place)
        if number == 1:
            print(flush=True)
        if select.select([sys.stdin], [], [], pauses.random() * pause_s)[0]:
            print(number)
            return


PLAN = "plan"
KINDS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Callable[[Loads], None]]]] = {
    "onnxruntime": lambda place: _graph(place, "onnxruntime"),
    "openvino": lambda place: _graph(place, "openvino"),
    PLAN: _plan,
}

_HEADER = ("loaded", "swaps", "loads", "one", "the other", "refused", "mixed")


def main() -> int:
    """The table on standard output; 0 if no load was mixed."""
    parser = argparse.ArgumentParser(prog="swaps")
    parser.add_argument("--loads", type=int, default=300)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--swap", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.swap:
        place, first, second, pause_s = arguments.swap
        _swap_until_told(Path(place), Path(first), Path(second), float(pause_s))
        return 0
    found = {kind: try_swaps(kind, arguments.loads) for kind in arguments.kinds.split(",")}
    rows = tuple(
        (kind, *map(str, (loads.swaps, loads.tried, *loads.outcomes)))
        for kind, loads in found.items()
    )
    print(Table("swaps", _HEADER, rows))
    return int(any(loads.mixed for loads in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
