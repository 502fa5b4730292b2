from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from dinov2rt.benchmarks.harness.flops import flops, quadratic_flops
from dinov2rt.benchmarks.results import PeakRates
from dinov2rt.benchmarks.studies import growth
from dinov2rt.benchmarks.studies.growth import curve, main, map_rate
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.variants import find_variant
from dinov2rt.runtime.model import Model, load


def test_the_quadratic_term_grows_with_the_square_of_the_tokens() -> None:
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


def test_every_shape_is_measured_beside_its_terms(
    bundle_s: Path, peak_rates: PeakRates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "measure_peak_rates", lambda *_: peak_rates)
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


class _Leak:
    """Stands in for a model whose `map` leaks 64 MiB per batch.

    The leak has to stand out: another library of the test process may take a few MiB meanwhile.
    """

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def __call__(self, pixels: np.ndarray) -> None:
        """Leak nothing in a single call."""

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[None]:
        """Leak 64 MiB per batch; two batches per turn make 128 MiB."""
        for _ in batches:
            self._kept.append(np.ones(2**23))
            yield


def test_a_leak_of_map_is_seen_below_an_earlier_peak() -> None:
    np.ones(2**26)  # 512 MiB, given back at once
    rate = map_rate(cast(Model, _Leak()), batch=1, images=2)
    assert rate.rss_growth_mib == pytest.approx(2 * 128, rel=0.1)


def test_a_batch_of_map_that_is_the_largest_is_not_run_in_parts(
    bundle_s: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = []

    def no_curve(model: Model, *_: object) -> list[growth.Point]:
        limits.append(model.options.max_pixels)
        return []

    monkeypatch.setattr(growth, "curve", no_curve)
    given = ["--batch=1", "--size=28", "--images=3", "--map-batch=3"]
    monkeypatch.setattr("sys.argv", ["growth", str(bundle_s), *given])
    assert main() == 0
    assert limits == [3 * 224**2]
    out = capsys.readouterr().out
    assert "map over 3 images, batch 3" in out
    assert out.endswith(" MiB from the first turn to the last\n")


@pytest.mark.parametrize(
    ("option", "text", "allowed"),
    [
        ("batch", "0", "are whole numbers from 1, as in 1,8,32"),
        ("size", "224,", "are whole numbers from 1, as in 1,8,32"),
        ("batch", "a", "are whole numbers from 1, as in 1,8,32"),
        ("batch", "1,²", "are whole numbers from 1, as in 1,8,32"),
        ("map-batch", "0", "is a whole number from 1"),
        ("map-batch", "8,9", "is a whole number from 1"),
        ("images", "-1", "is a whole number from 0"),
        ("images", "1e3", "is a whole number from 0"),
        ("seconds", "-1", "is a finite number from 0"),
        ("seconds", "nan", "is a finite number from 0"),
        ("seconds", "inf", "is a finite number from 0"),
        ("seconds", "two", "is a finite number from 0"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_loaded(
    option: str,
    text: str,
    allowed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["growth", "nowhere", f"--{option}={text}"])
    assert main() == 2
    assert capsys.readouterr().err == f"growth: --{option} {text!r}; allowed {allowed}\n"
