"""The parts of a manifest: files, weights, graphs and plans."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Self

from dinov2rt.bundle.limits import FLOAT32_LIMITS, Limits, TaskLimits
from dinov2rt.bundle.precision import Precision, QuantizationEntry
from dinov2rt.bundle.profiles import ProfileEntry
from dinov2rt.bundle.signature import ATTENTION, X_PRENORM, Extras
from dinov2rt.errors import BundleError
from dinov2rt.files import open_regular, read_regular
from dinov2rt.foreign import quoted, shown
from dinov2rt.onnx_files import external_files

_LISTED_GROUPS = 6
_NAME_LENGTH = 80


class Flavour(StrEnum):
    """The TensorRT that a plan is for: TensorRT, or TensorRT for RTX."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt_rtx"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the bundle: path relative to it, size, and SHA-256 in hexadecimal.

    Raises:
        ValueError: `path` is outside the bundle or not printable, or the size is negative.
    """

    path: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in self.path:
            raise ValueError(f"path {quoted(self.path)} does not lie in the bundle")
        if not self.path.isprintable():
            raise ValueError(f"path {quoted(self.path)} holds control characters")
        if self.size_bytes < 0:
            raise ValueError(f"{shown(self.path)} has {self.size_bytes} bytes")

    @classmethod
    def of(cls, root: Path, path: str) -> Self:
        """The entry of the existing file `path` below `root`."""
        file = root / path
        return cls(path=path, size_bytes=file.stat().st_size, sha256=sha256_of(file))

    def locate(self, root: Path, *, rebuild: str) -> Path:
        """The file's path, after a check of its size.

        Raises:
            BundleError: the file is missing or has another size; the message ends with the command
                that rebuilds it.
        """
        file = root / self.path
        try:
            size = file.stat().st_size
        except OSError as error:
            raise BundleError(self._unreadable(file, error, rebuild)) from error
        if size != self.size_bytes:
            raise BundleError(
                f"{file} has {size} bytes, the manifest says {self.size_bytes}; {rebuild}"
            )
        return file

    def check(self, root: Path, *, rebuild: str) -> Path:
        """The file's path, after a check of its size and hash.

        Raises:
            BundleError: the file is missing or altered; the message ends with the command that
                rebuilds it.
        """
        file = self.locate(root, rebuild=rebuild)
        try:
            found = sha256_of(file)
        except OSError as error:
            raise BundleError(self._unreadable(file, error, rebuild)) from error
        self._compare(file, found, rebuild)
        return file

    def read(self, root: Path, *, rebuild: str) -> bytes:
        """The file's content, read once and checked by size and hash.

        Raises:
            BundleError: the file is missing or altered; the message ends with the command that
                rebuilds it.
        """
        import hashlib

        file = self.locate(root, rebuild=rebuild)
        try:
            content = read_regular(file, self.size_bytes)
        except OSError as error:
            raise BundleError(self._unreadable(file, error, rebuild)) from error
        self._compare(file, hashlib.sha256(content).hexdigest(), rebuild)
        return content

    def _compare(self, file: Path, found: str, rebuild: str) -> None:
        if found != self.sha256:
            raise BundleError(
                f"{file} has SHA-256 {found[:16]}…, the manifest says {self.sha256[:16]}…; "
                f"{rebuild}"
            )

    def _unreadable(self, file: Path, error: OSError, rebuild: str) -> str:
        return f"{file} cannot be read ({error.strerror}), but the manifest names it; {rebuild}"


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One ONNX graph. `files` holds the graph first, then its external data.

    `input_name` is "pixels" (uint8 [B, H, W, 3]) or "images" (float32 [B, 3, H, W], normalised).
    `layers` are the indices of intermediate blocks whose tokens it returns as well, after the final
    norm unless they are `unnormed`. `ranges`, of an fp16 graph, holds the largest |activation| of
    the eager model by tensor, e.g. `blocks.3.down`, over the photographs of the golden outputs;
    float16 ends at 65504.
    `limits` is the least agreement with the eager model that passes; `task_limits` has the same for
    outputs that are not tokens, by name; `quantization` is there for int8 alone. With `pads` the
    graph itself pads images to whole patches, centred, where others drop pixels.
    `bf16_limits` and `bf16_task_limits`, of an fp32 graph, are what passes where a CPU computes its
    backbone in bfloat16; None and empty if the bundle was exported before that was measured. A
    graph that takes only one shape has batch, height and width in `static`.
    """

    precision: Precision
    opset: int
    input_name: str
    outputs: tuple[str, ...]
    layers: tuple[int, ...]
    files: tuple[FileEntry, ...]
    ranges: dict[str, float] = field(default_factory=dict)
    limits: Limits = FLOAT32_LIMITS
    quantization: QuantizationEntry | None = None
    unnormed: bool = False
    task_limits: dict[str, TaskLimits] = field(default_factory=dict)
    pads: bool = False
    bf16_limits: Limits | None = None
    static: tuple[int, ...] = ()
    bf16_task_limits: dict[str, TaskLimits] = field(default_factory=dict)

    @property
    def extras(self) -> Extras:
        """Its outputs in addition to the final tokens."""
        has_prenorm, has_attention = X_PRENORM in self.outputs, ATTENTION in self.outputs
        return Extras(self.layers, self.unnormed, has_prenorm, has_attention)

    def __post_init__(self) -> None:
        if self.input_name not in ("pixels", "images"):
            raise ValueError(f"input_name {quoted(self.input_name)} is neither pixels nor images")
        if not (self.files and self.outputs):
            raise ValueError("a graph must have files and outputs")
        self.limits.check()

    def check(self, root: Path, *, rebuild: str) -> Path:
        """The graph's path, after a check of all its files, and that it refers to no others.

        Raises:
            BundleError: a file is missing, altered or not named.
        """
        graph, *weights = self.files
        self.check_references(root, graph.read(root, rebuild=rebuild))
        for file in weights:
            file.check(root, rebuild=rebuild)
        return root / graph.path

    def check_references(self, root: Path, content: bytes) -> None:
        """Refuse the graph, whose bytes are `content`, if it refers to a file not among `files`.

        Raises:
            BundleError: it does, or it is no graph.
        """
        name = root / self.files[0].path
        try:
            found = external_files(content)
        except ValueError as error:
            raise BundleError(
                f"{name} is no ONNX graph ({error}); export the bundle again"
            ) from error
        if unnamed := found - {file.path for file in self.files}:
            raise BundleError(
                f"{name} refers to {quoted(min(unnamed))}, which the manifest does not name for "
                "it; export the bundle again"
            )

    @property
    def in_bf16(self) -> "GraphEntry | None":
        """The same graph where a CPU computes it in bfloat16, or None without limits for that."""
        if self.bf16_limits is None or self.bf16_task_limits.keys() != self.task_limits.keys():
            return None
        return replace(
            self,
            precision=Precision.BF16,
            limits=self.bf16_limits,
            task_limits=self.bf16_task_limits,
            bf16_limits=None,
            bf16_task_limits={},
        )


@dataclass(frozen=True, slots=True)
class VerificationEntry:
    """The comparison of a plan with the golden outputs: machine, driver, date and figures."""

    machine: str
    driver: str
    date: str
    cosine_min: float
    relative_l2: float


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One TensorRT plan. Precision, profiles and memory are read back from the built plan.

    `graph_sha256` is the hash of the ONNX graph that it was built from, `fused_attention` the
    number of fused attention operators in every profile, `options` further builder options. A plan
    without `verification` is unverified: it was never compared with the golden outputs.
    """

    file: FileEntry
    flavour: Flavour
    version: str
    target: str
    precision: Precision
    input_name: str
    outputs: tuple[str, ...]
    profiles: tuple[ProfileEntry, ...]
    fused_attention: int
    weight_bytes: int
    build_seconds: float
    graph_sha256: str
    options: dict[str, str] = field(default_factory=dict)
    verification: VerificationEntry | None = None


@dataclass(frozen=True, slots=True)
class WeightsEntry:
    """The source and the identity of the weights.

    `source` is the value of `--weights`. `sha256` is the hash of the checkpoint file, or of all
    tensors if there is no single file. For a checkpoint, `prefix` is the prefix of the backbone's
    names, `naming` their convention (official, timm or transformers), and `left_out` the number of
    other tensors by module. `revision` is the commit of a repository on a hub.
    """

    source: str
    sha256: str
    prefix: str | None = None
    naming: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    revision: str | None = None

    @property
    def selection(self) -> str | None:
        """The parts of a checkpoint that were used and left out, as text; None if not a file."""
        if self.prefix is None:
            return None
        place = f"below {shown(repr(self.prefix))}" if self.prefix else "at the top"
        left_out = f"; left out: {describe_groups(self.left_out)}" if self.left_out else ""
        revision = f"revision {self.revision}; " if self.revision else ""
        return f"{revision}backbone {place}, {self.naming} names{left_out}"

    @property
    def pinned_source(self) -> str:
        """The source with its revision."""
        return f"{self.source.partition('@')[0]}@{self.revision}" if self.revision else self.source

    @property
    def options(self) -> list[str]:
        """The options of `export` for the same weights."""
        is_choice = self.prefix is not None and (self.prefix or self.left_out)
        prefix = [f"--prefix={self.prefix}"] if is_choice else []
        return ["--weights", self.pinned_source, *prefix]


def describe_groups(groups: dict[str, int]) -> str:
    """The largest groups of tensors as text: `student (178 tensors), head (1 tensor)`."""
    largest = sorted(groups.items(), key=lambda item: -item[1])[:_LISTED_GROUPS]
    names = [
        f"{shown(name, _NAME_LENGTH)} ({count} tensor{'s' * (count != 1)})"
        for name, count in largest
    ]
    more = len(groups) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    import hashlib  # loads OpenSSL: milliseconds that `import dinov2rt` need not spend

    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
