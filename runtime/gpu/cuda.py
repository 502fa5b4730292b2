"""The few CUDA calls that the GPU backends make. A failed call raises an error of one line.

A handle is freed when the last reference to it is gone. An output on the GPU therefore stays valid
after its model is closed.
"""

import contextlib
import ctypes
import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import BackendError
from dinov2rt.optional import require
from dinov2rt.runtime.gpu.memory_layout import TensorSpec

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_WITHOUT_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary")
NO_DRIVER = "there is no NVIDIA driver"
"""The reason in every message about a GPU on a machine without one."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The current device.

    `target` is its compute capability, such as "sm80". `driver` is the driver's version, such as
    "580.65.06", or "unknown (CUDA 13.0)" if the version cannot be read. `cuda` is the newest CUDA
    version that the driver supports: (major, minor).
    """

    ordinal: int
    name: str
    target: str
    driver: str
    cuda: tuple[int, int]


def find_gpu() -> Gpu:
    """The current NVIDIA GPU.

    Raises:
        BackendError: there is no GPU, or no driver for it.
        MissingDependencyError: cuda-python is not installed.
    """
    ordinal = call("cudaGetDevice")
    properties = call("cudaGetDeviceProperties", ordinal)
    cuda = _major_minor(call("cudaDriverGetVersion"))
    return Gpu(
        ordinal=ordinal,
        name=properties.name.decode().rstrip("\0"),
        target=f"sm{properties.major}{properties.minor}",
        # The CUDA version stands in for an unknown driver version: a plan that was verified with
        # another driver does not count as verified with this one.
        driver=_driver_version() or "unknown (CUDA {}.{})".format(*cuda),
        cuda=cuda,
    )


def check_gpu(ordinal: int) -> None:
    """Check that there is a GPU `ordinal`.

    Raises:
        BackendError: there is no GPU with that number, or no GPU at all.
        MissingDependencyError: cuda-python is not installed.
    """
    count = call("cudaGetDeviceCount")
    if not 0 <= ordinal < count:
        raise BackendError(f'device "cuda:{ordinal}": GPUs here are cuda:0 to cuda:{count - 1}')


@contextlib.contextmanager
def on_gpu(ordinal: int) -> Iterator[None]:
    """Make GPU `ordinal` this thread's current device, and afterwards the one before it again.

    Torch and others use the current device, too. A device that this process has not used yet is not
    made current again, because that would create a context on it, which takes memory there.
    """
    before = call("cudaGetDevice")
    call("cudaSetDevice", ordinal)  # a new thread needs it even if the number is the same
    try:
        yield
    finally:
        if before != ordinal and _has_context(before):
            call("cudaSetDevice", before)


def _has_context(ordinal: int) -> bool:
    driver = require("cuda.bindings.driver", extra="cuda", purpose="a backend on an NVIDIA GPU")
    status, device = driver.cuDeviceGet(ordinal)
    if status != driver.CUresult.CUDA_SUCCESS:
        return False
    status, _, is_active = driver.cuDevicePrimaryCtxGetState(device)
    return bool(status == driver.CUresult.CUDA_SUCCESS and is_active)


def needed_cuda() -> tuple[int, int]:
    """The lowest CUDA version, (major, minor), that the driver must support.

    A driver runs every library of its own major version ("minor version compatibility" in NVIDIA's
    CUDA Compatibility guide).
    """
    return _major_minor(call("cudaRuntimeGetVersion"))[0], 0


def call(function: str, *arguments: Any) -> Any:
    """Call `function` of the CUDA runtime and return its results without the status.

    No result is None, one result is the value, and several are a tuple.

    Raises:
        BackendError: the status is not success.
    """
    runtime = _runtime()
    status, *values = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        if status.name in _WITHOUT_DRIVER and _driver_version() is None:
            raise BackendError(NO_DRIVER)
        _, message = runtime.cudaGetErrorString(status)
        raise BackendError(f"{function} failed: {message.decode()} ({status.name})")
    return tuple(values) if len(values) > 1 else next(iter(values), None)


class Stream:
    """A CUDA stream. It does not synchronize with the legacy default stream."""

    def __init__(self) -> None:
        self.handle: int = int(call("cudaStreamCreateWithFlags", _runtime().cudaStreamNonBlocking))
        _free_with(self, "cudaStreamDestroy", self.handle)

    def synchronize(self) -> None:
        """Wait until all enqueued work is done."""
        call("cudaStreamSynchronize", self.handle)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Enqueue a copy between two addresses; host memory must be pinned."""
        kind = _runtime().cudaMemcpyKind.cudaMemcpyDefault
        call("cudaMemcpyAsync", target, source, num_bytes, kind, self.handle)


class Event:
    """A CUDA event. It counts as complete until it is recorded.

    A `timed` event also keeps a timestamp, which makes it slightly slower.
    """

    def __init__(self, *, timed: bool = False) -> None:
        flags = _runtime().cudaEventDefault if timed else _runtime().cudaEventDisableTiming
        self.handle: int = int(call("cudaEventCreateWithFlags", flags))
        _free_with(self, "cudaEventDestroy", self.handle)

    def record(self, stream: int) -> None:
        """Capture the work that is enqueued so far in the stream with this handle."""
        call("cudaEventRecord", self.handle, stream)

    def wait(self, stream: int) -> None:
        """Make later work in the stream with this handle wait for this event."""
        call("cudaStreamWaitEvent", stream, self.handle, 0)

    def synchronize(self) -> None:
        """Block the host until the event is complete."""
        call("cudaEventSynchronize", self.handle)

    def ms_since(self, earlier: "Event") -> float:
        """GPU time from `earlier` to this event; both must be timed and complete."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle))


class Stopwatch:
    """Times the work between `num_marks` marks in `stream`."""

    def __init__(self, stream: Stream, num_marks: int) -> None:
        self._stream = stream
        # All events are created up front: creating one between two marks would add to the time.
        self._events = [Event(timed=True) for _ in range(num_marks)]
        self._unused = iter(self._events)

    def mark(self) -> None:
        """Record the next mark after the work that is enqueued so far."""
        next(self._unused).record(self._stream.handle)

    def laps_ms(self) -> tuple[float, ...]:
        """GPU time between consecutive marks; waits for the last one. All marks must be set."""
        self._events[-1].synchronize()
        return tuple(after.ms_since(before) for before, after in pairwise(self._events))


class DeviceMemory:
    """`size` bytes on the GPU, aligned for TensorRT."""

    def __init__(self, size: int) -> None:
        self.address: int = int(call("cudaMalloc", size))
        self.size = size
        _free_with(self, "cudaFree", self.address)


class PooledMemory:
    """Stream-ordered memory on the GPU: allocated in `stream`, freed in `released`.

    The host never waits. `ready` is the event after the work in `stream` that fills the memory.
    """

    # Not freed in `stream`: the last reference may be dropped while `stream` is being captured.
    def __init__(self, size: int, stream: Stream, ready: Event, released: Stream) -> None:
        self.address: int = int(call("cudaMallocAsync", size, stream.handle))
        self.size = size
        self.ready = ready
        self._readers: set[int] = set()
        # The callback must not refer to this object, which would then never be freed.
        # `read` is made here, because an event belongs to the device that is current now.
        read = Event()
        free = weakref.finalize(
            self, _free_pooled, self.address, ready, self._readers, read, released
        )
        free.atexit = False

    def lend(self, reader: int) -> None:
        """Make the memory safe to read in the stream with the handle `reader`."""
        self.ready.wait(reader)
        self._readers.add(reader)


class PinnedMemory:
    """`size` bytes of page-locked host memory, for asynchronous copies."""

    def __init__(self, size: int) -> None:
        self.address: int = int(call("cudaMallocHost", size))
        self.size = size
        _free_with(self, "cudaFreeHost", self.address)

    def array(self, offset: int, spec: TensorSpec) -> NDArray[Any]:
        """A view of this memory at `offset`; valid as long as this object lives."""
        part = (ctypes.c_byte * spec.num_bytes).from_address(self.address + offset)
        return np.ndarray(spec.shape, spec.dtype, buffer=memoryview(part))


class CapturedGraph:
    """A CUDA graph: work that was recorded once and is launched as a whole."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        _free_with(self, "cudaGraphExecDestroy", handle)

    def launch(self, stream: Stream) -> None:
        """Enqueue the graph."""
        call("cudaGraphLaunch", self._handle, stream.handle)


def capture(stream: Stream, enqueue: Callable[[], None]) -> CapturedGraph:
    """Record the work that `enqueue` puts into `stream`, without running it, and upload the graph.

    Raises:
        BackendError: `enqueue` failed or its work cannot be captured; `stream` stays usable.
    """
    # Thread-local: other threads may allocate memory during the capture.
    mode = _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    call("cudaStreamBeginCapture", stream.handle, mode)
    try:
        enqueue()
    except BaseException:
        _runtime().cudaStreamEndCapture(stream.handle)
        raise
    graph = call("cudaStreamEndCapture", stream.handle)
    try:
        executable = call("cudaGraphInstantiate", graph, 0)
    finally:
        call("cudaGraphDestroy", graph)
    captured = CapturedGraph(executable)
    call("cudaGraphUpload", executable, stream.handle)
    return captured


def _free_with(owner: object, function: str, handle: Any) -> None:
    """Call `function` on `handle` when `owner` is gone. Errors are ignored: no caller is left."""
    # Not at exit: the driver may be gone by then, and frees everything itself.
    weakref.finalize(owner, getattr(_runtime(), function), handle).atexit = False


def _free_pooled(
    address: int, ready: Event, readers: set[int], read: Event, released: Stream
) -> None:
    """Free pooled memory after it is filled and after the work so far in the `readers`' streams.

    `read` is recorded in one of these after the other.
    """
    ready.wait(released.handle)
    try:
        for reader in readers:
            read.record(reader)
            read.wait(released.handle)
    except BackendError:  # a reader destroyed its stream; its work may still be running
        call("cudaDeviceSynchronize")
    call("cudaFreeAsync", address, released.handle)


def _runtime() -> ModuleType:
    return require("cuda.bindings.runtime", extra="cuda", purpose="a backend on an NVIDIA GPU")


def _driver_version() -> str | None:
    """The driver's version from NVML or /proc, or None if neither has it."""
    # The GPU works even if NVML is broken or cuda-core has another version.
    with contextlib.suppress(Exception):
        system = require("cuda.core.system", extra="cuda", purpose="the version of the driver")
        return ".".join(f"{part:02}" for part in system.get_kernel_mode_driver_version())
    with contextlib.suppress(OSError):
        text = _DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
        if (version := re.search(r"\s(\d+(\.\d+)+)\s", text)) is not None:
            return version[1]
    return None


def _major_minor(version: int) -> tuple[int, int]:
    """Decode CUDA's version number: 13020 is 13.2."""
    return version // 1000, version % 1000 // 10
