"""What a benchmark run says, as one JSON document: `BenchmarkRun` and its parts.

Times are in ms, sizes in MiB; what does not apply is None. msgspec reads and writes the document
and checks it against these types.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.files import read_regular
from dinov2rt.foreign import one_line
from dinov2rt.strict_json import parse

SCHEMA_VERSION = 2

_MOST_BYTES = 2**27


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One point of the grid: `batch` images of `height` × `width` pixels through `variant`."""

    variant: str
    batch: int
    height: int
    width: int

    @property
    def size(self) -> ImageSize:
        """Height and width."""
        return ImageSize(self.height, self.width)

    def __str__(self) -> str:
        return f"{self.variant} {self.batch}x{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """How long one call takes, from images in host memory to outputs in host memory.

    `p50_low_ms` and `p50_high_ms` bound the median at 95 % by order statistics of `turns_ms`, the
    medians of the single turns: turn i of every candidate of a cell ran side by side, so that the
    ratio of two of them holds on a machine whose speed changes. A percentile or bound that the
    samples cannot tell is None. The three phases are there on a GPU alone: CUDA events in a few
    calls more, see `candidate.Phases`.

    `stolen` is the largest share of all cores' time that the host of a virtual machine gave to
    others during one of the turns; `disturbed_turns` were taken again for that reason. `others` is
    the share that other processes of this machine had, over all turns.
    """

    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    min_ms: float
    p50_low_ms: float | None
    p50_high_ms: float | None
    samples: int
    images_per_s: float
    turns_ms: tuple[float, ...]
    stolen: float = 0.0
    disturbed_turns: int = 0
    others: float = 0.0
    host_to_device_ms: float | None = None
    compute_ms: float | None = None
    device_to_host_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The very outputs of the candidate at the cell, against eager float32 on the same images.

    `cosine_min` and `relative_l2` are the worst of all outputs, as in `runtime.accuracy`;
    `cls_cosine_min` is the smallest cosine of a CLS token, `patch_cosine_p1` the first percentile
    over patch tokens. `limits` says in words what had to hold. What is not finite is None in the
    document.
    """

    passed: bool
    limits: str
    cosine_min: float | None
    relative_l2: float | None
    cls_cosine_min: float | None
    patch_cosine_p1: float | None
    nan_count: int


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time that the machine's measured rates allow for the cell.

    `gflop` over the matrix rate, or `gbyte` over the copy bandwidth, whichever is longer and named
    by `bound` ("compute" or "bandwidth"). The matrix rate is that of a large product which took
    turns with the candidates: `matrix_gflops` and `floor_ms` are medians over these turns, and
    `fraction` is the median of each turn's least time over the time that the candidate took in it.
    """

    gflop: float
    gbyte: float
    matrix_gflops: float
    floor_ms: float
    bound: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate at one cell.

    `latency` and `floor` are None where the candidate could not run, or where its accuracy failed
    and the run was not in one process; `failure` then says why.
    """

    cell: Cell
    candidate: str
    accuracy: Accuracy | None = None
    latency: LatencyReport | None = None
    floor: Floor | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """What a candidate is, for one variant, measured in the process that holds it alone.

    In a run in one process, what cannot be told apart there is None.

    `import_ms` is what its libraries take in a fresh process, `load_ms` from there to a model that
    can be called; `first_call_ms` is the first call at the first cell, None if none succeeded.
    `peak_rss_mib` covers all cells, None if the process did not live to tell;
    `peak_device_mib` is what the driver says that it holds of the GPU at the end.
    """

    variant: str
    candidate: str
    title: str
    version: str
    precision: str
    is_peer: bool
    import_ms: float | None
    load_ms: float | None
    first_call_ms: float | None
    peak_rss_mib: float | None
    peak_device_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """A candidate that was asked for and is not in the run, and why.

    `failed` are those of dinov2rt that should run here, and could not be loaded.
    """

    variant: str
    candidate: str
    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Roof:
    """What the machine can do at most, measured before the first cell.

    `matrix_gflops` is the rate of a large product, by precision, `matrix_library` the library that
    reached it. Its product takes turns with the candidates (`Floor`), but for runs in one process;
    `copy_gb_per_s` counts bytes read plus bytes written, None in runs before it was measured right.
    """

    matrix_gflops: dict[str, float]
    matrix_library: dict[str, str]
    copy_gb_per_s: float | None
    matrix_shape: tuple[int, int, int] = (2048, 2048, 2048)
    """Rows, summands and columns of the product; a run that does not say took this one."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and its software. `warnings` are lines for the reader, e.g. a busy machine.

    `machine` is a short name fit for a folder. `settings` of CPU and GPU that could be read
    (clocks, power limit, throttling, driver, governor) stand in `details`, by name.
    """

    machine: str
    cpu: str
    gpu: str | None
    cores: int
    memory_gib: float
    affinity: tuple[int, ...]
    python: str
    system: str
    libraries: dict[str, str]
    details: dict[str, str]
    load_average: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How it was measured; two runs compare only where these are equal.

    With `one_process` it was `benchmarks.gpu.cells`: one process holds all candidates, and those
    that fail their accuracy are timed all the same.
    """

    threads: int
    device: str
    images: str
    seconds_per_candidate: float
    min_turns: int
    one_process: bool = False


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """Which weights the run is about."""

    variant: str
    weights_source: str
    weights_sha256: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class _Versioned:
    schema: int


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """One run of `dinov2rt bench`, written once, read by `report` and `--against`."""

    schema: int
    created: str
    command: str
    version: str
    settings: Settings
    environment: Environment
    roof: Roof
    bundles: tuple[BundleFacts, ...]
    candidates: tuple[CandidateFacts, ...]
    missing: tuple[Missing, ...]
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a run; its text has escapes in place of control characters, fit for a page.

        Raises:
            InputError: it cannot be read, or is of another form.
        """
        try:
            document = _printable(parse(read_regular(file, _MOST_BYTES)))
            schema = msgspec.convert(document, type=_Versioned).schema
            if schema != SCHEMA_VERSION:
                raise InputError(
                    f"{file} has schema {schema}, this version reads {SCHEMA_VERSION}; "
                    "measure again"
                )
            return msgspec.convert(document, type=cls)
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror})") from error
        except InputError:
            raise
        except (msgspec.MsgspecError, ValueError) as error:
            raise InputError(f"{file} is no result of `dinov2rt bench` ({error})") from error

    def facts(self, row: Row) -> CandidateFacts:
        """What the candidate of `row` is.

        Raises:
            InputError: the run does not say.
        """
        for facts in self.candidates:
            if (facts.variant, facts.candidate) == (row.cell.variant, row.candidate):
                return facts
        raise InputError(
            f"the run has a row of {row.candidate} at {row.cell} and does not say what "
            f"{row.candidate} is; measure again"
        )

    def to_json(self) -> str:
        """The document, indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode()

    def write(self, file: Path) -> None:
        """Write the document, in place of one that may be there, whole or not at all.

        Raises:
            InputError: it cannot be written there.
        """
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(self.to_json() + "\n", encoding="utf-8")
            beside.replace(file)
        except OSError as error:
            raise InputError(f"{file} cannot be written ({error.strerror})") from error


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return {one_line(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


STOLEN_AT_MOST = 0.03
"""The share of all cores' time that a host may give to others before a turn is taken again."""


LOADS = 5
"""Fresh processes that load a candidate of ours, the median of whose times counts; a peer, which
may export or compile for minutes, is loaded once."""
