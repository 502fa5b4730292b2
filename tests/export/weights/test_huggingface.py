import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.huggingface import read_huggingface, to_official_names, weight_files
from dinov2rt.export.weights.state_dict import check_state_dict
from dinov2rt.export.weights.synthetic import synthetic_state_dict

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1, "hidden_dim": 96}
PLAIN = dataclasses.replace(find_variant("dinov2_vits14"), **SMALL)
REGISTERS = dataclasses.replace(find_variant("dinov2_vits14_reg"), **SMALL)
SWIGLU = dataclasses.replace(find_variant("dinov2_vitg14"), **SMALL)

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
CONFIG_REGISTERS = CONFIG | {"model_type": "dinov2_with_registers", "num_register_tokens": 4}


def to_huggingface(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of what is tested, written down name by name."""
    theirs = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if "register_tokens" in state:
        theirs["embeddings.register_tokens"] = state["register_tokens"]
    depth = sum(name.endswith("ls1.gamma") for name in state)
    for index in range(depth):
        ours, layer = f"blocks.{index}", f"encoder.layer.{index}"
        theirs[f"{layer}.layer_scale1.lambda1"] = state[f"{ours}.ls1.gamma"]
        theirs[f"{layer}.layer_scale2.lambda1"] = state[f"{ours}.ls2.gamma"]
        for kind in ("weight", "bias"):
            query, key, value = state[f"{ours}.attn.qkv.{kind}"].chunk(3)
            theirs[f"{layer}.attention.attention.query.{kind}"] = query.clone()
            theirs[f"{layer}.attention.attention.key.{kind}"] = key.clone()
            theirs[f"{layer}.attention.attention.value.{kind}"] = value.clone()
            theirs[f"{layer}.attention.output.dense.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            theirs[f"{layer}.norm1.{kind}"] = state[f"{ours}.norm1.{kind}"]
            theirs[f"{layer}.norm2.{kind}"] = state[f"{ours}.norm2.{kind}"]
            if f"{ours}.mlp.w12.{kind}" in state:
                theirs[f"{layer}.mlp.weights_in.{kind}"] = state[f"{ours}.mlp.w12.{kind}"]
                theirs[f"{layer}.mlp.weights_out.{kind}"] = state[f"{ours}.mlp.w3.{kind}"]
            else:
                theirs[f"{layer}.mlp.fc1.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
                theirs[f"{layer}.mlp.fc2.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
    return theirs


def to_transformers_5(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renames = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "mlp.weights_out": "mlp.down_proj",
    }
    newer = {}
    for name, tensor in theirs.items():
        for old, new in renames.items():
            name = name.replace(old, new)
        if "weights_in" in name:
            gate, up = tensor.chunk(2)
            newer[name.replace("weights_in", "gate_proj")] = gate
            newer[name.replace("weights_in", "up_proj")] = up
        else:
            newer[name] = tensor
    return newer


def write_folder(folder, config, state):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return folder


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("variant", "config"), [(PLAIN, CONFIG), (REGISTERS, CONFIG_REGISTERS)], ids=["plain", "reg"]
)
def test_a_folder_gives_the_official_state_dict(tmp_path, variant, config):
    state = synthetic_state_dict(variant, 0)
    folder = write_folder(tmp_path / "model", config, to_huggingface(state))
    assert_equal(read_huggingface(folder, variant), state)


def test_a_sharded_folder_is_put_together(tmp_path):
    state = synthetic_state_dict(PLAIN, 0)
    theirs = list(to_huggingface(state).items())
    shards = {
        "model-00001-of-00002.safetensors": dict(theirs[::2]),
        "model-00002-of-00002.safetensors": dict(theirs[1::2]),
    }
    for file, part in shards.items():
        save_file(part, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert weight_files(tmp_path) == [tmp_path / file for file in shards]
    assert_equal(read_huggingface(tmp_path, PLAIN), state)


@pytest.mark.parametrize("prefix", ["dinov2.", "dinov2_with_registers."])
def test_of_a_classifier_only_the_backbone_is_kept(prefix):
    state = synthetic_state_dict(REGISTERS, 0)
    theirs = {prefix + name: tensor for name, tensor in to_huggingface(state).items()}
    theirs["classifier.weight"] = torch.ones(1000, 128)
    assert_equal(to_official_names(theirs), state)


@pytest.mark.parametrize("variant", [PLAIN, SWIGLU], ids=["mlp", "swiglu"])
@pytest.mark.parametrize(
    "naming", [dict, to_transformers_5], ids=["transformers4", "transformers5"]
)
def test_both_generations_of_names_and_both_mlps(variant, naming):
    state = synthetic_state_dict(variant, 0)
    assert_equal(to_official_names(naming(to_huggingface(state))), state)


def test_incomplete_attention_is_refused_by_name():
    theirs = to_huggingface(synthetic_state_dict(PLAIN, 0))
    del theirs["encoder.layer.1.attention.attention.key.weight"]
    theirs["encoder.layer.0.attention.attention.value.bias"] = torch.ones(3)
    with pytest.raises(WeightsError) as caught:
        check_state_dict(to_official_names(theirs), PLAIN, "folder")
    assert "missing blocks.0.attn.qkv.bias, blocks.1.attn.qkv.weight;" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "vit"}, "model_type is 'vit' instead of 'dinov2'"),
        ({"patch_size": 16}, "patch_size is 16 instead of 14"),
        ({"image_size": 224}, "image_size is 224 instead of 518"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new' instead of 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05 instead of 1e-06"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is True instead of False"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path, change, complaint):
    folder = write_folder(tmp_path, CONFIG | change, {})
    with pytest.raises(WeightsError) as caught:
        read_huggingface(folder, PLAIN)
    assert str(caught.value) == (
        f"{folder}/config.json does not describe dinov2_vits14: {complaint}; "
        "give a folder of facebook/dinov2-*"
    )


def test_a_config_of_another_variant_names_it(tmp_path):
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    folder = write_folder(tmp_path, CONFIG | base, {})
    with pytest.raises(WeightsError, match=r"it fits dinov2_vitb14, so ask for that variant$"):
        read_huggingface(folder, find_variant("dinov2_vits14"))


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("config.json", None, "config.json cannot be read (No such file or directory)"),
        ("config.json", "{", "config.json is not JSON ("),
        ("config.json", "[]", "config.json is not a JSON object"),
        ("model.safetensors", None, "index.json cannot be read (No such file or directory)"),
        ("model.safetensors", "", "model.safetensors cannot be read as a checkpoint (Error"),
    ],
)
def test_a_broken_folder_is_one_line(tmp_path, file, content, complaint):
    folder = write_folder(tmp_path, CONFIG, {"a": torch.ones(1)})
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(WeightsError, match=rf"^{re.escape(str(folder))}[^\n]*$") as caught:
        read_huggingface(folder, PLAIN)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ({}, "has no weight_map; download the folder again"),
        ({"weight_map": {"a": 1}}, "has no weight_map; download the folder again"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors cannot be read"),
    ],
)
def test_a_broken_index_is_one_line(tmp_path, index, complaint):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=rf"^[^\n]*{complaint}[^\n]*$"):
        read_huggingface(tmp_path, PLAIN)
