"""README and docs show what works: the command line takes the commands, the Python blocks run."""

import importlib.util
import json
import re
import shlex
import shutil
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.documents import DOCUMENTS, ROOT, Block, blocks, modules

from dinov2rt.cli.entry import make_parser
from dinov2rt.export.crops import PHOTOS

BLOCKS = list(blocks())


def name(block: Block) -> str:
    return block.place


def test_there_is_something_to_check() -> None:
    assert sum(block.is_python for block in BLOCKS) >= 2
    assert sum(len(block.commands) for block in BLOCKS) >= 10
    assert modules()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.commands], ids=name)
def test_commands_are_understood(block: Block) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    parser: ArgumentParser = make_parser()
    for program, *arguments in block.commands:
        if program == "make":
            assert set(arguments[:1]) <= set(targets), arguments
        elif program == "dinov2rt":
            parser.parse_args(arguments)  # raises where there is no such verb or option


@pytest.mark.parametrize("module", sorted(modules()))
def test_modules_that_are_named_can_be_run(module: str) -> None:
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    assert "__main__" in source or importlib.util.find_spec(f"{module}.__main__")


@pytest.fixture
def folder(bundle_s_reg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader may stand: a bundle and photographs under the names of the documents."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / bundle_s_reg.name).symlink_to(bundle_s_reg)
    (tmp_path / "photos").mkdir()
    for photo in sorted(PHOTOS.glob("*.jpg"))[:2]:
        shutil.copy(photo, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.is_python and block.page == ROOT / "README.md"],
    ids=name,
)
def test_python_runs(block: Block) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    names: dict[str, Any] = {"pixels": pixels}
    exec(compile(block.text, block.place, "exec"), names)  # noqa: S102
    if "model" in names:
        names["model"].close()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / target).exists(), target


def test_the_index_leads_to_every_page() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    linked = re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs/index.md").read_text(encoding="utf-8"))
    assert set(linked) >= pages


@pytest.mark.parametrize("result", sorted(ROOT.glob("benchmarks/results/*/*.json")), ids=str)
def test_commands_of_committed_results_can_be_repeated_anywhere(result: Path) -> None:
    words = shlex.split(json.loads(result.read_text())["command"])
    absolute = [path for path in map(Path, words) if path.is_absolute()]
    assert all(path.parts[1] == "tmp" for path in absolute), absolute
