"""What the tests of the runtime share: loaded models, and a bundle that loads in milliseconds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dinov2rt.export.bundle import ExportOptions, export_bundle
from dinov2rt.runtime.accuracy import Golden, GoldenCase
from dinov2rt.runtime.inputs import InputFormat
from dinov2rt.runtime.manifest import (
    SCHEMA_VERSION,
    FileEntry,
    GraphEntry,
    Manifest,
    WeightsEntry,
)
from dinov2rt.runtime.model import Model, load
from dinov2rt.runtime.precision import Precision
from dinov2rt.runtime.variants import find_variant

OUTPUTS = ("cls_token", "patch_tokens")


@pytest.fixture(scope="session")
def bundle_normalized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `bundle_s_reg` with normalised input and the layers 2 and 11."""
    bundle = tmp_path_factory.mktemp("bundles") / "normalized"
    options = ExportOptions(InputFormat.IMAGES, layers=(2, 11), precisions=(Precision.FP32,))
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
        variant=find_variant("dinov2_vits14"),
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
