"""The same work on a Ray cluster: Ray schedules, retries and spills, an actor is a worker.

Only chunks, which name the images, and reports are sent between nodes. The workers read images and
bundle, and write results: images, results, and a bundle that has no URL must lie where every node
finds them under the same path. A chunk that is computed twice, because its node died, gives the
same results under the same names.
"""

import contextlib
import logging
import os
import pickle
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar, cast
from urllib.parse import urlsplit

from dinov2rt.errors import BackendError, InputError, first_line
from dinov2rt.extraction.chunks import Chunk
from dinov2rt.optional import require

_CONNECT_S = 10
_BLOCKS_A_WORKER = 64
"""Ray schedules and retries blocks of chunks; with more than thousands of blocks it is slow."""


_Report = TypeVar("_Report")
_Report_co = TypeVar("_Report_co", covariant=True)


class ChunkProcessor(Protocol[_Report_co]):
    """Computes chunks and writes the results; picklable, as are its reports."""

    def process_chunk(self, chunk: Chunk) -> _Report_co:
        """Compute one chunk and write its results, unless they exist; safe to call again."""
        ...

    def on_cores(self, cores: int) -> Self:
        """A copy for another machine, with `cores` CPU cores there."""
        ...


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster's resources: `workers` actors with `cores` CPU cores and `gpus` GPUs each.

    `address` names a running cluster ("auto" finds one); None starts a cluster on this machine.

    Raises:
        InputError: fewer than one worker or core.
    """

    address: str | None = None
    workers: int = 1
    cores: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cores < 1:
            raise InputError(
                f"{self.workers} workers with {self.cores} cores; allowed are from 1 on"
            )


def process_on_ray(
    processor: ChunkProcessor[_Report], chunks: Sequence[Chunk], cluster: Cluster
) -> Generator[_Report, None, None]:
    """Compute `chunks` on `cluster`, each by a copy of `processor`.

    Args:
        processor: each worker gets a copy, which loads the model again, with as many threads as the
            worker has cores.
        chunks: what to compute.
        cluster: where to compute.

    Yields:
        The report on each chunk, once its results are safely on the disk, in no order.

    Raises:
        BackendError: no such cluster, or it cannot be started or gives up.
        MissingDependencyError: Ray is not installed.
    """
    ray = require("ray", extra="ray", purpose="the executor ray")
    data = require("ray.data", extra="ray", purpose="the executor ray")
    with _connected(ray, cluster):
        _silence(data.DataContext.get_current())
        rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
        blocks = min(len(rows), _BLOCKS_A_WORKER * cluster.workers)
        reports = data.from_items(rows, override_num_blocks=blocks).map_batches(
            _ChunkWorker,
            fn_constructor_args=(pickle.dumps(processor.on_cores(cluster.cores)),),
            batch_size=1,
            concurrency=min(cluster.workers, len(rows)),
            num_cpus=cluster.cores,
            num_gpus=cluster.gpus or None,
        )
        try:
            for row in reports.iter_rows():
                yield cast("_Report", pickle.loads(row["report"]))  # noqa: S301
        except ray.exceptions.RayError as error:
            raise BackendError(f"Ray gave up: {first_line(error)}") from error


class _ChunkWorker:
    """An actor, which keeps the loaded model and its decoders for all its chunks."""

    def __init__(self, processor: bytes) -> None:
        self._processor: ChunkProcessor[Any] = pickle.loads(processor)  # noqa: S301

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        reports = [
            self._processor.process_chunk(pickle.loads(chunk))  # noqa: S301
            for chunk in batch["chunk"]
        ]
        return {"report": [pickle.dumps(report) for report in reports]}


@contextlib.contextmanager
def _connected(ray: Any, cluster: Cluster) -> Iterator[None]:
    """Connect to Ray, or start it; shut it down afterwards, unless it was running before."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics by default
    starts = {} if cluster.address else {"include_dashboard": False}
    try:
        _check_reachable(cluster.address)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", **starts)
    except (OSError, ray.exceptions.RayError, ValueError) as error:
        raise BackendError(
            f"no Ray cluster at {cluster.address or 'this machine'} ({first_line(error)}); start "
            "one with `ray start --head`, or leave --address out to start one here"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Fail quickly if nothing listens at `address`; Ray itself retries for minutes."""
    if address is not None and address != "auto":
        place = urlsplit(address if "://" in address else f"//{address}")
        with socket.create_connection((place.hostname, place.port), timeout=_CONNECT_S):
            pass


def _silence(context: Any) -> None:
    """Turn Ray's own progress off; the command shows its own."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
