r"""Verbs on a machine that lacks something: one line and a status, and nothing left half done.

    python -m dinov2rt.benchmarks.studies.reliability.faults [--kinds "full disk,signals"]

Each fault is tried with real processes: a file system without space, few open files, little memory,
no HOME, signals, closed streams, two processes at one place. Faults that need root, such as a full
tmpfs, are left out for other users.
"""

import argparse
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.benchmarks.studies.reliability.processes import Ended, end, start
from dinov2rt.benchmarks.studies.reliability.small_bundle import write_small_bundle
from dinov2rt.extraction.reader import read_features
from dinov2rt.runtime.images import write_png

_IMAGES = 40
_SIGNALLED_AT = (0.3, 0.45, 0.6, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Site:
    """Where faults are tried: a folder with a bundle, images and their features."""

    folder: Path

    @property
    def run(self) -> tuple[str, ...]:
        """The verb without its output."""
        return ("run", str(self.folder / "bundle"), str(self.folder / "images"), "--out")

    @property
    def search(self) -> tuple[str, ...]:
        """The verb without its picture."""
        features = str(self.folder / "features.parquet")
        return ("search", "000.png", "--features", features, "--picture")


@dataclass(slots=True)
class Tried:
    """How many faults of a kind were tried, and what was not handled."""

    count: int = 0
    failures: list[str] = field(default_factory=list)


def full_disk(site: Site) -> Iterator[str]:
    """Outputs that grow beyond what the system lets them, and a file system of 12 KiB."""
    small = {resource.RLIMIT_FSIZE: 8192}
    for output in ("small.npz", "small.parquet"):
        yield f"run to {output}"
        end(start([*site.run, str(site.folder / output)], limits=small)).must(2)
        _nothing_left(site.folder, output)
    yield "search"
    end(start([*site.search, str(site.folder / "small.png")], limits=small)).must(2)
    _nothing_left(site.folder, "small.png")
    with _mounted(site.folder / "tiny", "size=12k") as tiny:
        if tiny:
            for output in ("a.npz", "a.parquet"):
                yield f"run to {output} on a full tmpfs"
                end(start([*site.run, str(tiny / output), "--part-images", "1"])).must(2)
                _nothing_left(tiny, output)
            yield "TMPDIR on a full tmpfs"
            (tiny / "filled").write_bytes(bytes(2**12))
            temporary = {"TMPDIR": str(tiny)}
            out = str(site.folder / "temporary.parquet")
            end(start([*site.run, out], environment=temporary)).must(0, 2)


def few_resources(site: Site) -> Iterator[str]:
    """Open files and memory, down to where nothing can run."""
    for files, statuses in ((64, (0,)), (32, (0,)), (12, (2,)), (8, (1, 2))):
        yield f"{files} open files"
        out = str(site.folder / f"files-{files}.parquet")
        end(start([*site.run, out], limits={resource.RLIMIT_NOFILE: files})).must(*statuses)
    for mib, statuses in ((4000, (0,)), (3000, (0,)), (700, (0, 2))):
        yield f"{mib} MiB of address space"
        out = str(site.folder / f"memory-{mib}.npz")
        limits = {resource.RLIMIT_AS: mib * 2**20}
        end(start([*site.run, out, "--decoders", "0"], limits=limits)).must(*statuses)


def missing_places(site: Site) -> Iterator[str]:
    """No HOME, no TMPDIR, or ones that do not exist; a bundle that cannot be written to."""
    for name, value in (("none", None), ("nowhere", "/nowhere")):
        yield f"HOME and TMPDIR: {name}"
        out = str(site.folder / f"{name}.parquet")
        end(start([*site.run, out], environment={"HOME": value, "TMPDIR": value})).must(0)
    with _mounted(site.folder / "frozen", "size=8m") as frozen:
        if frozen:
            write_small_bundle(frozen / "bundle")
            _mount("-o", "remount,ro", str(frozen))
            for verb in ("verify", "info"):
                yield f"{verb} of a read-only bundle"
                end(start([verb, str(frozen / "bundle")])).must(0)
            yield "build into a read-only bundle"
            end(start(["build", str(frozen / "bundle")])).must(2)
            yield "run to a read-only place"
            end(start([*site.run, str(frozen / "a.npz")])).must(2)


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
            _nothing_left(site.folder, out, allow_whole=True)


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
    _nothing_left(site.folder, "exported", allow_whole=True)


KINDS: dict[str, Callable[[Site], Iterator[str]]] = {
    "full disk": full_disk,
    "few resources": few_resources,
    "missing places": missing_places,
    "signals": signals,
    "closed streams": closed_streams,
    "two at once": two_at_once,
}


def try_kind(kind: str) -> Tried:
    """Each fault of one kind, until one is not handled."""
    tried, last = Tried(), ""
    with tempfile.TemporaryDirectory() as folder:
        site = _prepared(Path(folder))
        try:
            for name in KINDS[kind](site):
                last = name
                tried.count += 1
        except AssertionError as error:
            tried.failures.append(f"{last}: {error}")
    return tried


def _prepared(folder: Path) -> Site:
    site = Site(folder)
    write_small_bundle(folder / "bundle")
    (folder / "images").mkdir()
    for index in range(_IMAGES):
        pixels = np.random.default_rng(index).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        write_png(pixels, folder / "images" / f"{index:03}.png")
    end(start([*site.run, str(folder / "features.parquet")])).must(0)
    return site


def _nothing_left(folder: Path, output: str, *, allow_whole: bool = False) -> None:
    """No part of a file, hidden or not, beside or in `output`."""
    hidden = [entry.name for entry in folder.iterdir() if entry.name.startswith(f".{output}")]
    out = folder / output
    inside = [part.name for part in out.rglob("*") if part.is_file()] if out.is_dir() else []
    partial = [name for name in inside if name.endswith(".partial")]
    if hidden or partial or (out.is_file() and not allow_whole):
        raise AssertionError(f"left behind: {hidden + partial or output}")


@contextlib.contextmanager
def _mounted(place: Path, options: str) -> Iterator[Path | None]:
    """A tmpfs at `place`, or None for those who may not mount one."""
    place.mkdir()
    if os.geteuid() or not _mount("-t", "tmpfs", "-o", options, "tmpfs", str(place)):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", "-l", str(place)], check=False)  # noqa: S603


def _mount(*arguments: str) -> bool:
    done = subprocess.run(["/bin/mount", *arguments], capture_output=True)  # noqa: S603
    return done.returncode == 0


_HEADER = ("faults", "tried", "handled")


def main() -> int:
    """The table on standard output; 0 if everything was handled."""
    parser = argparse.ArgumentParser(prog="faults")
    parser.add_argument("--kinds", default=",".join(KINDS))
    found = {kind: try_kind(kind) for kind in parser.parse_args().kinds.split(",")}
    rows = tuple(
        (kind, str(tried.count), str(tried.count - len(tried.failures)))
        for kind, tried in found.items()
    )
    print(Table("faults", _HEADER, rows))
    for kind, tried in found.items():
        for failure in tried.failures:
            print(f"{kind}, {failure}", file=sys.stderr)
    return int(any(tried.failures for tried in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
