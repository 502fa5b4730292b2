"""How the source of weights scales and crops, and `run --preprocess source`, which follows it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.cli import main
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.source_steps import source_steps
from dinov2rt.runtime.preprocess import Preprocess

SQUARE = {"size": {"height": 518, "width": 518}}
SHORT = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
TIMM = {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic"}


@pytest.mark.parametrize(
    ("file", "config", "steps"),
    [
        ("preprocessor_config.json", SHORT, "short-side:256,floor-crop:224"),
        ("preprocessor_config.json", SHORT | {"do_center_crop": False}, "short-side:256"),
        ("preprocessor_config.json", SQUARE, "resize:518x518"),
        ("preprocessor_config.json", {"size": 224}, "short-side:224"),
        (
            "preprocessor_config.json",
            {"size": 224, "feature_extractor_type": "ViTFeatureExtractor"},
            "resize:224x224",
        ),
        ("preprocessor_config.json", SHORT | {"do_resize": False}, "floor-crop:224"),
        ("preprocessor_config.json", {"image_mean": [0.5] * 3}, "native"),
        ("preprocessor_config.json", SHORT | {"resample": 2}, None),
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 256, "longest_edge": 512}},
            None,
        ),
        ("config.json", {"pretrained_cfg": TIMM}, "short-side:248,crop:224"),
        ("config.json", {"pretrained_cfg": TIMM | {"crop_pct": None}}, "short-side:256,crop:224"),
        ("config.json", {"pretrained_cfg": TIMM | {"crop_pct": 1.0}}, "short-side:224,crop:224"),
        (
            "config.json",
            {"pretrained_cfg": TIMM | {"crop_mode": "squash"}},
            "resize:248x248,crop:224",
        ),
        ("config.json", {"pretrained_cfg": TIMM | {"interpolation": "bilinear"}}, None),
        ("config.json", {"hidden_size": 384}, None),
        ("other.json", {}, None),
    ],
)
def test_the_steps_beside_the_weights(
    tmp_path: Path, file: str, config: Any, steps: str | None
) -> None:
    (tmp_path / file).write_text(json.dumps(config))
    assert source_steps(tmp_path) == steps
    assert source_steps(tmp_path / "model.safetensors") == steps
    if steps is not None:
        Preprocess.parse(steps)


def test_what_cannot_be_computed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"longest_edge": 5}}))
    with pytest.raises(
        WeightsError, match=r"preprocessor_config.json says what cannot be computed"
    ):
        source_steps(tmp_path)


def test_run_follows_the_source(
    pooling_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = Path(__file__).parents[3] / "export" / "photos" / "coffee.jpg"
    out = tmp_path / "features.npz"
    command = ["run", str(pooling_bundle), str(photo), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--preprocess", "source"]) == 2
    assert "knows no preprocessing of its source" in capsys.readouterr().err
    manifest = Manifest.read(pooling_bundle)
    dataclasses.replace(manifest, preprocess="short-side:56,crop:42").write(pooling_bundle)
    assert main([*command, "--preprocess", "source"]) == 0
    with np.load(out) as features:
        assert (features["grid_rows"], features["grid_cols"]) == (3, 3)
