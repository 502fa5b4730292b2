"""Candidates take turns, so that a machine that slows down slows all of them down."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dinov2rt.benchmarks.worker import CandidateError, Worker

_TURNS = 15
"""Into how many turns the time of a candidate is cut, where its calls are short enough."""


@dataclass(slots=True, eq=False)
class Contestant:
    """A candidate at one cell: the times of its calls in ms, turn by turn, or why it gave up."""

    worker: Worker
    turns: list[list[float]] = field(default_factory=list)
    failure: str | None = None

    @property
    def spent_s(self) -> float:
        """Time on the clock so far."""
        return sum(map(sum, self.turns)) / 1e3


def take_turns(contestants: Sequence[Contestant], *, seconds: float, min_turns: int) -> None:
    """Fill `turns`: each candidate gets `seconds` in all, and at least `min_turns` turns.

    The order changes from turn to turn, so that none always follows the same one. Who fails is
    out, and the others go on.
    """
    order = list(contestants)
    shuffle: Callable[[list[Contestant]], None] = random.Random(0).shuffle  # noqa: S311
    turn = 0
    while order and (turn < min_turns or max(each.spent_s for each in order) < seconds):
        shuffle(order)
        for contestant in order:
            _take_turn(contestant, seconds / _TURNS)
        order = [contestant for contestant in order if contestant.failure is None]
        turn += 1


def _take_turn(contestant: Contestant, seconds: float) -> None:
    try:
        contestant.turns.append(contestant.worker.turn(seconds))
    except CandidateError as error:
        contestant.failure = str(error)
