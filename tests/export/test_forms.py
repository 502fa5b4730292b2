"""Architectures that are none of the eight variants: outputs of the official code, from the bundle.

`tests/golden-forms/forms.json` has the arguments of the official `DinoVisionTransformer`; weights
are those of `synthetic:0` for its shapes. See also docs/checkpoints.md.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.bundle.precision import Precision
from dinov2rt.cli import main
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.model import Model, load

FOLDER = Path(__file__).parent.parent / "golden-forms"
FORMS: dict[str, dict[str, Any]] = json.loads((FOLDER / "forms.json").read_text())["forms"]
LIMIT = 1e-5


def architecture_of(form: str) -> Architecture:
    facts = FORMS[form]["architecture"]
    width, patch = facts["embed_dim"], facts["patch_size"]
    side = facts["img_size"] // patch
    is_gated = facts.get("ffn_layer") == "swiglufused"
    hidden = width * facts["mlp_ratio"]
    return Architecture(
        embed_dim=width,
        depth=facts["depth"],
        num_heads=facts["num_heads"],
        ffn="swiglu" if is_gated else "mlp",
        hidden_dim=(int(hidden * 2 / 3) + 7) // 8 * 8 if is_gated else hidden,
        patch_size=patch,
        num_registers=facts["num_register_tokens"],
        native_grid=Grid(side, side),
        antialias=facts["interpolate_antialias"],
        offset=facts["interpolate_offset"],
        normalization=Normalization(tuple(FORMS[form]["mean"]), tuple(FORMS[form]["std"])),
        layer_scale=True,
        qkv_bias=True,
    )


def options_of(architecture: Architecture) -> list[str]:
    mean, std = (
        ",".join(map(str, each))
        for each in (architecture.normalization.mean, architecture.normalization.std)
    )
    antialias = "on" if architecture.antialias else "off"
    return [
        *("--antialias", antialias, "--offset", str(architecture.offset)),
        *(f"--mean={mean}", f"--std={std}", "--precision", "fp32"),
    ]


@pytest.fixture(scope="module", params=FORMS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """The form's weights as a file, exported by the command line with small golden cases."""
    architecture, folder = architecture_of(request.param), tmp_path_factory.mktemp("forms")
    save_file(synthetic_state_dict(architecture, 0), folder / "weights.safetensors")
    out = folder / request.param
    command = ["export", "auto", "--weights", str(folder / "weights.safetensors")]
    with pytest.MonkeyPatch.context() as patch:
        small = {ImageSize(43, 60): ("chelsea.jpg",)}
        patch.setattr("dinov2rt.export.golden._photos_by_size", lambda _: small)
        assert main([*command, *options_of(architecture), "--out", str(out)]) == 0
    assert Manifest.read(out).architecture == architecture
    with load(out, device="cpu", backend="onnxruntime", precision=Precision.FP32) as loaded:
        yield loaded


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def test_the_bundle_reproduces_the_official_outputs(model: Model) -> None:
    files = sorted(FOLDER.glob(f"{model.path.name}__*.npz"))
    assert files
    for file in files:
        with np.load(file) as golden:
            features = model(golden["image_uint8"])
            patches = features.outputs["patch_tokens"][:, golden["patch_index"]]
            assert relative_l2(features.cls_token, golden["cls_token"]) < LIMIT
            assert relative_l2(patches, golden["patch_tokens"]) < LIMIT
            assert features.register_tokens.shape == golden["register_tokens"].shape
            if features.num_registers:
                assert relative_l2(features.register_tokens, golden["register_tokens"]) < LIMIT


@pytest.mark.slow
def test_a_form_goes_through_the_whole_product(tmp_path: Path) -> None:
    """S with 8 registers at patch 16: export, plan with proven fusion, verify, run, search."""
    pytest.importorskip("tensorrt_rtx")
    architecture = architecture_of("patch16_reg8")
    weights, bundle = tmp_path / "weights.safetensors", tmp_path / "bundle"
    save_file(synthetic_state_dict(architecture, 0), weights)
    statistics = options_of(architecture)[:-2]  # in both precisions
    assert (
        main(["export", "auto", "--weights", str(weights), *statistics, "--out", str(bundle)]) == 0
    )
    build = ["build", str(bundle), "--flavour", "tensorrt-rtx", "--max-batch", "2"]
    assert main([*build, "--profiles", "256,wide", "--max-size", "512"]) == 0
    (plan,) = Manifest.read(bundle).plans
    assert plan.fused_attention == architecture.depth
    assert [profile.name for profile in plan.profiles] == ["256", "wide"]
    assert main(["verify", str(bundle), "--device", "cpu"]) == 0
    assert main(["verify", str(bundle), "--device", "cpu", "--eager", "--size", "160x224"]) == 0
    features = tmp_path / "features.parquet"
    photos = str(Path(__file__).parents[2] / "export" / "photos")
    assert main(["run", str(bundle), photos, "--device", "cpu", "--out", str(features)]) == 0
    photo = str(Path(photos) / "coffee.jpg")
    search = ["search", photo, "--features", str(features), "--bundle", str(bundle)]
    assert main([*search, "--device", "cpu"]) == 0
