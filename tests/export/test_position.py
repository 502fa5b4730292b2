"""The position table as two products against the official resampling."""

from collections.abc import Callable

import pytest
import torch

from dinov2rt.bundle.variants import Variant
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.position import PositionTable, cubic_kernel
from dinov2rt.export.weights.synthetic import synthetic_state_dict

GRIDS = [(1, 1), (1, 2), (8, 8), (7, 9), (16, 16), (16, 23), (36, 37), (37, 38), (45, 70), (74, 74)]


@pytest.fixture(scope="module", params=["dinov2_vits14", "dinov2_vits14_reg"])
def model(request: pytest.FixtureRequest, toy_variant: Callable[[str], Variant]) -> Dinov2:
    variant = toy_variant(request.param)
    state = synthetic_state_dict(variant, 0)
    # White noise is the worst case for a resampler: neighbours have nothing in common.
    state["pos_embed"] = torch.randn(
        state["pos_embed"].shape, generator=torch.Generator().manual_seed(7)
    )
    return load_eager(variant, state)


def table(model: Dinov2) -> PositionTable:
    return PositionTable(model.architecture, model.pos_embed[0, 1:])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_grid_is_resampled_as_officially(model: Dinov2, grid: tuple[int, int]) -> None:
    got = table(model)(*grid)
    want = model.interpolate_pos_encoding(*grid)[:, 1:]
    assert got.shape == want.shape == (1, grid[0] * grid[1], 128)
    assert (got - want).abs().max().item() < 5e-5


def test_the_native_grid_is_the_table_itself(model: Dinov2) -> None:
    assert torch.equal(table(model)(37, 37), model.pos_embed[:, 1:])


def test_offset_and_antialiasing_matter(model: Dinov2) -> None:
    """Without the 0.1, or without antialiasing, it would be far off: what exporters get wrong."""
    planes = model.pos_embed[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    naive = torch.nn.functional.interpolate(planes, size=(16, 16), mode="bicubic")
    got = table(model)(16, 16)[0].T.reshape(naive.shape[1:])
    assert (got - naive[0]).abs().max().item() > 0.1


@pytest.mark.parametrize("a", [-0.75, -0.5])
def test_the_kernel_interpolates(a: float) -> None:
    knots = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    assert cubic_kernel(knots, a).tolist() == [0, 0, 0, 1, 0, 0, 0]
    shift = torch.rand(100)[:, None]
    weights = cubic_kernel(shift + torch.arange(-3.0, 3.0), a)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(100))
