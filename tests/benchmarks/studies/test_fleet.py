import pytest

from dinov2rt.benchmarks.studies import fleet


def test_the_estimate_is_work_over_rate() -> None:
    table = fleet.estimate(1e9, gpus=64, tflops=100, decode_rate=50)
    name, gflop, rate, hours, gpu_hours, cores, terabytes = table.rows[2]
    assert (name, gflop) == ("dinov2_vitl14", "162")
    assert float(rate.replace(",", "")) == pytest.approx(64 * 100e12 / 162e9, rel=1e-2)
    assert float(hours) == pytest.approx(1e9 * 162e9 / 64e14 / 3600, abs=0.06)
    assert float(gpu_hours) == pytest.approx(64 * float(hours), rel=2e-2)
    assert float(cores) == pytest.approx(100e12 / 162e9 / 50, abs=0.6)
    assert terabytes == "4.1"  # 1e9 rows of two vectors of 1024 float16
    assert len(table.rows) == 4


def test_the_list_of_parquet_shards_takes_little_memory() -> None:
    held = fleet.listing_bytes()
    assert held["Parquet shards"] < 5 < held["files"] < held["tar shards"] < 1000


def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fleet", "--gpus", "0"])
    assert fleet.main() == 2
    assert capsys.readouterr().err == "fleet: images, GPUs and rates must be more than 0\n"
