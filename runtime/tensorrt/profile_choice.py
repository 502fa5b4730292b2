"""Which optimization profile takes a shape, and what to say when none does."""

from collections.abc import Sequence

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.profiles import BatchShape, ProfileEntry
from dinov2rt.errors import PlanInputError


def choose_profile(profiles: Sequence[ProfileEntry], shape: BatchShape) -> int:
    """Index of the profile to run `shape` with: of those that allow it, the narrowest.

    A profile pinned to one size so goes before a wide one, whose kernels are slower.

    Raises:
        PlanInputError: none allows it; the message gives every range and the nearest allowed shape.
    """
    fitting = [index for index, profile in enumerate(profiles) if shape in profile.shapes]
    if not fitting:
        raise PlanInputError(_outside(profiles, shape))
    return min(fitting, key=lambda index: _width(profiles[index]))


def largest_batch(profiles: Sequence[ProfileEntry], size: ImageSize) -> int | None:
    """The most images of `size` in one pass, or None where no profile allows the size."""
    one = BatchShape(1, size.height, size.width)
    batches = [
        profile.shapes.max.batch
        for profile in profiles
        if profile.shapes.nearest(one).size == size and profile.shapes.min.batch == 1
    ]
    return max(batches, default=None)


def _width(profile: ProfileEntry) -> tuple[int, int]:
    """How many pixels lie between the ends of the range, then how large the largest shape is."""
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
    """Pixels by which the sides differ, then images; a side is what a caller can least change."""
    sides = abs(left.height - right.height) + abs(left.width - right.width)
    return sides * 10_000 + abs(left.batch - right.batch)
