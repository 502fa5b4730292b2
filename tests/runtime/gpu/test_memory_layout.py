import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dinov2rt.runtime.gpu.memory_layout import ALIGNMENT, MemoryLayout, TensorSpec


def test_a_tensor_takes_its_elements_bytes() -> None:
    assert TensorSpec((2, 37, 384), np.dtype(np.float32)).num_bytes == 2 * 37 * 384 * 4
    assert TensorSpec((32, 518, 518, 3), np.dtype(np.uint8)).num_bytes == 32 * 518 * 518 * 3


def test_more_bytes_than_an_int32_counts() -> None:
    assert TensorSpec((64, 5476, 1536), np.dtype(np.float32)).num_bytes == 64 * 5476 * 1536 * 4


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 10_000), min_size=1))
def test_parts_are_aligned_and_do_not_overlap(sizes: dict[str, int]) -> None:
    layout = MemoryLayout.of(sizes)
    parts = sorted((layout.offsets[name], size) for name, size in sizes.items())
    ends = [offset + size for offset, size in parts]
    starts = [offset for offset, _ in parts]
    assert all(offset % ALIGNMENT == 0 for offset in starts)
    assert len(set(starts)) == len(sizes), "an empty part still has an address of its own"
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert ends[-1] <= layout.total_bytes
    assert layout.total_bytes <= sum(sizes.values()) + len(sizes) * ALIGNMENT


def test_no_memory_is_wasted_between_parts_of_whole_units() -> None:
    layout = MemoryLayout.of({"pixels": 512, "cls_token": 256, "scratch": 1024})
    assert dict(layout.offsets) == {"pixels": 0, "cls_token": 512, "scratch": 768}
    assert layout.total_bytes == 1792
