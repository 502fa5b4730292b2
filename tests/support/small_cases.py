"""Golden cases of small images, for exports that a test makes."""

from dinov2rt.bundle.geometry import ImageSize

SMALL_CASES = (
    (ImageSize(56, 98), ("chelsea.jpg", "coffee.jpg")),
    (ImageSize(73, 31), ("coffee.jpg",)),
)
