import contextlib
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.extraction import parquet as feature_table
from dinov2rt.extraction.chunks import Chunk, Failure, ImageFiles, ParquetRange, file_state
from dinov2rt.extraction.dataset import FeatureDataset, PartReport
from dinov2rt.extraction.image_features import ImageFeatures, ScaledImages
from dinov2rt.extraction.parquet import FeatureType, read_rows
from dinov2rt.extraction.reader import open_features, read_features

WIDTH = 384
METADATA = {
    "variant": "dinov2_vits14_reg",
    "weights_sha256": "12ab",
    "architecture": "34ef",
    "precision": "fp32",
    "preprocess": "native",
    "snap": "crop",
    "dtype": "float32",
    "patch_tokens": "no",
    "max_pixels": "1000",
    "over_max_pixels": "scale",
    "root": "/photos",
    "note": "été",
}


def chunks_of(*parts: Sequence[str]) -> list[Chunk]:
    return [Chunk(index, ImageFiles(tuple(part))) for index, part in enumerate(parts)]


CHUNKS = chunks_of(["a", "b"], ["c"], ["d", "e"])


def row(key: str, *, registers: int = 4, grid: Grid | None = None) -> ImageFeatures:
    rng = np.random.default_rng(list(key.encode()))

    def tokens(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, WIDTH), dtype=np.float32)

    cells = grid or Grid(2, 3)
    return ImageFeatures(
        key=key,
        size=ImageSize(14 * cells.rows + 5, 14 * cells.cols + 1),
        grid=cells,
        cls_token=tokens(),
        register_tokens=tokens(registers),
        patch_mean=tokens(),
        patch_tokens=tokens(cells.num_patches) if grid else None,
    )


def rows_of(chunk: Chunk) -> list[ImageFeatures]:
    return [row(item.key) for item in chunk.items()]


@pytest.fixture
def dataset(tmp_path: Path) -> FeatureDataset:
    variant = find_variant("dinov2_vits14_reg")
    return FeatureDataset(
        tmp_path / "f.parquet", variant, FeatureType.FLOAT32, False, dict(METADATA)
    )


def variation(dataset: FeatureDataset, **changes: Any) -> FeatureDataset:
    return replace(dataset, metadata={**dataset.metadata, **changes})


def fill(dataset: FeatureDataset, chunks: list[Chunk]) -> None:
    with dataset.resumed(chunks) as missing:
        for chunk in missing:
            dataset.stage(chunk, rows_of(chunk)).commit()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Parts


@pytest.mark.parametrize("dtype", FeatureType)
def test_a_dataset_is_one_table_to_every_reader(
    dataset: FeatureDataset, dtype: FeatureType
) -> None:
    dataset = replace(variation(dataset, dtype=str(dtype)), dtype=dtype)
    fill(dataset, CHUNKS)
    table = pyarrow.parquet.read_table(dataset.folder)
    number = pa.float16() if dtype is FeatureType.FLOAT16 else pa.float32()
    assert table.schema.field("cls_token").type == pa.list_(number, WIDTH)
    assert table.schema.field("register_tokens").type == pa.list_(pa.list_(number, WIDTH), 4)
    assert table["key"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert pyarrow.dataset.dataset(dataset.folder).count_rows() == 5
    for record, key in zip(table.to_pylist(), "abcde", strict=True):
        wanted = row(key)
        assert (record["height"], record["width"]) == (33, 43)
        assert (record["grid_rows"], record["grid_cols"]) == (2, 3)
        for name in ("cls_token", "register_tokens", "patch_mean"):
            stored = np.array(record[name], np.float32)
            np.testing.assert_array_equal(stored, getattr(wanted, name).astype(str(dtype)))


def test_metadata_stands_in_every_part(dataset: FeatureDataset) -> None:
    fill(dataset, CHUNKS)
    for chunk in CHUNKS:
        metadata = pyarrow.parquet.read_schema(dataset.part(chunk)).metadata
        for key, value in METADATA.items():
            assert metadata[f"dinov2rt.{key}".encode()].decode() == value


def test_patch_tokens_of_different_grids_share_a_part(
    dataset: FeatureDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_table, "_ROW_GROUP_BYTES", 20_000)
    dataset = replace(dataset, patch_tokens=True)
    grids = {"a": Grid(2, 3), "b": Grid(1, 1), "c": Grid(4, 2)}
    rows = [row(key, grid=grid) for key, grid in grids.items()]
    dataset.folder.joinpath("_errors").mkdir(parents=True)
    dataset.stage(CHUNKS[0], rows).commit()
    part = dataset.part(CHUNKS[0])
    assert pyarrow.parquet.ParquetFile(part).num_row_groups > 1
    stored = pyarrow.parquet.read_table(part)["patch_tokens"].to_pylist()
    for tokens, wanted in zip(stored, rows, strict=True):
        assert wanted.patch_tokens is not None
        np.testing.assert_array_equal(np.float32(tokens), wanted.patch_tokens)


def test_a_variant_without_registers_has_no_such_column(dataset: FeatureDataset) -> None:
    plain = replace(dataset, architecture=find_variant("dinov2_vits14"))
    with plain.resumed(CHUNKS):
        plain.stage(CHUNKS[1], [row("c", registers=0)]).commit()
    assert "register_tokens" not in pyarrow.parquet.read_schema(plain.part(CHUNKS[1])).names


def test_what_does_not_fit_into_float16_is_refused(dataset: FeatureDataset) -> None:
    half = replace(dataset, dtype=FeatureType.FLOAT16)
    large = replace(row("c"), cls_token=np.full(WIDTH, -1e5, np.float32))
    with (
        half.resumed(CHUNKS),
        pytest.raises(
            InputError, match="a feature of 100000 is beyond halffloat, which ends at 65504; use"
        ),
    ):
        half.stage(CHUNKS[1], [large])
    assert files_in(half.folder) == set()


def test_keys_that_are_not_unicode_are_escaped(dataset: FeatureDataset) -> None:
    chunks = chunks_of(["caf\udce9.jpg", "b"])
    with dataset.resumed(chunks):
        staged = dataset.stage(
            chunks[0], [row("b"), Failure("caf\udce9.jpg", "caf\udce9.jpg torn")]
        )
        staged.commit()
    (failure,) = pyarrow.parquet.read_table(dataset.folder / "_errors").to_pylist()
    assert failure.pop("file_state") == "No such file or directory"
    assert failure == {"key": "caf\\udce9.jpg", "reason": "caf\\udce9.jpg torn"}


# Failures


def test_failures_are_a_table_that_readers_of_features_do_not_see(dataset: FeatureDataset) -> None:
    failures = [Failure("b", "b is torn", "1 2 3"), Failure("c", "c is torn", "4 5 6")]
    with dataset.resumed(CHUNKS):
        one = dataset.stage(CHUNKS[0], [row("a"), failures[0]]).commit()
        other = dataset.stage(CHUNKS[1], [failures[1]]).commit()
        dataset.stage(CHUNKS[2], rows_of(CHUNKS[2])).commit()
    assert (one, other) == (PartReport(1, 1), PartReport(0, 1))
    assert [dataset.report(chunk) for chunk in CHUNKS] == [one, other, PartReport(2, 0)]
    assert pyarrow.parquet.read_table(dataset.folder)["key"].to_pylist() == ["a", "d", "e"]
    errors = pyarrow.parquet.read_table(dataset.folder / "_errors")
    assert errors.to_pylist() == [asdict(failure) for failure in failures]


def test_failures_of_a_try_that_was_cut_off_do_not_stay(dataset: FeatureDataset) -> None:
    with dataset.resumed(CHUNKS):
        cut_off = dataset.stage(CHUNKS[1], [Failure("c", "the network was down")])
        cut_off.partial(cut_off.errors).replace(cut_off.errors)  # and then the power failed
    fill(dataset, CHUNKS)
    assert dataset.report(CHUNKS[1]) == PartReport(1, 0)
    assert list((dataset.folder / "_errors").iterdir()) == []


# Resuming


def test_what_is_done_is_not_missing_and_what_is_half_written_goes(dataset: FeatureDataset) -> None:
    with dataset.resumed(CHUNKS) as missing:
        assert missing == CHUNKS
        dataset.stage(CHUNKS[0], rows_of(CHUNKS[0])).commit()
        dataset.stage(CHUNKS[1], [Failure("c", "torn")])  # killed before it was committed
    assert len(files_in(dataset.folder)) == 3
    with dataset.resumed(CHUNKS) as missing:
        assert missing == CHUNKS[1:]
        assert files_in(dataset.folder) == {dataset.part(CHUNKS[0]).name}
    assert [dataset.has(chunk) for chunk in CHUNKS] == [True, False, False]


def test_a_part_is_the_same_from_whoever_writes_it(dataset: FeatureDataset) -> None:
    fill(dataset, CHUNKS)
    part = dataset.part(CHUNKS[0])
    content = part.read_bytes()
    elsewhere, chunk = pickle.loads(pickle.dumps((dataset, CHUNKS[0])))
    one, other = (elsewhere.stage(chunk, rows_of(chunk)) for _ in range(2))
    one.commit()
    other.commit()
    assert part.read_bytes() == content
    assert len(files_in(dataset.folder)) == 3


@pytest.mark.parametrize(
    ("key", "value", "way"),
    [
        ("variant", "dinov2_vitb14", "the bundle of dinov2_vits14_reg"),
        ("weights_sha256", "34cd", "the bundle that was exported from the weights 12ab"),
        ("architecture", "0000", "the bundle whose architecture has the fingerprint 34ef"),
        ("precision", "fp16", "--precision fp32"),
        ("preprocess", "classification", "--preprocess native"),
        ("snap", "pad", "--snap crop"),
        ("dtype", "float16", "--dtype float32"),
        ("patch_tokens", "yes", "without --patch-tokens"),
        ("max_pixels", "2000", "--max-pixels 1000"),
        ("over_max_pixels", "refuse", "without --no-scale"),
        ("root", "/others", "the images in /photos"),
    ],
)
def test_other_options_are_named_with_the_way_to_go_on(
    dataset: FeatureDataset, key: str, value: str, way: str
) -> None:
    fill(dataset, CHUNKS)
    before = files_in(dataset.folder)
    with pytest.raises(InputError) as caught:
        fill(variation(dataset, **{key: value}), CHUNKS)
    assert str(caught.value) == (
        f"{dataset.folder} was begun with {key} {METADATA[key]}, and this is {value}. "
        f"To go on with it: {way}. To begin anew, write to another folder"
    )
    assert files_in(dataset.folder) == before


def test_parts_of_other_options_without_features_make_way(dataset: FeatureDataset) -> None:
    with dataset.resumed(CHUNKS) as missing:
        for chunk in missing:
            dataset.stage(chunk, [Failure(key, "too large") for key in chunk.keys]).commit()
    fill(variation(dataset, max_pixels="2000"), CHUNKS)
    assert read_features(dataset.folder)["key"].to_pylist() == list("abcde")
    assert len(files_in(dataset.folder)) == len(CHUNKS)


# Trying again


@pytest.fixture
def torn(dataset: FeatureDataset, tmp_path: Path) -> list[Chunk]:
    """Chunks of files, of which a, b and d failed when they were computed."""
    for key in "abcde":
        (tmp_path / key).write_text(key)
    chunks = [replace(chunk, root=tmp_path) for chunk in CHUNKS]
    with dataset.resumed(chunks):
        for chunk in chunks:
            dataset.stage(chunk, outcomes_of(chunk, torn="abd")).commit()
    return chunks


def outcomes_of(chunk: Chunk, torn: str = "") -> list[ImageFeatures | Failure]:
    return [
        Failure(item.key, "torn", file_state(chunk.file_of(item.key)))
        if item.key in torn
        else row(item.key)
        for item in chunk.items()
    ]


def retried(missing: list[Chunk]) -> list[str]:
    return [item.key for chunk in missing for item in chunk.items()]


def test_failed_images_are_tried_again_once_their_files_have_changed(
    dataset: FeatureDataset, torn: list[Chunk], tmp_path: Path
) -> None:
    with dataset.resumed(torn) as missing:
        assert missing == []
    (tmp_path / "b").write_text("repaired")
    (tmp_path / "c").write_text("was good, and still is")
    with dataset.resumed(torn) as missing:
        assert retried(missing) == ["b"]
        for chunk in missing:
            dataset.stage(chunk, outcomes_of(chunk)).commit()
    assert [dataset.report(chunk) for chunk in torn] == [
        PartReport(1, 1),
        PartReport(1, 0),
        PartReport(1, 1),
    ]
    assert read_features(dataset.folder)["key"].to_pylist() == ["b", "c", "e"]
    with dataset.resumed(torn) as missing:
        assert missing == []


def test_all_failed_images_are_tried_again_on_request(
    dataset: FeatureDataset, torn: list[Chunk]
) -> None:
    with dataset.resumed(torn, retry_failed=True) as missing:
        assert retried(missing) == ["a", "b", "d"]
        for chunk in missing:
            dataset.stage(chunk, outcomes_of(chunk, torn="b")).commit()
            dataset.stage(chunk, outcomes_of(chunk, torn="b")).commit()  # as after a lost node
    table = read_features(dataset.folder)
    assert table["key"].to_pylist() == ["a", "c", "d", "e"]
    for record in table.to_pylist():
        np.testing.assert_array_equal(np.float32(record["cls_token"]), row(record["key"]).cls_token)
    (failure,) = pyarrow.parquet.read_table(dataset.folder / "_errors").to_pylist()
    assert failure["key"] == "b"


def test_a_changed_shard_is_tried_again_as_a_whole(dataset: FeatureDataset, tmp_path: Path) -> None:
    shard = tmp_path / "s.parquet"
    shard.write_text("damaged")
    chunk = Chunk(0, ParquetRange("s.parquet", "image", 0, 4), tmp_path)
    with dataset.resumed([chunk]):
        failure = Failure("s.parquet#2-3", "damaged", file_state(shard))
        dataset.stage(chunk, [row("s.parquet#0"), row("s.parquet#1"), failure]).commit()
    shard.write_text("got again")
    with dataset.resumed([chunk]) as missing:
        (again,) = missing
        assert again.only == {2, 3}
        dataset.stage(again, [row("s.parquet#2"), row("s.parquet#3")]).commit()
    assert dataset.report(chunk) == PartReport(4, 0)
    assert not list((dataset.folder / "_errors").iterdir())


def test_rows_come_back_as_they_were_written(dataset: FeatureDataset) -> None:
    wide = replace(dataset, patch_tokens=True)
    scaled = replace(row("a", grid=Grid(2, 3)), scaled_from=ImageSize(300, 400))
    with wide.resumed(CHUNKS):
        report = wide.stage(CHUNKS[0], [scaled, row("b", grid=Grid(1, 1))]).commit()
    assert report.scaled == ScaledImages(1, ImageSize(300, 400), ImageSize(300, 400))
    assert wide.report(CHUNKS[0]) == report
    first, second = read_rows(wide.part(CHUNKS[0]))
    assert (first.scaled_from, second.scaled_from) == (ImageSize(300, 400), None)
    for got, wanted in ((first, scaled), (second, row("b", grid=Grid(1, 1)))):
        assert (got.key, got.size, got.grid) == (wanted.key, wanted.size, wanted.grid)
        for name in ("cls_token", "register_tokens", "patch_mean", "patch_tokens"):
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))


@pytest.mark.parametrize(
    "others",
    [
        chunks_of(["a", "b"], ["c"], ["d", "other"]),
        chunks_of(["b", "a"], ["c"], ["d", "e"]),
        chunks_of(["a"], ["b"], ["c"], ["d"], ["e"]),
        chunks_of(["a", "b"], ["c"]),
    ],
    ids=["other", "order", "size", "fewer"],
)
def test_other_images_are_noticed(dataset: FeatureDataset, others: list[Chunk]) -> None:
    fill(dataset, CHUNKS)
    with pytest.raises(InputError, match="was begun with other images, another order or another"):
        fill(dataset, others)


def test_what_does_not_matter_to_the_features_may_change(dataset: FeatureDataset) -> None:
    fill(dataset, CHUNKS)
    with variation(dataset, note="another version").resumed(CHUNKS) as missing:
        assert missing == []


@pytest.mark.parametrize("content", [b"text", b""])
def test_files_of_others_are_not_mixed_in(dataset: FeatureDataset, content: bytes) -> None:
    dataset.folder.mkdir()
    (dataset.folder / "mine.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.txt is not part of a feature dataset; write to"):
        fill(dataset, CHUNKS)
    assert "mine.txt" in files_in(dataset.folder)


def test_two_processes_do_not_resume_the_same_folder(dataset: FeatureDataset) -> None:
    with (
        dataset.resumed(CHUNKS),
        pytest.raises(InputError, match=r"another process is writing .*f\.parquet; wait"),
        dataset.resumed(CHUNKS),
    ):
        pass
    fill(dataset, CHUNKS)


# A system that refuses


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_what_was_done(dataset: FeatureDataset) -> None:
    with dataset.resumed(CHUNKS):
        dataset.stage(CHUNKS[0], rows_of(CHUNKS[0])).commit()
        with (
            file_size_limit(1000),
            pytest.raises(
                Dinov2rtError, match=r"part-.*\.parquet cannot be written \(File too large\); free"
            ) as caught,
        ):
            dataset.stage(CHUNKS[1], rows_of(CHUNKS[1]))
    assert "\n" not in str(caught.value)
    assert files_in(dataset.folder) == {dataset.part(CHUNKS[0]).name}
    fill(dataset, CHUNKS)
    assert read_features(dataset.folder).num_rows == 5


def test_a_part_that_cannot_get_its_name_is_one_line(dataset: FeatureDataset) -> None:
    with dataset.resumed(CHUNKS):
        staged = dataset.stage(CHUNKS[0], rows_of(CHUNKS[0]))
        dataset.part(CHUNKS[0]).mkdir()
        with pytest.raises(Dinov2rtError, match=r"cannot be written \(Is a directory\); free"):
            staged.commit()
    assert files_in(dataset.folder) == set()


def test_a_folder_that_cannot_be_made_is_one_line(dataset: FeatureDataset) -> None:
    dataset.folder.touch()
    with pytest.raises(Dinov2rtError, match=r"f\.parquet cannot be written \(.*(exists|directory)"):
        fill(dataset, CHUNKS)


# Reading


def test_columns_are_read_in_the_order_of_the_collection(dataset: FeatureDataset) -> None:
    fill(dataset, CHUNKS)
    table = read_features(dataset.folder, ["cls_token", "key"])
    assert table.column_names == ["cls_token", "key"]
    assert table["key"].to_pylist() == ["a", "b", "c", "d", "e"]


def test_several_datasets_of_one_model_are_one_table(
    dataset: FeatureDataset, tmp_path: Path
) -> None:
    more, chunks = replace(dataset, folder=tmp_path / "g.parquet"), chunks_of(["x"], ["y"])
    fill(dataset, CHUNKS)
    fill(more, chunks)
    single = str(more.part(chunks[1]))
    table = read_features([dataset.folder, single])
    assert table["key"].to_pylist() == ["a", "b", "c", "d", "e", "y"]
    batches = open_features(dataset.folder).to_batches(columns=["key"])
    assert [key for batch in batches for key in batch["key"].to_pylist()] == list("abcde")


@pytest.mark.parametrize(
    "key", ["variant", "weights_sha256", "architecture", "precision", "preprocess", "snap"]
)
def test_features_of_different_models_are_not_read_together(
    dataset: FeatureDataset, tmp_path: Path, key: str
) -> None:
    other = replace(variation(dataset, **{key: "else"}), folder=tmp_path / "g.parquet")
    fill(dataset, CHUNKS)
    fill(other, CHUNKS)
    with pytest.raises(InputError) as caught:
        read_features([dataset.folder, other.folder])
    assert str(caught.value) == (
        f"{dataset.part(CHUNKS[0])} has {key} {METADATA[key]}, but {other.part(CHUNKS[0])} has "
        "else; features of different models cannot be compared, read them one by one"
    )


def test_other_patch_token_options_can_be_read_together(
    dataset: FeatureDataset, tmp_path: Path
) -> None:
    other = replace(variation(dataset, max_pixels="2000"), folder=tmp_path / "g.parquet")
    fill(dataset, CHUNKS)
    fill(other, CHUNKS)
    assert read_features([dataset.folder, other.folder]).num_rows == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "empty holds no features; make some with: dinov2rt run"),
        ("other.parquet", "other.parquet holds no features of dinov2rt; leave it out"),
        ("text.parquet", "text.parquet cannot be read as Parquet (Parquet magic bytes not found"),
        ("gone.parquet", "gone.parquet cannot be read as Parquet (No such file or directory)"),
    ],
)
def test_what_holds_no_features_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    pyarrow.parquet.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(InputError) as caught:
        read_features(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(caught.value)


def test_nothing_to_read_and_unknown_columns_are_named(dataset: FeatureDataset) -> None:
    fill(dataset, CHUNKS)
    with pytest.raises(InputError, match="no path to read features from; give at least one"):
        read_features([])
    with pytest.raises(
        InputError, match="no column 'cls'; there are key, height, width, scaled_from_height"
    ):
        read_features(dataset.folder, ["cls"])


def test_pyarrow_is_imported_only_when_used() -> None:
    modules = "dinov2rt.extraction.extractor, dinov2rt.extraction.collection"
    script = f"import sys, {modules}; sys.exit('pyarrow' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
