"""Bundles that many tests share: made once per session, never changed."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dinov2rt.export.bundle import ExportOptions, export_bundle
from dinov2rt.runtime.chunks import Chunk, ImageFiles
from dinov2rt.runtime.feature_dataset import FeatureDataset
from dinov2rt.runtime.feature_files import ImageFeatures
from dinov2rt.runtime.feature_table import FeatureType
from dinov2rt.runtime.geometry import Grid, ImageSize
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


@pytest.fixture
def write_features(tmp_path: Path) -> Callable[..., Path]:
    """Writes invented features, CLS tokens [N, 384], as `dinov2rt run` writes those of images.

    The mean of an image's patch tokens is the CLS token of the image at the same place from the
    end, so that the two have different neighbours.
    """

    def write(name: str, keys: Sequence[str], cls_tokens: np.ndarray, **metadata: str) -> Path:
        made_by = {
            "variant": "dinov2_vits14",
            "weights_source": "official",
            "weights_sha256": "0" * 64,
            "precision": "fp32",
            "preprocess": "native",
            "snap": "crop",
            "dtype": "float32",
            "patch_tokens": "no",
            "max_pixels": "4194304",
        } | metadata
        dtype = FeatureType(made_by["dtype"])
        variant = find_variant(made_by["variant"])
        dataset = FeatureDataset(tmp_path / name, variant, dtype, False, made_by)
        no_registers = np.zeros((0, variant.embed_dim), np.float32)
        rows = [
            ImageFeatures(key, ImageSize(14, 14), Grid(1, 1), cls_token, no_registers, patch_mean)
            for key, cls_token, patch_mean in zip(keys, cls_tokens, cls_tokens[::-1], strict=True)
        ]
        chunk = Chunk(0, ImageFiles(tuple(keys)))
        with dataset.resumed([chunk]):
            dataset.stage(chunk, rows).commit()
        return dataset.folder

    return write
