"""Candidates take turns, so that a machine that slows down slows all of them down."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dinov2rt.benchmarks.harness.worker import CandidateError, Turn, Worker
from dinov2rt.benchmarks.results import STOLEN_AT_MOST

_TURNS = 30
"""Into how many turns the time of a candidate is cut, where its calls are short enough."""

_NEEDS_WARM_UP_S = 1.0
"""A call that is shorter finds caches and thread pools cold after another candidate's turn, so that
one more goes before it, off the clock; in a longer one that does not show."""

_PATIENCE = 3
"""How many times the time of a candidate may go into turns that are taken again."""


@dataclass(slots=True, eq=False)
class Contestant:
    """A candidate at one cell: its turns, those that were disturbed, or why it gave up."""

    worker: Worker
    turns: list[Turn] = field(default_factory=list)
    disturbed: list[Turn] = field(default_factory=list)
    failure: str | None = None

    @property
    def spent_s(self) -> float:
        """Time on the clock so far, in the turns that count."""
        return sum(turn.spent_s for turn in self.turns)


def take_turns(contestants: Sequence[Contestant], *, seconds: float, min_turns: int) -> None:
    """Fill `turns` until one candidate has had `seconds` in them, and each `min_turns` of them.

    The order changes from turn to turn, so that none always follows the same one. In the first turn
    all warm up, and later all where all of their calls are short, else none: it is the same for
    everyone. A turn during
    which the host of a virtual machine gave the cores to others is taken again, while there is
    patience; by what was stolen, never by how long it took. Who fails is out, and the others go on.
    """
    order, warm_up = list(contestants), True
    shuffle: Callable[[list[Contestant]], None] = random.Random(0).shuffle  # noqa: S311
    turn = 0
    while order and (turn < min_turns or max(each.spent_s for each in order) < seconds):
        shuffle(order)
        for contestant in order:
            _take_turn(contestant, seconds / _TURNS, warm_up, patience_s=_PATIENCE * seconds)
        order = [contestant for contestant in order if contestant.failure is None]
        warm_up = all(min(each.turns[-1].samples_ms) < 1e3 * _NEEDS_WARM_UP_S for each in order)
        turn += 1


def _take_turn(contestant: Contestant, seconds: float, warm_up: bool, *, patience_s: float) -> None:
    """One turn more: again where others had the cores, and the least disturbed where all were."""
    tries: list[Turn] = []
    try:
        while not tries or (
            tries[-1].stolen > STOLEN_AT_MOST
            and sum(turn.spent_s for turn in (*tries, *contestant.disturbed)) < patience_s
        ):
            tries.append(contestant.worker.turn(seconds, warm_up=warm_up))
    except CandidateError as error:
        contestant.failure = str(error)
        return
    best = min(tries, key=lambda turn: turn.stolen)
    contestant.turns.append(best)
    contestant.disturbed += [turn for turn in tries if turn is not best]
