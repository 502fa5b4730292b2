"""Faults of processes; the commands that docs/reliability.md names try more of them."""

import os
import random
import signal
from pathlib import Path

import pytest

from dinov2rt.benchmarks.studies.reliability import faults, kills
from dinov2rt.benchmarks.studies.reliability.kills import Victim, kill
from dinov2rt.benchmarks.studies.reliability.processes import Ended


@pytest.mark.slow
@pytest.mark.parametrize("kind", faults.KINDS)
def test_each_fault_ends_in_a_line_and_leaves_nothing(kind: str) -> None:
    if kind == "few-processes" and os.geteuid():
        pytest.skip("only root can run a verb as a user who has no other process")
    tried = faults.try_kind(kind)
    assert tried.failures == []
    assert tried.count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "times"),
    [("run", 12), ("search", 8), ("report", 8), ("export", 3), ("bench", 2), ("build", 3)],
)
def test_what_a_killed_verb_leaves_is_whole(verb: str, times: int) -> None:
    found = kills.try_verb(verb, times, seed=0)
    assert found.failures == []
    assert found.tried == times


def test_a_fault_that_is_not_handled_is_told() -> None:
    for ended in (
        Ended(1, ""),
        Ended(2, "unexpected KeyError"),
        Ended(-9, ""),
    ):
        with pytest.raises(AssertionError):
            ended.must(2)
    Ended(2, "dinov2rt: error: one line").must(0, 2)


def test_only_an_abort_that_names_memory_is_one_for_want_of_memory() -> None:
    bad_alloc = "terminate called after throwing an instance of 'std::bad_alloc'"
    assert Ended(-signal.SIGABRT, bad_alloc).aborted_for_memory
    assert Ended(127, "cannot allocate memory for thread-local data: ABORT").aborted_for_memory
    no_memory = "Fatal glibc error: failed to register TLS destructor: out of memory"
    assert Ended(-signal.SIGABRT, no_memory).aborted_for_memory
    assert not Ended(-signal.SIGABRT, "double free").aborted_for_memory
    assert not Ended(127, bad_alloc).aborted_for_memory
    assert not Ended(127, "command not found").aborted_for_memory
    assert not Ended(-signal.SIGSEGV, bad_alloc).aborted_for_memory


def test_half_a_file_is_told(tmp_path: Path) -> None:
    def check() -> None:
        raise ValueError("half")

    found = kill(Victim(lambda _: ["info"], check), 1, random.Random(0))  # noqa: S311  # no secret
    assert found.tried == 1
    assert found.failures == ["kill 1: ValueError: half"]
    assert not list(tmp_path.iterdir())
