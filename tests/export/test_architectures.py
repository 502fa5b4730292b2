"""Architectures that no golden file has: every part of one, against the eager model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.unusual import HALVES, UNUSUAL, export_unusual, precisions

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.position import resampling_matrices
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import WeightsError
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.position import PositionTable
from dinov2rt.export.weights.architecture import (
    NOTHING_STATED,
    Stated,
    as_wanted,
    read_architecture,
)
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.backends.openvino import cannot_run
from dinov2rt.runtime.model import load
from dinov2rt.runtime.verification import verify_cuda_graph_on_cpu

GRIDS = ((1, 1), (1, 3), (7, 9), (5, 12), (12, 5), (5, 5), (16, 23), (40, 33))


@pytest.fixture(scope="session")
def toy(toy_variant: Callable[[str], Variant]) -> Architecture:
    return toy_variant("dinov2_vits14").architecture


def eager_of(architecture: Architecture) -> Dinov2:
    return load_eager(architecture, synthetic_state_dict(architecture, 0))


@pytest.mark.parametrize("native", [Grid(37, 37), Grid(16, 16), Grid(5, 12), Grid(24, 7)], ids=str)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.1, 0.3, 1 / 3])
def test_positions_are_those_of_the_eager_model(
    toy: Architecture, native: Grid, antialias: bool, offset: float
) -> None:
    architecture = dataclasses.replace(
        toy, native_grid=native, antialias=antialias, offset=offset, depth=1
    )
    model = eager_of(architecture)
    table = PositionTable(architecture, model.pos_embed[0, 1:])
    for rows, cols in (*GRIDS, (native.rows, native.cols), (native.rows, 3), (3, native.cols)):
        want = model.interpolate_pos_encoding(rows, cols)[0, 1:].numpy()
        got = table(rows, cols)[0].numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5, err_msg=f"{rows}x{cols}")
        down, across = resampling_matrices(architecture, Grid(rows, cols))
        taps = table.table.reshape(len(table.row_taps), len(table.col_taps), -1).numpy()
        product = np.einsum("rp,pqd,cq->rcd", down, taps, across).reshape(want.shape)
        np.testing.assert_allclose(product, want, rtol=0, atol=2e-5, err_msg=f"{rows}x{cols}")
    native_table = table(native.rows, native.cols)
    assert torch.equal(native_table, model.pos_embed[:, 1:])


def assert_every_graph_agrees(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert verify_cuda_graph_on_cpu(bundle, manifest)
    backends = [("onnxruntime", "fp32"), ("onnxruntime", "fp16")]
    backends += [] if cannot_run() else [("openvino", "fp32")]
    backends += [("openvino", "int8")] if Precision.INT8 in precisions() else []
    side = manifest.architecture.patch_size
    for backend, precision in backends:
        with load(bundle, device="cpu", backend=backend, precision=precision) as model:
            report = model.verify()
            assert report, report
            pixels = np.zeros((1, 2 * side + 1, 3 * side + 1, 3), np.uint8)
            assert model(pixels).grid == Grid(2, 3)
            assert model(pixels, snap="pad").grid == Grid(3, 4)


def test_every_graph_of_an_unusual_architecture_agrees_with_eager(bundle_unusual: Path) -> None:
    assert_every_graph_agrees(bundle_unusual)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["patch8", "patch12"])
def test_every_graph_of_other_unusual_architectures_agrees_with_eager(
    name: str, tmp_path: Path
) -> None:
    assert_every_graph_agrees(export_unusual(UNUSUAL[name], tmp_path))


@pytest.mark.parametrize("architecture", UNUSUAL.values(), ids=UNUSUAL)
def test_what_tensors_tell_is_read_from_them(architecture: Architecture) -> None:
    state = synthetic_state_dict(architecture, 0)
    assert read_architecture(state, "w", Stated.of(architecture)) == architecture


def test_what_they_do_not_tell_is_as_in_official_models(toy: Architecture) -> None:
    registers = dataclasses.replace(toy, num_registers=4, antialias=True, offset=0.0)
    for architecture in (toy, registers):
        state = synthetic_state_dict(architecture, 0)
        assert read_architecture(state, "w", NOTHING_STATED) == architecture


def test_the_size_of_a_configuration_tells_the_grid_if_it_fits(toy: Architecture) -> None:
    flat = dataclasses.replace(toy, native_grid=Grid(2, 8))
    state = synthetic_state_dict(flat, 0)
    beside = Stated(image_size=ImageSize(28, 112))
    assert read_architecture(state, "w", beside).native_grid == Grid(2, 8)
    resampled = Stated(image_size=ImageSize(518, 518))
    assert read_architecture(state, "w", resampled).native_grid == Grid(4, 4)


@pytest.mark.parametrize(
    ("change", "stated", "message"),
    [
        ({"native_grid": Grid(2, 5)}, NOTHING_STATED, "has 10 patches, which is not 3x3; say its"),
        ({}, Stated(native_grid=Grid(2, 5)), "has 1369 patches, which is not 2x5; say its grid"),
        ({"embed_dim": 96}, NOTHING_STATED, "96 is no multiple of 64, .* with --num-heads N"),
        ({}, Stated(num_heads=5), "embed_dim 128 is not divisible by 5 heads"),
        ({}, Stated(num_heads=0), "sizes below 1"),
        ({}, Stated(offset=float("nan")), "offset nan of the interpolation; allowed are 0 to"),
    ],
)
def test_what_cannot_be_told_is_refused(
    toy: Architecture, change: dict[str, object], stated: Stated, message: str
) -> None:
    state = synthetic_state_dict(dataclasses.replace(toy, **change), 0)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=f"^w: .*{message}"):
        read_architecture(state, "w", stated)


def test_another_number_of_channels_is_refused(toy: Architecture) -> None:
    state = synthetic_state_dict(toy, 0)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :1]
    with pytest.raises(WeightsError, match=r"allowed are square patches of 3 channels"):
        read_architecture(state, "w", NOTHING_STATED)


def test_a_named_variant_insists(toy_variant: Callable[[str], Variant]) -> None:
    variant = toy_variant("dinov2_vits14")
    stated = Stated(antialias=True, offset=0.0, normalization=HALVES)
    found = as_wanted(variant, stated, "w")
    assert (found.antialias, found.offset, found.normalization) == (True, 0.0, HALVES)
    with pytest.raises(WeightsError, match="num_heads 4 was stated, dinov2_vits14 has 2; ask for"):
        as_wanted(variant, Stated(num_heads=4), "w")
