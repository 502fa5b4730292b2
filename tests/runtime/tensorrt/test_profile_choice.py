import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.profiles import BatchShape, ProfileEntry, ShapeRange
from dinov2rt.errors import InputError, PlanInputError
from dinov2rt.runtime.tensorrt.profile_choice import choose_profile, largest_batch

WIDE = ShapeRange(BatchShape(1, 14, 14), BatchShape(1, 518, 518), BatchShape(8, 1036, 1036))
PROFILES = (
    ProfileEntry("wide", WIDE, 0),
    ProfileEntry("224", ShapeRange.pinned(ImageSize(224, 224), 32), 0),
    ProfileEntry("518", ShapeRange.pinned(ImageSize(518, 518), 16), 0),
)
PINNED = PROFILES[1:]


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        (BatchShape(1, 224, 224), "224"),
        (BatchShape(32, 224, 224), "224"),
        (BatchShape(16, 518, 518), "518"),
        (BatchShape(1, 224, 238), "wide"),
        (BatchShape(1, 14, 14), "wide"),
        (BatchShape(8, 1036, 1036), "wide"),
    ],
)
def test_the_narrowest_profile_that_allows_a_shape_runs_it(shape: BatchShape, name: str) -> None:
    assert PROFILES[choose_profile(PROFILES, shape)].name == name


def test_of_two_equally_narrow_profiles_small_batches_run_in_the_smaller_one() -> None:
    several = (
        ProfileEntry("large", ShapeRange.pinned(ImageSize(224, 224), 64), 0),
        ProfileEntry("small", ShapeRange.pinned(ImageSize(224, 224), 4), 0),
    )
    assert choose_profile(several, BatchShape(4, 224, 224)) == 1
    assert choose_profile(several, BatchShape(5, 224, 224)) == 0


@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_a_chosen_profile_allows_the_shape(batch: int, rows: int, cols: int) -> None:
    shape = BatchShape(batch, rows * 14, cols * 14)
    try:
        assert shape in PROFILES[choose_profile(PROFILES, shape)].shapes
    except PlanInputError:
        assert not any(shape in profile.shapes for profile in PROFILES)


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [
        (BatchShape(1, 210, 224), "1x224x224"),
        (BatchShape(1, 504, 504), "1x518x518"),
        (BatchShape(64, 224, 224), "32x224x224"),
    ],
)
def test_a_shape_outside_all_names_the_ranges_and_the_nearest(
    shape: BatchShape, nearest: str
) -> None:
    with pytest.raises(InputError) as error:
        choose_profile(PINNED, shape)
    assert str(error.value) == (
        f"batch x height x width {shape} lies outside every profile of the plan "
        "(224 1x224x224..32x224x224, 518 1x518x518..16x518x518); "
        f'nearest is {nearest}; build a plan for it, or use backend="onnxruntime"'
    )


def test_the_largest_batch_of_a_size_is_the_largest_of_all_profiles() -> None:
    assert largest_batch(PROFILES, ImageSize(224, 224)) == 32
    assert largest_batch(PROFILES, ImageSize(518, 518)) == 16
    assert largest_batch(PROFILES, ImageSize(700, 14)) == 8
    assert largest_batch(PROFILES, ImageSize(1050, 14)) is None


def test_a_profile_that_starts_above_one_image_splits_no_batch() -> None:
    pair = ShapeRange(BatchShape(2, 224, 224), BatchShape(2, 224, 224), BatchShape(4, 224, 224))
    assert largest_batch([ProfileEntry("pair", pair, 0)], ImageSize(224, 224)) is None
