"""Files that would start a program, wait for ever, or eat the memory: one line each, at once."""

import os
import signal
import socket
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.golden import Golden
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.tasks.classifier_file import read_classifier
from dinov2rt.errors import BundleError, Dinov2rtError, InputError
from dinov2rt.extraction.chunks import Failure
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.extraction.decoding import Decoding, decode
from dinov2rt.extraction.reader import read_features
from dinov2rt.extraction.shards import parquet_images, tar_images
from dinov2rt.files import open_regular, read_regular
from dinov2rt.runtime.images import FORMATS, load_image
from dinov2rt.runtime.preprocess import Preprocess

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
(touched) (w) file closefile
showpage
"""
HANGS_AFTER_S = 120


def _hangs(*_: object) -> None:
    raise TimeoutError("it waits for something that never comes")


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """A test that would hang fails instead; it is no measure of speed."""
    before = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(HANGS_AFTER_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


Make = Callable[[Path], None]
KINDS = pytest.mark.parametrize("make", [pipe, listening, endless, folder])


@KINDS
def test_only_regular_files_are_opened(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may be short only
    make(Path("it"))
    with pytest.raises(OSError, match=r"not a regular file|No such device|Is a directory"):
        open_regular(Path("it"))


@KINDS
@pytest.mark.parametrize(
    "read",
    [
        lambda path: Manifest.read(path.parent),
        lambda path: Golden.read(path),
        lambda path: load_image(path),
        lambda path: list(tar_images(path)),
        lambda path: parquet_images(path, "image"),
        lambda path: FileEntry("manifest.json", 0, "0").check(path.parent, rebuild="again"),
        read_features,
        read_classifier,
    ],
    ids=["manifest", "golden", "image", "tar", "parquet", "weights", "features", "classifier"],
)
def test_each_reader_refuses_them_in_one_line(
    make: Make, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("b/manifest.json")
    path.parent.mkdir()
    make(path)
    with pytest.raises(Dinov2rtError, match=r"^[^\n]+$"):
        read(path)


def test_what_is_read_whole_has_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(11))
    assert len(read_regular(file, 11)) == 11
    with pytest.raises(OSError, match="larger than the 10 bytes"):
        read_regular(file, 10)


def test_a_manifest_of_gigabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as stream:
        stream.truncate(2**33)
    with pytest.raises(BundleError, match="larger than"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["holiday.jpg", "holiday.eps", "holiday.png"])
def test_a_program_that_is_called_an_image_is_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(EPS)

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("subprocess.check_call", start)
    with pytest.raises(InputError, match="is EPS, not an image of a format that is opened"):
        load_image(tmp_path / name)
    with pytest.raises(InputError, match="is EPS, not an image of a format that is opened"):
        load_image((tmp_path / name).read_bytes())


def test_in_a_folder_each_of_them_is_a_row_of_the_errors_that_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    folder.mkdir()
    Image.new("RGB", (14, 14)).save(folder / "sound.png")
    (folder / "holiday.jpg").write_bytes(EPS)
    (folder / "psd.png").write_bytes(b"8BPS\0\1" + bytes(30))
    for name, make in (("pipe.jpg", pipe), ("socket.jpg", listening), ("zero.jpg", endless)):
        make(folder / name)
    decoding = Decoding(Preprocess(), Snap.CROP, max_pixels=2**22, patch_size=14)
    items = [item for chunk in find_chunks([folder]) for item in chunk.items()]
    outcomes = [decode(item, decoding) for item in items]
    failures = {each.key: each.reason for each in outcomes if isinstance(each, Failure)}
    assert len(outcomes) == len(failures) + 1
    for key, reason in failures.items():
        said = {"holiday.jpg": "is EPS, not", "psd.png": "is PSD, not"}.get(key, "cannot be read (")
        assert said in reason
        assert reason.isprintable()


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_of_the_list_is_opened(image_format: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    file = tmp_path / "image.bin"
    try:
        Image.fromarray(pixels).save(file, format=image_format)
    except (KeyError, OSError) as error:  # this Pillow was built without it
        pytest.skip(str(error))
    assert load_image(file).shape == (16, 20, 3)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    fields = struct.pack(
        "100s8s8s8s12s12s8s1s100s6s2s",
        name.encode(),
        b"0000644\0",
        b"0" * 7 + b"\0",
        b"0" * 7 + b"\0",
        size,
        b"0" * 11 + b"\0",
        b" " * 8,
        kind,
        b"",
        b"ustar\0",
        b"00",
    ).ljust(512, b"\0")
    checksum = f"{sum(fields):06o}\0 ".encode()
    return fields[:148] + checksum + fields[156:]


@pytest.mark.parametrize(
    "size",
    [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0", b"zzzzzzzzzzz\0", b"-0000000001\0"],
    ids=["negative", "huge", "beyond the end", "letters", "minus"],
)
def test_a_header_with_an_impossible_size_costs_its_shard(size: bytes, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(header("image.jpg", size) + bytes(1024))
    try:
        members = list(tar_images(shard))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(member.size_bytes >= 0 for member in members)


def test_every_byte_of_a_header_may_change(tmp_path: Path) -> None:
    """With a right checksum, so that the header is taken at its word."""
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        (tmp_path / "image.jpg").write_bytes(b"x" * 600)
        archive.add(tmp_path / "image.jpg", "image.jpg")
    sound, random = bytearray(shard.read_bytes()), np.random.default_rng(0)
    for _ in range(1500):
        changed = bytearray(sound)
        at = int(random.integers(0, 512))
        changed[at] = int(random.integers(0, 256))
        changed[148:156] = b" " * 8
        changed[148:156] = f"{sum(changed[:512]):06o}\0 ".encode()
        shard.write_bytes(changed)
        try:
            list(tar_images(shard))
        except InputError as error:
            assert "\n" not in str(error)
