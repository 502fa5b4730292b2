"""Selection of a backend for bundles with plans, on a machine that cannot run plans."""

import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from support.installed import require_for_tests
from support.plans import add_plan

from dinov2rt.bundle.entries import FileEntry, Flavour, PlanEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.profiles import ProfileEntry, ShapeRange
from dinov2rt.errors import BackendError, BundleError, InputError, PlanInputError
from dinov2rt.runtime.gpu.cuda import Gpu
from dinov2rt.runtime.model import load
from dinov2rt.runtime.tensorrt.backend import batch_shape, plan_input
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on, error_log, import_tensorrt
from dinov2rt.runtime.tensorrt.plan_checks import Machine

runtime = require_for_tests("cuda.bindings.runtime")
pytestmark = pytest.mark.skipif(
    runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess,
    reason="a GPU is here; see tests/gpu",
)
A100 = Gpu(0, "NVIDIA A100-SXM4-80GB", "sm80", "580.159.04", (13, 0))
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", "580.159.04", (13, 0))
RTX_VERSION = "1.7.1.116"
NO_GPU = "there is no NVIDIA driver"


@pytest.fixture
def planned(pooling_bundle: Path) -> Path:
    """A bundle with a plan in its manifest, whose file is never read here."""
    profile = ProfileEntry("28", ShapeRange.pinned(ImageSize(28, 28), 4), 1024)
    add_plan(pooling_bundle, version=RTX_VERSION, profiles=(profile,))
    return pooling_bundle


def change_plan(bundle: Path, **changes: object) -> PlanEntry:
    manifest = Manifest.read(bundle)
    plan = replace(manifest.plans[0], **changes)  # type: ignore[arg-type]
    replace(manifest, plans=(plan,)).write(bundle)
    return plan


def pretend(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check plans against `gpu`, with the version of TensorRT for RTX that `planned` is for."""
    machine = Machine(gpu, (Flavour.TENSORRT_RTX,), RTX_VERSION, (13, 0))
    monkeypatch.setattr(Machine, "examine", lambda _: machine)


@pytest.fixture
def planned_on_a100(planned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle with a real plan of the installed TensorRT for RTX, where a GPU seems to be.

    There is no driver, so the library finds no plan valid, whatever else is wrong with it.
    """
    require_for_tests("tensorrt_rtx")
    pretend(A100, monkeypatch)
    trt = import_tensorrt(Flavour.TENSORRT_RTX)
    builder = trt.Builder(error_log(trt))
    network = builder.create_network(0)
    images = network.add_input("images", trt.float32, (1, 3, 14, 14))
    network.mark_output(network.add_cast(images, trt.float16).get_output(0))
    content = builder.build_serialized_network(network, builder.create_builder_config())
    (planned / "plans" / "a.plan").write_bytes(bytes(content))
    file = FileEntry.of(planned, "plans/a.plan")
    change_plan(planned, file=file)
    return planned


def overwrite(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"altered")


def test_a_gpu_that_rtx_does_not_support_is_refused_before_the_plan_is_read(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(H100, monkeypatch)
    (planned / "plans" / "a.plan").unlink()
    reason = f"plans/a.plan: {cannot_run_on(Flavour.TENSORRT_RTX, H100.name, H100.target)}"
    with load(planned) as model:
        assert f"passed over tensorrt_rtx cuda fp32: {reason}" in model.describe()
    with pytest.raises(BackendError) as error:
        load(planned, backend="tensorrt")
    assert str(error.value) == (
        f"nothing that was asked for runs here (tensorrt_rtx cuda fp32: {reason})"
    )


def test_a_plan_whose_header_is_refused_is_not_hashed(planned_on_a100: Path) -> None:
    file = planned_on_a100 / "plans" / "a.plan"
    overwrite(file, file.stat().st_size - 7)  # hashing would tell
    with pytest.raises(BackendError) as error:
        load(planned_on_a100, backend="tensorrt")
    assert f"plans/a.plan does not load with tensorrt_rtx {RTX_VERSION} (" in str(error.value)
    assert "cudaError" in str(error.value), "the library's own reason"
    assert f"; rebuild with: dinov2rt build {planned_on_a100} --target sm80" in str(error.value)


def test_an_altered_header_is_an_altered_file(planned_on_a100: Path) -> None:
    overwrite(planned_on_a100 / "plans" / "a.plan", 0)
    with pytest.raises(BundleError, match=r"a\.plan has SHA-256 .* rebuild with: dinov2rt build"):
        load(planned_on_a100, backend="tensorrt")


def test_a_malformed_plan_with_the_right_hash_does_not_load(
    planned_on_a100: Path,
) -> None:
    overwrite(planned_on_a100 / "plans" / "a.plan", 0)
    change_plan(planned_on_a100, file=FileEntry.of(planned_on_a100, "plans/a.plan"))
    with pytest.raises(BackendError, match=r"\(MALFORMED_ENGINE\); rebuild with: dinov2rt build"):
        load(planned_on_a100, backend="tensorrt")


def test_auto_passes_over_a_plan_without_a_gpu_and_says_so(planned: Path) -> None:
    with load(planned) as model:
        first, *others = model.describe().splitlines()
    assert first == f"dinov2_vits14 fp32 on openvino {metadata.version('openvino')}, cpu"
    assert re.fullmatch(f"passed over tensorrt_rtx cuda fp32: {NO_GPU}", others[0])


def test_a_plan_that_is_requested_by_name_has_no_fallback(planned: Path) -> None:
    with pytest.raises(BackendError) as error:
        load(planned, backend="tensorrt")
    assert re.fullmatch(
        rf"nothing that was asked for runs here \(tensorrt_rtx cuda fp32: {NO_GPU}\)",
        str(error.value),
    )


def test_a_plan_is_skipped_if_another_precision_is_requested(planned: Path) -> None:
    with pytest.raises(BackendError) as error:
        load(planned, backend="tensorrt", precision="fp16")
    assert str(error.value) == (
        "nothing that was asked for runs here (tensorrt auto: the bundle holds no fp16 plan; "
        f"make one with: dinov2rt build {planned} --target sm80)"
    )


def test_plans_do_not_run_on_a_cpu(planned: Path) -> None:
    with pytest.raises(BackendError, match='plans run only on NVIDIA GPUs; use device="cuda"'):
        load(planned, backend="tensorrt", device="cpu")


def test_onnxruntime_by_name_does_not_look_at_plans(planned: Path) -> None:
    with load(planned, backend="onnxruntime") as model:
        assert "tensorrt" not in model.describe()


def test_a_plan_of_another_graph_is_passed_over(planned: Path) -> None:
    change_plan(planned, graph_sha256="f" * 64)
    with load(planned) as model:
        assert (
            "passed over tensorrt_rtx cuda fp32: plans/a.plan: its graph has SHA-256 "
            f"{'f' * 16}…" in model.describe()
        )


def test_images_on_the_host_are_cropped_to_whole_patches(planned: Path) -> None:
    plan = Manifest.read(planned).plans[0]
    images = np.arange(2 * 30 * 41 * 3, dtype=np.uint8).reshape(2, 30, 41, 3)
    taken = plan_input(plan, {"pixels": images}, 14)
    assert np.shares_memory(taken, images)
    np.testing.assert_array_equal(taken, images[:, :28, :28])
    assert str(batch_shape(plan, taken)) == "2x28x28"


def test_normalized_images_are_cropped_along_their_own_axes(planned: Path) -> None:
    plan = change_plan(planned, input_name="images")
    taken = plan_input(plan, {"images": np.zeros((2, 3, 30, 43), np.float32)}, 14)
    assert taken.shape == (2, 3, 28, 42)
    assert str(batch_shape(plan, taken)) == "2x28x42"


def test_padding_inside_the_graph_is_refused_and_not_approximated(planned: Path) -> None:
    plan = Manifest.read(planned).plans[0]
    images = np.zeros((1, 30, 30, 3), np.uint8)
    with pytest.raises(InputError) as error:
        plan_input(plan, {"pixels": images, "padding": np.zeros(8, np.int64)}, 14)
    assert isinstance(error.value, PlanInputError)
    assert str(error.value) == (
        'snap="pad" is not possible in a TensorRT plan of a graph that takes pixels; export '
        'with --input normalized, or load with backend="onnxruntime"'
    )
