import numpy as np
import pytest
import torch

from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.position import resampling_matrices
from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.position import PositionTable


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
@pytest.mark.parametrize("grid", [(1, 1), (7, 9), (16, 16), (37, 37), (37, 36), (74, 3)])
def test_the_resampled_table_is_that_of_the_portable_graph(
    name: str, grid: tuple[int, int]
) -> None:
    table = torch.randn(37 * 37, 8, generator=torch.Generator().manual_seed(0))
    module = PositionTable(find_variant(name), table)
    rows, columns = resampling_matrices(find_variant(name), Grid(*grid))
    taps = module.table.reshape(rows.shape[1], columns.shape[1], 8).numpy()
    got = np.einsum("rt,cs,tsd->rcd", rows, columns, taps, dtype=np.float32)
    want = module(*grid).numpy().reshape(got.shape)
    np.testing.assert_allclose(got, want, atol=4e-6)


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_the_native_grid_gets_the_table_as_it_is(name: str) -> None:
    rows, columns = resampling_matrices(find_variant(name), Grid(37, 37))
    picked = np.eye(37, rows.shape[1], k=(rows.shape[1] - 37) // 2, dtype=np.float32)
    np.testing.assert_array_equal(rows, picked)
    np.testing.assert_array_equal(columns, picked)
