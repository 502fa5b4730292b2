"""Statistics beside the weights are part of the model: baked in, kept, and used by every check."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.small_cases import small_golden_cases

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.bundle.variants import find_variant
from dinov2rt.cli.options.export import parse_normalization
from dinov2rt.errors import InputError, WeightsError
from dinov2rt.export.eager_check import eager_cases
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.model import load_eager
from dinov2rt.export.weights.architecture import Stated
from dinov2rt.export.weights.preprocessor import normalization_of
from dinov2rt.export.weights.source_config import stated_beside
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.model import load

HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
WRITTEN = {"image_mean": IMAGENET.mean, "image_std": IMAGENET.std}


def config(folder: Path, **values: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, HALVES),
        ({"image_mean": list(CLIP.mean), "image_std": list(CLIP.std)}, CLIP),
        ({"rescale_factor": 0.00392156862745098} | WRITTEN, IMAGENET),
        ({"do_normalize": False}, Normalization((0, 0, 0), (1, 1, 1))),
        (
            {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
            HALVES,
        ),
        ({"rescale_factor": 2 / 255, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, HALVES),
    ],
)
def test_the_configuration_is_read_as_transformers_computes(
    values: dict[str, Any], expected: Normalization, tmp_path: Path
) -> None:
    found = normalization_of(config(tmp_path, **values))
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found.std, expected.std)


def test_without_a_configuration_they_are_the_official_ones(tmp_path: Path) -> None:
    assert normalization_of(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"image_mean": "x"}',
        '{"image_mean": [0, 0, 0], "image_std": [0, 1, 1]}',
        '{"image_mean": [1, 2], "image_std": [1, 1, 1]}',
        '{"image_mean": [NaN, 0, 0], "image_std": [1, 1, 1]}',
        '{"rescale_factor": 0, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}',
        "{}",
        '{"image_mean": [0, 0, 0]}',
        '{"do_normalize": true, "image_std": [1, 1, 1]}',
    ],
)
def test_what_cannot_be_used_is_one_line_with_a_way_out(text: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"(?s)^[^\n]*(correct|--mean)[^\n]*$"):
        normalization_of(tmp_path)


def test_statistics_that_are_given_replace_those_of_a_file_that_names_none(tmp_path: Path) -> None:
    folder = config(tmp_path, do_normalize=True)
    with pytest.raises(WeightsError, match="names no image_mean and image_std"):
        stated_beside(folder)
    assert stated_beside(folder, Stated(normalization=HALVES)).normalization == HALVES


@pytest.mark.parametrize(
    ("mean", "std"), [("1,2", "1,1,1"), ("0,0,0", "1,1,0"), ("a,b,c", "1,1,1")]
)
def test_options_that_are_no_statistics_are_refused(mean: str, std: str) -> None:
    with pytest.raises(InputError, match="three numbers each"):
        parse_normalization(mean, std)


def test_one_option_without_the_other_is_refused() -> None:
    with pytest.raises(InputError, match="belong together"):
        parse_normalization("0,0,0", None)
    assert parse_normalization("0.5,0.5,0.5", "0.5,0.5,0.5") == HALVES


@pytest.fixture(scope="module")
def with_halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("statistics") / "halves"
    options = ExportOptions(
        precisions=(Precision.FP32, Precision.FP16), stated=Stated(normalization=HALVES)
    )
    with small_golden_cases():
        export_bundle(find_variant("dinov2_vits14"), "synthetic:0", bundle, options)
    return bundle


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_computes_with_its_own_statistics(with_halves: Path, precision: str) -> None:
    assert Manifest.read(with_halves).normalization == HALVES
    variant = find_variant("dinov2_vits14")
    eager = load_eager(variant, synthetic_state_dict(variant, 0))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 98, 126, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels / np.float32(127.5) - np.float32(1)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        want = eager(images.contiguous()).numpy()
    with load(with_halves, device="cpu", backend="onnxruntime", precision=precision) as model:
        got = model(pixels).cls_token
        report = model.verify()
        cases = eager_cases(model.manifest, model.graph, sizes=[ImageSize(98, 98)])
        again = model.verify(cases)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error < (1e-5 if precision == "fp32" else 2e-3)
    assert report, report
    assert again, again


def test_the_fused_graph_has_them_too(with_halves: Path) -> None:
    (file,) = with_halves.glob("cuda-*.onnx")
    graph = ir.load(file).graph
    scaled = next(node for node in graph if node.name == "pixels/scaled")
    factor = scaled.inputs[1]
    assert factor is not None
    assert factor.const_value is not None
    np.testing.assert_allclose(factor.const_value.numpy().ravel(), 1 / 127.5, rtol=1e-6)


def test_uint8_for_a_normalized_graph_is_normalised_with_them(
    toy_variant: Callable[[str], Any], tmp_path: Path
) -> None:
    variant = toy_variant("dinov2_vits14")
    options = ExportOptions(
        InputFormat.IMAGES, precisions=(Precision.FP32,), stated=Stated(normalization=HALVES)
    )
    export_bundle(variant, "synthetic:0", tmp_path / "toy", options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 28, 42, 3), dtype=np.uint8)
    with load(tmp_path / "toy", device="cpu", backend="onnxruntime") as model:
        np.testing.assert_allclose(
            model(pixels).cls_token, model(HALVES(pixels)).cls_token, rtol=1e-5
        )
