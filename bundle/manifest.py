"""`manifest.json`: the only source of facts about a bundle."""

import contextlib
import json
import shlex
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.codec import decode, encode, typed
from dinov2rt.bundle.entries import FileEntry, GraphEntry, PlanEntry, WeightsEntry
from dinov2rt.bundle.heads import HeadEntry
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import OPSET
from dinov2rt.bundle.variants import find_variant, name_of, variant_of
from dinov2rt.errors import BackendError, BundleError, InputError
from dinov2rt.files import held, read_regular, replacing
from dinov2rt.foreign import shown
from dinov2rt.strict_json import parse

MANIFEST_NAME = "manifest.json"
_MOST_BYTES = 2**24
"""Limit on the size of a manifest. A manifest with hundreds of plans has less than a hundredth."""
_MOST_REASON = 1000
SCHEMA_VERSION = 2
"""1 named a variant; 2 states the architecture."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """All facts about a bundle.

    `cuda_graph` is the fused form of the fp16 graph for ONNX Runtime CUDA, see
    `export/cuda/fused.py`; None if the bundle has none. `heads` are the task heads in every
    graph. `tools` maps the exporting packages to their versions. `preprocess` is how the source
    of the weights scales and crops images, for `Preprocess.parse`; None if nothing beside the
    weights says. `static_graphs` are for other engines, and each takes only one shape.
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
            return typing.cast(Self, decode(cls, current, "manifest")), document
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
        text = json.dumps(named | encode(self), indent=2, allow_nan=False) + "\n"
        with replacing(bundle / MANIFEST_NAME, BundleError) as partial:
            partial.write_text(text, encoding="utf-8")

    def succeed(self, old: Self, bundle: Path, left: Iterable[str] = ()) -> None:
        """Write it in place of `old`, and remove the files that it does not name any more.

        Files at the paths in `left`, which killed processes may have left, are removed as well.

        Raises:
            BundleError: `bundle` cannot be written to.
        """
        self.write(bundle)
        named = {file.path for file in self.files}
        for gone in {*left, *(file.path for file in old.files)} - named:
            (bundle / gone).unlink(missing_ok=True)

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
    def all_graphs(self) -> tuple[GraphEntry, ...]:
        """A graph for each precision, the graph for ONNX Runtime CUDA, and graphs of one shape."""
        return (*self.graphs, *([self.cuda_graph] if self.cuda_graph else []), *self.static_graphs)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the bundle except the manifest, each once."""
        files = [file for graph in self.all_graphs for file in graph.files]
        files += [self.golden, *(plan.file for plan in self.plans)]
        return tuple({file.path: file for file in files}.values())

    def graph_in(self, precision: Precision) -> GraphEntry | None:
        """The graph of `precision`, or None if the bundle holds none."""
        return next((graph for graph in self.graphs if graph.precision is precision), None)

    def rebuild_command(self, bundle: Path) -> str:
        """The `dinov2rt export` command that makes the bundle's own files again."""
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
    options += _calibration_options(graphs)
    flags = {"--unnormed": "unnormed", "--x-prenorm": "x_prenorm", "--attention": "attention"}
    options += [flag for flag, name in flags.items() if getattr(first.extras, name)]
    return options


def _calibration_options(graphs: tuple[GraphEntry, ...]) -> list[str]:
    entries = [graph.quantization for graph in graphs if graph.quantization]
    paths = [path for each in entries if each.calibration for path in each.calibration.paths]
    return ["--calibration", *paths] if paths else []


def _architecture_options(architecture: Architecture) -> list[str]:
    """The options for properties that do not follow from the shapes of tensors."""
    options = ["--antialias", "on" if architecture.antialias else "off"]
    options += ["--offset", repr(architecture.offset)]
    options += ["--num-heads", str(architecture.num_heads)]
    return [*options, "--grid", str(architecture.native_grid)]


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
    variant = find_variant(typed(str, document.get("variant"), "manifest.variant"))
    architecture = encode(variant.architecture)
    if "normalization" in document:
        architecture["normalization"] = document["normalization"]
    return document | {"schema": SCHEMA_VERSION, "architecture": architecture}


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
            f"{plan.file.path}: its graph has SHA-256 {plan.graph_sha256[:16]}…, the graphs of "
            f"the bundle have {here}; {rebuild}"
        )
    return hashes[plan.graph_sha256]
