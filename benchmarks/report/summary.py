"""Summarizes a run in sentences that are computed from its results."""

from collections.abc import Iterable, Sequence

from dinov2rt.benchmarks.report.formats import (
    counted,
    percent,
    precision_name,
    significant,
    span,
)
from dinov2rt.benchmarks.report.ratios import (
    Standing,
    TimeRatio,
    beside_float32,
    beside_peers,
    cells,
    fastest,
    int8_beside_bfloat16,
    precisions,
    rows_at,
)
from dinov2rt.benchmarks.results import BenchmarkRun, Row

WORTHWHILE = 0.85
"""Above this ratio to bfloat16, int8 saves too little time for what it loses in accuracy."""


def sentences(run: BenchmarkRun) -> tuple[str, ...]:
    """The run in a few sentences, the most important one first."""
    found = beside_peers(run)
    standings = [
        line
        for precision in precisions(run)
        for line in _standing_lines(precision, [e for e in found if e.precision == precision])
    ]
    if not found:
        standings = ["Nowhere were dinov2rt and a peer of the same precision both timed."]
    standings += (*_other_precision_lines(run), *_gain_lines(run), *_int8_lines(run))
    return (*standings, *_roofline_lines(run), *_accuracy_lines(run), *_missing_lines(run))


def _standing_lines(precision: str, found: Sequence[TimeRatio]) -> Iterable[str]:
    if not found:
        return
    count = {kind: sum(each.standing is kind for each in found) for kind in Standing}
    kinds = [
        f"the fastest in {count[Standing.FASTEST]} of {counted(len(found), 'cell')}",
        f"within 3 % of the fastest peer in {count[Standing.LEVEL]}",
        f"slower in {count[Standing.SLOWER]}",
    ]
    if count[Standing.OPEN]:
        kinds.append(f"not told apart by the measurement in {count[Standing.OPEN]}")
    yield f"In {precision_name(precision)}, dinov2rt is {', '.join(kinds)}."
    yield (
        f"Its {precision_name(precision)} calls take {_span(found)} times as long "
        "as the fastest peer of the cell."
    )
    for kind, words in ((Standing.SLOWER, "Slower"), (Standing.OPEN, "Not decided")):
        named = [_named(each) for each in found if each.standing is kind]
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


def _gain_lines(run: BenchmarkRun) -> Iterable[str]:
    """The gain of lower precisions over float32."""
    ratios = beside_float32(run)
    for precision in dict.fromkeys(each.precision for each in ratios):
        yield (
            f"In {precision_name(precision)} its calls take "
            f"{_span([each for each in ratios if each.precision == precision])} of the time of the "
            "fastest float32 candidate of the cell, dinov2rt's own included."
        )


def _int8_lines(run: BenchmarkRun) -> Iterable[str]:
    """The gain of int8 over bfloat16, and the cells where it is too small."""
    ratios = int8_beside_bfloat16(run)
    if ratios:
        yield f"Its int8 calls take {_span(ratios)} of the time of its bfloat16 calls."
    small = [str(each.cell) for each in ratios if each.ratio.median > WORTHWHILE]
    if small:
        yield (
            f"Take bfloat16 rather than int8 at {'; '.join(small)}: the measurement does not show "
            f"that int8 saves {percent(1 - WORTHWHILE)} there, and it is less accurate."
        )


def _span(ratios: Sequence[TimeRatio]) -> str:
    medians = [each.ratio.median for each in ratios]
    return span(min(medians), max(medians))


def _named(each: TimeRatio) -> str:
    return f"{each.cell}, {significant(each.ratio.median)} times {each.other.candidate}"


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
