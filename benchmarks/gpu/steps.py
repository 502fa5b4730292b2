"""The commands that `benchmarks.gpu.run` executes on a machine with a GPU, in order."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import variants
from dinov2rt.runtime.backends.modes import BackendName
from dinov2rt.runtime.backends.registry import GRAPH_MODES, PLAN_MODES

EXPORT = "export"
"""The task that needs no GPU: all variants are exported in parallel."""

_GOLDEN_SIDE = max(variant.native_size.height for variant in variants())
"""The longest side of a golden image; a plan must allow it to be verified."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of a run, in the notation of `export` and `bench`.

    Speed is measured in one process within `budget_s` seconds, or, if `thorough`, with `bench`,
    which starts a process for each candidate. `all_peers` includes peers that compile for minutes.
    A `step_timeout_s` of None means no timeout.
    """

    weights: str
    batches: str
    sizes: str
    bench_options: tuple[str, ...]
    step_timeout_s: float | None = None
    budget_s: float = 600.0
    thorough: bool = False
    all_peers: bool = False
    has_tensorrt: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One command for one variant, or for all variants; `module` is the Python module that it runs.

    `made` is a file that the step creates. Later steps of the variant use the results of a step
    that `is_built_on`. A step that is `instead_of` another runs only if the other failed.
    """

    variant: str
    task: str
    arguments: tuple[str, ...]
    made: Path | None = None
    is_built_on: bool = False
    instead_of: str | None = None
    module: str = "dinov2rt"

    @property
    def name(self) -> str:
        """Variant and task."""
        return f"{self.variant} {self.task}"

    @property
    def command(self) -> str:
        """The command line."""
        words = ["dinov2rt"] if self.module == "dinov2rt" else ["python", "-m", self.module]
        return " ".join([*words, *self.arguments])


def steps(out: Path, names: Sequence[str], asked: Asked) -> Iterator[Step]:
    """All steps in order: exports, then the accuracy of every variant, then speed."""
    for variant in names:
        yield _export_step(out, variant, asked)
    for variant in names:
        yield from _accuracy_steps(out, variant, asked)
    if asked.thorough:
        for variant in names:
            yield from _speed_steps(out, variant, asked)
    else:
        yield _cells_step(out, names, asked)
        yield _memory_step(out, names)


def _export_step(out: Path, variant: str, asked: Asked) -> Step:
    bundle = _bundle(out, variant)
    export = ("export", variant, "--weights", asked.weights, "--out", str(bundle), "--force")
    return Step(variant, EXPORT, export, made=bundle / "manifest.json", is_built_on=True)


def _accuracy_steps(out: Path, variant: str, asked: Asked) -> Iterator[Step]:
    bundle = _bundle(out, variant)
    if asked.has_tensorrt:
        yield from _build_steps(bundle, variant, asked)
    for backend, precision in _ways_to_run(asked):
        choice = ("--device", "cuda", "--backend", backend, "--precision", precision)
        yield Step(variant, f"verify {backend} {precision}", ("verify", str(bundle), *choice))
    yield Step(variant, "verify auto", ("verify", str(bundle)))


def _ways_to_run(asked: Asked) -> Iterator[tuple[BackendName, Precision]]:
    """The backends and precisions in which a bundle runs on the GPU; plans are built in fp16."""
    modes = [mode for mode in GRAPH_MODES if mode.device == "cuda"]
    yield from dict.fromkeys((mode.backend, mode.precision) for mode in modes)
    if asked.has_tensorrt:
        yield from dict.fromkeys((mode.backend, Precision.FP16) for mode in PLAN_MODES)


def _cells_step(out: Path, names: Sequence[str], asked: Asked) -> Step:
    """The step that measures the latency of all variants in one process."""
    bundles = [str(_bundle(out, variant)) for variant in names]
    peers = ("--all-peers",) if asked.all_peers else ()
    arguments = (str(out), *bundles, *peers, "--budget", f"{asked.budget_s:g}")
    return Step("all", "cells", arguments, module="dinov2rt.benchmarks.gpu.cells")


def _memory_step(out: Path, names: Sequence[str]) -> Step:
    """The step that measures the GPU memory of the largest variant after many shapes."""
    widths = {variant.name: variant.embed_dim for variant in variants()}
    largest = max(names, key=lambda name: widths.get(name, 0))
    bundle = str(_bundle(out, largest))
    return Step("all", "memory", (bundle,), module="dinov2rt.benchmarks.gpu.memory")


def _build_steps(bundle: Path, variant: str, asked: Asked) -> Iterator[Step]:
    """Build a plan that allows the largest batch in one pass, as for the peers."""
    batch, side = _largest(asked.batches), max(_GOLDEN_SIDE, _largest(asked.sizes))
    build = ("build", str(bundle), "--max-batch", f"{batch}", "--max-size", f"{side}", "--target")
    current = Step(variant, "build", (*build, "current"), is_built_on=True)
    yield current
    # Some GPUs are no build target of TensorRT for RTX, but can run its open plans.
    yield Step(variant, "build open", (*build, "open"), is_built_on=True, instead_of=current.name)


def _speed_steps(out: Path, variant: str, asked: Asked) -> Iterator[Step]:
    result = out / f"{variant}.json"
    cells = ("--device", "cuda", "--batch", asked.batches, "--size", asked.sizes)
    bench = ("bench", str(_bundle(out, variant)), *cells, "--out", str(result))
    yield Step(variant, "bench", (*bench, *asked.bench_options), made=result, is_built_on=True)
    yield Step(variant, "report", ("report", str(result)))


def _bundle(out: Path, variant: str) -> Path:
    return out / "bundles" / variant


def _largest(text: str) -> int:
    return max(map(int, re.findall(r"\d+", text)))
