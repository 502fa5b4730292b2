"""A run as one HTML page that needs nothing else: no network, no scripts."""

from dataclasses import dataclass
from statistics import median

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dinov2rt.benchmarks.report.formats import percent, precision_name, significant
from dinov2rt.benchmarks.report.method import cold_start_reading, method, reading
from dinov2rt.benchmarks.report.plots import plot_groups
from dinov2rt.benchmarks.report.readme_table import measured_chip
from dinov2rt.benchmarks.report.summary import Standing, accurate_and_timed, cells, duels, sentences
from dinov2rt.benchmarks.report.svg import PALETTE, Marks
from dinov2rt.benchmarks.report.tables import (
    cold_start_table,
    environment_table,
    latency_table,
    missing_table,
    phase_table,
    roof_table,
    weights_table,
)
from dinov2rt.benchmarks.results import BenchmarkRun


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure in large type, and what it is."""

    figure: str
    caption: str


def to_html(run: BenchmarkRun) -> str:
    """The report of `run`, the same bytes for the same run and the same Matplotlib."""
    environment = Environment(
        loader=PackageLoader("dinov2rt.benchmarks.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    variants = tuple(dict.fromkeys(facts.variant for facts in run.candidates))
    return environment.get_template("report.html").render(
        run=run,
        chip=measured_chip(run),
        palette=PALETTE,
        sentences=sentences(run),
        tiles=_tiles(run),
        legend=_legend(run),
        # The figures escape what they hold themselves.
        groups=[
            (group, [(plot.title, Markup(plot.svg)) for plot in group.plots])  # noqa: S704
            for group in plot_groups(run)
        ],
        latency=[
            (variant, [latency_table(run, cell) for cell in cells(run) if cell.variant == variant])
            for variant in variants
        ],
        phases=phase_table(run),
        missing=missing_table(run),
        cold_start_reading=cold_start_reading(run.settings),
        cold_start=[cold_start_table(run, variant) for variant in variants],
        method=method(run.settings),
        reading=reading(run.settings),
        facts=(environment_table(run), roof_table(run), weights_table(run)),
    )


def _tiles(run: BenchmarkRun) -> tuple[Tile, ...]:
    found, tiles = duels(run), []
    for precision in dict.fromkeys(duel.precision for duel in found):
        own = [duel for duel in found if duel.precision == precision]
        first = sum(duel.standing is Standing.FASTEST for duel in own)
        speed = 1 / median(duel.ratio.median for duel in own)
        name = precision_name(precision)
        tiles += [
            Tile(f"{first} of {len(own)}", f"{name} cells in which dinov2rt is the fastest"),
            Tile(
                f"{significant(speed)}×",
                f"the speed of the fastest {name} peer of a cell, in the median over cells",
            ),
        ]
    fractions = [row.floor.fraction for row in run.rows if row.floor and not run.facts(row).is_peer]
    if fractions:
        tiles.append(Tile(percent(median(fractions)), "of the machine's limit, in the median"))
    timed = len(accurate_and_timed(run))
    tiles.append(Tile(f"{timed} of {len(run.rows)}", "results passed the accuracy limits, timed"))
    return tuple(tiles)


def _legend(run: BenchmarkRun) -> tuple[tuple[str, str, Markup], ...]:
    marks, titles = Marks.of(run), {facts.candidate: facts.title for facts in run.candidates}
    return tuple(
        (name, titles[name], Markup(marks.key(name)))  # noqa: S704
        for name in marks.candidates
    )
