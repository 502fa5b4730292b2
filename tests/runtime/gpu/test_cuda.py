"""The CUDA calls against the real cuda-python; without a driver, each call gives the reason."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.installed import require_for_tests

from dinov2rt.errors import BackendError
from dinov2rt.runtime.gpu import cuda
from dinov2rt.runtime.gpu.memory_layout import TensorSpec

runtime = require_for_tests("cuda.bindings.runtime")


def has_gpu() -> bool:
    status, _ = runtime.cudaGetDeviceCount()
    return bool(status == runtime.cudaError_t.cudaSuccess)


without_gpu = pytest.mark.skipif(has_gpu(), reason="a GPU is here; see tests/gpu")
NO_DRIVER = "there is no NVIDIA driver"


@without_gpu
@pytest.mark.parametrize(
    "make",
    [
        cuda.find_gpu,
        cuda.Stream,
        cuda.Event,
        lambda: cuda.Event(timed=True),
        lambda: cuda.call("cudaMemGetInfo"),
        lambda: cuda.DeviceMemory(256),
        lambda: cuda.PinnedMemory(256),
    ],
)
def test_without_a_gpu_each_call_says_so_in_one_line(make: object) -> None:
    assert callable(make)
    with pytest.raises(BackendError) as error:
        make()
    assert re.fullmatch(NO_DRIVER, str(error.value))


def test_every_function_that_is_called_exists() -> None:
    source = inspect.getsource(cuda)
    names = re.findall(r"\bcuda[A-Z]\w+", source)
    assert len(set(names)) > 20
    owners = (runtime, runtime.cudaError_t, runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode)
    missing = {name for name in names if not any(hasattr(owner, name) for owner in owners)}
    assert missing == set()


@pytest.mark.parametrize(("values", "result"), [((), None), ((7,), 7), ((0,), 0), ((5, 8), (5, 8))])
def test_a_call_returns_its_results_without_the_status(
    monkeypatch: pytest.MonkeyPatch, values: tuple[int, ...], result: object
) -> None:
    success = runtime.cudaError_t.cudaSuccess
    answers = SimpleNamespace(cudaError_t=runtime.cudaError_t, ask=lambda: (success, *values))
    monkeypatch.setattr(cuda, "_runtime", lambda: answers)
    assert cuda.call("ask") == result


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 2023\n"
            "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n",
            "535.54.03",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  "
            "(dvs-builder@U22)  Sun Jul 27 06:51:58 UTC 2025\nGCC version:\n",
            "580.65.06",
        ),
        ("", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("system", [SimpleNamespace(), "not to be had"])
def test_the_drivers_file_gives_the_version_if_nvml_does_not(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: str | None,
    version: str | None,
    system: object,
) -> None:
    """`find_gpu` works with a cuda-core that lacks the call, and without NVML."""

    def require(*_: object, **__: object) -> object:
        if isinstance(system, str):
            raise RuntimeError(system)
        return system

    monkeypatch.setattr(cuda, "require", require)
    monkeypatch.setattr(cuda, "_DRIVER_FILE", tmp_path / "version")
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert cuda._driver_version() == version


def test_nvml_gives_the_version_in_nvidias_notation(monkeypatch: pytest.MonkeyPatch) -> None:
    system = SimpleNamespace(get_kernel_mode_driver_version=lambda: (580, 65, 6))
    monkeypatch.setattr(cuda, "require", lambda *_, **__: system)
    assert cuda._driver_version() == "580.65.06"


def test_a_gpu_is_found_if_its_driver_version_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "cudaGetDevice": 0,
        "cudaGetDeviceProperties": SimpleNamespace(name=b"NVIDIA A100\0", major=8, minor=0),
        "cudaDriverGetVersion": 13000,
    }
    monkeypatch.setattr(cuda, "call", lambda function, *_: answers[function])
    monkeypatch.setattr(cuda, "_driver_version", lambda: None)
    assert cuda.find_gpu() == cuda.Gpu(0, "NVIDIA A100", "sm80", "unknown (CUDA 13.0)", (13, 0))


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


@pytest.mark.parametrize(
    ("before", "contexts", "after"),
    [(0, {0, 1}, 0), (1, {0, 1}, 1), (0, {1}, 1)],  # a device without a context is left alone
)
def test_the_current_device_is_that_of_before_again(
    monkeypatch: pytest.MonkeyPatch, before: int, contexts: set[int], after: int
) -> None:
    current = [before]

    def call(function: str, *arguments: int) -> int | None:
        assert function in {"cudaGetDevice", "cudaSetDevice"}
        if function == "cudaGetDevice":
            return current[0]
        current[0] = arguments[0]
        return None

    monkeypatch.setattr(cuda, "call", call)
    monkeypatch.setattr(cuda, "_has_context", contexts.__contains__)
    with pytest.raises(ZeroDivisionError), cuda.on_gpu(1):
        assert current == [1]
        raise ZeroDivisionError
    assert current == [after]


@without_gpu
def test_a_gpu_by_number_needs_a_driver_and_the_drivers_functions_exist() -> None:
    with pytest.raises(BackendError, match=NO_DRIVER):
        cuda.check_gpu(0)
    driver = require_for_tests("cuda.bindings.driver")
    assert {"cuDeviceGet", "cuDevicePrimaryCtxGetState", "CUresult"} <= set(dir(driver))


@pytest.mark.parametrize("gone", [None, 22])
def test_pooled_memory_is_freed_after_its_readers_even_if_a_stream_is_gone(
    monkeypatch: pytest.MonkeyPatch, gone: int | None
) -> None:
    done: list[tuple[object, ...]] = []

    def call(function: str, *arguments: object) -> int:
        if function == "cudaEventRecord" and arguments[1] == gone:
            raise BackendError("cudaEventRecord failed")
        done.append((function, *arguments))
        return len(done)

    monkeypatch.setattr(cuda, "call", call)
    monkeypatch.setattr(cuda, "_free_with", lambda *_: None)
    stream, released = cuda.Stream(), cuda.Stream()
    memory = cuda.PooledMemory(256, stream, cuda.Event(), released)
    for reader in (11, 22):
        memory.lend(reader)
    address = memory.address
    done.clear()
    del memory
    assert done[-1] == ("cudaFreeAsync", address, released.handle)
    assert (("cudaDeviceSynchronize",) in done) is (gone is not None)
    recorded = [arguments[-1] for name, *arguments in done if name == "cudaEventRecord"]
    if gone is None:
        assert sorted(recorded) == [11, 22]
