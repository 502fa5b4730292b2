"""The inputs of the graph for ONNX Runtime CUDA that depend on the image's size alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.position import COLUMNS_INPUT, ROWS_INPUT, resampling_matrices
from dinov2rt.bundle.signature import InputFormat

_GRIDS_KEPT = 64


@dataclass(frozen=True, slots=True)
class GridInputs:
    """Padding and grid of a call; hashable, as the key of a prepared shape.

    `padding` is ONNX's `pads` for the layout of the images. It is negative at the bottom and at the
    right if pixels are dropped there to leave whole patches.
    """

    architecture: Architecture
    padding: tuple[int, ...]
    grid: Grid

    @classmethod
    def of(cls, architecture: Architecture, input_name: str, inputs: Mapping[str, Any]) -> Self:
        """From the portable graph's `inputs` of a call, whose padding is for [B, 3, H, W]."""
        rows, columns = (1, 2) if input_name == InputFormat.PIXELS else (2, 3)
        shape = inputs[input_name].shape
        _, _, top, left, _, _, bottom, right = map(int, inputs.get("padding", np.zeros(8)))
        padding = [0] * 8
        sides, side = [], architecture.patch_size
        for axis, before, after in ((rows, top, bottom), (columns, left, right)):
            pixels = shape[axis] + before + after
            padding[axis], padding[4 + axis] = before, after - pixels % side
            sides.append(pixels // side)
        return cls(architecture, tuple(padding), Grid(*sides))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The inputs by name: `padding` int64 [8], and the float32 matrices of the positions."""
        rows, columns = _matrices(self.architecture, self.grid)
        padding = np.array(self.padding, dtype=np.int64)
        return {"padding": padding, ROWS_INPUT: rows, COLUMNS_INPUT: columns}


@lru_cache(maxsize=_GRIDS_KEPT)
def _matrices(
    architecture: Architecture, grid: Grid
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return resampling_matrices(architecture, grid)
