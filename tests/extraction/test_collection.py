import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import BadShard, Chunk, Failure, Item
from dinov2rt.extraction.collection import find_chunks


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((14, 14, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{index}.png" for index in range(count)]
    for index, file in enumerate(files):
        file.write_bytes(png(index))
    return [str(file) for file in files]


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def write_parquet(file: Path, contents: list[bytes | None], *, binary: bool = False) -> Path:
    rows = contents if binary else [{"bytes": each, "path": None} for each in contents]
    kind = pa.binary() if binary else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"label": list(range(len(contents))), "image": pa.array(rows, kind)})
    pyarrow.parquet.write_table(table, file, row_group_size=3)
    return file


def keys(chunks: list[Chunk]) -> list[list[str]]:
    """With the root before each, so that tests may compare them with files."""
    return [[str(chunk.root / item.key) for item in chunk.items()] for chunk in chunks]


def content(item: Item | Failure) -> bytes:
    assert isinstance(item, Item)
    if isinstance(item.source, bytes):
        return item.source
    if isinstance(item.source, Path):
        return item.source.read_bytes()
    with Path(item.source.file).open("rb") as file:
        file.seek(item.source.offset)
        return file.read(item.source.size_bytes)


# Order and chunks


def test_files_are_cut_into_neighbours_in_the_order_given(tmp_path: Path) -> None:
    files = write_images(tmp_path / "a", 5)
    chunks = find_chunks([tmp_path / "a"], chunk_images=2)
    assert keys(chunks) == [files[:2], files[2:4], files[4:]]
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]


def test_no_chunk_spans_two_shards(tmp_path: Path) -> None:
    files = write_images(tmp_path / "a", 3)
    tar = write_tar(tmp_path / "s.tar", {f"{index}.png": png(index) for index in range(3)})
    chunks = find_chunks([files[0], tar, files[1], files[2]], chunk_images=2)
    assert keys(chunks) == [
        [files[0]],
        [f"{tar}#0.png", f"{tar}#1.png"],
        [f"{tar}#2.png"],
        files[1:],
    ]


def test_equal_chunks_are_known_by_their_identity(tmp_path: Path) -> None:
    files = write_images(tmp_path / "a", 4)
    one, again = (find_chunks([tmp_path / "a"], chunk_images=2) for _ in range(2))
    other = find_chunks(files[1:], chunk_images=2)
    assert [chunk.identity for chunk in one] == [chunk.identity for chunk in again]
    assert {chunk.identity for chunk in one}.isdisjoint(chunk.identity for chunk in other)


def test_a_chunk_can_be_sent_elsewhere(tmp_path: Path) -> None:
    shard = write_parquet(tmp_path / "s.parquet", [png(1), png(2)])
    (chunk,) = find_chunks([shard])
    sent = pickle.loads(pickle.dumps(chunk))
    assert sent == chunk
    assert [content(item) for item in sent.items()] == [png(1), png(2)]


# Keys and their root


@pytest.mark.parametrize(
    ("paths", "root", "wanted"),
    [
        (["photos"], "photos", ["cats/0.png", "dogs/0.png"]),
        (["photos/cats"], "photos/cats", ["0.png"]),
        (["photos/cats/0.png"], "photos/cats", ["0.png"]),
        (["photos/cats", "photos/dogs/0.png"], "photos", ["cats/0.png", "dogs/0.png"]),
        (["photos/*/0.png"], "photos", ["cats/0.png", "dogs/0.png"]),
        (["photos/*"], "photos", ["cats/0.png", "dogs/0.png"]),
    ],
)
def test_keys_are_relative_to_what_was_given_however_it_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    paths: list[str],
    root: str,
    wanted: list[str],
) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.png").write_bytes(png(0))
    monkeypatch.chdir(tmp_path)
    for names in (paths, [str(tmp_path / path) for path in paths]):
        chunks = find_chunks(names)
        assert [key for chunk in chunks for key in chunk.keys] == wanted
        assert {chunk.root for chunk in chunks} == {tmp_path / root}


def test_a_limited_chunk_gives_those_images_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 3)
    write_tar(tmp_path / "s.tar", {f"{index}.png": png(index) for index in range(3)})
    write_parquet(tmp_path / "s.parquet", [png(0), None, png(2)])
    for path, there in (("a", [0, 2]), ("s.tar", [0, 2]), ("s.parquet", [0, 1, 2])):
        (chunk,) = find_chunks([tmp_path / path])
        limited = replace(chunk, only=frozenset({0, 2}))
        items = list(limited.items())
        assert [item.key for item in items] == [chunk.keys[position] for position in there]
        assert len(limited) == 2
        assert limited.identity == chunk.identity


# What a path stands for


def test_patterns_are_sorted_and_name_each_image_once(tmp_path: Path) -> None:
    files = write_images(tmp_path / "a", 3)
    (tmp_path / "a" / "notes.txt").touch()
    assert keys(find_chunks([f"{tmp_path}/**/*.png", files[0]])) == [files]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    odd = tmp_path / "[1].png"
    odd.write_bytes(png(1))
    assert keys(find_chunks([odd])) == [[str(odd)]]


def test_a_folder_without_images_stands_for_its_shards(tmp_path: Path) -> None:
    second = write_tar(tmp_path / "b.tar", {"0.png": png(0)})
    first = write_parquet(tmp_path / "a.parquet", [png(1)])
    write_tar(tmp_path / "_hidden.tar", {"0.png": png(0)})
    (tmp_path / "features.parquet").mkdir()
    assert keys(find_chunks([tmp_path])) == [[f"{first}#0"], [f"{second}#0.png"]]


def test_shards_beside_images_are_left_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "old-features.parquet", [png(1)])
    files = write_images(tmp_path / "deeper", 1)
    assert keys(find_chunks([tmp_path])) == [files]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    files = write_images(tmp_path / "a", 1)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert keys(find_chunks([tmp_path / "a"])) == [files]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "empty holds no image; looked for .apng"),
        ("gone.png", "gone.png cannot be read (No such file"),
        ("gone.tar", "gone.tar cannot be read (No such file"),
        ("*.png", "*.png matches nothing; give files, folders or another pattern"),
        ("circle", "circle cannot be read (Too many levels of symbolic links)"),
    ],
)
def test_paths_that_stand_for_nothing(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError) as caught:
        find_chunks([str(tmp_path / name)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chunks_of_no_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 images per chunk; allowed is a whole number from 1"):
        find_chunks([tmp_path], chunk_images=0)


# Tar shards


def test_tar_members_are_read_where_they_lie(tmp_path: Path) -> None:
    long = "/".join(["long" * 10] * 5)
    members = {f"{long}/0.png": png(0), "0.cls": b"7", "x/._1.png": b"no image", "1.PNG": png(1)}
    tar = write_tar(tmp_path / "s.tar", members)
    (chunk,) = find_chunks([tar])
    assert keys([chunk]) == [[f"{tar}#{long}/0.png", f"{tar}#1.PNG"]]
    assert [content(item) for item in chunk.items()] == [png(0), png(1)]


def damaged_tar(file: Path, keep: int, garbage: bytes) -> Path:
    write_tar(file, {f"{index}.png": png(index) for index in range(3)})
    file.write_bytes(file.read_bytes()[: 1024 * keep] + garbage)  # header and content: 1024 bytes
    return file


@pytest.mark.parametrize(
    ("keep", "garbage", "reason"),
    [
        (2, b"x" * 2048, "damaged header at byte 2048"),
        (2, b"x" * 100, "damaged header at byte 2048"),
        (0, b"no tar at all", "truncated header"),
        (0, b"x" * 1024, "invalid header"),
        (0, b"", "empty file"),
    ],
)
def test_a_damaged_tar_is_one_failure_after_what_is_sound(
    tmp_path: Path, keep: int, garbage: bytes, reason: str
) -> None:
    tar = damaged_tar(tmp_path / "s.tar", keep, garbage)
    *sound, bad = find_chunks([tar], chunk_images=1)
    assert keys(sound) == [[f"{tar}#{index}.png"] for index in range(keep)]
    message = f"{tar} is not a whole, uncompressed tar archive ({reason}); get it again"
    assert list(bad.items()) == [Failure("s.tar", message)]


def test_a_tar_without_images_is_a_failure(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "s.tar", {"0.txt": b"no image"})
    (chunk,) = find_chunks([tar])
    assert chunk.source == BadShard("s.tar", f"{tar} holds no image; leave it out")


# Parquet shards


@pytest.mark.parametrize("binary", [False, True])
def test_parquet_rows_are_cut_across_row_groups(tmp_path: Path, binary: bool) -> None:
    contents: list[bytes | None] = [png(index) for index in range(8)]
    shard = write_parquet(tmp_path / "s.parquet", contents, binary=binary)
    chunks = find_chunks([shard], chunk_images=5)
    assert keys(chunks) == [
        [f"{shard}#{row}" for row in range(5)],
        [f"{shard}#{row}" for row in range(5, 8)],
    ]
    assert [content(item) for chunk in chunks for item in chunk.items()] == contents


def test_an_empty_row_is_a_failure_of_its_own(tmp_path: Path) -> None:
    shard = write_parquet(tmp_path / "s.parquet", [png(0), None, png(2)])
    (chunk,) = find_chunks([shard])
    _, failure, last = chunk.items()
    assert failure == Failure("s.parquet#1", "s.parquet#1 is empty")
    assert content(last) == png(2)


def test_a_column_can_be_named(tmp_path: Path) -> None:
    shard = tmp_path / "s.parquet"
    pyarrow.parquet.write_table(pa.table({"photo": [png(3)]}), shard)
    (chunk,) = find_chunks([shard], image_column="photo")
    assert [content(item) for item in chunk.items()] == [png(3)]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("image", "has no column 'image', only label, photo; name the one with the images"),
        ("label", "has int64 in the column 'label'; allowed are encoded images as binary or as"),
    ],
)
def test_a_parquet_file_without_such_images_is_one_failure(
    tmp_path: Path, column: str, message: str
) -> None:
    shard = tmp_path / "s.parquet"
    pyarrow.parquet.write_table(pa.table({"label": [1, 2], "photo": [png(3), png(4)]}), shard)
    (chunk,) = find_chunks([shard], image_column=column)
    (failure,) = chunk.items()
    assert isinstance(failure, Failure)
    assert failure.key == "s.parquet"
    assert f"{shard} {message}" in failure.reason


def test_what_is_not_parquet_is_one_failure(tmp_path: Path) -> None:
    shard = tmp_path / "s.parquet"
    shard.write_text("no Parquet")
    (chunk,) = find_chunks([shard])
    (failure,) = chunk.items()
    assert isinstance(failure, Failure)
    assert f"{shard} cannot be read as Parquet (" in failure.reason
    assert "\n" not in failure.reason


def test_a_parquet_file_that_is_damaged_inside_keeps_its_other_row_groups(tmp_path: Path) -> None:
    shard = write_parquet(tmp_path / "s.parquet", [png(index) for index in range(9)])
    second = pyarrow.parquet.ParquetFile(shard).metadata.row_group(1)
    page = second.column(1).data_page_offset
    assert second.column(1).path_in_schema == "image.bytes"
    content = bytearray(shard.read_bytes())
    content[page : page + 20] = b"\xff" * 20
    shard.write_bytes(content)
    first, _ = find_chunks([shard], chunk_images=5)
    *sound, failure = first.items()
    assert [item.key for item in sound] == [f"s.parquet#{row}" for row in range(3)]
    assert isinstance(failure, Failure)
    assert failure.key == "s.parquet#3-4"
    assert f"{shard} cannot be read as Parquet (" in failure.reason


def test_a_shard_that_shrank_since_it_was_listed_is_a_failure(tmp_path: Path) -> None:
    shard = write_parquet(tmp_path / "s.parquet", [png(index) for index in range(4)])
    (chunk,) = find_chunks([shard])
    write_parquet(shard, [png(0)])
    first, failure = chunk.items()
    assert content(first) == png(0)
    reason = f"{shard} has only 1 rows now, fewer than when listed"
    assert failure == Failure("s.parquet#1-3", reason)
