import dataclasses
import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.checkpoint import load_weights
from dinov2rt.export.weights.state_dict import StateDict, state_dict_sha256
from dinov2rt.export.weights.synthetic import synthetic_state_dict

TOY = dataclasses.replace(
    find_variant("dinov2_vits14_reg"), embed_dim=64, depth=3, num_heads=1, hidden_dim=96
)
ALLOWED = (
    "allowed are official, synthetic:SEED, a file of .pth, .pt, .ckpt, .bin, .safetensors, a "
    "folder of transformers or timm, and OWNER/NAME on the Hugging Face hub"
)


@pytest.fixture(scope="module")
def state() -> StateDict:
    return synthetic_state_dict(TOY, 0)


def sha256(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def assert_loads(source, state: StateDict, sha256: str) -> None:
    weights = load_weights(str(source), TOY)
    assert weights.state_dict.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(weights.state_dict[name], tensor), name
        assert weights.state_dict[name].dtype is torch.float32
    assert weights.entry.source == str(source)
    assert weights.entry.sha256 == sha256


def refusal(source) -> str:
    with pytest.raises(WeightsError, match=r"^[^\n]*$") as caught:
        load_weights(str(source), TOY)
    return str(caught.value)


def test_synthetic_weights_are_hashed_tensor_by_tensor(state):
    assert_loads("synthetic:0", state, state_dict_sha256(state))


@pytest.mark.parametrize("seed", ["", ":", ":-1", ":1.5", ":zero", ":" + "9" * 19])
def test_a_seed_is_a_whole_number(seed):
    assert refusal(f"synthetic{seed}") == (
        f"weights 'synthetic{seed}' name no seed; allowed is synthetic:SEED with a whole number "
        "of up to 18 digits, e.g. synthetic:0"
    )


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_file(tmp_path, state, name, zipped):
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_loads(tmp_path / name, state, sha256(tmp_path / name))


def test_a_safetensors_file(tmp_path, state):
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    assert_loads(file, state, sha256(file))


def test_a_half_precision_file_becomes_float32(tmp_path, state):
    file = tmp_path / "half.safetensors"
    halves = {name: tensor.half() for name, tensor in state.items()}
    save_file(halves, file)
    assert_loads(file, {name: half.float() for name, half in halves.items()}, sha256(file))


def test_the_official_file_in_the_hub_folder(tmp_path, monkeypatch, state):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "dinov2_vits14_reg4_pretrain.pth"
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    assert_loads("official", state, sha256(file))


def write_huggingface(folder) -> StateDict:
    """A folder whose config is right and whose tensors already have official names."""
    config = {
        "model_type": "dinov2_with_registers",
        "patch_size": 14,
        "image_size": 518,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "use_swiglu_ffn": False,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "num_register_tokens": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return synthetic_state_dict(TOY, 0)


def test_a_huggingface_folder_is_known_by_its_one_file(tmp_path):
    state = write_huggingface(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    assert_loads(tmp_path, state, sha256(tmp_path / "model.safetensors"))


def test_a_sharded_huggingface_folder_is_hashed_tensor_by_tensor(tmp_path):
    state = write_huggingface(tmp_path)
    files = {name: f"model-{name.startswith('blocks')}.safetensors" for name in state}
    for file in set(files.values()):
        save_file({n: t for n, t in state.items() if files[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert_loads(tmp_path, state, state_dict_sha256(state))


def test_weights_of_another_variant_are_refused(tmp_path):
    file = tmp_path / "plain.pth"
    torch.save(synthetic_state_dict(dataclasses.replace(TOY, num_registers=0), 0), file)
    assert refusal(file).startswith(
        f"{file} does not fit dinov2_vits14_reg: missing register_tokens;"
    )


def test_an_unknown_suffix_lists_the_allowed_forms(tmp_path):
    file = tmp_path / "model.onnx"
    file.touch()
    assert refusal(file) == f"weights {str(file)!r} are of an unknown type; {ALLOWED}"


def test_a_path_that_does_not_exist_lists_the_allowed_forms():
    assert refusal("offical") == (
        f"weights 'offical' cannot be read (No such file or directory); {ALLOWED}"
    )
    assert refusal("x" * 5000).endswith(f"(File name too long); {ALLOWED}")
    assert refusal("nul\0").endswith(f"(embedded null byte); {ALLOWED}")


def test_a_url_is_not_taken_for_a_path():
    url = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
    assert refusal(url) == (
        f"weights {url} are a URL; download the file and give its path, or ask for official"
    )


def test_what_was_taken_and_left_out_is_on_record(tmp_path, state):
    file = tmp_path / "model_final.pth"
    nested = {
        role: {f"backbone.{name}": tensor for name, tensor in state.items()}
        for role in ("teacher", "student")
    }
    nested["teacher"]["dino_head.weight"] = torch.ones(3)
    torch.save({"model": nested}, file)
    entry = load_weights(str(file), TOY).entry
    assert (entry.prefix, entry.naming) == ("model.teacher.backbone", "official")
    assert entry.left_out == {"model.student": len(state), "model.teacher.dino_head": 1}
    assert entry.selection == (
        "backbone below 'model.teacher.backbone', official names; left out: model.student "
        f"({len(state)} tensors), model.teacher.dino_head (1 tensor)"
    )
    assert entry.options == ["--weights", str(file), "--prefix=model.teacher.backbone"]
    student = load_weights(str(file), TOY, "model.student")
    assert student.entry.prefix == "model.student.backbone"
