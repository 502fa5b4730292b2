from pathlib import Path

import pytest

from dinov2rt.benchmarks.flops import flops, quadratic_flops
from dinov2rt.benchmarks.growth import curve, main, map_rate
from dinov2rt.runtime.geometry import ImageSize
from dinov2rt.runtime.model import load
from dinov2rt.runtime.variants import find_variant


def test_the_quadratic_term_is_the_one_that_grows_with_the_square() -> None:
    variant = find_variant("dinov2_vits14")
    # 16 times the patches; with CLS, (1 + 16 · 64)² / (1 + 64)² = 248.7 times the pairs of tokens
    small, large = ImageSize(112, 112), ImageSize(448, 448)
    assert quadratic_flops(variant, 3, large) == pytest.approx(
        quadratic_flops(variant, 3, small) * (1025 / 65) ** 2
    )
    linear = [
        flops(variant, 1, size) - quadratic_flops(variant, 1, size) for size in (small, large)
    ]
    assert linear[1] / linear[0] == pytest.approx(16, rel=0.02)


def test_every_shape_is_measured_beside_its_terms(bundle_s: Path) -> None:
    with load(bundle_s, device="cpu", threads=1) as model:
        points = curve(model, [(1, 28), (2, 56)], seconds=0)
        rate = map_rate(model, 2, 5)
    assert [(point.batch, point.side, point.tokens) for point in points] == [
        (1, 28, 5),
        (2, 56, 17),
    ]
    for point in points:
        assert point.p50_ms > 0
        assert point.fraction == pytest.approx(
            (point.linear_ms + point.quadratic_ms) / point.p50_ms
        )
    assert points[1].linear_ms > 4 * points[0].linear_ms
    assert rate.images == 6
    assert rate.ratio > 0.2


@pytest.mark.parametrize("argument", ["--batch=0", "--size=224,", "--batch=a"])
def test_bad_shapes_are_refused(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["growth", "nowhere", argument])
    assert main() == 2
    assert "allowed are whole numbers from 1" in capsys.readouterr().err
