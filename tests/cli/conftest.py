"""A benchmark run with invented figures, and verbs that take as long as the machine needs."""

import contextlib

import pytest
from support.benchmark_runs import benchmark_run, timed

__all__ = ["benchmark_run", "timed"]


@pytest.fixture(autouse=True)
def no_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs do not report their step once a minute, as they would on a busy machine."""
    monkeypatch.setattr("dinov2rt.cli.entry.a_line_a_minute", contextlib.nullcontext)
