import dataclasses
import errno
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import dinov2rt
from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import Golden
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.variants import Variant, find_variant, variants
from dinov2rt.cli import main
from dinov2rt.cli.info import parameter_count
from dinov2rt.cli.options.export import parse_layers
from dinov2rt.cli.verify import parse_sizes
from dinov2rt.errors import InputError
from dinov2rt.export.crops import PHOTOS
from dinov2rt.export.weights.state_dict import official_shapes
from dinov2rt.place import built_beside
from dinov2rt.runtime.backends.openvino import cannot_run_bf16
from dinov2rt.runtime.images import load_image

CopyOf = Callable[[Path], Path]

MEANINGLESS = "these features mean nothing"


@dataclasses.dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, as one strict JSON document."""

        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line in this process."""

    def run(*argv: object) -> Result:
        status = main([str(argument) for argument in argv])
        return Result(status, *capsys.readouterr())

    return run


def run_without(blocked: Sequence[str], folder: Path, *command: object) -> Result:
    """Python in a child process in which importing `blocked` fails."""
    # To the import system, None stands for a module that does not exist.
    hide = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)}))"
    (folder / "sitecustomize.py").write_text(hide)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two small photographs of unequal size."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    for name, (width, height) in {"a.png": (70, 56), "b.png": (43, 31)}.items():
        with Image.open(PHOTOS / "coffee.jpg") as photo:
            photo.resize((width, height)).save(folder / name)
    return folder


@pytest.fixture
def torn(photos: Path) -> Path:
    """An unreadable image beside the good ones."""
    path = photos / "torn.jpg"
    path.write_bytes(b"no image")
    return path


def assert_one_line(result: Result, *fragments: str) -> None:
    (line,) = result.err.splitlines()
    assert line.startswith("dinov2rt: error: ")
    for fragment in fragments:
        assert fragment in line


# Usage and errors


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (["exprot"], "invalid choice: 'exprot' (choose from 'export', 'build', 'verify'"),
        (["verify"], "required: BUNDLE; see: dinov2rt verify --help"),
        (["verify", "nowhere"], "nowhere is not a bundle"),
        (["verify", "with a space/b"], "--out"),
        (["verify", "nowhere", "--threads", "two"], "invalid int value: 'two'"),
        (["verify", "nowhere", "--size", "28x28"], "add --eager"),
        (["verify", "nowhere", "--eager", "--size", "x"], "sizes 'x'; allowed are SIDE or"),
        (["info", "nowhere"], "nowhere is not a bundle"),
        (["info", "--check"], "dinov2rt info BUNDLE"),
        (["run", "nowhere", "a.png"], "nothing to write; give --out"),
        (["run", "nowhere", "a.png", "--out", "f.npy"], "'.npy'; allowed: .npz, .csv, .parquet"),
        (["run", "nowhere", "a.png", "--pca", "f.jpg"], "'.jpg'; allowed for --pca: .png"),
        (["run", "nowhere", "a.png", "--pca", "no/f.png"], "no/f.png cannot be written"),
        (["run", "nowhere", "a.png", "--pca", "f.png", "--patch-tokens"], "give --out FILE"),
        (["run", "nowhere", "a.png", "--out", "f.npz", "--batch", "0"], "from 1"),
        (["run", "nowhere", "a.png", "--out", "f.npz", "--snap", "up"], "unknown snap 'up'"),
        (["run", "nowhere", "a.png", "--out", "f.npz", "--preprocess", "x"], "unknown preprocess"),
        (["run", "nowhere", "gone.png", "--out", "f.npz"], "gone.png cannot be read"),
        (["export", "dinov2_vits15"], "nearest is 'dinov2_vits14'"),
        (["export", "dinov2_vits14", "--input", "x"], "choose from 'pixels', 'normalized'"),
        (["export", "dinov2_vits14", "--layers", "-1,5"], "'-1,5'; allowed for dinov2_vits14"),
        (["export", "dinov2_vits14", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["export", "dinov2_vits14", "--weights", "gone.pth", "--out", "x"], "'gone.pth' cannot"),
        (["doctor", "nowhere"], "nowhere is not a bundle"),
        (["report", "gone.json"], "gone.json cannot be read"),
        (["report"], "docs/performance.md cannot be read"),
    ],
)
def test_bad_usage_and_bad_input_are_one_line_and_status_2(
    argv: list[str],
    fragment: str,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*argv)
    assert (result.status, result.out) == (2, "")
    assert_one_line(result, fragment)


@pytest.mark.parametrize("argv", [["verify", "nowhere", "--json"], ["--json", "nonsense"]])
def test_with_json_an_error_is_a_document_as_well(argv: list[str], call: Call) -> None:
    result = call(*argv)
    assert result.status == 2
    assert_one_line(result, result.document["error"]["message"])


def test_debug_adds_the_traceback(call: Call) -> None:
    result = call("verify", "nowhere", "--debug")
    assert result.err.startswith("Traceback (most recent call last)")
    assert result.err.splitlines()[-1].startswith("dinov2rt: error: ")


@pytest.mark.parametrize("argv", [["info", "--json"], ["--json", "info"]])
def test_global_options_stand_before_or_after_the_verb(argv: list[str], call: Call) -> None:
    assert len(call(*argv).document["variants"]) == 8


def test_help_and_version_end_well(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, text in [(["--help"], "VERB"), (["--version"], dinov2rt.__version__)]:
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert not ended.value.code
        assert text in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "dinov2rt", "info"], stdout=out, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "dinov2rt", "info"], stdout=out, stderr=subprocess.PIPE
        )
    assert done.returncode == 2
    assert done.stderr == b"dinov2rt: error: No space left on device\n"


def test_ctrl_c_is_one_line_and_status_130(bundle_s_reg: Path, tmp_path: Path) -> None:
    for index in range(500):
        (tmp_path / f"{index}.jpg").symlink_to(PHOTOS / "chelsea.jpg")
    out = tmp_path / "f.npz"
    arguments = ["run", bundle_s_reg, tmp_path, "--out", out, "--preprocess", "short-side:112"]
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dinov2rt", *map(str, arguments), "--batch", "1"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        # A job in the background ignores SIGINT, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(stderr)
    said = b""
    while b"/500 images, " not in said:
        said += os.read(terminal, 1000)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == b""
    said += os.read(terminal, 10_000)
    os.close(terminal)
    assert process.returncode == 130
    assert said.endswith(b"dinov2rt: interrupted\r\n")
    assert b"Traceback" not in said
    assert not list(tmp_path.glob("f.npz*"))


# export


@pytest.mark.parametrize(
    ("text", "layers"),
    [("2,5,8,11", (2, 5, 8, 11)), ("11, 2", (2, 11)), ("last4", (8, 9, 10, 11)), ("0", (0,))],
)
def test_layers_are_block_indices_in_ascending_order(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, find_variant("dinov2_vits14")) == layers


@pytest.mark.parametrize("text", ["", "-1", "12", "3,3", "a", "2,,5", "last0", "last13", "last"])
def test_other_layers_are_refused_with_the_range(text: str) -> None:
    with pytest.raises(InputError, match=r"from 0 to 11, .* lastN with N from 1 to 12"):
        parse_layers(text, find_variant("dinov2_vits14"))


@pytest.fixture
def toy(toy_variant: Callable[[str], Variant], monkeypatch: pytest.MonkeyPatch) -> str:
    """A ninth variant, small enough to be exported in a test."""
    variant = dataclasses.replace(toy_variant("dinov2_vits14"), name="toy")
    monkeypatch.setattr("dinov2rt.bundle.variants._TABLE", (*variants(), variant))
    return variant.name


def test_export_makes_a_bundle_and_verifies_it(call: Call, toy: str, tmp_path: Path) -> None:
    out = tmp_path / "a bundle"
    argv = ["export", toy, "--weights", "synthetic:3", "--out", out]
    result = call(
        *argv,
        "--input",
        "normalized",
        "--layers",
        "last2",
        "--json",
        "--precision",
        "fp32,fp16,bf16",
    )
    assert (result.status, result.err) == (0, "")
    document = result.document
    manifest = Manifest.read(out)
    assert document["bundle"] == str(out)
    assert document["weights"] == dataclasses.asdict(manifest.weights)
    assert (document["input"], document["layers"]) == ("images", [0, 1])
    assert document["outputs"][-1] == "layer_1_patch_tokens"
    stored = [file for file in out.iterdir() if file.name != "manifest.json"]
    assert document["size_bytes"] == sum(file.stat().st_size for file in stored)
    assert document["passed"]
    # bf16 is the fp32 graph on this CPU; fp16 twice: the graph for the CPU, and the one for CUDA
    bf16 = ["bf16"] if cannot_run_bf16() is None else []
    verified = [report["precision"] for report in document["verified"]]
    assert verified == ["fp32", "fp16", *bf16, "fp16"]
    assert {compared["case"] for compared in document["verified"][0]["outputs"]} >= {"518x518"}
    assert list(document["not_verified"]) == ["bf16"]

    again = call(*argv)
    assert again.status == 2
    assert_one_line(again, "holds a bundle already; --force replaces it")


def test_export_to_an_impossible_place_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "bundle"
    result = call("export", "dinov2_vits14", "--weights", "synthetic:0", "--out", out)
    assert result.status == 2
    assert_one_line(result, f"{out} cannot be written", "choose another --out")


@pytest.mark.parametrize("out", [".", "missing/..", "link", "../work"])
def test_export_in_place_of_the_current_directory_is_refused_at_once(
    call: Call, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    if out == "link":
        out = "../link"
        Path(out).symlink_to(work)
    result = call("export", "dinov2_vits14", "--weights", "missing.pth", "--out", out)
    assert result.status == 2
    assert_one_line(result, f"{work} is the current directory, which ", f"--out {work / 'bundle'}")


def test_export_in_place_of_a_mount_point_is_refused_at_once(call: Call) -> None:
    result = call("export", "dinov2_vits14", "--weights", "missing.pth", "--out", "/")
    assert result.status == 2
    assert_one_line(result, "/ is a mount point, which ", "--out /bundle")


Refuse = Callable[[Callable[[Path, Path], bool]], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """From now on, renames from here to there fail where the given function says so."""

    def start(refused: Callable[[Path, Path], bool]) -> None:
        rename = Path.rename

        def watched(path: Path, target: Path) -> Path:
            if refused(path, target):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", watched)
        monkeypatch.setattr("dinov2rt.place._exchanged", lambda *_: False)

    return start


@pytest.fixture
def old_bundle(tmp_path: Path) -> Path:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("old")
    return bundle


def replace_bundle(out: Path) -> None:
    with built_beside(out) as partial:
        (partial / "manifest.json").write_text("new")


def test_nothing_is_left_beside_a_bundle_that_replaces_another(old_bundle: Path) -> None:
    replace_bundle(old_bundle)
    assert (old_bundle / "manifest.json").read_text() == "new"
    assert list(old_bundle.parent.iterdir()) == [old_bundle]


@pytest.mark.parametrize("prefix", ["bundle", ".bundle."], ids=["the old one", "the new one"])
def test_a_bundle_that_cannot_be_replaced_stays_where_it_was(
    old_bundle: Path, prefix: str, refuse: Refuse
) -> None:
    refuse(lambda path, _: path.name.startswith(prefix))
    with pytest.raises(OSError, match="busy"):
        replace_bundle(old_bundle)
    assert (old_bundle / "manifest.json").read_text() == "old"
    assert list(old_bundle.parent.iterdir()) == [old_bundle]


def test_a_bundle_that_cannot_be_put_back_is_not_deleted(old_bundle: Path, refuse: Refuse) -> None:
    refuse(lambda _, target: target == old_bundle)
    with pytest.raises(OSError, match="busy") as error:
        replace_bundle(old_bundle)
    assert (Path(error.value.filename) / "manifest.json").read_text() == "old"


# verify


def test_verify_prints_a_row_for_each_output_and_a_verdict(call: Call, bundle_s_reg: Path) -> None:
    result = call("verify", bundle_s_reg, "--device", "cpu", "--threads", "2")
    assert (result.status, result.err) == (0, "")
    header, *rows, verdict = result.out.splitlines()
    assert header.split()[:3] == ["case", "output", "cosine_min"]
    assert len(rows) == 4 * 3
    assert all(row.endswith("pass") for row in rows)
    assert verdict.startswith("passed: fp32 on openvino")


def test_verify_fails_with_status_1_when_an_output_differs(
    call: Call, bundle_s_reg: Path, copy_of: CopyOf
) -> None:
    bundle = copy_of(bundle_s_reg)
    rewrite_golden(bundle, lambda cls_token: cls_token * 1.1)
    result = call("verify", bundle)
    assert result.status == 1
    failed = [line.split()[:2] for line in result.out.splitlines() if line.endswith("FAIL")]
    assert failed == [["98x126", "cls_token"]]
    assert result.out.splitlines()[-1].startswith("FAILED: ")


def test_verify_reports_nan_in_valid_json(call: Call, bundle_s_reg: Path, copy_of: CopyOf) -> None:
    bundle = copy_of(bundle_s_reg)
    rewrite_golden(bundle, lambda cls_token: cls_token * np.float32("nan"))
    result = call("verify", bundle, "--json")
    assert result.status == 1
    document = result.document
    assert document["passed"] is False
    (failed,) = [entry for entry in document["report"]["outputs"] if not entry["passed"]]
    assert (failed["output"], failed["cosine_min"]) == ("cls_token", None)


def rewrite_golden(bundle: Path, change: Callable[[Any], Any]) -> None:
    """Keep two cases, and change the second one's CLS token as if the eager model had said so."""
    manifest, file = Manifest.read(bundle), bundle / "golden.npz"
    first, second, *_ = Golden.read(file).cases
    outputs = {**second.outputs, "cls_token": change(second.outputs["cls_token"])}
    Golden((first, dataclasses.replace(second, outputs=outputs))).write(file)
    dataclasses.replace(manifest, golden=FileEntry.of(bundle, "golden.npz")).write(bundle)


def test_verify_eager_compares_with_the_model_computed_afresh(
    call: Call, bundle_s_reg: Path
) -> None:
    image = PHOTOS / "chelsea.jpg"
    argv = ["verify", bundle_s_reg, "--eager", "--image", image, "--size", "28x42,31x45", "--json"]
    result = call(*argv)
    assert (result.status, result.err) == (0, "")
    assert (result.document["reference"], result.document["passed"]) == ("eager", True)
    cases = {entry["case"] for entry in result.document["report"]["outputs"]}
    assert cases == {"28x42 chelsea.jpg", "31x45 chelsea.jpg"}


def test_verify_eager_refuses_other_weights(call: Call, bundle_s_reg: Path) -> None:
    result = call("verify", bundle_s_reg, "--eager", "--size", "28x28", "--weights", "synthetic:1")
    assert result.status == 2
    assert_one_line(result, "synthetic:1 has SHA-256", Manifest.read(bundle_s_reg).weights.sha256)


def test_sizes_are_squares_or_height_by_width() -> None:
    assert parse_sizes("224, 231x345") == [ImageSize(224, 224), ImageSize(231, 345)]


@pytest.mark.parametrize("text", ["", "224x", "0", "0x224", "224x224,", "2.5x14"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="allowed are SIDE or HEIGHTxWIDTH in pixels"):
        parse_sizes(text)


@pytest.mark.parametrize("verb", [("verify", "--eager"), ("bench", "--peers", "none")])
@pytest.mark.parametrize("size", ["13", "13x224"])
def test_sizes_below_one_patch_are_refused(
    verb: tuple[str, ...], size: str, call: Call, bundle_s_reg: Path
) -> None:
    name, *options = verb
    result = call(name, bundle_s_reg, *options, "--size", size)
    assert result.status == 2
    assert_one_line(result, "14")


# run


def test_run_writes_what_the_model_says(
    call: Call, bundle_s_reg: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.npz"
    result = call("run", bundle_s_reg, photos, "--out", out, "--patch-tokens", "--snap", "resize")
    assert (result.status, result.err) == (0, "")
    assert f"{out}: features of 2 images" in result.out
    assert MEANINGLESS in result.out
    with np.load(out) as features, dinov2rt.load(bundle_s_reg) as model:
        wanted = model([load_image(photos / name) for name in ("a.png", "b.png")], snap="resize")
        np.testing.assert_allclose(
            features["cls_token"], [each.cls_token[0] for each in wanted], rtol=1e-3, atol=1e-4
        )
        grids = [features[name].tolist() for name in ("grid_rows", "grid_cols")]
        assert grids == [[4, 2], [5, 3]]
        assert len(features["patch_tokens"]) == 4 * 5 + 2 * 3
        metadata = json.loads(str(features["metadata"]))
    assert metadata["variant"] == "dinov2_vits14_reg"
    assert metadata["weights_source"] == "synthetic:0"
    assert metadata["weights_sha256"] == Manifest.read(bundle_s_reg).weights.sha256
    assert (metadata["precision"], metadata["preprocess"]) == ("fp32", "native")
    assert (metadata["snap"], metadata["dinov2rt_version"]) == ("resize", dinov2rt.__version__)
    assert MEANINGLESS in metadata["warning"]


def test_run_does_the_rest_when_an_image_fails(
    call: Call, bundle_s_reg: Path, photos: Path, torn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.parquet"
    result = call("run", bundle_s_reg, photos, "--out", out, "--json")
    assert result.status == 1
    (line,) = result.err.splitlines()
    assert line.startswith(f"dinov2rt: {torn} is not an image")
    document = result.document
    (failure,) = document["failures"]
    assert failure["path"] == torn.name
    assert (document["images"], document["synthetic_weights"]) == (2, True)
    assert (document["failed"], document["errors"]) == (1, str(out / "_errors"))
    table = pyarrow.parquet.read_table(out)
    assert [Path(key).name for key in table["key"].to_pylist()] == ["a.png", "b.png"]
    assert b"dinov2rt.weights_sha256" in table.schema.metadata
    assert "patch_tokens" not in table.column_names


def test_run_with_nothing_but_failures_writes_nothing(
    call: Call, bundle_s_reg: Path, torn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.npz"
    result = call("run", bundle_s_reg, torn, "--out", out, "--json")
    assert (result.status, result.document["images"], result.document["out"]) == (1, 0, None)
    assert len(result.document["failures"]) == 1
    assert not out.exists()


def test_run_draws_a_picture_besides_features(
    call: Call, bundle_s_reg: Path, photos: Path, tmp_path: Path
) -> None:
    out, pca = tmp_path / "features.npz", tmp_path / "picture.png"
    assert call("run", bundle_s_reg, photos, "--out", out, "--pca", pca).status == 0
    with Image.open(pca) as picture:
        assert picture.height == 2 * 448 + 8
    with np.load(out) as features:
        assert "patch_tokens" not in features


def test_a_picture_shows_the_first_images_and_says_so(
    call: Call, bundle_s_reg: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinov2rt.cli.run_job.PICTURE_IMAGES", 1)
    pca = photos / "picture.png"
    result = call("run", bundle_s_reg, photos, "--pca", pca, "--json")
    assert result.status == 0
    assert result.err == f"dinov2rt: {pca} shows the first 1, not the other 1\n"
    with Image.open(pca) as picture:
        assert picture.height == 448


def test_file_names_that_are_no_text_are_written_escaped(
    call: Call, bundle_s_reg: Path, photos: Path, tmp_path: Path
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    try:
        (photos / "a.png").rename(odd)
    except OSError:
        pytest.skip("this file system takes only text for names")
    result = call("run", bundle_s_reg, odd, "--out", tmp_path / "f.npz", "--json")
    assert (result.status, result.document["images"]) == (0, 1)


# info and doctor


@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_parameters_are_those_of_the_official_checkpoint(variant: Variant) -> None:
    shapes = official_shapes(variant).values()
    assert parameter_count(variant) == sum(int(np.prod(shape)) for shape in shapes)


def test_info_lists_the_variants(call: Call) -> None:
    lines = call("info").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [variant.name for variant in variants()]
    assert " ".join(lines[-1].split()) == "dinov2_vitg14_reg 1536 40 24 swiglu 4 1136.5 M 4335 MiB"


def test_info_tells_what_is_in_a_bundle(call: Call, bundle_s_reg: Path) -> None:
    result = call("info", bundle_s_reg, "--check", "--json")
    assert (result.status, result.err) == (0, "")
    document = result.document
    assert document["manifest"]["variant"] == "dinov2_vits14_reg"
    assert document["inputs"] == {"pixels": "uint8 [B, H, W, 3], RGB"}
    assert document["outputs"]["register_tokens"] == "[B, 4, 384]"
    assert document["golden_cases"]["518x518"] == [1, 518, 518, 3]
    assert {file["state"] for file in document["files"]} == {"intact"}
    assert "synthetic:0" in call("info", bundle_s_reg).out


def test_info_check_finds_altered_and_missing_files(
    call: Call, bundle_s_reg: Path, copy_of: CopyOf
) -> None:
    bundle = copy_of(bundle_s_reg)
    graph = bundle / "fp32.onnx"
    graph.write_bytes(graph.read_bytes()[::-1])
    (bundle / "golden.npz").unlink()
    result = call("info", bundle, "--check", "--json")
    assert result.status == 1
    states = {file["path"]: file["state"] for file in result.document["files"]}
    assert "has SHA-256" in states["fp32.onnx"]
    assert states["fp32.onnx.data"] == "intact"
    assert "cannot be read" in states["golden.npz"]
    unchecked = call("info", bundle)
    assert unchecked.status == 0
    assert unchecked.out.splitlines()[-1].split()[-1] == "missing"


def test_doctor_tells_what_runs_here(call: Call, bundle_s_reg: Path) -> None:
    result = call("doctor", bundle_s_reg, "--json")
    assert (result.status, result.err) == (0, "")
    assert result.document["can_run"] is True
    assert "dinov2_vits14_reg fp32 on" in result.document["bundle"]["runs_as"]
    text = call("doctor").out
    assert "openvino cpu: runs" in text
    assert "onnxruntime cpu: runs" in text
    assert "cores usable" in text


# Machines without torch, or without anything


def test_load_run_verify_info_and_doctor_need_neither_torch_nor_onnx(
    bundle_s_reg: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "f.npz"
    script = f"""
import importlib
for name in ("torch", "onnx"):
    try: importlib.import_module(name)
    except ImportError: continue
    raise SystemExit(f"{{name}} is not blocked")
import dinov2rt
from dinov2rt.cli import main
bundle, photos, out = {str(bundle_s_reg)!r}, {str(photos)!r}, {str(out)!r}
with dinov2rt.load(bundle) as model:
    image = dinov2rt.load_image(photos + "/a.png")
    assert model(image).cls_token.shape == (1, 384)
for argv in (
    ["verify", bundle], ["run", bundle, photos, "--out", out], ["info", bundle], ["doctor"]
):
    assert main(argv) == 0, argv
"""
    result = run_without(["torch", "onnx", "onnxscript", "safetensors"], tmp_path, "-c", script)
    assert (result.status, result.err) == (0, "")
    assert out.exists()


@pytest.mark.parametrize("verb", ["export", "verify"])
def test_without_torch_the_extra_is_named(verb: str, bundle_s_reg: Path, tmp_path: Path) -> None:
    argv = {
        "export": ["export", "dinov2_vits14", "--weights", "synthetic:0", "--out", tmp_path / "b"],
        "verify": ["verify", bundle_s_reg, "--eager"],
    }[verb]
    result = run_without(["torch"], tmp_path, "-m", "dinov2rt", *argv)
    assert (result.status, result.out) == (2, "")
    assert_one_line(result, "'torch'", "pip install 'dinov2rt[export]'")


def test_without_a_runtime_doctor_says_that_nothing_runs(
    bundle_s_reg: Path, tmp_path: Path
) -> None:
    runtimes = ["onnxruntime", "openvino"]
    doctor = run_without(runtimes, tmp_path, "-m", "dinov2rt", "doctor", bundle_s_reg)
    assert (doctor.status, doctor.err) == (1, "")
    assert "openvino cpu: does not run" in doctor.out
    assert "onnxruntime cpu: does not run" in doctor.out
    assert "pip install 'dinov2rt[ort]'" in doctor.out
    verify = run_without(runtimes, tmp_path, "-m", "dinov2rt", "verify", bundle_s_reg)
    assert verify.status == 2
    for line, extra in zip(verify.err.splitlines()[1:], ("openvino", "ort"), strict=False):
        assert f"pip install 'dinov2rt[{extra}]'" in line
