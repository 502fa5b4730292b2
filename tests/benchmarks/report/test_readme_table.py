from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dinov2rt.benchmarks.report.readme_table import BEGIN, END, NO_RESULTS, is_stale, write
from dinov2rt.benchmarks.results import BenchmarkRun, Row
from dinov2rt.errors import InputError


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    file = tmp_path / "README.md"
    file.write_text(f"# before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    return file


@pytest.fixture
def results(benchmark_run: BenchmarkRun, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    benchmark_run.write(folder / "test-machine" / "cpu.json")
    return folder


def test_the_table_is_written_between_the_comments(readme: Path, results: Path) -> None:
    assert is_stale(readme, results)
    write(readme, results)
    text = readme.read_text()
    assert not is_stale(readme, results)
    assert text.startswith(f"# before\n\n{BEGIN}\n\n**test-machine**: Invented CPU")
    assert text.endswith(f"|\n\n{END}\n\nafter\n")
    assert "\nold\n" not in text
    rows = rows_of(text, columns=9)
    assert [row[1] for row in rows] == ["1 × 224×224", "1 × 518×518"] * 2
    assert rows[1][5] == "openvino &lt;2026>"
    assert rows[1][7].startswith("0.985 (0.98")


def rows_of(text: str, columns: int) -> list[list[str]]:
    """The texts in the rows of tables with so many columns."""
    lines = [line for line in text.splitlines() if line.startswith("| dinov2_vit")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in rows if len(row) == columns]


def test_a_second_table_has_every_cell_and_every_precision(
    readme: Path,
    results: Path,
    benchmark_run: BenchmarkRun,
    with_precisions: Callable[..., BenchmarkRun],
) -> None:
    run = with_precisions(benchmark_run, bf16=0.5, int8=0.4)
    small = [row for row in run.rows if row.cell.variant == "dinov2_vits14_reg"]
    large = [row for row in run.rows if row.cell.variant == "dinov2_vitb14"]
    folder = results / "test-machine"
    replace(run, rows=tuple(small)).write(folder / "cpu.json")
    replace(run, rows=tuple(row for row in large if row.cell.height == 518)).write(
        folder / "large.json"
    )
    write(readme, results)
    text = readme.read_text()
    header = next(
        line for line in text.splitlines() if line.startswith("| variant ") and " other  " in line
    )
    assert [each.strip() for each in header.split("|")[4:-1]] == [
        f"{batch} × {side}×{side}" for side in (224, 518) for batch in (1, 8)
    ]
    rows = {tuple(row[:3]): row[3:] for row in rows_of(text, columns=7)}
    assert [each[1:] for each in rows if each[0] == "dinov2_vits14_reg"] == [
        ("float32", "fastest peer of that precision"),
        ("bfloat16", "fastest peer of that precision"),
        ("bfloat16", "fastest float32 candidate"),
        ("int8", "fastest float32 candidate"),
        ("int8", "dinov2rt in bfloat16"),
    ]
    small_int8 = rows["dinov2_vits14_reg", "int8", "fastest float32 candidate"]
    # In the first cell, a peer is faster in float32 than dinov2rt.
    assert [each[:5] for each in small_int8] == ["0.552", "0.400", "0.400", "0.400"]
    large_int8 = rows["dinov2_vitb14", "int8", "dinov2rt in bfloat16"]
    assert [each[:5] for each in large_int8] == ["–", "–", "0.800", "0.800"]


def test_a_new_result_makes_it_stale(
    readme: Path, results: Path, benchmark_run: BenchmarkRun
) -> None:
    write(readme, results)
    elsewhere = replace(benchmark_run.environment, machine="another")
    replace(benchmark_run, environment=elsewhere).write(results / "another" / "cpu.json")
    assert is_stale(readme, results)


def test_runs_of_one_machine_share_a_table(
    readme: Path, results: Path, benchmark_run: BenchmarkRun
) -> None:
    write(readme, results)
    rows = readme.read_text().count("| dinov2_vit")
    benchmark_run.write(results / "test-machine" / "later.json")
    write(readme, results)
    text = readme.read_text()
    assert text.count("**test-machine**: Invented CPU") == 1
    assert text.count("\nWarning: ") == 1
    assert text.count("| dinov2_vit") == rows, "what both hold stands there once"


def test_runs_of_one_day_share_a_table_whatever_their_names(
    readme: Path, results: Path, benchmark_run: BenchmarkRun
) -> None:
    earlier = replace(benchmark_run, created="2020-01-01T00:00:00+00:00")
    for name, run in (("a", earlier), ("b", benchmark_run), ("c", earlier)):
        run.write(results / "test-machine" / f"{name}.json")
    write(readme, results)
    heads = [line for line in readme.read_text().splitlines() if line.startswith("**")]
    assert len(heads) == len(set(heads)) == 2


def test_one_line_names_the_variants_whose_runs_carry_warnings(
    readme: Path, results: Path, benchmark_run: BenchmarkRun
) -> None:
    small, base = benchmark_run.bundles
    environment = benchmark_run.environment
    for name, bundles, warnings in (
        ("cpu", (base,), ("the load average is 1.3",)),
        ("later", (small,), ("the load average is 1.5",)),
        ("quiet", (replace(small, variant="dinov2_vitl14"),), ()),
    ):
        state = replace(environment, warnings=warnings)
        replace(benchmark_run, bundles=bundles, environment=state).write(
            results / "test-machine" / f"{name}.json"
        )
    write(readme, results)
    text = readme.read_text()
    assert text.count("Warning: ") == 1
    assert (
        "\n\nWarning: runs of dinov2_vits14_reg, dinov2_vitb14 carry warnings about the state of "
        "the machine; their reports hold the details\n\n|" in text
    )


def test_without_warnings_nothing_warns(
    readme: Path, results: Path, benchmark_run: BenchmarkRun
) -> None:
    quiet = replace(benchmark_run.environment, warnings=())
    replace(benchmark_run, environment=quiet).write(results / "test-machine" / "cpu.json")
    write(readme, results)
    assert "Warning" not in readme.read_text()


@pytest.mark.parametrize(("device", "chip"), [("cpu", "Invented CPU | 8 GHz"), ("cuda", "A GPU")])
def test_a_table_is_headed_by_what_was_measured(
    device: str, chip: str, readme: Path, results: Path, benchmark_run: BenchmarkRun
) -> None:
    replace(
        benchmark_run,
        environment=replace(benchmark_run.environment, gpu="A GPU"),
        settings=replace(benchmark_run.settings, device=device),
    ).write(results / "test-machine" / "cpu.json")
    write(readme, results)
    assert f"**test-machine**: {chip}, 2 threads, device {device}," in readme.read_text()


def test_of_two_runs_that_hold_a_cell_the_one_with_more_candidates_counts(
    readme: Path, results: Path, benchmark_run: BenchmarkRun
) -> None:
    write(readme, results)
    before = readme.read_text()
    fewer = replace(
        benchmark_run,
        rows=tuple(row for row in benchmark_run.rows if row.candidate != "openvino <2026>"),
    )
    for name in ("a.json", "z.json"):
        fewer.write(results / "test-machine" / name)
        assert not is_stale(readme, results)
    write(readme, results)
    assert readme.read_text() == before


def test_a_precision_that_no_peer_has_stands_beside_the_fastest_in_float32(
    readme: Path, results: Path, benchmark_run: BenchmarkRun, timed: Callable[[Row, float], Row]
) -> None:
    own = next(facts for facts in benchmark_run.candidates if facts.candidate == "dinov2rt-ort")
    cell = benchmark_run.rows[-1].cell
    (row,) = (
        row for row in benchmark_run.rows if (row.cell, row.candidate) == (cell, "dinov2rt-ort")
    )
    quick = replace(timed(row, 0.5), cell=replace(cell, batch=1), candidate="int8")
    replace(
        benchmark_run,
        candidates=(
            *benchmark_run.candidates,
            replace(own, variant=cell.variant, candidate="int8", precision="int8"),
        ),
        rows=(*benchmark_run.rows, quick),
    ).write(results / "test-machine" / "cpu.json")
    write(readme, results)
    (row,) = (row for row in rows_of(readme.read_text(), columns=9) if row[2] == "int8")
    assert row[5] == "dinov2rt-ort"


def test_of_two_runs_with_as_many_candidates_the_one_with_more_turns_counts(
    readme: Path, results: Path, benchmark_run: BenchmarkRun
) -> None:
    write(readme, results)
    before = readme.read_text()
    shorter = replace(benchmark_run, rows=tuple(map(six_turns, benchmark_run.rows)))
    for name in ("a.json", "z.json"):
        shorter.write(results / "test-machine" / name)
        assert not is_stale(readme, results)
    assert readme.read_text() == before


def six_turns(row: Row) -> Row:
    if row.latency is None:
        return row
    return replace(row, latency=replace(row.latency, turns_ms=row.latency.turns_ms[:6]))


def test_without_results_one_line_says_so(readme: Path, tmp_path: Path) -> None:
    write(readme, tmp_path / "nothing")
    assert f"{BEGIN}\n\n{NO_RESULTS}\n\n{END}" in readme.read_text()
    assert not is_stale(readme, tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN + BEGIN + END])
def test_a_readme_without_its_comments_is_left_alone(
    text: str, readme: Path, results: Path
) -> None:
    readme.write_text(text)
    with pytest.raises(InputError, match="must hold <!-- latency: begin --> and <!-- latency: end"):
        write(readme, results)
    assert readme.read_text() == text


def test_no_readme_is_one_line(tmp_path: Path, results: Path) -> None:
    with pytest.raises(InputError, match=r"README.md cannot be read \(.*\); run this beside it$"):
        is_stale(tmp_path / "README.md", results)
