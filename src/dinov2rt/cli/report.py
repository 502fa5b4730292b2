"""`dinov2rt report`: pages for people from the results of `bench`."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinov2rt.cli.output import progress
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.errors import InputError
from dinov2rt.files import refused, replacing
from dinov2rt.optional import require

if TYPE_CHECKING:
    from dinov2rt.benchmarks.results import BenchmarkRun

_RESULTS, _TABLE = Path("benchmarks/results"), Path("docs/performance.md")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "results",
        metavar="RESULT.json",
        nargs="*",
        type=Path,
        help="results of `bench` (default: all below --results, and the tables in --table)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=_RESULTS,
        metavar="DIR",
        dest="folder",
        help="folder of committed results (default: %(default)s)",
    )
    parser.add_argument(
        "--table",
        type=Path,
        default=_TABLE,
        metavar="FILE.md",
        help="page whose tables are written from them (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the pages (default: beside each result)"
    )
    parser.add_argument(
        "--cls-cosine",
        type=_cosine,
        default=0.999,
        metavar="C",
        help="the accuracy that you need, as the least cosine of a CLS token against eager "
        "float32; the page says how often dinov2rt is the fastest at it (default: %(default)s)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a page is out of date"
    )


def _cosine(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text} is no cosine to ask for; allowed are 0 to 1")
    return value


def _run(arguments: Namespace) -> Outcome:
    for package in ("msgspec", "matplotlib", "jinja2"):
        require(package, extra="bench", purpose="report")
    from dinov2rt.benchmarks.report.readme_table import result_files

    runs = _read(arguments.results or result_files(arguments.folder))
    pages = _pages(runs, arguments.out, arguments.cls_cosine)
    if arguments.results:
        return _check(pages, None) if arguments.check else _write(pages, None)
    pages |= _index(runs, arguments.folder)
    tables = _Tables(arguments.table, arguments.folder)
    return _check(pages, tables) if arguments.check else _write(pages, tables)


@dataclass(frozen=True, slots=True)
class _Tables:
    """The page with the tables of all committed results, and the folder of the results."""

    page: Path
    results: Path


def _read(results: Sequence[Path]) -> "dict[Path, BenchmarkRun]":
    """The runs, by the files that hold them.

    Raises:
        InputError: one cannot be read.
    """
    from dinov2rt.benchmarks.results import BenchmarkRun

    runs = {}
    for result in results:
        progress(f"reading {result}")
        runs[result] = BenchmarkRun.read(result)
    return runs


def _pages(
    runs: "Mapping[Path, BenchmarkRun]", out: Path | None, cls_cosine: float
) -> dict[Path, str]:
    """The text of each run's two pages.

    Raises:
        InputError: two of them would share a page.
    """
    from dinov2rt.benchmarks.report.html_page import to_html
    from dinov2rt.benchmarks.report.markdown import to_markdown

    pages: dict[Path, str] = {}
    for result, run in runs.items():
        stem = (out or result.parent) / result.stem
        markdown, html = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.html")
        if html in pages:
            raise InputError(
                f"two results would be written to {html}; leave --out out, or rename one of them"
            )
        pages |= {markdown: to_markdown(run), html: to_html(run, cls_cosine)}
    return pages


def _index(runs: "Mapping[Path, BenchmarkRun]", folder: Path) -> dict[Path, str]:
    """The page with links to the pages of all committed results, if there are any."""
    from dinov2rt.benchmarks.report.index_page import to_index

    return {folder / "index.html": to_index(runs, folder)} if runs else {}


def _write(pages: Mapping[Path, str], tables: _Tables | None) -> Outcome:
    from dinov2rt.benchmarks.report.readme_table import write

    for path, text in pages.items():
        _write_page(path, text)
    written = [*pages]
    if tables is not None:
        write(tables.page, tables.results)
        written.append(tables.page)
    return Outcome({"written": written}, "\n".join(f"{path}: written" for path in written))


def _write_page(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path.parent, error) from error
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _check(pages: Mapping[Path, str], tables: _Tables | None) -> Outcome:
    from dinov2rt.benchmarks.report.readme_table import is_stale

    stale = [path for path, text in pages.items() if not _holds(path, text)]
    if tables is not None and is_stale(tables.page, tables.results):
        stale.append(tables.page)
    checked = len(pages) + (tables is not None)
    lines = [f"{path}: out of date; dinov2rt report writes it" for path in stale]
    return Outcome(
        {"checked": checked, "stale": stale},
        "\n".join(lines or [f"{checked} pages are up to date"]),
        status_of(not stale),
    )


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except FileNotFoundError:
        return False


REPORT = Verb("report", "pages for people from the results of bench", _add_arguments, _run)
