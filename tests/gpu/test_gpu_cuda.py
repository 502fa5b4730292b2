"""The CUDA calls alone, without TensorRT, to tell their failures from those of a backend."""

import gc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinov2rt.errors import BackendError, InputError
from dinov2rt.runtime.gpu.cuda import (
    DeviceMemory,
    Event,
    Gpu,
    PinnedMemory,
    PooledMemory,
    Stopwatch,
    Stream,
    call,
    capture,
)
from dinov2rt.runtime.gpu.device_arrays import DeviceArray, is_on_gpu, view_of
from dinov2rt.runtime.gpu.memory_layout import TensorSpec

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

MIB = 2**20
SPEC = TensorSpec((2, 3, 4), np.dtype(np.float32))

needs_torch = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this torch has no CUDA, and so no array on the GPU"
)


@pytest.fixture
def stream(gpu: Gpu) -> Stream:  # noqa: ARG001
    return Stream()


def numbers(start: float) -> NDArray[np.float32]:
    return np.arange(start, start + 24, dtype=np.float32).reshape(SPEC.shape)


def filled(start: float) -> PinnedMemory:
    memory = PinnedMemory(SPEC.num_bytes)
    memory.array(0, SPEC)[...] = numbers(start)
    return memory


def assert_holds(memory: PinnedMemory, start: float) -> None:
    np.testing.assert_array_equal(memory.array(0, SPEC), numbers(start))


class Detour:
    """A copy from `source` to `target`, by way of the GPU."""

    def __init__(self) -> None:
        self.source, self.target = filled(1), filled(0)
        self.there = DeviceMemory(SPEC.num_bytes)

    def enqueue(self, stream: Stream) -> None:
        stream.copy(self.there.address, self.source.address, SPEC.num_bytes)
        stream.copy(self.target.address, self.there.address, SPEC.num_bytes)


def pooled(stream: Stream, source: PinnedMemory, size: int = SPEC.num_bytes) -> PooledMemory:
    """Pooled memory that `stream` fills from `source`; it is freed in another stream."""
    ready = Event()
    memory = PooledMemory(size, stream, ready, Stream())
    stream.copy(memory.address, source.address, SPEC.num_bytes)
    ready.record(stream.handle)
    return memory


def used_bytes() -> int:
    free, total = call("cudaMemGetInfo")
    return int(total) - int(free)


def test_a_gpu_has_a_name_a_target_and_a_driver(gpu: Gpu) -> None:
    assert gpu.name
    assert gpu.target.removeprefix("sm").isdigit()
    assert gpu.driver[0].isdigit(), "NVML or the driver's own file tells it on every Linux"
    assert gpu.cuda >= (12, 0)


def test_free_and_total_memory_are_reported() -> None:
    free, total = call("cudaMemGetInfo")
    assert 0 < free <= total


def test_bytes_survive_a_copy_to_the_gpu_and_back(stream: Stream) -> None:
    detour = Detour()
    detour.enqueue(stream)
    stream.synchronize()
    assert_holds(detour.target, 1)


def test_captured_work_runs_only_when_it_is_launched(stream: Stream) -> None:
    detour = Detour()
    graph = capture(stream, lambda: detour.enqueue(stream))
    stream.synchronize()
    assert_holds(detour.target, 0)
    for start in (2, 3):
        detour.source.array(0, SPEC)[...] = numbers(start)
        graph.launch(stream)
        stream.synchronize()
        assert_holds(detour.target, start)


def test_a_capture_that_fails_leaves_the_stream_usable(stream: Stream) -> None:
    with pytest.raises(BackendError, match="cudaStreamSynchronize failed"):
        capture(stream, stream.synchronize)
    detour = Detour()
    detour.enqueue(stream)
    stream.synchronize()
    assert_holds(detour.target, 1)


def test_pooled_memory_is_lent_and_freed(stream: Stream) -> None:
    reader, back = Stream(), PinnedMemory(SPEC.num_bytes)
    before = used_bytes()
    for start in range(200):  # 800 MiB, were they not given back
        source = filled(start)
        memory = pooled(stream, source, size=4 * MIB)
        memory.lend(reader.handle)
        reader.copy(back.address, memory.address, SPEC.num_bytes)
        del memory  # while it is read
        reader.synchronize()
        assert_holds(back, start)
    assert used_bytes() - before <= 128 * MIB


def test_a_stopwatch_measures_a_long_copy_longer_than_no_work(stream: Stream) -> None:
    there, source = DeviceMemory(64 * MIB), PinnedMemory(64 * MIB)
    watch = Stopwatch(stream, num_marks=3)
    watch.mark()
    stream.copy(there.address, source.address, 64 * MIB)
    watch.mark()
    watch.mark()
    copy_ms, nothing_ms = watch.laps_ms()
    assert copy_ms > 0.1 > nothing_ms >= 0


def test_events_order_two_streams() -> None:
    first, second, done = Stream(), Stream(), Event()
    source, there, back = filled(3), DeviceMemory(SPEC.num_bytes), PinnedMemory(SPEC.num_bytes)
    first.copy(there.address, source.address, SPEC.num_bytes)
    done.record(first.handle)
    done.wait(second.handle)
    second.copy(back.address, there.address, SPEC.num_bytes)
    second.synchronize()
    assert_holds(back, 3)


@needs_torch
def test_torch_takes_an_array_without_a_copy(gpu: Gpu, stream: Stream) -> None:
    source = filled(7)
    array = DeviceArray(pooled(stream, source), gpu.ordinal, SPEC)
    assert is_on_gpu(array)
    tensor = torch.from_dlpack(array)
    assert (tensor.data_ptr(), tuple(tensor.shape)) == (array.memory.address, SPEC.shape)
    rows = torch.from_dlpack(array[1:2])
    del array
    gc.collect()
    np.testing.assert_array_equal(tensor.cpu().numpy(), numbers(7))
    np.testing.assert_array_equal(rows.cpu().numpy(), numbers(7)[1:2])


class Bare:
    """A tensor that offers `__cuda_array_interface__` and nothing else."""

    def __init__(self, tensor: torch.Tensor) -> None:
        interface = tensor.__cuda_array_interface__
        self.__cuda_array_interface__ = interface | {"version": 3, "stream": 1}
        self.owner = tensor


@needs_torch
@pytest.mark.parametrize("offer", [lambda tensor: tensor, Bare])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_array_of_another_library_is_read_without_a_copy(
    gpu: Gpu, stream: Stream, offer: type[Bare], dtype: torch.dtype
) -> None:
    tensor = torch.arange(24, dtype=dtype, device="cuda").reshape(2, 3, 4)
    view = view_of(offer(tensor), stream, gpu.ordinal)
    assert view.address == tensor.data_ptr()
    assert view.spec == TensorSpec((2, 3, 4), tensor.cpu().numpy().dtype)
    back = PinnedMemory(view.spec.num_bytes)
    stream.copy(back.address, view.address, view.spec.num_bytes)
    stream.synchronize()
    np.testing.assert_array_equal(back.array(0, view.spec), tensor.cpu().numpy())


@needs_torch
def test_an_array_with_gaps_is_refused(gpu: Gpu, stream: Stream) -> None:
    tensor = torch.zeros(2, 8, device="cuda")[:, ::2]
    with pytest.raises(InputError, match="make them contiguous first"):
        view_of(tensor, stream, gpu.ordinal)
