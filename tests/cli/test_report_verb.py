import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dinov2rt.benchmarks.report.readme_table import BEGIN, END
from dinov2rt.benchmarks.results import BenchmarkRun
from dinov2rt.cli import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The verb in this process: exit status, standard output, standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        status = main(["report", *map(str, argv)])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def small_run(benchmark_run: BenchmarkRun) -> BenchmarkRun:
    """One cell, which takes less time to draw."""
    return replace(benchmark_run, rows=benchmark_run.rows[5:10])


@pytest.fixture
def root(small_run: BenchmarkRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a page for the tables and one committed run; the working directory."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/performance.md").write_text(f"# dinov2rt\n{BEGIN}\n{END}\n")
    small_run.write(tmp_path / "benchmarks/results/test-machine/cpu.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_arguments_all_pages_and_the_readme_are_written(root: Path, call: Call) -> None:
    status, out, err = call()
    folder = Path("benchmarks/results/test-machine")
    index = Path("benchmarks/results/index.html")
    pages = [folder / "cpu.md", folder / "cpu.html", index, Path("docs/performance.md")]
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"{page}: written" for page in pages]
    assert (root / pages[0]).read_text().startswith("# dinov2rt benchmark: dinov2_vits14_reg")
    assert (root / pages[1]).read_text().startswith("<!DOCTYPE html>")
    assert 'href="test-machine/cpu.html"' in (root / index).read_text()
    assert "**test-machine**" in (root / "docs/performance.md").read_text()


def test_another_process_writes_the_same_bytes(root: Path, call: Call) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dinov2rt", "report", "--json"],
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["written"][-1] == "docs/performance.md"
    assert call("--check") == (0, "4 pages are up to date\n", "")


def test_check_names_what_is_out_of_date_and_writes_nothing(root: Path, call: Call) -> None:
    before = sorted(root.rglob("*.*"))
    status, out, _ = call("--check")
    assert status == 1
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        "benchmarks/results/test-machine/cpu.md",
        "benchmarks/results/test-machine/cpu.html",
        "benchmarks/results/index.html",
        "docs/performance.md",
    ]
    assert sorted(root.rglob("*.*")) == before
    call()
    page = root / "benchmarks/results/test-machine/cpu.md"
    page.write_text(page.read_text() + "by hand\n")
    assert call("--check")[:2] == (
        1,
        "benchmarks/results/test-machine/cpu.md: out of date; dinov2rt report writes it\n",
    )


def test_a_result_by_name_leaves_the_readme_alone(root: Path, call: Call) -> None:
    before = (root / "docs/performance.md").read_text()
    out = root / "new folder"
    result = "benchmarks/results/test-machine/cpu.json"
    assert call(result, "--out", out)[0] == 0
    assert sorted(page.name for page in out.iterdir()) == ["cpu.html", "cpu.md"]
    assert (root / "docs/performance.md").read_text() == before
    assert call(result, "--out", out, "--check")[:2] == (0, "2 pages are up to date\n")


def test_the_reader_chooses_the_accuracy(root: Path, call: Call) -> None:
    result = "benchmarks/results/test-machine/cpu.json"
    for cosine in ("0.999", "0.9999999"):
        assert call(result, "--out", root / cosine, "--cls-cosine", cosine)[0] == 0
    pages = [(root / cosine / "cpu.html").read_text() for cosine in ("0.999", "0.9999999")]
    assert ["cosine of 0.999 or more" in page for page in pages] == [True, False]
    assert call(result, "--cls-cosine", "2")[0] == 2


def test_without_results_the_readme_says_so(root: Path, call: Call) -> None:
    (root / "benchmarks/results/test-machine/cpu.json").unlink()
    assert call()[:2] == (0, "docs/performance.md: written\n")
    assert "No results are committed yet" in (root / "docs/performance.md").read_text()


def test_results_that_would_share_a_page_are_refused(
    root: Path, small_run: BenchmarkRun, call: Call
) -> None:
    small_run.write(root / "other/cpu.json")
    results = ["benchmarks/results/test-machine/cpu.json", "other/cpu.json"]
    status, _, err = call(*results, "--out", root / "out")
    assert status == 2
    assert "two results would be written to" in err
    assert "leave --out out, or rename one of them" in err
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (None, "run.json cannot be read (No such file or directory)"),
        ("[]", "run.json is not a result of `dinov2rt bench`"),
        ("{", "run.json is not a result of `dinov2rt bench`"),
    ],
)
def test_what_is_no_result_is_one_line(
    text: str | None, fragment: str, tmp_path: Path, call: Call
) -> None:
    file = tmp_path / "run.json"
    if text is not None:
        file.write_text(text)
    status, out, err = call(file)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert fragment in line


def test_a_folder_that_cannot_be_written_is_one_line(root: Path, call: Call) -> None:
    result = "benchmarks/results/test-machine/cpu.json"
    status, _, err = call(result, "--out", root / "docs/performance.md")
    assert status == 2
    assert "docs/performance.md cannot be written" in err
    assert "choose another place" in err


@pytest.mark.parametrize("package", ["msgspec", "matplotlib", "jinja2"])
def test_without_a_package_the_extra_is_named(package: str, root: Path) -> None:
    # To the import system, None stands for a module that does not exist.
    (root / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None")
    done = subprocess.run(
        [sys.executable, "-m", "dinov2rt", "report"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"report needs the package '{package}'" in line
    assert line.endswith("pip install 'dinov2rt[bench]'")
