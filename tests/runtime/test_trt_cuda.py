"""The CUDA calls against the real cuda-python; a machine without a driver answers each with why."""

import inspect
import re

import numpy as np
import pytest

from dinov2rt.runtime import cuda
from dinov2rt.runtime.errors import BackendError
from dinov2rt.runtime.memory_layout import TensorSpec

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")


def has_gpu() -> bool:
    status, _ = runtime.cudaGetDeviceCount()
    return bool(status == runtime.cudaError_t.cudaSuccess)


without_gpu = pytest.mark.skipif(has_gpu(), reason="a GPU is here; see tests/gpu")
NO_DRIVER = "failed: .+ [(]cudaError(InsufficientDriver|NoDevice)[)]$"


@without_gpu
@pytest.mark.parametrize(
    ("make", "function"),
    [
        (cuda.find_gpu, "cudaGetDevice"),
        (cuda.Stream, "cudaStreamCreateWithFlags"),
        (cuda.Event, "cudaEventCreateWithFlags"),
        (lambda: cuda.DeviceMemory(256), "cudaMalloc"),
        (lambda: cuda.PinnedMemory(256), "cudaMallocHost"),
    ],
)
def test_without_a_gpu_each_call_says_so_in_one_line(make: object, function: str) -> None:
    assert callable(make)
    with pytest.raises(BackendError) as error:
        make()
    assert re.fullmatch(f"{function} {NO_DRIVER}", str(error.value))


def test_every_function_that_is_called_exists() -> None:
    source = inspect.getsource(cuda)
    names = re.findall(r"\bcuda[A-Z]\w+", source)
    assert len(set(names)) > 20
    owners = (runtime, runtime.cudaError_t, runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode)
    missing = {name for name in names if not any(hasattr(owner, name) for owner in owners)}
    assert missing == set()


def test_a_driver_must_know_the_major_version_of_the_libraries() -> None:
    major, minor = cuda.needed_cuda()
    _, version = runtime.cudaRuntimeGetVersion()
    assert (major, minor) == (version // 1000, 0)


def test_pinned_memory_shows_parts_of_itself_as_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = np.zeros(1024, np.uint8)  # any memory will do for the arithmetic
    monkeypatch.setattr(cuda, "call", lambda *_: buffer.ctypes.data)
    monkeypatch.setattr(cuda, "_free_with", lambda *_: None)
    memory = cuda.PinnedMemory(1024)
    memory.array(256, TensorSpec((2, 3), np.dtype(np.float32)))[...] = [[1, 2, 3], [4, 5, 6]]
    assert buffer[256:280].view(np.float32).tolist() == [1, 2, 3, 4, 5, 6]
    assert not buffer[:256].any()
    assert not buffer[280:].any()
