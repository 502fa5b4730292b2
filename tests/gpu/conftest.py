"""A bundle with a plan for this machine's GPU; all tests here are skipped without a GPU."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2rt.bundle.signature import InputFormat
from dinov2rt.bundle.variants import find_variant
from dinov2rt.engines.build import build_plan
from dinov2rt.engines.flavours import find_toolkit
from dinov2rt.engines.options import BuildOptions
from dinov2rt.errors import BackendError, MissingDependencyError
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.runtime.gpu.cuda import Gpu, find_gpu
from dinov2rt.runtime.model import Model, load
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on

MAX_BATCH = 4
_VARIANT = "dinov2_vits14_reg"

_ran = False


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global _ran
    _ran |= "tests/gpu" in report.nodeid and report.when == "call" and not report.skipped


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """If only these tests are selected and all are skipped, the run fails."""
    if session.config.option.markexpr == "gpu" and not _ran:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    try:
        return find_gpu()
    except (BackendError, MissingDependencyError) as error:
        pytest.skip(f"no GPU to test on: {error}")


@pytest.fixture(scope="session")
def plan_gpu(gpu: Gpu) -> Gpu:
    """The GPU, if plans of the flavour that `build` chooses here can run on it."""
    reason = cannot_run_on(find_toolkit("auto").flavour, gpu.name, gpu.target)
    if reason is not None:
        pytest.skip(reason)
    return gpu


@pytest.fixture(scope="session")
def built(plan_gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """Three profiles, the last of which takes any size up to 518 pixels a side."""
    return _build(tmp_path_factory.mktemp("gpu") / "pixels", InputFormat.PIXELS)


@pytest.fixture(scope="session")
def built_normalized(
    plan_gpu: Gpu,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return _build(tmp_path_factory.mktemp("gpu") / "normalized", InputFormat.IMAGES)


def _build(bundle: Path, input_format: InputFormat) -> Path:
    export_bundle(find_variant(_VARIANT), "synthetic:0", bundle, ExportOptions(input_format))
    build_plan(bundle, BuildOptions(target="current", max_batch=MAX_BATCH, max_size=518))
    return bundle


@pytest.fixture(scope="session")
def plan(built: Path) -> Iterator[Model]:
    with load(built, backend="tensorrt", verify=True) as model:
        yield model


@pytest.fixture(scope="session")
def reference(built: Path) -> Iterator[Model]:
    """The same weights in float32 on the CPU."""
    with load(built, backend="onnxruntime", device="cpu", precision="fp32") as model:
        yield model


def _noise(batch: int, height: int, width: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng((batch, height, width))
    return generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int, int], NDArray[np.uint8]]:
    """Pixels [batch, height, width, 3]; the same for the same arguments."""
    return _noise
