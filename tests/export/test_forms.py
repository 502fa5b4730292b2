"""Architectures beside the eight variants: outputs of the official code, from the bundle.

`tests/golden-forms/forms.json` has the arguments of the official `DinoVisionTransformer`; weights
are those of `synthetic:0` for its shapes. See also docs/checkpoints.md.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from support.float32_graph import Float32Graph
from support.naive_vit import relative_l2

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.cli import main
from dinov2rt.export.weights.architecture import Stated, read_architecture
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.model import load

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


def assert_official(form: str, computed: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> None:
    files = sorted(FOLDER.glob(f"{form}__*.npz"))
    assert files
    for file in files:
        with np.load(file) as golden:
            found = dict(computed(golden["image_uint8"]))
            found["patch_tokens"] = found["patch_tokens"][:, golden["patch_index"]]
            if not golden["register_tokens"].size:
                assert "register_tokens" not in found
                found["register_tokens"] = golden["register_tokens"]
            for output in ("cls_token", "patch_tokens", "register_tokens"):
                want = golden[output]
                assert found[output].shape == want.shape
                assert not want.size or relative_l2(found[output], want) < LIMIT, output


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_reproduces_the_official_outputs(form: str, tmp_path: Path) -> None:
    architecture = architecture_of(form)
    state = synthetic_state_dict(architecture, 0)
    assert read_architecture(state, form, Stated.of(architecture)) == architecture
    assert_official(form, Float32Graph(architecture, state, tmp_path))


@pytest.mark.parametrize(
    "form",
    [
        form if form == "swiglu_reg4" else pytest.param(form, marks=pytest.mark.slow)
        for form in FORMS
    ],
)
def test_a_bundle_from_the_command_line_reproduces_them(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the form's weights as a file, with small golden cases."""
    architecture, weights = architecture_of(form), tmp_path / "weights.safetensors"
    save_file(synthetic_state_dict(architecture, 0), weights)
    small = {ImageSize(43, 60): ("chelsea.jpg",)}
    monkeypatch.setattr("dinov2rt.export.golden._photos_by_size", lambda _: small)
    command = ["export", "auto", "--weights", str(weights), *options_of(architecture)]
    assert main([*command, "--out", str(tmp_path / form)]) == 0
    assert Manifest.read(tmp_path / form).architecture == architecture
    with load(tmp_path / form, device="cpu", backend="onnxruntime", precision="fp32") as model:
        assert_official(form, lambda pixels: model(pixels).outputs)


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
