import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.readers import read_pth, read_safetensors

STATE = {
    "cls_token": torch.randn(1, 1, 64),
    "blocks.0.attn.qkv.bias": torch.randn(192),
    "blocks.13.ls1.gamma": torch.randn(64),
}
READERS = {".pth": read_pth, ".safetensors": read_safetensors}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def refusal(file) -> str:
    with pytest.raises(WeightsError, match=r"^[^\n]*$") as caught:
        READERS[file.suffix](file)
    return str(caught.value)


def test_a_training_checkpoint_is_reduced_to_its_backbone(tmp_path):
    teacher = {
        "backbone.cls_token": STATE["cls_token"],
        "backbone.blocks.0.0.attn.qkv.bias": STATE["blocks.0.attn.qkv.bias"],
        "backbone.blocks.2.13.ls1.gamma": STATE["blocks.13.ls1.gamma"],
        "dino_head.last_layer.weight_v": torch.ones(7, 3),
        "ibot_head.mlp.0.bias": torch.ones(7),
    }
    file = tmp_path / "teacher_checkpoint.pth"
    torch.save({"teacher": teacher, "iteration": 1249}, file)
    assert_equal(read_pth(file), STATE)


@pytest.mark.parametrize("name", ["model", "state_dict"])
def test_a_nested_state_dict_of_a_wrapped_module(tmp_path, name):
    file = tmp_path / "nested.pth"
    wrapped = {f"module.{key}": torch.nn.Parameter(tensor) for key, tensor in STATE.items()}
    torch.save({name: wrapped, "epoch": 3}, file)
    assert_equal(read_pth(file), STATE)


class Payload:
    def __init__(self, file) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, kind):
    file, trace = tmp_path / "evil.pth", tmp_path / "it-ran"
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"cls_token": Payload(trace)}, protocol=2))
    else:
        checkpoint = {"cls_token": Payload(trace)}
        torch.save(checkpoint, file, _use_new_zipfile_serialization=kind == "zip")
    assert refusal(file) == (
        f"{file} holds more than tensors, or is no PyTorch checkpoint; nothing in it was run; "
        "save its state dict alone, best as .safetensors"
    )
    assert not trace.exists()
    with file.open("rb") as stream:
        torch.load(stream, weights_only=False) if kind != "pickle" else pickle.load(stream)
    assert trace.exists(), "the payload is dud, so the test proves nothing"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("size", [0, 100, -100])
def test_truncated_files_are_one_line(tmp_path, suffix, size):
    file = tmp_path / f"truncated{suffix}"
    if suffix == ".pth":
        torch.save(STATE, file)
    else:
        save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:size])
    message = refusal(file)
    assert re.match(rf"{re.escape(str(file))} cannot be read as a checkpoint \(.+\); ", message)
    assert message.endswith("it is truncated or of another format: delete it and get it again")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.ones(3), "a Tensor"),
        ([torch.ones(3)], "a list"),
        ({"cls_token": torch.ones(3), "epoch": 3}, "a int under 'epoch'"),
        ({7: torch.ones(3)}, "a Tensor under 7"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, found):
    file = tmp_path / "other.pth"
    torch.save(content, file)
    assert refusal(file) == (
        f"{file} holds {found}, a state dict is tensors by name; "
        "save the model's state_dict() alone"
    )
