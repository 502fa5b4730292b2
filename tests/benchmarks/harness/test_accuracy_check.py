from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dinov2rt.benchmarks.harness.accuracy_check import check, limits_for
from dinov2rt.bundle.limits import FLOAT32_LIMITS, Limits
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BundleError

LIMITS = Limits(cosine_min=0.999, relative_l2=1e-2)


def tokens(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "cls_token": random.standard_normal((2, 8), np.float32),
        "patch_tokens": random.standard_normal((2, 300, 8), np.float32),
    }


def test_the_same_outputs_pass() -> None:
    accuracy = check(tokens(), tokens(), LIMITS)
    assert accuracy.passed
    assert (accuracy.relative_l2, accuracy.nan_count) == (0, 0)
    assert accuracy.cls_cosine_min == pytest.approx(1)


def test_one_bad_token_fails_and_shows_in_its_own_figure() -> None:
    got = tokens()
    got["patch_tokens"][1, 7] *= -1
    accuracy = check(got, tokens(), LIMITS)
    assert not accuracy.passed
    assert accuracy.cosine_min == pytest.approx(-1)
    assert accuracy.cls_cosine_min == pytest.approx(1)
    assert accuracy.patch_cosine_p1 == pytest.approx(1)  # 1 of 600 lies below the percentile


def test_the_first_percentile_is_over_all_patches() -> None:
    got = tokens()
    got["patch_tokens"][0, :30] *= -1
    assert check(got, tokens(), LIMITS).patch_cosine_p1 == pytest.approx(-1)


@pytest.mark.parametrize(
    ("images", "off", "passes"),
    [(8, 0.009, True), (8, 0.011, False), (1, 0.011, True), (1, 0.019, True), (1, 0.021, False)],
)
def test_cls_tokens_that_are_too_long_fail_though_their_cosine_is_1(
    images: int, off: float, passes: bool
) -> None:
    want = {name: np.repeat(value[:1], images, axis=0) for name, value in tokens().items()}
    got = {**want, "cls_token": want["cls_token"] * np.float32(1 + off)}
    accuracy = check(got, want, replace(LIMITS, pooled_l2=1e-2))
    assert accuracy.passed is passes
    assert accuracy.relative_l2 == pytest.approx(off, rel=1e-3)


def test_nan_never_passes() -> None:
    got = tokens()
    got["cls_token"][0, 0] = np.nan
    accuracy = check(got, tokens(), LIMITS)
    assert not accuracy.passed
    assert accuracy.nan_count == 1


def test_nan_in_any_output_makes_the_worst_of_all_nan() -> None:
    got = tokens()
    got["patch_tokens"][1, 7, 0] = np.nan
    accuracy = check(got, tokens(), LIMITS)
    assert not accuracy.passed
    assert np.isnan([accuracy.relative_l2, accuracy.cosine_min]).all()
    assert accuracy.nan_count == 1


def test_outputs_of_another_shape_are_refused() -> None:
    got = tokens()
    got["patch_tokens"] = got["patch_tokens"][:, :299]
    with pytest.raises(BundleError, match=r"has shape \[2, 299, 8\]"):
        check(got, tokens(), LIMITS)


def test_limits_come_from_the_graph_of_the_same_precision(bundle_s: Path) -> None:
    manifest = Manifest.read(bundle_s)
    graphs = {graph.precision: graph.limits for graph in manifest.graphs}
    assert limits_for(manifest, Precision.FP32) == graphs[Precision.FP32]
    assert limits_for(manifest, Precision.FP16) == graphs[Precision.FP16] != FLOAT32_LIMITS
    assert limits_for(manifest, Precision.BF16) == manifest.graphs[0].bf16_limits
    without = replace(manifest, graphs=manifest.graphs[1:])
    with pytest.raises(BundleError, match="export it with --precision bf16"):
        limits_for(without, Precision.BF16)
