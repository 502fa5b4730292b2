"""DINOv2 of transformers: its configuration, and folders that transformers itself has written."""

import dataclasses
import json
import re

import pytest
import torch
from support.checkpoint_forms import DEPTH, HIDDEN, WIDTH, of_transformers, plain_state

from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.huggingface import check_config, from_official_names
from dinov2rt.export.weights.reading import read_backbone

PLAIN = dataclasses.replace(
    find_variant("dinov2_vits14"), embed_dim=64, depth=2, num_heads=1, hidden_dim=96
)

CONFIG = {
    "architectures": ["Dinov2Model"],
    "hidden_act": "gelu",
    "hidden_size": 64,
    "image_size": 518,
    "layer_norm_eps": 1e-06,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config))


def test_official_weights_under_their_names():
    state = plain_state(swiglu=True)
    for version in (4, 5):
        theirs = of_transformers(state, version=version)
        found = from_official_names(state, theirs)
        assert found.keys() == theirs.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", ["Model", "ForImageClassification", "Backbone"])
@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_what_transformers_saves_is_read(tmp_path, family, name, shards):
    transformers = pytest.importorskip("transformers")
    state = plain_state(registers=family != "Dinov2")
    config = getattr(transformers, f"{family}Config")(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=1,
        mlp_ratio=HIDDEN // WIDTH,
        image_size=56,
        patch_size=14,
    )
    model = getattr(transformers, family + name)(config)
    prefix = "" if name != "ForImageClassification" else f"{model.base_model_prefix}."
    own = [key.removeprefix(prefix) for key in model.state_dict() if key.startswith(prefix)]
    theirs = from_official_names(state, own)
    model.load_state_dict({prefix + key: theirs[key] for key in own}, strict=False)
    model.save_pretrained(tmp_path, max_shard_size="1GB" if shards == 1 else "200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= shards
    found = read_backbone(tmp_path)
    assert found.state_dict.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(found.state_dict[key], tensor), key
    assert found.backbone.prefix == prefix.rstrip(".")
    assert found.backbone.left_out == ({"classifier": 2} if prefix else {})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_attention_heads": 2}, "num_attention_heads is 2 instead of 1"),
        ({"patch_size": 16}, "patch_size is 16 instead of 14"),
        ({"image_size": 224}, "image_size is 224 instead of 518"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new' instead of 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05 instead of 1e-06"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is True instead of False"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path, change, complaint):
    write_config(tmp_path, CONFIG | change)
    with pytest.raises(WeightsError) as caught:
        check_config(tmp_path, PLAIN)
    assert str(caught.value) == (
        f"{tmp_path}/config.json does not describe dinov2_vits14: {complaint}; "
        "give a folder of facebook/dinov2-*"
    )


def test_a_config_of_another_variant_names_it(tmp_path):
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    write_config(tmp_path, CONFIG | base)
    with pytest.raises(WeightsError, match=r"it fits dinov2_vitb14, so ask for that variant$"):
        check_config(tmp_path, find_variant("dinov2_vits14"))


def test_a_folder_of_another_library_has_no_such_configuration(tmp_path):
    check_config(tmp_path, PLAIN)
    write_config(tmp_path, {"architecture": "vit_small_patch14_dinov2", "pretrained_cfg": {}})
    check_config(tmp_path, PLAIN)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON ("),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "is not JSON ("),
        ('{"a": 1, "a": 2}', "is not JSON (the key 'a' stands twice in one object)"),
    ],
)
def test_a_broken_configuration_is_one_line(tmp_path, content, complaint):
    (tmp_path / "config.json").write_text(content)
    place = re.escape(f"{tmp_path}/config.json {complaint}")
    with pytest.raises(WeightsError, match=rf"^{place}[^\n]*$"):
        check_config(tmp_path, PLAIN)
