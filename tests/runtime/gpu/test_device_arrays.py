from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dinov2rt.bundle.geometry import Grid, Padding, Snap
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import InputError
from dinov2rt.runtime.gpu.device_arrays import DeviceArray, is_contiguous, is_on_gpu
from dinov2rt.runtime.gpu.device_inputs import device_group
from dinov2rt.runtime.gpu.memory_layout import TensorSpec

PIXELS, IMAGES = InputFormat.PIXELS, InputFormat.IMAGES


class Elsewhere:
    """A fake array on a GPU: it has a shape, a dtype and a device, but no elements."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "uint8") -> None:
        self.shape, self.dtype = shape, dtype

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: None) -> "Elsewhere":
        assert index is None
        return Elsewhere((1, *self.shape), self.dtype)


class Lent:
    """Memory that records the streams that it was lent to."""

    address = 4096

    def __init__(self) -> None:
        self.readers: list[int] = []

    def lend(self, reader: int) -> None:
        self.readers.append(reader)


def output(*shape: int) -> DeviceArray:
    memory: Any = Lent()
    return DeviceArray(memory, 0, TensorSpec(shape, np.dtype(np.float32)))


@pytest.mark.parametrize(
    "array", [np.zeros(3), torch.zeros(3), torch.zeros(3, requires_grad=True), [1], "x", None]
)
def test_arrays_on_the_host_are_not_on_a_gpu(array: object) -> None:
    assert not is_on_gpu(array)


def test_arrays_on_a_gpu_are_recognized_by_either_protocol() -> None:
    assert is_on_gpu(Elsewhere((1, 14, 14, 3)))
    assert is_on_gpu(SimpleNamespace(__cuda_array_interface__={"version": 3}))
    pinned = SimpleNamespace(__dlpack_device__=lambda: (3, 0))
    assert not is_on_gpu(pinned)


@pytest.mark.parametrize("shape", [(4, 6, 8, 3), (1, 6, 8, 3), (4, 1, 8, 3), (0, 6, 8, 3), (5,)])
def test_contiguous_is_what_numpy_says(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.float32)
    for candidate in (array, array[::2], array.T, np.broadcast_to(array, (2, *shape))):
        strides = [stride // array.itemsize for stride in candidate.strides]
        assert is_contiguous(candidate.shape, strides) == candidate.flags.c_contiguous


def test_no_strides_mean_contiguous() -> None:
    assert is_contiguous((2, 3), None)


def test_an_output_is_cut_and_reshaped_without_moving() -> None:
    patches = output(4, 6, 8)
    grid = patches.reshape(4, 2, 3, -1)
    assert (grid.shape, len(grid), grid.dtype) == ((4, 2, 3, 8), 4, np.float32)
    row = grid[2:3]
    assert (row.shape, row.offset) == ((1, 2, 3, 8), 2 * 6 * 8 * 4)
    assert row.memory is patches.memory
    assert row[0:1].offset == row.offset
    assert row.reshape(-1).shape == (48,)


def test_a_reshape_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^\[4, 6, 8\] cannot be reshaped to \[5, -1\]$"):
        output(4, 6, 8).reshape(5, -1)


def test_an_output_is_not_copied_or_moved_on_the_way_out() -> None:
    for options in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match="is not copied"):
            output(2, 3).__dlpack__(**options)
    assert output(2, 3).__dlpack_device__() == (2, 0)


@pytest.mark.parametrize(
    ("snap", "shape", "grid"),
    [
        (Snap.CROP, (2, 230, 239, 3), Grid(16, 17)),
        (Snap.ERROR, (2, 224, 238, 3), Grid(16, 17)),
        (Snap.PAD, (2, 224, 238, 3), Grid(16, 17)),
        (Snap.CROP, (14, 28, 3), Grid(1, 2)),
    ],
)
def test_images_on_the_gpu_go_as_they_are(snap: Snap, shape: tuple[int, ...], grid: Grid) -> None:
    group = device_group(Elsewhere(shape), PIXELS, snap, 10**6, patch_size=14)
    assert (group.grid, group.padding) == (grid, Padding())
    assert len(group.images.shape) == 4
    assert group.positions == tuple(range(group.images.shape[0]))


@pytest.mark.parametrize(
    ("images", "snap", "message"),
    [
        (
            Elsewhere((1, 230, 239, 3)),
            Snap.PAD,
            'snap="pad" runs on the host, but the images of 230x239 are on the GPU; '
            'resize them to 238x252 there, or use snap="crop"',
        ),
        (
            Elsewhere((1, 230, 239, 3)),
            Snap.ERROR,
            "height 230 is not a multiple of 14",
        ),
        (
            Elsewhere((1, 224, 224, 3), "torch.float16"),
            Snap.CROP,
            "got dtype float16, allowed is uint8 [B, H, W, 3] on the GPU",
        ),
        (
            Elsewhere((1, 3, 224, 224)),
            Snap.CROP,
            "got shape [1, 3, 224, 224], allowed is uint8 [B, H, W, 3] on the GPU",
        ),
        (
            Elsewhere((0, 224, 224, 3)),
            Snap.CROP,
            "got shape [0, 224, 224, 3], allowed is uint8 [B, H, W, 3] on the GPU",
        ),
        (
            Elsewhere((1, 1400, 1400, 3)),
            Snap.CROP,
            "image of 1400x1400 has 1960000 pixels, more than max_pixels=1000000",
        ),
    ],
)
def test_images_on_the_gpu_that_cannot_be_used(images: Elsewhere, snap: Snap, message: str) -> None:
    with pytest.raises(InputError) as error:
        device_group(images, PIXELS, snap, 10**6, patch_size=14)
    assert str(error.value).startswith(message)


def test_a_normalized_graph_takes_floats_on_the_gpu() -> None:
    group = device_group(
        Elsewhere((2, 3, 28, 42), "torch.float32"), IMAGES, Snap.CROP, 10**6, patch_size=14
    )
    assert group.grid == Grid(2, 3)
