"""A folder in which faults are tried, with a small bundle, images and features."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinov2rt.benchmarks.studies.reliability.processes import end, start
from dinov2rt.benchmarks.studies.reliability.small_bundle import write_small_bundle
from dinov2rt.runtime.images import write_png

IMAGES = 40


@dataclass(frozen=True, slots=True)
class Site:
    """A folder in which faults are tried, with a bundle, images and their features."""

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


def prepared(folder: Path) -> Site:
    """The site, in the empty `folder`."""
    site = Site(folder)
    write_small_bundle(folder / "bundle")
    (folder / "images").mkdir()
    for index in range(IMAGES):
        pixels = np.random.default_rng(index).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        write_png(pixels, folder / "images" / f"{index:03}.png")
    end(start([*site.run, str(folder / "features.parquet")])).must(0)
    return site


def nothing_left(folder: Path, output: str, *, allow_whole: bool = False) -> None:
    """No part of a file, hidden or not, beside or in `output`."""
    hidden = [entry.name for entry in folder.iterdir() if entry.name.startswith(f".{output}")]
    out = folder / output
    inside = [part.name for part in out.rglob("*") if part.is_file()] if out.is_dir() else []
    partial = [name for name in inside if name.endswith(".partial")]
    if hidden or partial or (out.is_file() and not allow_whole):
        raise AssertionError(f"left behind: {hidden + partial or output}")


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path | None]:
    """A tmpfs at `place`, or None for those who may not mount one."""
    place.mkdir()
    if os.geteuid() or not mount("-t", "tmpfs", "-o", options, "tmpfs", str(place)):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", "-l", str(place)], check=False)  # noqa: S603


def mount(*arguments: str) -> bool:
    """Whether the system mounted it."""
    done = subprocess.run(["/bin/mount", *arguments], capture_output=True)  # noqa: S603
    return done.returncode == 0
