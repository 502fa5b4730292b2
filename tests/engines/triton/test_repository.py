"""Model repositories for Triton, checked against Triton's own schema and against the graphs."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from support.installed import lacking

from dinov2rt.bundle.entries import Flavour, PlanEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.profiles import BatchShape, ProfileEntry, ShapeRange
from dinov2rt.engines.plans import record_plan, write_plan
from dinov2rt.engines.triton.repository import RepositoryOptions, write_repository
from dinov2rt.errors import BundleError, Dinov2rtError, InputError

ONNX_TYPES = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
}
WIDE = ShapeRange(BatchShape(1, 14, 14), BatchShape(4, 518, 518), BatchShape(16, 1036, 1036))
PROFILES = (
    ProfileEntry("224", ShapeRange.pinned(ImageSize(224, 224), 32), 1024),
    ProfileEntry("wide", WIDE, 2048),
)

CopyOf = Callable[[Path], Path]


@pytest.fixture(scope="session")
def schema() -> ModuleType:
    """Triton's `model_config.proto`, imported without gRPC, which its package would load."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        lacking("tritonclient is not installed; make setup installs it")
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parsed(schema: ModuleType) -> Callable[[Path], Any]:
    """The config of a model's folder; a field that Triton does not know is an error."""
    return lambda model: text_format.Parse(
        (model / "config.pbtxt").read_text(), schema.ModelConfig()
    )


def add_plan(bundle: Path, **changes: Any) -> PlanEntry:
    """Add a plan to the manifest; its file is a dummy, since only Triton would open it."""
    graph = next(g for g in Manifest.read(bundle).graphs if g.precision is Precision.FP16)
    entry = PlanEntry(
        file=write_plan(bundle, f"{len(changes)}{changes.get('flavour', '')}", b"plan"),
        flavour=Flavour.TENSORRT,
        version="10.14.1.48",
        target="sm80",
        precision=Precision.FP16,
        input_name="pixels",
        outputs=graph.outputs,
        profiles=PROFILES,
        fused_attention=12,
        weight_bytes=1,
        build_seconds=1.0,
        graph_sha256=graph.files[0].sha256,
    )
    entry = dataclasses.replace(entry, **changes)
    record_plan(bundle, entry)
    return entry


def schema_type(tensor: Any) -> str:
    field = tensor.DESCRIPTOR.fields_by_name["data_type"]
    return str(field.enum_type.values_by_number[tensor.data_type].name)


def described(tensors: Any, max_batch: int) -> list[tuple[str, str, list[int]]]:
    """Name, type and full shape of each tensor; Triton adds the batch axis if the model batches."""
    batch = [-1] if max_batch else []
    return [(tensor.name, schema_type(tensor), [*batch, *tensor.dims]) for tensor in tensors]


def graph_tensors(values: Any) -> list[tuple[str, str, list[int]]]:
    return [
        (
            value.name,
            ONNX_TYPES[value.type.tensor_type.elem_type],
            [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


@pytest.mark.parametrize("max_batch", [0, 1, 8])
def test_a_config_matches_the_graph(
    bundle_s_reg: Path, tmp_path: Path, parsed: Callable[[Path], Any], max_batch: int
) -> None:
    assert_configs_match(bundle_s_reg, "dinov2_vits14_reg", tmp_path, parsed, max_batch)


def test_a_config_matches_the_graph_of_an_unusual_architecture(
    bundle_unusual: Path, tmp_path: Path, parsed: Callable[[Path], Any]
) -> None:
    name = "dinov2_96x2_patch16_reg8"
    assert_configs_match(bundle_unusual, name, tmp_path, parsed, 8)
    config = parsed(tmp_path / "r" / f"{name}_fp32")
    assert [list(output.dims) for output in config.output] == [[96], [8, 96], [-1, 96]]


def assert_configs_match(
    bundle: Path, bundle_name: str, tmp_path: Path, parsed: Callable[[Path], Any], max_batch: int
) -> None:
    write_repository(bundle, tmp_path / "r", RepositoryOptions(max_batch=max_batch))
    for precision in ("fp32", "fp16"):
        name = f"{bundle_name}_{precision}"
        config = parsed(tmp_path / "r" / name)
        file = tmp_path / "r" / name / "1" / config.default_model_filename
        graph = onnx.load(file, load_external_data=False).graph
        assert (config.name, config.platform) == (name, "onnxruntime_onnx")
        assert config.max_batch_size == max_batch
        assert described(config.output, max_batch) == graph_tensors(graph.output)
        # Triton's backend accepts an input with a default only in a model that does not batch.
        taken = graph.input if max_batch == 0 else graph.input[:1]
        assert described(config.input, max_batch) == graph_tensors(taken)
        assert [tensor.optional for tensor in config.input] == [False, True][: len(taken)]
        assert config.HasField("dynamic_batching") == (max_batch > 1)
        assert config.version_policy.latest.num_versions == 1


def test_optional_inputs_are_those_that_onnx_runtime_calls_overridable(
    bundle_s_reg: Path, tmp_path: Path, parsed: Callable[[Path], Any]
) -> None:
    write_repository(bundle_s_reg, tmp_path / "r", RepositoryOptions(max_batch=0))
    model = tmp_path / "r" / "dinov2_vits14_reg_fp32"
    config = parsed(model)
    # The linked files load from the repository, including the external data.
    session = onnxruntime.InferenceSession(
        model / "1" / config.default_model_filename, providers=["CPUExecutionProvider"]
    )
    required = [tensor.name for tensor in config.input if not tensor.optional]
    optional = [tensor.name for tensor in config.input if tensor.optional]
    assert required == [value.name for value in session.get_inputs()]
    assert optional == [value.name for value in session.get_overridable_initializers()]


@pytest.mark.parametrize(
    ("max_batch", "batch_size", "dims"), [(8, 1, [224, 224, 3]), (0, 1, [1, 224, 224, 3])]
)
def test_an_onnx_model_is_warmed_up_with_every_input(
    bundle_s_reg: Path,
    tmp_path: Path,
    parsed: Callable[[Path], Any],
    max_batch: int,
    batch_size: int,
    dims: list[int],
) -> None:
    write_repository(bundle_s_reg, tmp_path / "r", RepositoryOptions(max_batch=max_batch))
    config = parsed(tmp_path / "r" / "dinov2_vits14_reg_fp32")
    (warmup,) = config.model_warmup
    assert (warmup.batch_size, list(warmup.inputs["pixels"].dims)) == (batch_size, dims)
    assert set(warmup.inputs) == {tensor.name for tensor in config.input}
    assert all(value.zero_data for value in warmup.inputs.values())


def test_a_plan_is_served_with_all_its_profiles(
    bundle_s_reg: Path, copy_of: CopyOf, tmp_path: Path, parsed: Callable[[Path], Any]
) -> None:
    bundle = copy_of(bundle_s_reg)
    entry = add_plan(bundle)
    repository = write_repository(bundle, tmp_path / "r", RepositoryOptions(queue_delay_us=250))
    name = "dinov2_vits14_reg_fp16_sm80_trt10_14_1_48"
    assert [model.name for model in repository.models][-1] == name
    config = parsed(tmp_path / "r" / name)
    assert config.platform == "tensorrt_plan"
    assert config.max_batch_size == 16  # of the profiles' 32 and 16: either may have to take it
    assert [tensor.name for tensor in config.input] == ["pixels"]
    assert described(config.input, 16) == [("pixels", "TYPE_UINT8", [-1, -1, -1, 3])]
    assert described(config.output, 16)[-1] == ("patch_tokens", "TYPE_FP32", [-1, -1, 384])
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.profile)) == (1, group.KIND_GPU, ["0", "1"])
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    warmups = [(one.batch_size, list(one.inputs["pixels"].dims)) for one in config.model_warmup]
    assert warmups == [(16, [224, 224, 3]), (4, [518, 518, 3])]
    file = tmp_path / "r" / name / "1" / config.default_model_filename
    assert file.read_bytes() == (bundle / entry.file.path).read_bytes() == b"plan"


def test_what_triton_cannot_load_is_left_out_with_the_reason(
    bundle_s_reg: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    bundle = copy_of(bundle_s_reg)
    rtx = add_plan(bundle, flavour=Flavour.TENSORRT_RTX, version="1.7.1.116")
    bare = add_plan(bundle, options={"strip_weights": "true"})
    repository = write_repository(bundle, tmp_path / "r", RepositoryOptions())
    assert [model.name for model in repository.models] == [
        "dinov2_vits14_reg_fp32",
        "dinov2_vits14_reg_fp16",
    ]
    reasons = {one.file: one.reason for one in repository.left_out}
    assert reasons[rtx.file.path].startswith("a plan of TensorRT for RTX, which Triton's TensorRT")
    assert reasons[bare.file.path].startswith("a plan without weights, which Triton cannot refit")


def test_a_bundle_with_nothing_to_serve_is_refused(
    bundle_s_reg: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    bundle = copy_of(bundle_s_reg)
    manifest = Manifest.read(bundle)
    graph = dataclasses.replace(manifest.graphs[0], precision=Precision.BF16)
    dataclasses.replace(manifest, graphs=(graph,)).write(bundle)
    with pytest.raises(
        InputError, match=r"can serve no graph or plan of .* \(fp32\.onnx: a graph in bf16, which"
    ):
        write_repository(bundle, tmp_path / "r", RepositoryOptions())
    assert not (tmp_path / "r").exists()


def test_a_repository_is_written_whole_or_not_at_all(
    bundle_s_reg: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    bundle = copy_of(bundle_s_reg)
    before = set(tmp_path.iterdir())
    with (bundle / "fp16.onnx.data").open("r+b") as file:
        file.write(b"altered")
    with pytest.raises(BundleError, match=r"fp16\.onnx\.data has SHA-256 .* rebuild with"):
        write_repository(bundle, tmp_path / "r", RepositoryOptions())
    assert set(tmp_path.iterdir()) == before
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken exists already; remove it, or give another"):
        write_repository(bundle, tmp_path / "taken", RepositoryOptions())
    (tmp_path / "file").touch()
    with pytest.raises(Dinov2rtError, match=r"file/r cannot be written \(File exists"):
        write_repository(bundle_s_reg, tmp_path / "file" / "r", RepositoryOptions())


def test_files_are_copied_where_they_cannot_be_linked(
    bundle_s_reg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    linked, copied = tmp_path / "linked", tmp_path / "copied"
    write_repository(bundle_s_reg, linked, RepositoryOptions())
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_repository(bundle_s_reg, copied, RepositoryOptions())
    original = bundle_s_reg / "fp32.onnx"
    file = Path("dinov2_vits14_reg_fp32", "1", "fp32.onnx")
    assert (linked / file).samefile(original)
    assert not (copied / file).samefile(original)
    assert (copied / file).read_bytes() == original.read_bytes()


@pytest.mark.parametrize("options", [{"max_batch": -1}, {"queue_delay_us": -1}])
def test_negative_numbers_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="-1 is negative; allowed is a whole number from 0"):
        RepositoryOptions(**options)
