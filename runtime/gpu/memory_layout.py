"""Where tensors and scratch memory stand in one allocation."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

ALIGNMENT = 256
"""Bytes; what TensorRT asks of every tensor's address and of scratch memory."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor whose elements are contiguous."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        """How many bytes its elements take."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """Byte offset of each part of an allocation of `total_bytes`."""

    offsets: Mapping[str, int]
    total_bytes: int

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "MemoryLayout":
        """Parts of `sizes` bytes one after the other, each aligned and none of them shared."""
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        return cls(MappingProxyType(offsets), end)
