import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.profiles import BatchShape, ShapeRange
from dinov2rt.bundle.variants import find_variant
from dinov2rt.engines.profile_syntax import parse_profiles, tensor_shape
from dinov2rt.errors import InputError


def _parse(text: str, max_batch: int = 32, max_size: int = 1036) -> dict[str, ShapeRange]:
    return parse_profiles(
        text, find_variant("dinov2_vits14"), max_batch=max_batch, max_size=max_size
    )


def test_presets_are_pinned_sizes_and_one_wide_range_in_the_order_given() -> None:
    profiles = _parse("224, 518,wide")
    assert list(profiles) == ["224", "518", "wide"]
    assert profiles["224"] == ShapeRange.pinned(ImageSize(224, 224), 32)
    assert str(profiles["518"]) == "1x518x518..32x518x518"
    assert str(profiles["wide"]) == "1x14x14..32x1036x1036"


def test_the_wide_profile_is_tuned_within_small_limits_too() -> None:
    wide = _parse("wide", max_batch=2, max_size=280)["wide"]
    assert wide.opt == BatchShape(2, 280, 280)
    assert wide.opt in wide


def test_a_free_range_stands_for_itself() -> None:
    text = "1x14x28..8x224x448..16x518x1036"
    profile = _parse(text)[text]
    assert profile.min == BatchShape(1, 14, 28)
    assert profile.opt == BatchShape(8, 224, 448)
    assert profile.max == BatchShape(16, 518, 1036)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "profile '' is not valid; allowed are the side of a square"),
        ("narrow", "profile 'narrow' is not valid; allowed are"),
        ("224x225", "width 225 is not a multiple of 14; nearest: 224 and 238"),
        ("1x14x14..8x518x518", "is not valid"),
        ("224,wide,224", "profile '224' was given twice"),
        ("500", "height 500 is not a multiple of 14; nearest: 490 and 504"),
        ("8x14x14..4x14x14..8x14x14", "must not shrink from MIN to OPT to MAX"),
        ("1x14x28..1x14x14..1x14x28", "must not shrink from MIN to OPT to MAX"),
        ("0x14x14..1x14x14..1x14x14", "the least is one patch, 1x14x14"),
        ("1x13x14..1x14x14..1x14x14", "the least is one patch, 1x14x14"),
    ],
)
def test_anything_else_is_refused_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shape_of_the_input_follows_its_layout() -> None:
    shape = BatchShape(2, 28, 42)
    assert tensor_shape(shape, "pixels") == (2, 28, 42, 3)
    assert tensor_shape(shape, "images") == (2, 3, 28, 42)
