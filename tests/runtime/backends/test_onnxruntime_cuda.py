"""The CUDA backend's bindings, on the CPU provider: names, shapes, types, padding, matrices.

What needs a GPU is in tests/gpu/test_gpu_onnxruntime.py.
"""

import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import BackendError
from dinov2rt.runtime.backends.grid_inputs import GridInputs
from dinov2rt.runtime.backends.onnxruntime import new_session
from dinov2rt.runtime.backends.onnxruntime_cuda import SessionProgram, _check_form
from dinov2rt.runtime.gpu.memory_layout import MemoryLayout
from dinov2rt.runtime.model import Model


@dataclass
class HostMemory:
    array: NDArray[np.float32]

    @property
    def address(self) -> int:
        return self.array.ctypes.data


@dataclass
class HostExecution:
    """Allocates host memory instead of GPU memory."""

    kept: list[NDArray[np.uint8]] = field(default_factory=list)
    stream: None = None

    def reserve(self, sizes: Mapping[str, int]) -> dict[str, int]:
        layout = MemoryLayout.of(sizes)
        self.kept.append(np.zeros(layout.total_bytes + 256, np.uint8))
        start = -(-self.kept[-1].ctypes.data // 256) * 256
        return {name: start + offset for name, offset in layout.offsets.items()}


@dataclass
class Recorded:
    """In place of a CUDA graph: runs again what was captured, and counts."""

    launch_plain: Callable[[], None]
    launches: int = 0

    def launch(self, stream: object) -> None:  # noqa: ARG002
        self.launches += 1
        self.launch_plain()


def session_of(bundle: Path) -> tuple[InferenceSession, Manifest, GraphEntry]:
    manifest = Manifest.read(bundle)
    graph = manifest.cuda_graph
    assert graph is not None
    session = new_session(
        bundle / graph.files[0].path, "CPUExecutionProvider", {}, description="test"
    )
    return session, manifest, graph


@pytest.fixture(scope="module")
def program(bundle_s_reg: Path) -> SessionProgram:
    session, manifest, graph = session_of(bundle_s_reg)
    return SessionProgram(
        session,
        graph,
        manifest.architecture,
        0,
        HostMemory,
        device="cpu",
        capture=lambda *_: None,  # as where nothing can be captured
    )


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
    execution = HostExecution()
    bound = getattr(program, how)(grid, shape, execution)
    bytes_at(bound.addresses["pixels"], pixels)[...] = pixels
    bound.launch()
    for name, want in model(pixels).outputs.items():
        want = np.asarray(want).reshape(bound.outputs[name].shape)
        got = bytes_at(bound.addresses[name], want)
        assert np.linalg.norm(got - want) < 2e-3 * np.linalg.norm(want), name


def test_a_shape_runs_twice_before_it_is_captured_and_then_only_its_graph_is_launched(
    bundle_s_reg: Path, model: Model
) -> None:
    """The first run plans memory and the second allocates it, which a capture must not do."""
    session, manifest, graph = session_of(bundle_s_reg)
    runs, graphs = [], []

    class Counting:
        def io_binding(self) -> object:
            return session.io_binding()

        def run_with_iobinding(self, *given: object) -> None:
            runs.append(1)
            session.run_with_iobinding(*given)

    def capture(stream: object, launch: Callable[[], None], shape: tuple[int, ...]) -> Recorded:
        assert (stream, shape, len(runs)) == (None, (1, 28, 28, 3), 2)
        graphs.append(Recorded(launch))
        return graphs[0]

    program = SessionProgram(
        Counting(), graph, manifest.architecture, 0, HostMemory, device="cpu", capture=capture
    )
    pixels = np.zeros((1, 28, 28, 3), np.uint8)
    grid = GridInputs.of(model.architecture, "pixels", {"pixels": pixels})
    bound = program.prepare(grid, pixels.shape, HostExecution())
    (recorded,) = graphs
    recorded.launch_plain = lambda: None
    for _ in range(3):
        bound.launch()
    assert (recorded.launches, len(runs)) == (3, 2)
    gone, graphs[:] = weakref.ref(recorded), []
    del bound, recorded
    gc.collect()
    assert gone() is None  # an evicted shape frees its CUDA graph


def test_a_fused_graph_of_an_older_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cuda-0123.onnx"
    file.write_bytes(b"... embedding/prefix_shape ...")
    with pytest.raises(BackendError, match=r"older version.*dinov2rt build .* onnxruntime-cuda"):
        _check_form(file)


def test_a_fused_graph_of_this_version_is_not(bundle_s_reg: Path) -> None:
    _, _, graph = session_of(bundle_s_reg)
    _check_form(bundle_s_reg / graph.files[0].path)


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
