"""Files of checkpoints: what is in them is read, and nothing of it is run."""

import argparse
import collections
import os
import pathlib
import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.containers import read_checkpoint

STATE = {
    "cls_token": torch.randn(1, 1, 64),
    "blocks.0.attn.qkv.bias": torch.randn(192),
    "blocks.13.ls1.gamma": torch.randn(64),
}


def read(file):
    return read_checkpoint([file], str(file))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def refusal(file) -> str:
    with pytest.raises(WeightsError, match=r"^[^\n]*$") as caught:
        read(file)
    return str(caught.value)


def test_nested_parts_are_joined_by_dots_and_only_tensors_are_kept(tmp_path):
    file = tmp_path / "nested.pth"
    nested = {"teacher": {"cls_token": STATE["cls_token"]}, 7: [STATE["blocks.13.ls1.gamma"], "x"]}
    torch.save({"model": nested, "epoch": 3, "name": None}, file)
    expected = {
        "model.teacher.cls_token": STATE["cls_token"],
        "model.7.0": STATE["blocks.13.ls1.gamma"],
    }
    assert_equal(read(file), expected)


FRAMEWORK = {
    "omegaconf.dictconfig": ("DictConfig", object),
    "omegaconf.base": ("ContainerMetadata", object),
    "lightning.fabric.utilities.data": ("AttributeDict", dict),
    "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint", object),
    "easydict": ("EasyDict", dict),
}


@pytest.fixture
def framework(monkeypatch) -> dict[str, type]:
    """Classes as OmegaConf and Lightning have them."""
    classes: dict[str, type] = {}
    for path, (name, base) in FRAMEWORK.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            if module not in sys.modules:
                monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        classes[name] = type(name, (base,), {"__module__": path})
        setattr(sys.modules[path], name, classes[name])
    return classes


def test_what_training_code_adds_is_read_around(tmp_path, framework, monkeypatch):
    config = framework["DictConfig"]()
    config.__dict__["_content"] = {"lr": framework["ContainerMetadata"]()}
    checkpoint = {
        "state_dict": STATE,
        "hyper_parameters": framework["AttributeDict"](lr=1e-3, path=pathlib.PurePosixPath("/a")),
        "args": argparse.Namespace(lr=1e-3, nested=argparse.Namespace(a=[1, 2])),
        "config": config,
        "callbacks": {framework["ModelCheckpoint"]: {"best": np.float64(0.5)}},
        "numpy": [np.float32(1), np.arange(3), np.dtype("int16")],
        "counts": collections.defaultdict(list, a=[1]),
        "easy": framework["EasyDict"](weight=STATE["cls_token"]),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
    }
    file = tmp_path / "epoch=3.ckpt"
    torch.save(checkpoint, file)
    for module in FRAMEWORK:  # an import of it fails
        monkeypatch.setitem(sys.modules, module, None)
    found = read(file)
    expected = {f"state_dict.{name}": tensor for name, tensor in STATE.items()}
    beside = {
        "easy.weight": STATE["cls_token"],
        "optimizer_states.0.state.0.exp_avg": torch.ones(2),
    }
    assert_equal(found, expected | beside)


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path):
    file = tmp_path / "whole_model.pth"
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), file)
    assert refusal(file) == (
        f"{file} holds objects of torch.nn.modules.container.Sequential, "
        "torch.nn.modules.linear.Linear; nothing in it was run; save its state dict alone, best "
        "as .safetensors"
    )


MORE = "more than tensors, or is no PyTorch checkpoint"


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
    holds = "objects of posix.mkdir" if kind == "zip" else MORE
    assert refusal(file) == (
        f"{file} holds {holds}; nothing in it was run; save its state dict alone, best as "
        ".safetensors"
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


@pytest.mark.parametrize("wrap", ["argparse.Namespace", "functools.partial"])
def test_an_inert_name_runs_nothing(tmp_path, wrap):
    """A type on the list is a stand-in even where a pickle calls it with code."""
    file, trace = tmp_path / "evil.pth", tmp_path / "it-ran"
    module, name = wrap.split(".")

    class Call:
        def __reduce__(self):
            return getattr(sys.modules[module], name), (os.mkdir, str(trace))

    torch.save({"args": Call()}, file)
    assert "posix.mkdir" in refusal(file)
    assert not trace.exists()


def test_nesting_without_end_is_refused(tmp_path):
    file = tmp_path / "deep.pth"
    deep: dict = {}
    deep["self"] = deep
    torch.save(deep, file)
    assert refusal(file) == f"{file} is nested over 16 deep; save its state dict alone"


def test_entries_without_end_are_refused(tmp_path):
    file = tmp_path / "many.pth"
    level: list = [0] * 100
    for _ in range(6):
        level = [level] * 100
    torch.save(level, file)
    assert refusal(file) == f"{file} has over 1048576 entries; save its state dict alone"


def test_two_tensors_of_one_name_are_refused(tmp_path):
    file = tmp_path / "twice.pth"
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, file)
    assert refusal(file) == f"{file} has two tensors called 'a.b'; save its state dict alone"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_tensor_in_two_shards_is_refused(tmp_path, suffix):
    files = [tmp_path / f"{index}{suffix}" for index in range(2)]
    for file in files:
        save_file(STATE, file) if suffix == ".safetensors" else torch.save(STATE, file)
    with pytest.raises(WeightsError, match=r"^here has blocks[^\n]* in more than one file; get it"):
        read_checkpoint(files, "here")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, suffix):
    file = tmp_path / f"pipe{suffix}"
    os.mkfifo(file)
    assert "it is a pipe" in refusal(file)
