import dataclasses
from typing import Any

import pytest

from dinov2rt.bundle.entries import Flavour
from dinov2rt.engines.flavours import Toolkit, find_toolkit
from dinov2rt.engines.options import BuildOptions, HardwareCompatibility
from dinov2rt.errors import BackendError, InputError, MissingDependencyError
from dinov2rt.runtime.gpu.cuda import Gpu, find_gpu
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on

A100 = Gpu(0, "NVIDIA A100-SXM4-80GB", "sm80", "580.65.06", (13, 0))

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", "580.159.04", (13, 0))


def _has_gpu() -> bool:
    try:
        find_gpu()
    except (BackendError, MissingDependencyError):
        return False
    return True


without_gpu = pytest.mark.skipif(_has_gpu(), reason="tells what happens where there is no GPU")


@pytest.fixture
def rtx(trt: Any) -> Toolkit:
    """TensorRT for RTX on a machine without a GPU."""
    return Toolkit(Flavour.TENSORRT_RTX, trt, None)


@pytest.fixture
def tensorrt(trt: Any) -> Toolkit:
    """`tensorrt` on an A100; these tests do not use the module itself."""
    return Toolkit(Flavour.TENSORRT, trt, A100)


@without_gpu
def test_auto_is_the_flavour_that_builds_without_a_gpu(trt: Any) -> None:
    toolkit = find_toolkit("auto")
    assert (toolkit.flavour, toolkit.version) == (Flavour.TENSORRT_RTX, trt.__version__)
    assert find_toolkit("tensorrt-rtx") == find_toolkit("tensorrt_rtx") == toolkit


@without_gpu
def test_tensorrt_without_a_gpu_is_refused_with_the_reason_and_the_way_out() -> None:
    with pytest.raises(BackendError, match="the flavour tensorrt cannot build here") as caught:
        find_toolkit("tensorrt")
    assert "use tensorrt-rtx, which needs no GPU to build" in str(caught.value)


def test_an_unknown_flavour_is_refused() -> None:
    with pytest.raises(InputError, match="unknown flavour 'trt'; allowed are \"auto\""):
        find_toolkit("trt")


@pytest.mark.parametrize("name", ["sm75", "sm80", "sm86", "sm89", "sm120", "open"])
def test_targets_of_rtx(rtx: Toolkit, name: str) -> None:
    assert rtx.resolve_target(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sm90", 'cannot build for \'sm90\'; allowed are "sm75", "sm80"'),
        ("current", 'target "current" needs a GPU, and this machine has no GPU'),
        ("a100", "unknown target 'a100'; allowed are compute capabilities"),
        ("none", "unknown target 'none'"),
    ],
)
def test_targets_that_rtx_lacks(rtx: Toolkit, name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        rtx.resolve_target(name)
    assert message in str(caught.value)


def test_current_is_recorded_as_the_compute_capability(rtx: Toolkit) -> None:
    with_gpu = dataclasses.replace(rtx, gpu=A100)
    assert with_gpu.resolve_target("current") == "sm80"


def test_current_is_refused_where_no_plan_of_rtx_runs(rtx: Toolkit) -> None:
    on_hopper = dataclasses.replace(rtx, gpu=H100)
    with pytest.raises(BackendError) as caught:
        on_hopper.resolve_target("current")
    assert str(caught.value) == cannot_run_on(Flavour.TENSORRT_RTX, H100.name, H100.target)
    for name in ("sm80", "sm120", "open"):
        assert on_hopper.resolve_target(name) == name


def test_current_is_any_gpu_for_the_flavour_that_builds_on_it(tensorrt: Toolkit) -> None:
    assert dataclasses.replace(tensorrt, gpu=H100).resolve_target("current") == "sm90"


def test_tensorrt_builds_for_the_gpu_that_it_runs_on(tensorrt: Toolkit) -> None:
    assert tensorrt.resolve_target("sm80") == tensorrt.resolve_target("current") == "sm80"
    for other in ("sm90", "open"):
        with pytest.raises(InputError, match=r"GPU, sm80 \(NVIDIA A100-SXM4-80GB\), not for"):
            tensorrt.resolve_target(other)


def test_a_target_is_set_on_the_builder(rtx: Toolkit, trt: Any) -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    config = builder.create_builder_config()
    rtx.set_target(config, "sm80")
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM80
    config = builder.create_builder_config()
    rtx.set_target(config, "open")
    assert config.num_compute_capabilities == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"version_compatible": True}, "has no version compatible: it has no lean runtime"),
        (
            {"hardware_compatible": HardwareCompatibility.AMPERE_PLUS},
            "has no hardware compatible: its builder ignores it",
        ),
        ({"timing_cache": "times.cache"}, "has no timing cache: its builder does not time"),
        ({"strip_weights": True}, "needs a GPU for strip weights"),
    ],
)
def test_an_unsupported_option_is_refused_with_the_reason(
    rtx: Toolkit, tensorrt: Toolkit, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        rtx.refuse(BuildOptions(**options))
    tensorrt.refuse(BuildOptions(**options))
    rtx.refuse(BuildOptions(weight_streaming=True, optimization_level=5))
