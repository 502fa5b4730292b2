"""Which files of a folder are its checkpoint, and which folders hold no checkpoint."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.folders import weight_files
from dinov2rt.export.weights.reading import read_backbone


def refusal(folder) -> str:
    with pytest.raises(WeightsError, match=r"^[^\n]*$") as caught:
        weight_files(folder)
    return str(caught.value)


def touched(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.onnx"], "model.safetensors"),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
        (["teacher_checkpoint.pth", "config.yaml"], "teacher_checkpoint.pth"),
        (["last.ckpt"], "last.ckpt"),
        (["open_clip_model.safetensors", "config.json"], "open_clip_model.safetensors"),
    ],
)
def test_the_file_that_holds_the_weights(tmp_path, names, chosen):
    assert weight_files(touched(tmp_path, *names)) == [tmp_path / chosen]


def write_index(folder, index, name="model.safetensors"):
    (folder / f"{name}.index.json").write_text(json.dumps(index))


def test_shards_are_those_of_the_index(tmp_path):
    touched(tmp_path, "other.safetensors")
    write_index(tmp_path, {"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}})
    assert weight_files(tmp_path) == [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "path", ["../other.safetensors", "/other.safetensors", "sub/x.safetensors", ".."]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path, name, path):
    write_index(tmp_path, {"weight_map": {"a": path}}, name)
    assert refusal(tmp_path) == (
        f"{tmp_path}/{name}.index.json points to {path!r}, which is not in the folder; get the "
        "folder again"
    )


@pytest.mark.parametrize("index", [{}, {"weight_map": {"a": 1}}, {"weight_map": ["a"]}])
def test_an_index_without_a_map_is_refused(tmp_path, index):
    write_index(tmp_path, index)
    assert refusal(tmp_path).endswith("index.json has no weight_map; get the folder again")


def test_a_missing_shard_is_named(tmp_path):
    write_index(tmp_path, {"weight_map": {"a": "gone.safetensors"}})
    with pytest.raises(WeightsError, match=r"gone\.safetensors cannot be read as a checkpoint"):
        read_backbone(tmp_path)


def test_a_name_that_the_index_gives_to_another_shard_is_refused(tmp_path):
    for shard in ("1.safetensors", "2.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / shard)
    write_index(tmp_path, {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    with pytest.raises(WeightsError, match=r" has a in more than one file; get it again$"):
        read_backbone(tmp_path)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "holds no weights; give a folder with model.safetensors, pytorch_model.bin"),
        (["a.pth", "b.ckpt"], "holds several checkpoints: a.pth, b.ckpt; give one"),
        (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter (LoRA) alone;"),
        ([".metadata", "__0_0.distcp"], "is a distributed checkpoint; make one file of it first"),
    ],
)
def test_folders_that_hold_no_checkpoint(tmp_path, names, line):
    assert refusal(touched(tmp_path, *names)).startswith(f"{tmp_path} {line}")
