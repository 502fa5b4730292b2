from collections.abc import Callable
from functools import partial

import pytest
import torch
from support.unusual import UNUSUAL
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dinov2rt.benchmarks.harness.flops import (
    HeadWork,
    flops,
    min_bytes,
    num_weights,
    roofline,
    tokens_bytes,
)
from dinov2rt.benchmarks.results import Cell
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import Variant, find_variant, variants
from dinov2rt.errors import InputError
from dinov2rt.export.model import load_eager
from dinov2rt.export.weights.state_dict import official_shapes
from dinov2rt.export.weights.synthetic import synthetic_state_dict


def counted_by_torch(variant: Architecture, batch: int, size: ImageSize) -> int:
    model = load_eager(variant, synthetic_state_dict(variant, 0))
    images = torch.zeros(batch, 3, size.height, size.width)
    # torch's counter does not know the fused attention of a CPU and counts it as zero
    plain_attention = sdpa_kernel(SDPBackend.MATH)
    with plain_attention, FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.forward_features(images)
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [ImageSize(98, 126), ImageSize(231, 56)], ids=str)
@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_flops_equal_torchs_count(name: str, size: ImageSize) -> None:
    variant = find_variant(name)
    assert flops(variant, 2, size) == counted_by_torch(variant, 2, size)


def test_flops_of_swiglu_equal_torchs_count(
    toy_variant: Callable[[str], Variant],
) -> None:
    variant, size = toy_variant("dinov2_vitg14"), ImageSize(56, 70)
    assert flops(variant, 1, size) == counted_by_torch(variant, 1, size)


@pytest.mark.parametrize("architecture", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_architecture_is_counted_by_its_own_parts(architecture: Architecture) -> None:
    size = ImageSize(71, 49)
    assert flops(architecture, 1, size) == counted_by_torch(architecture, 1, size)
    shapes = official_shapes(architecture)
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert num_weights(architecture) == numbers - architecture.embed_dim


@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_weights_are_counted_without_the_mask_token(variant: Variant) -> None:
    shapes = official_shapes(variant)
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert num_weights(variant) == numbers - variant.embed_dim


def test_bytes_grow_with_the_batch_by_images_and_tokens_alone() -> None:
    variant, size = find_variant("dinov2_vits14_reg"), ImageSize(28, 42)
    one, three = (
        min_bytes(variant, batch, size, Precision.FP32, tokens_bytes(variant, batch, size))
        for batch in (1, 3)
    )
    assert three - one == 2 * (28 * 42 * 3 + (1 + 4 + 6) * 384 * 4)
    half = min_bytes(variant, 1, size, Precision.FP16, tokens_bytes(variant, 1, size))
    assert one - half == 2 * num_weights(variant)


def test_the_floor_is_the_longer_of_computing_and_copying() -> None:
    variant, cell = find_variant("dinov2_vits14"), Cell("dinov2_vits14", 1, 224, 224)
    least_time = partial(roofline, variant, cell, Precision.FP32, matrix_gflops=[100.0])
    found = least_time(turns_ms=[200.0], copy_gb_per_s=10.0)
    assert found.gflop == pytest.approx(flops(variant, 1, cell.size) / 1e9)
    assert (found.bound, found.matrix_gflops) == ("compute", 100.0)
    assert found.least_ms == pytest.approx(10 * found.gflop)
    assert found.fraction == pytest.approx(found.least_ms / 200)
    bound = least_time(turns_ms=[2000.0], copy_gb_per_s=0.1)
    assert bound.bound == "bandwidth"
    assert bound.least_ms == pytest.approx(1e4 * bound.gbyte)


def test_heads_add_their_work_and_answer_instead_of_tokens() -> None:
    variant, cell = find_variant("dinov2_vits14"), Cell("dinov2_vits14", 2, 231, 345)
    padded = ImageSize(238, 350)
    found = roofline(
        variant,
        cell,
        Precision.FP32,
        turns_ms=[200.0],
        matrix_gflops=[100.0],
        copy_gb_per_s=10.0,
        heads=HeadWork(padded, flops=3 * 10**9, output_bytes=8000),
    )
    assert found.gflop == pytest.approx(flops(variant, 2, padded) / 1e9 + 3)
    images = 2 * 231 * 345 * 3
    assert found.gbyte == pytest.approx((4 * num_weights(variant) + images + 8000) / 1e9)


def test_the_fraction_of_the_roofline_does_not_depend_on_changes_of_the_machines_speed() -> None:
    variant, cell = find_variant("dinov2_vits14"), Cell("dinov2_vits14", 1, 224, 224)
    least_time = partial(roofline, variant, cell, Precision.FP32, copy_gb_per_s=1e3)
    steady = least_time(turns_ms=[100.0] * 3, matrix_gflops=[200.0] * 3)
    slowed = least_time(turns_ms=[100.0, 300.0, 200.0], matrix_gflops=[200.0, 200 / 3, 100.0])
    assert slowed.fraction == pytest.approx(steady.fraction)
    assert slowed.least_ms == pytest.approx(2 * steady.least_ms)


def test_turns_without_the_product_beside_them_are_refused() -> None:
    variant, cell = find_variant("dinov2_vits14"), Cell("dinov2_vits14", 1, 224, 224)
    with pytest.raises(InputError, match="2 turns beside 1 of the matrix product"):
        roofline(
            variant,
            cell,
            Precision.FP32,
            turns_ms=[1.0, 2.0],
            matrix_gflops=[100.0],
            copy_gb_per_s=10.0,
        )
