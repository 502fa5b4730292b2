"""The figures of a report: their contents and their captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from dinov2rt.benchmarks.report.figures.bars import (
    MOST_SETTINGS,
    Bar,
    BarGroup,
    height_in,
    paint_bars,
)
from dinov2rt.benchmarks.report.figures.marks import Marks
from dinov2rt.benchmarks.report.figures.svg import HEIGHT_IN, WIDTH_IN, draw
from dinov2rt.benchmarks.report.formats import percent, shape, significant
from dinov2rt.benchmarks.report.ratios import cells, rows_at
from dinov2rt.benchmarks.results import BenchmarkRun, Cell, Row


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure, as SVG for a page."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class PlotGroup:
    """The same figure for each variant, and how to read it."""

    heading: str
    reading: str
    plots: tuple[Plot, ...]


def plot_groups(run: BenchmarkRun) -> tuple[PlotGroup, ...]:
    """All figures of a run; empty groups are left out."""
    groups = (
        PlotGroup(
            "Latency by image size",
            "Median time of one call; lower is better. Thin lines are 95 % intervals.",
            _each_variant(run, _latency_by_size),
        ),
        PlotGroup(
            "Throughput by batch",
            "Images per second when a call takes several images; higher is better.",
            _each_variant(run, _throughput_by_batch),
        ),
        PlotGroup(
            "Share of the roofline",
            "The least time that the measured matrix rate and memory bandwidth allow, over the "
            "time taken; 100 % cannot be passed but by error of measurement.",
            _each_variant(run, _roofline),
        ),
        PlotGroup(
            "Accuracy against speed",
            "Each mark is one candidate at one batch and size. Upper left is best: fast, and close "
            "to eager float32.",
            _each_variant(run, _accuracy_and_speed),
        ),
    )
    return tuple(group for group in groups if group.plots)


def _each_variant(
    run: BenchmarkRun, plot: Callable[[BenchmarkRun, list[Row], Marks], Plot | None]
) -> tuple[Plot, ...]:
    marks = Marks.of(run)
    plots = []
    for variant in dict.fromkeys(cell.variant for cell in cells(run)):
        rows = [row for row in run.rows if row.cell.variant == variant and row.latency]
        if rows and (drawn := plot(run, rows, marks)):
            plots.append(drawn)
    return tuple(plots)


def _latency_by_size(run: BenchmarkRun, rows: list[Row], marks: Marks) -> Plot:
    batch = min(row.cell.batch for row in rows)
    rows = [row for row in rows if row.cell.batch == batch]
    title, what = f"{rows[0].cell.variant}, batch {batch}", "Median latency in ms by image size."
    if len({row.cell for row in rows}) <= MOST_SETTINGS:
        groups = _bar_groups(rows, _latency_bar)
        bars = partial(paint_bars, marks=marks, groups=groups, unit="median ms per call")
        return _plot("latency", title, what, rows, bars, run, height_in=height_in(groups))

    def paint(axes: Axes) -> None:
        for candidate, own in _by_candidate(run, rows):
            own.sort(key=lambda row: _pixels(row.cell))
            points = [(_pixels(row.cell), _p50(row)) for row in own]
            marks.line(axes, candidate, points)
            _intervals(axes, marks, candidate, own)
        axes.set_xscale("log")
        _size_ticks(axes, [row.cell for row in rows])
        _log_y(axes, [_p50(row) for row in rows])
        axes.set_xlabel("image size in pixels, height×width")
        axes.set_ylabel("median ms per call")

    return _plot("latency", title, what, rows, paint, run)


def _throughput_by_batch(run: BenchmarkRun, rows: list[Row], marks: Marks) -> Plot | None:
    """Throughput by batch, at the size with the most batches (the smallest such size)."""
    batches = {
        row.cell.size: {each.cell.batch for each in rows if each.cell.size == row.cell.size}
        for row in sorted(rows, key=lambda row: _pixels(row.cell))
    }
    size = max(batches, key=lambda size: len(batches[size]))
    if len(batches[size]) < 2:
        return None
    rows = [row for row in rows if row.cell.size == size]
    title, what = f"{rows[0].cell.variant}, {size.height}×{size.width}", "Images/s by batch."
    if len(batches[size]) <= MOST_SETTINGS:
        groups = _bar_groups(rows, _throughput_bar)
        bars = partial(paint_bars, marks=marks, groups=groups, unit="images per second")
        return _plot("throughput", title, what, rows, bars, run, height_in=height_in(groups))

    def paint(axes: Axes) -> None:
        for candidate, own in _by_candidate(run, rows):
            own.sort(key=lambda row: row.cell.batch)
            marks.line(axes, candidate, [(row.cell.batch, _throughput(row)) for row in own])
        axes.set_xscale("log", base=2)
        _ticks(axes, {float(batch): str(batch) for batch in sorted(batches[size])})
        axes.set_ylim(0, 1.1 * max(map(_throughput, rows)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_xlabel("images per call")
        axes.set_ylabel("images per second")

    return _plot("throughput", title, what, rows, paint, run)


def _bar_groups(rows: Sequence[Row], bar: Callable[[Row], Bar]) -> tuple[BarGroup, ...]:
    """One group per cell, with its fastest candidate first."""
    return tuple(
        BarGroup(
            shape(cell),
            tuple(bar(row) for row in sorted(rows, key=_p50) if row.cell == cell),
        )
        for cell in sorted({row.cell for row in rows})
    )


def _latency_bar(row: Row) -> Bar:
    latency = row.latency
    low, high = (latency.p50_low_ms, latency.p50_high_ms) if latency else (None, None)
    return Bar(row.candidate, _p50(row), low, high)


def _throughput_bar(row: Row) -> Bar:
    return Bar(row.candidate, _throughput(row))


def _roofline(run: BenchmarkRun, rows: list[Row], marks: Marks) -> Plot | None:
    rows = [row for row in rows if row.roofline]
    if not rows:
        return None
    places = {cell: -float(i) for i, cell in enumerate(dict.fromkeys(row.cell for row in rows))}

    def paint(axes: Axes) -> None:
        candidates = _by_candidate(run, rows)
        for index, (candidate, own) in enumerate(candidates):
            shift = 0.5 * (0.5 - (index + 0.5) / len(candidates))  # so that none hides another
            points = [
                (row.roofline.fraction, places[row.cell] + shift) for row in own if row.roofline
            ]
            marks.dots(axes, candidate, points)
        axes.axvline(1, linestyle="--", linewidth=1)
        axes.set_xlim(0, max(1.05, *(1.05 * row.roofline.fraction for row in rows if row.roofline)))
        axes.set_ylim(min(places.values()) - 0.5, 0.5)
        axes.set_yticks(list(places.values()), [shape(cell) for cell in places])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.set_xlabel("share of the roofline")
        axes.set_ylabel("batch × height×width")

    title, height_in = rows[0].cell.variant, max(HEIGHT_IN, 0.5 * len(places) + 0.8)
    return _plot("roofline", title, "Share of the roofline.", rows, paint, run, height_in=height_in)


def _accuracy_and_speed(run: BenchmarkRun, rows: list[Row], marks: Marks) -> Plot | None:
    rows = [row for row in rows if row.accuracy]
    errors = [row.accuracy.relative_l2 or 0.0 for row in rows if row.accuracy]
    if not rows:
        return None
    least = min((error for error in errors if error > 0), default=1e-7)
    exact = least / 10  # a logarithmic axis has no place for 0

    def paint(axes: Axes) -> None:
        for candidate, own in _by_candidate(run, rows):
            points = [
                (row.accuracy.relative_l2 or exact, _p50(rows_at(run, row.cell)[0]) / _p50(row))
                for row in own
                if row.accuracy
            ]
            marks.dots(axes, candidate, points)
        axes.set_xscale("log")
        _error_ticks(axes, exact if 0.0 in errors else least, max(*errors, least), exact)
        axes.set_ylim(0, 1.08)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.set_xlabel("relative L2 error against eager float32")
        axes.set_ylabel("speed, fastest of the cell = 100 %")

    return _plot("accuracy", rows[0].cell.variant, "Error against speed.", rows, paint, run)


def _plot(
    name: str,
    title: str,
    what: str,
    rows: Sequence[Row],
    paint: Callable[[Axes], object],
    run: BenchmarkRun,
    *,
    height_in: float = HEIGHT_IN,
) -> Plot:
    candidates = ", ".join(candidate for candidate, _ in _by_candidate(run, rows))
    svg = draw(
        paint,
        f"{name}-{rows[0].cell.variant}",
        title=title,
        description=f"{what} Candidates: {candidates}. The figures are in the tables of this page.",
        size_in=(WIDTH_IN, height_in),
    )
    return Plot(title, svg)


def _by_candidate(run: BenchmarkRun, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = dict.fromkeys(facts.candidate for facts in run.candidates)
    found = [(name, [row for row in rows if row.candidate == name]) for name in names]
    return [(name, own) for name, own in found if own]


def _intervals(axes: Axes, marks: Marks, candidate: str, rows: Sequence[Row]) -> None:
    for row in rows:
        if row.latency and row.latency.p50_low_ms and row.latency.p50_high_ms:
            bounds = (row.latency.p50_low_ms, row.latency.p50_high_ms)
            axes.vlines(_pixels(row.cell), *bounds, color=marks.color(candidate), linewidth=3)


def _size_ticks(axes: Axes, shown: Sequence[Cell]) -> None:
    labels = {_pixels(cell): f"{cell.height}×{cell.width}" for cell in sorted(shown)}
    _ticks(axes, labels)


def _ticks(axes: Axes, labels: dict[float, str]) -> None:
    axes.set_xticks(list(labels), list(labels.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(labels) / 1.3, max(labels) * 1.3)


def _log_y(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis that spans at least a factor of four, with ticks at 1, 2 and 5."""
    middle = (min(values) * max(values)) ** 0.5
    axes.set_yscale("log")
    axes.set_ylim(min(min(values) / 1.3, middle / 2), max(max(values) * 1.3, middle * 2))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: significant(value, 1)))
    axes.yaxis.set_minor_locator(NullLocator())


def _error_ticks(axes: Axes, low: float, high: float, exact: float) -> None:
    axes.set_xlim(low / 2, high * 2)
    decades = [10.0**power for power in range(-12, 2) if low / 2 <= 10.0**power <= high * 2]
    if low == exact:
        decades = [exact, *(decade for decade in decades if decade >= 5 * exact)]
    axes.xaxis.set_major_locator(FixedLocator(decades))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "0" if value == exact else f"{value:.0e}")
    )
    axes.xaxis.set_minor_locator(NullLocator())


def _pixels(cell: Cell) -> float:
    return float(cell.height * cell.width)


def _p50(row: Row) -> float:
    if row.latency is None:
        raise AssertionError("only timed rows are drawn")
    return row.latency.p50_ms


def _throughput(row: Row) -> float:
    return row.cell.batch * 1e3 / _p50(row)
