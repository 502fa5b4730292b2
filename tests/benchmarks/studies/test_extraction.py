import json
from pathlib import Path

import pytest

from dinov2rt.benchmarks.studies import extraction


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["extraction", *arguments])
    return extraction.main()


@pytest.mark.slow  # five seconds of calls at each of three batches
def test_a_run_is_measured_beside_calls(
    bundle_s: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(bundle_s), "--images", "45", "--turns", "1", "--json"]
    assert run(monkeypatch, *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 45
    assert found["best_batch"] in (1, 8, 32)
    assert found["ratio"] == pytest.approx(found["run_rate"] / found["calls_rate"])
    assert 0 < found["bytes_per_image"] < 100_000
    assert 10 < found["peak_mib"] < 10_000
    assert found["decode_rate"] > 1
    assert found["ray_efficiency"] is None


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(tmp_path), "--images", "39") == 2
    assert "the minimums are 40 images and 1 turn" in capsys.readouterr().err
    assert run(monkeypatch, str(tmp_path)) == 2
    assert "is not a bundle" in capsys.readouterr().err
