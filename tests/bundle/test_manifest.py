import hashlib
import json
import resource
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinov2rt.bundle.entries import (
    FileEntry,
    Flavour,
    GraphEntry,
    PlanEntry,
    VerificationEntry,
    WeightsEntry,
)
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.precision import CalibrationEntry, Precision, QuantizationEntry
from dinov2rt.bundle.profiles import ProfileEntry, ShapeRange
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import BundleError

Document = dict[str, Any]

FILE = FileEntry(path="fp32.onnx", size_bytes=5, sha256="a" * 64)
GRAPH = GraphEntry(
    precision=Precision.FP32,
    opset=23,
    input_name="pixels",
    outputs=("cls_token", "patch_tokens"),
    layers=(),
    files=(FILE, replace(FILE, path="fp32.onnx.data")),
)
PLAN = PlanEntry(
    file=replace(FILE, path="plans/sm80.plan"),
    flavour=Flavour.TENSORRT,
    version="10.14",
    target="sm80",
    precision=Precision.FP16,
    input_name="pixels",
    outputs=("cls_token",),
    profiles=(
        ProfileEntry(
            "b8-224", ShapeRange.pinned(ImageSize(224, 224), max_batch=8), scratch_bytes=7
        ),
    ),
    fused_attention=12,
    weight_bytes=8,
    build_seconds=1.5,
    graph_sha256="b" * 64,
    options={"optimization_level": "5"},
)
VERIFICATION = VerificationEntry(
    machine="NVIDIA A100", driver="580.1", date="2026-01-31", cosine_min=0.99, relative_l2=1e-3
)
MANIFEST = Manifest(
    schema=SCHEMA_VERSION,
    architecture=find_variant("dinov2_vits14").architecture,
    weights=WeightsEntry(source="synthetic:0", sha256="c" * 64),
    graphs=(GRAPH,),
    golden=replace(FILE, path="golden.npz"),
    plans=(PLAN, replace(PLAN, verification=VERIFICATION)),
    tools={"torch": "2.13.0"},
)


def document_of(bundle: Path) -> Document:
    document: Document = json.loads((bundle / MANIFEST_NAME).read_text())
    return document


def write(bundle: Path, document: Any) -> None:
    (bundle / MANIFEST_NAME).write_text(json.dumps(document))


def read_error(bundle: Path) -> str:
    with pytest.raises(BundleError) as error:
        Manifest.read(bundle)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    MANIFEST.write(tmp_path)
    return tmp_path


# Reading what was written


def test_what_is_written_is_read_back(bundle: Path) -> None:
    assert Manifest.read(bundle) == MANIFEST


def test_the_file_is_plain_json_with_names_for_types(bundle: Path) -> None:
    document = document_of(bundle)
    assert document["schema"] == 2
    assert document["variant"] == "dinov2_vits14"
    assert document["graphs"][0]["precision"] == "fp32"
    assert document["graphs"][0]["files"][0] == {
        "path": "fp32.onnx",
        "size_bytes": 5,
        "sha256": "a" * 64,
    }
    assert document["plans"][0]["verification"] is None


def test_the_architecture_is_stated_whole_and_the_name_is_for_people(bundle: Path) -> None:
    document = document_of(bundle)
    assert document["architecture"] == {
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 6,
        "ffn": "mlp",
        "hidden_dim": 1536,
        "patch_size": 14,
        "num_registers": 0,
        "native_grid": {"rows": 37, "cols": 37},
        "antialias": False,
        "offset": 0.1,
        "normalization": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "layer_scale": True,
        "qkv_bias": True,
    }
    document["variant"] = "whatever"
    write(bundle, document)
    assert Manifest.read(bundle) == MANIFEST


def test_one_that_none_of_the_variants_is_has_a_label(bundle: Path) -> None:
    grid = Grid(16, 24)
    other = replace(MANIFEST.architecture, patch_size=16, num_registers=8, native_grid=grid)
    manifest = replace(MANIFEST, architecture=other)
    manifest.write(bundle)
    assert document_of(bundle)["variant"] is None
    assert Manifest.read(bundle) == manifest
    assert manifest.name == "dinov2_384x12_patch16_reg8"
    assert manifest.rebuild_command(Path("out")).startswith(
        "rebuild with: dinov2rt export auto --weights synthetic:0 --precision fp32 "
        "--antialias off --offset 0.1 --num-heads 6 --grid 16x24 "
    )


def test_a_bundle_of_the_first_schema_is_read() -> None:
    own = Normalization((0.7072, 0.5786, 0.7036), (0.2119, 0.2301, 0.1776))
    architecture = replace(MANIFEST.architecture, normalization=own)
    assert Manifest.read(Path(__file__).with_name("schema1")) == replace(
        MANIFEST, architecture=architecture
    )


def test_a_bundle_of_the_first_schema_without_statistics_has_those_of_imagenet(
    tmp_path: Path,
) -> None:
    document = document_of(Path(__file__).with_name("schema1"))
    del document["normalization"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    assert Manifest.read(tmp_path) == MANIFEST


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (["dinov2_vits14"], "manifest.variant is list, must be str"),
        ("dinov2_vits15", "unknown variant 'dinov2_vits15'; nearest is 'dinov2_vits14', all are: "),
    ],
)
def test_a_misshapen_bundle_of_the_first_schema(
    tmp_path: Path, variant: object, reason: str
) -> None:
    document = document_of(Path(__file__).with_name("schema1")) | {"variant": variant}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    assert f"is incomplete or misshapen ({reason}" in read_error(tmp_path)


def test_keys_of_a_later_version_are_left_out(bundle: Path) -> None:
    document = document_of(bundle)
    document["signature"] = {"key": "value"}
    document["graphs"][0]["quantization"] = None
    document["golden"]["compression"] = "none"
    write(bundle, document)
    assert Manifest.read(bundle) == MANIFEST


def test_what_has_a_default_may_be_missing(bundle: Path) -> None:
    document = document_of(bundle)
    del document["plans"], document["tools"]
    write(bundle, document)
    assert Manifest.read(bundle) == replace(MANIFEST, plans=(), tools={})


# What cannot be read


def test_no_bundle(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert read_error(nowhere) == (
        f"{nowhere} is not a bundle: manifest.json cannot be read (No such file or directory); "
        f"make one with: dinov2rt export VARIANT --weights W --out {nowhere}"
    )


def test_a_file_is_not_a_bundle(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.touch()
    assert f"{file} is not a bundle: manifest.json cannot be read (Not a dir" in read_error(file)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"schema": 1,', b"\xff\xfe", b"[" * 100_000],
    ids=["empty", "cut short", "not UTF-8", "nested without end"],
)
def test_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    message = read_error(tmp_path)
    assert message.startswith(f"{tmp_path / MANIFEST_NAME} is not JSON (")
    assert message.endswith("); export the bundle again")


@pytest.mark.parametrize(
    "document",
    [[], "manifest", None, {}, {"schema": "1"}, {"schema": True}, {"schema": 1.0}, {"schema": 0}],
)
def test_no_schema_version(tmp_path: Path, document: Any) -> None:
    write(tmp_path, document)
    expected = f"{tmp_path / MANIFEST_NAME} states no schema version; export the bundle again"
    assert read_error(tmp_path) == expected


def test_newer_schema(bundle: Path) -> None:
    write(bundle, document_of(bundle) | {"schema": SCHEMA_VERSION + 1})
    assert read_error(bundle) == (
        f"{bundle / MANIFEST_NAME} has schema 3, this dinov2rt reads up to 2; "
        "upgrade dinov2rt, or export the bundle again with this version"
    )


def set_(*path: str | int, to: Any) -> Callable[[Document], None]:
    """Replaces the value at `path`."""

    def damage(document: Document) -> None:
        *parents, last = path
        for step in parents:
            document = document[step]  # type: ignore[index]
        document[last] = to  # type: ignore[index]

    return damage


def without(*path: str | int) -> Callable[[Document], None]:
    """Removes the key at `path`."""

    def damage(document: Document) -> None:
        *parents, last = path
        for step in parents:
            document = document[step]  # type: ignore[index]
        del document[last]  # type: ignore[arg-type]

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without("golden"), "Manifest.__init__() missing 1 required positional argument: 'golden'"),
        (
            without("graphs", 0, "opset"),
            "GraphEntry.__init__() missing 1 required positional argument: 'opset'",
        ),
        (set_("golden", to=[]), "manifest.golden is list, must be dict"),
        (set_("golden", to=None), "manifest.golden is NoneType, must be dict"),
        (set_("graphs", to={}), "manifest.graphs is dict, must be list"),
        (set_("graphs", to="fp32"), "manifest.graphs is str, must be list"),
        (set_("graphs", 0, to=[]), "manifest.graphs[0] is list, must be dict"),
        (set_("graphs", 0, "opset", to="23"), "manifest.graphs[0].opset is str, must be int"),
        (set_("graphs", 0, "opset", to=True), "manifest.graphs[0].opset is bool, must be int"),
        (
            set_("graphs", 0, "files", 1, "size_bytes", to=1.5),
            "manifest.graphs[0].files[1].size_bytes is float, must be int",
        ),
        (set_("tools", "torch", to=2), "manifest.tools.torch is int, must be str"),
        (set_("tools", to=["torch"]), "manifest.tools is list, must be dict"),
        (
            set_("architecture", "embed_dim", to="384"),
            "manifest.architecture.embed_dim is str, must be int",
        ),
        (
            set_("architecture", "num_heads", to=5),
            "embed_dim 384 is not divisible by 5 heads",
        ),
        (set_("architecture", "ffn", to="moe"), "ffn 'moe' is neither mlp nor swiglu"),
        (
            set_("architecture", "offset", to=1),
            "offset 1.0 of the interpolation; allowed are 0 to below 1",
        ),
        (without("architecture", "depth"), "Architecture.__init__() missing 1 required keyword"),
        (
            set_("architecture", "native_grid", "rows", to=0),
            "sizes below 1, or registers below 0, in Architecture(",
        ),
        (set_("graphs", 0, "precision", to="int4"), "'int4' is not a valid Precision"),
        (
            set_("graphs", 0, "input_name", to="image"),
            "input_name 'image' is neither pixels nor images",
        ),
        (set_("graphs", 0, "files", to=[]), "a graph must have files and outputs"),
        (set_("graphs", 0, "outputs", to=[]), "a graph must have files and outputs"),
    ],
)
def test_misshapen(bundle: Path, damage: Callable[[Document], None], reason: str) -> None:
    document = document_of(bundle)
    damage(document)
    write(bundle, document)
    message = read_error(bundle)
    start, end = (
        f"{bundle / MANIFEST_NAME} is incomplete or misshapen (",
        "); export the bundle again",
    )
    assert message.startswith(start)
    assert message.endswith(end)
    assert message.removeprefix(start).removesuffix(end).startswith(reason)


@pytest.mark.parametrize("path", ["../fp32.onnx", "/etc/passwd", "plans/../../x", "", ".", "a\0b"])
@pytest.mark.parametrize("place", [("golden",), ("graphs", 0, "files", 0)])
def test_a_path_out_of_the_bundle_is_refused(
    bundle: Path, path: str, place: tuple[str | int, ...]
) -> None:
    document = document_of(bundle)
    set_(*place, "path", to=path)(document)
    write(bundle, document)
    assert f"(path {path!r} does not lie in the bundle)" in read_error(bundle)


# Writing


def test_a_failed_write_leaves_the_old_manifest(bundle: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(BundleError) as error:
            replace(MANIFEST, tools={}).write(bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == (
        f"{bundle / MANIFEST_NAME} cannot be written (File too large); "
        "free the disk or choose another place"
    )
    assert Manifest.read(bundle) == MANIFEST
    assert list(bundle.iterdir()) == [bundle / MANIFEST_NAME]


def test_a_reader_never_sees_half_a_manifest(bundle: Path) -> None:
    large = replace(MANIFEST, tools={f"tool{index}": "1.0" * 100 for index in range(1000)})
    done = threading.Event()

    def rewrite() -> None:
        for _ in range(20):
            large.write(bundle)
            MANIFEST.write(bundle)
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        while not done.is_set():
            assert Manifest.read(bundle) in (MANIFEST, large)
    finally:
        writer.join()
    assert [file.name for file in bundle.iterdir()] == [MANIFEST_NAME]


# Files


@pytest.fixture
def entry(tmp_path: Path) -> FileEntry:
    (tmp_path / "data.bin").write_bytes(b"weights")
    return FileEntry.of(tmp_path, "data.bin")


def check_error(root: Path, entry: FileEntry) -> str:
    with pytest.raises(BundleError) as error:
        entry.check(root, rebuild="rebuild with: make")
    return str(error.value)


def test_an_entry_is_measured_and_checked(tmp_path: Path, entry: FileEntry) -> None:
    assert entry == FileEntry("data.bin", 7, hashlib.sha256(b"weights").hexdigest())
    assert entry.check(tmp_path, rebuild="") == tmp_path / "data.bin"


def test_missing_file(tmp_path: Path, entry: FileEntry) -> None:
    (tmp_path / "data.bin").unlink()
    assert check_error(tmp_path, entry) == (
        f"{tmp_path / 'data.bin'} cannot be read (No such file or directory), "
        "but the manifest names it; rebuild with: make"
    )


def test_truncated_file(tmp_path: Path, entry: FileEntry) -> None:
    (tmp_path / "data.bin").write_bytes(b"weight")
    assert check_error(tmp_path, entry) == (
        f"{tmp_path / 'data.bin'} has 6 bytes, the manifest says 7; rebuild with: make"
    )


def test_one_flipped_bit(tmp_path: Path, entry: FileEntry) -> None:
    (tmp_path / "data.bin").write_bytes(b"weightr")
    assert check_error(tmp_path, entry) == (
        f"{tmp_path / 'data.bin'} has SHA-256 {hashlib.sha256(b'weightr').hexdigest()[:16]}…, "
        f"the manifest says {entry.sha256[:16]}…; rebuild with: make"
    )


def test_a_directory_in_place_of_a_file(tmp_path: Path, entry: FileEntry) -> None:
    (tmp_path / "data.bin").unlink()
    (tmp_path / "data.bin").mkdir()
    size = (tmp_path / "data.bin").stat().st_size
    assert "(it is a folder, not a regular file)" in check_error(
        tmp_path, replace(entry, size_bytes=size)
    )


# The way back


@pytest.mark.parametrize(
    ("graph", "options"),
    [
        (GRAPH, ""),
        (replace(GRAPH, input_name="images"), "--input normalized "),
        (replace(GRAPH, layers=(2, 11)), "--layers 2,11 "),
    ],
)
def test_rebuild_command_repeats_the_export(graph: GraphEntry, options: str) -> None:
    manifest = replace(MANIFEST, graphs=(graph, replace(graph, precision=Precision.FP16)))
    assert manifest.rebuild_command(Path("out")) == (
        "rebuild with: dinov2rt export dinov2_vits14 --weights synthetic:0 "
        f"--precision fp32,fp16 {options}--out out --force"
    )


def test_rebuild_command_repeats_the_calibration() -> None:
    calibration = CalibrationEntry(("my photos", "a.jpg"), 9, "0" * 64, 16, 116, 116)
    entry = QuantizationEntry((), 0.9996, 0.999, 1.0, 1.0, calibration)
    int8 = replace(GRAPH, precision=Precision.INT8, quantization=entry)
    command = replace(MANIFEST, graphs=(GRAPH, int8)).rebuild_command(Path("out"))
    assert "--precision fp32,int8 --calibration 'my photos' a.jpg --out out --force" in command


def test_rebuild_command_can_be_pasted_into_a_shell() -> None:
    manifest = replace(MANIFEST, weights=replace(MANIFEST.weights, source="my weights.pth"))
    command = manifest.rebuild_command(Path("my bundle"))
    assert "--weights 'my weights.pth' --precision fp32 " in command
    assert command.endswith("--out 'my bundle' --force")


@pytest.mark.parametrize(
    ("source", "normalization", "options"),
    [
        # Another file may have come to lie beside the weights.
        ("w.pth", IMAGENET, "--mean=0.485,0.456,0.406 --std=0.229,0.224,0.225 "),
        (
            "synthetic:0",
            Normalization((-0.5, 0.5, 0.5)),
            "--mean=-0.5,0.5,0.5 --std=0.229,0.224,0.225 ",
        ),
        ("official", IMAGENET, ""),
    ],
)
def test_rebuild_command_repeats_the_statistics(
    source: str, normalization: Normalization, options: str
) -> None:
    weights = replace(MANIFEST.weights, source=source)
    architecture = replace(MANIFEST.architecture, normalization=normalization)
    manifest = replace(MANIFEST, weights=weights, architecture=architecture)
    command = manifest.rebuild_command(Path("out"))
    assert f"--precision fp32 {options}--out out --force" in command
