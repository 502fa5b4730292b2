"""Rooms behind the export, for architectures beside the variants: pictures to plans."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.unusual import UNUSUAL, export_unusual, precisions

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.cli import main
from dinov2rt.export.crops import PHOTOS

CPU = ("--device", "cpu")


def test_verbs_on_a_cpu(
    bundle_unusual: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verify against eager, extract, draw and search."""
    bundle, features, photo = str(bundle_unusual), tmp_path / "f.parquet", PHOTOS / "coffee.jpg"
    assert main(["verify", bundle, *CPU, "--eager", "--size", "61x90", "--image", str(photo)]) == 0
    run = [
        "run",
        bundle,
        str(PHOTOS),
        *CPU,
        "--out",
        str(features),
        "--pca",
        str(tmp_path / "p.png"),
    ]
    assert main([*run, "--preprocess", "short-side:100,crop:90"]) == 0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.height == 4 * 448 + 3 * 8
    capsys.readouterr()
    search = ["search", str(photo), "--features", str(features), "--bundle", bundle, "--json"]
    assert main([*search, *CPU]) == 0
    (query,) = json.loads(capsys.readouterr().out)["queries"]
    names = [Path(near["key"]).name for near in query["neighbours"]]
    assert sorted(names) == ["astronaut.jpg", "chelsea.jpg", "hubble.jpg"]  # itself is left out


@pytest.mark.skipif(Precision.INT8 not in precisions(), reason="int8 does not run here")
def test_int8_is_searched_and_kept(bundle_unusual: Path) -> None:
    manifest = Manifest.read(bundle_unusual)
    (graph,) = (graph for graph in manifest.graphs if graph.precision is Precision.INT8)
    assert graph.quantization is not None
    assert len(graph.quantization.float32) < 4 * manifest.architecture.depth
    assert main(["verify", str(bundle_unusual), *CPU, "--precision", "int8"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", UNUSUAL)
def test_plans_are_fused_and_every_check_passes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = export_unusual(UNUSUAL[name], tmp_path)
    assert main(["build", str(bundle), "--flavour", "tensorrt-rtx", "--max-size", "512"]) == 0
    (plan,) = Manifest.read(bundle).plans
    assert plan.fused_attention == UNUSUAL[name].depth
    for precision in precisions():
        assert main(["verify", str(bundle), *CPU, "--precision", precision, "--eager"]) == 0
    capsys.readouterr()
    bench = [
        "bench",
        str(bundle),
        "--peers",
        "eager,transformers",
        "--size",
        "61x90",
        "--threads",
        "1",
    ]
    out = tmp_path / "run.json"
    assert main([*bench, *CPU, "--batch", "1", "--seconds", "0.1", "--out", str(out)]) == 0
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    assert rows
