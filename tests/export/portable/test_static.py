"""Graphs of one shape: exact, without anything dynamic, and on the oldest ONNX Runtime too."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import IMAGENET
from dinov2rt.bundle.precision import Precision
from dinov2rt.cli import main
from dinov2rt.errors import InputError
from dinov2rt.export.exporter import ExportOptions
from dinov2rt.export.folding import fold, fold_norms, split_qkv
from dinov2rt.export.frontend import attach_pixel_input
from dinov2rt.export.portable.opset import lower
from dinov2rt.export.portable.static import StaticShape, make_static

DYNAMIC_OPERATORS = {"Shape", "Range", "Pad", "Expand", "ConstantOfShape"}


def computed(file: Path, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {"pixels": pixels})
    return outputs


EVERY = tuple(
    itertools.product(("dinov2_vits14", "dinov2_vits14_reg"), ("1x518x518", "3x28x70"), (17, 23))
)
PAIRS = (EVERY[0], EVERY[3], EVERY[5], EVERY[6])
"""Every two values of different parameters meet in one of these; the rest are slow."""


@pytest.mark.parametrize(
    ("name", "shape", "opset"),
    [each if each in PAIRS else pytest.param(*each, marks=pytest.mark.slow) for each in EVERY],
)
def test_a_static_graph_computes_the_same(
    toy_trace: Callable[[str], ir.Model], toy_variant, tmp_path: Path, name: str, shape: str, opset
) -> None:
    model = toy_trace(name).clone()
    fold(model, toy_variant(name))
    fold_norms(model)
    split_qkv(model)
    attach_pixel_input(model, IMAGENET)
    lower(model, opset)
    ir.save(model, tmp_path / "dynamic.onnx")
    static = StaticShape.parse(shape)
    make_static(model, static, 14)
    ir.save(model, tmp_path / "static.onnx")
    saved = onnx.load(tmp_path / "static.onnx")
    onnx.checker.check_model(saved, full_check=True)
    assert not {node.op_type for node in saved.graph.node} & DYNAMIC_OPERATORS
    assert [each.name for each in saved.graph.input] == ["pixels"]
    dims = [
        dim.dim_value
        for value in (*saved.graph.input, *saved.graph.output)
        for dim in value.type.tensor_type.shape.dim
    ]
    assert all(dims)
    size = (static.batch, static.size.height, static.size.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    found = computed(tmp_path / "static.onnx", pixels)
    for output, want in zip(found, computed(tmp_path / "dynamic.onnx", pixels), strict=True):
        assert np.linalg.norm(output - want) <= 2e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("text", ["", "224x224", "0x224x224", "1x224", "1x224x224x3", "ax1x1"])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"allowed is BATCHxHEIGHTxWIDTH, such as 1x224x224$"):
        StaticShape.parse(text)


def test_a_side_that_is_no_multiple_of_the_patch_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"^static 1x224x230: 230 is not a multiple of the patch, "
    ):
        StaticShape.parse("1x224x230").check(14)
    StaticShape.parse("1x224x240").check(16)


def test_int8_graphs_are_never_static() -> None:
    with pytest.raises(InputError, match=r"^int8 graphs take every shape; leave out --static"):
        ExportOptions(precisions=(Precision.INT8,), static=StaticShape.parse("1x224x224"))


@pytest.mark.slow
def test_a_bundle_with_static_graphs_of_an_older_opset_is_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    command = ["export", "dinov2_vits14_reg", "--weights", "synthetic:0", "--out", str(out)]
    assert main([*command, "--opset", "17", "--static", "2x224x336", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["verified"]) == 4
    manifest = Manifest.read(out)
    assert [graph.static for graph in manifest.static_graphs] == [(2, 224, 336)] * 2
    assert {graph.opset for graph in (*manifest.graphs, *manifest.static_graphs)} == {17}
    assert manifest.cuda_graph is None
    assert "--opset 17 --static 2x224x336" in manifest.rebuild_command(out)
    assert main(["info", str(out), "--check"]) == 0
