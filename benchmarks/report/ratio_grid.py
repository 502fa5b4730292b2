"""One table of all cells of a machine: the time of dinov2rt over the time of other candidates."""

from collections.abc import Callable, Iterable, Sequence

from dinov2rt.benchmarks.report.formats import precision_name, ratio_text, shape
from dinov2rt.benchmarks.report.ratios import (
    TimeRatio,
    beside_float32,
    beside_peers,
    int8_beside_bfloat16,
    rows_at,
)
from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.benchmarks.results import BenchmarkRun, Cell
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import variants

_Ratios = Callable[[BenchmarkRun], Iterable[TimeRatio]]
_Line = tuple[str, str, str]  # variant, precision, the other candidate

_OTHERS: dict[str, _Ratios] = {
    "fastest peer of that precision": beside_peers,
    "fastest float32 candidate": beside_float32,
    "dinov2rt in bfloat16": int8_beside_bfloat16,
}


def ratio_grid(runs: Sequence[BenchmarkRun]) -> Table:
    """A line for each variant, precision and other candidate, a column for each batch and size.

    A cell that was not measured, or where one of the two has no time, has no figure.
    """
    ratios = {
        (_line(each, other), shape(each.cell)): each
        for other, compare in _OTHERS.items()
        for each in best_of(runs, compare)
    }
    columns = sorted({each.cell for each in ratios.values()}, key=_by_size)
    shapes = tuple(dict.fromkeys(map(shape, columns)))
    lines = sorted({line for line, _ in ratios}, key=_by_variant)
    return Table(
        title="",
        header=("variant", "precision", "other", *shapes),
        rows=tuple(
            (*line, *(_text(ratios.get((line, each))) for each in shapes)) for line in lines
        ),
        labels=3,
    )


def best_of(runs: Sequence[BenchmarkRun], compare: _Ratios) -> tuple[TimeRatio, ...]:
    """`compare` of all runs, once for each cell and precision.

    If several runs hold a cell, the run with the most timed candidates in it counts, and of these
    the one with the most turns; the runs' own reports have the others.
    """
    found: dict[tuple[Cell, str], tuple[tuple[int, int], TimeRatio]] = {}
    for run in runs:
        for each in compare(run):
            weight = _timed_at(run, each.cell), _turns(each)
            known = found.get((each.cell, each.precision))
            if known is None or known[0] < weight:
                found[each.cell, each.precision] = weight, each
    return tuple(each for _, each in found.values())


def _timed_at(run: BenchmarkRun, cell: Cell) -> int:
    return sum(row.latency is not None for row in rows_at(run, cell))


def _turns(ratio: TimeRatio) -> int:
    return len(ratio.own.latency.turns_ms) if ratio.own.latency else 0


def _line(ratio: TimeRatio, other: str) -> _Line:
    return ratio.cell.variant, precision_name(ratio.precision), other


def _by_size(cell: Cell) -> tuple[int, int, int]:
    return cell.height, cell.width, cell.batch


def _by_variant(line: _Line) -> tuple[int, int, int]:
    """Small models first, and the most exact precision first."""
    variant, precision, other = line
    models, formats = [each.name for each in variants()], [*map(precision_name, Precision)]
    return models.index(variant), formats.index(precision), [*_OTHERS].index(other)


def _text(ratio: TimeRatio | None) -> str:
    return ratio_text(ratio.ratio if ratio else None)
