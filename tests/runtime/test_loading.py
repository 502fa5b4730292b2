"""Images as people have them: paths, bytes, Pillow images, arrays, and mixtures."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinov2rt
from dinov2rt.errors import InputError
from dinov2rt.export.crops import PHOTOS
from dinov2rt.runtime.images import load_image
from dinov2rt.runtime.model import Model

NAMES = ("astronaut", "coffee", "hubble")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Crops of three sizes that have two grids."""
    folder = tmp_path_factory.mktemp("photos")
    for name, sides in zip(NAMES, ((56, 42), (45, 59), (56, 42)), strict=True):
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            photo.resize((300, 300)).crop((90, 90, 90 + sides[1], 90 + sides[0])).save(
                folder / f"{name}.png"
            )
    return [folder / f"{name}.png" for name in NAMES]


def forms(photo: Path) -> list[Any]:
    with Image.open(photo) as image:
        image.load()
    return [photo, str(photo), photo.read_bytes(), image, load_image(photo)]


def test_one_image_is_the_same_in_every_form(model: Model, photos: list[Path]) -> None:
    wanted = model(load_image(photos[0])).cls_token
    for form in forms(photos[0]):
        np.testing.assert_array_equal(model(form).cls_token, wanted)


def test_a_mixture_is_stacked_where_grids_agree(model: Model, photos: list[Path]) -> None:
    stacked = model(forms(photos[0]))
    assert isinstance(stacked, dinov2rt.Features)
    assert len(stacked) == 5
    assert len({row.tobytes() for row in stacked.cls_token}) == 1
    apart = model([photos[0], load_image(photos[1]), photos[2].read_bytes()])
    assert isinstance(apart, list)
    for features, photo in zip(apart, photos, strict=True):
        np.testing.assert_allclose(features.cls_token, model(photo).cls_token, rtol=1e-3, atol=1e-4)


def test_images_of_two_sizes_and_one_grid_are_stacked_in_order(model: Model) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, 28, 3), dtype=np.uint8) for side in (27, 28, 27)]
    stacked = model(images, snap="pad")
    assert isinstance(stacked, dinov2rt.Features)
    for features, image in zip(stacked, images, strict=True):
        alone = model(image, snap="pad")
        np.testing.assert_allclose(features.cls_token, alone.cls_token, rtol=1e-3, atol=1e-4)


def test_preprocess_is_that_of_the_loader_for_files_and_arrays(
    model: Model, photos: list[Path]
) -> None:
    steps = "short-side:70"
    for form in forms(photos[1]):
        got = model(form, preprocess=steps)
        wanted = model(load_image(photos[1], steps))
        assert got.grid == wanted.grid
        np.testing.assert_array_equal(got.cls_token, wanted.cls_token)
    batch = np.stack([load_image(photos[0]), load_image(photos[2])])
    np.testing.assert_array_equal(
        model(batch, preprocess=steps).cls_token, model(list(batch), preprocess=steps).cls_token
    )
    with pytest.raises(InputError, match="preprocess is for image files and uint8"):
        model(np.zeros((14, 14, 3)), preprocess=steps)


def test_a_large_file_is_scaled_with_a_warning_and_a_large_array_refused(
    bundle_s_reg: Path, photos: list[Path]
) -> None:
    with dinov2rt.load(bundle_s_reg, device="cpu", max_pixels=800) as small:
        with pytest.warns(dinov2rt.ScaledWarning, match="2 images of up to 45x59 were scaled"):
            features = small([photos[0], photos[1]])
        assert all(each.grid.num_patches <= 4 for each in features)
        with pytest.warns(dinov2rt.ScaledWarning, match="3 images of up to 45x59"):
            assert small.embed(iter(photos)).shape == (3, 384)
        with pytest.raises(InputError, match="image of 56x42 has 2352 pixels, more than max_pix"):
            small(load_image(photos[0]))


def test_messages_name_the_image_and_never_hold_it(model: Model, photos: list[Path]) -> None:
    junk = bytes(range(256)) * 500
    torn = photos[0].read_bytes()[:-60]
    for bad, words in (
        (junk, "an image of 128000 bytes in memory is not an image of a format"),
        (torn, f"an image of {len(torn)} bytes in memory cannot be decoded"),
        (photos[0].parent, "cannot be read (it is a folder"),
        (Path("gone.png"), "gone.png cannot be read (No such file"),
    ):
        for call in (load_image, model, lambda image: model.embed([image])):
            with pytest.raises(InputError) as caught:
                call(bad)
            assert words in str(caught.value)
            assert len(str(caught.value)) < 600
    with pytest.raises(InputError, match=r"image 1 of the list: gone\.png cannot be read"):
        model([photos[0], "gone.png"])


# One vector an image


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_vectors_are_those_of_single_calls_in_order(
    model: Model, photos: list[Path], batch_size: int
) -> None:
    images = [form for photo in photos for form in forms(photo)]
    vectors = model.embed(iter(images), batch_size=batch_size, normalize=False)
    assert vectors.dtype == np.float32
    wanted = np.concatenate([model(image).cls_token for image in images])
    np.testing.assert_allclose(vectors, wanted, rtol=1e-3, atol=1e-4)


def test_pools(model: Model, photos: list[Path]) -> None:
    features = model(photos[0])
    mean = features.patch_tokens.mean(axis=(1, 2))
    both = model.embed(photos[0], pool="cls+patch_mean", normalize=False)
    np.testing.assert_allclose(both, np.hstack([features.cls_token, mean]), rtol=1e-4, atol=1e-5)
    unit = model.embed(photos, pool="patch_mean")
    assert unit.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    with pytest.raises(InputError, match='unknown pool \'max\'; allowed are "cls", "patch_mean"'):
        model.embed(photos, pool="max")


def test_an_iterator_is_read_a_window_at_a_time(model: Model) -> None:
    read: list[int] = []

    def images() -> Iterator[np.ndarray]:
        for index in range(60):
            read.append(index)
            yield np.full((14, 14, 3), index, np.uint8)

    most = 0
    call = type(model).__call__

    class Watching:
        def __init__(self) -> None:
            self.done = 0

        def __call__(self, batch: np.ndarray) -> dinov2rt.Features:
            nonlocal most
            most = max(most, len(read) - self.done)
            self.done += len(batch)
            return call(model, batch, outputs=["cls_token"])

    from dinov2rt.runtime.embedding import Pool, embed

    vectors = embed(
        Watching(),
        images(),
        model._loader("native", dinov2rt.bundle.geometry.Snap.CROP),
        Pool.CLS,
        batch_size=2,
        normalize=False,
    )
    assert vectors.shape == (60, 384)
    assert most <= 2 * 4 * 2


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "there is no image to embed"),
        (7, "got int; allowed are paths, bytes, Pillow images and arrays"),
        ([np.zeros((2, 14, 14, 3), np.uint8)], "image 0: got ndarray, allowed is an array"),
        ([io.BytesIO()], "image 0: got BytesIO, allowed is an array"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(model: Model, images: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.embed(images)


# Features


def test_features_show_their_shapes_on_one_line(model: Model, model_plain: Model) -> None:
    pixels = np.zeros((2, 28, 42, 3), np.uint8)
    assert repr(model(pixels)) == (
        "Features(cls_token [2, 384] float32, register_tokens [2, 4, 384] float32, "
        "patch_tokens [2, 2, 3, 384] float32)"
    )
    with pytest.raises(
        InputError, match=r"layer 3 is not among .*; export the bundle with --layers"
    ):
        model_plain(pixels).layer(3)


# A folder


def test_a_folder_becomes_a_dataset_and_is_taken_up_again(
    model: Model, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "f.parquet"
    report = dinov2rt.extract_features(model, photos[0].parent, out, batch_size=2)
    assert (report.images, report.failed, report.computed) == (3, 0, 3)
    table = dinov2rt.read_features(out)
    assert table["key"].to_pylist() == sorted(photo.name for photo in photos)
    again = dinov2rt.extract_features(model, str(photos[0].parent), str(out), batch_size=2)
    assert (again.images, again.computed, again.left) == (3, 0, 0)
    with pytest.raises(InputError, match="To go on with it: --snap crop"):
        dinov2rt.extract_features(model, photos[0].parent, out, snap="pad")
    assert dinov2rt.extract_features(model, photos, tmp_path / "f.csv").images == 3


# By name


def test_a_bundle_is_loaded_by_its_name_from_the_cache(
    bundle_s_reg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOV2RT_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "dinov2_vits14_reg").symlink_to(bundle_s_reg)
    with dinov2rt.load("dinov2_vits14_reg", device="cpu") as model:
        assert model.variant.name == "dinov2_vits14_reg"


def test_without_torch_a_name_gives_the_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOV2RT_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(dinov2rt.Dinov2rtError) as caught:
        dinov2rt.load("dinov2_vitb14")
    assert f"dinov2rt export dinov2_vitb14 --out {tmp_path}/bundles/dinov2_vitb14" in str(
        caught.value
    )


@pytest.mark.slow
def test_with_torch_a_name_is_exported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from dinov2rt.bundle.variants import find_variant
    from dinov2rt.export.weights.synthetic import synthetic_state_dict

    monkeypatch.setenv("DINOV2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    state = synthetic_state_dict(find_variant("dinov2_vits14"), 0)
    torch.save(state, checkpoints / "dinov2_vits14_pretrain.pth")
    with pytest.warns(UserWarning, match="exporting dinov2_vits14 from the official weights"):
        model = dinov2rt.load("dinov2_vits14", device="cpu")
    model.close()
    with dinov2rt.load("dinov2_vits14", device="cpu") as model:
        assert model.verify()
