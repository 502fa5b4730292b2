r"""Verbs that are killed (SIGKILL) at random moments: what they leave is old or new, never half.

    python -m dinov2rt.benchmarks.studies.reliability.kills [--kills 200 --verbs run,search]

Each verb replaces what it made before. It is killed at a random moment of the time that it takes,
then the files on disk are read: they have to be whole, either old or new. `run` and `predict` are
resumed after each kill, and have to end with the rows of a run that was never killed. `build` needs
TensorRT for RTX; `report` needs the committed results of the repository.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinov2rt.benchmarks.studies.reliability.growing import print_rows
from dinov2rt.benchmarks.studies.reliability.victims import VICTIMS, Victim, command, finish
from dinov2rt.foreign import shown

_SHARE = {"run": 0.3, "bench": 0.1}
_USUAL_SHARE = 0.2
"""Kills of a verb, as a share of `--kills`."""


@dataclass(slots=True)
class Kills:
    """The findings after the kills of one verb."""

    killed: int = 0
    ended: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """Starts of the verb, whether it ended before it was killed or not."""
        return self.killed + self.ended


def kill(victim: Victim, times: int, rng: random.Random) -> Kills:
    """Start the verb `times` times and kill each at a random moment of an undisturbed run."""
    kills, began = Kills(), time.monotonic()
    finish(victim.arguments(0))
    kills.seconds = time.monotonic() - began
    for number in range(1, times + 1):
        if _killed(victim.arguments(number), rng.uniform(0, kills.seconds)):
            kills.killed += 1
        else:
            kills.ended += 1
        try:
            victim.check()
        except Exception as error:  # whatever a half file does to its reader
            kills.failures.append(f"kill {number}: {type(error).__name__}: {shown(error)}")
    return kills


def _killed(arguments: Sequence[str], after_s: float) -> bool:
    """Whether it was still running at that moment."""
    quiet: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(command(arguments), **quiet) as process:  # noqa: S603
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


_HEADER = ("verb", "started", "killed", "ended before", "whole afterwards", "its time s")


def row_of(verb: str, kills: Kills) -> tuple[str, ...]:
    """Its row of the table; the failures go to standard error."""
    for failure in kills.failures:
        print(f"{verb}, {failure}", file=sys.stderr)
    whole = kills.tried - len(kills.failures)
    counts = map(str, (kills.tried, kills.killed, kills.ended, whole))
    return (verb, *counts, f"{kills.seconds:.1f}")


def try_verb(verb: str, times: int, seed: int) -> Kills:
    """Kill `verb` in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(f"{verb} {seed}")  # noqa: S311  # no secret
        return kill(VICTIMS[verb](Path(folder)), times, rng)


def main() -> int:
    """The table on standard output, a verb at a time; 0 if all that was left is whole."""
    parser = argparse.ArgumentParser(prog="kills")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--verbs", default=",".join(VICTIMS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    verbs = arguments.verbs.split(",")
    found = {}

    def rows() -> Iterator[tuple[str, ...]]:
        for verb in verbs:
            times = max(1, round(arguments.kills * _SHARE.get(verb, _USUAL_SHARE)))
            found[verb] = try_verb(verb, times, arguments.seed)
            yield row_of(verb, found[verb])

    print_rows(_HEADER, verbs, rows())
    return int(any(kills.failures for kills in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
