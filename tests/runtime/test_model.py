import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import dinov2rt
from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import AccuracyError, BackendError, BundleError, Dinov2rtError, InputError
from dinov2rt.runtime.backends.openvino import cannot_run_int8
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.model import Model, load

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
CLOSED = "the model is closed; load it again"

without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this onnxruntime has a CUDA provider",
)


@pytest.fixture
def pooling(pooling_bundle: Path) -> Iterator[Model]:
    with load(pooling_bundle, device="cpu") as model:
        yield model


def assert_equal(got: Features, want: Features) -> None:
    assert got.grid == want.grid
    assert got.outputs.keys() == want.outputs.keys()
    for name, value in want.outputs.items():
        np.testing.assert_array_equal(got.outputs[name], value)


# Features


def test_shapes_without_registers(model_plain: Model) -> None:
    features = model_plain(PIXELS)
    assert features.grid == Grid(2, 3)
    assert features.cls_token.shape == (2, 384)
    assert features.register_tokens.shape == (2, 0, 384)
    assert features.patch_tokens.shape == (2, 2, 3, 384)
    assert {value.dtype for value in features.outputs.values()} == {np.dtype(np.float32)}


def test_shapes_with_registers(model: Model) -> None:
    features = model(PIXELS)
    assert features.cls_token.shape == (2, 384)
    assert features.register_tokens.shape == (2, 4, 384)
    assert features.patch_tokens.shape == (2, 2, 3, 384)


def test_patch_tokens_lie_on_the_grid_row_by_row(pooling: Model) -> None:
    means = PIXELS.reshape(2, 2, 14, 3, 14, 3).mean((2, 4))
    np.testing.assert_allclose(pooling(PIXELS).patch_tokens, means, rtol=1e-5)


def test_features_of_one_image_are_views(model: Model) -> None:
    features = model(PIXELS)
    assert len(features) == 2
    last = features[-1]
    assert last.cls_token.shape == (1, 384)
    assert last.register_tokens.shape == (1, 4, 384)
    assert last.patch_tokens.shape == (1, 2, 3, 384)
    np.testing.assert_array_equal(last.patch_tokens[0], features.patch_tokens[1])
    assert np.shares_memory(last.cls_token, features.cls_token)
    for one, index in zip(features, range(2), strict=True):
        assert_equal(one, features[index])
    with pytest.raises(IndexError):
        features[2]


def test_intermediate_layers(model_normalized: Model) -> None:
    features = model_normalized(PIXELS)
    early, last = features.layer(2), features.layer(11)
    assert early.cls_token.shape == (2, 384)
    assert early.patch_tokens.shape == (2, 2, 3, 384)
    np.testing.assert_allclose(last.patch_tokens, features.patch_tokens, atol=1e-5)
    np.testing.assert_allclose(last.cls_token, features.cls_token, atol=1e-5)
    assert not np.allclose(early.patch_tokens, features.patch_tokens, atol=0.1)
    with pytest.raises(InputError) as error:
        features.layer(3)
    assert str(error.value).startswith(
        "layer 3 is not among the outputs here: cls_token, register_tokens, patch_tokens, "
        "layer_2_cls_token, layer_2_patch_tokens, layer_11_cls_token, layer_11_patch_tokens; "
        "export the bundle with --layers 3"
    )


# Outputs


@pytest.mark.parametrize("outputs", [["cls_token"], ("cls_token",), "cls_token", {"cls_token"}])
def test_only_what_is_asked_for_is_returned(model: Model, outputs: Any) -> None:
    features = model(PIXELS, outputs=outputs)
    assert list(features.outputs) == ["cls_token"]
    np.testing.assert_array_equal(features.cls_token, model(PIXELS).cls_token)
    for name in ("patch_tokens", "register_tokens"):
        with pytest.raises(InputError) as error:
            getattr(features, name)
        assert str(error.value) == f"{name} is not among the outputs here: cls_token"


def test_no_registers_are_no_registers_whatever_is_asked_for(model_plain: Model) -> None:
    for name in ("cls_token", "patch_tokens"):
        assert model_plain(PIXELS, outputs=[name]).register_tokens.shape == (2, 0, 384)


@pytest.mark.parametrize(
    ("outputs", "shown"),
    [
        (["cls_token", "pooled"], "['cls_token', 'pooled']"),
        ("pooled", "['pooled']"),
        ([], "[]"),
        (5, "[5]"),
        ([["cls_token"]], "[['cls_token']]"),
    ],
)
def test_unknown_outputs_are_refused(model: Model, outputs: Any, shown: str) -> None:
    with pytest.raises(InputError) as error:
        model(PIXELS, outputs=outputs)
    assert str(error.value) == (
        f"outputs {shown} asked for; this bundle has cls_token, register_tokens, patch_tokens"
    )


def test_registers_are_no_output_of_a_plain_model(model_plain: Model) -> None:
    with pytest.raises(InputError, match="; this bundle has cls_token, patch_tokens"):
        model_plain(PIXELS, outputs=["register_tokens"])


# Threads, processes, and the end


def test_threads_get_what_a_single_one_gets(model: Model) -> None:
    generator = np.random.default_rng(1)
    sizes = [(14, 14), (28, 42), (56, 28), (30, 75)]
    images = [generator.integers(0, 256, (2, *size, 3), dtype=np.uint8) for size in sizes]
    serial = [model(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            parallel = list(pool.map(model, images * 4))
            for got, want in zip(parallel, serial * 4, strict=True):
                for name, value in want.outputs.items():
                    np.testing.assert_allclose(got.outputs[name], value, atol=1e-4)


def test_a_model_is_closed_at_the_end_of_its_block(pooling_bundle: Path) -> None:
    with load(pooling_bundle) as model:
        model(PIXELS)
    model.close()
    for call in (lambda: model(PIXELS), lambda: model([PIXELS[0]]), model.verify):
        with pytest.raises(BackendError) as error:
            call()
        assert str(error.value) == CLOSED


def test_a_block_lets_errors_through(pooling_bundle: Path) -> None:
    with pytest.raises(ZeroDivisionError), load(pooling_bundle) as model:
        raise ZeroDivisionError
    with pytest.raises(BackendError, match=CLOSED):
        model(PIXELS)


def test_a_model_works_in_another_process(pooling: Model) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(pooling, (PIXELS,))
    assert_equal(got, pooling(PIXELS))


def test_pickling_keeps_the_options_and_finds_the_bundle_from_elsewhere(
    pooling_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pooling_bundle.parent)
    model = load(pooling_bundle.name, device="cpu", precision="fp32", threads=1, max_pixels=1176)
    data = pickle.dumps(model)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again.options == model.options
    assert_equal(again(PIXELS), model(PIXELS))


# Loading


def test_load_takes_a_string_or_a_path(pooling_bundle: Path) -> None:
    for bundle in (pooling_bundle, str(pooling_bundle)):
        model = load(bundle)
        assert model.path == pooling_bundle
        assert model.variant == find_variant("dinov2_vits14")
        assert model.graph.input_name == "pixels"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads=0; allowed is a whole number from 1"),
        ({"threads": 2.0}, "threads=2.0; allowed is a whole number from 1"),
        ({"threads": "2"}, "threads='2'; allowed is a whole number from 1"),
        ({"threads": True}, "threads=True; allowed is a whole number from 1"),
        ({"max_pixels": "x"}, "max_pixels='x'; allowed is a whole number from 1"),
        ({"max_pixels": 0}, "max_pixels=0; allowed is a whole number from 1"),
        ({"max_pixels": None}, "max_pixels=None; allowed is a whole number from 1"),
        ({"device": "tpu"}, 'unknown device \'tpu\'; allowed are "auto", "cpu", "cuda"'),
        ({"backend": "x"}, "unknown backend 'x'; allowed are "),
        ({"precision": "int4"}, 'unknown precision \'int4\'; allowed are "fp32", "fp16"'),
    ],
)
def test_options_that_do_not_exist(
    pooling_bundle: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        load(pooling_bundle, **options)
    assert str(error.value).startswith(message)


@without_cuda
def test_a_device_that_is_not_there_is_an_error_with_its_reason(pooling_bundle: Path) -> None:
    with pytest.raises(BackendError) as error:
        load(pooling_bundle, device="cuda")
    assert str(error.value).startswith("nothing that was asked for runs here (")
    assert "here has no CUDAExecutionProvider; pip install 'dinov2rt[cuda]'" in str(error.value)


@without_cuda
def test_describe_says_what_runs_and_why_nothing_better(
    pooling: Model, pooling_bundle: Path
) -> None:
    here = f"dinov2_vits14 fp32 on openvino {metadata.version('openvino')}, cpu"
    hint = "openvino cpu int8 would run here, faster and less exact: export --precision fp32,int8"
    first, *hints = pooling.describe().splitlines()
    assert first == here  # asked for by name: there is nothing to pass over
    assert any(each.startswith(hint) for each in hints) == (cannot_run_int8() is None)
    lines = load(pooling_bundle).describe().splitlines()
    assert [line for line in lines if "would run here" not in line] == [
        here,
        "passed over onnxruntime cuda fp16, fused: the bundle holds no fused graph; "
        f"add it with: dinov2rt build {pooling_bundle} --target onnxruntime-cuda",
        "passed over onnxruntime cuda fp16: the bundle holds no fp16 graph; "
        "export it with --precision fp32,fp16",
        f"passed over onnxruntime cuda fp32: onnxruntime {onnxruntime.__version__} here has no "
        "CUDAExecutionProvider; pip install 'dinov2rt[cuda]' on a machine with an NVIDIA GPU",
    ]


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as error:
        load(tmp_path / "nowhere")
    assert str(error.value).startswith(f"{tmp_path / 'nowhere'} is not a bundle: manifest.json ")


@pytest.mark.parametrize("name", ["fp32.onnx", "fp32.onnx.data"])
def test_an_altered_graph_is_not_loaded(pooling_bundle: Path, name: str) -> None:
    content = bytearray((pooling_bundle / name).read_bytes())
    content[-1] ^= 1
    (pooling_bundle / name).write_bytes(content)
    with pytest.raises(BundleError) as error:
        load(pooling_bundle)
    assert f"{pooling_bundle / name} has SHA-256 " in str(error.value)
    assert "rebuild with: dinov2rt export dinov2_vits14 --weights synth" in str(error.value)


@pytest.mark.parametrize("name", ["fp32.onnx", "fp32.onnx.data"])
def test_a_missing_graph_is_named(pooling_bundle: Path, name: str) -> None:
    (pooling_bundle / name).unlink()
    with pytest.raises(BundleError) as error:
        load(pooling_bundle)
    assert f"{pooling_bundle / name} cannot be read (No such file" in str(error.value)


# Verification


def change_golden(bundle: Path, case: GoldenCase) -> None:
    """Put `case` into the bundle, with a manifest that agrees."""
    Golden((case,)).write(bundle / "golden.npz")
    golden = FileEntry.of(bundle, "golden.npz")
    replace(Manifest.read(bundle), golden=golden).write(bundle)


def golden_case(bundle: Path) -> GoldenCase:
    (case,) = Golden.read(bundle / "golden.npz").cases
    return case


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("model_plain", {"224x224", "518x518", "98x126"}),
        ("model_normalized", {"56x98", "73x31"}),
    ],
)
def test_an_exported_bundle_agrees_with_eager(
    name: str, cases: set[str], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    report = model.verify()
    assert report
    assert report.relative_l2 < 1e-5
    assert {output.output for output in report.outputs} == set(model.graph.outputs)
    assert {output.case for output in report.outputs} >= cases


def test_a_golden_file_matters_for_verification_only(pooling_bundle: Path) -> None:
    (pooling_bundle / "golden.npz").unlink()
    model = load(pooling_bundle)
    model(PIXELS)
    for call in (model.verify, lambda: load(pooling_bundle, verify=True)):
        with pytest.raises(BundleError) as error:
            call()
        assert f"{pooling_bundle / 'golden.npz'} cannot be read (No such" in str(error.value)


def test_an_altered_golden_file_is_refused(pooling_bundle: Path) -> None:
    case = golden_case(pooling_bundle)
    Golden((replace(case, name="28x43"),)).write(pooling_bundle / "golden.npz")
    with pytest.raises(BundleError, match=r"golden\.npz has SHA-256 "):
        load(pooling_bundle, verify=True)


def test_outputs_that_disagree_with_the_golden_ones(pooling_bundle: Path) -> None:
    assert load(pooling_bundle, verify=True)
    case = golden_case(pooling_bundle)
    outputs = {**case.outputs, "cls_token": case.outputs["cls_token"] * np.float32(1.0001)}
    change_golden(pooling_bundle, replace(case, outputs=outputs))
    report = load(pooling_bundle).verify()
    assert not report
    assert [output.passed for output in report.outputs] == [False, True]
    with pytest.raises(AccuracyError) as error:
        load(pooling_bundle, verify=True)
    assert str(error.value).startswith(
        f"{pooling_bundle}: FAILED: fp32 on openvino {metadata.version('openvino')}, cpu, "
        "worst is cls_token at 28x42: relative L2 1.00e-04 (limit 1e-05), "
    )


def test_a_golden_case_must_hold_every_output(pooling_bundle: Path) -> None:
    case = golden_case(pooling_bundle)
    change_golden(pooling_bundle, replace(case, outputs={"cls_token": case.outputs["cls_token"]}))
    with pytest.raises(BundleError, match="the golden case 28x42 holds no patch_tokens, which"):
        load(pooling_bundle).verify()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS[:1], "output cls_token at 28x42 has shape [1, 3], its golden output [2, 3]; "),
        (PIXELS.astype(np.float32), "failed on pixels [2, 28, 42, 3]: "),
    ],
)
def test_golden_images_of_another_export(
    pooling_bundle: Path, images: np.ndarray, message: str
) -> None:
    change_golden(pooling_bundle, replace(golden_case(pooling_bundle), images=images))
    with pytest.raises(Dinov2rtError) as error:
        load(pooling_bundle).verify()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_cases_of_one_s_own(pooling: Model) -> None:
    images = np.full((1, 14, 14, 3), 9, np.uint8)
    want = {"cls_token": np.full((1, 3), 9.0), "patch_tokens": np.full((1, 1, 3), 9.0)}
    report = pooling.verify([GoldenCase("own", images, want)])
    assert report
    assert [output.case for output in report.outputs] == ["own", "own"]
    assert not pooling.verify([])
    assert dinov2rt.AccuracyReport is type(report)
