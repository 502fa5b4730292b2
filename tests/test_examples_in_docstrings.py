"""The examples in docstrings of the most used calls run, and print what they say."""

import doctest
import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinov2rt
from dinov2rt.export.crops import PHOTOS
from dinov2rt.runtime.model import Model

MODULES = {name: f"dinov2rt.{name}" for name in set(dinov2rt._MODULES.values())}
MODULES |= {"analysis.index": "dinov2rt.analysis.index"}
WITH_EXAMPLES = {
    "load", "__call__", "embed", "predict", "warm_up", "map", "verify", "describe",
    "load_image", "Features", "Classification", "extract_features", "read_features",
    "index_features", "variants",
}  # fmt: skip


def examples(module: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    return [each for each in found if each.examples]


def test_the_most_used_calls_have_an_example() -> None:
    found = {each.name.rpartition(".")[2] for name in MODULES.values() for each in examples(name)}
    assert found >= WITH_EXAMPLES


@pytest.fixture
def names(
    model: Model,
    bundle_s_reg: Path,
    bundle_heads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """What a reader has: a loaded model, three photographs, bundles under the names of examples."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/dinov2_vits14_reg").symlink_to(bundle_s_reg)
    (tmp_path / "artifacts/heads").symlink_to(bundle_heads)
    (tmp_path / "photos").mkdir()
    with Image.open(PHOTOS / "chelsea.jpg") as photo:
        for index, name in enumerate("abc"):
            left = 30 * index
            photo.crop((left, 0, left + 120, 90)).save(tmp_path / "photos" / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    return {"dinov2rt": dinov2rt, "model": model, "np": np, "Path": Path}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if examples(MODULES[name])))
def test_examples_run(module: str, names: dict[str, Any], tmp_path: Path) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    for example in examples(MODULES[module]):
        example.globs = names | vars(importlib.import_module(MODULES[module]))
        example.globs |= names
        printed: list[str] = []
        runner.run(example, out=printed.append)
        assert not runner.failures, "".join(printed)
        shutil.rmtree(tmp_path / "features.parquet", ignore_errors=True)
