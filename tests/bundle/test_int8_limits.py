"""Limits by percentile: for outputs of many tokens, as int8 has them."""

import numpy as np
import pytest

from dinov2rt.bundle.accuracy import AccuracyReport, compare
from dinov2rt.bundle.limits import INT8_LIMITS
from dinov2rt.bundle.precision import Precision


def tokens(bad: int) -> tuple[np.ndarray, np.ndarray]:
    """[2, 200, 8]: `bad` tokens are turned round, the others as they were."""
    want = np.random.default_rng(0).standard_normal((2, 200, 8))
    got = want.copy()
    got.reshape(-1, 8)[:bad] *= -1
    return got, want


@pytest.mark.parametrize(("bad", "passed"), [(3, True), (8, False)])
def test_one_percent_of_many_tokens_may_be_off(bad: int, passed: bool) -> None:
    result = compare("case", "patch_tokens", *tokens(bad), INT8_LIMITS)
    assert result.passed is passed
    assert result.cosine_min == pytest.approx(-1)


def test_every_cls_token_counts() -> None:
    got, want = tokens(1)
    result = compare("case", "cls_token", got[:, 0], want[:, 0], INT8_LIMITS)
    assert not result.passed
    assert result.cosine_p1 is None


@pytest.mark.parametrize("shape", [(2, 8), (2, 200, 8)])
def test_a_single_nan_fails(shape: tuple[int, ...]) -> None:
    want = np.random.default_rng(0).standard_normal(shape)
    got = want.copy()
    got.reshape(-1)[0] = np.nan
    assert not compare("case", "output", got, want, INT8_LIMITS).passed


def test_the_report_says_which_limit_counts() -> None:
    result = compare("case", "patch_tokens", *tokens(8), INT8_LIMITS)
    text = str(AccuracyReport(Precision.INT8, "here", INT8_LIMITS, (result,)))
    assert "FAILED: int8 on here" in text
    assert "(no limit), cosine at the first percentile -1.0000000 (limit 0.995)" in text
    assert str(INT8_LIMITS) == (
        "cosine 0.999 for CLS tokens, 0.995 at the first percentile for others"
    )
