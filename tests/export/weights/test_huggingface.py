"""DINOv2 of transformers: its configuration, and folders that transformers itself has written."""

import dataclasses
import json

import pytest
import torch
from support.checkpoint_forms import DEPTH, HIDDEN, WIDTH, of_transformers, plain_state

from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.weights.huggingface import from_official_names
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
