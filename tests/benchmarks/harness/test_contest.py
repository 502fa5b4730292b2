import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from dinov2rt.benchmarks.harness.contest import Contestant, restart, take_turns
from dinov2rt.benchmarks.harness.worker import CandidateError, Turn, Worker
from dinov2rt.benchmarks.peers.candidate import Candidate, Runner, Workload, import_all
from dinov2rt.benchmarks.statistics import STOLEN_AT_MOST
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError

WORKLOAD = Workload(Path("nowhere"), "cpu", 1)
PIXELS = np.arange(2 * 14 * 14 * 3, dtype=np.uint8).reshape(2, 14, 14, 3)


class Sleeper:
    """Sleeps, and gives the mean of the image: a candidate whose times are known."""

    version = "sleeper 1"

    def __init__(self, seconds: float, ways_to_fail: str) -> None:
        self.seconds, self.ways_to_fail, self.calls = seconds, ways_to_fail, 0

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.astype(np.float32)

    def run(self, prepared: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.ways_to_fail == "third call" and self.calls == 3:
            raise BackendError("no more calls\nand a second line")
        if self.ways_to_fail == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return prepared.mean(axis=(1, 2))

    def outputs(self, result: np.ndarray) -> dict[str, np.ndarray]:
        return {"cls_token": result}

    def close(self) -> None:
        pass


def open_sleeper(_: Workload, *, seconds: float, ways_to_fail: str) -> Runner:
    if ways_to_fail == "load":
        raise BackendError("there is no such library")
    return Sleeper(seconds, ways_to_fail)


def can_run(_: Workload) -> None:
    return None


def sleeping(
    name: str,
    seconds: float = 0.001,
    ways_to_fail: str = "",
    precision: Precision = Precision.FP32,
) -> Candidate:
    # The child imports this module by its name.
    return Candidate(
        name=name,
        title=name,
        precision=precision,
        is_peer=True,
        cannot_run=can_run,
        open=partial(open_sleeper, seconds=seconds, ways_to_fail=ways_to_fail),
        import_libraries=partial(import_all, "colorsys"),
    )


def sleeper(name: str, seconds: float = 0.001, ways_to_fail: str = "") -> Worker:
    return Worker(sleeping(name, seconds, ways_to_fail), WORKLOAD)


@pytest.fixture(autouse=True)
def importable_by_children(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setitem(sys.modules, "test_contest", sys.modules[__name__])
    for thing in (open_sleeper, can_run):
        monkeypatch.setattr(thing, "__module__", "test_contest")
    yield


def test_a_candidate_runs_in_a_process_of_its_own() -> None:
    with sleeper("one") as worker:
        loaded = worker.load()
        shown = worker.show(PIXELS)
        memory = worker.memory()
    assert (loaded.version, loaded.import_ms > 0, loaded.load_ms > 0) == ("sleeper 1", True, True)
    np.testing.assert_array_equal(shown.outputs["cls_token"], PIXELS.mean(axis=(1, 2), dtype="f4"))
    assert shown.first_call_ms >= 1
    assert 1 < memory.peak_rss_mib < 4096
    assert memory.device_mib is None


def test_a_turn_fills_its_time_with_calls() -> None:
    with sleeper("one", seconds=0.01) as worker:
        worker.load()
        worker.show(PIXELS)
        turn = worker.turn(0.1)
        assert all(time_ms >= 10 for time_ms in turn.samples_ms)
        assert len(turn.samples_ms) <= 10
        assert sum(turn.samples_ms[:-1]) < 100  # the last call began before the time was over
        assert turn.spent_s == pytest.approx(sum(turn.samples_ms) / 1e3)
        assert 0 <= turn.stolen < 1.1  # ticks of 10 ms may lie across the ends
        assert len(worker.turn(0.0).samples_ms) == 1


def test_who_is_slower_is_measured_slower_in_every_turn() -> None:
    with sleeper("fast", 0.001) as fast, sleeper("slow", 0.2) as slow:
        contestants = [Contestant(worker) for worker in (slow, fast)]
        for contestant in contestants:
            contestant.worker.load()
            contestant.worker.show(PIXELS)
        take_turns(contestants, seconds=0.3, min_turns=4)
    assert len(contestants[0].turns) == len(contestants[1].turns) >= 4
    for slow_turn, fast_turn in zip(contestants[0].turns, contestants[1].turns, strict=True):
        assert min(slow_turn.samples_ms) >= 200 > min(fast_turn.samples_ms)
    assert max(contestant.spent_s for contestant in contestants) >= 0.3


def test_candidates_of_one_precision_take_turns_together_in_changing_order() -> None:
    taken: list[Candidate] = []

    class Recorded:
        def __init__(self, name: str, precision: Precision) -> None:
            self.candidate = sleeping(name, precision=precision)

        def turn(self, _: float, *, warm_up: bool) -> Turn:  # noqa: ARG002
            taken.append(self.candidate)
            return Turn((1.0,), 0.0)

    contestants = [
        Contestant(cast(Worker, Recorded(f"{precision}{index}", precision)))
        for index in range(3)
        for precision in (Precision.FP32, Precision.BF16, Precision.INT8)
    ]
    take_turns(contestants, seconds=0.0, min_turns=100)
    rounds = [taken[start : start + 9] for start in range(0, 900, 9)]
    for candidates in rounds:
        assert len({each.name for each in candidates}) == 9
        precisions = [each.precision for each in candidates]
        assert [precision for precision, _ in groupby(precisions)] == precisions[::3]
    assert len({tuple(each.name for each in candidates) for candidates in rounds}) > 90
    assert len({candidates[0].name for candidates in rounds}) == 9


def test_a_restarted_candidate_goes_on_in_a_fresh_process() -> None:
    with sleeper("fast", 0.001) as worker:
        worker.load()
        worker.show(PIXELS)
        contestant, before = Contestant(worker), worker._process.pid
        take_turns([contestant], seconds=0, min_turns=1)
        restart([contestant], PIXELS)
        assert worker._process.pid != before
        take_turns([contestant], seconds=0, min_turns=2)
    assert contestant.failure is None
    assert len(contestant.turns) == 3


def test_a_candidate_that_cannot_restart_drops_out() -> None:
    with sleeper("broken", 0.001, "load") as broken, sleeper("fast", 0.001) as fast:
        contestants = [Contestant(broken), Contestant(fast)]
        restart(contestants, PIXELS)
        take_turns(contestants, seconds=0, min_turns=2)
    assert contestants[0].failure == "broken: there is no such library"
    assert [len(each.turns) for each in contestants] == [0, 2]


@pytest.mark.parametrize("slowest_ms", [500.0, 1500.0])
def test_all_warm_up_or_none_does(slowest_ms: float) -> None:
    asked: dict[float, list[bool]] = {1.0: [], slowest_ms: []}

    class Timed:
        candidate = sleeping("timed")

        def __init__(self, time_ms: float) -> None:
            self.time_ms = time_ms

        def turn(self, _: float, *, warm_up: bool) -> Turn:
            asked[self.time_ms].append(warm_up)
            return Turn((self.time_ms,), 0.0)

    contestants = [Contestant(cast(Worker, Timed(time_ms))) for time_ms in asked]
    take_turns(contestants, seconds=0.0, min_turns=3)
    later = slowest_ms < 1000
    assert asked == {time_ms: [True, later, later] for time_ms in asked}


def test_a_call_off_the_clock_is_taken_where_it_was_asked_for() -> None:
    with sleeper("third", ways_to_fail="third call") as worker:
        worker.load()
        worker.show(PIXELS)
        worker.turn(0.0, warm_up=False)
        with pytest.raises(CandidateError, match="no more calls"):
            worker.turn(0.0, warm_up=False)


def test_what_other_processes_take_is_told() -> None:
    with sleeper("alone", 0.5) as worker:
        worker.load()
        worker.show(PIXELS)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            try:
                turn = worker.turn(0.5, warm_up=False)
            finally:
                other.kill()
    assert turn.others > 0.3 / (os.cpu_count() or 1)


def test_at_least_the_turns_asked_for_are_taken() -> None:
    with sleeper("slow", 0.02) as worker:
        worker.load()
        worker.show(PIXELS)
        contestant = Contestant(worker)
        take_turns([contestant], seconds=0.001, min_turns=7)
    assert [len(turn.samples_ms) for turn in contestant.turns] == [1] * 7


class Disturbed:
    """Turns as a virtual machine has them beside others: these shares are stolen, one by one."""

    candidate = sleeping("disturbed")

    def __init__(self, *stolen: float) -> None:
        self.stolen = iter(stolen)

    def turn(self, seconds: float, *, warm_up: bool) -> Turn:  # noqa: ARG002
        stolen = next(self.stolen)
        return Turn((1e3 * seconds * (1 + stolen),), stolen)


def contest(*stolen: float, seconds: float = 15.0) -> Contestant:
    contestant = Contestant(cast(Worker, Disturbed(*stolen)))
    take_turns([contestant], seconds=seconds, min_turns=2)
    return contestant


def test_a_turn_that_the_host_disturbed_is_taken_again() -> None:
    contestant = contest(0.5, 0.04, 0.0, *[STOLEN_AT_MOST] * 40)
    assert [turn.stolen for turn in contestant.disturbed] == [0.5, 0.04]
    assert {turn.stolen for turn in contestant.turns} == {0.0, STOLEN_AT_MOST}


def test_patience_ends_and_the_least_disturbed_turn_counts() -> None:
    contestant = contest(0.9, 0.2, *[0.6] * 400)
    assert contestant.turns[0].stolen == 0.2
    assert all(turn.stolen == 0.6 for turn in contestant.turns[1:])
    assert sum(turn.spent_s for turn in contestant.disturbed) == pytest.approx(3 * 15, abs=2)
    assert len(contestant.turns) >= 2


def test_how_long_a_turn_took_does_not_choose_it() -> None:
    times = iter([Turn((1.0,), 0.5), Turn((9.0,), 0.1), Turn((5.0,), 0.3), Turn((1e6,), 0.3)])

    class Scripted:
        candidate = sleeping("scripted")

        def turn(self, _: float, *, warm_up: bool) -> Turn:  # noqa: ARG002
            return next(times)

    contestant = Contestant(cast(Worker, Scripted()))
    take_turns([contestant], seconds=0.002, min_turns=1)
    assert contestant.turns[0] == Turn((9.0,), 0.1)


def test_who_fails_is_out_and_the_others_go_on() -> None:
    with sleeper("good") as good, sleeper("bad", ways_to_fail="third call") as bad:
        contestants = [Contestant(worker) for worker in (good, bad)]
        for contestant in contestants:
            contestant.worker.load()
            contestant.worker.show(PIXELS)
        take_turns(contestants, seconds=0.05, min_turns=6)
    assert contestants[0].failure is None
    assert len(contestants[0].turns) >= 6
    assert contestants[1].failure == "bad: no more calls and a second line"


@pytest.mark.parametrize(
    ("ways_to_fail", "message"),
    [
        ("load", "sleeper: there is no such library"),
        ("dies", "sleeper: its process was killed, as happens where memory runs out"),
    ],
)
def test_a_failure_is_one_line(ways_to_fail: str, message: str) -> None:
    with (
        sleeper("sleeper", ways_to_fail=ways_to_fail) as worker,
        pytest.raises(CandidateError) as failure,
    ):
        worker.load()
        worker.show(PIXELS)
    assert str(failure.value) == message


def test_a_process_ends_with_its_worker() -> None:
    with sleeper("one") as worker:
        worker.load()
        process = worker._process
        assert process.is_alive()
    assert not process.is_alive()
    assert process.exitcode == 0
