import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.export.crops import PHOTOS
from dinov2rt.extraction.chunks import Chunk, Failure, FileSlice, ImageFiles, Item
from dinov2rt.extraction.decoding import (
    DecodedImage,
    Decoders,
    Decoding,
    decode,
    decode_chunks,
)
from dinov2rt.runtime.images import load_image, resize
from dinov2rt.runtime.preprocess import Preprocess

NATIVE = Decoding(Preprocess(), Snap.CROP, max_pixels=10_000, patch_size=14)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([height, width])
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(height: int, width: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(height, width)).save(buffer, format=kind)
    return buffer.getvalue()


def decoded(item: Item, decoding: Decoding = NATIVE) -> DecodedImage:
    image = decode(item, decoding)
    assert isinstance(image, DecodedImage)
    return image


def reason(item: Item, decoding: Decoding = NATIVE) -> str:
    failure = decode(item, decoding)
    assert isinstance(failure, Failure)
    assert failure.key == item.key
    assert failure.reason.startswith((item.key, str(item.source)))
    assert "\n" not in failure.reason
    return failure.reason


# One image


def test_an_image_is_the_same_wherever_its_bytes_are(tmp_path: Path) -> None:
    content = encoded(28, 42)
    file, shard = tmp_path / "a.png", tmp_path / "s.tar"
    file.write_bytes(content)
    shard.write_bytes(b"before" + content + b"after")
    for source in (file, content, FileSlice(str(shard), 6, len(content))):
        image = decoded(Item("a", source))
        np.testing.assert_array_equal(image.pixels, noise(28, 42))


@pytest.mark.parametrize(
    ("snap", "rows", "cols"),
    [(Snap.CROP, slice(28), slice(42)), (Snap.CENTER_CROP, slice(1, 29), slice(1, 43))],
)
def test_what_the_model_would_not_see_is_cut(snap: Snap, rows: slice, cols: slice) -> None:
    image = decoded(Item("a", encoded(31, 45)), Decoding(Preprocess(), snap, 10_000, 14))
    assert image.size == ImageSize(31, 45)
    assert image.pixels.flags.c_contiguous
    np.testing.assert_array_equal(image.pixels, noise(31, 45)[rows, cols])


def test_resizing_is_done_here_and_padding_is_left_to_the_graph() -> None:
    item = Item("a", encoded(31, 45))
    resized = decoded(item, Decoding(Preprocess(), Snap.RESIZE, 10_000, 14))
    assert (resized.size, resized.pixels.shape) == (ImageSize(31, 45), (28, 42, 3))
    padded = decoded(item, Decoding(Preprocess(), Snap.PAD, 10_000, 14))
    assert padded.pixels.shape == (31, 45, 3)


def test_preprocessing_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(31, 45))
    steps = Preprocess(short_side=60)
    image = decoded(Item("a", tmp_path / "a.png"), Decoding(steps, Snap.PAD, 10_000, 14))
    np.testing.assert_array_equal(image.pixels, load_image(tmp_path / "a.png", steps))


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"plain text", "is not an image of a format that is opened"),
        (b"", "is not an image of a format that is opened"),
        (encoded(28, 28, "JPEG")[:-200], "cannot be decoded (image file is truncated"),
        (encoded(1, 1), "image of 1x1 pixels is smaller than one patch of 14x14"),
        (encoded(1, 20_000), "image of 1x20000 pixels is smaller than one patch of 14x14"),
    ],
)
def test_why_an_image_cannot_be_used_is_one_line(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jpg"
    file.write_bytes(content)
    assert expected in reason(Item(str(file), file))
    assert expected in reason(Item("shard.tar#bad.jpg", content))


@pytest.mark.parametrize("snap", [Snap.CROP, Snap.CENTER_CROP, Snap.PAD, Snap.RESIZE])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_image_is_scaled_to_fit(snap: Snap, orientation: int) -> None:
    """As the whole image in one step; a JPEG may leave out what that does not need."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = load_image(PHOTOS / "astronaut.jpg")[:400, :300]
    sides = ImageSize(400, 300) if orientation == 1 else ImageSize(300, 400)
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        Image.fromarray(whole).save(buffer, kind, exif=exif, quality=95)
        image = decoded(Item("a", buffer.getvalue()), Decoding(Preprocess(), snap, 10_000, 14))
        assert image.scaled_from == sides
        assert 9_000 < image.size.snapped(snap, 14).pixels <= 10_000
        assert image.size.height / image.size.width == pytest.approx(
            sides.height / sides.width, rel=0.02
        )
        turned = whole if orientation == 1 else np.rot90(whole, -1)
        expected = resize(np.ascontiguousarray(turned), image.size)
        seen = expected if snap is Snap.PAD else _snapped(expected, image.pixels, snap)
        assert np.abs(image.pixels.astype(int) - seen).mean() < 2


def _snapped(expected: np.ndarray, like: np.ndarray, snap: Snap) -> np.ndarray:
    if snap is Snap.RESIZE:
        return resize(expected, ImageSize(*like.shape[:2]))
    centred = snap is Snap.CENTER_CROP
    top, left = ((expected.shape[axis] - like.shape[axis]) // 2 * centred for axis in (0, 1))
    return expected[top:, left:][: like.shape[0], : like.shape[1]]


def test_what_fits_is_not_touched_and_preprocessing_is_never_approximated() -> None:
    content = encoded(300, 400, "JPEG")
    image = decoded(Item("a", content), Decoding(Preprocess(), Snap.CROP, 300 * 400, 14))
    assert image.scaled_from is None
    np.testing.assert_array_equal(image.pixels, load_image(content)[:294, :392])
    steps = Preprocess(short_side=200)
    scaled = decoded(Item("a", content), Decoding(steps, Snap.PAD, 10_000, 14))
    assert scaled.scaled_from == ImageSize(200, 266)
    np.testing.assert_array_equal(scaled.pixels, resize(load_image(content, steps), scaled.size))


def test_without_scaling_a_large_image_is_refused() -> None:
    refusing = Decoding(Preprocess(), Snap.PAD, 10_000, 14, scale=False)
    why = decode(Item("a", encoded(160, 160)), refusing)
    assert isinstance(why, Failure)
    assert "image of 160x160 has 28224 pixels, more than max_pixels=10000; let it be" in why.reason
    assert "--no-scale" in why.reason


def test_a_decompression_bomb_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bomb()
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    assert "is too large: Image size (900000000 pixels) exceeds limit" in reason(Item("a", content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    circle, shard = tmp_path / "circle.jpg", tmp_path / "s.tar"
    circle.symlink_to(circle)
    shard.write_bytes(b"short")
    assert "(Too many levels of symbolic links)" in reason(Item(str(circle), circle))
    assert "(No such file" in reason(Item("a", tmp_path / "gone.jpg"))
    assert f"a: {shard} ends before this image does" in reason(
        Item("a", FileSlice(str(shard), 2, 9))
    )
    gone = FileSlice(str(tmp_path / "gone.tar"), 0, 9)
    assert "gone.tar cannot be read (No such file" in reason(Item("a", gone))


def test_a_failure_stays_what_it_is() -> None:
    failure = Failure("s.tar", "s.tar is damaged")
    assert decode(failure, NATIVE) is failure


# Many images


@pytest.fixture(scope="module")
def two() -> Iterator[Decoders]:
    with Decoders(2) as decoders:
        yield decoders


def chunks_of(folder: Path, sizes: list[int], each: int) -> list[Chunk]:
    files = []
    for index, side in enumerate(sizes):
        file = folder / f"{index}.png"
        file.write_bytes(encoded(side, 28))
        files.append(str(file))
    parts = [tuple(files[start : start + each]) for start in range(0, len(files), each)]
    return [Chunk(index, ImageFiles(part)) for index, part in enumerate(parts)]


def test_images_come_in_order_whichever_is_decoded_first(two: Decoders, tmp_path: Path) -> None:
    sizes = [300, 14, 28, 14, 14, 300, 14, 28, 14, 28, 14]
    chunks = chunks_of(tmp_path, sizes, each=5)
    images = list(decode_chunks(chunks, NATIVE, two, ahead=8))
    assert [image.key for _, image in images] == [
        item.key for chunk in chunks for item in chunk.items()
    ]
    assert [chunk.index for chunk, _ in images] == [0] * 5 + [1] * 5 + [2]
    for (_, image), side in zip(images, sizes, strict=True):
        assert isinstance(image, DecodedImage)
        np.testing.assert_array_equal(image.pixels, noise(side, 28)[: side // 14 * 14])


@pytest.mark.parametrize(("ahead", "images_ahead"), [(8, 8), (1, 8), (24, 24)])
def test_no_more_is_read_ahead_than_asked_for(
    tmp_path: Path, ahead: int, images_ahead: int
) -> None:
    chunks = chunks_of(tmp_path, [14] * 40, each=5)
    with Decoders(0) as decoders:
        images = decode_chunks(chunks, NATIVE, decoders, ahead=ahead)
        next(images)
        decoders.executor.submit(int).result()  # all that was sent has been read by now
        for index in range(images_ahead + 4, 40):
            (tmp_path / f"{index}.png").unlink()  # had one been read, it would not be missed
        rest = [isinstance(image, DecodedImage) for _, image in images]
    read = 1 + sum(rest)
    assert images_ahead <= read <= images_ahead + 4
    assert rest == sorted(rest, reverse=True)


def test_what_is_no_longer_wanted_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = chunks_of(tmp_path, [14] * 40, each=40)
    begun: list[str] = []
    closed = threading.Event()

    def held_up(item: Item, decoding: Decoding) -> DecodedImage | Failure:
        begun.append(item.key)
        if len(begun) > 4:  # the first task is done
            closed.wait()
        return decode(item, decoding)

    monkeypatch.setattr("dinov2rt.extraction.decoding.decode", held_up)
    with Decoders(0) as decoders:
        images = decode_chunks(chunks, NATIVE, decoders, ahead=40)
        next(images)
        images.close()  # type: ignore[attr-defined]
        closed.set()
    assert len(begun) <= 8  # and the task that was at work; eight more had been sent


def test_a_limit_set_in_pillow_holds_in_the_decoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    chunks = chunks_of(tmp_path, [14, 42], each=2)
    with Decoders(1) as decoders:
        _, (_, failure) = decode_chunks(chunks, NATIVE, decoders, ahead=4)
    assert isinstance(failure, Failure)
    assert "exceeds limit of 1000 pixels" in failure.reason


def test_a_decoder_that_dies_is_one_line(tmp_path: Path) -> None:
    chunks = chunks_of(tmp_path, [14] * 40, each=8)
    with Decoders(1) as decoders:
        images = decode_chunks(chunks, NATIVE, decoders, ahead=4)
        next(images)
        (decoder,) = decoders.executor.process_ids()  # type: ignore[attr-defined]
        os.kill(decoder, signal.SIGKILL)
        with pytest.raises(
            Dinov2rtError, match="a decoder process died, perhaps because memory ran out; try fewer"
        ):
            list(images)


def test_a_negative_number_of_decoders_is_refused() -> None:
    with pytest.raises(InputError, match="decoders=-1; allowed is a whole number from 0"):
        Decoders(-1)


ORPHANS = """
import sys, time
from pathlib import Path
from dinov2rt.extraction.chunks import Chunk, ImageFiles
from dinov2rt.extraction.decoding import *
from dinov2rt.bundle.geometry import Snap
from dinov2rt.runtime.preprocess import Preprocess
if __name__ == "__main__":
    chunks = [Chunk(0, ImageFiles((sys.argv[1],) * 8))]
    with Decoders(2) as decoders:
        decoding = Decoding(Preprocess(), Snap.CROP, 10_000, 14)
        list(decode_chunks(chunks, decoding, decoders, ahead=8))
        print(*decoders.executor.process_ids(), flush=True)
        time.sleep(60)
"""


def test_decoders_end_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    script, image = tmp_path / "script.py", tmp_path / "a.png"
    script.write_text(ORPHANS)
    image.write_bytes(encoded(14, 14))
    with subprocess.Popen(
        [sys.executable, str(script), str(image)], stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        decoders = [int(each) for each in caller.stdout.readline().split()]
        assert len(decoders) == 2
        assert all(map(is_running, decoders))
        caller.kill()
    while any(map(is_running, decoders)):  # if they did not end, neither would this test
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
