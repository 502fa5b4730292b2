import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.weights.state_dict import official_shapes
from dinov2rt.export.weights.synthetic import synthetic_state_dict

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "weights-check.json").read_text())
TOY = dataclasses.replace(
    find_variant("dinov2_vitg14_reg"), embed_dim=64, depth=4, num_heads=1, hidden_dim=32
)


@pytest.mark.parametrize(
    "name",
    [
        "dinov2_vits14",
        "dinov2_vits14_reg",
        "dinov2_vitb14",
        "dinov2_vitb14_reg",
        pytest.param("dinov2_vitl14", marks=pytest.mark.slow),
        pytest.param("dinov2_vitl14_reg", marks=pytest.mark.slow),
        pytest.param("dinov2_vitg14", marks=pytest.mark.slow),
        pytest.param("dinov2_vitg14_reg", marks=pytest.mark.slow),
    ],
)
def test_weights_are_bit_for_bit_those_behind_the_golden_outputs(name):
    state = synthetic_state_dict(find_variant(name), GOLDEN["seed"])
    for key, (sha256, *first) in GOLDEN["variants"][name].items():
        array = state[key].numpy()
        if key == "pos_embed":
            np.testing.assert_array_max_ulp(array.ravel()[:3], np.float32(first), maxulp=1)
        else:
            assert hashlib.sha256(array.tobytes()).hexdigest().startswith(sha256), key


def test_every_official_tensor_is_there_in_float32():
    state = synthetic_state_dict(TOY, 0)
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == official_shapes(TOY)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_the_seed_decides():
    once, again, other = (synthetic_state_dict(TOY, seed) for seed in (3, 3, 4))
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert not any(torch.equal(once[key], other[key]) for key in once)


def test_massive_activations_start_at_a_third_of_the_depth():
    state = synthetic_state_dict(TOY, 0)
    first, second = 64 // 7, 5 * 64 // 11
    added = state["blocks.1.mlp.w3.bias"] * state["blocks.1.ls2.gamma"]
    assert added[first].item() == pytest.approx(300, rel=1e-6)
    assert added[second].item() == pytest.approx(-300, rel=1e-6)

    quiet = torch.ones(64, dtype=torch.bool)
    quiet[[first, second]] = False
    for name in ("blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2"):
        assert state[f"{name}.weight"].max() < 2
    for name in ("blocks.2.norm1", "blocks.3.norm2", "norm"):
        weight = state[f"{name}.weight"]
        assert weight[quiet].mean().item() == pytest.approx((1 + 2 * 300**2 / 64) ** 0.5, rel=0.1)
        assert weight[~quiet].abs().max() < 0.05


def test_peak_memory_is_near_one_copy_of_the_weights():
    tracemalloc.start()
    try:
        state = synthetic_state_dict(find_variant("dinov2_vits14"), 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.4 * sum(tensor.nbytes for tensor in state.values())
