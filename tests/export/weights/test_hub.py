"""Repositories on the Hugging Face hub, read by its own client from its own cache."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import save_file
from support.checkpoint_forms import plain_state

from dinov2rt.export.weights.hub import is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"
READ = """
import json, sys
from dinov2rt.errors import Dinov2rtError
from dinov2rt.export.weights.hub import download
try:
    snapshot = download(sys.argv[1])
    print(json.dumps([str(snapshot.folder), snapshot.revision]))
except Dinov2rtError as error:
    sys.exit(f"refused: {error}")
"""


def client(source, cache, **environment):
    """What `download` prints in a process whose client has this cache and endpoint."""
    pytest.importorskip("huggingface_hub")
    environment = {**os.environ, "HF_HOME": str(cache)} | environment
    command = [sys.executable, "-c", READ, source]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def write_cache(cache):
    """A repository as the client keeps it."""
    repository = cache / "hub" / "models--facebook--dinov2-small"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    save_file(plain_state(), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({}))
    return snapshot


@pytest.mark.parametrize("source", ["facebook/dinov2-small", f"facebook/dinov2-small@{COMMIT}"])
def test_a_repository_is_a_folder_at_a_commit(tmp_path, source):
    snapshot = write_cache(tmp_path)
    done = client(source, tmp_path, HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout) == [str(snapshot), COMMIT], done.stderr


@pytest.mark.parametrize(
    "environment",
    [{"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}, {"HF_HUB_OFFLINE": "1"}],
    ids=["refused", "offline"],
)
def test_without_a_network_there_is_one_line(tmp_path, environment):
    done = client("facebook/dinov2-small", tmp_path, **environment)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        "refused: facebook/dinov2-small is neither a file nor can it be downloaded from the "
        "Hugging Face hub ("
    )
    assert line.endswith("; give the path of a checkpoint")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("facebook/dinov2-small", True),
        ("timm/vit_small_patch14_dinov2.lvd142m", True),
        ("hf-hub:timm/vit_small_patch14_dinov2.lvd142m@v1.0", True),
        ("weights/model.safetensors", False),
        ("runs/epoch=3.ckpt", False),
        ("./facebook/dinov2-small", False),
        ("/facebook/dinov2-small", False),
        ("facebook/dinov2/small", False),
        ("official", False),
    ],
)
def test_ids_and_paths_are_told_apart(source, expected):
    assert is_hub_id(source) is expected


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / "facebook" / "dinov2-small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("facebook/dinov2-small")
