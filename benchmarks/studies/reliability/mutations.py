r"""Damaged and forged files through the readers of dinov2rt: how many were tried and handled.

    python -m dinov2rt.benchmarks.studies.reliability.mutations [--seeds 300 --kinds tar,png]

A sound file of each kind is changed at random, a different way for every seed: bits, lengths,
repeated and missing parts, numbers at the ends of their ranges. A reader may read what it is given,
if that is still sound, or refuse it in one line (`Dinov2rtError`, or a row of the errors table).
Everything else, a crash, a line with control characters, counts as a failure.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dinov2rt.benchmarks.studies.reliability import collection_files, model_files
from dinov2rt.benchmarks.studies.reliability.file_kind import Kind
from dinov2rt.benchmarks.studies.reliability.growing import print_rows
from dinov2rt.errors import Dinov2rtError
from dinov2rt.foreign import shown

KINDS: dict[str, Kind] = collection_files.KINDS | model_files.KINDS
_EXTREMES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"-1\0 ",
    b"9999",
)
_MOST_CHANGES = 4


@dataclass(slots=True)
class Count:
    """The outcomes for files of one kind; `failures` are the seeds that were not handled."""

    read: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def tried(self) -> int:
        """All of them."""
        return self.read + self.refused + len(self.failures)


def try_kind(kind: Kind, seeds: range) -> Count:
    """Read one changed file for each of `seeds`."""
    count, sound = Count(), kind.sound()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, kind.file)
        for seed in seeds:
            file.write_bytes(_changed(sound, random.Random(seed), kind))  # noqa: S311  # no secret
            began = time.monotonic()
            _try(kind, file, seed, count)
            count.slowest_s = max(count.slowest_s, time.monotonic() - began)
    return count


def _try(kind: Kind, file: Path, seed: int, count: Count) -> None:
    try:
        lines = kind.read(file)
    except Dinov2rtError as error:
        lines = [str(error)]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        count.failures[seed] = f"{type(error).__name__}: {shown(error)}"
        return
    if bad := [line for line in lines if not line.isprintable()]:
        count.failures[seed] = f"not one line: {bad[0]!a}"
    elif lines:
        count.refused += 1
    else:
        count.read += 1


def _changed(sound: bytes, rng: random.Random, kind: Kind) -> bytes:
    content = bytearray(sound)
    for _ in range(rng.randint(1, _MOST_CHANGES)):
        rng.choice(_CHANGES)(content, rng)
    if content and kind.repaired is not None:
        kind.repaired(content, rng)
    return bytes(content)


def _flip(content: bytearray, rng: random.Random) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _extreme(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    content[at : at + 4] = rng.choice(_EXTREMES)


def _cut(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    del content[at : at + rng.choice((1, 8, 512, len(content)))]


def _repeat(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    content[at:at] = content[at : at + rng.choice((1, 8, 512))] * rng.choice((1, 3))


def _noise(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    content[at : at + 16] = rng.randbytes(16)


_CHANGES = (_flip, _flip, _extreme, _extreme, _cut, _repeat, _noise)


_HEADER = ("file", "tried", "handled", "read as sound", "refused", "slowest s")


def row_of(name: str, count: Count) -> tuple[str, ...]:
    """Its row of the table; the failures go to standard error."""
    for seed, failure in count.failures.items():
        print(f"{name}, seed {seed}: {failure}", file=sys.stderr)
    handled = count.tried - len(count.failures)
    counts = map(str, (count.tried, handled, count.read, count.refused))
    return (name, *counts, f"{count.slowest_s:.2f}")


def main() -> int:
    """The table on standard output, a kind at a time; 0 if everything was handled."""
    parser = argparse.ArgumentParser(prog="mutations")
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    names = arguments.kinds.split(",")
    counts = {}

    def rows() -> Iterator[tuple[str, ...]]:
        for name in names:
            counts[name] = try_kind(KINDS[name], range(arguments.seeds))
            yield row_of(name, counts[name])

    print_rows(_HEADER, names, rows())
    return int(any(count.failures for count in counts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
