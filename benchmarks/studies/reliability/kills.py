r"""Verbs that are killed (SIGKILL) at random moments: what they leave is old or new, never half.

    python -m dinov2rt.benchmarks.studies.reliability.kills [--kills 200 --verbs run,search]

Each verb replaces what it made before. It is killed at a random moment of the time that it takes,
then the files on disk are read: they have to be whole, either old or new. `run` is resumed after
each kill, and has to end with the same rows as a run that was never killed. `build` needs
TensorRT for RTX; `report` needs the committed results of the repository.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinov2rt.benchmarks.results import BenchmarkRun
from dinov2rt.benchmarks.studies.reliability.growing import print_rows
from dinov2rt.benchmarks.studies.reliability.small_bundle import (
    write_small_bundle,
    write_small_checkpoint,
)
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import Dinov2rtError
from dinov2rt.extraction.reader import read_features
from dinov2rt.foreign import shown
from dinov2rt.optional import require
from dinov2rt.runtime.images import load_image, write_png

_IMAGES = 48
_SYNTHETIC = ("--weights", "synthetic:0")
_SHARE = {"run": 0.3, "search": 0.2, "report": 0.2, "export": 0.2, "bench": 0.1, "build": 0.2}
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


@dataclass(frozen=True, slots=True)
class Victim:
    """A verb to kill: its arguments for the n-th start, and what has to hold afterwards.

    `check` raises when what lies on the disk is not whole.
    """

    arguments: Callable[[int], Sequence[str]]
    check: Callable[[], None]


def kill(victim: Victim, times: int, rng: random.Random) -> Kills:
    """Start the verb `times` times and kill each at a random moment of an undisturbed run."""
    kills, began = Kills(), time.monotonic()
    _finish(victim.arguments(0))
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


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "dinov2rt", *arguments]


def _finish(arguments: Sequence[str]) -> None:
    done = subprocess.run(_command(arguments), capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise Dinov2rtError(f"{' '.join(arguments)} failed by itself: {done.stderr}")


def _killed(arguments: Sequence[str], after_s: float) -> bool:
    """Whether it was still running at that moment."""
    quiet: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(_command(arguments), **quiet) as process:  # noqa: S603
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def _write_images(folder: Path) -> Path:
    folder.mkdir()
    for index in range(_IMAGES):
        pixels = np.random.default_rng(index).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        write_png(pixels, folder / f"{index:03}.png")
    return folder


def _rows(features: Path) -> list[Any]:
    return list(read_features(features).to_pylist())


def _run(place: Path) -> Victim:
    """Resumed after each kill; begun anew once it was complete."""
    bundle, images = place / "bundle", _write_images(place / "images")
    write_small_bundle(bundle)
    base = ["run", str(bundle), str(images), "--part-images", "3", "--out"]
    whole = place / "whole.parquet"
    _finish([*base, str(whole)])
    wanted = {row["key"]: row for row in _rows(whole)}
    turn = 0

    def out() -> Path:
        return place / f"killed-{turn}.parquet"

    def check() -> None:
        nonlocal turn
        parts = [part for part in out().glob("*.parquet") if part.name[0] not in "._"]
        rows = [row for part in parts for row in _rows(part)]
        if any(row != wanted[row["key"]] for row in rows):
            raise ValueError("rows that are not those of a run that was never killed")
        if len(rows) == len(wanted):
            _finish([*base, str(out())])
            if _rows(out()) != list(wanted.values()) or list(out().rglob("*.partial")):
                raise ValueError("a resumed run that differs from one that was never killed")
            turn += 1

    return Victim(lambda _: [*base, str(out())], check)


def _search(place: Path) -> Victim:
    bundle, images = place / "bundle", _write_images(place / "images")
    write_small_bundle(bundle)
    features, picture = place / "features.parquet", place / "picture.png"
    _finish(["run", str(bundle), str(images), "--out", str(features)])
    keys = [row["key"] for row in _rows(features)][:2]
    base = ["search", "--features", str(features), "--picture", str(picture)]
    return Victim(lambda number: [*base, keys[number % 2]], lambda: _check_picture(picture))


def _check_picture(picture: Path) -> None:
    load_image(picture)  # of a PNG that is cut short it says so


def _report(place: Path) -> Victim:
    results = sorted((Path(__file__).resolve().parents[2] / "results").glob("*/vit-s.json"))
    if not results:
        raise Dinov2rtError("no committed results here; run it in the repository")
    pages = [place / "vit-s.md", place / "vit-s.html"]
    made: set[bytes] = set()
    for result in results:
        _finish(["report", str(result), "--out", str(place)])
        made |= {page.read_bytes() for page in pages}

    def check() -> None:
        if not {page.read_bytes() for page in pages} <= made:
            raise ValueError("a page that is neither the old nor the new one")

    return Victim(
        lambda number: ["report", str(results[number % len(results)]), "--out", str(place)], check
    )


def _bench(place: Path) -> Victim:
    bundle, out = str(place / "bundle"), place / "result.json"
    _finish(["export", "dinov2_vits14", *_SYNTHETIC, "--precision", "fp32", "--out", bundle])
    arguments = ["bench", bundle, "--peers", "none", "--batch", "1", "--size", "28"]
    arguments += ["--seconds", "0.2", "--turns", "1", "--out", str(out)]
    return Victim(lambda _: arguments, lambda: _check_result(out))


def _check_result(out: Path) -> None:
    if not BenchmarkRun.read(out).rows:
        raise ValueError("a result without rows")


def _export(place: Path) -> Victim:
    """Two models of one narrow block take turns."""
    bundle, weights = place / "bundle", [place / f"weights-{seed}" for seed in range(2)]
    for seed, folder in enumerate(weights):
        write_small_checkpoint(folder, seed)
    known = {*weights, bundle}
    base = ["export", "auto", "--precision", "fp32", "--out", str(bundle), "--force", "--weights"]

    def check() -> None:
        _check_bundle(bundle)
        left = [entry.name for entry in place.iterdir() if entry not in known]
        if len(left) > 1:  # what the last one left, and the next removes
            raise ValueError(f"left behind: {left}")

    return Victim(lambda number: [*base, str(weights[number % 2])], check)


def _check_bundle(bundle: Path) -> None:
    for file in Manifest.read(bundle).files:
        file.check(bundle, rebuild="")


def _build(place: Path) -> Victim:
    require("tensorrt_rtx", extra="tensorrt-rtx", purpose="killing build")
    bundle = place / "bundle"
    write_small_checkpoint(place / "weights", 0)
    _finish(["export", "auto", "--weights", str(place / "weights"), "--out", str(bundle)])
    base = ["build", str(bundle), "--flavour", "tensorrt-rtx", "--profiles", "224", "--force"]

    def check() -> None:
        _check_bundle(bundle)
        plans = {plan.file.path for plan in Manifest.read(bundle).plans}
        left = {f"plans/{file.name}" for file in (bundle / "plans").iterdir()} - plans
        if len(plans) != 1 or len(left) > 2:  # a partial file, and a plan that is in no manifest
            raise ValueError(f"{len(plans)} plans, left behind: {sorted(left)}")

    return Victim(lambda number: [*base, "--max-batch", str(2 + number % 2)], check)


VICTIMS = {
    "run": _run,
    "search": _search,
    "report": _report,
    "export": _export,
    "bench": _bench,
    "build": _build,
}

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
            times = max(1, round(arguments.kills * _SHARE[verb]))
            found[verb] = try_verb(verb, times, arguments.seed)
            yield row_of(verb, found[verb])

    print_rows(_HEADER, verbs, rows())
    return int(any(kills.failures for kills in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
