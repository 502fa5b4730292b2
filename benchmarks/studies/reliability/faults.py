r"""Verbs on a machine that lacks something: one line and a status, and nothing left half done.

    python -m dinov2rt.benchmarks.studies.reliability.faults [--kinds full-disk,signals]

Each fault is tried with real processes: a file system without space, few open files, little memory,
no HOME, signals, closed streams, two processes at one place. Faults that need root, such as a full
tmpfs, are left out for other users.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dinov2rt.benchmarks.studies.reliability.full_disks import (
    full_disk,
    full_disk_of_other_verbs,
    missing_places,
)
from dinov2rt.benchmarks.studies.reliability.growing import print_rows
from dinov2rt.benchmarks.studies.reliability.processes import Ended, end, start
from dinov2rt.benchmarks.studies.reliability.site import IMAGES, Site, nothing_left, prepared
from dinov2rt.extraction.reader import read_features

_NOBODY = 54_321
_PROCESSES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 64)
_ENOUGH = 64
_ABORTS_MIB = 500
"""With so little address space a library may abort the process, as docs/reliability.md says."""
_SIGNALLED_AT = (0.3, 0.45, 0.6, 0.75, 0.9)


@dataclass(slots=True)
class Tried:
    """How many faults of a kind were tried, and what was not handled."""

    count: int = 0
    failures: list[str] = field(default_factory=list)


def few_resources(site: Site) -> Iterator[str]:
    """Open files and memory, down to where nothing can run."""
    for files, statuses in ((64, (0,)), (32, (0,)), (12, (2,)), (8, (1, 2))):
        yield f"{files} open files"
        out = str(site.folder / f"files-{files}.parquet")
        end(start([*site.run, out], limits={resource.RLIMIT_NOFILE: files})).must(*statuses)
    for mib in (4000, 3000, 700, 500, 450, 400, 350, 300):
        for decoders in ("0", "2"):
            yield f"{mib} MiB of address space, {decoders} decoders"
            out = f"memory-{mib}-{decoders}.npz"
            arguments = [*site.run, str(site.folder / out), "--decoders", decoders]
            ended = end(start(arguments, limits={resource.RLIMIT_AS: mib * 2**20}))
            if mib <= _ABORTS_MIB and ended.aborted_for_memory:
                continue
            ended.must(0, *([2] * (mib < 3000)))
            nothing_left(site.folder, out, allow_whole=True)


def few_processes(site: Site) -> Iterator[str]:
    """So few processes and threads that some or all of those that are wanted do not start.

    The limit does not bind root, so another user runs the verb, who has no other process.
    """
    if os.geteuid() or shutil.which("setpriv") is None:
        return
    site.folder.chmod(0o777)
    for processes in _PROCESSES:
        for decoders in ("0", "2"):
            yield f"{processes} processes, {decoders} decoders"
            out = site.folder / f"processes-{processes}-{decoders}.parquet"
            arguments = [*site.run, str(out), "--decoders", decoders, "--part-images", "8"]
            limits = {resource.RLIMIT_NPROC: processes}
            ended = end(start(arguments, limits=limits, user=_NOBODY))
            ended.must(0, *([2] * (processes < _ENOUGH)))
            nothing_left(site.folder, out.name)
            end(start(arguments, user=_NOBODY)).must(0)
            if len(read_features(out)) != IMAGES:
                raise AssertionError("rows were lost")


def signals(site: Site) -> Iterator[str]:
    """SIGINT and SIGTERM at several moments: the status says which, and nothing is left."""
    began = time.monotonic()
    end(start([*site.run, str(site.folder / "undisturbed.npz")])).must(0)
    seconds = time.monotonic() - began
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for share in _SIGNALLED_AT:
            yield f"{number.name} after {share:.0%} of the time"
            out = f"{number.name}-{share}.npz"
            process = start([*site.run, str(site.folder / out)])
            time.sleep(share * seconds)
            process.send_signal(number)
            # Before Python has started to listen, the signal ends it as it ends any process.
            end(process).must(0, status, -number)
            nothing_left(site.folder, out, allow_whole=True)


def closed_streams(site: Site) -> Iterator[str]:
    """Nobody listens."""
    bundle = site.folder / "bundle"
    for closed in (">&-", "2>&-", ">&- 2>&-", "| head -1", "--json | head -1"):
        yield f"info {closed}"
        command = f"set -o pipefail; {sys.executable} -m dinov2rt info {bundle} {closed}"
        done = subprocess.run(  # noqa: S603
            ["/bin/bash", "-c", command], capture_output=True, text=True
        )
        Ended(done.returncode, done.stderr).must(0)


def two_at_once(site: Site) -> Iterator[str]:
    """Two processes write to one place: both are right, or one is refused."""
    rows = len(read_features(site.folder / "features.parquet"))
    for output in ("twice.parquet", "twice.npz"):
        yield f"two runs to {output}"
        out = site.folder / output
        both = [start([*site.run, str(out), "--decoders", "0"]) for _ in range(2)]
        ended = [end(process) for process in both]
        for each in ended:
            each.must(0, 2)
        if all(each.status for each in ended):
            raise AssertionError("both were refused")
        count = len(read_features(out)) if out.is_dir() else len(np.load(out)["cls_token"])
        if count != rows:
            raise AssertionError(f"{count} rows of {rows}")
    yield "two exports to one place"
    out = site.folder / "exported"
    export = ["export", "dinov2_vits14", "--precision", "fp32", "--out", str(out), "--weights"]
    both = [start([*export, f"synthetic:{seed}"]) for seed in range(2)]
    for process in both:
        end(process).must(0, 2)
    end(start(["info", str(out), "--check"])).must(0)
    nothing_left(site.folder, "exported", allow_whole=True)


KINDS: dict[str, Callable[[Site], Iterator[str]]] = {
    "full-disk": full_disk,
    "full-disk-other-verbs": full_disk_of_other_verbs,
    "few-resources": few_resources,
    "few-processes": few_processes,
    "missing-places": missing_places,
    "signals": signals,
    "closed-streams": closed_streams,
    "two-at-once": two_at_once,
}


def try_kind(kind: str) -> Tried:
    """Each fault of one kind, until one is not handled."""
    tried, last = Tried(), ""
    with tempfile.TemporaryDirectory() as folder:
        site = prepared(Path(folder))
        try:
            for name in KINDS[kind](site):
                last = name
                tried.count += 1
        except AssertionError as error:
            tried.failures.append(f"{last}: {error}")
    return tried


_HEADER = ("faults", "tried", "handled")


def row_of(kind: str, tried: Tried) -> tuple[str, ...]:
    """Its row of the table; the failures go to standard error."""
    for failure in tried.failures:
        print(f"{kind}, {failure}", file=sys.stderr)
    return (kind, str(tried.count), str(tried.count - len(tried.failures)))


def main() -> int:
    """The table on standard output, a kind at a time; 0 if everything was handled."""
    parser = argparse.ArgumentParser(prog="faults")
    parser.add_argument("--kinds", default=",".join(KINDS))
    kinds = parser.parse_args().kinds.split(",")
    found = {}

    def rows() -> Iterator[tuple[str, ...]]:
        for kind in kinds:
            found[kind] = try_kind(kind)
            yield row_of(kind, found[kind])

    print_rows(_HEADER, kinds, rows())
    return int(any(tried.failures for tried in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
