import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.benchmarks.results import BenchmarkRun, PeakRates
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.cli import main
from dinov2rt.cli.bench import parse_counts
from dinov2rt.errors import InputError
from dinov2rt.runtime.backends.openvino import cannot_run_bf16

OWN = ("dinov2rt-openvino-fp32", "dinov2rt-onnxruntime-fp32")
IN_BF16 = ("dinov2rt-openvino-bf16", "eager-bf16") if cannot_run_bf16() is None else ()


@pytest.fixture(scope="module", autouse=True)
def measured_once(peak_rates: PeakRates) -> Iterator[list[str]]:
    """The machine's limits, which another test measures; the devices that they were asked for."""
    asked: list[str] = []

    def measure_peak_rates(device: str, *_: object) -> PeakRates:
        asked.append(device)
        return peak_rates

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinov2rt.benchmarks.harness.bench.measure_peak_rates", measure_peak_rates)
        patch.setattr("dinov2rt.benchmarks.harness.entrants.LOADS", 2)  # each is a new process
        yield asked


@pytest.fixture(scope="module")
def result(bundle_s_reg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One real run, short: dinov2rt beside eager, and a GPU's peer that cannot be had."""
    file = tmp_path_factory.mktemp("bench") / "deep" / "run.json"
    argv = ["bench", str(bundle_s_reg), "--peers", "eager", "--size", "28,28x42", "--batch", "2"]
    argv += ["--device", "cpu", "--seconds", "0.1", "--threads", "2", "--out", str(file)]
    assert main(argv) == 0
    return file


def test_every_candidate_has_a_row_at_every_cell(result: Path) -> None:
    run = BenchmarkRun.read(result)
    cells = {(row.cell.batch, row.cell.height, row.cell.width) for row in run.rows}
    assert cells == {(2, 28, 28), (2, 28, 42)}
    candidates = {facts.candidate: facts for facts in run.candidates}
    assert set(candidates) == {"eager", *OWN, *IN_BF16}
    assert len(run.rows) == 2 * len(candidates)
    for facts in run.candidates:
        assert facts.load_ms > 0
        assert facts.peak_rss_mib is not None
        assert facts.peak_rss_mib > 50
    assert not file_beside(result).exists()
    assert not any(candidates[name].is_peer for name in OWN)


def file_beside(result: Path) -> Path:
    return result.with_name(f"{result.name}.partial")


def test_every_row_has_time_accuracy_and_its_distance_from_the_limit(result: Path) -> None:
    for row in BenchmarkRun.read(result).rows:
        assert row.failure is None
        assert row.accuracy is not None and row.accuracy.passed
        assert row.latency is not None and len(row.latency.turns_ms) >= 6
        assert row.latency.min_ms <= row.latency.p50_ms
        if row.candidate not in IN_BF16:  # no rate of a product is measured in bf16 on a CPU
            assert row.roofline is not None and 0 < row.roofline.fraction < 2
        if row.candidate == "eager":
            assert row.accuracy.relative_l2 == 0  # the reference is the same model
        elif row.candidate in IN_BF16:
            assert 1e-3 < row.accuracy.relative_l2 < 3e-2
        else:
            assert 0 < row.accuracy.relative_l2 < 1e-5


def test_a_run_says_what_it_was_made_with(result: Path, bundle_s_reg: Path) -> None:
    run = BenchmarkRun.read(result)
    assert (run.settings.threads, run.settings.device) == (2, "cpu")
    manifest = json.loads((bundle_s_reg / "manifest.json").read_text())
    assert run.bundles[0].weights_sha256 == manifest["weights"]["sha256"]
    assert run.environment.libraries["onnxruntime"]


def test_a_run_compares_with_an_earlier_one(
    result: Path, bundle_s_reg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(bundle_s_reg), "--peers", "none", "--size", "28", "--batch", "2"]
    argv += ["--backend", "onnxruntime", "--device", "cpu", "--seconds", "0.1", "--threads", "2"]
    main([*argv, "--against", str(result)])  # whether it is slower is up to the machine
    out = capsys.readouterr().out
    assert "dinov2_vits14_reg 2x28x28" in out
    assert "only in the old run" in out


def test_an_unlike_run_is_refused_before_anything_is_measured(
    result: Path,
    bundle_s_reg: Path,
    tmp_path: Path,
    measured_once: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured_once.clear()
    argv = ["bench", str(bundle_s_reg), "--peers", "none", "--size", "28", "--device", "cpu"]
    argv += ["--seconds", "0.1", "--threads", "1", "--against", str(result)]
    assert main([*argv, "--out", str(tmp_path / "run.json")]) == 2
    assert "settings.threads: 2 in the old one, 1 in the new one" in capsys.readouterr().err
    assert not measured_once
    assert not list(tmp_path.iterdir())


def test_what_is_not_for_the_bundle_is_refused_by_name(
    bundle_s_reg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(bundle_s_reg), "--device", "cpu"]
    assert main([*argv, "--backend", "tensorrt"]) == 2
    assert "dinov2rt runs tensorrt only as cuda fp16" in capsys.readouterr().err
    assert main([*argv, "--precision", "int8"]) == 2
    assert "the bundle holds no int8 graph" in capsys.readouterr().err


def test_two_bundles_of_one_variant_are_refused(
    bundle_s_reg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(bundle_s_reg), str(bundle_s_reg), "--device", "cpu"]) == 2
    assert "2 bundles are of dinov2_vits14_reg, so their rows" in capsys.readouterr().err


def test_a_result_that_cannot_be_kept_is_refused_before_anything_is_measured(
    bundle_s_reg: Path,
    tmp_path: Path,
    measured_once: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured_once.clear()
    (tmp_path / "file").write_text("")
    argv = ["bench", str(bundle_s_reg), "--peers", "none", "--device", "cpu", "--size", "2044"]
    assert main([*argv, "--batch", "64", "--out", str(tmp_path / "file" / "run.json")]) == 2
    assert "run.json.partial cannot be written" in capsys.readouterr().err
    assert not measured_once


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--peers", "eager,tensorflow"],
            'unknown peer \'tensorflow\'; allowed are "eager", "compile"',
        ),
        (["--batch", "0"], "--batch '0'; allowed are whole numbers from 1"),
        (["--size", "0"], "sizes '0'"),
        (["--seconds", "0"], "--seconds 0.0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--seconds", "inf"], "--seconds inf"),
        (["--turns", "x"], "--turns 'x'"),
        (["--turns", "6,8"], "--turns '6,8'; allowed is one whole number"),
        (["--processes", "0"], "--processes '0'; allowed are whole numbers from 1"),
        (["--threads", "0"], "--threads 0"),
        (["--device", "tpu"], 'unknown device \'tpu\'; allowed are "auto", "cpu", "cuda"'),
        (["--backend", "tvm"], "unknown backend 'tvm'"),
        (["--precision", "int3"], "unknown precision 'int3'"),
        (["--against", "gone.json"], "gone.json cannot be read"),
    ],
)
def test_bad_usage_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "nowhere", *argv]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_counts_are_whole_numbers_from_one() -> None:
    assert parse_counts("batch", "1,8,32") == (1, 8, 32)
    for text in ("", "1,", "-1", "1.5", "²"):
        with pytest.raises(InputError, match="allowed are whole numbers"):
            parse_counts("batch", text)


@pytest.mark.parametrize("size", [ImageSize(224, 224), ImageSize(1036, 700)])
def test_the_images_are_real_and_all_different(size: ImageSize) -> None:
    pixels = photo_batch(9, size)
    assert pixels.shape == (9, size.height, size.width, 3)
    assert pixels.dtype == np.uint8
    assert len({image.tobytes() for image in pixels}) == 9
    assert all(image.std() > 5 for image in pixels)
    np.testing.assert_array_equal(photo_batch(2, size), pixels[:2])
