"""Checkpoint to features: exported bundles against the outputs of the official code."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import dinov2rt
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.signature import NO_EXTRAS
from dinov2rt.bundle.variants import find_variant
from dinov2rt.cli import main
from dinov2rt.export.golden import eager_outputs, golden_pixels
from dinov2rt.export.model import load_eager
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.backends.openvino import cannot_run_int8

LIMIT = 1e-5
SMALL = ["dinov2_vits14", "dinov2_vits14_reg"]
LARGER = [variant.name for variant in dinov2rt.variants() if variant.name not in SMALL]
SIZES = [(14, 14), (28, 700), (98, 126), (231, 345), (518, 518), (518, 532), (630, 476)]
EXPORT_LIMIT_GIB = 20

# The exporter's own process, so that the peak is its alone.
MEASURED_EXPORT = """
import json, sys
from dinov2rt.benchmarks.harness.clock import peak_rss_mib
from dinov2rt.cli import main
status = main(["export", sys.argv[1], "--weights", "synthetic:0", "--out", sys.argv[2],
               "--layers", "last4"])
print(json.dumps({"status": status, "peak_gib": peak_rss_mib() / 2**10}))
"""

# Mapped files are no part of what RLIMIT_DATA limits; what is allocated or copied is.
LOADED_IN_LITTLE_MEMORY = """
import resource, sys
import numpy as np
import dinov2rt
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
with dinov2rt.load(sys.argv[1], device="cpu", backend=sys.argv[2], precision="fp32") as model:
    assert model(np.zeros((1, 224, 224, 3), np.uint8)).cls_token.any()
"""
LIBRARIES_BYTES = 300 << 20


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def assert_official(model: dinov2rt.Model, file: Path) -> None:
    golden = np.load(file)
    features = model(golden["image_uint8"])
    rows, cols = golden["grid"]
    batch, dim = golden["cls_token"].shape
    assert features.patch_tokens.shape == (batch, rows, cols, dim)
    patches = features.patch_tokens.reshape(batch, rows * cols, dim)
    assert relative_l2(features.cls_token, golden["cls_token"]) <= LIMIT
    assert relative_l2(patches[:, golden["patch_index"]], golden["patch_tokens"]) <= LIMIT
    assert relative_l2(patches.mean(axis=1), golden["patch_mean"]) <= LIMIT
    if model.architecture.num_registers:
        assert relative_l2(features.register_tokens, golden["register_tokens"]) <= LIMIT


def assert_official_layers(model: dinov2rt.Model, file: Path) -> None:
    golden = np.load(file)
    features = model(golden["image_uint8"])
    for index, layer in enumerate(model.graph.layers):
        level = features.layer(layer)
        patches = level.patch_tokens.reshape(golden["layer_patch_tokens"][index].shape)
        assert relative_l2(patches, golden["layer_patch_tokens"][index]) <= LIMIT
        assert relative_l2(level.cls_token, golden["layer_cls_tokens"][index]) <= LIMIT


@pytest.fixture(params=SMALL)
def small_bundle(request: pytest.FixtureRequest) -> Path:
    fixture = "bundle_s_reg" if request.param.endswith("_reg") else "bundle_s"
    return Path(request.getfixturevalue(fixture))


def test_small_bundles_give_the_official_features(
    small_bundle: Path, golden_files: Callable[[str], list[Path]]
) -> None:
    with dinov2rt.load(small_bundle) as model:
        files = golden_files(model.variant.name)
        assert len(files) == 5
        for file in files:
            assert_official(model, file)


def test_one_bundle_serves_every_size(small_bundle: Path) -> None:
    with dinov2rt.load(small_bundle) as model:
        eager = load_eager(model.architecture, synthetic_state_dict(model.architecture, 0))
        photos = ("astronaut.jpg", "coffee.jpg", "hubble.jpg", "chelsea.jpg")
        for index, (height, width) in enumerate(SIZES):
            batch = index % 4 + 1
            crops = [_crop(photo, height, width) for photo in photos[:batch]]
            pixels = np.stack(crops)
            features = model(pixels)
            want = eager_outputs(eager, torch.from_numpy(normalize(pixels)), NO_EXTRAS)
            got = dict(features.outputs)
            assert set(got) == set(want)
            for name, value in got.items():
                assert relative_l2(value, want[name]) <= LIMIT, (name, height, width)


def _crop(photo: str, height: int, width: int) -> np.ndarray:
    """Photographs are smaller than some sizes: mirrored until they are large enough."""
    image = golden_pixels(ImageSize(300, 400), (photo,))[0]
    pad = (max(0, height - 300), max(0, width - 400))
    return np.pad(image, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="symmetric")[:height, :width]


@pytest.fixture(scope="module", params=LARGER)
def larger_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    bundle = tmp_path_factory.mktemp("larger") / request.param
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED_EXPORT, request.param, str(bundle)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    outcome = json.loads(ended.stdout.splitlines()[-1])
    assert outcome["status"] == 0
    assert outcome["peak_gib"] < EXPORT_LIMIT_GIB
    yield bundle
    shutil.rmtree(bundle)  # ViT-g takes gigabytes


@pytest.mark.slow
def test_larger_bundles_give_the_official_features(
    larger_bundle: Path, golden_files: Callable[[str], list[Path]]
) -> None:
    with dinov2rt.load(larger_bundle) as model:
        files = golden_files(model.variant.name)
        assert files
        for file in files:
            assert_official(model, file)
            if "layer_patch_tokens" in np.load(file):
                assert_official_layers(model, file)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_larger_weights_take_their_memory_once(larger_bundle: Path, backend: str) -> None:
    weights = (larger_bundle / "fp32.onnx.data").stat().st_size
    limit = str(LIBRARIES_BYTES + weights * 6 // 5)
    command = [sys.executable, "-c", LOADED_IN_LITTLE_MEMORY, str(larger_bundle), backend, limit]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_intermediate_layers_are_the_official_ones(
    name: str, tmp_path: Path, golden_files: Callable[[str], list[Path]]
) -> None:
    from dinov2rt.export.exporter import ExportOptions, export_bundle

    export_bundle(
        find_variant(name), "synthetic:0", tmp_path / name, ExportOptions(layers=(8, 9, 10, 11))
    )
    (file,) = (file for file in golden_files(name) if "98x126" in file.name)
    with dinov2rt.load(tmp_path / name) as model:
        assert_official_layers(model, file)


@pytest.mark.slow
@pytest.mark.skipif(cannot_run_int8() is not None, reason="int8 needs OpenVINO and VNNI")
def test_an_int8_graph_holds_its_limits_where_it_is_loaded(tmp_path: Path) -> None:
    bundle = tmp_path / "int8"
    arguments = ["--weights", "synthetic:0", "--precision", "fp32,int8", "--out", str(bundle)]
    assert main(["export", "dinov2_vits14", *arguments]) == 0
    with dinov2rt.load(bundle, precision="int8") as model:
        assert "int8 on openvino" in model.describe()
        report = model.verify()
        quantization = model.graph.quantization
    assert report
    assert 1e-3 < report.relative_l2 < 0.1  # bytes were multiplied, not floats
    assert quantization is not None
    assert quantization.cls_cosine_min >= 0.999
    assert quantization.token_cosine_p1 >= 0.995
    assert quantization.kept_nearest is not None
    assert quantization.kept_nearest >= 0.99
