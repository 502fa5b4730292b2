"""Shards that would crash the job, fill the memory, or lose images in silence."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinov2rt.bundle.geometry import Snap
from dinov2rt.extraction import shards
from dinov2rt.extraction.chunks import Failure
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.extraction.decoding import DecodedImage, Decoding, decode
from dinov2rt.runtime.preprocess import Preprocess

DECODING = Decoding(Preprocess(), Snap.CROP, max_pixels=2**22, patch_size=14)


def png(grey: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((14, 14, 3), grey, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


IMAGE = png()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **facts: Any) -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for fact, value in facts.items():
        setattr(info, fact, value)
    if kind == tarfile.REGTYPE:
        info.size = len(IMAGE)
    return info


def archive(file: Path, *members: tarfile.TarInfo, content: bytes = IMAGE) -> Path:
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as opened:
        for info in members:
            opened.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return file


def outcomes(*paths: Path, column: str = "image") -> list[str]:
    """For each image its grey, or why it cannot be used; names without their folder."""
    items = [item for chunk in find_chunks(paths, image_column=column) for item in chunk.items()]
    said = []
    for outcome in (decode(item, DECODING) for item in items):
        if isinstance(outcome, DecodedImage):
            said.append(f"{outcome.key.rpartition('#')[2]} {outcome.pixels[0, 0, 0]}")
        else:
            assert isinstance(outcome, Failure)
            assert outcome.reason.isprintable()
            said.append(outcome.reason.rpartition("/")[2])
    return said


def test_links_within_a_shard_are_followed_and_others_are_reported(tmp_path: Path) -> None:
    shard = archive(
        tmp_path / "a.tar",
        member("f/early.png", tarfile.SYMTYPE, "late.png"),
        member("f/late.png"),
        member("hard.png", tarfile.LNKTYPE, "f/late.png"),
        member("chain.png", tarfile.SYMTYPE, "./f/../hard.png"),
        member("out.png", tarfile.SYMTYPE, "../../etc/passwd"),
        member("absolute.png", tarfile.SYMTYPE, "/etc/passwd"),
        member("round.png", tarfile.SYMTYPE, "round.png"),
        member("gone.png", tarfile.LNKTYPE, "gone"),
        member("pipe.png", tarfile.FIFOTYPE),
        member("folder.png", tarfile.DIRTYPE),
    )
    said = outcomes(shard)
    assert said[:4] == ["f/early.png 0", "f/late.png 0", "hard.png 0", "chain.png 0"]
    assert all("is no file in this archive" in line for line in said[4:8])
    assert "no file, but a pipe" in said[8]
    assert len(said) == 9


def test_gnu_tar_makes_links_of_equal_files(tmp_path: Path) -> None:
    first = tmp_path / "first.png"
    first.write_bytes(IMAGE)
    (tmp_path / "second.png").hardlink_to(first)
    shard = tmp_path / "b.tar"
    with tarfile.open(shard, "w") as opened:
        opened.add(first, "first.png")
        opened.add(tmp_path / "second.png", "second.png")
        assert opened.getmember("second.png").islnk()
    assert outcomes(shard) == ["first.png 0", "second.png 0"]


@pytest.mark.parametrize(
    ("headers", "lost"),
    [
        ({"size": "abc"}, 2),
        ({"size": "-5"}, 1),
        ({"size": "9" * 30}, 1),
        ({"GNU.sparse.map": "0,5"}, 1),
        ({"comment": "x" * 2**21}, 1),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_impossible_header_costs_what_follows_it_and_no_other_shard(
    headers: dict[str, str], lost: int, tmp_path: Path
) -> None:
    bad = member("bad.png", pax_headers=headers)
    first = archive(tmp_path / "a.tar", member("a.png"), bad)
    second = archive(tmp_path / "b.tar", member("b.png"))
    said = outcomes(first, second)
    assert said[0] == "a.png 0"
    assert said[-1] == "b.png 0"
    assert len(said) == 2 + lost


def test_a_sparse_member_costs_itself_alone(tmp_path: Path) -> None:
    sparse = member("bad.png", pax_headers={"GNU.sparse.map": "0,5"})
    said = outcomes(archive(tmp_path / "a.tar", member("a.png"), sparse, member("z.png")))
    assert said == [
        "a.png 0",
        "a.tar#bad.png: stored as a sparse file, which is not read",
        "z.png 0",
    ]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_gigabytes_is_not_read(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 2**32
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(info.tobuf())
        file.truncate(2**32 + 2048)
    (said,) = outcomes(tmp_path / "a.tar")
    assert "a header of 4294967296 bytes; allowed are 1048576" in said


def test_thousands_of_headers_for_one_member_are_damage(tmp_path: Path) -> None:
    empty = tarfile.TarInfo("x")
    empty.type = tarfile.XHDTYPE
    (tmp_path / "a.tar").write_bytes(empty.tobuf() * 3000 + bytes(1024))
    (said,) = outcomes(tmp_path / "a.tar")
    assert "not a whole, uncompressed tar" in said


def test_a_member_too_large_to_be_read_is_refused_with_the_limit(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.png")
    info.size = 2**33
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33 + 2048)
    (said,) = outcomes(tmp_path / "a.tar")
    assert "allowed are 268435456, since it is read into memory" in said


def test_names_keep_their_bytes_in_keys_and_not_in_messages(tmp_path: Path) -> None:
    name = "\x1b[2J.png"
    shard = archive(
        tmp_path / "a.tar", member(name), member("bad" + name, tarfile.SYMTYPE, name * 2)
    )
    items = [item for chunk in find_chunks([shard]) for item in chunk.items()]
    assert [item.key.rpartition("#")[2] for item in items] == [name, "bad" + name]
    assert isinstance(items[1], Failure)
    assert items[1].reason.isprintable()


def parquet(file: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


STRUCT = {"bytes": IMAGE, "path": "a.png"}


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"image": [IMAGE]}, "image"),
        ({"image": [STRUCT]}, "image"),
        ({"image": [STRUCT | {"path": 5, "more": [1.5]}]}, "image"),
        ({"image.bytes": [IMAGE]}, "image.bytes"),
        ({"image.bytes": [b"none"], "image": [STRUCT]}, "image"),
        ({"image": [IMAGE], "image.x": [b"none"]}, "image"),
        ({"image.bytes": [IMAGE], "image": [{"bytes": b"none", "path": ""}]}, "image.bytes"),
        ({"": [IMAGE]}, ""),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else value,
)
def test_a_column_is_told_from_others_by_its_whole_name(
    columns: dict[str, Any], column: str, tmp_path: Path
) -> None:
    assert outcomes(parquet(tmp_path / "a.parquet", columns), column=column) == ["0 0"]


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [{"bytes": 5}]},
        {"image": [{"bytes": [IMAGE]}]},
        {"image": [{"bytes": {"bytes": IMAGE}}]},
        {"image": [{"data": IMAGE}]},
        {"image": [[IMAGE]]},
        {"image": ["text"]},
        {f"column {index}" * 20: [1] for index in range(200)},
        {"\x1b[2J": [IMAGE]},
    ],
    ids=lambda columns: str(columns)[:40],
)
def test_a_column_without_images_is_one_row_of_errors(
    columns: dict[str, Any], tmp_path: Path
) -> None:
    sound = parquet(tmp_path / "b.parquet", {"image": [IMAGE]})
    said = outcomes(parquet(tmp_path / "a.parquet", columns), sound)
    assert said[1:] == ["0 0"]
    assert len(said[0]) < 800


def test_columns_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([IMAGE]), pa.array([b"x"])], names=["image", "image"])
    pq.write_table(twice, tmp_path / "a.parquet")
    assert "has several columns 'image'; rename all but one" in outcomes(tmp_path / "a.parquet")[0]


def test_few_rows_are_read_together_where_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_BYTES_AT_A_TIME", 2 * len(IMAGE))
    file = parquet(tmp_path / "a.parquet", {"image": [png(grey) for grey in range(9)]})
    with pq.ParquetFile(file) as opened:
        assert shards._rows_at_a_time(opened.metadata.row_group(0)) in (1, 2)
    assert outcomes(file) == [f"{grey} {grey}" for grey in range(9)]


def test_the_keys_of_a_sound_shard_are_what_they_were(tmp_path: Path) -> None:
    """A folder of features that was begun before links were followed is resumed."""
    (chunk,) = find_chunks([archive(tmp_path / "a.tar", member("a.png"))])
    assert json.loads(chunk.identity)[2] == [["a.png", 512 * 1, len(IMAGE)]]
