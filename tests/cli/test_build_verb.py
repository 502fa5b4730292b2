import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dinov2rt.cli import main

pytestmark = pytest.mark.usefixtures("trt")


def test_build_prints_what_the_manifest_says(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy_of(bundle_s_reg)
    options = ["--flavour", "tensorrt-rtx", "--profiles", "28", "--max-batch", "1"]
    assert main(["build", str(bundle), *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert document["plan"] == manifest["plans"][0]
    assert document["verified"] is False
    assert document["plan"]["fused_attention"] == 12

    assert main(["build", str(bundle), *options]) == 2
    assert "already, with the profiles 28 (" in capsys.readouterr().err
    assert main(["build", str(bundle), *options, "--target", "a100", "--force"]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("a TensorRT for RTX plan, fp16: runs on sm80 GPUs with TensorRT for")
    assert "not with TensorRT; build that with --flavour tensorrt" in first


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--target", "sm90"], 2, "cannot build for 'sm90'"),
        (["--version-compatible"], 2, "has no version compatible"),
        (["--profiles", "tall"], 2, "profile 'tall' is not valid"),
        (["--precision", "bf16"], 2, "holds no bf16 graph"),
        (["--hardware-compatible", "turing"], 2, "'ampere-plus', 'same-compute-capability'"),
    ],
)
def test_bad_usage_is_one_line(
    options: list[str],
    status: int,
    message: str,
    bundle_s_reg: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["build", str(bundle_s_reg), "--flavour", "tensorrt-rtx", *options]
    assert main(arguments) == status
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
