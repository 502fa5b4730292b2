"""Compares two runs on one machine: changes that exceed the noise between the runs."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from dinov2rt.benchmarks.report.formats import ratio_text, significant
from dinov2rt.benchmarks.report.movement import Movement, Noise, measure_noise, movement, rate_ratio
from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.benchmarks.results import BenchmarkRun, Cell, Row
from dinov2rt.errors import InputError

_RowKey = tuple[Cell, str]

_MACHINE = ("machine", "cpu", "gpu", "cores", "affinity")
_MACHINE_SETTINGS = (
    "governor",
    "turbo off",
    "boost",
    "cgroup cpu.max",
    "cgroup cpu quota in us",
    "cgroup cpu period in us",
    "GPU driver",
    "GPU power limit",
)
"""Details of an environment that are settings; clocks, heat and throttling vary by themselves."""


class Verdict(StrEnum):
    """The change of a row between two runs."""

    FASTER = "faster"
    SLOWER = "SLOWER"
    WITHIN_NOISE = "within noise"
    LOST = "LOST"
    REGAINED = "runs now"
    NEITHER = "timed in neither"


@dataclass(frozen=True, slots=True)
class Change:
    """One candidate at one cell, in both runs.

    `movement` is None unless it was timed in both; `reason` says why it was not timed in the new
    one. `is_own` tells dinov2rt's candidates from peers.
    """

    cell: Cell
    candidate: str
    is_own: bool
    verdict: Verdict
    movement: Movement | None
    reason: str | None

    @property
    def is_regression(self) -> bool:
        """Whether dinov2rt itself became slower, or cannot be timed any more."""
        return self.is_own and self.verdict in (Verdict.SLOWER, Verdict.LOST)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All changes; true if none of them is a regression of dinov2rt."""

    noise: Noise
    changes: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]

    def __bool__(self) -> bool:
        return not any(change.is_regression for change in self.changes)

    def __str__(self) -> str:
        return f"{_table(self)}\n\n{_conclusion(self)}"


def compare_runs(old: BenchmarkRun, new: BenchmarkRun) -> Comparison:
    """Compare `new` with `old`, row by row.

    Between two runs nothing ran side by side, so that a latency also moves with the clocks, the
    neighbours and the temperature of the machine. Three hurdles stand before a change counts:

    1. The 95 % intervals of the two medians do not overlap.
    2. It is there twice, in ms and in units of the matrix rate that was measured beside it. Matrix
       rate alone is no yardstick: it has noise of its own, and says little of calls that are bound
       by bandwidth.
    3. It is larger than the noise: the farthest that any peer of unchanged version moved by the
       measure of 2, and at least 3 %; 10 % where there is no such peer.

    Raises:
        InputError: the runs are of unlike machines, settings or weights, or share no row.
    """
    refuse_unlike(old, new)
    old_rows, new_rows = _rows(old), _rows(new)
    lost = _lost_rows(old_rows, new)
    shared = [key for key in old_rows if key in new_rows or key in lost]
    if not shared:
        raise InputError("the two runs have no cell and candidate in common; measure the same ones")
    noise = measure_noise(old, new)
    return Comparison(
        noise=noise,
        changes=tuple(
            _change(old, new, old_rows[key], new_rows.get(key) or lost[key], noise)
            for key in shared
        ),
        only_old=_names(key for key in old_rows if key not in shared),
        only_new=_names(key for key in new_rows if key not in old_rows),
    )


def refuse_unlike(old: BenchmarkRun, new: BenchmarkRun) -> None:
    """Refuse runs that cannot be compared; `new` needs no rows yet.

    Raises:
        InputError: the runs are of unlike machines, settings or weights.
    """
    there, here = _conditions(old), _conditions(new)
    for name in sorted(there.keys() & here.keys()):
        if there[name] != here[name]:
            raise InputError(
                f"the runs differ in {name}: {there[name]!r} in the old one, {here[name]!r} in the "
                "new one; compare runs of one machine, with equal settings and weights"
            )


def _conditions(run: BenchmarkRun) -> dict[str, Any]:
    """The conditions that must be equal in two runs, by name, if both runs have them."""
    machine, peak_rates = run.environment, run.peak_rates
    return {
        **{f"environment.{name}": getattr(machine, name) for name in _MACHINE},
        **{f"environment.details.{name}": machine.details.get(name) for name in _MACHINE_SETTINGS},
        **{f"settings.{name}": value for name, value in asdict(run.settings).items()},
        # times are compared by the matrix rate, which depends on the product and who computes it
        "peak_rates.matrix_shape": peak_rates.matrix_shape,
        **{
            f"peak_rates.matrix_library.{name}": value
            for name, value in peak_rates.matrix_library.items()
        },
        **{
            f"weights of {bundle.variant}": f"{bundle.weights_source} ({bundle.weights_sha256})"
            for bundle in run.bundles
        },
    }


def _rows(run: BenchmarkRun) -> dict[_RowKey, Row]:
    return {(row.cell, row.candidate): row for row in run.rows}


def _lost_rows(old_rows: Mapping[_RowKey, Row], new: BenchmarkRun) -> dict[_RowKey, Row]:
    """Rows of candidates that the new run requested but could not load."""
    reasons = {(each.variant, each.candidate): each.reason for each in new.missing}
    return {
        (cell, candidate): Row(cell, candidate, failure=reasons[cell.variant, candidate])
        for cell, candidate in old_rows
        if (cell.variant, candidate) in reasons
    }


def _names(keys: Iterable[_RowKey]) -> tuple[str, ...]:
    return tuple(f"{cell} {candidate}" for cell, candidate in keys)


def _change(old: BenchmarkRun, new: BenchmarkRun, before: Row, after: Row, noise: Noise) -> Change:
    moved = movement(before, after, rate_ratio(old, new, before))
    return Change(
        cell=before.cell,
        candidate=before.candidate,
        is_own=not old.facts(before).is_peer,
        verdict=_verdict(moved, noise) if moved else _verdict_without_times(before, after),
        movement=moved,
        reason=after.failure,
    )


def _verdict(moved: Movement, noise: Noise) -> Verdict:
    low, high = moved.ratio.low, moved.ratio.high
    if low is None or high is None or moved.factor <= noise.factor:
        return Verdict.WITHIN_NOISE
    if low > 1:
        return Verdict.SLOWER
    return Verdict.FASTER if high < 1 else Verdict.WITHIN_NOISE


def _verdict_without_times(before: Row, after: Row) -> Verdict:
    if before.latency is not None:
        return Verdict.LOST
    return Verdict.NEITHER if after.latency is None else Verdict.REGAINED


def _table(comparison: Comparison) -> Table:
    rows = tuple(
        (
            str(change.cell),
            change.candidate,
            ratio_text(change.movement.ratio if change.movement else None),
            significant(change.movement.normalised if change.movement else None),
            change.verdict,
        )
        for change in comparison.changes
    )
    header = ("cell", "candidate", "new ÷ old (95 %)", "by matrix rate", "")
    return Table("", header, rows, labels=2)


def _conclusion(comparison: Comparison) -> str:
    lines = [f"noise {comparison.noise.factor:.3f}× ({comparison.noise.source})"]
    lines += [
        f"not timed any more: {change.cell} {change.candidate}: {change.reason}"
        for change in comparison.changes
        if change.verdict is Verdict.LOST
    ]
    for name, only in (("old", comparison.only_old), ("new", comparison.only_new)):
        if only:
            lines.append(f"only in the {name} run: {', '.join(only)}")
    count = sum(change.is_regression for change in comparison.changes)
    lines.append(f"REGRESSION in {count} rows of dinov2rt" if count else "no regression")
    return "\n".join(lines)
