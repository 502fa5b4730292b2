"""The eager model against the outputs of the official code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.variants import Variant, find_variant, name_of
from dinov2rt.errors import InputError
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.weights.synthetic import synthetic_state_dict

# The official model against itself, with other kernels, is at about 1e-6.
FLOAT32_NOISE = 5e-6


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.fixture(scope="module", params=["dinov2_vits14", "dinov2_vits14_reg"])
def small(request: pytest.FixtureRequest) -> Dinov2:
    variant = find_variant(request.param)
    return load_eager(variant, synthetic_state_dict(variant, 0))


@pytest.fixture
def toy(toy_variant: Callable[[str], Variant]) -> Callable[[str], Dinov2]:
    def build(name: str) -> Dinov2:
        variant = toy_variant(name)
        return load_eager(variant, synthetic_state_dict(variant, 0))

    return build


def test_features_are_those_of_the_official_code(
    small: Dinov2, golden_files: Callable[[str], list[Path]]
) -> None:
    files = golden_files(name_of(small.architecture))
    assert len(files) == 5
    for file in files:
        golden = np.load(file)
        with torch.inference_mode():
            features = small.forward_features(torch.from_numpy(normalize(golden["image_uint8"])))
        patches = features["x_norm_patchtokens"].numpy()
        assert relative_l2(features["x_norm_clstoken"].numpy(), golden["cls_token"]) < FLOAT32_NOISE
        assert relative_l2(patches.mean(axis=1), golden["patch_mean"]) < FLOAT32_NOISE
        assert (
            relative_l2(patches[:, golden["patch_index"]], golden["patch_tokens"]) < FLOAT32_NOISE
        )
        largest = features["x_prenorm"].abs().max().item()
        assert largest == pytest.approx(golden["residual_absmax"].item(), rel=1e-5)
        if small.architecture.num_registers:
            registers = features["x_norm_regtokens"].numpy()
            assert relative_l2(registers, golden["register_tokens"]) < FLOAT32_NOISE


def test_intermediate_layers_are_those_of_the_official_code(
    small: Dinov2, golden_files: Callable[[str], list[Path]]
) -> None:
    (file,) = (f for f in golden_files(name_of(small.architecture)) if "98x126" in f.name)
    golden = np.load(file)
    images = torch.from_numpy(normalize(golden["image_uint8"]))
    with torch.inference_mode():
        pairs = small.get_intermediate_layers(images, 4, return_class_token=True)
    patches = np.stack([patch.numpy() for patch, _ in pairs])
    cls_tokens = np.stack([cls_token.numpy() for _, cls_token in pairs])
    assert relative_l2(patches, golden["layer_patch_tokens"]) < FLOAT32_NOISE
    assert relative_l2(cls_tokens, golden["layer_cls_tokens"]) < FLOAT32_NOISE


def test_intermediate_layers_keep_block_order_and_take_their_shapes(
    toy: Callable[[str], Dinov2],
) -> None:
    model = toy("dinov2_vits14_reg")
    images = torch.randn(2, 3, 42, 70)
    with torch.inference_mode():
        both = model.get_intermediate_layers(images, [1, 0])
        last = model.get_intermediate_layers(images, 1)
        mapped = model.get_intermediate_layers(images, [0], reshape=True)
        raw = model.get_intermediate_layers(images, [1], norm=False)
        features = model.forward_features(images)
    assert torch.equal(both[1], last[0])
    assert torch.equal(last[0], features["x_norm_patchtokens"])
    assert torch.equal(raw[0], features["x_prenorm"][:, 5:])
    assert mapped[0].shape == (2, 128, 3, 5)
    assert torch.equal(mapped[0][0, :, 2, 1], both[0][0, 2 * 5 + 1])


@pytest.mark.parametrize("layers", [0, 3, [2], [-1], []])
def test_blocks_that_do_not_exist_are_named(
    toy: Callable[[str], Dinov2], layers: int | list[int]
) -> None:
    with pytest.raises(InputError, match=r"blocks 0 to 1"):
        toy("dinov2_vits14").get_intermediate_layers(torch.zeros(1, 3, 28, 28), layers)


def test_swiglu_gates_with_the_first_half(toy: Callable[[str], Dinov2]) -> None:
    swiglu = toy("dinov2_vitg14").blocks[0].mlp
    tokens = torch.randn(1, 5, 128)
    hidden = tokens @ swiglu.w12.weight.T + swiglu.w12.bias
    gate, up = hidden[..., :256], hidden[..., 256:]
    expected = (gate / (1 + torch.exp(-gate)) * up) @ swiglu.w3.weight.T + swiglu.w3.bias
    torch.testing.assert_close(swiglu(tokens), expected, rtol=1e-4, atol=1e-4)


def test_forward_is_the_cls_token(toy: Callable[[str], Dinov2]) -> None:
    model = toy("dinov2_vitb14_reg")
    images = torch.randn(1, 3, 28, 42)
    with torch.inference_mode():
        assert torch.equal(model(images), model.forward_features(images)["x_norm_clstoken"])


def test_pixels_beyond_the_last_patch_drop(toy: Callable[[str], Dinov2]) -> None:
    model = toy("dinov2_vits14")
    images = torch.randn(1, 3, 55, 83)
    with torch.inference_mode():
        assert torch.equal(model(images), model(images[:, :, :42, :70]))
