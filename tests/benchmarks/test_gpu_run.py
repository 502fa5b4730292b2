import json
from pathlib import Path

import pytest

from dinov2rt.benchmarks.gpu_run import Step, run, steps, take

GRID = ("1", "224")


def test_a_step_that_fails_is_noted_down_with_its_reason(tmp_path: Path) -> None:
    outcome = take(Step("verify", ("verify", str(tmp_path / "gone"))))
    assert outcome.status == 2
    assert "gone is not a bundle" in outcome.said
    assert outcome.seconds > 0


def test_every_backend_is_verified_before_anything_is_timed(tmp_path: Path) -> None:
    names = [step.name.removeprefix("v ") for step in steps(tmp_path, "v", "synthetic:0", GRID)]
    assert names == [
        "export",
        "build",
        "verify onnxruntime fp32",
        "verify onnxruntime fp16",
        "verify tensorrt fp16",
        "verify auto",
        "bench",
        "report",
    ]


def test_a_failure_ends_its_own_step_alone_and_a_second_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run(tmp_path, ["dinov2_vits15"], "synthetic:0", GRID)
    notes = json.loads((tmp_path / "steps.json").read_text())
    assert len(notes) == 8
    assert {note["status"] for note in notes.values()} == {2}
    assert "nearest is 'dinov2_vits14'" in capsys.readouterr().out
    done = {name: note | {"status": 0, "said": "kept"} for name, note in notes.items()}
    (tmp_path / "steps.json").write_text(json.dumps(done))
    run(tmp_path, ["dinov2_vits15"], "synthetic:0", GRID)
    again = json.loads((tmp_path / "steps.json").read_text())
    kept = {name.partition(" ")[2] for name, note in again.items() if note["said"] == "kept"}
    assert kept == {
        "build",
        "verify onnxruntime fp32",
        "verify onnxruntime fp16",
        "verify tensorrt fp16",
        "verify auto",
        "report",
    }
