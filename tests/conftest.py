"""Bundles and models that many tests share: made once per session, never changed."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.installed import require_for_tests
from support.small_cases import small_golden_cases
from support.unusual import UNUSUAL, export_unusual

from dinov2rt.benchmarks.harness.peak_rates import measure_peak_rates
from dinov2rt.benchmarks.results import PeakRates
from dinov2rt.bundle.entries import FileEntry, GraphEntry, WeightsEntry
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.heads import OFFICIAL_HEADS
from dinov2rt.bundle.manifest import SCHEMA_VERSION, Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.heads.checkpoint import HeadSource
from dinov2rt.extraction.chunks import Chunk, ImageFiles
from dinov2rt.extraction.dataset import FeatureDataset
from dinov2rt.extraction.image_features import ImageFeatures
from dinov2rt.extraction.parquet import FeatureType
from dinov2rt.runtime.model import Model, load

GOLDEN = Path(__file__).parent / "golden"


def _export(name: str, folder: Path) -> Path:
    bundle = folder / name
    export_bundle(find_variant(name), "synthetic:0", bundle, ExportOptions())
    return bundle


@pytest.fixture(scope="session")
def bundle_s(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S without registers, from synthetic weights."""
    return _export("dinov2_vits14", tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def bundle_s_reg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S with registers, from synthetic weights."""
    return _export("dinov2_vits14_reg", tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def bundle_unusual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two narrow blocks of an architecture that shares no part with the variants."""
    return export_unusual(UNUSUAL["patch16"], tmp_path_factory.mktemp("unusual"))


@pytest.fixture(scope="session")
def trt() -> Any:
    """TensorRT for RTX, the flavour that builds without a GPU."""
    return require_for_tests("tensorrt_rtx")


@pytest.fixture(scope="session")
def peak_rates() -> PeakRates:
    """What this machine can do at most, on one core."""
    return measure_peak_rates("cpu", 1)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a bundle, so that a test may damage it."""

    def copy(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / bundle.name))

    return copy


@pytest.fixture(scope="session")
def golden_files() -> Callable[[str], list[Path]]:
    """The official model's outputs for a variant, one file per photograph and size."""

    def files(variant: str) -> list[Path]:
        return sorted(GOLDEN.glob(f"{variant}__*.npz"))

    return files


@pytest.fixture(scope="session")
def toy_variant() -> Callable[[str], Variant]:
    """A real variant's structure with two narrow blocks: seconds instead of minutes."""

    def toy(name: str) -> Variant:
        return dataclasses.replace(
            find_variant(name), embed_dim=128, depth=2, num_heads=2, hidden_dim=256
        )

    return toy


@pytest.fixture
def write_features(tmp_path: Path) -> Callable[..., Path]:
    """Writes invented features, CLS tokens [N, 384], as `dinov2rt run` writes those of images.

    The mean of an image's patch tokens is the CLS token of the image at the same place from the
    end, so that the two have different neighbours.
    """

    def write(name: str, keys: Sequence[str], cls_tokens: np.ndarray, **metadata: str) -> Path:
        made_by = {
            "variant": "dinov2_vits14",
            "weights_source": "official",
            "weights_sha256": "0" * 64,
            "architecture": find_variant(metadata.get("variant", "dinov2_vits14")).fingerprint,
            "precision": "fp32",
            "preprocess": "native",
            "snap": "crop",
            "dtype": "float32",
            "patch_tokens": "no",
            "max_pixels": "4194304",
            "over_max_pixels": "scale",
            "root": "/photos",
        } | metadata
        dtype = FeatureType(made_by["dtype"])
        variant = find_variant(made_by["variant"])
        dataset = FeatureDataset(tmp_path / name, variant, dtype, False, made_by)
        no_registers = np.zeros((0, variant.embed_dim), np.float32)
        rows = [
            ImageFeatures(key, ImageSize(14, 14), Grid(1, 1), cls_token, no_registers, patch_mean)
            for key, cls_token, patch_mean in zip(keys, cls_tokens, cls_tokens[::-1], strict=True)
        ]
        chunk = Chunk(0, ImageFiles(tuple(keys)))
        with dataset.resumed([chunk]):
            dataset.stage(chunk, rows).commit()
        return dataset.folder

    return write


OUTPUTS = ("cls_token", "patch_tokens")


@pytest.fixture(scope="session")
def bundle_normalized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `bundle_s_reg` with normalised input and the layers 2 and 11."""
    bundle = tmp_path_factory.mktemp("bundles") / "normalized"
    options = ExportOptions(InputFormat.IMAGES, layers=(2, 11), precisions=(Precision.FP32,))
    with small_golden_cases():
        export_bundle(find_variant("dinov2_vits14_reg"), "synthetic:0", bundle, options)
    return bundle


@pytest.fixture(scope="session")
def model_plain(bundle_s: Path) -> Iterator[Model]:
    with load(bundle_s, device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def model(bundle_s_reg: Path) -> Iterator[Model]:
    with load(bundle_s_reg, device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def model_normalized(bundle_normalized: Path) -> Iterator[Model]:
    with load(bundle_normalized, device="cpu") as model:
        yield model


@pytest.fixture
def pooling_bundle(tmp_path: Path) -> Path:
    """A bundle for one test alone, whose model does no more than average pixels.

    `cls_token` [B, 3] is the mean colour of an image, `patch_tokens` [B, h·w, 3] those of its
    patches.
    """
    bundle = tmp_path / "pooling"
    bundle.mkdir()
    _save_pooling_graph(bundle / "fp32.onnx")
    _pooling_golden().write(bundle / "golden.npz")
    graph = GraphEntry(
        precision=Precision.FP32,
        opset=17,
        input_name="pixels",
        outputs=OUTPUTS,
        layers=(),
        files=tuple(FileEntry.of(bundle, name) for name in ("fp32.onnx", "fp32.onnx.data")),
    )
    Manifest(
        schema=SCHEMA_VERSION,
        architecture=find_variant("dinov2_vits14").architecture,
        weights=WeightsEntry(source="synthetic:0", sha256="0" * 64),
        graphs=(graph,),
        golden=FileEntry.of(bundle, "golden.npz"),
    ).write(bundle)
    return bundle


def _save_pooling_graph(file: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "gain"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planar"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["planar"], ["cls_token"], axes=[2, 3], keepdims=0),
        helper.make_node(
            "AveragePool", ["planar"], ["pooled"], kernel_shape=[14, 14], strides=[14, 14]
        ),
        helper.make_node("Constant", [], ["flat"], value_ints=[0, 3, -1]),
        helper.make_node("Reshape", ["pooled", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["patch_tokens"], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "pooling",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", "h", "w", 3])],
        [
            helper.make_tensor_value_info("cls_token", TensorProto.FLOAT, ["b", 3]),
            helper.make_tensor_value_info("patch_tokens", TensorProto.FLOAT, ["b", "n", 3]),
        ],
        [onnx.numpy_helper.from_array(np.ones(3, np.float32), "gain")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=0
    )


def _pooling_golden() -> Golden:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    patches = pixels.reshape(2, 2, 14, 3, 14, 3).mean((2, 4), dtype=np.float32)
    means = (pixels.mean((1, 2), dtype=np.float32), patches.reshape(2, 6, 3))
    return Golden((GoldenCase("28x42", pixels, dict(zip(OUTPUTS, means, strict=True))),))


@pytest.fixture(scope="session")
def bundle_classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S with the two classifiers alone: a call takes a tenth of the time of `bundle_heads`."""
    bundle = tmp_path_factory.mktemp("bundles") / "classifiers"
    heads = HeadSource.parse_all("linear=synthetic:0,linear4=synthetic:0")
    with small_golden_cases():
        options = ExportOptions(precisions=(Precision.FP32,), heads=heads)
        export_bundle(find_variant("dinov2_vits14"), "synthetic:0", bundle, options)
    return bundle


@pytest.fixture(scope="session")
def bundle_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S with every official head and the last layers, float32, with small golden cases."""
    bundle = tmp_path_factory.mktemp("bundles") / "heads"
    options = ExportOptions(
        precisions=(Precision.FP32,),
        heads=tuple(HeadSource(name, "synthetic:0") for name in OFFICIAL_HEADS),
        layers=(8, 9, 10, 11),
        attention=True,
    )
    with small_golden_cases():
        export_bundle(find_variant("dinov2_vits14"), "synthetic:0", bundle, options)
    return bundle
