"""Blocks of README and docs run in order, page by page, and so does every study named there.

The reader stands in a fresh clone that is set up, with photographs of their own. What `official`
would download is in the cache of torch.hub already: synthetic weights under the official names.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.documents import REASONS, ROOT, Block, blocks, comments, modules
from support.installed import lacking

from dinov2rt.bundle.heads import OFFICIAL_HEADS
from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.crops import PHOTOS
from dinov2rt.export.heads.checkpoint import file_keys, module_of_spec, official_head_url
from dinov2rt.export.heads.synthetic import synthetic_head
from dinov2rt.export.weights.official import official_url
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.cpu import this_cpu

BLOCKS = [block for block in blocks() if block.commands or block.is_python]
PAGES = {
    str(page.relative_to(ROOT)): list(of_page)
    for page, of_page in groupby(BLOCKS, lambda block: block.page)
}
RUN = {name: found for name, found in PAGES.items() if any(not each.not_run for each in found)}
QUICK = ("docs/features.md", "docs/fleet.md", "docs/triton.md")
PIXELS = "import numpy as np\npixels = np.zeros((2, 28, 42, 3), np.uint8)\n"

# How each study that a page names is run in little time; None stands for one that needs a GPU.
STUDIES: Mapping[str, str | None] = {
    "dinov2rt.benchmarks.gpu.run": None,
    "dinov2rt.benchmarks.studies.attention_forms": "dinov2_vits14 --repeats 1",
    "dinov2rt.benchmarks.studies.heads.class_maps": "SEGMENTS --size 56 --turns 1",
    "dinov2rt.benchmarks.studies.cpu.precisions": "BUNDLE --cells 1x56 --sizes 56 --turns 1",
    "dinov2rt.benchmarks.studies.extraction": "BUNDLE --images 45 --turns 1",
    "dinov2rt.benchmarks.studies.fleet": "",
    "dinov2rt.benchmarks.studies.growth": "BUNDLE --size 28 --batch 1 --seconds 0 --images 8",
    "dinov2rt.benchmarks.studies.heads.head_costs": "dinov2_vits14 --heads linear "
    "--size 56 --seconds 0",
    "dinov2rt.benchmarks.studies.int8.attention": "dinov2_vits14 --cells 1x56 --turns 1",
    "dinov2rt.benchmarks.studies.int8.quality": "INT8 --crops 3 --size 56",
    "dinov2rt.benchmarks.studies.int8.forms": "dinov2_vits14 --weights synthetic:0 --crops 1 "
    "--cells 1x56 --turns 1",
    "dinov2rt.benchmarks.studies.int8.ranges": "dinov2_vits14 --weights synthetic:0 --images 1",
    "dinov2rt.benchmarks.studies.limit_sides": "BUNDLE",
    "dinov2rt.benchmarks.studies.load_time": "BUNDLE --repeats 1 --backends openvino",
    "dinov2rt.benchmarks.studies.precision_costs": "dinov2_vits14",
    "dinov2rt.benchmarks.studies.precision_study": "candidates dinov2_vits14 --sizes 224",
    "dinov2rt.benchmarks.studies.cpu.attention": "BUNDLE --cells 1x56 --turns 1",
    "dinov2rt.benchmarks.studies.cpu.product_libraries": "BUNDLE --cells 1x56 --turns 1",
    "dinov2rt.benchmarks.studies.cpu.convolutions": "BUNDLE --cells 1x56 --turns 1",
    "dinov2rt.benchmarks.studies.reliability.faults": "--kinds closed-streams",
    "dinov2rt.benchmarks.studies.reliability.kills": "--kills 1 --verbs search",
    "dinov2rt.benchmarks.studies.reliability.mutations": "--seeds 2",
    "dinov2rt.benchmarks.studies.reliability.steady_load": "--calls 10",
    "dinov2rt.benchmarks.studies.reliability.swaps": "--loads 2 --kinds onnxruntime",
    "dinov2rt.benchmarks.studies.sources.interpolation": "",
    "dinov2rt.benchmarks.studies.sources.pixels": "",
}


def test_exceptions_are_few_and_name_their_reason() -> None:
    reasons = [block.not_run for block in BLOCKS if block.not_run]
    assert set(reasons) <= REASONS
    assert len(reasons) <= 8
    assert len(BLOCKS) >= 3 * len(reasons)
    understood = [block for block in blocks() if block.not_run or block.shorter]
    assert len(comments()) == len(understood)


def test_every_study_that_a_page_names_is_run() -> None:
    assert set(STUDIES) == modules()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME that holds weights of ViT-S and its heads under the official names."""
    home = tmp_path_factory.mktemp("torch")
    checkpoints = home / "hub/checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("dinov2_vits14", "dinov2_vits14_reg"):
        variant = find_variant(name)
        state = synthetic_state_dict(variant.architecture, 0)
        torch.save(state, checkpoints / official_url(variant).rpartition("/")[2])
    architecture = find_variant("dinov2_vits14").architecture
    for name in ("nyu-dpt", "ade20k-linear", "linear"):
        spec = OFFICIAL_HEADS[name]
        keys = file_keys(spec, module_of_spec(spec, architecture))
        shapes = {key: tuple(value.shape) for key, value in keys.items()}
        drawn = synthetic_head(spec, architecture.embed_dim, shapes, 0)
        tensors = {key: torch.from_numpy(array) for key, array in drawn.items()}
        whole = tensors if name == "linear" else {"state_dict": tensors}
        torch.save(whole, checkpoints / official_head_url(spec, architecture).rpartition("/")[2])
    return home


@pytest.fixture
def clone(tmp_path: Path, bundle_s_reg: Path) -> Path:
    """A copy of the repository that is set up, with photographs and a bundle beside it."""
    folder = tmp_path / "dinov2rt"
    left_out = (".git", ".venv*", "tests", "artifacts", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (folder / ".venv" / part.name).symlink_to(part)
    for mark in (".ready", ".demo"):  # what `make setup` and `make demo` leave
        (folder / ".venv" / mark).unlink(missing_ok=True)
        (folder / ".venv" / mark).touch()
    (folder / "BUNDLE").symlink_to(bundle_s_reg)
    _take_photographs(folder)
    return folder


def _take_photographs(folder: Path) -> None:
    """Two kinds in photos/, and some of them in new/, in shards/ and as photo.jpg."""
    for kind in ("coffee", "chelsea"):
        (folder / "photos" / kind).mkdir(parents=True)
        with Image.open(PHOTOS / f"{kind}.jpg") as photo:
            for index in range(1, 7):
                crop = photo.crop((10 * index, 10 * index, 150 + 10 * index, 120 + 10 * index))
                crop.save(folder / "photos" / kind / f"{index}.jpg")
    shutil.copytree(folder / "photos/coffee", folder / "new")
    shutil.copy(folder / "new/1.jpg", folder / "photo.jpg")
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/0.tar", "w") as shard:
        shard.add(folder / "new", "new")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a shell in which the set-up environment is active, with an empty home."""
    (tmp_path / "home").mkdir()
    kept = {name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH") if name in os.environ}
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return kept | {
        "PATH": path,
        "PYTHONPATH": str(ROOT / "src"),
        "HOME": str(tmp_path / "home"),
    }


@pytest.mark.parametrize(
    "page", [page if page in QUICK else pytest.param(page, marks=pytest.mark.slow) for page in RUN]
)
def test_every_block_of_a_page_runs_in_order(
    page: str, clone: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    if page not in QUICK:
        environment["TORCH_HOME"] = str(request.getfixturevalue("cache"))
    for block in RUN[page]:
        if not block.not_run:
            done = _run(_program(block), clone, environment)
            output = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
            assert done.returncode == 0, f"{block.place}:\n{block.text}\n{output}"
            assert "Traceback" not in output, f"{block.place}:\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize("module", [name for name, short in STUDIES.items() if short is not None])
def test_studies_run(module: str, clone: Path, environment: dict[str, str]) -> None:
    arguments = shlex.split(STUDIES[module] or "")
    if "INT8" in arguments:
        _export_int8(clone, environment)
    if "SEGMENTS" in arguments:
        _export_segments(clone, environment)
    done = _run([sys.executable, "-m", module, *arguments], clone, environment)
    assert done.returncode == 0, f"{module}:\n{done.stdout}{done.stderr}"
    assert len(done.stdout.splitlines()) >= 2


def _export_int8(folder: Path, environment: dict[str, str]) -> None:
    """A bundle INT8, which this CPU has to run."""
    if not this_cpu().multiplies_bytes:
        lacking("this CPU has no VNNI, and int8 graphs are measured on one")
    options = ["dinov2_vits14", "--weights", "synthetic:0", "--precision", "fp32,int8"]
    program = [sys.executable, "-m", "dinov2rt", "export", *options, "--out", "INT8"]
    assert _run(program, folder, environment).returncode == 0


def _export_segments(folder: Path, environment: dict[str, str]) -> None:
    """A bundle SEGMENTS with a segmentation head."""
    head = ["--head", "ade20k-linear=synthetic:0", "--precision", "fp32"]
    options = ["dinov2_vits14", "--weights", "synthetic:0", *head]
    program = [sys.executable, "-m", "dinov2rt", "export", *options, "--out", "SEGMENTS"]
    assert _run(program, folder, environment).returncode == 0


def _program(block: Block) -> list[str]:
    if block.is_python:
        return [sys.executable, "-c", PIXELS + block.text_in_tests]
    return ["bash", "-euo", "pipefail", "-c", block.text_in_tests]


def _run(
    program: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
