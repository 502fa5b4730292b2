"""Loads while a bundle is replaced: fast ones here, hundreds in the slow tests."""

import pytest

from dinov2rt.benchmarks.studies.reliability import swaps
from dinov2rt.benchmarks.studies.reliability.swaps import KINDS, PLAN, Loads, try_swaps


@pytest.mark.parametrize("kind", [PLAN])
def test_the_plan_that_is_hashed_is_the_one_that_tensorrt_gets(kind: str) -> None:
    loads = try_swaps(kind, 40)
    assert loads.mixed == 0
    assert loads.first
    assert loads.second


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_loads_are_old_new_or_refused(kind: str) -> None:
    loads = try_swaps(kind, 300)
    assert loads.mixed == 0
    assert loads.tried >= 300
    assert loads.swaps >= loads.changes >= 30


def test_a_mixture_is_counted() -> None:
    loads = Loads()
    loads.count("synthetic:1", is_whole=True)
    loads.count("synthetic:2", is_whole=True)
    loads.count("synthetic:2", is_whole=False)
    assert loads.outcomes == (1, 1, 0, 1)


def test_a_mixture_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(swaps, "try_swaps", lambda *_: Loads(mixed=1))
    monkeypatch.setattr("sys.argv", ["swaps"])
    assert swaps.main() == 1
    assert "plan" in capsys.readouterr().out
