"""Each folding step leaves the graph's function as it was, and takes out what it says."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from dinov2rt.export.folding import fold_attention_scale, fold_layer_scale
from dinov2rt.export.graph import ExportGraph, constant_prefix
from dinov2rt.export.model import load_eager
from dinov2rt.export.synthetic import synthetic_state_dict
from dinov2rt.export.trace import trace
from dinov2rt.runtime.variants import Variant

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


def test_folding_does_not_touch_the_trace_it_was_cloned_from(
    traced: ir.Model, variant: Variant
) -> None:
    before = run(traced)
    folded = traced.clone()
    fold_layer_scale(folded)
    fold_attention_scale(folded, variant)
    for got, want in zip(run(traced), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_prefix_is_what_the_eager_model_puts_before_the_patches(variant: Variant) -> None:
    import torch

    state = synthetic_state_dict(variant, 0)
    prefix = constant_prefix(variant, state)
    tokens = load_eager(variant, state).prepare_tokens(torch.from_numpy(IMAGES))
    assert torch.equal(tokens[:, : variant.num_prefix_tokens], prefix.expand(2, -1, -1))
