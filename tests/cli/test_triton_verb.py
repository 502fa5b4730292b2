import json
from pathlib import Path

import pytest

from dinov2rt.cli import main


def test_the_command_says_what_it_wrote_and_how_to_serve_it(
    bundle_s_reg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r"
    assert main(["triton", str(bundle_s_reg), "--out", str(out), "--max-batch", "0"]) == 0
    text = capsys.readouterr().out
    assert "dinov2_vits14_reg_fp32  fp32.onnx, fp32.onnx.data" in text
    assert f"serve it with: tritonserver --model-repository={out}" in text
    assert "no server has loaded it" in text
    config = (out / "dinov2_vits14_reg_fp16" / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in config

    assert main(["triton", str(bundle_s_reg), "--out", str(out), "--json"]) == 2
    captured = capsys.readouterr()
    assert "exists already" in json.loads(captured.out)["error"]["message"]
    assert len(captured.err.splitlines()) == 1
