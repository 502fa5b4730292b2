"""Each step that makes a head cheaper leaves what it computes as it was."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from dinov2rt.bundle.tasks.bilinear import bilinear_matrix, resize_bilinear, resized_bands
from dinov2rt.export.heads.algebra import (
    bin_weights,
    fold_batch_norm,
    shuffle_weight,
    split_levels,
)

rng = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


SIZES = [(37, 518), (7, 98), (148, 518), (3, 1), (1, 9), (608, 518), (5, 5)]


@pytest.mark.parametrize("size", SIZES)
def test_weights_of_resampling_are_exact(size: tuple[int, int]) -> None:
    inputs, outputs = size
    planes = torch.eye(inputs, dtype=torch.float64)[None, :, :, None]  # each row is one sample
    want = functional.interpolate(planes, (outputs, 1), mode="bilinear")[0, :, :, 0].T.numpy()
    np.testing.assert_allclose(bilinear_matrix(inputs, outputs), want, atol=2e-7)


def test_resampling_to_the_same_size_changes_nothing() -> None:
    values = drawn(2, 3, 5, 7)
    np.testing.assert_array_equal(resize_bilinear(values, (5, 7)), values)


def test_bands_are_the_rows_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinov2rt.bundle.tasks.bilinear._BAND_BYTES", 4 * 11 * 3 * 2)
    values = drawn(3, 5, 7)
    whole = resize_bilinear(values, (9, 11))
    bands = list(resized_bands(values, (9, 11)))
    assert len(bands) == 5
    for band, rows in bands:
        np.testing.assert_allclose(rows, whole[:, band], rtol=1e-6)


def test_a_1x1_convolution_commutes_with_resampling() -> None:
    weight = torch.from_numpy(drawn(4, 6, 1, 1)).double()
    image = torch.from_numpy(drawn(2, 6, 5, 7)).double()
    before = functional.interpolate(functional.conv2d(image, weight), (20, 28), mode="bilinear")
    after = functional.conv2d(functional.interpolate(image, (20, 28), mode="bilinear"), weight)
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)


def test_the_class_tokens_part_is_one_vector_an_image() -> None:
    weight = drawn(5, 2 * 3 * 2, 1, 1)
    patches, cls_tokens = drawn(2, 2, 3, 4), drawn(2, 2, 3)  # level, image, channel, patch
    repeated = np.repeat(cls_tokens[..., None], 4, axis=3)
    stacked = np.concatenate([patches[0], repeated[0], patches[1], repeated[1]], axis=1)
    want = np.einsum("kc,bcn->bnk", weight[:, :, 0, 0], stacked)
    got = sum(
        np.einsum("bcn,ck->bnk", patch, of_patches) + (cls_token @ of_cls)[:, None]
        for (of_patches, of_cls), patch, cls_token in zip(
            split_levels(weight, 2), patches, cls_tokens, strict=True
        )
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_batch_norm_goes_into_the_convolution(epsilon: float) -> None:
    """A wrong epsilon shows where a variance is small: it is off by half there."""
    weight, bias = drawn(4, 6), drawn(4)
    gamma, beta, mean = drawn(6), drawn(6), drawn(6)
    variance = np.full(6, 1e-5, np.float32)
    image = torch.from_numpy(drawn(2, 6, 3, 3)).double()
    double = [torch.from_numpy(each).double() for each in (mean, variance, gamma, beta)]
    normed = functional.batch_norm(image, *double, eps=epsilon)
    convolved = functional.conv2d(
        normed, torch.from_numpy(weight).double()[..., None, None], torch.from_numpy(bias).double()
    )
    folded, shift = fold_batch_norm(weight, bias, (gamma, beta, mean, variance), epsilon)
    got = np.einsum("kc,bchw->bkhw", folded.astype(np.float64), image) + shift[:, None, None]
    np.testing.assert_allclose(got, convolved, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_transposed_convolution_is_a_product_and_a_shuffle(factor: int) -> None:
    weight, bias, image = drawn(3, 5, factor, factor), drawn(5), drawn(1, 3, 4, 2)
    want = functional.conv_transpose2d(*map(torch.from_numpy, (image, weight, bias)), stride=factor)
    matrix, shift = shuffle_weight(weight, bias)
    product = np.einsum("bchw,ck->bkhw", image, matrix) + shift[:, None, None]
    cells = product.reshape(1, 5, factor, factor, 4, 2).transpose(0, 1, 4, 2, 5, 3)
    np.testing.assert_allclose(cells.reshape(want.shape), want, rtol=1e-5, atol=1e-5)


def test_bins_are_decoded_by_two_products() -> None:
    logits = drawn(7, 256)
    weights = np.maximum(logits, 0).astype(np.float64) + 0.1
    bins = np.linspace(0.001, 10, 256)
    want = (weights / weights.sum(1, keepdims=True)) @ bins
    matrix, shift = bin_weights(0.001, 10, 256, 0.1)
    numerator, denominator = (np.maximum(logits, 0) @ matrix + shift).T
    np.testing.assert_allclose(numerator / denominator, want, rtol=1e-6)
