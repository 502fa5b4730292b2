"""Writes a bundle as a model repository for NVIDIA Triton Inference Server."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov2rt.bundle.entries import FileEntry, Flavour, GraphEntry, PlanEntry
from dinov2rt.bundle.manifest import Manifest, graph_of, rebuild_command
from dinov2rt.bundle.precision import Precision
from dinov2rt.engines.triton.config import DYNAMIC, Symbol, Tensor, onnx_config, plan_config
from dinov2rt.errors import InputError
from dinov2rt.files import refused
from dinov2rt.optional import require
from dinov2rt.place import built_beside

_VERSION = "1"

_SERVED = (Precision.FP32, Precision.FP16)
"""Precisions whose graphs ONNX Runtime runs with default session options."""


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """Batching options of the repository.

    `max_batch` applies only to ONNX models, since plans have their own; with 0, Triton does not
    batch. `queue_delay_us` is how long a request waits for others of its shape, in microseconds.

    Raises:
        InputError: a value is negative.
    """

    max_batch: int = 8
    queue_delay_us: int = 1000

    def __post_init__(self) -> None:
        for what, value in (("max batch", self.max_batch), ("queue delay", self.queue_delay_us)):
            if value < 0:
                raise InputError(f"{what} {value} is negative; allowed is a whole number from 0")


@dataclass(frozen=True, slots=True)
class TritonModel:
    """One model: the text of its `config.pbtxt`, and its files in the bundle."""

    name: str
    config: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of the bundle that Triton cannot serve, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Repository:
    """The models of a repository, and the files that were left out."""

    models: tuple[TritonModel, ...]
    left_out: tuple[LeftOut, ...]


def write_repository(bundle: Path, out: Path, options: RepositoryOptions) -> Repository:
    """Create the folder `out` with a model for each graph and each plan that Triton can load.

    Files are hard links to the bundle's files, or copies if the file system cannot link. The
    folder is created atomically.

    Raises:
        InputError: `out` exists, or Triton can serve no file of the bundle.
        BundleError: a file is missing or altered.
        Dinov2rtError: `out` cannot be written.
        MissingDependencyError: onnx is not installed.
    """
    if out.exists():
        raise InputError(f"{out} exists already; remove it, or give another name")
    repository = plan_repository(bundle, options)
    if not repository.models:
        reasons = "; ".join(f"{one.file}: {one.reason}" for one in repository.left_out)
        raise InputError(f"Triton can serve no graph or plan of {bundle} ({reasons})")
    rebuild = Manifest.read(bundle).rebuild_command(bundle)
    try:
        with built_beside(out, replace=False) as partial:
            for model in repository.models:
                _write_model(bundle, partial / model.name, model, rebuild)
    except OSError as error:
        raise refused(out, error) from error
    return repository


def plan_repository(bundle: Path, options: RepositoryOptions) -> Repository:
    """The repository that `write_repository` would write.

    Raises:
        BundleError: a graph is missing or altered.
        MissingDependencyError: onnx is not installed.
    """
    manifest = Manifest.read(bundle)
    left_out = [*_unservable_graphs(manifest), *_unservable_plans(manifest)]
    unservable = {one.file for one in left_out}
    graphs = [graph for graph in manifest.graphs if graph.files[0].path not in unservable]
    plans = [plan for plan in manifest.plans if plan.file.path not in unservable]
    models = (
        *(_onnx_model(bundle, manifest, graph, options) for graph in graphs),
        *(_plan_model(bundle, manifest, plan, options) for plan in plans),
    )
    return Repository(models, tuple(left_out))


def _unservable_graphs(manifest: Manifest) -> Iterator[LeftOut]:
    for graph in manifest.graphs:
        if graph.precision not in _SERVED:
            reason = (
                f"a graph in {graph.precision}, which ONNX Runtime does not run exactly with "
                f"default session options; use {' or '.join(_SERVED)}"
            )
            yield LeftOut(graph.files[0].path, reason)


def _unservable_plans(manifest: Manifest) -> Iterator[LeftOut]:
    for plan in manifest.plans:
        if plan.flavour is not Flavour.TENSORRT:
            reason = (
                "a plan of TensorRT for RTX, which Triton's TensorRT backend does not load; "
                "build one with: dinov2rt build --flavour tensorrt"
            )
            yield LeftOut(plan.file.path, reason)
        elif plan.options.get("strip_weights"):
            reason = "a plan without weights, which Triton cannot refit; build one with weights"
            yield LeftOut(plan.file.path, reason)


def _onnx_model(
    bundle: Path, manifest: Manifest, graph: GraphEntry, options: RepositoryOptions
) -> TritonModel:
    name = f"{manifest.name}_{graph.precision}"
    inputs, outputs = _signature(bundle, manifest, graph)
    config = onnx_config(
        name,
        Path(graph.files[0].path).name,
        inputs,
        outputs,
        max_batch=options.max_batch,
        queue_delay_us=options.queue_delay_us,
    )
    return TritonModel(name, config, graph.files)


def _plan_model(
    bundle: Path, manifest: Manifest, plan: PlanEntry, options: RepositoryOptions
) -> TritonModel:
    kind = f"{manifest.name}_{plan.precision}_{plan.target}_trt{plan.version}"
    name = re.sub(r"[^\w-]", "_", kind)
    graph = graph_of(manifest, plan, rebuild_command(bundle, plan))
    inputs, outputs = _signature(bundle, manifest, graph)
    config = plan_config(
        name,
        Path(plan.file.path).name,
        inputs,
        [tensor for tensor in outputs if tensor.name in plan.outputs],
        profiles=plan.profiles,
        queue_delay_us=options.queue_delay_us,
    )
    return TritonModel(name, config, (plan.file,))


def _signature(
    bundle: Path, manifest: Manifest, graph: GraphEntry
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs, read from the graph; its weights are not loaded."""
    onnx = require("onnx", extra="triton", purpose="reading a graph's inputs and outputs")
    file = graph.files[0].check(bundle, rebuild=manifest.rebuild_command(bundle))
    proto = onnx.load(file, load_external_data=False).graph
    defaults = {initializer.name for initializer in proto.initializer}
    inputs = [_tensor(onnx, value, optional=value.name in defaults) for value in proto.input]
    return inputs, [_tensor(onnx, value, optional=False) for value in proto.output]


def _tensor(onnx: Any, value: Any, *, optional: bool) -> Tensor:
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    data_type = Symbol[{"FLOAT": "FP32", "FLOAT16": "FP16"}.get(kind, kind)]
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else DYNAMIC for dim in dims)
    return Tensor(value.name, data_type, shape, optional)


def _write_model(bundle: Path, folder: Path, model: TritonModel, rebuild: str) -> None:
    version = folder / _VERSION
    version.mkdir(parents=True)
    for entry in model.files:
        file = entry.check(bundle, rebuild=rebuild)
        _link_or_copy(file, version / file.name)
    (folder / "config.pbtxt").write_text(model.config, encoding="utf-8")


def _link_or_copy(file: Path, to: Path) -> None:
    try:
        to.hardlink_to(file.resolve())
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(file, to)
