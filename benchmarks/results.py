"""The result of a benchmark run as one JSON document: `BenchmarkRun` and its parts.

Times are in ms, memory in MiB; a value that does not apply is None. msgspec reads and writes the
document and checks it against these types.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.files import read_regular, replacing
from dinov2rt.foreign import in_one_line
from dinov2rt.strict_json import parse

SCHEMA_VERSION = 3

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
    """The time of one call, from images in host memory to outputs in host memory.

    `turns_ms` are the medians of the single turns; `p50_low_ms` and `p50_high_ms` are the 95 %
    interval of the median, by order statistics of `turns_ms`. Turn i of every candidate of a cell
    ran at about the same time, so that the ratio of two candidates is valid even if the machine's
    speed changes. A percentile or bound that needs more samples is None. The three phases exist
    only on a GPU and come from CUDA events in a few additional calls, see `candidate.Phases`.

    `stolen` is the largest share of all cores' time that the host of a virtual machine gave to
    others during a turn; `disturbed_turns` is the number of turns that were repeated for it.
    `others` is other processes' share, over all turns. `disk_reads_per_s` are major page faults.
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
    disk_reads_per_s: float = 0.0
    host_to_device_ms: float | None = None
    compute_ms: float | None = None
    device_to_host_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The candidate's outputs at the cell, compared with eager float32 on the same images.

    `cosine_min` and `relative_l2` are the worst values over all outputs, as in `bundle.accuracy`.
    `cls_cosine_min` is the smallest cosine of a CLS token, `patch_cosine_p1` the first percentile
    over patch tokens. `limits` are the accuracy limits as text. A value that is not finite is None
    in the document.
    """

    passed: bool
    limits: str
    cosine_min: float | None
    relative_l2: float | None
    cls_cosine_min: float | None
    patch_cosine_p1: float | None
    nan_count: int


@dataclass(frozen=True, slots=True)
class Roofline:
    """The least time for the cell at the machine's peak rates, by the roofline model.

    It is the larger of `gflop` / matrix rate and `gbyte` / copy bandwidth; `bound` names the larger
    one ("compute" or "bandwidth"). The matrix rate comes from a large matrix product that takes
    turns with the candidates: `matrix_gflops` and `least_ms` are medians over the turns. `fraction`
    is the median, over the turns, of the least time divided by the candidate's time.
    """

    gflop: float
    gbyte: float
    matrix_gflops: float
    least_ms: float
    bound: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one candidate at one cell.

    `latency` and `roofline` are None if the candidate could not run, or if it failed the accuracy
    check and the run was not in one process; `failure` is then the reason.
    """

    cell: Cell
    candidate: str
    accuracy: Accuracy | None = None
    latency: LatencyReport | None = None
    roofline: Roofline | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """Facts about a candidate for one variant, measured in a process of its own.

    In a run in one process, values that cannot be attributed to one candidate are None.

    `import_ms` is the time to import its libraries in a fresh process, `load_ms` the time from
    there to a model that can be called. `first_call_ms` is the time of the first call at the first
    cell, None if no call succeeded. `peak_rss_mib` covers all cells, None if the process died.
    `peak_device_mib` is its GPU memory at the end, as the driver reports it.
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
    """A requested candidate that is not in the run, and the reason.

    `failed` marks a candidate of dinov2rt that should run here but could not be loaded.
    """

    variant: str
    candidate: str
    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class PeakRates:
    """The machine's peak rates, measured before the first cell.

    `matrix_gflops` is the rate of a large matrix product, by precision, and `matrix_library` the
    library that reached it. Except in runs in one process, that library's product also takes turns
    with the candidates (`Roofline`). `copy_gb_per_s` counts bytes read plus bytes written; it is
    None in old runs, which measured it wrongly.
    """

    matrix_gflops: dict[str, float]
    matrix_library: dict[str, str]
    copy_gb_per_s: float | None
    matrix_shape: tuple[int, int, int] = (2048, 2048, 2048)
    """M, K and N of the matrix product; the default is for old runs, which do not record it."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and its software. `warnings` are lines for the reader, e.g. about a busy machine.

    `machine` is a short name fit for a folder. `details` are the settings of CPU and GPU that could
    be read (clocks, power limit, throttling, driver, governor), by name.
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
    """How a run was measured; two runs compare only if their settings are equal.

    `one_process` marks a run of `benchmarks.gpu.cells`: one process holds all candidates, also
    those that are not accurate. Otherwise each has `processes` of its own at a cell.
    """

    threads: int
    device: str
    images: str
    seconds_per_candidate: float
    min_turns: int
    one_process: bool = False
    processes: int = 1


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """The bundle of one variant in the run."""

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
    peak_rates: PeakRates
    bundles: tuple[BundleFacts, ...]
    candidates: tuple[CandidateFacts, ...]
    missing: tuple[Missing, ...]
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a run; control characters in its text are escaped, so that it is safe on a page.

        Raises:
            InputError: the file cannot be read, or is not a run of this schema.
        """
        try:
            document = in_one_line(parse(read_regular(file, _MOST_BYTES)))
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
            raise InputError(f"{file} is not a result of `dinov2rt bench` ({error})") from error

    def facts(self, row: Row) -> CandidateFacts:
        """The facts about the candidate of `row`.

        Raises:
            InputError: the run has none.
        """
        for facts in self.candidates:
            if (facts.variant, facts.candidate) == (row.cell.variant, row.candidate):
                return facts
        raise InputError(
            f"the run has a row of {row.candidate} at {row.cell} but no facts about "
            f"{row.candidate}; measure again"
        )

    def to_json(self) -> str:
        """The document, indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode()

    def write(self, file: Path) -> None:
        """Write the document atomically; an existing file is replaced.

        Raises:
            InputError: the file cannot be written.
        """
        with replacing(file, InputError, make_folder=True) as partial:
            partial.write_text(self.to_json() + "\n", encoding="utf-8")
