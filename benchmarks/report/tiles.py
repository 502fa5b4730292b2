"""The figures in large type at the top of a report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from dinov2rt.benchmarks.report.formats import cosine, percent, precision_name, significant
from dinov2rt.benchmarks.report.ratios import cells, fastest, precisions, rows_at
from dinov2rt.benchmarks.results import BenchmarkRun, Cell, Row
from dinov2rt.benchmarks.statistics import paired_ratio
from dinov2rt.bundle.precision import Precision

CLS_COSINE = 0.999
"""The default minimum cosine of a CLS token that counts as accurate enough."""

_EAGER = ("eager", "torch-eager", "eager-autocast", "eager-half")
"""Names of eager PyTorch, float32 first."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure in large type, and its label."""

    figure: str
    caption: str


def tiles(run: BenchmarkRun, cls_cosine: float = CLS_COSINE) -> tuple[Tile, ...]:
    """The figures that decide whether to use dinov2rt.

    Args:
        run: What was measured.
        cls_cosine: The accuracy that the reader needs: the least cosine of a CLS token against
            eager float32.
    """
    return (
        *_at_accuracy(run, cls_cosine),
        *(tile for precision in own_precisions(run) for tile in _of_precision(run, precision)),
        *_share_of_roofline(run),
    )


def own_precisions(run: BenchmarkRun) -> tuple[str, ...]:
    """The precisions that dinov2rt has in the run, in its order."""
    own = {facts.precision for facts in run.candidates if not facts.is_peer}
    return tuple(precision for precision in precisions(run) if precision in own)


def _at_accuracy(run: BenchmarkRun, cls_cosine: float) -> Iterable[Tile]:
    """The number of settings where dinov2rt is the fastest of all that are accurate enough."""
    first = [row for cell in cells(run) if (row := _first(run, cell, cls_cosine)) is not None]
    if first:
        own = sum(not run.facts(row).is_peer for row in first)
        yield Tile(
            f"{own} of {len(first)}",
            "settings in which dinov2rt is the fastest of all candidates whose CLS tokens keep a "
            f"cosine of {cls_cosine:g} or more",
        )


def _first(run: BenchmarkRun, cell: Cell, cls_cosine: float) -> Row | None:
    for row in rows_at(run, cell):
        found = row.accuracy.cls_cosine_min if row.accuracy else None
        if row.latency and found is not None and found >= cls_cosine:
            return row
    return None


def _of_precision(run: BenchmarkRun, precision: str) -> Iterable[Tile]:
    name, own = precision_name(precision), _own(run, precision)
    speed = speed_over_eager(run, precision)
    if speed:
        yield Tile(f"{significant(speed)}×", f"the speed of eager PyTorch, with dinov2rt in {name}")
    yield from _beside_peers(run, own, precision)
    errors = [row.accuracy.cls_cosine_min for row in own if row.accuracy]
    known = [each for each in errors if each is not None]
    if known:
        yield Tile(cosine(min(known)), f"the smallest cosine of a CLS token in {name}; 1 is exact")


def speed_over_eager(run: BenchmarkRun, precision: str) -> float | None:
    """The speed of dinov2rt relative to eager PyTorch, as the median over settings."""
    own = _own(run, precision)
    return _speed_up(own, [_eager(run, row.cell, precision) for row in own])


def _own(run: BenchmarkRun, precision: str) -> list[Row]:
    """dinov2rt's fastest candidate of a precision in each setting that has one."""
    return [row for cell in cells(run) if (row := fastest(run, cell, precision, peer=False))]


def _beside_peers(run: BenchmarkRun, own: Sequence[Row], precision: str) -> Iterable[Tile]:
    """Compared with the fastest peer of the same precision, or of float32 if no peer has it."""
    compared = precision
    if not any(fastest(run, row.cell, precision, peer=True) for row in own):
        compared = Precision.FP32
    peers = [fastest(run, row.cell, compared, peer=True) for row in own]
    speed = _speed_up(own, peers)
    if speed:
        failed = sum(bool(peer and peer.accuracy and not peer.accuracy.passed) for peer in peers)
        warning = f", which fails the accuracy limits in {failed} of {len(peers)}" if failed else ""
        yield Tile(
            f"{significant(speed)}×",
            f"the speed of the fastest {precision_name(compared)} peer{warning}, "
            f"with dinov2rt in {precision_name(precision)}",
        )


def _eager(run: BenchmarkRun, cell: Cell, precision: str) -> Row | None:
    """Eager PyTorch at a cell: in float32 if that was timed, otherwise in `precision`."""
    timed = {row.candidate: row for row in rows_at(run, cell) if row.latency}
    allowed = (Precision.FP32, precision)
    for name in _EAGER:
        if name in timed and run.facts(timed[name]).precision in allowed:
            return timed[name]
    return None


def _speed_up(own: Sequence[Row], others: Sequence[Row | None]) -> float | None:
    """The speed of the own rows relative to the others, as the median over settings."""
    ratios = [
        1 / paired_ratio(row.latency, other.latency).median
        for row, other in zip(own, others, strict=True)
        if row.latency and other and other.latency
    ]
    return median(ratios) if ratios else None


def _share_of_roofline(run: BenchmarkRun) -> Iterable[Tile]:
    fractions = [
        row.roofline.fraction for row in run.rows if row.roofline and not run.facts(row).is_peer
    ]
    if fractions:
        yield Tile(
            percent(median(fractions)),
            "of the speed that this machine's arithmetic and memory allow at most, in the median",
        )
