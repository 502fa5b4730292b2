"""`manifest.json`: the only source of facts about a bundle."""

import contextlib
import dataclasses
import json
import shlex
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Self

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.heads import HeadEntry
from dinov2rt.bundle.limits import FLOAT32_LIMITS, Limits, TaskLimits
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.profiles import ProfileEntry
from dinov2rt.bundle.signature import ATTENTION, OPSET, X_PRENORM, Extras
from dinov2rt.bundle.variants import find_variant, name_of, variant_of
from dinov2rt.bundle.weights_entry import WeightsEntry
from dinov2rt.errors import BackendError, BundleError, InputError
from dinov2rt.files import held, open_regular, read_regular, replacing
from dinov2rt.foreign import quoted, shown
from dinov2rt.strict_json import parse

MANIFEST_NAME = "manifest.json"
_MOST_BYTES = 2**24
"""Limit on the size of a manifest. A manifest with hundreds of plans has less than a hundredth."""
_MOST_ENTRIES = 1000
"""Limit on graphs, files, plans, and profiles of a plan. TensorRT builds far fewer profiles."""
_MOST_REASON = 1000
SCHEMA_VERSION = 2
"""1 named a variant; 2 states the architecture."""


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
class QuantizationEntry:
    """The products of an int8 graph that stay float32, and the graph's agreement with eager.

    `float32` names the products, e.g. `blocks.3.qkv`. The figures are measured at export, on crops
    of photographs that the search does not use. `cls_cosine_min` is the smallest cosine of a CLS
    token, `token_cosine_p1` the smallest first percentile of the cosines of a crop's other tokens.
    `same_nearest` is the share of crops with the same nearest neighbour, `kept_nearest` the share
    with an equally near one up to a tie (`limits.NEAREST_TIE`), or None in older bundles.
    """

    float32: tuple[str, ...]
    cls_cosine_min: float
    token_cosine_p1: float
    same_nearest: float
    kept_nearest: float | None = None


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One ONNX graph. `files` holds the graph first, then its external data.

    `input_name` is "pixels" (uint8 [B, H, W, 3]) or "images" (float32 [B, 3, H, W], normalised).
    `layers` are the indices of intermediate blocks whose tokens it returns as well, after the final
    norm unless they are `unnormed`. `ranges`, of an fp16 graph, holds the largest |activation| of
    the eager model by tensor, e.g. `blocks.3.down`, over the photographs of the golden outputs;
    float16 ends at 65504.
    `limits` is the least agreement with the eager model that passes, `task_limits` that of outputs
    which are no tokens, by name; `quantization` is there for int8 alone. With `pads` the graph
    itself pads images to whole patches, centred, where others drop pixels.
    `bf16_limits`, of an fp32 graph of tokens alone, is what passes where a CPU computes it in
    bfloat16; None if the bundle was exported before that was measured. A graph that takes only one
    shape has batch, height and width in `static`.
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

    @property
    def in_bf16(self) -> "GraphEntry | None":
        """The same graph where a CPU computes it in bfloat16, or None without limits for that."""
        if self.bf16_limits is None:
            return None
        return dataclasses.replace(
            self,
            precision=Precision.BF16,
            limits=self.bf16_limits,
            bf16_limits=None,
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
class Manifest:
    """All facts about a bundle.

    `cuda_graph` is the fused form of the fp16 graph for ONNX Runtime CUDA, see `export/fused.py`;
    None if the bundle has none. `heads` are the task heads in every graph. `tools` maps the
    exporting packages to their versions. `preprocess` is how the source of the weights scales and
    crops images, for `Preprocess.parse`; None if nothing beside the weights says. `static_graphs`
    are for other engines, and each takes only one shape.
    """

    schema: int
    architecture: Architecture
    weights: WeightsEntry
    graphs: tuple[GraphEntry, ...]
    golden: FileEntry
    plans: tuple[PlanEntry, ...] = ()
    cuda_graph: GraphEntry | None = None
    tools: dict[str, str] = field(default_factory=dict)
    heads: tuple[HeadEntry, ...] = ()
    preprocess: str | None = None
    static_graphs: tuple[GraphEntry, ...] = ()

    @classmethod
    def read(cls, bundle: Path) -> Self:
        """The manifest of the bundle at `bundle`.

        Raises:
            BundleError: the manifest is missing, unreadable, incomplete, or of a newer schema.
        """
        return cls.read_both(bundle)[0]

    @classmethod
    def read_both(cls, bundle: Path) -> tuple[Self, dict[str, Any]]:
        """Like `read`, and also return the document as plain JSON values."""
        path = bundle / MANIFEST_NAME
        document = _document(bundle, path)
        _check_schema(path, document)
        try:
            current = _upgraded(document) if document["schema"] == 1 else document
            return typing.cast(Self, _decode(cls, current, "manifest")), document
        except (InputError, TypeError, ValueError) as error:
            raise BundleError(
                f"{path} is incomplete or misshapen ({shown(error, _MOST_REASON)}); "
                "export the bundle again"
            ) from error

    def write(self, bundle: Path) -> None:
        """Write it into `bundle`, whole or not at all.

        Raises:
            BundleError: `bundle` cannot be written to.
        """
        variant = variant_of(self.architecture)  # for people; it is not read again
        named = {"schema": self.schema, "variant": variant.name if variant else None}
        text = json.dumps(named | _encode(self), indent=2, allow_nan=False) + "\n"
        with replacing(bundle / MANIFEST_NAME, BundleError) as partial:
            partial.write_text(text, encoding="utf-8")

    @classmethod
    @contextlib.contextmanager
    def changing(cls, bundle: Path) -> Iterator[Self]:
        """The manifest as it is now, for a change that no other process makes meanwhile.

        Raises:
            BundleError: it cannot be read.
        """
        try:
            lock = contextlib.ExitStack()
            lock.enter_context(held(bundle))
        except OSError as error:
            raise BundleError(f"{bundle} cannot be opened ({error.strerror})") from error
        with lock:
            yield cls.read(bundle)

    @property
    def name(self) -> str:
        """The variant's name, or a label of the architecture's sizes."""
        return name_of(self.architecture)

    @property
    def normalization(self) -> Normalization:
        """The normalization of the training; graphs that take pixels contain it."""
        return self.architecture.normalization

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the bundle except the manifest, each once."""
        graphs = (*self.graphs, *([self.cuda_graph] if self.cuda_graph else []))
        graphs += self.static_graphs
        files = [file for graph in graphs for file in graph.files]
        files += [self.golden, *(plan.file for plan in self.plans)]
        return tuple({file.path: file for file in files}.values())

    def rebuild_command(self, bundle: Path) -> str:
        """What brings the bundle's own files back: the export that made them."""
        variant = variant_of(self.architecture)
        command = ["dinov2rt", "export", variant.name if variant else "auto"]
        command += self.weights.options
        command += _export_options(self.graphs) if self.graphs else []
        command += _static_options(self.static_graphs)
        command += self._head_options()
        command += self._statistics_options()
        command += [] if variant else _architecture_options(self.architecture)
        return f"rebuild with: {shlex.join([*command, '--out', str(bundle), '--force'])}"

    def _head_options(self) -> list[str]:
        heads = [
            head.name if head.source == "official" else f"{head.name}={head.source}"
            for head in self.heads
        ]
        return ["--head", ",".join(heads)] if heads else []

    def _statistics_options(self) -> list[str]:
        """The options for mean and std; files beside the weights might have other values."""
        source = self.weights.source
        is_imagenet_always = source == "official" or source.startswith("synthetic:")
        normalization = self.architecture.normalization
        if is_imagenet_always and normalization == IMAGENET:
            return []
        mean, std = (",".join(map(repr, each)) for each in (normalization.mean, normalization.std))
        return [f"--mean={mean}", f"--std={std}"]  # a mean may be negative


def _static_options(graphs: tuple[GraphEntry, ...]) -> list[str]:
    return ["--static", "x".join(map(str, graphs[0].static))] if graphs else []


def _export_options(graphs: tuple[GraphEntry, ...]) -> list[str]:
    first = graphs[0]  # the others differ only in precision
    options = ["--precision", ",".join(graph.precision for graph in graphs)]
    if first.opset < OPSET:
        options += ["--opset", str(first.opset)]
    if first.input_name == "images":
        options += ["--input", "normalized"]
    if first.layers:
        options += ["--layers", ",".join(map(str, first.layers))]
    flags = {"--unnormed": "unnormed", "--x-prenorm": "x_prenorm", "--attention": "attention"}
    options += [flag for flag, name in flags.items() if getattr(first.extras, name)]
    return options


def _architecture_options(architecture: Architecture) -> list[str]:
    """The options for properties that do not follow from the shapes of tensors."""
    options = ["--antialias", "on" if architecture.antialias else "off"]
    options += ["--offset", repr(architecture.offset)]
    options += ["--num-heads", str(architecture.num_heads)]
    return [*options, "--grid", str(architecture.native_grid)]


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    import hashlib  # loads OpenSSL: milliseconds that `import dinov2rt` need not spend

    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _document(bundle: Path, path: Path) -> Any:
    try:
        return parse(read_regular(path, _MOST_BYTES))
    except OSError as error:
        raise BundleError(
            f"{bundle} is not a bundle: {MANIFEST_NAME} cannot be read ({error.strerror}); "
            f"make one with: dinov2rt export VARIANT --weights W --out {bundle}"
        ) from error
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}); export the bundle again") from error


def _check_schema(path: Path, document: Any) -> None:
    schema = document.get("schema") if isinstance(document, dict) else None
    if type(schema) is not int or schema < 1:
        raise BundleError(f"{path} states no schema version; export the bundle again")
    if schema > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema {schema}, this dinov2rt reads up to {SCHEMA_VERSION}; "
            "upgrade dinov2rt, or export the bundle again with this version"
        )


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1, which held a variant's name and a normalisation, as one of today."""
    variant = find_variant(_typed(str, document.get("variant"), "manifest.variant"))
    architecture = _encode(variant.architecture)
    if "normalization" in document:
        architecture["normalization"] = document["normalization"]
    return document | {"schema": SCHEMA_VERSION, "architecture": architecture}


def _encode(value: Any) -> Any:
    """A dataclass as plain JSON values."""
    if dataclasses.is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """The reverse of `_encode`, guided by the field types of the dataclass `kind`."""
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, _typed(dict, value, where), where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _decode_items(arguments[0], _typed(list, value, where), where)
    if origin is dict:
        items = _typed(dict, value, where).items()
        return {key: _decode(arguments[1], item, f"{where}.{shown(key)}") for key, item in items}
    if origin is types.UnionType:
        return None if value is None else _decode(arguments[0], value, where)
    if origin is typing.Literal:
        return _typed(str, value, where)  # the dataclass checks it
    return _decode_plain(kind, value, where)


def _decode_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if not issubclass(kind, StrEnum):
        return kind(_typed(kind, value, where))
    if _typed(str, value, where) not in set(kind):
        raise ValueError(f"{quoted(value)} is not a valid {kind.__name__}")
    return kind(value)


def _decode_items(kind: Any, items: list[Any], where: str) -> tuple[Any, ...]:
    if dataclasses.is_dataclass(kind) and len(items) > _MOST_ENTRIES:
        raise ValueError(f"{where} has {len(items)} entries; allowed are {_MOST_ENTRIES}")
    return tuple(_decode(kind, item, f"{where}[{index}]") for index, item in enumerate(items))


def _decode_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    """A dataclass; unknown keys come from a later version and are ignored."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.name in value]
    return kind(**{name: _decode(hints[name], value[name], f"{where}.{name}") for name in known})


def _typed(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:  # exactly: in Python, True is also an int
        raise TypeError(f"{where} is {type(value).__name__}, must be {kind.__name__}")
    return value


def rebuild_command(bundle: Path, plan: PlanEntry, target: str | None = None) -> str:
    """The command that builds `plan` again, for another GPU if `target` is given."""
    command = ["dinov2rt", "build", str(bundle), "--target", target or plan.target]
    command += ["--force"] if target in (None, plan.target) else []
    return f"rebuild with: {shlex.join(command)}"


def graph_of(manifest: Manifest, plan: PlanEntry, rebuild: str) -> GraphEntry:
    """The graph that `plan` was built from.

    Raises:
        BackendError: the bundle has another graph now.
    """
    hashes = {graph.files[0].sha256: graph for graph in manifest.graphs}
    if plan.graph_sha256 not in hashes:
        here = ", ".join(f"{sha256[:16]}…" for sha256 in hashes)
        raise BackendError(
            f"{plan.file.path}: its graph has SHA-256 {plan.graph_sha256[:16]}…, those of the "
            f"bundle have {here}; {rebuild}"
        )
    return hashes[plan.graph_sha256]
