"""A plan's outputs, compared with the golden outputs and with the float32 graph on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2rt.bundle.accuracy import compare
from dinov2rt.bundle.limits import Limits
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import PlanInputError, PlanWarning
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.gpu.cuda import Gpu
from dinov2rt.runtime.model import Model, load

pytestmark = pytest.mark.gpu

Noise = Callable[[int, int, int], NDArray[np.uint8]]
MAX_BATCH = 4


# Noise is harder than photographs: more than 1.25 times the error of autocast, but far less than
# the error of a wrong kernel.
NOISE_LIMITS = Limits(cosine_min=0.999, relative_l2=6e-3)


def assert_agree(got: Features, want: Features) -> None:
    assert got.outputs.keys() == want.outputs.keys()
    for name, value in got.outputs.items():
        result = compare("noise", name, value, want.outputs[name], NOISE_LIMITS)
        assert result.passed, result


def test_every_output_agrees_with_golden(plan: Model) -> None:
    report = plan.verify()
    assert report, report
    assert {output.output for output in report.outputs} == set(plan.graph.outputs)


@pytest.mark.parametrize("side", [224, 518])
@pytest.mark.parametrize("batch", range(1, MAX_BATCH + 1))
def test_every_batch_of_the_pinned_profiles(
    plan: Model, reference: Model, noise: Noise, batch: int, side: int
) -> None:
    pixels = noise(batch, side, side)
    for _ in range(3):  # plain, captured, replayed
        assert_agree(plan(pixels), reference(pixels))


@pytest.mark.parametrize("size", [(14, 14), (98, 126), (266, 392), (518, 14), (239, 225)])
def test_sizes_of_the_wide_profile(
    plan: Model, reference: Model, noise: Noise, size: tuple[int, int]
) -> None:
    pixels = noise(2, *size)
    for _ in range(3):
        assert_agree(plan(pixels), reference(pixels))


def test_a_batch_beyond_the_largest_takes_several_passes(
    plan: Model, reference: Model, noise: Noise
) -> None:
    pixels = noise(2 * MAX_BATCH + 1, 224, 224)
    assert_agree(plan(pixels), reference(pixels))


def test_one_output_alone_is_the_same(plan: Model, noise: Noise) -> None:
    pixels = noise(2, 224, 224)
    whole, alone = plan(pixels), plan(pixels, outputs=["cls_token"])
    assert list(alone.outputs) == ["cls_token"]
    np.testing.assert_array_equal(alone.cls_token, whole.cls_token)


def test_results_are_not_overwritten_by_the_next_call(plan: Model, noise: Noise) -> None:
    first = plan(noise(1, 224, 224))
    kept = first.cls_token.copy()
    plan(np.zeros((1, 224, 224, 3), np.uint8))
    np.testing.assert_array_equal(first.cls_token, kept)


def test_a_shape_outside_every_profile_is_refused_or_run_by_the_graph(
    built: Path, plan: Model, reference: Model, noise: Noise
) -> None:
    pixels = noise(1, 532, 532)
    with pytest.raises(PlanInputError, match="lies outside every profile of the plan"):
        plan(pixels)
    with load(built, verify=True) as auto, pytest.warns(PlanWarning, match="is used instead"):
        np.testing.assert_allclose(
            auto(pixels).cls_token, reference(pixels).cls_token, rtol=0.02, atol=0.02
        )


def test_padding_is_refused_for_pixels_and_exact_for_normalized_images(
    plan: Model, built_normalized: Path, noise: Noise
) -> None:
    pixels = noise(1, 217, 221)
    with pytest.raises(PlanInputError, match="--input normalized"):
        plan(pixels, snap="pad")
    options: Any = {"precision": "fp32", "backend": "onnxruntime", "device": "cpu"}
    with (
        load(built_normalized, backend="tensorrt", verify=True) as normalized,
        load(built_normalized, **options) as exact,
    ):
        assert_agree(normalized(pixels, snap="pad"), exact(pixels, snap="pad"))


def test_verify_records_the_plan_as_verified_and_load_warns_before(
    built: Path, plan: Model, gpu: Gpu
) -> None:
    entry = Manifest.read(built).plans[0].verification
    assert entry is not None, "the fixture `plan` verified it"
    assert (entry.machine, entry.driver) == (gpu.name, gpu.driver)
    assert "unverified" not in plan.describe()


def test_an_unverified_plan_says_so(built: Path, copy_of: Callable[[Path], Path]) -> None:
    bundle = copy_of(built)
    manifest = Manifest.read(bundle)
    unseen = tuple(replace(entry, verification=None) for entry in manifest.plans)
    replace(manifest, plans=unseen).write(bundle)
    with pytest.warns(PlanWarning, match="unverified: never compared"):
        model = load(bundle, backend="tensorrt")
    with model:
        assert "unverified" in model.describe()
        assert model.verify()
        assert "unverified" not in model.describe()
