"""A candidate that pools pixels, for processes of their own: its module imports no torch."""

import mmap
import os
import signal
import tempfile

import numpy as np

from dinov2rt.benchmarks.peers.candidate import Runner, Workload
from dinov2rt.errors import BackendError

DIM = 8


class Pooling:
    """Returns means of pixels as tokens; may die, or be wrong, from the second shape on.

    If it "thrashes", each call reads a mapped file that the system has just dropped from memory.
    """

    version = "pooling 1"

    def __init__(self, way_to_fail: str) -> None:
        self.way_to_fail, self.shapes = way_to_fail, 0

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        self.shapes += 1
        if self.way_to_fail == "dies" and self.shapes == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return pixels

    def run(self, prepared: np.ndarray) -> np.ndarray:
        if self.way_to_fail == "thrashes":
            read_from_disk()
        return prepared

    def outputs(self, result: np.ndarray) -> dict[str, np.ndarray]:
        batch, height, width, _ = result.shape
        means = result.reshape(batch, -1).mean(axis=1, dtype=np.float32)
        if self.way_to_fail == "wrong":
            means = means * np.float32(1.5)
        patches = height // 14 * (width // 14)
        return {
            "cls_token": np.tile(means[:, None], (1, DIM)),
            "patch_tokens": np.tile(means[:, None, None], (1, patches, DIM)),
        }

    def close(self) -> None:
        pass


def open_pooling(_: Workload, *, way_to_fail: str) -> Runner:
    if way_to_fail == "load":
        raise BackendError("there is no such library")
    return Pooling(way_to_fail)


def can_run(_: Workload) -> None:
    return None


def cannot_run(_: Workload) -> str:
    return "its package is not installed"


def read_from_disk() -> None:
    """Map a file whose pages are on disk alone, and read it."""
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(bytes(64 * mmap.PAGESIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            mapped.madvise(mmap.MADV_RANDOM)  # otherwise one read fetches many pages
            mapped[:: mmap.PAGESIZE]
