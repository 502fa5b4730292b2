"""Arrays on the GPU: exchanged with other libraries by DLPack, without a copy to the host."""

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
# Stream handles with a special meaning in DLPack.
_NO_SYNCHRONIZATION, _LEGACY_DEFAULT_STREAM = -1, 1


def is_on_gpu(images: Any) -> bool:
    """Whether `images` is on a GPU and readable (DLPack or `__cuda_array_interface__`)."""
    device = getattr(images, "__dlpack_device__", None)
    if device is not None:
        return device()[0] in (_CUDA, _CUDA_MANAGED)
    return hasattr(images, "__cuda_array_interface__")


@dataclass(frozen=True, slots=True)
class DeviceView:
    """An array on the GPU that another library owns; `owner` keeps it alive."""

    address: int
    spec: TensorSpec
    owner: Any


def view_of(images: Any, stream: Stream, ordinal: int) -> DeviceView:
    """A view of `images` on GPU `ordinal`; `stream` waits for the work that fills it.

    Raises:
        InputError: the array is on another GPU, is not contiguous, or cannot be read.
    """
    memory = require("cuda.core.utils", extra="cuda", purpose="reading arrays on the GPU")
    try:
        view = memory.StridedMemoryView.from_any_interface(images, stream_ptr=stream.handle)
    except Exception as error:  # each library raises its own type
        raise InputError(f"{type(images).__name__} on the GPU cannot be read: {error}") from error
    if view.device_id != ordinal:
        raise InputError(
            f"images are on GPU {view.device_id}, the model is on GPU {ordinal}; move the images"
        )
    if not is_contiguous(view.shape, view.strides):
        raise InputError(
            f"images on the GPU have shape {list(view.shape)} and strides {list(view.strides)}; "
            "make them contiguous first"
        )
    return DeviceView(view.ptr, TensorSpec(tuple(view.shape), view.dtype), view)


def is_contiguous(shape: Sequence[int], strides: Sequence[int] | None) -> bool:
    """Whether the array is C-contiguous; `strides` are in elements."""
    if strides is None or 0 in shape:
        return True
    expected = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    triples = zip(shape, strides, expected, strict=True)
    return all(size == 1 or stride == want for size, stride, want in triples)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """An output that stays on the GPU: contiguous, in memory of its own, never overwritten.

    Other libraries take it by DLPack, for example `torch.from_dlpack(array)`. The consumer's
    stream waits for the model; the host does not wait.
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
        """Consecutive rows; a view, not a copy."""
        start, stop, _ = rows.indices(len(self))
        spec = replace(self.spec, shape=(max(stop - start, 0), *self.shape[1:]))
        row_bytes = self.spec.num_bytes // max(len(self), 1)
        return replace(self, spec=spec, offset=self.offset + start * row_bytes)

    def reshape(self, *shape: int) -> Self:
        """The same elements in another shape; one size may be -1."""
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
            raise BufferError("the array stays on its GPU and is not copied")
        if stream != _NO_SYNCHRONIZATION:
            self.memory.lend(_LEGACY_DEFAULT_STREAM if stream is None else stream)
        core = require("cuda.core", extra="cuda", purpose="handing out arrays on the GPU")
        views = require("cuda.core.utils", extra="cuda", purpose="handing out arrays on the GPU")
        address = self.memory.address + self.offset
        buffer = core.Buffer.from_handle(address, self.spec.num_bytes, owner=self)
        view = views.StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype)
        return view.__dlpack__(max_version=max_version)
