"""Candidates take turns, so that a change in the machine's speed affects all of them alike."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.harness.worker import CandidateError, Turn, Worker
from dinov2rt.benchmarks.statistics import STOLEN_AT_MOST
from dinov2rt.bundle.precision import Precision

_TURNS = 30
"""Turns per candidate, if its calls are short enough."""

_NEEDS_WARM_UP_S = 1.0
"""A call shorter than this is preceded by an untimed warm-up call, because caches and thread pools
are cold after another candidate's turn. In a longer call that does not matter."""

_RETRY_FACTOR = 3
"""Time for repeated turns, as a multiple of a candidate's time."""


@dataclass(slots=True, eq=False)
class Contestant:
    """A candidate at one cell: its turns, the disturbed turns, and the failure, if any."""

    worker: Worker
    turns: list[Turn] = field(default_factory=list)
    disturbed: list[Turn] = field(default_factory=list)
    failure: str | None = None

    @property
    def precision(self) -> Precision:
        """The precision in which the candidate computes."""
        return self.worker.candidate.precision

    @property
    def spent_s(self) -> float:
        """Timed seconds so far, in the turns that count."""
        return sum(turn.spent_s for turn in self.turns)


def restart(contestants: Sequence[Contestant], pixels: NDArray[np.uint8]) -> None:
    """Give each of `contestants` a fresh process; one whose process fails has a `failure`."""
    for contestant in contestants:
        try:
            contestant.worker.restart(pixels)
        except CandidateError as error:
            contestant.failure = str(error)


def take_turns(contestants: Sequence[Contestant], *, seconds: float, min_turns: int) -> None:
    """Fill `turns` until one candidate has `seconds` of timed calls and each has `min_turns` turns.

    The order is shuffled for each turn, so that no candidate always follows the same one; those of
    one precision stay together. All candidates warm up in the first turn; later, all do if the
    calls of all are short, otherwise none. A turn is repeated if the host of a virtual machine gave
    its cores to others meanwhile; a turn is never repeated for its duration. A candidate that fails
    drops out; the others continue.
    """
    order, warm_up = [each for each in contestants if each.failure is None], True
    chance = random.Random(0)  # noqa: S311
    turn = 0
    while order and (turn < min_turns or max(each.spent_s for each in order) < seconds):
        order = _shuffled(order, chance)
        for contestant in order:
            _take_turn(contestant, seconds / _TURNS, warm_up, retry_s=_RETRY_FACTOR * seconds)
        order = [contestant for contestant in order if contestant.failure is None]
        warm_up = all(min(each.turns[-1].samples_ms) < 1e3 * _NEEDS_WARM_UP_S for each in order)
        turn += 1


def _shuffled(contestants: Sequence[Contestant], chance: random.Random) -> list[Contestant]:
    """`contestants` in random order, except that those of one precision are neighbours.

    They are compared with one another, and the less time between their turns, the less the
    machine's speed changes meanwhile.
    """
    order = chance.sample(contestants, len(contestants))
    precisions = list(dict.fromkeys(each.precision for each in order))
    return sorted(order, key=lambda each: precisions.index(each.precision))


def _take_turn(contestant: Contestant, seconds: float, warm_up: bool, *, retry_s: float) -> None:
    """Take one turn; repeat it while it is disturbed, and keep the least disturbed try."""
    tries: list[Turn] = []
    try:
        while not tries or (
            tries[-1].stolen > STOLEN_AT_MOST
            and sum(turn.spent_s for turn in (*tries, *contestant.disturbed)) < retry_s
        ):
            tries.append(contestant.worker.turn(seconds, warm_up=warm_up))
    except CandidateError as error:
        contestant.failure = str(error)
        return
    best = min(tries, key=lambda turn: turn.stolen)
    contestant.turns.append(best)
    contestant.disturbed += [turn for turn in tries if turn is not best]
