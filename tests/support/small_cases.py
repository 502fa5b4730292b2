"""Golden cases of small images, for exports that a test makes."""

import contextlib
from collections.abc import Iterator

import pytest

from dinov2rt.bundle.geometry import ImageSize

SMALL_CASES = (
    (ImageSize(56, 98), ("chelsea.jpg", "coffee.jpg")),
    (ImageSize(73, 31), ("coffee.jpg",)),
)


@contextlib.contextmanager
def small_golden_cases() -> Iterator[None]:
    """Exports within the block have these golden cases, which takes seconds less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinov2rt.export.golden._photos_by_size", lambda _: dict(SMALL_CASES))
        yield
