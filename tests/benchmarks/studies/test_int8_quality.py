import sys
from pathlib import Path

import pytest

from dinov2rt.benchmarks.studies.int8.quality import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crops", "2"], "crops 2, size 224; the minimums are 3 and 1"),
        (["--photos", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["int8.quality", str(tmp_path), *arguments])
    assert main() == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
