"""Int8 weights: within half a step where they stand alone, and better together."""

import numpy as np
import pytest
import torch
from support.installed import require_for_tests

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.crops import photo_crops
from dinov2rt.export.int8.gptq import Int8Weight, gptq, round_products, to_nearest
from dinov2rt.export.int8.products import products
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.weights.synthetic import synthetic_state_dict

RANDOM = np.random.default_rng(0)


def correlated(count: int, channels: int) -> np.ndarray:
    """Activations that vary along a third of their channels' directions, and little besides."""
    latent = RANDOM.standard_normal((count, channels // 3))
    mixed = latent @ RANDOM.standard_normal((channels // 3, channels))
    return (mixed + 0.05 * RANDOM.standard_normal((count, channels))).astype(np.float32)


def moments_of(given: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(given.T @ given)


def error(rounded: Int8Weight, weight: np.ndarray, given: np.ndarray) -> float:
    """Relative, of the product with `given`."""
    want = given @ weight
    return float(np.linalg.norm(given @ dequantized(rounded) - want) / np.linalg.norm(want))


def dequantized(weight: Int8Weight) -> np.ndarray:
    return weight.integers * weight.scale


def test_to_the_nearest_is_within_half_a_step() -> None:
    weight = RANDOM.standard_normal((50, 7), dtype=np.float32)
    weight[:, 3] = 0
    rounded = to_nearest(weight)
    assert rounded.integers.dtype == np.int8
    assert np.abs(rounded.integers).max(axis=0).tolist() == [127, 127, 127, 0, 127, 127, 127]
    assert (np.abs(dequantized(rounded) - weight) <= 0.501 * rounded.scale).all()


def test_errors_of_correlated_inputs_make_up_for_one_another_on_inputs_not_seen_before() -> None:
    weight, given = RANDOM.standard_normal((300, 40), dtype=np.float32), correlated(4000, 300)
    seen, unseen = given[:3000], given[3000:]
    rounded = gptq(weight, moments_of(seen))
    assert rounded.integers.dtype == np.int8
    assert rounded.scale == pytest.approx(to_nearest(weight).scale)
    assert error(rounded, weight, unseen) < 0.5 * error(to_nearest(weight), weight, unseen)


def test_of_inputs_without_correlation_each_weight_is_rounded_to_the_nearest() -> None:
    weight = RANDOM.standard_normal((200, 5), dtype=np.float32)
    rounded = gptq(weight, torch.diag(torch.arange(1.0, 201.0)))
    np.testing.assert_array_equal(rounded.integers, to_nearest(weight).integers)


def test_inputs_that_are_always_zero_and_outputs_without_weights_do_no_harm() -> None:
    weight, given = RANDOM.standard_normal((64, 8), dtype=np.float32), correlated(500, 64)
    given[:, 5], weight[:, 3] = 0, 0
    rounded = gptq(weight, moments_of(given))
    assert error(rounded, weight, given) < error(to_nearest(weight), weight, given)
    assert not rounded.integers[:, 3].any()
    silent = gptq(weight, torch.zeros(64, 64))
    np.testing.assert_array_equal(silent.integers, to_nearest(weight).integers)


@pytest.fixture(scope="module")
def model() -> Dinov2:
    variant = find_variant("dinov2_vits14")
    return load_eager(variant, synthetic_state_dict(variant, 0))


def test_on_photographs_that_were_not_seen_weights_do_less_harm_than_to_the_nearest(
    model: Dinov2,
) -> None:
    """Rounded on crops of our photographs, compared on two of scikit-learn's."""
    datasets = require_for_tests("sklearn.datasets")
    weights = {name: linear.weight.numpy().T for name, linear in products(model).items()}
    images = torch.from_numpy(normalize(photo_crops(range(8), ImageSize(224, 224))))
    products_rounded = round_products(model, images, weights)
    rounded = {name: product.weight for name, product in products_rounded.items()}
    nearest = {name: to_nearest(weight) for name, weight in weights.items()}
    photos = np.stack([photo[100:324, 200:424] for photo in datasets.load_sample_images().images])
    unseen = torch.from_numpy(normalize(photos))
    assert list(rounded) == list(products(model))
    assert harm(model, rounded, unseen) < 0.4 * harm(model, nearest, unseen)


@torch.inference_mode()
def harm(model: Dinov2, weights: dict[str, Int8Weight], images: torch.Tensor) -> float:
    """The mean 1 - cos of the final tokens with `weights` in place of the model's own."""
    want = model.forward_features(images)["x_norm_patchtokens"].double()
    state = dict(model.state_dict())
    names = {id(linear.weight): name for name, linear in products(model).items()}
    for key, value in model.named_parameters():
        if id(value) in names:
            state[key] = torch.from_numpy(dequantized(weights[names[id(value)]])).T.contiguous()
    got = (
        load_eager(model.architecture, state)
        .forward_features(images)["x_norm_patchtokens"]
        .double()
    )
    return float((1 - torch.nn.functional.cosine_similarity(got, want, dim=-1)).mean())
