import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import dinov2rt
from dinov2rt.runtime.errors import InputError
from dinov2rt.runtime.extract import WINDOW_BATCHES, ExtractOptions, extract, seen_by_model
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.geometry import Grid, ImageSize, Snap
from dinov2rt.runtime.images import load_image
from dinov2rt.runtime.model import Model

Paint = Callable[..., Path]


@pytest.fixture(scope="module")
def model(bundle_s_reg: Path) -> Iterator[Model]:
    with dinov2rt.load(bundle_s_reg, device="cpu", max_pixels=20_000) as loaded:
        yield loaded


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """Writes an image of noise."""

    def write(name: str, height: int, width: int) -> Path:
        rng = np.random.default_rng([height, width, len(name)])
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path / name

    return write


class Recorder:
    """A real model that remembers how it was called."""

    def __init__(self, model: Model) -> None:
        self.model, self.options, self.variant = model, model.options, model.variant
        self.calls: list[tuple[list[tuple[int, ...]], tuple[str, ...]]] = []

    def __call__(
        self, images: Sequence[NDArray[Any]], *, outputs: tuple[str, ...], snap: str
    ) -> list[Features]:
        self.calls.append(([image.shape for image in images], outputs))
        return self.model(images, outputs=outputs, snap=snap)


def never(path: Path, error: InputError) -> None:
    raise AssertionError(f"{path}: {error}")


def test_rows_hold_what_the_model_says_of_each_image_in_the_order_of_the_files(
    model: Model, paint: Paint
) -> None:
    files = [paint("a.png", 28, 42), paint("b.png", 56, 42), paint("c.png", 30, 43)]
    options = ExtractOptions(patch_tokens=True)
    rows = list(extract(model, files, options, failed=never))
    assert [row.path for row in rows] == [str(file) for file in files]
    assert [row.size for row in rows] == [ImageSize(28, 42), ImageSize(56, 42), ImageSize(30, 43)]
    for file, row in zip(files, rows, strict=True):
        alone = model(load_image(file))
        patches = alone.patch_tokens[0].reshape(-1, 384)
        assert row.grid == alone.grid
        for got, want in [
            (row.cls_token, alone.cls_token[0]),
            (row.register_tokens, alone.register_tokens[0]),
            (row.patch_tokens, patches),
            (row.patch_mean, patches.mean(axis=0)),
        ]:
            assert got is not None
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_patch_tokens_are_kept_only_on_demand(model: Model, paint: Paint) -> None:
    (row,) = extract(model, [paint("a.png", 28, 28)], ExtractOptions(), failed=never)
    assert row.patch_tokens is None


def test_preprocess_and_snap_decide_what_the_model_sees(model: Model, paint: Paint) -> None:
    file = paint("a.png", 30, 43)
    (padded,) = extract(model, [file], ExtractOptions(snap=Snap.PAD), failed=never)
    assert (padded.size, padded.grid) == (ImageSize(30, 43), Grid(3, 4))
    scaled_options = ExtractOptions(preprocess=dinov2rt.runtime.images.Preprocess(short_side=60))
    (scaled,) = extract(model, [file], scaled_options, failed=never)
    assert (scaled.size, scaled.grid) == (ImageSize(60, 86), Grid(4, 6))


def test_images_of_one_size_share_batches_of_at_most_the_size_asked_for(
    model: Model, paint: Paint
) -> None:
    sizes = [(28, 28), (28, 42), (28, 28), (28, 42), (28, 28)]
    files = [paint(f"{index}.png", *size) for index, size in enumerate(sizes)]
    recorder: Any = Recorder(model)
    list(extract(recorder, files, ExtractOptions(batch=2), failed=never))
    shapes = [shapes for shapes, _ in recorder.calls]
    assert shapes == [[(28, 28, 3)] * 2, [(28, 42, 3)] * 2, [(28, 28, 3)]]


def test_only_final_tokens_are_asked_of_the_model(model: Model, paint: Paint) -> None:
    recorder: Any = Recorder(model)
    list(extract(recorder, [paint("a.png", 28, 28)], ExtractOptions(), failed=never))
    assert recorder.calls[0][1] == ("cls_token", "register_tokens", "patch_tokens")


def test_images_that_cannot_be_used_are_told_of_and_left_out(
    model: Model, paint: Paint, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"no image")
    files = [torn, paint("tiny.png", 10, 99), paint("good.png", 28, 28), paint("big.png", 160, 160)]
    told: list[tuple[str, str]] = []
    rows = extract(
        model,
        files,
        ExtractOptions(),
        failed=lambda path, error: told.append((path.name, str(error))),
    )
    assert [Path(row.path).name for row in rows] == ["good.png"]
    assert [name for name, _ in told] == ["torn.png", "tiny.png", "big.png"]
    assert f"{torn} is not an image that Pillow can read" in told[0][1]
    assert "tiny.png: image of 10x99 pixels is smaller than one patch" in told[1][1]
    assert "big.png: image of 160x160 has 23716 pixels, more than max_pixels=20000" in told[2][1]
    assert 'preprocess "short-side:518"' in told[2][1]


def test_images_that_the_model_refuses_leave_the_others_alone(model: Model, paint: Paint) -> None:
    class Narrow(Recorder):
        def __call__(self, images: Any, **options: Any) -> list[Features]:
            if images[0].shape[0] > 28:
                raise InputError("outside of what the plan was built for")
            return super().__call__(images, **options)

    files = [paint("a.png", 28, 28), paint("b.png", 42, 28), paint("c.png", 28, 28)]
    narrow: Any = Narrow(model)
    told: list[str] = []
    rows = extract(narrow, files, ExtractOptions(), failed=lambda _, error: told.append(str(error)))
    assert [Path(row.path).name for row in rows] == ["a.png", "c.png"]
    assert told == [f"{files[1]}: outside of what the plan was built for"]


def test_decoding_stays_within_two_windows_of_what_was_taken(model: Model, paint: Paint) -> None:
    window = WINDOW_BATCHES * 1
    original = paint("a.png", 14, 14)
    files = [original.with_name(f"{index}.png") for index in range(4 * window)]
    for file in files:
        shutil.copy(original, file)
    failed: list[Path] = []
    rows = extract(
        model, files, ExtractOptions(batch=1), failed=lambda path, _: failed.append(path)
    )
    first = next(rows)
    for file in files[2 * window :]:
        file.unlink()  # had one of them been read by now, it would not be missed
    rest = list(rows)
    assert [first.path, *(row.path for row in rest)] == [str(file) for file in files[: 2 * window]]
    assert failed == files[2 * window :]


def test_rows_come_while_later_batches_are_still_to_be_computed(model: Model, paint: Paint) -> None:
    files = [paint(f"{index}.png", 14, 14) for index in range(4)]
    recorder: Any = Recorder(model)
    rows = extract(recorder, files, ExtractOptions(batch=2), failed=never)
    list(itertools.islice(rows, 2))
    assert len(recorder.calls) == 1
    rows.close()


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="batch=0; allowed is a whole number from 1"):
        ExtractOptions(batch=0)


@pytest.mark.parametrize("snap", [Snap.CROP, Snap.CENTER_CROP, Snap.PAD, Snap.RESIZE])
def test_what_the_model_sees_covers_its_grid(model: Model, snap: Snap) -> None:
    image = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    grid = model([image], snap=snap)[0].grid
    assert seen_by_model(image, snap).shape == (14 * grid.rows, 14 * grid.cols, 3)


def test_what_the_model_sees_is_cut_where_the_model_cuts() -> None:
    image = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    np.testing.assert_array_equal(seen_by_model(image, Snap.CROP), image[:28, :42])
    np.testing.assert_array_equal(seen_by_model(image, Snap.CENTER_CROP), image[1:29, 1:43])
    np.testing.assert_array_equal(seen_by_model(image, Snap.PAD)[5:36, 5:50], image)
