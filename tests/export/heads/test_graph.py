"""Heads in the graph against the eager heads: at every parity of the grid, in every precision."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from dinov2rt.bundle.normalization import IMAGENET
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import NO_EXTRAS
from dinov2rt.bundle.variants import Variant
from dinov2rt.export.folding import fold, fold_attention_scale, fold_norms, split_qkv
from dinov2rt.export.frontend import attach_center_padding, attach_pixel_input
from dinov2rt.export.golden import eager_outputs
from dinov2rt.export.heads.graph import attach_heads
from dinov2rt.export.int8.graph import product_weights
from dinov2rt.export.int8.products import LEAVES, product_names
from dinov2rt.export.model import Dinov2
from dinov2rt.export.portable.opset import lower
from dinov2rt.export.surgery import module_of
from dinov2rt.export.typed import to_half

# Batch, height and width; grids of 1 × 1, 2 × 3, 6 × 3, 7 × 4: both parities of both axes.
SHAPES = ((1, 14, 14), (2, 28, 42), (3, 73, 31), (1, 98, 56))
CLASS_MAPS = ("segmentation_ade20k_linear", "segmentation_ade20k_ms", "segmentation_voc2012_linear")


def with_heads(traced: ir.Model, narrow: Variant, eager: Dinov2, precision: Precision) -> ir.Model:
    model = traced.clone()
    if precision is Precision.FP32:
        fold(model, narrow)
    else:
        fold_attention_scale(model, narrow)
    attach_heads(model, narrow, eager.task_heads)
    attach_center_padding(model, 14)
    if precision is Precision.FP32:
        fold_norms(model)
        split_qkv(model)
    else:
        to_half(model, precision)
    attach_pixel_input(model, IMAGENET)
    return model


def run(model: ir.Model, pixels: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    assert [each.name for each in session.get_inputs()] == ["pixels"]
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixels": pixels}), strict=True))


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def test_no_product_of_a_head_becomes_int8(
    traced: ir.Model, narrow: Variant, eager: Dinov2
) -> None:
    """Heads have products of the same last names as blocks, e.g. `heads.nyu_linear.up`."""
    model = traced.clone()
    fold(model, narrow)
    attach_heads(model, narrow, eager.task_heads)
    of_heads = [module_of(node) for node in model.graph if module_of(node).startswith("heads.")]
    assert any(name.rpartition(".")[2] in LEAVES for name in of_heads)
    assert tuple(product_weights(model)) == product_names(narrow)


@pytest.fixture(scope="module")
def float32(traced: ir.Model, narrow: Variant, eager: Dinov2) -> ir.Model:
    return with_heads(traced, narrow, eager, Precision.FP32)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_graph_is_the_eager_heads_at_every_parity(
    shape: tuple[int, int, int], float32: ir.Model, eager: Dinov2
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    want = eager_outputs(eager, torch.from_numpy(IMAGENET(pixels)), NO_EXTRAS)
    got = run(float32, pixels)
    assert list(got) == list(want)
    for name, value in got.items():
        assert value.shape == want[name].shape, name
        if value.dtype == np.uint8:
            assert np.mean(value != want[name]) < 1e-3, name
        else:
            assert relative_l2(value, want[name]) < 1e-5, name


def test_heads_are_the_same_in_the_oldest_opset(float32: ir.Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    want = run(float32, pixels)
    older = float32.clone()
    lower(older, 17)
    onnx.checker.check_model(ir.to_proto(older), full_check=True)
    for name, value in run(older, pixels).items():
        if value.dtype == np.uint8:
            assert np.mean(value != want[name]) < 1e-3, name
        else:
            assert relative_l2(value, want[name]) < 1e-5, name


def test_half_precision_keeps_heads_in_the_official_regime(
    traced: ir.Model, narrow: Variant, eager: Dinov2
) -> None:
    """Twice the error of autocast's backbone alone is what a head that ends at float16 makes."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 98, 56, 3), dtype=np.uint8)
    images = torch.from_numpy(IMAGENET(pixels))
    want = eager_outputs(eager, images, NO_EXTRAS)
    with torch.autocast("cpu", dtype=torch.float16):
        official = eager_outputs(eager, images, NO_EXTRAS)
    got = run(with_heads(traced, narrow, eager, Precision.FP16), pixels)
    for name, value in got.items():
        if value.dtype != np.uint8 and not name.endswith("token"):
            limit = 2 * relative_l2(official[name], want[name])
            assert relative_l2(value, want[name]) < limit, name


def test_outputs_are_called_after_their_task_where_that_tells_them_apart(eager: Dinov2) -> None:
    assert {head.entry.output for head in eager.task_heads} >= {
        "logits_linear4",
        "depth_kitti_dpt",
        *CLASS_MAPS,
    }
