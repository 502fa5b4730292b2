"""Offsets of tensors and scratch memory in one allocation."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

ALIGNMENT = 256
"""The alignment in bytes that TensorRT requires of tensors' addresses and of scratch memory."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a contiguous tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """Byte offset of each part in an allocation of `total_bytes`."""

    offsets: Mapping[str, int]
    total_bytes: int

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "MemoryLayout":
        """Place parts of `sizes` bytes one after the other, each of them aligned."""
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        return cls(MappingProxyType(offsets), end)
