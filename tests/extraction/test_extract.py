from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import dinov2rt
from dinov2rt.analysis.pca import seen_by_model
from dinov2rt.bundle.geometry import Grid, ImageSize, Snap
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Chunk, Failure
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import WINDOW_BATCHES, ExtractOptions, ImageOutcome, extract
from dinov2rt.extraction.image_features import ImageFeatures
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.images import load_image
from dinov2rt.runtime.model import Model
from dinov2rt.runtime.preprocess import Preprocess

Paint = Callable[..., Path]


@pytest.fixture(scope="module")
def model(bundle_s_reg: Path) -> Iterator[Model]:
    with dinov2rt.load(bundle_s_reg, device="cpu", max_pixels=20_000) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(0) as pool:
        yield pool


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """Writes an image of noise."""

    def write(name: str, height: int, width: int) -> Path:
        rng = np.random.default_rng([height, width, len(name)])
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path / name

    return write


@dataclass
class Recorder:
    """A real model that remembers how it was called, and refuses images that are too high."""

    model: Any
    highest: int = 1000
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    outputs: set[tuple[str, ...]] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, images: NDArray[Any], *, outputs: Any, snap: str) -> Features:
        if images.shape[1] > self.highest:
            raise InputError("outside of what the plan was built for")
        self.shapes.append(images.shape)
        self.outputs.add(tuple(outputs))
        return self.model(images, outputs=outputs, snap=snap)  # type: ignore[no-any-return]

    def map(self, batches: Any, **options: Any) -> Iterator[Any]:
        return Model.map(self, batches, **options)  # type: ignore[arg-type]


def outcomes(
    model: Any, files: list[Path], options: ExtractOptions, decoders: Decoders, each: int = 1024
) -> list[ImageOutcome]:
    chunks = find_chunks(files, chunk_images=each)
    return [outcome for _, outcome in extract(model, chunks, options, decoders)]


def features(
    model: Any, files: list[Path], options: ExtractOptions, decoders: Decoders, each: int = 1024
) -> list[ImageFeatures]:
    rows = outcomes(model, files, options, decoders, each)
    assert not [row for row in rows if isinstance(row, Failure)]
    return [row for row in rows if isinstance(row, ImageFeatures)]


def test_rows_hold_what_the_model_says_of_each_image_in_the_order_of_the_files(
    model: Model, decoders: Decoders, paint: Paint
) -> None:
    files = [paint("a.png", 28, 42), paint("b.png", 56, 42), paint("c.png", 30, 43)]
    rows = features(model, files, ExtractOptions(patch_tokens=True), decoders)
    assert [row.key for row in rows] == [file.name for file in files]
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


@pytest.mark.parametrize("snap", [Snap.CROP, Snap.CENTER_CROP, Snap.PAD, Snap.RESIZE])
def test_snapping_ahead_changes_nothing(
    model: Model, decoders: Decoders, paint: Paint, snap: Snap
) -> None:
    files = [paint("a.png", 31, 45), paint("b.png", 33, 43), paint("c.png", 31, 45)]
    rows = features(model, files, ExtractOptions(snap=snap), decoders)
    for file, row in zip(files, rows, strict=True):
        alone = model([load_image(file)], snap=snap)[0]
        assert row.grid == alone.grid
        np.testing.assert_allclose(row.cls_token, alone.cls_token[0], rtol=1e-3, atol=1e-4)


def test_patch_tokens_are_kept_only_on_demand(
    model: Model, decoders: Decoders, paint: Paint
) -> None:
    (row,) = features(model, [paint("a.png", 28, 28)], ExtractOptions(), decoders)
    assert row.patch_tokens is None


def test_preprocess_and_snap_decide_what_the_model_sees(
    model: Model, decoders: Decoders, paint: Paint
) -> None:
    file = paint("a.png", 30, 43)
    (padded,) = features(model, [file], ExtractOptions(snap=Snap.PAD), decoders)
    assert (padded.size, padded.grid) == (ImageSize(30, 43), Grid(3, 4))
    options = ExtractOptions(preprocess=Preprocess(short_side=60))
    (scaled,) = features(model, [file], options, decoders)
    assert (scaled.size, scaled.grid) == (ImageSize(60, 86), Grid(4, 6))


def test_images_of_one_size_share_batches_of_at_most_the_size_asked_for(
    model: Model, decoders: Decoders, paint: Paint
) -> None:
    sizes = [(28, 28), (28, 42), (31, 30), (28, 42), (28, 28)]  # the third is cropped to 28x28
    files = [paint(f"{index}.png", *size) for index, size in enumerate(sizes)]
    recorder = Recorder(model)
    features(recorder, files, ExtractOptions(batch=2), decoders)
    assert recorder.shapes == [(2, 28, 28, 3), (2, 28, 42, 3), (1, 28, 28, 3)]
    assert recorder.outputs == {("cls_token", "register_tokens", "patch_tokens")}


def test_batches_depend_on_their_own_chunk_alone(
    model: Model, decoders: Decoders, paint: Paint
) -> None:
    sizes = [(28, 28), (28, 42), (28, 28), (28, 28), (28, 42), (28, 28), (28, 28)]
    files = [paint(f"{index}.png", *size) for index, size in enumerate(sizes)]
    options = ExtractOptions(batch=3)
    together = features(model, files, options, decoders, each=4)
    alone = [
        row for part in (files[:4], files[4:]) for row in features(model, part, options, decoders)
    ]
    for one, other in zip(together, alone, strict=True):
        assert one.key == other.key
        for name in ("cls_token", "register_tokens", "patch_mean"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_images_that_cannot_be_used_are_told_of_in_their_place(
    model: Model, decoders: Decoders, paint: Paint, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"no image")
    files = [torn, paint("tiny.png", 10, 99), paint("good.png", 28, 28), paint("big.png", 160, 160)]
    first, second, good, last = outcomes(model, files, ExtractOptions(scale=False), decoders)
    assert isinstance(good, ImageFeatures)
    assert good.key == "good.png"
    reasons = [each.reason for each in (first, second, last) if isinstance(each, Failure)]
    assert f"{torn} is not an image of a format that is opened" in reasons[0]
    assert "tiny.png cannot be used: image of 10x99 pixels is smaller than one patch" in reasons[1]
    assert (
        "big.png cannot be used: image of 160x160 has 23716 pixels, more than max_pixels=20000"
        in reasons[2]
    )
    assert 'preprocess, such as "short-side:448"' in reasons[2]


def test_a_window_of_nothing_but_failures_is_no_end(
    model: Model, decoders: Decoders, paint: Paint, tmp_path: Path
) -> None:
    torn = [tmp_path / f"torn{index}.png" for index in range(WINDOW_BATCHES + 1)]
    for file in torn:
        file.write_bytes(b"no image")
    files = [paint("a.png", 28, 28), *torn, paint("b.png", 28, 28)]
    rows = outcomes(model, files, ExtractOptions(batch=1), decoders)
    assert [row.key for row in rows] == [file.name for file in files]
    assert [isinstance(row, Failure) for row in rows] == [False, *[True] * len(torn), False]


def test_images_that_the_model_refuses_leave_the_others_alone(
    model: Model, decoders: Decoders, paint: Paint
) -> None:
    heights = [28, 42, 28, 42, 28]
    files = [paint(f"{index}.png", height, 28) for index, height in enumerate(heights)]
    recorder = Recorder(model, highest=28)
    rows = outcomes(recorder, files, ExtractOptions(batch=1), decoders)
    assert [row.key for row in rows] == [file.name for file in files]
    assert [isinstance(row, Failure) for row in rows] == [False, True, False, True, False]
    reason = "1.png: outside of what the plan was built for"
    assert rows[1] == Failure("1.png", reason)


def test_memory_is_bounded_however_many_images_there_are(
    model: Model, decoders: Decoders, paint: Paint
) -> None:
    """Files are removed while rows are taken: those that had been read are not missed."""
    window = WINDOW_BATCHES * 2
    original = paint("a.png", 14, 14)
    files = [original.with_name(f"{index:03}.png") for index in range(10 * window)]
    for file in files:
        file.write_bytes(original.read_bytes())
    chunks: list[Chunk] = find_chunks(files, chunk_images=window)
    stream = extract(model, chunks, ExtractOptions(batch=2), decoders)
    next(stream)
    for file in files[4 * window :]:
        file.unlink()
    read = 1 + sum(isinstance(row, ImageFeatures) for _, row in stream)
    assert read == 4 * window  # none of what was removed: at most so many are in memory


def test_rows_come_while_later_batches_are_still_to_be_computed(
    model: Model, decoders: Decoders, paint: Paint
) -> None:
    files = [paint(f"{index}.png", 14, 14) for index in range(40)]
    recorder: Any = Recorder(model)
    stream = extract(recorder, find_chunks(files), ExtractOptions(batch=1), decoders)
    next(stream)
    assert len(recorder.shapes) < 10
    stream.close()
    assert len(recorder.shapes) < 12


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="batch=0; allowed is a whole number from 1"):
        ExtractOptions(batch=0)


@pytest.mark.parametrize("snap", [Snap.CROP, Snap.CENTER_CROP, Snap.PAD, Snap.RESIZE])
def test_what_the_model_sees_covers_its_grid(model: Model, snap: Snap) -> None:
    image = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    grid = model([image], snap=snap)[0].grid
    assert seen_by_model(image, snap, 14).shape == (14 * grid.rows, 14 * grid.cols, 3)


def test_what_the_model_sees_is_cut_where_the_model_cuts() -> None:
    image = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    np.testing.assert_array_equal(seen_by_model(image, Snap.CROP, 14), image[:28, :42])
    np.testing.assert_array_equal(seen_by_model(image, Snap.CENTER_CROP, 14), image[1:29, 1:43])
    np.testing.assert_array_equal(seen_by_model(image, Snap.PAD, 14)[5:36, 5:50], image)
