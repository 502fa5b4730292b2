from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from dinov2rt.bundle.geometry import Grid, ImageSize, Snap
from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import InputError
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.images import resize
from dinov2rt.runtime.inputs import group_images
from dinov2rt.runtime.model import Model, load

UINT8 = "uint8 [B, H, W, 3] or [H, W, 3]"
FLOAT = "float32 [B, 3, H, W] or [3, H, W]"
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 56, 70, 3), dtype=np.uint8)
ODD = np.random.default_rng(1).integers(0, 256, (2, 59, 80, 3), dtype=np.uint8)  # 4x5 patches


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def assert_same(got: Features, want: Features) -> None:
    """Equal up to the rounding of float32 kernels for other batch sizes."""
    assert got.outputs.keys() == want.outputs.keys()
    assert got.grid == want.grid
    for name, value in want.outputs.items():
        error = np.linalg.norm(got.outputs[name] - value) / np.linalg.norm(value)
        assert got.outputs[name].shape == value.shape
        assert error <= 1e-5, name


def refusal(images: Any, input_format: InputFormat = InputFormat.PIXELS, **options: Any) -> str:
    asked = {"snap": Snap.CROP, "max_pixels": 2**22} | options
    with pytest.raises(InputError) as error:
        group_images(images, input_format, patch_size=14, **asked)
    assert "\n" not in str(error.value)
    return str(error.value)


# What is taken


def test_one_image_is_a_batch_of_one(model: Model) -> None:
    assert_same(model(PIXELS[0]), model(PIXELS[:1]))


def test_each_image_of_a_batch_is_on_its_own(model: Model) -> None:
    both = model(PIXELS)
    assert len(both) == 2
    assert_same(both[0], model(PIXELS[0]))
    assert_same(both[1], model(PIXELS[1]))


@pytest.mark.parametrize("sequence", [list, tuple])
def test_images_of_many_sizes_come_back_in_order(model: Model, sequence: type) -> None:
    images = [PIXELS[0], ODD[0], ODD[1][:28], PIXELS[1], ODD[0].swapaxes(0, 1)]
    features = model(sequence(images))
    assert isinstance(features, list)
    assert [got.grid for got in features] == [
        Grid(4, 5),
        Grid(4, 5),
        Grid(2, 5),
        Grid(4, 5),
        Grid(5, 4),
    ]
    for got, image in zip(features, images, strict=True):
        assert_same(got, model(image))


def test_images_that_are_cropped_to_one_size_share_a_batch() -> None:
    (group,) = group_images(
        [PIXELS[0], ODD[0]], InputFormat.PIXELS, Snap.CROP, max_pixels=2**22, patch_size=14
    )
    assert group.positions == (0, 1)
    np.testing.assert_array_equal(group.images, np.stack([PIXELS[0], ODD[0, :56, :70]]))


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda pixels: np.repeat(pixels, 2, axis=2)[:, :, ::2],
        lambda pixels: np.ascontiguousarray(pixels[:, ::-1])[:, ::-1],
        lambda pixels: np.broadcast_to(pixels, pixels.shape),  # read-only
        lambda pixels: torch.from_numpy(pixels.copy()),
    ],
    ids=["Fortran", "strided", "negative strides", "read-only", "tensor"],
)
def test_the_layout_in_memory_does_not_matter(model: Model, layout: Any) -> None:
    assert_same(model(layout(PIXELS)), model(PIXELS))
    assert_same(model([layout(PIXELS)[1]])[0], model(PIXELS[1]))


def test_the_caller_s_images_are_left_alone(model: Model) -> None:
    for snap in ("crop", "center-crop", "pad", "resize"):
        images = ODD.copy()
        model(images, snap=snap)
        model(list(images), snap=snap)
        np.testing.assert_array_equal(images, ODD)


def test_normalised_input_is_taken_by_a_graph_that_has_it(
    model: Model, model_normalized: Model
) -> None:
    outputs = list(model.graph.outputs)
    want = model(PIXELS)
    assert_same(model_normalized(PIXELS, outputs=outputs), want)
    assert_same(model_normalized(normalize(PIXELS), outputs=outputs), want)
    assert_same(model_normalized(normalize(PIXELS)[0], outputs=outputs), model(PIXELS[0]))
    mixed = model_normalized([normalize(PIXELS)[0], PIXELS[1]], outputs=outputs)
    assert_same(mixed[0], want[0])
    assert_same(mixed[1], want[1])


# What is refused


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32", "bool", "object"])
def test_wrong_dtype(dtype: str) -> None:
    images = np.zeros((1, 28, 28, 3), dtype)
    assert refusal(images) == f"got dtype {dtype}, allowed is {UINT8}, RGB"
    assert refusal([images[0]]) == (
        f"image 0 of the list: got dtype {dtype}, allowed is {UINT8}, RGB"
    )


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool", ">f4"])
def test_wrong_dtype_for_a_normalised_graph(dtype: str) -> None:
    message = refusal(np.zeros((1, 3, 28, 28), dtype), InputFormat.IMAGES)
    assert message == f"got dtype {dtype}, allowed is {UINT8} or normalised {FLOAT}, RGB"


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (28,),
        (28, 28),
        (1, 1, 28, 28, 3),
        (1, 3, 28, 28),
        (3, 28, 28),
        (1, 28, 28, 4),
        (28, 28, 4),
        (1, 28, 28, 1),
    ],
)
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    expected = f"got shape {list(shape)}, allowed is {UINT8}, RGB"
    assert refusal(zeros(*shape)) == expected


@pytest.mark.parametrize("shape", [(1, 28, 28, 3), (28, 28, 3), (1, 4, 28, 28), (28, 28)])
def test_wrong_shape_of_normalised_images(shape: tuple[int, ...]) -> None:
    message = refusal(np.zeros(shape, np.float32), InputFormat.IMAGES)
    assert message == f"got shape {list(shape)}, allowed is {UINT8} or normalised {FLOAT}, RGB"


@pytest.mark.parametrize(
    "images",
    ["photo.jpg", b"photo.jpg", Path("photo.jpg"), PIL.Image.new("RGB", (28, 28)), None, 3, {}],
    ids=lambda images: type(images).__name__,
)
def test_no_array(images: Any) -> None:
    expected = (
        f"got {type(images).__name__}, allowed is {UINT8}, RGB; "
        'try dinov2rt.load_image(file), or numpy.asarray(image.convert("RGB")) with Pillow'
    )
    assert refusal(images) == expected
    assert refusal([zeros(28, 28, 3), images]) == f"image 1 of the list: {expected}"


def test_an_array_that_another_library_does_not_give_out() -> None:
    assert refusal(torch.zeros(1, 28, 28, 3, requires_grad=True)) == (
        "got Tensor that is no numpy array (Can't call numpy() on Tensor that requires grad. "
        f"Use tensor.detach().numpy() instead.); allowed is {UINT8}, RGB"
    )


def test_an_array_of_arrays() -> None:
    images = np.array([zeros(28, 28, 3), zeros(42, 28, 3)], dtype=object)
    assert refusal(images) == f"got dtype object, allowed is {UINT8}, RGB"


def test_nothing_at_all() -> None:
    assert refusal([]) == "got an empty list of images; pass at least one"
    assert refusal(zeros(0, 28, 28, 3)) == (
        "got an empty batch [0, 28, 28, 3]; pass at least one image"
    )


@pytest.mark.parametrize("snap", [Snap.CROP, Snap.PAD, Snap.RESIZE])
def test_no_pixels(snap: Snap) -> None:
    expected = "image of 0x28 pixels is empty; both sides must be at least 1"
    assert refusal(zeros(1, 0, 28, 3), snap=snap) == expected


def test_a_list_holds_single_images() -> None:
    assert refusal([zeros(28, 28, 3), zeros(1, 28, 28, 3)]) == (
        "image 1 of the list: got a batch of shape [1, 28, 28, 3]; a list holds single images"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_normalised_input_that_is_not_finite(value: float) -> None:
    images = np.zeros((2, 3, 28, 28), np.float32)
    images[1, 2, 3, 4] = value
    expected = "normalised input holds NaN or infinity; check its preparation"
    assert refusal(images, InputFormat.IMAGES) == expected


@pytest.mark.parametrize("shape", [(1, 13, 28, 3), (1, 28, 13, 3)])
def test_less_than_a_patch(shape: tuple[int, ...]) -> None:
    expected = (
        f"image of {shape[1]}x{shape[2]} pixels is smaller than one patch of 14x14; "
        'enlarge it, or use snap="pad"'
    )
    assert refusal(zeros(*shape)) == expected
    assert refusal([PIXELS[0], zeros(*shape[1:])]) == f"image 1 of the list: {expected}"


# max_pixels


def test_one_image_beyond_max_pixels() -> None:
    expected = (
        "image of 28x42 has 1176 pixels, more than max_pixels=1175; "
        "make it smaller, or load the model with a larger max_pixels (memory grows with it)"
    )
    assert refusal(zeros(1, 28, 42, 3), max_pixels=1175) == expected
    assert refusal([zeros(28, 42, 3)], max_pixels=1175) == f"image 0 of the list: {expected}"
    (group,) = group_images(
        zeros(1, 28, 42, 3), InputFormat.PIXELS, Snap.CROP, max_pixels=1176, patch_size=14
    )
    assert group.grid == Grid(2, 3)


def test_max_pixels_counts_what_the_model_sees() -> None:
    image = zeros(1, 27, 41, 3)
    group_images(image, InputFormat.PIXELS, Snap.CROP, max_pixels=14 * 28, patch_size=14)
    assert "image of 27x41 has 1176 pixels" in refusal(image, snap=Snap.PAD, max_pixels=1175)
    assert "image of 27x41 has 1176 pixels" in refusal(image, snap=Snap.RESIZE, max_pixels=1175)


@pytest.mark.parametrize("snap", ["crop", "pad"])
@pytest.mark.parametrize("images_per_pass", [1, 2, 3])
def test_a_batch_beyond_max_pixels_runs_in_several_passes(
    model: Model, monkeypatch: pytest.MonkeyPatch, snap: str, images_per_pass: int
) -> None:
    batch = np.concatenate([ODD, ODD[:, ::-1], ODD[:1, :, ::-1]])
    pixels = ImageSize(*ODD.shape[1:3]).snapped(Snap(snap), 14).pixels
    passes = []

    def counted(inputs: Any, *arguments: Any, **options: Any) -> Any:
        passes.append(len(inputs["pixels"]))
        return infer(inputs, *arguments, **options)

    with load(model.path, device="cpu", max_pixels=images_per_pass * pixels) as careful:
        backend = careful._backend
        infer = backend.infer
        monkeypatch.setattr(backend, "infer", counted)
        assert_same(careful(batch, snap=snap), model(batch, snap=snap))
    assert sum(passes) == 5
    assert max(passes) == images_per_pass


# Snapping


def test_crop_is_the_model_on_the_cropped_image(model: Model) -> None:
    want = model(np.ascontiguousarray(ODD[:, :56, :70]))
    assert_same(model(ODD), want)
    assert_same(model(ODD, snap="crop"), want)
    assert_same(model(list(ODD))[1], want[1])


def test_center_crop_is_the_model_on_the_middle(model: Model) -> None:
    want = model(np.ascontiguousarray(ODD[:, 1:57, 5:75]))
    assert_same(model(ODD, snap="center-crop"), want)
    assert_same(model(list(ODD), snap="center-crop")[1], want[1])


@pytest.mark.parametrize("shape", [(59, 80), (56, 71), (13, 30), (100, 150)])
def test_pad_is_zeros_after_normalisation(
    model: Model, model_normalized: Model, shape: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    missing = [-side % 14 for side in shape]
    around = [(side // 2, side - side // 2) for side in missing]
    padded = np.pad(normalize(pixels), ((0, 0), (0, 0), *around))
    want = model_normalized(padded, outputs=list(model.graph.outputs), snap="error")
    assert_same(model(pixels, snap="pad"), want)
    assert_same(model(list(pixels), snap="pad")[1], want[1])
    for images in (pixels, normalize(pixels)):
        assert_same(model_normalized(images, outputs=list(model.graph.outputs), snap="pad"), want)


def test_resize_is_the_model_on_the_resized_image(model: Model) -> None:
    want = model(np.stack([resize(image, ImageSize(56, 84)) for image in ODD]))
    assert_same(model(ODD, snap="resize"), want)
    assert_same(model(list(ODD), snap="resize")[1], want[1])


def test_normalised_images_are_not_resized() -> None:
    images = np.zeros((1, 3, 59, 80), np.float32)
    assert refusal(images, InputFormat.IMAGES, snap=Snap.RESIZE) == (
        'snap="resize" works on uint8 pixels; resample normalised images before, '
        "or pass uint8 [B, H, W, 3]"
    )
    fits = images[:, :, :56, :70]
    group_images(fits, InputFormat.IMAGES, Snap.RESIZE, max_pixels=2**22, patch_size=14)


@pytest.mark.parametrize("snap", Snap)
def test_a_whole_number_of_patches_is_never_changed(model: Model, snap: Snap) -> None:
    (group,) = group_images(PIXELS, InputFormat.PIXELS, snap, max_pixels=2**22, patch_size=14)
    assert np.shares_memory(group.images, PIXELS)
    assert group.images.shape == PIXELS.shape
    assert_same(model(PIXELS, snap=snap), model(PIXELS))


def test_error_names_the_nearest_multiples(model: Model) -> None:
    for images, prefix in ((ODD, ""), ([PIXELS[0], ODD[0]], "image 1 of the list: ")):
        with pytest.raises(InputError) as error:
            model(images, snap="error")
        assert str(error.value) == (
            f"{prefix}height 59 is not a multiple of 14; nearest: 56 and 70, "
            'or let snap="crop", "center-crop", "pad" or "resize" choose'
        )


@pytest.mark.parametrize("snap", ["stretch", "", None, 14])
def test_unknown_snap(model: Model, snap: Any) -> None:
    with pytest.raises(InputError) as error:
        model(PIXELS, snap=snap)
    assert str(error.value) == (
        f'unknown snap {snap!r}; allowed are "crop", "center-crop", "pad", "resize", "error"'
    )
