"""Runs images through a backend, in passes within the limits on memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.geometry import ImageSize, Padding, Snap
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import InputError
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.gpu.device_arrays import is_on_gpu
from dinov2rt.runtime.gpu.device_inputs import device_group
from dinov2rt.runtime.inputs import ImageGroup, group_images


@dataclass(frozen=True, slots=True)
class Passes:
    """Groups images by size, and runs each group in as few passes of `backend` as allowed.

    A pass has at most `max_pixels` pixels, and at most as many images as the backend takes.
    """

    graph: GraphEntry
    architecture: Architecture
    backend: Backend
    max_pixels: int

    def groups(self, images: Any, snap: Snap) -> list[ImageGroup]:
        """Check `images`, arrays of a caller, and group them by the size of the graph's input.

        Raises:
            InputError: the images cannot be used, or are on a GPU that this backend does not read.
        """
        arguments = (InputFormat(self.graph.input_name), snap, self.max_pixels)
        side = self.architecture.patch_size
        if not is_on_gpu(images):
            return group_images(
                images,
                *arguments,
                patch_size=side,
                normalization=self.architecture.normalization,
                graph_pads=self.graph.pads,
            )
        self.check_gpu("images on the GPU")
        return [device_group(images, *arguments, patch_size=side, graph_pads=self.graph.pads)]

    def check_gpu(self, what: str) -> None:
        """Check that the backend reads and returns arrays on a GPU, which `what` needs.

        Raises:
            InputError: it does not.
        """
        if not self.backend.reads_gpu_arrays:
            raise InputError(
                f"{what}: only TensorRT plans and the fused graph of ONNX Runtime CUDA do "
                f"that, and this runs on {self.backend.description}; pass and take numpy arrays"
            )

    def feeds(self, group: ImageGroup) -> Iterator[dict[str, NDArray[Any]]]:
        """The inputs of the graph for each pass."""
        shared = {}
        if group.padding != Padding():
            before = (group.padding.top, group.padding.left)
            after = (group.padding.bottom, group.padding.right)
            shared["padding"] = np.array((0, 0, *before, 0, 0, *after), dtype=np.int64)
        for images in self._parts(group):
            yield {self.graph.input_name: images, **shared}

    def outputs(
        self, group: ImageGroup, names: tuple[str, ...], *, on_device: bool = False
    ) -> dict[str, Any]:
        """The outputs `names` for all images of the group; with `on_device` they stay on the GPU.

        Raises:
            InputError: the group takes several passes, whose outputs are on the GPU.
        """
        feeds = list(self.feeds(group))
        if on_device and len(feeds) > 1:
            raise InputError(
                f"{len(group.images)} images take {len(feeds)} passes; with device_outputs pass "
                f"at most {len(feeds[0][self.graph.input_name])} of this size"
            )
        parts = [self.backend.infer(feed, names, device_outputs=on_device) for feed in feeds]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _parts(self, group: ImageGroup) -> Iterator[NDArray[Any]]:
        side = self.architecture.patch_size
        size = ImageSize(group.grid.rows * side, group.grid.cols * side)
        step = max(1, self.max_pixels // size.pixels)
        step = min(step, self.backend.batch_limit(size) or step)
        for start in range(0, len(group.images), step):
            yield group.images[start : start + step]
