"""Arrays on the GPU, taken from other libraries and handed to them without touching the host."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import numpy as np

from dinov2rt.errors import InputError
from dinov2rt.optional import require
from dinov2rt.runtime.gpu.cuda import PooledMemory, Stream
from dinov2rt.runtime.gpu.memory_layout import TensorSpec

# Device types of DLPack.
_CUDA, _CUDA_MANAGED = 2, 13
# Stream handles that DLPack gives a meaning of their own.
_NO_SYNCHRONIZATION, _LEGACY_DEFAULT_STREAM = -1, 1


def is_on_gpu(images: Any) -> bool:
    """Whether `images` lies on a GPU and can be read there (DLPack, `__cuda_array_interface__`)."""
    device = getattr(images, "__dlpack_device__", None)
    if device is not None:
        return device()[0] in (_CUDA, _CUDA_MANAGED)
    return hasattr(images, "__cuda_array_interface__")


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Somebody else's array on the GPU; `owner` keeps it from being freed."""

    address: int
    spec: TensorSpec
    owner: Any


def view_of(images: Any, stream: Stream, ordinal: int) -> DeviceView:
    """Where `images` lies on GPU `ordinal`; `stream` waits for the work that fills it.

    Raises:
        InputError: it lies elsewhere, is not contiguous, or does not let itself be read.
    """
    memory = require("cuda.core.utils", extra="tensorrt", purpose="reading arrays on the GPU")
    try:
        view = memory.StridedMemoryView.from_any_interface(images, stream_ptr=stream.handle)
    except Exception as error:  # each library has its own
        raise InputError(f"{type(images).__name__} on the GPU cannot be read: {error}") from error
    if view.device_id != ordinal:
        raise InputError(
            f"images lie on GPU {view.device_id}, the model on GPU {ordinal}; move them"
        )
    if not is_contiguous(view.shape, view.strides):
        raise InputError(
            f"images on the GPU have shape {list(view.shape)} and strides {list(view.strides)}; "
            "make them contiguous first"
        )
    return DeviceView(view.ptr, TensorSpec(tuple(view.shape), view.dtype), view)


def is_contiguous(shape: Sequence[int], strides: Sequence[int] | None) -> bool:
    """Whether elements follow each other in C order; `strides` count elements."""
    if strides is None or 0 in shape:
        return True
    expected = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    triples = zip(shape, strides, expected, strict=True)
    return all(size == 1 or stride == want for size, stride, want in triples)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """An output that stays on the GPU; contiguous, its own memory, no later call overwrites it.

    It is handed over by DLPack, e.g. with `torch.from_dlpack(array)`: the stream that takes it
    waits for the model, and the host for nothing.
    """

    memory: PooledMemory
    ordinal: int
    spec: TensorSpec
    offset: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.spec.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Self:
        """Some rows that follow each other; a view, not a copy."""
        start, stop, _ = rows.indices(len(self))
        spec = replace(self.spec, shape=(max(stop - start, 0), *self.shape[1:]))
        row_bytes = self.spec.num_bytes // max(len(self), 1)
        return replace(self, spec=spec, offset=self.offset + start * row_bytes)

    def reshape(self, *shape: int) -> Self:
        """The same elements in other axes, one of which may be -1."""
        known = prod(size for size in shape if size != -1)
        count = prod(self.shape)
        sizes = tuple(count // known if size == -1 else size for size in shape)
        if prod(sizes) != count or min(shape) < -1:
            raise InputError(f"{list(self.shape)} cannot be reshaped to {list(shape)}")
        return replace(self, spec=replace(self.spec, shape=sizes))

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule, safe to read in `stream`; see Python's array API standard."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the array is handed over where it lies, without a copy")
        if stream != _NO_SYNCHRONIZATION:
            self.memory.lend(_LEGACY_DEFAULT_STREAM if stream is None else stream)
        core = require("cuda.core", extra="tensorrt", purpose="handing out arrays on the GPU")
        views = require(
            "cuda.core.utils", extra="tensorrt", purpose="handing out arrays on the GPU"
        )
        address = self.memory.address + self.offset
        buffer = core.Buffer.from_handle(address, self.spec.num_bytes, owner=self)
        view = views.StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype)
        return view.__dlpack__(max_version=max_version)
