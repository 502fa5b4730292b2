"""`dinov2rt report`: pages for people from the results of `bench`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from dinov2rt.cli.output import progress
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.errors import InputError
from dinov2rt.optional import require

_RESULTS, _README = Path("benchmarks/results"), Path("README.md")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "results",
        metavar="RESULT.json",
        nargs="*",
        type=Path,
        help=f"results of `bench` (default: all below {_RESULTS}, and the table in {_README})",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the pages (default: beside each result)"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a page is out of date"
    )


def _run(arguments: Namespace) -> Outcome:
    for package in ("msgspec", "matplotlib", "jinja2"):
        require(package, extra="bench", purpose="report")
    pages = _pages(arguments.results or _committed(), arguments.out)
    with_readme = not arguments.results
    if arguments.check:
        return _check(pages, with_readme=with_readme)
    return _write(pages, with_readme=with_readme)


def _committed() -> Sequence[Path]:
    from dinov2rt.benchmarks.report.readme_table import result_files

    return result_files(_RESULTS)


def _pages(results: Sequence[Path], out: Path | None) -> dict[Path, str]:
    """What each page is to hold.

    Raises:
        InputError: a result cannot be read, or two of them would share a page.
    """
    from dinov2rt.benchmarks.report.html_page import to_html
    from dinov2rt.benchmarks.report.markdown import to_markdown
    from dinov2rt.benchmarks.results import BenchmarkRun

    pages: dict[Path, str] = {}
    for result in results:
        progress(f"reading {result}")
        run = BenchmarkRun.read(result)
        stem = (out or result.parent) / result.stem
        markdown, html = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.html")
        if html in pages:
            raise InputError(
                f"two results would be written to {html}; leave --out out, or rename one of them"
            )
        pages |= {markdown: to_markdown(run), html: to_html(run)}
    return pages


def _write(pages: Mapping[Path, str], *, with_readme: bool) -> Outcome:
    from dinov2rt.benchmarks.report.readme_table import write

    for path, text in pages.items():
        _write_page(path, text)
    written = [*pages]
    if with_readme:
        write(_README, _RESULTS)
        written.append(_README)
    return Outcome({"written": written}, "\n".join(f"{path}: written" for path in written))


def _write_page(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); choose another --out"
        ) from error


def _check(pages: Mapping[Path, str], *, with_readme: bool) -> Outcome:
    from dinov2rt.benchmarks.report.readme_table import is_stale

    stale = [path for path, text in pages.items() if not _holds(path, text)]
    if with_readme and is_stale(_README, _RESULTS):
        stale.append(_README)
    checked = len(pages) + with_readme
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
