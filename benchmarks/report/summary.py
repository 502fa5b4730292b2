"""Summarizes a run in sentences that are computed from its results."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from dinov2rt.benchmarks.report.formats import (
    counted,
    percent,
    precision_name,
    ratio_text,
    significant,
    span,
)
from dinov2rt.benchmarks.results import BenchmarkRun, Cell, Row
from dinov2rt.benchmarks.statistics import Interval, paired_ratio
from dinov2rt.bundle.precision import Precision

LEVEL = 1.03
"""Up to this ratio to the fastest peer, dinov2rt counts as equally fast."""


class Standing(StrEnum):
    """dinov2rt compared with the fastest peer of the same precision, by the whole interval."""

    FASTEST = "fastest"
    LEVEL = "within 3 % of the fastest peer"
    SLOWER = "slower"
    OPEN = "not decided by the measurement"


@dataclass(frozen=True, slots=True)
class Duel:
    """dinov2rt's fastest candidate beside the fastest peer, at one cell and precision.

    `ratio` is dinov2rt's time over the peer's. In `lone_duels` the peer is one of float32.
    """

    cell: Cell
    precision: str
    own: Row
    peer: Row
    ratio: Interval

    @property
    def standing(self) -> Standing:
        """The standing on which the whole interval of the ratio agrees; otherwise OPEN."""
        low, high = self.ratio.low, self.ratio.high
        if low is None or high is None:
            return Standing.OPEN
        if high < 1:
            return Standing.FASTEST
        if high <= LEVEL:
            return Standing.LEVEL
        return Standing.SLOWER if low > LEVEL else Standing.OPEN


def cells(run: BenchmarkRun) -> tuple[Cell, ...]:
    """Every cell once, in the order of the run."""
    return tuple(dict.fromkeys(row.cell for row in run.rows))


def rows_at(run: BenchmarkRun, cell: Cell) -> tuple[Row, ...]:
    """The rows of a cell: the timed ones first, the fastest of them first."""
    rows = (row for row in run.rows if row.cell == cell)
    return tuple(sorted(rows, key=lambda row: row.latency.p50_ms if row.latency else math.inf))


def fastest(
    run: BenchmarkRun, cell: Cell, precision: str, *, peer: bool | None = None
) -> Row | None:
    """The fastest timed row of a precision: of peers, of dinov2rt's own candidates, or of all."""
    for row in rows_at(run, cell):
        facts = run.facts(row)
        if row.latency and facts.precision == precision and peer in (None, facts.is_peer):
            return row
    return None


def ratio_to_fastest_peer(run: BenchmarkRun, row: Row) -> Interval | None:
    """The time of `row` over the time of the fastest peer in its precision, if both were timed."""
    peer = fastest(run, row.cell, run.facts(row).precision, peer=True)
    if row.latency is None or peer is None or peer.latency is None:
        return None
    return paired_ratio(row.latency, peer.latency)


def duels(run: BenchmarkRun) -> tuple[Duel, ...]:
    """One comparison for each cell and precision where both sides were timed."""
    found = []
    for cell in cells(run):
        for precision in precisions(run):
            own = fastest(run, cell, precision, peer=False)
            peer = fastest(run, cell, precision, peer=True)
            ratio = ratio_to_fastest_peer(run, own) if own else None
            if own and peer and ratio:
                found.append(Duel(cell, precision, own, peer, ratio))
    return tuple(found)


def lone_duels(run: BenchmarkRun) -> tuple[Duel, ...]:
    """Comparisons for precisions that no peer has: with the fastest float32, also dinov2rt's."""
    compared = {facts.precision for facts in run.candidates if facts.is_peer} | {Precision.FP32}
    found = []
    for precision, cell in product(precisions(run), cells(run)):
        own = fastest(run, cell, precision, peer=False)
        other = fastest(run, cell, Precision.FP32)
        if precision not in compared and own and own.latency and other and other.latency:
            ratio = paired_ratio(own.latency, other.latency)
            found.append(Duel(cell, precision, own, other, ratio))
    return tuple(found)


def precisions(run: BenchmarkRun) -> tuple[str, ...]:
    """Every precision once, in the order of the run."""
    return tuple(dict.fromkeys(facts.precision for facts in run.candidates))


def sentences(run: BenchmarkRun) -> tuple[str, ...]:
    """The run in a few sentences, the most important one first."""
    found = duels(run)
    standings = [
        line
        for precision in precisions(run)
        for line in _standing_lines(precision, [d for d in found if d.precision == precision])
    ]
    if not found:
        standings = ["Nowhere were dinov2rt and a peer of the same precision both timed."]
    standings += (*_other_precision_lines(run), *_lone_precision_lines(run))
    return (*standings, *_roofline_lines(run), *_accuracy_lines(run), *_missing_lines(run))


def _standing_lines(precision: str, found: Sequence[Duel]) -> Iterable[str]:
    if not found:
        return
    count = {kind: sum(duel.standing is kind for duel in found) for kind in Standing}
    kinds = [
        f"the fastest in {count[Standing.FASTEST]} of {counted(len(found), 'cell')}",
        f"within 3 % of the fastest peer in {count[Standing.LEVEL]}",
        f"slower in {count[Standing.SLOWER]}",
    ]
    if count[Standing.OPEN]:
        kinds.append(f"not told apart by the measurement in {count[Standing.OPEN]}")
    yield f"In {precision_name(precision)}, dinov2rt is {', '.join(kinds)}."
    ratios = sorted(duel.ratio.median for duel in found)
    yield (
        f"Its {precision_name(precision)} calls take {span(ratios[0], ratios[-1])} times as long "
        "as the fastest peer of the cell."
    )
    for kind, words in ((Standing.SLOWER, "Slower"), (Standing.OPEN, "Not decided")):
        named = [_named(duel) for duel in found if duel.standing is kind]
        if named:
            yield f"{words} in {precision_name(precision)}: {'; '.join(named)}."


def _other_precision_lines(run: BenchmarkRun) -> Iterable[str]:
    """Peers that are faster than every candidate of dinov2rt, in another precision."""
    count, names = 0, dict[str, None]()
    for cell in cells(run):
        first = rows_at(run, cell)[0]
        facts = run.facts(first)
        own = fastest(run, cell, facts.precision, peer=False)
        if first.latency and facts.is_peer and own is None:
            count += 1
            names[f"{first.candidate} ({precision_name(facts.precision)})"] = None
    if count:
        yield (
            f"In {counted(count, 'cell')} a peer is faster than all of dinov2rt's candidates in a "
            f"precision that none of these was timed in: {', '.join(names)}."
        )


def _lone_precision_lines(run: BenchmarkRun) -> Iterable[str]:
    """The gain over float32 of a precision that no peer has."""
    duels_ = lone_duels(run)
    for precision in dict.fromkeys(duel.precision for duel in duels_):
        found = [duel for duel in duels_ if duel.precision == precision]
        ratios = sorted(duel.ratio.median for duel in found)
        named = [
            f"{duel.cell}, {ratio_text(duel.ratio)} times {duel.peer.candidate}" for duel in found
        ]
        yield (
            f"In {precision_name(precision)} its calls take {span(ratios[0], ratios[-1])} of the "
            "time of the fastest float32 candidate of the cell, "
            f"dinov2rt's own included: {'; '.join(named)}."
        )


def _named(duel: Duel) -> str:
    return f"{duel.cell}, {significant(duel.ratio.median)} times {duel.peer.candidate}"


def _roofline_lines(run: BenchmarkRun) -> Iterable[str]:
    fractions = [
        row.roofline.fraction for row in run.rows if row.roofline and not run.facts(row).is_peer
    ]
    if fractions:
        low, high = percent(min(fractions)), percent(max(fractions))
        yield (
            f"dinov2rt runs at {low if low == high else f'{low} to {high}'} of what "
            "this machine's measured matrix rate and memory bandwidth allow at most."
        )


def accurate_and_timed(run: BenchmarkRun) -> list[Row]:
    """The results that passed the accuracy limits and have times."""
    return [row for row in run.rows if row.latency and row.accuracy and row.accuracy.passed]


def _accuracy_lines(run: BenchmarkRun) -> Iterable[str]:
    timed = len(accurate_and_timed(run))
    yield (
        f"{counted(timed, 'result')} passed the accuracy limits and "
        f"{'has a time' if timed == 1 else 'have times'}."
    )
    wrong = [row for row in run.rows if row.accuracy and not row.accuracy.passed]
    untimed = sum(row.latency is None for row in wrong)
    if untimed:
        yield f"{counted(untimed, 'result')} failed them and {_has(untimed)} no time."
    timed_all_the_same = [row.candidate for row in wrong if row.latency]
    if timed_all_the_same:
        yield (
            f"{counted(len(timed_all_the_same), 'result')} failed them and "
            f"{'has a time' if len(timed_all_the_same) == 1 else 'have times'} all the same, to "
            f"compare with: {', '.join(dict.fromkeys(timed_all_the_same))}."
        )
    broken = sum(row.latency is None for row in run.rows) - untimed
    if broken:
        yield f"{counted(broken, 'result')} could not be measured for another reason."


def _missing_lines(run: BenchmarkRun) -> Iterable[str]:
    if run.missing:
        names = dict.fromkeys(missing.candidate for missing in run.missing)
        yield f"Asked for and not measured: {', '.join(names)}; the reasons are below."


def _has(count: int) -> str:
    return "has" if count == 1 else "have"
