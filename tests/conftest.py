"""Bundles that many tests share: made once per session, never changed."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dinov2rt.export.bundle import ExportOptions, export_bundle
from dinov2rt.runtime.variants import Variant, find_variant

GOLDEN = Path(__file__).parent / "golden"


def _export(name: str, folder: Path) -> Path:
    bundle = folder / name
    export_bundle(find_variant(name), "synthetic:0", bundle, ExportOptions())
    return bundle


@pytest.fixture(scope="session")
def bundle_s(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S without registers, from synthetic weights."""
    return _export("dinov2_vits14", tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def bundle_s_reg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S with registers, from synthetic weights."""
    return _export("dinov2_vits14_reg", tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a bundle, so that a test may damage it."""

    def copy(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / bundle.name))

    return copy


@pytest.fixture(scope="session")
def golden_files() -> Callable[[str], list[Path]]:
    """The official model's outputs for a variant, one file per photograph and size."""

    def files(variant: str) -> list[Path]:
        return sorted(GOLDEN.glob(f"{variant}__*.npz"))

    return files


@pytest.fixture(scope="session")
def toy_variant() -> Callable[[str], Variant]:
    """A real variant's structure with two narrow blocks: seconds instead of minutes."""

    def toy(name: str) -> Variant:
        return dataclasses.replace(
            find_variant(name), embed_dim=128, depth=2, num_heads=2, hidden_dim=256
        )

    return toy
