"""The few CUDA calls that the TensorRT backend makes; each failure is one line.

Handles free themselves once nothing refers to them, so that an array on the GPU outlives the model
that made it for as long as somebody reads it.
"""

import contextlib
import ctypes
import re
import weakref
from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class Gpu:
    """The current device.

    `target` is its compute capability as in "sm80", `driver` the version of its driver as in
    "580.65.06", or "unknown (CUDA 13.0)" where nothing tells it, and `cuda` the newest CUDA that
    the driver runs, (major, minor).
    """

    ordinal: int
    name: str
    target: str
    driver: str
    cuda: tuple[int, int]


def find_gpu() -> Gpu:
    """The current NVIDIA GPU.

    Raises:
        BackendError: there is none, or no driver for it.
        MissingDependencyError: cuda-python is not installed.
    """
    ordinal = call("cudaGetDevice")
    properties = call("cudaGetDeviceProperties", ordinal)
    cuda = _major_minor(call("cudaDriverGetVersion"))
    return Gpu(
        ordinal=ordinal,
        name=properties.name.decode().rstrip("\0"),
        target=f"sm{properties.major}{properties.minor}",
        # Of an unknown one its CUDA is kept: what was verified with another must not count here.
        driver=_driver_version() or "unknown (CUDA {}.{})".format(*cuda),
        cuda=cuda,
    )


def use_gpu(ordinal: int) -> None:
    """Make GPU number `ordinal` this thread's current one.

    Raises:
        BackendError: there is no GPU of that number, or none at all.
        MissingDependencyError: cuda-python is not installed.
    """
    count = call("cudaGetDeviceCount")
    if not 0 <= ordinal < count:
        raise BackendError(f'device "cuda:{ordinal}": GPUs here are cuda:0 to cuda:{count - 1}')
    call("cudaSetDevice", ordinal)


def needed_cuda() -> tuple[int, int]:
    """The oldest CUDA of a driver that runs the installed libraries.

    Drivers run everything of their own major version ("minor version compatibility" in NVIDIA's
    CUDA Compatibility guide).
    """
    return _major_minor(call("cudaRuntimeGetVersion"))[0], 0


def call(function: str, *arguments: Any) -> Any:
    """Call `function` of the CUDA runtime and return what it returns besides its status.

    That is None, a value, or a tuple of several.

    Raises:
        BackendError: the status is not success.
    """
    runtime = _runtime()
    status, *values = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        _, message = runtime.cudaGetErrorString(status)
        raise BackendError(f"{function} failed: {message.decode()} ({status.name})")
    return tuple(values) if len(values) > 1 else next(iter(values), None)


class Stream:
    """Work that runs in order. It never waits for the legacy default stream."""

    def __init__(self) -> None:
        self.handle = int(call("cudaStreamCreateWithFlags", _runtime().cudaStreamNonBlocking))
        _free_with(self, "cudaStreamDestroy", self.handle)

    def synchronize(self) -> None:
        """Wait until all that was enqueued is done."""
        call("cudaStreamSynchronize", self.handle)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Enqueue a copy between any two addresses, host memory being pinned."""
        kind = _runtime().cudaMemcpyKind.cudaMemcpyDefault
        call("cudaMemcpyAsync", target, source, num_bytes, kind, self.handle)


class Event:
    """A point in a stream's work; done from the start, until it is recorded.

    One that is `timed` keeps when it was reached, and costs a little more.
    """

    def __init__(self, *, timed: bool = False) -> None:
        flags = _runtime().cudaEventDefault if timed else _runtime().cudaEventDisableTiming
        self.handle = int(call("cudaEventCreateWithFlags", flags))
        _free_with(self, "cudaEventDestroy", self.handle)

    def record(self, stream: int) -> None:
        """Stand for what was enqueued so far in the stream with this handle."""
        call("cudaEventRecord", self.handle, stream)

    def hold_up(self, stream: int) -> None:
        """Let what is enqueued from now on in the stream with this handle wait for it."""
        call("cudaStreamWaitEvent", stream, self.handle, 0)

    def synchronize(self) -> None:
        """Wait on the host until the work before it is done."""
        call("cudaEventSynchronize", self.handle)

    def ms_since(self, earlier: "Event") -> float:
        """Time on the GPU from `earlier` until this one, both of them timed and done."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle))


class Stopwatch:
    """Points in the work of `stream`, `num_marks` of them, and the time between them."""

    def __init__(self, stream: Stream, num_marks: int) -> None:
        self._stream = stream
        # All made beforehand: making one in the midst of the work would hold it up.
        self._events = [Event(timed=True) for _ in range(num_marks)]
        self._unused = iter(self._events)

    def mark(self) -> None:
        """Mark what was enqueued so far."""
        next(self._unused).record(self._stream.handle)

    def laps_ms(self) -> tuple[float, ...]:
        """From each mark to the next, all of them being set; waits for the last."""
        self._events[-1].synchronize()
        return tuple(after.ms_since(before) for before, after in pairwise(self._events))


class DeviceMemory:
    """`size` bytes on the GPU, aligned for TensorRT."""

    def __init__(self, size: int) -> None:
        self.address = int(call("cudaMalloc", size))
        self.size = size
        _free_with(self, "cudaFree", self.address)


class PooledMemory:
    """Bytes on the GPU, taken in the order of `stream` and given back in that of `released`.

    Nothing waits on the host. `ready` stands for the work in `stream` that fills them.
    """

    # Not given back in `stream`: whoever drops the last reference may do so while that is captured.
    def __init__(self, size: int, stream: Stream, ready: Event, released: Stream) -> None:
        self.address = int(call("cudaMallocAsync", size, stream.handle))
        self.size = size
        self.ready = ready
        self._readers: set[int] = set()
        # The callback refers to all it needs, and not to this object.
        free = weakref.finalize(self, _give_back, self.address, ready, self._readers, released)
        free.atexit = False

    def lend(self, reader: int) -> None:
        """Let the stream with the handle `reader` see what was filled in."""
        self.ready.hold_up(reader)
        self._readers.add(reader)


class PinnedMemory:
    """`size` bytes on the host that the GPU copies to and from by itself."""

    def __init__(self, size: int) -> None:
        self.address = int(call("cudaMallocHost", size))
        self.size = size
        _free_with(self, "cudaFreeHost", self.address)

    def array(self, offset: int, spec: TensorSpec) -> NDArray[Any]:
        """A view of a part of it; valid no longer than this object."""
        part = (ctypes.c_byte * spec.num_bytes).from_address(self.address + offset)
        return np.ndarray(spec.shape, spec.dtype, buffer=memoryview(part))


class CapturedGraph:
    """Work that was enqueued in a stream once and is launched as a whole from then on."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        _free_with(self, "cudaGraphExecDestroy", handle)

    def launch(self, stream: Stream) -> None:
        """Enqueue it."""
        call("cudaGraphLaunch", self._handle, stream.handle)


def capture(stream: Stream, enqueue: Callable[[], None]) -> CapturedGraph:
    """Record what `enqueue` puts into `stream`, run nothing of it, and move it to the GPU.

    Raises:
        BackendError: it enqueued what cannot be captured, or failed; `stream` is usable again.
    """
    # Thread-local: other threads may allocate meanwhile.
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
    """Call `function` on `handle` when `owner` is gone; its status has nobody to go to."""
    # Not at exit: the driver is on its way out by then, and frees everything itself.
    weakref.finalize(owner, getattr(_runtime(), function), handle).atexit = False


def _give_back(address: int, ready: Event, readers: set[int], released: Stream) -> None:
    """Free pooled memory once it was filled, and read by those that it was lent to."""
    ready.hold_up(released.handle)
    done = Event()
    for reader in readers:
        done.record(reader)
        done.hold_up(released.handle)
    call("cudaFreeAsync", address, released.handle)


def _runtime() -> ModuleType:
    return require("cuda.bindings.runtime", extra="tensorrt", purpose="the TensorRT backend")


def _driver_version() -> str | None:
    """That of the driver, or None where neither NVML nor the driver's own file tells."""
    # Whatever is wrong with NVML, or with a cuda-core of another age, the GPU is there.
    with contextlib.suppress(Exception):
        system = require("cuda.core.system", extra="tensorrt", purpose="the version of the driver")
        return ".".join(f"{part:02}" for part in system.get_kernel_mode_driver_version())
    with contextlib.suppress(OSError):
        text = _DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
        if (version := re.search(r"\s(\d+(\.\d+)+)\s", text)) is not None:
            return version[1]
    return None


def _major_minor(version: int) -> tuple[int, int]:
    """CUDA writes 13.2 as 13020."""
    return version // 1000, version % 1000 // 10
