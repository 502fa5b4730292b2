"""Each folding step leaves the graph's function as it was, and takes out what it says."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from dinov2rt.bundle.variants import Variant
from dinov2rt.export.folding import (
    fold,
    fold_attention_scale,
    fold_layer_scale,
    fold_norms,
    split_qkv,
)
from dinov2rt.export.graph import ExportGraph, constant_prefix
from dinov2rt.export.int8.gptq import Int8Product, to_nearest
from dinov2rt.export.int8.graph import product_weights, to_int8
from dinov2rt.export.model import load_eager
from dinov2rt.export.surgery import array_of
from dinov2rt.export.trace import trace
from dinov2rt.export.weights.synthetic import synthetic_state_dict

IMAGES = np.random.default_rng(3).standard_normal((2, 3, 70, 99), dtype=np.float32)
FLOAT32_NOISE = 2e-6


@pytest.fixture(scope="module", params=["dinov2_vits14_reg", "dinov2_vitg14"])
def variant(request: pytest.FixtureRequest, toy_variant: Callable[[str], Variant]) -> Variant:
    return toy_variant(request.param)


@pytest.fixture(scope="module")
def traced(variant: Variant) -> ir.Model:
    return trace(ExportGraph(variant, synthetic_state_dict(variant, 0)).eval())


def run(model: ir.Model) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"images": IMAGES})


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def assert_same_function(before: ir.Model, after: ir.Model) -> None:
    for got, want in zip(run(after), run(before), strict=True):
        assert relative_l2(got, want) < FLOAT32_NOISE


def test_layer_scale_goes_into_the_projections(traced: ir.Model, variant: Variant) -> None:
    folded = traced.clone()
    fold_layer_scale(folded)
    gammas = [name for name in traced.graph.initializers if name.endswith(".gamma")]
    assert len(gammas) == 2 * variant.depth
    assert not any(name.endswith(".gamma") for name in folded.graph.initializers)
    assert len(traced.graph) - len(folded.graph) == 2 * variant.depth
    assert_same_function(traced, folded)


def test_attention_scale_goes_into_the_query(traced: ir.Model, variant: Variant) -> None:
    folded = traced.clone()
    fold_attention_scale(folded, variant)
    scales = [
        node.attributes["scale"].as_float() for node in folded.graph if node.op_type == "Attention"
    ]
    assert scales == [1.0] * variant.depth
    before = traced.graph.initializers["blocks.0.qkv.weight"].const_value.numpy()
    after = folded.graph.initializers["blocks.0.qkv.weight"].const_value.numpy()
    dim = variant.embed_dim
    np.testing.assert_array_equal(after[:, :dim], before[:, :dim] * np.float32(0.125))
    np.testing.assert_array_equal(after[:, dim:], before[:, dim:])
    assert_same_function(traced, folded)


def test_scale_and_shift_of_norms_go_into_the_products_behind_them(
    traced: ir.Model, variant: Variant
) -> None:
    folded = traced.clone()
    fold_norms(folded)
    norms = [node for node in folded.graph if node.op_type == "LayerNormalization"]
    *inner, final = norms
    assert len(inner) == 2 * variant.depth
    assert [len(norm.inputs) for norm in inner] == [2] * len(inner)
    assert all((array_of(norm.inputs[1]) == 1).all() for norm in inner)
    assert not np.array_equal(array_of(final.inputs[1]), np.ones(variant.embed_dim))
    assert_same_function(traced, folded)


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_query_key_and_value_are_products_of_their_own(
    traced: ir.Model, variant: Variant, int8: bool
) -> None:
    model = traced.clone()
    fold(model, variant)
    if int8:
        weights = product_weights(model).items()
        to_int8(model, {name: Int8Product(to_nearest(value)) for name, value in weights})
    split = model.clone()
    split_qkv(split)
    products = [sum(n.op_type == "MatMul" for n in each.graph) for each in (model, split)]
    assert products[1] - products[0] == 2 * variant.depth
    assert not any(name.endswith((".qkv.weight", ".qkv.bias")) for name in split.graph.initializers)
    for got, want in zip(run(split), run(model), strict=True):
        assert relative_l2(got, want) < FLOAT32_NOISE


def test_folding_does_not_touch_the_trace_it_was_cloned_from(
    traced: ir.Model, variant: Variant
) -> None:
    before = run(traced)
    folded = traced.clone()
    fold_layer_scale(folded)
    fold_attention_scale(folded, variant)
    fold_norms(folded)
    split_qkv(folded)
    for got, want in zip(run(traced), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_prefix_is_what_the_eager_model_puts_before_the_patches(variant: Variant) -> None:
    import torch

    state = synthetic_state_dict(variant, 0)
    prefix = constant_prefix(variant, state)
    tokens = load_eager(variant, state).prepare_tokens(torch.from_numpy(IMAGES))
    assert torch.equal(tokens[:, : variant.num_prefix_tokens], prefix.expand(2, -1, -1))
