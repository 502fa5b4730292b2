"""Tests against the real TensorRT for RTX, as far as it works without a driver."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.installed import require_for_tests

from dinov2rt.bundle.entries import Flavour
from dinov2rt.errors import MissingDependencyError
from dinov2rt.runtime.tensorrt.flavour import (
    cannot_run_on,
    error_log,
    import_tensorrt,
    installed_flavours,
    invalidity,
)

require_for_tests("tensorrt_rtx")


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return import_tensorrt(Flavour.TENSORRT_RTX)


@pytest.fixture(scope="module")
def plan(trt: ModuleType) -> bytes:
    """A plan for sm80 that turns pixels into floats."""
    log = error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    pixels = network.add_input("pixels", trt.uint8, (-1, -1, -1, 3))
    network.mark_output(network.add_cast(pixels, trt.float32).get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("pixels", (1, 14, 14, 3), (1, 28, 28, 3), (4, 56, 56, 3))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


def test_installed_flavours_are_found_without_importing_them() -> None:
    assert Flavour.TENSORRT_RTX in installed_flavours()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="the data-centre TensorRT is here"
)
def test_a_flavour_that_is_missing_is_one_line() -> None:
    assert Flavour.TENSORRT not in installed_flavours()
    with pytest.raises(MissingDependencyError) as error:
        import_tensorrt(Flavour.TENSORRT)
    assert str(error.value) == (
        "a plan of flavour tensorrt needs the package 'tensorrt', which is not installed; "
        "pip install 'dinov2rt[tensorrt]'"
    )


@pytest.mark.parametrize("target", ["sm70", "sm75", "sm87", "sm90", "sm100", "sm103", "sm110"])
def test_a_gpu_that_rtx_does_not_support_is_refused_for_rtx_alone(target: str) -> None:
    assert cannot_run_on(Flavour.TENSORRT_RTX, "a GPU", target)
    assert cannot_run_on(Flavour.TENSORRT, "a GPU", target) is None


@pytest.mark.parametrize("target", ["sm80", "sm86", "sm89", "sm120", "sm121", "sm122", "sm130"])
def test_a_gpu_that_rtx_supports_is_not_refused(target: str) -> None:
    assert cannot_run_on(Flavour.TENSORRT_RTX, "a GPU", target) is None


def test_a_refusal_says_what_was_found_what_is_allowed_and_the_way_out() -> None:
    assert cannot_run_on(Flavour.TENSORRT_RTX, "NVIDIA H100 80GB HBM3", "sm90") == (
        "NVIDIA H100 80GB HBM3 has compute capability 9.0, plans of TensorRT for RTX run on 8.0, "
        '8.6, 8.9, 12.0, 12.1 and newer; use ONNX Runtime CUDA (backend="onnxruntime"; '
        "pip install 'dinov2rt[cuda]'), or build a plan on this GPU with --flavour tensorrt"
    )


def test_rtx_builds_for_the_supported_gpus_and_for_turing(trt: Any) -> None:
    """A TensorRT version that supports other GPUs needs another table."""
    known = {name.lower() for name in trt.ComputeCapability.__members__} - {"none", "current"}
    refused = {name for name in known if cannot_run_on(Flavour.TENSORRT_RTX, "a GPU", name)}
    assert refused == {"sm75"}
    assert known - refused == {"sm80", "sm86", "sm89", "sm120", "sm121"}


def test_rtx_cannot_multiply_in_float32_on_turing_which_every_graph_does(trt: Any) -> None:
    log = error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    left, right = (network.add_input(name, trt.float32, (32, 32)) for name in ("left", "right"))
    plain = trt.MatrixOperation.NONE
    network.mark_output(network.add_matrix_multiply(left, plain, right, plain).get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    assert builder.build_serialized_network(network, config) is None
    assert "FP32 GEMM is not supported" in log.last


def test_a_file_that_is_not_a_plan_is_called_malformed(trt: ModuleType, tmp_path: Path) -> None:
    log = error_log(trt)
    runtime = trt.Runtime(log)
    file = tmp_path / "a.plan"
    assert invalidity(trt, runtime, file, log) == "MALFORMED_ENGINE", "it does not exist"
    file.write_bytes(b"no plan at all, whatever it says" * 8)
    assert invalidity(trt, runtime, file, log) == "MALFORMED_ENGINE"


def test_the_header_is_enough_to_tell_whether_a_plan_is_valid(
    trt: ModuleType, plan: bytes, tmp_path: Path
) -> None:
    log = error_log(trt)
    runtime = trt.Runtime(log)
    size = runtime.engine_header_size
    assert size < 4096
    assert runtime.get_engine_validity(plan[:size]) == runtime.get_engine_validity(plan)
    file = tmp_path / "a.plan"
    file.write_bytes(plan[:size])
    assert invalidity(trt, runtime, file, log) != "MALFORMED_ENGINE"
    file.write_bytes(plan[: size - 1])
    assert invalidity(trt, runtime, file, log) == "MALFORMED_ENGINE"


def test_the_reason_for_a_failure_is_kept(trt: ModuleType, plan: bytes) -> None:
    log = error_log(trt)
    assert log.last == "no reason was given"
    assert trt.Runtime(log).deserialize_cuda_engine(plan[: len(plan) // 2]) is None
    assert log.last != "no reason was given"
    assert "\n" not in log.last


def test_warnings_are_not_taken_for_the_reason(trt: ModuleType) -> None:
    log = error_log(trt)
    log.log(trt.ILogger.WARNING, "slow")
    assert log.last == "no reason was given"
    log.log(trt.ILogger.ERROR, "broken\nin detail")
    assert log.last == "broken"


USED: dict[str, tuple[str, ...]] = {
    "Runtime": (
        "deserialize_cuda_engine",
        "engine_header_size",
        "engine_host_code_allowed",
        "get_engine_validity",
    ),
    "ICudaEngine": (
        "create_execution_context",
        "create_runtime_config",
        "get_tensor_dtype",
        "get_weight_streaming_automatic_budget",
        "weight_streaming_budget_v2",
    ),
    "IExecutionContext": (
        "active_optimization_profile",
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ),
    "CudaGraphStrategy": ("DISABLED", "WHOLE_GRAPH_CAPTURE"),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "EngineInvalidityDiagnostics": ("MALFORMED_ENGINE", "UNSUPPORTED_CC"),
    "EngineValidity": ("INVALID",),
    "Refitter": ("refit_cuda_engine",),
    "OnnxParserRefitter": ("refit_from_file",),
}


@pytest.mark.parametrize(("kind", "members"), USED.items())
def test_names_that_the_backend_uses_exist(trt: Any, kind: str, members: tuple[str, ...]) -> None:
    assert [name for name in members if not hasattr(getattr(trt, kind), name)] == []
