"""Tables that are printed while their figures are measured."""

from collections.abc import Iterable, Sequence

from dinov2rt.benchmarks.report.tables import Table


def print_rows(header: Sequence[str], labels: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `header` and then each of `rows` as soon as it comes, so that a stop loses no row.

    `labels` are the first words of all rows, which set the width of the first column.
    """
    for line in _lines(header, labels, ())[:2]:
        print(line, flush=True)
    for row in rows:
        print(_lines(header, labels, row)[2], flush=True)


def _lines(header: Sequence[str], labels: Sequence[str], row: Sequence[str]) -> list[str]:
    """A table of `row` that is as wide as the longest of `labels`."""
    longest = (max(labels, key=len), *[""] * (len(header) - 1))
    rows = (tuple(row), longest) if row else (longest,)
    return str(Table("", tuple(header), rows)).splitlines()
