"""The CUDA backend's bindings, on the CPU provider: names, shapes, types, padding, matrices.

What needs a GPU is in tests/gpu/test_gpu_onnxruntime.py.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.runtime.backends.grid_inputs import GridInputs
from dinov2rt.runtime.backends.onnxruntime import new_session
from dinov2rt.runtime.backends.onnxruntime_cuda import SessionProgram
from dinov2rt.runtime.gpu.memory_layout import MemoryLayout
from dinov2rt.runtime.model import Model


@dataclass
class HostMemory:
    array: NDArray[np.float32]

    @property
    def address(self) -> int:
        return self.array.ctypes.data


@dataclass
class HostLane:
    """Allocates host memory instead of GPU memory."""

    kept: list[NDArray[np.uint8]] = field(default_factory=list)

    def reserve(self, sizes: Mapping[str, int]) -> dict[str, int]:
        layout = MemoryLayout.of(sizes)
        self.kept.append(np.zeros(layout.total_bytes + 256, np.uint8))
        start = -(-self.kept[-1].ctypes.data // 256) * 256
        return {name: start + offset for name, offset in layout.offsets.items()}


@pytest.fixture(scope="module")
def program(bundle_s_reg: Path) -> SessionProgram:
    manifest = Manifest.read(bundle_s_reg)
    graph = manifest.cuda_graph
    assert graph is not None
    session = new_session(
        bundle_s_reg / graph.files[0].path, "CPUExecutionProvider", {}, description="test"
    )
    return SessionProgram(session, graph, manifest.architecture, 0, HostMemory, device="cpu")


def bytes_at(address: int, array: NDArray[np.generic]) -> NDArray[np.generic]:
    import ctypes

    part = (ctypes.c_byte * array.nbytes).from_address(address)
    return np.ndarray(array.shape, array.dtype, buffer=memoryview(part))


@pytest.mark.parametrize("shape", [(1, 14, 14, 3), (2, 98, 126, 3), (1, 231, 345, 3)])
@pytest.mark.parametrize("how", ["bind", "prepare"])
def test_a_bound_session_computes_the_features(
    program: SessionProgram, model: Model, shape: tuple[int, ...], how: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    grid = GridInputs.of(model.architecture, "pixels", {"pixels": pixels})
    lane = HostLane()
    bound = getattr(program, how)(grid, shape, lane)
    bytes_at(bound.addresses["pixels"], pixels)[...] = pixels
    bound.launch()
    for name, want in model(pixels).outputs.items():
        want = np.asarray(want).reshape(bound.outputs[name].shape)
        got = bytes_at(bound.addresses[name], want)
        assert np.linalg.norm(got - want) < 2e-3 * np.linalg.norm(want), name
    del bound
    gc.collect()  # releases what a GPU would have captured; here there is nothing, and no error


def test_the_matrices_of_a_grid_are_uploaded_once(program: SessionProgram, model: Model) -> None:
    pixels = np.zeros((1, 28, 42, 3), np.uint8)
    grid = GridInputs.of(model.architecture, "pixels", {"pixels": pixels})
    first = program._matrices_of(grid)
    again = GridInputs.of(model.architecture, "pixels", {"pixels": pixels})
    assert program._matrices_of(again) is first
    assert len(program._matrices) <= 64


@pytest.mark.parametrize(
    ("shape", "padding", "expected", "grid"),
    [
        ((1, 28, 42, 3), None, (0, 0, 0, 0, 0, 0, 0, 0), Grid(2, 3)),
        ((1, 30, 55, 3), None, (0, 0, 0, 0, 0, -2, -13, 0), Grid(2, 3)),
        ((1, 30, 55, 3), (0, 0, 6, 0, 0, 0, 6, 1), (0, 6, 0, 0, 0, 6, 1, 0), Grid(3, 4)),
    ],
)
def test_padding_leaves_whole_patches(
    model: Model,
    shape: tuple[int, ...],
    padding: tuple[int, ...] | None,
    expected: tuple[int, ...],
    grid: Grid,
) -> None:
    inputs: dict[str, NDArray[np.generic]] = {"pixels": np.zeros(shape, np.uint8)}
    if padding is not None:
        inputs["padding"] = np.array(padding)
    found = GridInputs.of(model.architecture, "pixels", inputs)
    assert (found.padding, found.grid) == (expected, grid)


def test_normalized_images_have_height_and_width_on_the_last_axes(model: Model) -> None:
    images = np.zeros((1, 3, 30, 55), np.float32)
    found = GridInputs.of(model.architecture, "images", {"images": images})
    assert found.padding == (0, 0, 0, 0, 0, 0, -2, -13)
    assert found.grid == Grid(2, 3)
