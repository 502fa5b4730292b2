"""Chunks through a real model into a dataset, and the command that does it, killed and resumed."""

import dataclasses
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet
import pytest
from onnx import helper
from PIL import Image

from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import Dinov2rtError
from dinov2rt.extraction.chunks import Chunk
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.extraction.dataset import PartReport
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, ImageOutcome
from dinov2rt.extraction.extractor import Extractor, feature_metadata
from dinov2rt.extraction.reader import read_features
from dinov2rt.runtime.model import Model, load
from dinov2rt.runtime.preprocess import Preprocess

OPTIONS = ExtractOptions(batch=3)
WIDTH = 384


@pytest.fixture
def quick_bundle(pooling_bundle: Path) -> Path:
    """Colours, repeated until they are as wide as ViT-S tokens: loads in milliseconds."""
    graph_file = pooling_bundle / "fp32.onnx"
    model = onnx.load(graph_file)
    renamed = {"cls_token": "colour", "patch_tokens": "colours"}
    for node in model.graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for name, axes in (("cls_token", [1]), ("patch_tokens", [1, 1])):
        repeats = helper.make_node("Constant", [], [f"{name}_x"], value_ints=[*axes, WIDTH // 3])
        model.graph.node.append(repeats)
        model.graph.node.append(helper.make_node("Tile", [renamed[name], f"{name}_x"], [name]))
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[-1].dim_value = WIDTH
    onnx.save(model, graph_file)
    (pooling_bundle / "fp32.onnx.data").unlink()
    manifest = Manifest.read(pooling_bundle)
    entry = FileEntry.of(pooling_bundle, "fp32.onnx")
    graph = dataclasses.replace(manifest.graphs[0], files=(entry,))
    dataclasses.replace(manifest, graphs=(graph,)).write(pooling_bundle)
    return pooling_bundle


@pytest.fixture
def quick_model(quick_bundle: Path) -> Iterator[Model]:
    with load(quick_bundle, device="cpu") as model:
        yield model


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with Decoders(0) as pool:
        yield pool


def encoded(index: int, side: int = 14) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (side, 14, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:04}.png").write_bytes(encoded(index, side=14 + 14 * (index % 3)))
    return folder


@pytest.fixture
def extractor(quick_model: Model, decoders: Decoders, tmp_path: Path) -> Extractor:
    return Extractor.into(tmp_path / "f.parquet", quick_model, OPTIONS, decoders)


def table_of(extractor: Extractor) -> Any:
    return read_features(extractor.dataset.folder)


def run_all(extractor: Extractor, chunks: list[Chunk]) -> list[PartReport]:
    with extractor.dataset.resumed(chunks) as missing:
        return list(extractor.process(missing))


# In this process


def test_rows_are_what_the_model_says(extractor: Extractor, tmp_path: Path) -> None:
    chunks = find_chunks([write_images(tmp_path / "images", 10)], chunk_images=4)
    reports = run_all(extractor, chunks)
    assert reports == [PartReport(4, 0), PartReport(4, 0), PartReport(2, 0)]
    records = table_of(extractor).to_pylist()
    items = [item for chunk in chunks for item in chunk.items()]
    assert [record["key"] for record in records] == [item.key for item in items]
    for record in records:
        with Image.open(chunks[0].root / record["key"]) as image:
            colour = np.asarray(image).mean((0, 1))
        np.testing.assert_allclose(record["cls_token"], np.tile(colour, WIDTH // 3), rtol=1e-5)


def test_a_chunk_gives_the_same_file_alone_and_among_others(
    extractor: Extractor, tmp_path: Path
) -> None:
    chunks = find_chunks([write_images(tmp_path / "images", 23)], chunk_images=9)
    together = extractor.dataset
    alone = dataclasses.replace(together, folder=tmp_path / "alone.parquet")
    run_all(extractor, chunks)
    each = dataclasses.replace(extractor, dataset=alone)
    with alone.resumed(chunks):
        for chunk in reversed(chunks):
            report, again = each.process_chunk(chunk), each.process_chunk(chunk)
            assert report == again == PartReport(len(chunk), 0)
    for chunk in chunks:
        assert together.part(chunk).read_bytes() == alone.part(chunk).read_bytes()


def test_a_chunk_that_is_done_is_not_computed_again(extractor: Extractor, tmp_path: Path) -> None:
    chunks = find_chunks([write_images(tmp_path / "images", 9)], chunk_images=3)
    seen: list[ImageOutcome] = []
    with extractor.dataset.resumed(chunks):
        extractor.process_chunk(chunks[1])
        parts = extractor.process(chunks, watch=seen.append)
        assert len(list(parts)) == 2
    assert [Path(outcome.key).stem for outcome in seen] == [f"{n:04}" for n in (0, 1, 2, 6, 7, 8)]
    assert table_of(extractor).num_rows == 9


def test_chunks_are_read_ahead_but_not_all_of_them(extractor: Extractor, tmp_path: Path) -> None:
    chunks = find_chunks([write_images(tmp_path / "images", 200)], chunk_images=2)
    asked: list[int] = []

    def watched() -> Iterator[Chunk]:
        for chunk in chunks:
            asked.append(chunk.index)
            yield chunk

    with extractor.dataset.resumed(chunks):
        parts = extractor.process(watched())
        next(parts)
        assert 4 < len(asked) < 40
        parts.close()
    assert not list(extractor.dataset.folder.glob(".*"))


def test_what_cannot_be_committed_is_one_line_and_leaves_no_half_part(
    extractor: Extractor, tmp_path: Path
) -> None:
    chunks = find_chunks([write_images(tmp_path / "images", 9)], chunk_images=3)
    dataset = extractor.dataset
    with dataset.resumed(chunks):
        (dataset.folder / "_errors").rmdir()
        (dataset.folder / "_errors").write_text("no folder")
        done = extractor.process(chunks[:1])
        with pytest.raises(Dinov2rtError, match=r"cannot be written \(Not a directory\)"):
            list(done)
    assert not list(dataset.folder.glob(".*"))


@pytest.mark.parametrize(
    ("preprocess", "name"),
    [
        (Preprocess(), "native"),
        (Preprocess(256, 224), "classification"),
        (Preprocess(518), "short-side:518"),
        (Preprocess(518, 400), "short-side:518,crop:400"),
    ],
)
def test_metadata_names_the_preprocessing(
    quick_model: Model, preprocess: Preprocess, name: str
) -> None:
    metadata = feature_metadata(quick_model, ExtractOptions(preprocess=preprocess), Path())
    assert metadata["preprocess"] == name


def test_another_process_gets_the_same_extractor(extractor: Extractor, tmp_path: Path) -> None:
    (chunk,) = find_chunks([write_images(tmp_path / "images", 3)])
    run_all(extractor, [chunk])
    (part,) = read_bytes(extractor)
    copy = pickle.loads(pickle.dumps(extractor.on_cores(1)))
    with copy.model, copy.decoders:
        assert copy.model.options.precision == str(extractor.model.graph.precision)
        assert (copy.model.options.threads, copy.decoders.count) == (1, 1)
        extractor.dataset.part(chunk).unlink()
        copy.process_chunk(chunk)
    assert read_bytes(extractor) == [part]


def read_bytes(extractor: Extractor) -> list[bytes]:
    return [part.read_bytes() for part in extractor.dataset.folder.glob("part-*")]


# The command


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dinov2rt", "run", *map(str, arguments)]


def write_collection(folder: Path) -> list[Path]:
    """Files, two shards, and something bad of each kind: 198 images and 4 failures."""
    images = write_images(folder / "images", 120)
    (images / "0007.png").write_text("a text file")
    (images / "0100.png").write_bytes(encoded(0)[:60])
    tar = folder / "s.tar"
    with tarfile.open(tar, "w") as archive:
        for index in range(40):
            info = tarfile.TarInfo(f"{index}.png")
            content = encoded(1000 + index)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    shard = folder / "s.parquet"
    rows = [{"bytes": encoded(2000 + index), "path": None} for index in range(41)]
    rows[5] = {"bytes": encoded(0, side=1), "path": None}
    pyarrow.parquet.write_table(pa.table({"image": rows}), shard, row_group_size=16)
    bad = folder / "bad.parquet"
    bad.write_text("no Parquet")
    return [images, tar, bad, shard]


KILLED_AT = """
import os, signal, sys
left, out = int(sys.argv[1]), sys.argv[2]

def kill_at_last(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and out in str(arguments[0]):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

from dinov2rt.cli import main
sys.addaudithook(kill_at_last)
sys.exit(main(sys.argv[3:]))
"""
"""The command, which kills itself before a step that it takes in the output folder."""


def killed_at(step: int, out: Path, *arguments: object) -> int:
    """The exit status of `dinov2rt run`, killed before its step number `step` in `out`."""
    run = [sys.executable, "-c", KILLED_AT, str(step), str(out), *command(*arguments)[3:]]
    return subprocess.run(run, check=False, capture_output=True).returncode


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_ends_as_if_it_never_was(
    quick_bundle: Path, tmp_path: Path, times: int
) -> None:
    steps = random.Random(times)  # noqa: S311
    paths = write_collection(tmp_path)
    options = ["--part-images", "6", "--batch", "3"]
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    for _ in range(times):
        step = steps.randint(1, 15)
        arguments = (quick_bundle, *paths, "--out", killed, *options, "--decoders", "2")
        assert killed_at(step, killed, *arguments) == -signal.SIGKILL, step
    for out in (killed, whole):
        ended = subprocess.run(
            command(quick_bundle, *paths, "--out", out, *options, "--decoders", "0"),
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 1, ended.stderr
        assert f"4 of 202 images failed; see {out}/_errors" in ended.stdout
    assert contents(killed) == contents(whole)
    table = read_features(killed)
    assert table.num_rows == 198 == len(set(table["key"].to_pylist()))
    assert not list(killed.rglob("*.partial"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few parts; only root may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def test_a_disk_that_fills_up_is_one_line_and_the_rest_is_done_later(
    quick_bundle: Path, small_disk: Path, tmp_path: Path
) -> None:
    images, out = write_images(tmp_path / "images", 60), small_disk / "f.parquet"
    arguments = command(quick_bundle, images, "--out", out, "--part-images", "6", "--decoders", "1")
    full = subprocess.run(arguments, capture_output=True, text=True)
    assert full.returncode == 2
    (line,) = full.stderr.splitlines()
    assert "cannot be written (No space left on device); free the disk or choose" in line
    assert not list(out.rglob("*.partial"))
    assert len(list(out.glob("part-*"))) in range(1, 10)
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)  # noqa: S607
    assert subprocess.run(arguments, capture_output=True).returncode == 0
    assert read_features(out).num_rows == 60
