"""Checks the list of GPUs that TensorRT for RTX supports against the library itself."""

from pathlib import Path
from typing import Any

import pytest

from dinov2rt.bundle.entries import Flavour
from dinov2rt.runtime.gpu.cuda import Gpu
from dinov2rt.runtime.tensorrt.flavour import (
    UNSUPPORTED_GPU,
    cannot_run_on,
    error_log,
    import_tensorrt,
    invalidity,
)

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def trt() -> Any:
    return import_tensorrt(Flavour.TENSORRT_RTX)


@pytest.fixture(scope="module")
def open_plan(trt: Any) -> bytes:
    """A plan for every supported GPU, or for a given target."""
    builder = trt.Builder(error_log(trt))
    network = builder.create_network(0)
    images = network.add_input("images", trt.float32, (1, 3, 14, 14))
    network.mark_output(network.add_cast(images, trt.float16).get_output(0))
    return bytes(builder.build_serialized_network(network, builder.create_builder_config()))


def test_the_library_refuses_this_gpu_if_and_only_if_the_list_does(
    gpu: Gpu, trt: Any, open_plan: bytes, tmp_path: Path
) -> None:
    log = error_log(trt)
    runtime = trt.Runtime(log)
    file = tmp_path / "a.plan"
    file.write_bytes(open_plan)
    reason = invalidity(trt, runtime, file, log)
    engine = runtime.deserialize_cuda_engine(open_plan)
    if cannot_run_on(Flavour.TENSORRT_RTX, gpu.name, gpu.target):
        assert (reason, engine) == (UNSUPPORTED_GPU, None)
    else:
        assert reason is None, log.last
        assert engine is not None, log.last
