"""What stands beside weights, and what it is believed about."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.architecture import Stated
from dinov2rt.export.weights.source_config import check_config, stated_beside

CONFIG = {
    "model_type": "dinov2",
    "patch_size": 14,
    "image_size": 518,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "use_swiglu_ffn": False,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}


def write_config(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"patch_size": 16}, "patch_size is 16 instead of 14"),
        ({"image_size": 224}, "image_size is 224 instead of 518"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new' instead of 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05 instead of 1e-06"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is True instead of False"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    folder = write_config(tmp_path, CONFIG | change)
    with pytest.raises(WeightsError) as caught:
        check_config(folder, find_variant("dinov2_vits14"))
    assert str(caught.value) == (
        f"{folder}/config.json does not describe dinov2_vits14: {complaint}; "
        "ask for auto, which takes the architecture from the weights"
    )


def test_a_config_of_another_variant_names_it(tmp_path: Path) -> None:
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    folder = write_config(tmp_path, CONFIG | base)
    with pytest.raises(WeightsError, match=r"it fits dinov2_vitb14, so ask for that variant$"):
        check_config(folder, find_variant("dinov2_vits14"))


def test_a_folder_of_another_library_has_no_such_configuration(tmp_path: Path) -> None:
    check_config(tmp_path, find_variant("dinov2_vits14"))
    write_config(tmp_path, {"architecture": "vit_small_patch14_dinov2", "pretrained_cfg": {}})
    check_config(tmp_path, find_variant("dinov2_vits14"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON ("),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "is not JSON ("),
        ('{"a": 1, "a": 2}', "is not JSON (the key 'a' stands twice in one object)"),
    ],
)
def test_a_broken_configuration_is_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "config.json").write_text(content)
    place = re.escape(f"{tmp_path}/config.json {complaint}")
    for read in (stated_beside, lambda folder: check_config(folder, find_variant("dinov2_vits14"))):
        with pytest.raises(WeightsError, match=rf"^{place}[^\n]*$"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("config", "stated"),
    [
        (CONFIG, Stated(num_heads=6, image_size=ImageSize(518, 518))),
        (CONFIG | {"image_size": [224, 448]}, Stated(num_heads=6, image_size=ImageSize(224, 448))),
        (
            {
                "architecture": "vit_huge_patch14_224",
                "pretrained_cfg": {"input_size": [3, 224, 224]},
            },
            Stated(num_heads=16, image_size=ImageSize(224, 224)),
        ),
        (
            {
                "architecture": "vit_giant_patch14_224",
                "model_args": {"num_heads": 24, "img_size": [224, 112]},
                "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            },
            Stated(
                num_heads=24,
                image_size=ImageSize(224, 112),
                normalization=Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            ),
        ),
        ({"architecture": "vit_giant_patch14_reg4_dinov2"}, Stated()),
        ({"architecture": "vit_giant_patch14_224", "num_features": 1536}, Stated()),
        ({"architecture": "vit_giant_patch14_224", "num_features": 1408}, Stated(num_heads=16)),
    ],
)
def test_what_configurations_state(tmp_path: Path, config: Any, stated: Stated) -> None:
    assert stated_beside(write_config(tmp_path, config)) == stated


def test_a_preprocessor_counts_more_than_timms_own_statistics(tmp_path: Path) -> None:
    write_config(tmp_path, {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    assert stated_beside(tmp_path).normalization == Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
