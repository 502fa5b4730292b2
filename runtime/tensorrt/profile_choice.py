"""Chooses the optimization profile for a shape, and explains why no profile fits."""

from collections.abc import Sequence

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.profiles import BatchShape, ProfileEntry
from dinov2rt.errors import PlanInputError


def choose_profile(profiles: Sequence[ProfileEntry], shape: BatchShape) -> int:
    """Index of the narrowest profile that allows `shape`.

    A profile for a single size is preferred to a wide one, whose kernels are slower.

    Raises:
        PlanInputError: no profile allows `shape`; the message gives every range and the nearest
            allowed shape.
    """
    fitting = [index for index, profile in enumerate(profiles) if shape in profile.shapes]
    if not fitting:
        raise PlanInputError(_outside(profiles, shape))
    return min(fitting, key=lambda index: _width(profiles[index]))


def largest_batch(profiles: Sequence[ProfileEntry], size: ImageSize) -> int | None:
    """The largest batch of images of `size`, or None if no profile allows the size."""
    one = BatchShape(1, size.height, size.width)
    batches = [
        profile.shapes.max.batch
        for profile in profiles
        if profile.shapes.nearest(one).size == size and profile.shapes.min.batch == 1
    ]
    return max(batches, default=None)


def _width(profile: ProfileEntry) -> tuple[int, int]:
    """Sort key: pixels between the smallest and the largest size, then pixels of a full batch."""
    low, high = profile.shapes.min, profile.shapes.max
    return high.size.pixels - low.size.pixels, high.batch * high.size.pixels


def _outside(profiles: Sequence[ProfileEntry], shape: BatchShape) -> str:
    ranges = ", ".join(f"{profile.name} {profile.shapes}" for profile in profiles)
    nearest = min(
        (profile.shapes.nearest(shape) for profile in profiles),
        key=lambda allowed: _distance(allowed, shape),
    )
    return (
        f"batch x height x width {shape} lies outside every profile of the plan ({ranges}); "
        f'nearest is {nearest}; build a plan for it, or use backend="onnxruntime"'
    )


def _distance(left: BatchShape, right: BatchShape) -> int:
    """Difference in sides first, then in batch: the batch size is easier to change for a caller."""
    sides = abs(left.height - right.height) + abs(left.width - right.width)
    return sides * 10_000 + abs(left.batch - right.batch)
