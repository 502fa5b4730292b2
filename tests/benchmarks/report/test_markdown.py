from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dinov2rt.benchmarks.report.formats import significant
from dinov2rt.benchmarks.report.html_page import to_html
from dinov2rt.benchmarks.report.markdown import to_markdown
from dinov2rt.benchmarks.report.ratios import Standing, beside_peers, cells
from dinov2rt.benchmarks.report.summary import sentences
from dinov2rt.benchmarks.results import BenchmarkRun, Row
from dinov2rt.errors import InputError

OWN = "dinov2rt-ort"


@pytest.fixture(scope="module")
def lines(benchmark_run: BenchmarkRun) -> list[str]:
    return to_markdown(benchmark_run).splitlines()


def cells_of(line: str) -> list[str]:
    return [text.strip() for text in line.strip("|").split(" | ")]


def test_the_summary_counts_the_cells(benchmark_run: BenchmarkRun) -> None:
    first, span, slower, other, *_ = sentences(benchmark_run)
    assert first == (
        "In float32, dinov2rt is the fastest in 7 of 8 cells, within 3 % of the fastest peer in 0, "
        "slower in 1."
    )
    assert "0.985 to 1.38 times" in span
    assert slower == "Slower in float32: dinov2_vits14_reg 1x224x224, 1.38 times openvino <2026>."
    assert other.startswith("In 7 cells a peer is faster than all of dinov2rt's candidates")
    assert "1 result failed them and has no time." in sentences(benchmark_run)


@pytest.mark.parametrize(
    ("factor", "standing"),
    [
        (0.98, Standing.FASTEST),
        (1.015 * 1.02, Standing.LEVEL),
        (1.015 * 1.05, Standing.SLOWER),
        (1.015, Standing.LEVEL),
    ],
)
def test_a_standing_needs_the_whole_interval(
    factor: float,
    standing: Standing,
    benchmark_run: BenchmarkRun,
    timed: Callable[[Row, float], Row],
) -> None:
    rows = [timed(row, factor if row.candidate == OWN else 1) for row in benchmark_run.rows[5:]]
    found = beside_peers(replace(benchmark_run, rows=tuple(rows)))
    assert {each.standing for each in found} == {standing}


def test_few_turns_decide_nothing(benchmark_run: BenchmarkRun) -> None:
    def short(row: Row) -> Row:
        if row.latency is None:
            return row
        return replace(row, latency=replace(row.latency, turns_ms=row.latency.turns_ms[:5]))

    run = replace(benchmark_run, rows=tuple(map(short, benchmark_run.rows)))
    assert {each.standing for each in beside_peers(run)} == {Standing.OPEN}
    assert "not told apart by the measurement in 8" in sentences(run)[0]
    assert "(too few turns)" in to_markdown(run)


def test_lower_precisions_stand_beside_float32_and_int8_beside_bfloat16(
    benchmark_run: BenchmarkRun, with_precisions: Callable[..., BenchmarkRun]
) -> None:
    run = with_precisions(benchmark_run, bf16=0.5, int8=0.4)
    said = sentences(run)
    in_bfloat16 = next(line for line in said if line.startswith("In bfloat16 its calls take"))
    assert "take 0.500 to 0.690 of the time of the fastest float32 candidate" in in_bfloat16
    assert "Its int8 calls take 0.800 of the time of its bfloat16 calls." in said
    assert not any("rather than int8" in line for line in said)

    lines = to_markdown(run).splitlines()
    start = lines.index("## What lower precisions save, and what they cost")
    rows = [cells_of(line) for line in lines[start + 4 : start + 20]]
    assert [row[1] for row in rows] == ["bfloat16", "int8"] * 8
    assert {row[0] for row in rows} == {str(each) for each in cells(run)}
    # In the first cell dinov2rt's own float32 is slower than a peer's.
    assert [row[2] for row in rows] == ["openvino &lt;2026>"] * 2 + [OWN] * 14
    assert rows[0][4] == "–"
    assert rows[1][4].startswith("0.800 (0.")
    assert "What lower precisions save" not in to_markdown(benchmark_run)


def test_int8_that_saves_little_is_not_recommended(
    benchmark_run: BenchmarkRun, with_precisions: Callable[..., BenchmarkRun]
) -> None:
    run = with_precisions(benchmark_run, bf16=0.5, int8=0.45)
    (line,) = (line for line in sentences(run) if "rather than int8" in line)
    assert line.startswith("Take bfloat16 rather than int8 at dinov2_vits14_reg 1x224x224; ")
    assert line.endswith(
        ": the measurement does not show that int8 saves 15 % there, and it is less accurate."
    )


def test_a_run_without_peers_says_so(benchmark_run: BenchmarkRun) -> None:
    rows = tuple(row for row in benchmark_run.rows if row.candidate == OWN)
    first, *_ = sentences(replace(benchmark_run, rows=rows))
    assert first == "Nowhere were dinov2rt and a peer of the same precision both timed."


def test_warnings_stand_before_the_machine(lines: list[str]) -> None:
    warning = lines.index("- **Warning:** the machine was busy: load average 1.70 on 2 cores")
    machine = next(i for i, line in enumerate(lines) if line.startswith("| machine "))
    assert lines.index("## Environment") < warning < machine


def test_each_cell_has_a_table_with_every_candidate(lines: list[str]) -> None:
    headings = [
        i for i, line in enumerate(lines) if line.startswith("### dinov2_vit") and "x" in line
    ]
    assert len(headings) == 8
    for heading in headings:
        table = lines[heading + 4 : heading + 9]
        assert {cells_of(line)[0] for line in table} >= {OWN, "torch-eager", "openvino &lt;2026>"}
    fast = cells_of(lines[lines.index("### dinov2_vits14_reg 8x224x224") + 5])
    assert fast[:2] == [OWN, "float32"]
    assert fast[2].startswith("430 (430–43")
    assert fast[4].startswith("0.985 (0.98")
    assert fast[5:9] == ["9.1e-07", "0.9999991", "55 %", "compute"]
    assert fast[-1] == "30"


def test_the_answers_of_heads_have_an_error_and_no_cosine(benchmark_run: BenchmarkRun) -> None:
    (row, *others) = benchmark_run.rows
    assert row.accuracy is not None
    answered = replace(row, accuracy=replace(row.accuracy, cosine_min=None, relative_l2=7.7e-6))
    lines = to_markdown(replace(benchmark_run, rows=(answered, *others))).splitlines()
    line = next(line for line in lines if "7.7e-06" in line)
    assert cells_of(line)[5:7] == ["7.7e-06", "–"]


def test_what_failed_its_accuracy_has_a_reason_and_no_time(lines: list[str]) -> None:
    start = lines.index("### dinov2_vitb14 8x518x518")
    failed = cells_of(lines[start + 8])
    assert failed[:3] == ["torch-bf16", "bfloat16", "failed accuracy"]
    assert not any(character.isdigit() for text in failed[3:] for character in text)
    assert lines[start + 10] == "- torch-bf16: not accurate: 7 values are NaN"


def test_a_run_with_several_processes_says_so(benchmark_run: BenchmarkRun) -> None:
    said = "Each has 3 processes, one after the other."
    settings = replace(benchmark_run.settings, processes=3)
    assert said in to_markdown(replace(benchmark_run, settings=settings))
    assert said not in to_markdown(benchmark_run)


def test_in_one_process_what_failed_its_accuracy_has_a_time_and_a_mark(
    benchmark_run: BenchmarkRun,
) -> None:
    settings = replace(benchmark_run.settings, one_process=True)
    row = benchmark_run.rows[-2]  # another one failed: the last is left out
    assert row.accuracy
    wrong = replace(row, accuracy=replace(row.accuracy, passed=False))
    run = replace(benchmark_run, settings=settings, rows=(*benchmark_run.rows[:-2], wrong))
    text = to_markdown(run)
    assert f"- {len(run.rows) - 1} results passed the accuracy limits and have times." in text
    compared = (
        f"1 result failed them and has a time all the same, to compare with: {row.candidate}."
    )
    assert compared in sentences(run)
    assert "could not be measured" not in text
    assert "a candidate that fails it is timed all the same, and marked" in text
    assert text.count(" (fails) ") == 1
    assert "each in a process of its own" not in text
    assert "beside the candidates" not in text


def test_missing_candidates_and_cold_starts_are_there(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert "| dinov2_vitb14 | tensorrt  | needs an NVIDIA GPU; there is none |" in lines
    assert text.count("peak memory MiB") == 2


def test_foreign_text_stays_in_its_cell(lines: list[str]) -> None:
    assert any("Invented CPU \\| 8 GHz" in line for line in lines)
    assert not any("<2026>" in line for line in lines)


def test_a_run_survives_its_file(benchmark_run: BenchmarkRun, tmp_path: Path) -> None:
    benchmark_run.write(tmp_path / "run.json")
    assert to_markdown(BenchmarkRun.read(tmp_path / "run.json")) == to_markdown(benchmark_run)


def test_a_row_without_facts_is_refused(benchmark_run: BenchmarkRun) -> None:
    run = replace(benchmark_run, candidates=benchmark_run.candidates[1:])
    with pytest.raises(InputError, match=rf"a row of {OWN} at .*; measure again$"):
        to_markdown(run)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.0, "1.00"), (12345.6, "12,346"), (0, "0"), (None, "–")],
)
def test_figures_have_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_on_a_gpu_the_phases_of_a_call_are_told(benchmark_run: BenchmarkRun) -> None:
    first = benchmark_run.rows[0]
    assert first.latency is not None
    latency = replace(
        first.latency, host_to_device_ms=0.21, compute_ms=1.5, device_to_host_ms=0.034
    )
    run = replace(benchmark_run, rows=(replace(first, latency=latency), *benchmark_run.rows[1:]))
    lines = to_markdown(run).splitlines()
    row = cells_of(lines[lines.index("## Phases of a call on the GPU") + 4])
    assert row == ["dinov2_vits14_reg 1x224x224", OWN, "0.210", "1.50", "0.0340"]
    assert "Phases of a call" not in to_markdown(benchmark_run)


def test_memory_that_was_short_is_told(benchmark_run: BenchmarkRun) -> None:
    first, *others = benchmark_run.rows
    assert first.latency is not None
    short = replace(first, latency=replace(first.latency, disk_reads_per_s=1234.5))
    text = to_markdown(replace(benchmark_run, rows=(short, *others)))
    assert f"- {OWN}: its memory was read from disk again 1,234 times a second" in text
    assert "read from disk again" not in to_markdown(benchmark_run)


def test_control_characters_of_a_results_file_do_not_reach_a_page(
    benchmark_run: BenchmarkRun, tmp_path: Path
) -> None:
    odd = replace(benchmark_run.environment, cpu="odd\x1b[2J\u202e")
    replace(benchmark_run, environment=odd).write(tmp_path / "run.json")
    run = BenchmarkRun.read(tmp_path / "run.json")
    for page in (to_markdown(run), to_html(run)):
        assert not {"\x1b", "\u202e"} & {*page}
        assert "x1b" in page
