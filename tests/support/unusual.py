"""Architectures that differ from the eight variants in every part, and bundles of them."""

from pathlib import Path

import pytest
import torch

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.precision import Precision
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.weights.architecture import Stated
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.backends.openvino import cannot_run_int8

HALVES = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
UNUSUAL = {
    "patch16": Architecture(
        embed_dim=96,
        depth=2,
        num_heads=3,
        ffn="swiglu",
        hidden_dim=171,
        patch_size=16,
        num_registers=8,
        native_grid=Grid(10, 16),
        antialias=True,
        offset=0.0,
        normalization=HALVES,
        layer_scale=False,
        qkv_bias=True,
    ),
    "patch8": Architecture(
        embed_dim=128,
        depth=2,
        num_heads=4,
        ffn="mlp",
        hidden_dim=256,
        patch_size=8,
        num_registers=1,
        native_grid=Grid(5, 12),
        antialias=True,
        offset=0.1,
        normalization=HALVES,
        layer_scale=False,
        qkv_bias=False,
    ),
    "patch12": Architecture(
        embed_dim=160,
        depth=3,
        num_heads=2,
        ffn="mlp",
        hidden_dim=333,
        patch_size=12,
        num_registers=0,
        native_grid=Grid(21, 13),
        antialias=False,
        offset=0.0,
        normalization=IMAGENET,
        layer_scale=True,
        qkv_bias=False,
    ),
}


def precisions() -> tuple[Precision, ...]:
    """All of a graph's, int8 where this machine can run it."""
    int8 = () if cannot_run_int8() else (Precision.INT8,)
    return (Precision.FP32, Precision.FP16, *int8)


def export_unusual(architecture: Architecture, folder: Path) -> Path:
    """Its synthetic weights as a file, and the bundle beside it; int8 is searched on few crops."""
    torch.save(synthetic_state_dict(architecture, 0), folder / "weights.pth")
    options = ExportOptions(precisions=precisions(), stated=Stated.of(architecture))
    with pytest.MonkeyPatch.context() as patch:
        for name, seeds in (("_SEARCHED", range(100, 108)), ("_CHECKED", range(200, 208))):
            patch.setattr(f"dinov2rt.export.int8.search.{name}_GALLERY", seeds)
        export_bundle(None, str(folder / "weights.pth"), folder / "bundle", options)
    assert Manifest.read(folder / "bundle").architecture == architecture
    return folder / "bundle"
