import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2rt.bundle.geometry import Grid, ImageSize, Padding, Snap
from dinov2rt.errors import InputError

SIZES = st.builds(ImageSize, st.integers(14, 5000), st.integers(14, 5000))
ANY_SIZES = st.builds(ImageSize, st.integers(1, 5000), st.integers(1, 5000))
TOO_SMALL = (
    'image of 13x28 pixels is smaller than one patch of 14x14; enlarge it, or use snap="pad"'
)


def test_size_and_grid() -> None:
    size = ImageSize(100, 150)
    assert str(size) == "100x150"
    assert size.pixels == 15000
    assert size.grid(14) == Grid(rows=7, cols=10)
    assert str(size.grid(14)) == "7x10"
    assert size.grid(14).num_patches == 70
    assert not size.is_snapped(14)
    assert not ImageSize(98, 150).is_snapped(14)
    assert not ImageSize(150, 98).is_snapped(14)
    assert ImageSize(98, 140).is_snapped(14)


@pytest.mark.parametrize("snap", Snap)
def test_exact_multiples_stay(snap: Snap) -> None:
    assert ImageSize(14, 518).snapped(snap, 14) == ImageSize(14, 518)


@pytest.mark.parametrize(
    ("snap", "side", "snapped"),
    [
        (Snap.CROP, 27, 14),
        (Snap.CROP, 29, 28),
        (Snap.CENTER_CROP, 27, 14),
        (Snap.CENTER_CROP, 29, 28),
        (Snap.PAD, 27, 28),
        (Snap.PAD, 29, 42),
        (Snap.PAD, 13, 14),
        (Snap.PAD, 1, 14),
        (Snap.RESIZE, 27, 28),
        (Snap.RESIZE, 29, 28),
        (Snap.RESIZE, 34, 28),
        (Snap.RESIZE, 35, 42),  # halfway goes up
        (Snap.RESIZE, 13, 14),
        (Snap.RESIZE, 1, 14),
    ],
)
def test_each_side_is_snapped_alone(snap: Snap, side: int, snapped: int) -> None:
    assert ImageSize(side, 28).snapped(snap, 14) == ImageSize(snapped, 28)
    assert ImageSize(28, side).snapped(snap, 14) == ImageSize(28, snapped)


@pytest.mark.parametrize("snap", [Snap.CROP, Snap.CENTER_CROP])
def test_nothing_can_be_cropped_to_less_than_a_patch(snap: Snap) -> None:
    with pytest.raises(InputError) as error:
        ImageSize(13, 28).snapped(snap, 14)
    assert str(error.value) == TOO_SMALL


@pytest.mark.parametrize("snap", Snap)
@pytest.mark.parametrize("size", [ImageSize(0, 28), ImageSize(28, 0)])
def test_an_image_without_pixels_is_refused(snap: Snap, size: ImageSize) -> None:
    with pytest.raises(InputError) as error:
        size.snapped(snap, 14)
    assert str(error.value) == f"image of {size} pixels is empty; both sides must be at least 1"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (ImageSize(500, 28), "height 500 is not a multiple of 14; nearest: 490 and 504, or let "),
        (ImageSize(28, 27), "width 27 is not a multiple of 14; nearest: 14 and 28, or let "),
        (ImageSize(13, 28), "height 13 is not a multiple of 14; nearest: 14, or let "),
    ],
)
def test_snap_error_names_the_nearest_multiples(size: ImageSize, message: str) -> None:
    with pytest.raises(InputError) as error:
        size.snapped(Snap.ERROR, 14)
    choices = 'snap="crop", "center-crop", "pad" or "resize" choose'
    assert str(error.value) == message + choices


def test_center_padding_puts_the_odd_pixel_at_the_bottom_and_the_right() -> None:
    # 100x150 to 112x154: 12 rows are even, 4 columns are even; 101x151 to 112x154: 11 and 3
    assert ImageSize(100, 150).snapped(Snap.PAD, 14) == ImageSize(112, 154)
    assert ImageSize(100, 150).center_padding(14) == Padding(top=6, left=2, bottom=6, right=2)
    assert ImageSize(101, 151).center_padding(14) == Padding(top=5, left=1, bottom=6, right=2)
    assert ImageSize(28, 42).center_padding(14) == Padding()


@pytest.mark.parametrize("snap", Snap)
def test_snap_is_found_by_its_name(snap: Snap) -> None:
    assert Snap.parse(str(snap)) is snap


def test_unknown_snap() -> None:
    with pytest.raises(InputError) as error:
        Snap.parse("stretch")
    assert str(error.value) == (
        'unknown snap \'stretch\'; allowed are "crop", "center-crop", "pad", "resize", "error"'
    )


@given(SIZES, st.sampled_from([snap for snap in Snap if snap is not Snap.ERROR]))
def test_snapped_is_a_multiple_less_than_a_patch_away(size: ImageSize, snap: Snap) -> None:
    snapped = size.snapped(snap, 14)
    assert snapped.is_snapped(14)
    assert min(snapped.height, snapped.width) >= 14
    assert abs(snapped.height - size.height) < 14
    assert abs(snapped.width - size.width) < 14
    assert snapped.snapped(snap, 14) == snapped


@given(SIZES)
def test_crop_never_grows_and_is_the_grid_of_the_convolution(size: ImageSize) -> None:
    snapped = size.snapped(Snap.CROP, 14)
    assert snapped.height <= size.height
    assert snapped.width <= size.width
    assert snapped.grid(14) == size.grid(14)
    assert size.snapped(Snap.CENTER_CROP, 14) == snapped


@given(SIZES)
def test_resize_is_the_nearest_multiple(size: ImageSize) -> None:
    snapped = size.snapped(Snap.RESIZE, 14)
    assert abs(snapped.height - size.height) <= 7
    assert abs(snapped.width - size.width) <= 7


@given(ANY_SIZES)
def test_padding_never_shrinks_and_is_centred(size: ImageSize) -> None:
    snapped, padding = size.snapped(Snap.PAD, 14), size.center_padding(14)
    assert padding.top + size.height + padding.bottom == snapped.height
    assert padding.left + size.width + padding.right == snapped.width
    assert 0 <= padding.bottom - padding.top <= 1
    assert 0 <= padding.right - padding.left <= 1
    assert padding.top >= 0
    assert padding.left >= 0
