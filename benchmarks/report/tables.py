"""The tables of a report, the same in Markdown and in HTML."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dinov2rt.benchmarks.report.formats import (
    NOTHING,
    cosine,
    error,
    median_text,
    mib,
    one_line,
    percent,
    precision_name,
    ratio_text,
    significant,
)
from dinov2rt.benchmarks.report.ratios import fastest, ratio_to_fastest_peer, rows_at
from dinov2rt.benchmarks.results import BenchmarkRun, Cell, Row
from dinov2rt.benchmarks.statistics import STOLEN_AT_MOST

_OTHERS_AT_MOST = 0.05
"""Other processes are mentioned if they use more than this share of the cores' time."""

_DISK_READS_AT_MOST = 20
"""Reads from disk are mentioned if there are more per second; each takes 0.1 to 1 ms of a call."""

_LATENCY_HEADER = (
    "candidate",
    "precision",
    "median ms (95 %)",
    "images/s",
    "time ÷ fastest peer (95 %)",
    "relative L2",
    "smallest cosine",
    "of the roofline",
    "bound by",
    "p90 ms",
    "p99 ms",
    "least ms",
    "calls",
)
_COLD_HEADER = (
    "candidate",
    "version",
    "precision",
    "import ms",
    "load ms",
    "first call ms",
    "peak memory MiB",
    "peak GPU memory MiB",
)


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows. The first `labels` columns are words, the other columns are figures.

    `own` are the indices of the rows of dinov2rt's own candidates.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    own: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Markdown with aligned columns, readable as plain text."""
        lines = [
            [one_line(text).replace("|", "\\|") for text in line]
            for line in (self.header, *self.rows)
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = [
            "-" * width if index < self.labels else "-" * (width - 1) + ":"
            for index, width in enumerate(widths)
        ]
        return "\n".join(self._line(line, widths) for line in (lines[0], rule, *lines[1:]))

    def _line(self, line: Sequence[str], widths: Sequence[int]) -> str:
        texts = [
            text.ljust(width) if index < self.labels else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(texts)} |"


def latency_table(run: BenchmarkRun, cell: Cell) -> Table:
    """All candidates at one cell, the fastest first, and those without a time last."""
    rows = rows_at(run, cell)
    return Table(
        title=str(cell),
        header=_LATENCY_HEADER,
        rows=tuple(_latency_row(run, row) for row in rows),
        labels=2,
        own=frozenset(i for i, row in enumerate(rows) if not run.facts(row).is_peer),
        notes=(
            *(f"{row.candidate}: {row.failure}" for row in rows if row.failure),
            *_disturbances(rows),
        ),
    )


def _disturbances(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.latency and row.latency.stolen > STOLEN_AT_MOST:
            yield (
                f"{row.candidate}: the host gave up to {row.latency.stolen:.0%} of the cores' time "
                "to others during a turn, so its times may be too long"
            )
        if row.latency and row.latency.others > _OTHERS_AT_MOST:
            yield (
                f"{row.candidate}: other processes had {row.latency.others:.0%} of the cores' time "
                "during its turns, so its times may be too long"
            )
        if row.latency and row.latency.disk_reads_per_s > _DISK_READS_AT_MOST:
            yield (
                f"{row.candidate}: its memory was read from disk again "
                f"{row.latency.disk_reads_per_s:,.0f} times a second, because memory was short, so "
                "its times are too long; measure fewer peers or precisions in a run"
            )


def _latency_row(run: BenchmarkRun, row: Row) -> tuple[str, ...]:
    return (
        row.candidate,
        precision_name(run.facts(row).precision),
        *_speed_columns(run, row),
        _error_column(row),
        _cosine_column(row),
        percent(row.roofline.fraction) if row.roofline else NOTHING,
        row.roofline.bound if row.roofline else NOTHING,
        *_spread_columns(row),
    )


def _cosine_column(row: Row) -> str:
    """The smallest cosine; the answers of heads have an error, but no cosine."""
    if row.accuracy is None:
        return NOTHING
    has_none = row.accuracy.cosine_min is None and row.accuracy.relative_l2 is not None
    return NOTHING if has_none else cosine(row.accuracy.cosine_min)


def _error_column(row: Row) -> str:
    if row.accuracy is None:
        return NOTHING
    mark = " (fails)" if row.latency and not row.accuracy.passed else ""
    return f"{error(row.accuracy.relative_l2)}{mark}"


def _speed_columns(run: BenchmarkRun, row: Row) -> tuple[str, str, str]:
    latency = row.latency
    if latency is None:
        why = "failed accuracy" if row.accuracy and not row.accuracy.passed else "did not run"
        return why, NOTHING, NOTHING
    return median_text(latency), significant(latency.images_per_s), _ratio_column(run, row)


def _spread_columns(row: Row) -> tuple[str, str, str, str]:
    latency = row.latency
    if latency is None:
        return NOTHING, NOTHING, NOTHING, NOTHING
    return (
        significant(latency.p90_ms),
        significant(latency.p99_ms),
        significant(latency.min_ms),
        f"{latency.samples:,}",
    )


def _ratio_column(run: BenchmarkRun, row: Row) -> str:
    if row == fastest(run, row.cell, run.facts(row).precision, peer=True):
        return "1 (fastest peer)"
    return ratio_text(ratio_to_fastest_peer(run, row))


def cold_start_table(run: BenchmarkRun, variant: str) -> Table:
    """The times before the first result, and the memory use."""
    candidates = [facts for facts in run.candidates if facts.variant == variant]
    rows = tuple(
        (
            facts.candidate,
            facts.version,
            precision_name(facts.precision),
            significant(facts.import_ms),
            significant(facts.load_ms),
            significant(facts.first_call_ms),
            mib(facts.peak_rss_mib),
            mib(facts.peak_device_mib),
        )
        for facts in candidates
    )
    own = frozenset(i for i, facts in enumerate(candidates) if not facts.is_peer)
    return Table(variant, _COLD_HEADER, rows, labels=3, own=own)


def phase_table(run: BenchmarkRun) -> Table | None:
    """The phases of a call on a GPU; None without a GPU."""
    rows = tuple(
        (
            str(row.cell),
            row.candidate,
            significant(row.latency.host_to_device_ms),
            significant(row.latency.compute_ms),
            significant(row.latency.device_to_host_ms),
        )
        for row in run.rows
        if row.latency and row.latency.compute_ms is not None
    )
    header = ("cell", "candidate", "images to GPU ms", "compute ms", "outputs to host ms")
    return Table("Phases of a call on the GPU", header, rows, labels=2) if rows else None


def missing_table(run: BenchmarkRun) -> Table | None:
    """Requested candidates that are missing in the run; None if none is missing."""
    rows = tuple((each.variant, each.candidate, each.reason) for each in run.missing)
    header = ("variant", "candidate", "reason")
    return Table("Missing candidates", header, rows, labels=3) if rows else None


def environment_table(run: BenchmarkRun) -> Table:
    """The machine and its software."""
    machine = run.environment
    facts = {
        "machine": machine.machine,
        "CPU": machine.cpu,
        "GPU": machine.gpu or "none",
        "cores": f"{machine.cores}, of which usable: {', '.join(map(str, machine.affinity))}",
        "memory": f"{machine.memory_gib:.1f} GiB",
        "system": machine.system,
        "Python": machine.python,
        "load average at the start": f"{machine.load_average:.2f}",
        **machine.libraries,
        **machine.details,
    }
    return Table("Machine and software", ("what", "value"), tuple(facts.items()), labels=2)


def peak_rates_table(run: BenchmarkRun) -> Table:
    """The machine's peak rates: before the first cell, and beside the candidates."""
    peak_rates, rates = run.peak_rates, list[tuple[str, str]]()
    for precision, rate in peak_rates.matrix_gflops.items():
        what = (
            f"matrix rate in {precision_name(precision)}, by {peak_rates.matrix_library[precision]}"
        )
        rates.append((f"{what}, before the first cell", f"{significant(rate)} GFLOP/s"))
        beside = () if run.settings.one_process else _rates_beside(run, precision)
        if beside:
            least, most = significant(min(beside)), significant(max(beside))
            rates.append((f"{what}, beside the candidates", f"{least} to {most} GFLOP/s"))
    measured = peak_rates.copy_gb_per_s
    copy = (
        "copy bandwidth, reading plus writing",
        "not measured" if measured is None else f"{significant(measured)} GB/s",
    )
    return Table("Peak rates of the machine", ("what", "measured"), (*rates, copy), labels=2)


def _rates_beside(run: BenchmarkRun, precision: str) -> list[float]:
    return [
        row.roofline.matrix_gflops
        for row in run.rows
        if row.roofline and run.facts(row).precision == precision
    ]


def weights_table(run: BenchmarkRun) -> Table:
    """The weights of the run."""
    rows = tuple(
        (each.variant, each.weights_source, each.weights_sha256, each.manifest_sha256)
        for each in run.bundles
    )
    header = ("variant", "source", "SHA-256", "SHA-256 of the manifest")
    return Table("Weights", header, rows, labels=4)
