from pathlib import Path
from typing import Any

import pytest

from dinov2rt.bundle.entries import Flavour
from dinov2rt.engines.flavours import Toolkit
from dinov2rt.engines.timing_cache import attach, default_file, save
from dinov2rt.runtime.gpu.cuda import Gpu

# RTX's caches are empty, but they are read and written like the caches of tensorrt.
pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]iming cache.*:DeprecationWarning")


def _toolkit(trt: Any, gpu: str) -> Toolkit:
    return Toolkit(Flavour.TENSORRT, trt, Gpu(0, gpu, "sm80", "580.65.06", (13, 0)))


def test_the_cache_is_beside_the_bundle_and_named_after_gpu_and_version(
    trt: Any, tmp_path: Path
) -> None:
    bundle = tmp_path / "dinov2_vits14"
    file = default_file(bundle, _toolkit(trt, "NVIDIA A100-SXM4-80GB"), "sm80")
    assert file.parent == tmp_path / "timing-cache"
    assert file.name == f"tensorrt-{trt.__version__}-sm80-nvidia-a100-sxm4-80gb.cache"
    assert file != default_file(bundle, _toolkit(trt, "NVIDIA A100-PCIE-40GB"), "sm80")
    assert file == default_file(tmp_path / "other", _toolkit(trt, "NVIDIA A100-SXM4-80GB"), "sm80")


@pytest.mark.parametrize("content", [None, b"", b"not a cache"])
def test_a_missing_or_foreign_file_is_a_fresh_start(
    trt: Any, tmp_path: Path, content: bytes | None
) -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    config = builder.create_builder_config()
    file = tmp_path / "folder" / "times.cache"
    if content is not None:
        file.parent.mkdir()
        file.write_bytes(content)
    attach(config, file)
    save(config, file)
    assert file.stat().st_size > len(content or b"")
    assert list(file.parent.iterdir()) == [file]
    attach(config, file)
