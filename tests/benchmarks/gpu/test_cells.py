"""Cells on a GPU: what is measured when, with contestants and clocks that need none."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dinov2rt.benchmarks.gpu import cells, memory
from dinov2rt.benchmarks.gpu.cells import Run
from dinov2rt.benchmarks.harness.environment import describe_environment
from dinov2rt.benchmarks.results import BenchmarkRun, CandidateFacts, Cell, Row
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.runtime.model import Model

FOREVER = float("inf")


class Fake:
    """A contestant without a model; those in `broken` cannot be opened."""

    broken: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name, self.is_reference, self.is_peer = name, name == "eager", name != "own"

    def open(self, cell: Cell) -> None:
        if self.name in self.broken:
            raise RuntimeError(f"{self.name} is out of memory at {cell}")

    def enqueue(self) -> object:
        return None

    def facts(self, variant: str) -> CandidateFacts:
        return CandidateFacts(
            variant, self.name, self.name, "1", "fp16", self.is_peer, None, 1.0, None, None
        )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that were measured, in order."""
    done: list[Cell] = []

    def measure(cell: Cell, _: Manifest, contestants: Sequence[Fake], *__: object) -> Iterator[Row]:
        done.append(cell)
        for each in contestants:
            if not each.is_reference:
                yield Row(cell, each.name, failure="not timed here")

    machine = describe_environment("cpu")
    monkeypatch.setattr(cells, "describe_environment", lambda _: machine)
    monkeypatch.setattr(cells, "matrix_gflops", lambda _: 1.0)
    monkeypatch.setattr(cells, "copy_gb_per_s", lambda: 1.0)
    monkeypatch.setattr(cells, "kernels_of", lambda _: [])
    monkeypatch.setattr(cells, "CELLS", ((1, 224), (32, 224), (8, 518)))
    monkeypatch.setattr(
        cells, "contestants_for", lambda *_, **__: map(Fake, ("eager", "own", "peer"))
    )
    monkeypatch.setattr(cells, "measure", measure)
    return done


def result_of(out: Path) -> BenchmarkRun:
    (file,) = (each for each in out.glob("*.json") if "kernels" not in each.name)
    return BenchmarkRun.read(file)


def test_a_later_call_measures_only_what_is_missing(
    measured: list[Cell], bundle_s: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as shorter:
        shorter.setattr(cells, "CELLS", cells.CELLS[:1])
        Run(tmp_path, [bundle_s], FOREVER).measure_all()
    Run(tmp_path, [bundle_s], FOREVER).measure_all()
    assert [cell.batch for cell in measured] == [1, 32, 8]
    result = result_of(tmp_path)
    assert [row.candidate for row in result.rows] == ["own", "peer"] * 3
    assert {facts.candidate for facts in result.candidates} == {"eager", "own", "peer"}


def test_cells_that_do_not_fit_are_named_until_a_later_call_measures_them(
    measured: list[Cell], bundle_s: Path, tmp_path: Path
) -> None:
    late = Run(tmp_path, [bundle_s], 0.0)
    late.measure_all()
    late.write(Manifest.read(bundle_s).name)
    assert (len(measured), len(result_of(tmp_path).missing)) == (0, 3)
    Run(tmp_path, [bundle_s], FOREVER).measure_all()
    assert (len(measured), len(result_of(tmp_path).missing)) == (3, 0)


@pytest.mark.parametrize("changed", ["bundle", "version", "settings", "damaged"])
def test_results_of_something_else_are_measured_anew(
    measured: list[Cell],
    bundle_s: Path,
    copy_of: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    bundle, out = copy_of(bundle_s), tmp_path / "out"
    Run(out, [bundle], FOREVER).measure_all()
    manifest = Manifest.read(bundle)
    if changed == "bundle":
        dataclasses.replace(manifest, tools={"other": "1"}).write(bundle)
    elif changed == "version":
        monkeypatch.setattr(cells, "__version__", "0.0.0")
    elif changed == "settings":  # as `bench` writes it, with a process for each candidate
        file = out / f"{manifest.name}.json"
        earlier = BenchmarkRun.read(file)
        dataclasses.replace(
            earlier, settings=dataclasses.replace(earlier.settings, one_process=False)
        ).write(file)
    else:
        (out / f"{manifest.name}.json").write_text("{")
    Run(out, [bundle], FOREVER).measure_all()
    assert len(measured) == 6
    assert len(result_of(out).rows) == 6


def test_a_cell_that_fails_does_not_stop_the_others(
    measured: list[Cell], bundle_s: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: Any = cells.measure

    def measure(cell: Cell, *given: object) -> Iterator[Row]:
        for row in usual(cell, *given):
            if (cell.batch, row.candidate) == (32, "peer"):
                raise RuntimeError("CUDA out of memory")
            yield row

    monkeypatch.setattr(cells, "measure", measure)
    Run(tmp_path, [bundle_s], FOREVER).measure_all()
    assert [cell.batch for cell in measured] == [1, 32, 8]
    reasons = {(r.cell.batch, r.candidate): r.failure for r in result_of(tmp_path).rows}
    assert len(reasons) == 6
    assert reasons[32, "peer"] == "CUDA out of memory"


def test_dinov2rt_that_does_not_load_has_the_reason_in_its_row(
    measured: list[Cell], bundle_s: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "broken", ("own",))
    Run(tmp_path, [bundle_s], FOREVER).measure_all()
    reasons = [r.failure for r in result_of(tmp_path).rows if r.candidate == "own"]
    assert len(measured) == len(reasons) == 3
    assert all("own is out of memory" in str(reason) for reason in reasons)


def test_without_the_reference_nothing_is_measured_and_every_row_says_so(
    measured: list[Cell], bundle_s: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "broken", ("eager",))
    Run(tmp_path, [bundle_s], FOREVER).measure_all()
    reasons = [r.failure for r in result_of(tmp_path).rows if r.candidate != "eager"]
    assert measured == []
    assert reasons == ["the reference did not load, so nothing can be compared"] * 6


def test_memory_is_compared_with_that_of_the_largest_shape(model: Model) -> None:
    used = iter([100.0, 200.0, 230.0])
    shapes: list[tuple[int, int, int]] = []

    class Recording:
        def warm_up(self, given: Sequence[tuple[int, int, int]]) -> None:
            shapes.extend(given)

    fake: Any = Recording()
    found = memory.measure(fake, lambda: next(used))
    assert found["ratio"] == pytest.approx(1.15)
    assert len(set(shapes)) == 16
    areas = {batch * height * width for batch, height, width in set(shapes[1:])}
    assert max(areas) < memory.LARGEST[0] * memory.LARGEST[1] * memory.LARGEST[2]
    assert memory.weights_mib(model) > 1
    assert json.dumps(found)
